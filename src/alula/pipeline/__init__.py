"""Bounded stages on threads, a journal of what they have finished, and writers of their results.

`run_job` and `iter_job` take tasks through *prepare* (decode and features), batches and *infer* to
results, under one CPU budget and in bounded memory. A `Journal` keeps results through a kill, and a
`Backlog` gives them back in order. `sink_for` opens the table that they are written to. `DeadlineScheduler`
says on which rung of a ladder the next piece of a job is computed so that it ends in time. Callables and
arrays only: nothing here knows of audio or engines.
"""

from alula.pipeline.atomic import AtomicFile
from alula.pipeline.backlog import READY_PER_RESULT, Backlog
from alula.pipeline.columns import ColumnFile
from alula.pipeline.deadline import (
    Care,
    Completed,
    DeadlineScheduler,
    Decision,
    Reserve,
    Rung,
    StepTaken,
    WorkLeft,
    complete,
)
from alula.pipeline.detections import (
    DetectionFolderSink,
    DetectionSink,
    Recordings,
    Selection,
    read_prior,
    read_thresholds,
)
from alula.pipeline.forecast import Finished, Forecast, Remaining, StageCost
from alula.pipeline.formats import FORMATS, TableOptions, sink_for
from alula.pipeline.jobs import JobSummary, Progress, TaskResult, iter_job, run_job
from alula.pipeline.journal import (
    FileKey,
    FileTask,
    JobKey,
    Journal,
    Kept,
    KeptBlock,
    file_key,
    journal_folder,
)
from alula.pipeline.pacing import Pace, Pacer, Piece
from alula.pipeline.schedule import RowSpec, row_limit
from alula.pipeline.shards import Shard, parse_shard, shard_of
from alula.pipeline.sinks import CsvSink, ErrorReport, ParquetPartsSink, ParquetSink, Row, Sink
from alula.pipeline.submission import BirdclefSink, SampleSubmission, read_sample_submission
from alula.pipeline.unfinished import Stretch, UnfinishedList, forget_unfinished

__all__ = [
    "FORMATS",
    "READY_PER_RESULT",
    "AtomicFile",
    "Backlog",
    "BirdclefSink",
    "Care",
    "ColumnFile",
    "Completed",
    "CsvSink",
    "DeadlineScheduler",
    "Decision",
    "DetectionFolderSink",
    "DetectionSink",
    "ErrorReport",
    "FileKey",
    "FileTask",
    "Finished",
    "Forecast",
    "JobKey",
    "JobSummary",
    "Journal",
    "Kept",
    "KeptBlock",
    "Pace",
    "Pacer",
    "ParquetPartsSink",
    "ParquetSink",
    "Piece",
    "Progress",
    "Recordings",
    "Remaining",
    "Reserve",
    "Row",
    "RowSpec",
    "Rung",
    "SampleSubmission",
    "Selection",
    "Shard",
    "Sink",
    "StageCost",
    "StepTaken",
    "Stretch",
    "TableOptions",
    "TaskResult",
    "UnfinishedList",
    "WorkLeft",
    "complete",
    "file_key",
    "forget_unfinished",
    "iter_job",
    "journal_folder",
    "parse_shard",
    "read_prior",
    "read_sample_submission",
    "read_thresholds",
    "row_limit",
    "run_job",
    "shard_of",
    "sink_for",
]
