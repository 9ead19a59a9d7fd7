"""Tables of detections: what was found where, for the programs in which people listen and look.

Raven selection tables, Audacity label tracks, Kaleidoscope CSV and the CSV of BirdNET-Analyzer. Columns have
the names that BirdNET-Analyzer gives them, as far as they say something here; which columns it writes differs
between its releases.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, final

import numpy as np
import numpy.typing as npt

from alula.errors import DataError, JobError, UsageError, closest, plain_text
from alula.pipeline.atomic import AtomicFile, AtomicFolder
from alula.pipeline.sinks import (
    Columns,
    FileSink,
    Kind,
    Row,
    Scores,
    Sink,
    csv_line,
    seconds_text,
)

__all__ = [
    "DEFAULT_CONFIDENCE",
    "AudacityLayout",
    "BirdnetLayout",
    "Detection",
    "DetectionFolderSink",
    "DetectionLayout",
    "DetectionSink",
    "KaleidoscopeLayout",
    "RavenLayout",
    "Recordings",
    "Selection",
    "read_prior",
    "read_thresholds",
    "species_of",
]

Places: TypeAlias = npt.NDArray[np.intp]

# BirdNET-Analyzer's default.
DEFAULT_CONFIDENCE = 0.25
_SCIENTIFIC = re.compile(r"[A-Z][a-z-]+( [a-z][a-z.-]*)+")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which scores are detections: all conditions that are given must hold.

    Without any, scores from 0.25 up are.

    Attributes:
        threshold: smallest score; or one per label, and a label that is not named has none but
            `min_confidence`.
        min_confidence: smallest score of any label.
        top_k: how many labels of a window at most, the highest scores first; of equal ones the first labels.
    """

    threshold: float | Mapping[str, float] | None = None
    min_confidence: float | None = None
    top_k: int | None = None

    def __post_init__(self) -> None:
        values: list[float | None] = [self.min_confidence]
        if isinstance(self.threshold, Mapping):
            values.extend(self.threshold.values())
        else:
            values.append(self.threshold)
        for value in values:
            if value is not None and not np.isfinite(value):
                raise UsageError(f"A threshold got {value}; expected a number.")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"`top_k` got {self.top_k}; expected at least 1 label per window.")

    def limits(self, labels: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return the smallest score of each label that is a detection, shape (c,), minus infinity for any.

        Raises:
            UsageError: a threshold is given for what is no label.
        """
        if self == Selection():
            return np.full(len(labels), DEFAULT_CONFIDENCE)
        limits = np.full(len(labels), -np.inf)
        if isinstance(self.threshold, Mapping):
            places = {label: k for k, label in enumerate(labels)}
            for label, value in self.threshold.items():
                if label not in places:
                    raise UsageError(
                        f"A threshold got the label `{label}`, which the bundle has not; expected one of its "
                        f"{len(labels)} labels.{closest(label, places)}"
                    )
                limits[places[label]] = value
        elif self.threshold is not None:
            limits[:] = self.threshold
        return limits if self.min_confidence is None else np.maximum(limits, self.min_confidence)

    def places(self, scores: Scores, limits: npt.NDArray[np.float64]) -> tuple[Places, Places]:
        """Return rows and columns of the detections, row by row, the highest score of a row first.

        Args:
            scores: shape (n, c); NaN is no detection.
            limits: shape (c,), from `limits`.
        """
        # In the type of the scores, or a float32 score of 0.1 would be compared with 0.1 as a double.
        limits = limits.astype(scores.dtype if scores.dtype.kind == "f" else np.float64)
        rows, columns = np.nonzero(scores >= limits)
        order = np.lexsort((columns, -scores[rows, columns].astype(np.float64), rows))
        rows, columns = rows[order], columns[order]
        if self.top_k is not None:
            rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
            within = rank < self.top_k
            rows, columns = rows[within], columns[within]
        return rows, columns


def read_thresholds(path: str | Path) -> dict[str, float]:
    """Return the thresholds in a CSV file with the columns `label` and `threshold`, by label.

    Raises:
        DataError: it cannot be read, has other columns, a label twice, or what is no number.
    """
    return _read_numbers(Path(path), "threshold", one="a threshold")


def read_prior(path: str | Path) -> dict[str, float]:
    """Return the scores in a CSV file with the columns `label` and `score`, by label.

    Raises:
        DataError: it cannot be read, has other columns, a label twice, or what is no number.
    """
    return _read_numbers(Path(path), "score", one="a score")


def _read_numbers(path: Path, column: str, *, one: str) -> dict[str, float]:
    found: dict[str, float] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = csv.reader(stream)
            header = next(lines, [])
            if header != ["label", column]:
                raise DataError(path, f"begins with {header}; expected the columns `label,{column}`.")
            for line in filter(None, lines):
                label, value = line if len(line) == 2 else (line[0], "")
                if label in found:
                    raise DataError(path, f"has `{label}` twice; expected {one} for each label.")
                found[label] = float(value)
    except OSError as error:
        raise DataError(
            path,
            f"cannot be read: {error.strerror or error}. Give a number or a CSV file `label,{column}`.",
        ) from error
    except (ValueError, csv.Error) as error:
        raise DataError(path, f"is no table of `label,{column}`: {error}.") from error
    return found


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """What tables of detections say about the recordings.

    Attributes:
        root: the folder that holds all inputs; names of tables and folders are relative to it.
        low_hz: lowest frequency that the model hears.
        high_hz: the highest.
        duration_s: length of a recording, or None where that cannot be told.
    """

    root: Path
    low_hz: float
    high_hz: float
    duration_s: Callable[[str], float | None]


@dataclass(frozen=True, slots=True)
class Detection:
    """One label in one window.

    Attributes:
        number: from 1, within the table.
        path: the recording.
        start_s: where the window starts in the recording.
        end_s: where it ends, at most the end of the recording.
        before_s: length of all recordings before it in the table; 0 in a table of one.
        label: of the bundle.
        score: of that label.
    """

    number: int
    path: str
    start_s: float
    end_s: float
    before_s: float
    label: str
    score: float


def species_of(label: str) -> tuple[str, str]:
    """Return the scientific and the common name in a label; a label that is no such pair stands for both.

    >>> species_of("Turdus merula_Eurasian Blackbird")
    ('Turdus merula', 'Eurasian Blackbird')
    >>> species_of("eurbla")
    ('eurbla', 'eurbla')
    """
    scientific, _, common = label.partition("_")
    return (scientific, common) if common and _SCIENTIFIC.fullmatch(scientific) else (label, label)


class DetectionLayout(Protocol):
    """How a detection becomes a line."""

    @property
    def header(self) -> str:
        """The first line with its end; empty for none."""

    def line(self, detection: Detection) -> str:
        """Return one line without its end."""


@final
@dataclass(frozen=True, slots=True)
class RavenLayout:
    """Raven selection tables: times run on over the recordings of a table, the offset is in the file."""

    recordings: Recordings

    @property
    def header(self) -> str:
        """Raven's names of columns."""
        names = (
            "Selection", "Begin Time (s)", "End Time (s)", "Common Name", "Scientific Name", "Species Code",
            "Confidence", "View", "Channel", "File Offset (s)", "Low Freq (Hz)", "High Freq (Hz)",
            "Begin Path",
        )  # fmt: skip
        return "\t".join(names) + "\n"

    def line(self, detection: Detection) -> str:
        """Return one selection."""
        scientific, common = species_of(detection.label)
        return _tabbed(
            str(detection.number),
            _decimal(detection.before_s + detection.start_s),
            _decimal(detection.before_s + detection.end_s),
            common,
            scientific,
            detection.label,
            _score_text(detection.score),
            "Spectrogram 1",
            "1",
            _decimal(detection.start_s),
            _decimal(self.recordings.low_hz),
            _decimal(self.recordings.high_hz),
            _absolute(detection.path),
        )


@final
@dataclass(frozen=True, slots=True)
class AudacityLayout:
    """Audacity label tracks: start, end, label and, which Audacity does not show, the score; no header."""

    header = ""

    def line(self, detection: Detection) -> str:
        """Return one label."""
        return _tabbed(
            _decimal(detection.before_s + detection.start_s),
            _decimal(detection.before_s + detection.end_s),
            detection.label,
            _score_text(detection.score),
        )


@final
@dataclass(frozen=True, slots=True)
class KaleidoscopeLayout:
    """Kaleidoscope CSV: the recording as folder, folder below it and name; offset and duration in it."""

    recordings: Recordings

    @property
    def header(self) -> str:
        """Kaleidoscope's names of columns."""
        return "INDIR,FOLDER,IN FILE,OFFSET,DURATION,TOP1MATCH,confidence\n"

    def line(self, detection: Detection) -> str:
        """Return one identification."""
        below = os.path.relpath(detection.path, self.recordings.root)
        folder, name = os.path.split(below)
        return csv_line(
            [
                _absolute(self.recordings.root),
                folder,
                name,
                seconds_text(detection.start_s),
                seconds_text(detection.end_s - detection.start_s),
                detection.label,
                _score_text(detection.score),
            ]
        )


@final
@dataclass(frozen=True, slots=True)
class BirdnetLayout:
    """BirdNET-Analyzer's CSV: a line per detection."""

    header = "Start (s),End (s),Scientific name,Common name,Confidence,File\n"

    def line(self, detection: Detection) -> str:
        """Return one detection."""
        scientific, common = species_of(detection.label)
        return csv_line(
            [
                seconds_text(detection.start_s),
                seconds_text(detection.end_s),
                scientific,
                common,
                _score_text(detection.score),
                detection.path,
            ]
        )


def _score_text(score: float) -> str:
    return f"{score:.4f}"


def _absolute(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 (resolve() would follow links)


def _decimal(value: float) -> str:
    """Return a number with a decimal point: some readers refuse a column that holds whole numbers only.

    >>> _decimal(5.0), _decimal(2.25)
    ('5.0', '2.25')
    """
    text = seconds_text(value)
    return text if {".", "e"} & set(text) else f"{text}.0"


def _tabbed(*fields: str) -> str:
    # These formats have no quotes: a tab or a line end inside a name would be a new field or line.
    return plain_text("\t".join(re.sub(r"[\t\r\n]", " ", field) for field in fields))


class _Finder:
    """Turns rows and scores into detections, recording after recording.

    Args:
        path: of the table, for errors.
        labels: of the bundle.
        selection: what a detection is.
        duration_s: length of a recording, if it can be told.
    """

    def __init__(
        self,
        path: Path,
        *,
        labels: Sequence[str],
        selection: Selection,
        duration_s: Callable[[str], float | None],
    ) -> None:
        self._path = path
        self._labels = labels
        self._columns = Columns(path, labels=labels, fixed=())
        self._selection = selection
        self._limits = selection.limits(labels)
        self._duration_s = duration_s
        self.begin()

    def begin(self) -> None:
        """Forget all recordings so far: a table begins."""
        self._number = 0
        self._current: str | None = None
        self._length_s: float | None = None
        self._before_s = 0.0
        self._last_end_s = 0.0

    def found(self, rows: Sequence[Row], scores: Scores) -> list[Detection]:
        """Return the detections in consecutive rows; see `Sink.write`."""
        flat = self._columns.flatten(rows, scores)
        bounds = [self._bounds_s(row) for row in rows]
        places = self._selection.places(flat, self._limits)
        found = []
        for i, k in zip(*(place.tolist() for place in places), strict=True):
            self._number += 1
            start_s, end_s, before_s = bounds[i]
            found.append(
                Detection(
                    self._number, rows[i].path, start_s, end_s, before_s, self._labels[k], float(flat[i, k])
                )
            )
        return found

    def _bounds_s(self, row: Row) -> tuple[float, float, float]:
        if row.start_s is None or row.end_s is None:
            raise JobError(f"{self._path}: {row.path} has no times; expected windows of audio.")
        if row.path != self._current:
            # Where nobody can tell how long a recording is, it is taken to end with its last window.
            self._before_s += self._last_end_s if self._length_s is None else self._length_s
            self._current = row.path
            self._length_s = self._duration_s(row.path)
            self._last_end_s = 0.0
        self._last_end_s = max(self._last_end_s, row.end_s)
        end_s = row.end_s if self._length_s is None else min(row.end_s, self._length_s)
        return row.start_s, max(row.start_s, end_s), self._before_s


def _checked_labels(
    path: Path,
    *,
    format: str,  # noqa: A002 - as in `sink_for`
    labels: Sequence[str] | None,
    kind: Kind,
) -> Sequence[str]:
    if labels is None:
        raise UsageError(
            f"{path}: format `{format}` got a bundle without labels; expected labels to name what was found. "
            "Give the bundle labels or use format `csv`."
        )
    if kind != "audio":
        raise UsageError(
            f"{path}: format `{format}` got inputs of kind `{kind}`; expected `audio`. Use format `csv`."
        )
    return labels


@final
class DetectionSink(FileSink):
    """One table of the detections in all recordings.

    Args:
        path: the table.
        format: its name, for errors.
        layout: of a line.
        labels: of the bundle.
        kind: must be `audio`.
        selection: what a detection is.
        recordings: what is known about them.
        drafts: where the table is until it is whole; None takes its own folder.

    Raises:
        UsageError: without labels, for inputs that are not audio, or for a threshold of no label.
    """

    def __init__(
        self,
        path: Path,
        *,
        format: str,  # noqa: A002 - as in `sink_for`
        layout: DetectionLayout,
        labels: Sequence[str] | None,
        kind: Kind,
        selection: Selection,
        recordings: Recordings,
        drafts: Path | None = None,
    ) -> None:
        labels = _checked_labels(path, format=format, labels=labels, kind=kind)
        super().__init__(path, labels=labels, fixed=(), drafts=drafts)
        self._layout = layout
        self._finder = _Finder(path, labels=labels, selection=selection, duration_s=recordings.duration_s)

    def open(self) -> None:
        """Make the temporary file with the header. Raises `JobError` where it cannot be made."""
        super().open()
        self._finder.begin()
        self._opened().write(self._layout.header.encode())

    def write(self, rows: Sequence[Row], scores: Scores) -> None:
        """Append a line per detection; `scores` has shape (n, c).

        Raises:
            JobError: when the scores do not fit the rows or labels, or cannot be written.
        """
        file = self._opened()
        lines = [self._layout.line(detection) + "\n" for detection in self._finder.found(rows, scores)]
        file.write("".join(lines).encode())

    def _finish(self, file: AtomicFile) -> None:
        """Nothing is missing."""


@final
class DetectionFolderSink(Sink):
    """A folder with a table per recording, `FOLDER/NAME.wav<suffix>`, in folders as the recordings are.

    A recording without detections has a table too: it was looked through.

    Args:
        path: the folder.
        suffix: of the tables.
        format: its name, for errors.
        layout: of a line.
        labels: of the bundle.
        kind: must be `audio`.
        selection: what a detection is.
        recordings: what is known about them.
        drafts: where the folder is until it is whole; None takes the one above `path`.

    Raises:
        UsageError: without labels, for inputs that are not audio, or for a threshold of no label.
    """

    def __init__(
        self,
        path: Path,
        *,
        suffix: str,
        format: str,  # noqa: A002 - as in `sink_for`
        layout: DetectionLayout,
        labels: Sequence[str] | None,
        kind: Kind,
        selection: Selection,
        recordings: Recordings,
        drafts: Path | None = None,
    ) -> None:
        labels = _checked_labels(path, format=format, labels=labels, kind=kind)
        self._path = path
        self._suffix = suffix
        self._layout = layout
        self._root = recordings.root
        self._drafts = drafts
        self._finder = _Finder(path, labels=labels, selection=selection, duration_s=recordings.duration_s)
        self._folder: AtomicFolder | None = None
        self._current: str | None = None
        self._stream: Any = None

    def open(self) -> None:
        """Make the folder.

        Raises:
            JobError: where it cannot be made.
            UsageError: where a folder is there that holds anything but such tables.
        """
        self._current = None
        self._folder = AtomicFolder(self._path, suffix=self._suffix, drafts=self._drafts)

    def write(self, rows: Sequence[Row], scores: Scores) -> None:
        """Append a line per detection to the table of each recording; `scores` has shape (n, c).

        Raises:
            JobError: when the scores do not fit the rows or labels, or cannot be written.
        """
        if self._folder is None:
            raise JobError(f"{self._path}: the tables are not open. Use the sink in a `with` block.")
        first = 0
        for last in range(1, len(rows) + 1):
            if last < len(rows) and rows[last].path == rows[first].path:
                continue
            self._write_one(self._folder, rows[first:last], scores[first:last])
            first = last

    def _write_one(self, folder: AtomicFolder, rows: Sequence[Row], scores: Scores) -> None:
        path = rows[0].path
        if path != self._current:
            self._end_table()
            self._finder.begin()
            below = Path(os.path.relpath(path, self._root))
            if ".." in below.parts:
                raise JobError(f"{self._path}: {path} is not below {self._root}, the folder of all inputs.")
            with folder.writing():
                target = folder.draft / below.with_name(f"{below.name}{self._suffix}")
                target.parent.mkdir(parents=True, exist_ok=True)
                self._stream = target.open("wb")
                self._stream.write(self._layout.header.encode())
            self._current = path
        lines = [self._layout.line(detection) + "\n" for detection in self._finder.found(rows, scores)]
        with folder.writing():
            self._stream.write("".join(lines).encode())

    def _end_table(self) -> None:
        if self._folder is not None and self._stream is not None:
            stream, self._stream = self._stream, None
            with self._folder.writing():
                stream.close()

    def close(self) -> None:
        """Put the folder in its place. Raises `JobError` where it cannot be written."""
        if self._folder is None:
            raise JobError(f"{self._path}: the tables are not open. Use the sink in a `with` block.")
        self._end_table()
        folder, self._folder = self._folder, None
        folder.commit()

    def discard(self) -> None:
        """Remove what was written; an old folder stays as it is."""
        if self._stream is not None:
            # Closing flushes, and what cannot be flushed is thrown away here anyway.
            with contextlib.suppress(OSError):
                self._stream.close()
            self._stream = None
        if self._folder is not None:
            self._folder.discard()
            self._folder = None
