"""Bounded stages on threads, and writers of their results: callables and arrays only.

`run_job` and `iter_job` take tasks through *prepare* (decode and features), batches and *infer* to
results in task order, under one CPU budget and in bounded memory. `sink_for` opens the table that
the results are written to. Nothing here knows of audio or engines.
"""

from alula.pipeline.atomic import AtomicFile
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
from alula.pipeline.whole_files import ColumnWalk, columns_of, windows_of

__all__ = [
    "AtomicFile",
    "BirdclefSink",
    "ColumnWalk",
    "CsvSink",
    "ErrorReport",
    "JobSummary",
    "ParquetSink",
    "Progress",
    "Row",
    "Sink",
    "TaskResult",
    "columns_of",
    "iter_job",
    "row_limit",
    "run_job",
    "sink_for",
    "windows_of",
]
