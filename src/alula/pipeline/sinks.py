"""Writers of prediction tables: CSV, Parquet and BirdCLEF submissions, each written whole or not at all.

A sink is opened, written to by one thread, and closed; as a context manager it commits when the block
ends well and leaves an old file untouched when it does not::

    with sink_for("scores.csv", format=None, labels=labels, kind="audio") as sink:
        sink.write(rows, scores)
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import math
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeAlias, final, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from alula.errors import AlulaError, DataError, EngineUnavailableError, JobError, UsageError, closest
from alula.pipeline.atomic import AtomicFile, writing

__all__ = ["BirdclefSink", "CsvSink", "ErrorReport", "Kind", "ParquetSink", "Row", "Sink", "sink_for"]

Scores: TypeAlias = npt.NDArray[Any]
Kind: TypeAlias = Literal["audio", "image", "array"]

# Floats that `_float_lines` rounds exactly: 10**22 is the largest power of ten that a double holds.
FAST_MIN, FAST_MAX = 1e-17, 1e6
POWERS_OF_TEN = 10.0 ** np.arange(23)
CSV_BLOCK_ROWS = 512
PARQUET_GROUP_VALUES = 2**22
PARQUET_GROUP_ROWS = 2**16
# Sigmoids in reduced precision overshoot by rounding.
SCORE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Row:
    """What a line of the table is about.

    Attributes:
        path: the input file.
        start_s: where its window starts, in seconds; None for images and arrays.
        end_s: where its window ends.
    """

    path: str
    start_s: float | None = None
    end_s: float | None = None


class Sink(Protocol):
    """Where predictions go. Not thread-safe: one thread writes.

    A protocol, so that other tables can be written without touching this module. A class derived from it has
    the `with` block that closes the table at a good end and discards it at a bad one.
    """

    def open(self) -> None:
        """Make the temporary file, so that a place that cannot be written to is found before the work."""

    def write(self, rows: Sequence[Row], scores: Scores) -> None:
        """Append one line per row; `scores` has shape (n, c), or (n, ...) and is flattened per row."""

    def close(self) -> None:
        """Put the table in its place, whole and on disk."""

    def discard(self) -> None:
        """Remove what was written; an old table stays as it is."""

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
        finally:
            self.discard()


def sink_for(
    path: str | Path,
    *,
    format: str | None,  # noqa: A002 - the name of the option
    labels: Sequence[str] | None,
    kind: Kind,
) -> CsvSink | ParquetSink | BirdclefSink:
    """Return the sink that writes `path`, not yet opened.

    Args:
        path: the table; `.csv` or `.parquet` says the format where `format` is None.
        format: `csv`, `parquet` or `birdclef`.
        labels: column names of the scores; None gives `output_0`, `output_1`, ... (`output_i_j` for
            outputs of more axes).
        kind: what the inputs are; windows of audio get the columns `start_s` and `end_s`.

    Raises:
        UsageError: for an unknown format or suffix, labels that clash, or `birdclef` without windows
            or labels.

    >>> type(sink_for("scores.csv", format=None, labels=["robin"], kind="audio")).__name__
    'CsvSink'
    """
    path = Path(path)
    formats: dict[str, Callable[[], CsvSink | ParquetSink | BirdclefSink]] = {
        "csv": lambda: CsvSink(path, labels=labels, kind=kind),
        "parquet": lambda: ParquetSink(path, labels=labels, kind=kind),
        "birdclef": lambda: BirdclefSink(path, labels=labels, kind=kind),
    }
    if format is not None and format not in formats:
        raise UsageError(
            f"Output format got `{format}`; expected one of {', '.join(f'`{f}`' for f in formats)}."
            f"{closest(format, formats)}"
        )
    suffix = path.suffix.lower()
    if format is None and suffix not in (".csv", ".parquet"):
        raise UsageError(
            f"The format of `{path}` cannot be told from its suffix; expected `.csv` or `.parquet`, or a "
            f"format by name: {', '.join(f'`{f}`' for f in formats)}.{closest(suffix, ['.csv', '.parquet'])}"
        )
    return formats[format or suffix[1:]]()


class _Columns:
    """The columns of a table: known from the labels, or from the first scores."""

    def __init__(self, path: Path, *, labels: Sequence[str] | None, fixed: tuple[str, ...]) -> None:
        self.fixed = fixed
        self.names = None if labels is None else tuple(labels)
        self._path = path
        if self.names is not None:
            seen = set(fixed)
            for name in self.names:
                if name in seen:
                    raise UsageError(
                        f"{path}: two columns would be named `{name}`. Give each label a name of its own."
                    )
                seen.add(name)

    def flatten(self, rows: Sequence[Row], scores: Scores) -> Scores:
        """Return the scores as (n, c), checked against the rows and the columns."""
        if scores.ndim == 0 or len(scores) != len(rows):
            raise JobError(
                f"{self._path}: scores got shape {scores.shape}; expected {len(rows)} lines, one per row."
            )
        sizes = scores.shape[1:]
        if self.names is None:
            places = itertools.product(*map(range, sizes or (1,)))
            self.names = tuple("_".join(["output", *map(str, place)]) for place in places)
        flat = scores.reshape(len(scores), math.prod(sizes))
        if flat.shape[1] != len(self.names):
            raise JobError(
                f"{self._path}: each row got {flat.shape[1]} scores; expected {len(self.names)}, one per "
                "column. Give the bundle as many labels as its model has outputs."
            )
        return flat


def _fixed_columns(kind: Kind) -> tuple[str, ...]:
    if kind not in get_args(Kind):
        raise UsageError(
            f"Kind of input got `{kind}`; expected one of {', '.join(get_args(Kind))}."
            f"{closest(kind, get_args(Kind))}"
        )
    return ("path", "start_s", "end_s") if kind == "audio" else ("path",)


def _text(name: str) -> str:
    # File names need not be UTF-8; tables must be.
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _csv_line(fields: Sequence[str]) -> str:
    line = io.StringIO()
    # The writer quotes the characters of its own line end; readers take either of them for one.
    csv.writer(line, lineterminator="\r\n").writerow(fields)
    return _text(line.getvalue().removesuffix("\r\n"))


class _FileSink(Sink):
    """What all tables here share: columns, and an `AtomicFile` that is there while the sink is open.

    Args:
        path: the table.
        labels: names of the score columns; None names them after their place.
        fixed: names of the columns before them.
    """

    def __init__(self, path: Path, *, labels: Sequence[str] | None, fixed: tuple[str, ...]) -> None:
        self._path = path
        self._columns = _Columns(path, labels=labels, fixed=fixed)
        self._file: AtomicFile | None = None

    def open(self) -> None:
        """Make the temporary file. Raises `JobError` where it cannot be made."""
        self._file = AtomicFile(self._path)

    def close(self) -> None:
        """Put the table in its place. Raises `JobError` where it cannot be written."""
        file = self._opened()
        self._finish(file)
        self._file = None
        file.commit()

    def discard(self) -> None:
        """Remove what was written; an old table stays as it is."""
        if self._file is not None:
            self._file.discard()
            self._file = None

    def _opened(self) -> AtomicFile:
        if self._file is None:
            raise JobError(f"{self._path}: the table is not open. Use the sink in a `with` block.")
        return self._file

    @abstractmethod
    def _finish(self, file: AtomicFile) -> None:
        """Write what is still missing when the last row was given."""


class _LineSink(_FileSink):
    """Lines of text fields and scores; the header is written with the first of them."""

    _has_header = False

    def open(self) -> None:
        """Make the temporary file. Raises `JobError` where it cannot be made."""
        super().open()
        self._has_header = False

    def _append(self, prefixes: Sequence[str], scores: Scores) -> None:
        """Write one line per prefix, the fields before the scores; `scores` has shape (n, c)."""
        file = self._opened()
        self._write_header(file)
        for start in range(0, len(prefixes), CSV_BLOCK_ROWS):
            block = scores[start : start + CSV_BLOCK_ROWS]
            lines = _float_lines(block) if block.dtype.kind == "f" else _int_lines(block)
            comma = b"," if block.shape[1] else b""
            part = prefixes[start : start + CSV_BLOCK_ROWS]
            file.write(
                b"".join(
                    prefix.encode() + comma + line + b"\n" for prefix, line in zip(part, lines, strict=True)
                )
            )

    def _finish(self, file: AtomicFile) -> None:
        self._write_header(file)

    def _write_header(self, file: AtomicFile) -> None:
        if not self._has_header:
            self._has_header = True
            file.write(_csv_line([*self._columns.fixed, *(self._columns.names or ())]).encode() + b"\n")


def _float_lines(scores: Scores) -> list[bytes]:
    """Return one line of comma-separated values per row, with six significant digits.

    Rounded by NumPy and written by msgspec, which is five times as fast as the `%` operator; rows with
    values outside [1e-17, 1e6), infinite ones or NaN go through `%`.
    """
    values = scores.astype(np.float64)
    size = np.abs(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.floor(np.log10(size))
        decimals = np.nan_to_num(5 - exponent, nan=0.0, posinf=0.0, neginf=0.0)
        scale = POWERS_OF_TEN[np.clip(decimals, 0, 22).astype(np.intp)]
        rounded = np.rint(values * scale) / scale
    simple = ((size == 0) | ((size >= FAST_MIN) & (size < FAST_MAX))).all(axis=1)
    encode = msgspec.json.encode
    slow = ",".join(["%.6g"] * scores.shape[1])
    return [
        encode(row)[1:-1] if fast else (slow % tuple(raw.tolist())).encode()
        for row, raw, fast in zip(rounded.tolist(), values, simple.tolist(), strict=True)
    ]


def _int_lines(scores: Scores) -> list[bytes]:
    values = scores.astype(np.int64) if scores.dtype.kind == "b" else scores
    return [msgspec.json.encode(row)[1:-1] for row in values.tolist()]


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"


@final
class CsvSink(_LineSink):
    """A CSV table: `path,start_s,end_s,<labels...>`, without the times for images and arrays.

    Args:
        path: the table.
        labels: names of the score columns; None names them after their place.
        kind: what the inputs are.

    Raises:
        UsageError: when two columns would have the same name.
    """

    def __init__(self, path: str | Path, *, labels: Sequence[str] | None, kind: Kind) -> None:
        super().__init__(Path(path), labels=labels, fixed=_fixed_columns(kind))

    def write(self, rows: Sequence[Row], scores: Scores) -> None:
        """Append one line per row; `scores` has shape (n, c), or (n, ...) and is flattened per row.

        Raises:
            JobError: when the scores do not fit the rows or columns, or cannot be written.
        """
        flat = self._columns.flatten(rows, scores)
        paths = {path: _csv_line([path]) for path in {row.path for row in rows}}
        if len(self._columns.fixed) == 1:
            prefixes = [paths[row.path] for row in rows]
        else:
            prefixes = [f"{paths[row.path]},{_seconds(row.start_s)},{_seconds(row.end_s)}" for row in rows]
        self._append(prefixes, flat)


@final
class BirdclefSink(_LineSink):
    """A BirdCLEF submission: `row_id,<labels...>` with `row_id = {stem}_{end in whole seconds}`.

    Args:
        path: the table, often `submission.csv`.
        labels: the bundle's labels, in their order.
        kind: must be `audio`.

    Raises:
        UsageError: without labels or for inputs that are not audio.
    """

    def __init__(self, path: str | Path, *, labels: Sequence[str] | None, kind: Kind) -> None:
        if labels is None:
            raise UsageError(
                f"{path}: format `birdclef` got a bundle without labels; expected labels for its columns. "
                "Give the bundle labels or use format `csv`."
            )
        if kind != "audio":
            raise UsageError(
                f"{path}: format `birdclef` got inputs of kind `{kind}`; expected `audio`. Use format `csv`."
            )
        super().__init__(Path(path), labels=labels, fixed=("row_id",))
        self._paths: dict[str, str] = {}
        self._ends_s: dict[str, int] = {}

    def open(self) -> None:
        """Make the temporary file. Raises `JobError` where it cannot be made."""
        self._paths.clear()
        self._ends_s.clear()
        super().open()

    def write(self, rows: Sequence[Row], scores: Scores) -> None:
        """Append one line per row; `scores` has shape (n, c), values in [0, 1].

        Raises:
            JobError: when a score is NaN or out of range, two rows would have the same `row_id`, the
                scores do not fit the rows or columns, or the table cannot be written.
        """
        flat = self._columns.flatten(rows, scores)
        row_ids = [self._row_id(row) for row in rows]
        within = (flat >= -SCORE_TOLERANCE) & (flat <= 1 + SCORE_TOLERANCE)
        if not within.all():
            i, k = (int(place[0]) for place in np.nonzero(~within))
            names = self._columns.names or ()
            raise JobError(
                f"{self._path}: `{row_ids[i]}` got {flat[i, k]} for `{names[k]}`; expected a score from 0 "
                "to 1. End the model with a sigmoid, or use format `csv`."
            )
        self._append([_csv_line([row_id]) for row_id in row_ids], np.clip(flat, 0, 1))

    def _row_id(self, row: Row) -> str:
        stem = Path(row.path).stem
        if row.end_s is None:
            raise JobError(f"{self._path}: {row.path} has no times; expected windows of audio.")
        end_s = round(row.end_s)
        other = self._paths.setdefault(stem, row.path)
        if other != row.path:
            raise JobError(
                f"{self._path}: {other} and {row.path} would have the same row ids. Rename one of them or "
                "run them apart."
            )
        if end_s <= self._ends_s.get(stem, -1):
            raise JobError(
                f"{self._path}: two windows of {row.path} would have the row id `{stem}_{end_s}`. "
                "Use windows that start at least one second apart."
            )
        self._ends_s[stem] = end_s
        return f"{stem}_{end_s}"


@final
class ParquetSink(_FileSink):
    """A Parquet table with the columns of `CsvSink`; scores are float32, times float64.

    Rows are written in groups of bounded size, so memory does not grow with the table.

    Args:
        path: the table.
        labels: names of the score columns; None names them after their place.
        kind: what the inputs are.

    Raises:
        UsageError: when two columns would have the same name.
    """

    def __init__(self, path: str | Path, *, labels: Sequence[str] | None, kind: Kind) -> None:
        super().__init__(Path(path), labels=labels, fixed=_fixed_columns(kind))
        self._writer: Any = None
        self._rows: list[Row] = []
        self._scores: list[Scores] = []

    def open(self) -> None:
        """Make the temporary file.

        Raises:
            EngineUnavailableError: when pyarrow is not installed.
            JobError: where the file cannot be made.
        """
        _pyarrow()
        self._rows, self._scores, self._writer = [], [], None
        super().open()

    def write(self, rows: Sequence[Row], scores: Scores) -> None:
        """Append one line per row; `scores` has shape (n, c), or (n, ...) and is flattened per row.

        Raises:
            JobError: when the scores do not fit the rows or columns, or cannot be written.
        """
        file = self._opened()
        flat = self._columns.flatten(rows, scores)
        self._rows.extend(rows)
        # A copy, because a view would keep the whole batch, and the caller may use its array again.
        self._scores.append(flat.astype(np.float32))
        group_rows = max(1, min(PARQUET_GROUP_ROWS, PARQUET_GROUP_VALUES // max(1, flat.shape[1])))
        if len(self._rows) >= group_rows:
            self._write_group(file, group_rows)

    def discard(self) -> None:
        """Remove what was written; an old table stays as it is."""
        if self._file is not None and self._writer is not None:
            # Or it would try to end its file when it is collected, long after that is closed.
            with contextlib.suppress(OSError):
                self._writer.close()
        super().discard()

    def _finish(self, file: AtomicFile) -> None:
        self._write_group(file, max(1, len(self._rows)))
        with writing(self._path):
            self._writer.close()

    def _write_group(self, file: AtomicFile, group_rows: int) -> None:
        pyarrow, parquet = _pyarrow()
        names = self._columns.names or ()
        if self._writer is None:
            fields = [("path", pyarrow.string())]
            fields += [(name, pyarrow.float64()) for name in self._columns.fixed[1:]]
            fields += [(_text(name), pyarrow.float32()) for name in names]
            with writing(self._path):
                self._writer = parquet.ParquetWriter(file.stream, pyarrow.schema(fields))
        if not self._rows:
            return
        scores = np.concatenate(self._scores)
        columns: list[Any] = [pyarrow.array([_text(row.path) for row in self._rows], pyarrow.string())]
        if len(self._columns.fixed) > 1:
            columns.append(pyarrow.array([row.start_s for row in self._rows], pyarrow.float64()))
            columns.append(pyarrow.array([row.end_s for row in self._rows], pyarrow.float64()))
        columns += [pyarrow.array(column) for column in np.ascontiguousarray(scores.T)]
        table = pyarrow.Table.from_arrays(columns, schema=self._writer.schema)
        with writing(self._path):
            self._writer.write_table(table, row_group_size=group_rows)
        self._rows, self._scores = [], []


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise EngineUnavailableError("pyarrow", install="pip install 'alula[parquet]'") from error
    return pyarrow, parquet


class ErrorReport:
    """`errors.csv`: one line `path,error` per input that failed.

    Each line goes at once to `PATH.partial`, so that a killed run loses none; `close` puts it in place.
    Without errors no file is made, and that of an earlier run is removed. After an exception the lines
    stay in `PATH.partial`. Not thread-safe.

    Args:
        path: the report.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self.count = 0
        self._stream: io.TextIOWrapper | None = None

    def open(self) -> None:
        """Remove what a killed run has left. Raises `JobError` where that cannot be done."""
        self.count = 0
        with writing(self.path):
            if self.path.exists() and not self.path.is_file():
                raise UsageError(f"{self.path}: is not a regular file. Name a file to write.")
            self.partial.unlink(missing_ok=True)

    def add(self, path: str, error: AlulaError) -> None:
        """Write one line, and see it on its way to the disk.

        Raises:
            JobError: when it cannot be written.
        """
        reason = error.reason if isinstance(error, DataError) and error.path == path else str(error)
        with writing(self.path):
            if self._stream is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self.partial.open("w", encoding="utf-8", newline="")
                self._stream.write("path,error\n")
            self._stream.write(_csv_line([path, " ".join(reason.split())]) + "\n")
            self._stream.flush()
        self.count += 1

    def close(self) -> None:
        """Put the report in its place, or remove an old one when nothing failed.

        Raises:
            JobError: when it cannot be written.
        """
        with writing(self.path):
            if self._stream is None:
                self.path.unlink(missing_ok=True)
                return
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._stream = None
            self.partial.replace(self.path)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._stream is not None:
            self._stream.close()
            self._stream = None
