"""Which tables there are, and the sink for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from alula.core import TableFormat
from alula.errors import UsageError, closest
from alula.pipeline.atomic import check_file_target, check_folder_target
from alula.pipeline.detections import (
    AudacityLayout,
    BirdnetLayout,
    DetectionFolderSink,
    DetectionLayout,
    DetectionSink,
    KaleidoscopeLayout,
    RavenLayout,
    Recordings,
    Selection,
)
from alula.pipeline.shards import Shard
from alula.pipeline.sinks import PARQUET_SUFFIX, CsvSink, Kind, ParquetPartsSink, ParquetSink, Sink
from alula.pipeline.submission import BirdclefSink, SampleSubmission

__all__ = ["FORMATS", "TableOptions", "sink_for"]

FORMATS: tuple[TableFormat, ...] = get_args(TableFormat)
_DETECTIONS = ("birdnet", "raven", "audacity", "kaleidoscope")
# A name that ends so is that of one table for all recordings; any other is that of a folder of tables.
_TABLE_SUFFIXES = (".txt", ".tsv", ".csv")
_FOLDER_SUFFIXES = {"raven": ".selections.txt", "audacity": ".labels.txt"}


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """What some formats take besides labels.

    Attributes:
        selection: which scores are detections; None for the default. For formats of detections.
        recordings: what is known about the recordings. Formats of detections need it.
        sample: rows and columns of a competition. For format `birdclef`.
        shard: the part of a job that the table holds; None for all of it.
        drafts: where the table is until it is whole; None takes its own folder.
    """

    selection: Selection | None = None
    recordings: Recordings | None = None
    sample: SampleSubmission | None = None
    shard: Shard | None = None
    drafts: Path | None = None


def sink_for(
    path: str | Path,
    *,
    format: str | None,  # noqa: A002 - the name of the option
    labels: Sequence[str] | None,
    kind: Kind,
    options: TableOptions | None = None,
) -> Sink:
    """Return the sink that writes `path`, not yet opened.

    Args:
        path: the table; `.csv` or `.parquet` says the format where `format` is None. For `parquet-parts` a
            folder; for `raven` and `audacity` one table if it ends in `.txt`, `.tsv` or `.csv`, and a folder
            with a table per recording if not.
        format: one of `FORMATS`.
        labels: column names of the scores; None gives `output_0`, `output_1`, ... (`output_i_j` for
            outputs of more axes).
        kind: what the inputs are; windows of audio get the columns `start_s` and `end_s`.
        options: what some formats take besides.

    Raises:
        UsageError: for an unknown format or suffix, labels that clash, options of another format, a path that
            is something else, a shard of a table that runs on from recording to recording, or a format of
            audio without windows or labels.

    >>> type(sink_for("scores.csv", format=None, labels=["robin"], kind="audio")).__name__
    'CsvSink'
    """
    path = Path(path)
    options = TableOptions() if options is None else options
    name = _format_of(path, format)
    if options.selection is not None and name not in _DETECTIONS:
        raise UsageError(
            f"Format `{name}` holds every score and got a threshold; expected one of "
            f"{', '.join(f'`{one}`' for one in _DETECTIONS)} for detections. Leave the threshold out or give "
            "another format."
        )
    if options.sample is not None and name != "birdclef":
        raise UsageError(
            f"Format `{name}` got a sample submission; expected `birdclef`. Add `--format birdclef`."
        )
    folder_suffix = _folder_suffix(path, name)
    if name in _FOLDER_SUFFIXES and folder_suffix is None and options.shard and options.shard.count > 1:
        raise UsageError(
            f"{path}: one table of format `{name}` got shard {options.shard}; expected all files, as times "
            "and numbers run on from recording to recording. Name a folder, for a table per recording."
        )
    if folder_suffix is None:
        check_file_target(path)
    else:
        check_folder_target(path, suffix=folder_suffix)
    makers: dict[str, Callable[[], Sink]] = {
        "csv": lambda: CsvSink(path, labels=labels, kind=kind, drafts=options.drafts),
        "parquet": lambda: ParquetSink(path, labels=labels, kind=kind, drafts=options.drafts),
        "parquet-parts": lambda: ParquetPartsSink(path, labels=labels, kind=kind, drafts=options.drafts),
        "birdclef": lambda: BirdclefSink(
            path, labels=labels, kind=kind, sample=options.sample, drafts=options.drafts
        ),
    }
    if name in makers:
        return makers[name]()
    recordings = options.recordings
    if recordings is None:
        raise UsageError(f"Format `{name}` got nothing about the recordings; expected `recordings`.")
    selection = Selection() if options.selection is None else options.selection
    layouts: dict[str, Callable[[], DetectionLayout]] = {
        "birdnet": BirdnetLayout,
        "raven": lambda: RavenLayout(recordings),
        "audacity": AudacityLayout,
        "kaleidoscope": lambda: KaleidoscopeLayout(recordings),
    }
    if folder_suffix is not None:
        return DetectionFolderSink(
            path,
            suffix=folder_suffix,
            format=name,
            layout=layouts[name](),
            labels=labels,
            kind=kind,
            selection=selection,
            recordings=recordings,
            drafts=options.drafts,
        )
    return DetectionSink(
        path,
        format=name,
        layout=layouts[name](),
        labels=labels,
        kind=kind,
        selection=selection,
        recordings=recordings,
        drafts=options.drafts,
    )


def _format_of(path: Path, format: str | None) -> str:  # noqa: A002 - as in `sink_for`
    known = ", ".join(f"`{name}`" for name in FORMATS)
    if format is not None:
        if format not in FORMATS:
            raise UsageError(
                f"Output format got `{format}`; expected one of {known}.{closest(format, FORMATS)}"
            )
        return format
    suffix = path.suffix.lower()
    if suffix not in (".csv", PARQUET_SUFFIX):
        raise UsageError(
            f"The format of `{path}` cannot be told from its suffix; expected `.csv` or `.parquet`, or a "
            f"format by name: {known}.{closest(suffix, ['.csv', PARQUET_SUFFIX])}"
        )
    return suffix[1:]


def _folder_suffix(path: Path, name: str) -> str | None:
    """Return how the files of a format that writes a folder end; None for a single file."""
    if name == "parquet-parts":
        return PARQUET_SUFFIX
    if name in _FOLDER_SUFFIXES and path.suffix.lower() not in _TABLE_SUFFIXES:
        return _FOLDER_SUFFIXES[name]
    return None
