"""Bounded stages on threads, and writers of their results: callables and arrays only.

`run_job` and `iter_job` take tasks through *prepare* (decode and features), batches and *infer* to
results in task order, under one CPU budget and in bounded memory. `sink_for` opens the table that
the results are written to. `DeadlineScheduler` says on which rung of a ladder the next piece of a job is
computed so that it ends in time. Nothing here knows of audio or engines.
"""

from alula.pipeline.atomic import AtomicFile
from alula.pipeline.deadline import (
    Backlog,
    Care,
    Completed,
    DeadlineScheduler,
    Decision,
    Reserve,
    Rung,
    StepTaken,
    complete,
)
from alula.pipeline.forecast import Finished, Forecast, Remaining, StageCost
from alula.pipeline.jobs import JobSummary, Progress, TaskResult, iter_job, run_job
from alula.pipeline.schedule import row_limit
from alula.pipeline.sinks import (
    BirdclefSink,
    CsvSink,
    ErrorReport,
    ParquetSink,
    Row,
    Sink,
    sink_for,
)

__all__ = [
    "AtomicFile",
    "Backlog",
    "BirdclefSink",
    "Care",
    "Completed",
    "CsvSink",
    "DeadlineScheduler",
    "Decision",
    "ErrorReport",
    "Finished",
    "Forecast",
    "JobSummary",
    "ParquetSink",
    "Progress",
    "Remaining",
    "Reserve",
    "Row",
    "Rung",
    "Sink",
    "StageCost",
    "StepTaken",
    "TaskResult",
    "complete",
    "iter_job",
    "row_limit",
    "run_job",
    "sink_for",
]
