"""Writers of prediction tables, each written whole or not at all: what all share, and tables of every score.

A sink is opened, written to by one thread, and closed; as a context manager it commits when the block
ends well and leaves an old file untouched when it does not. `alula.pipeline.formats.sink_for` makes one::

    with sink_for("scores.csv", format=None, labels=labels, kind="audio") as sink:
        sink.write(rows, scores)
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeAlias, final, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from alula.errors import (
    AlulaError,
    DataError,
    EngineUnavailableError,
    JobError,
    UsageError,
    closest,
    plain_text,
)
from alula.pipeline.atomic import AtomicFile, AtomicFolder, ListFile, writing

__all__ = [
    "Columns",
    "CsvSink",
    "ErrorReport",
    "FileSink",
    "Kind",
    "LineSink",
    "ParquetPartsSink",
    "ParquetSink",
    "Row",
    "Scores",
    "Sink",
    "csv_line",
    "fixed_columns",
    "seconds_text",
]

Scores: TypeAlias = npt.NDArray[Any]
Kind: TypeAlias = Literal["audio", "image", "array"]

# Floats that `_float_lines` rounds exactly: 10**22 is the largest power of ten that a double holds.
FAST_MIN, FAST_MAX = 1e-17, 1e6
POWERS_OF_TEN = 10.0 ** np.arange(23)
CSV_BLOCK_ROWS = 512
PARQUET_SUFFIX = ".parquet"
PARQUET_GROUP_VALUES = 2**22
PARQUET_GROUP_ROWS = 2**16
# 512 MiB of float32 before compression: what a reader of one part may have to hold.
PARQUET_PART_VALUES = 2**27


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

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the table, one sentence each; complete once it is closed."""
        return ()

    def open(self) -> None:
        """Make the temporary file, so that a place that cannot be written to is found before the work."""

    def expect(self, paths: Sequence[str]) -> None:
        """Check what can be checked before the work: the inputs whose rows may come.

        Raises:
            JobError: they cannot stand in one table.
        """
        return

    def write(self, rows: Sequence[Row], scores: Scores) -> None:
        """Append rows; `scores` has shape (n, c), or (n, ...) and is flattened per row.

        The rows of one input come one after the other, in one call or several.
        """

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


@final
class Columns:
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


def fixed_columns(kind: Kind) -> tuple[str, ...]:
    if kind not in get_args(Kind):
        raise UsageError(
            f"Kind of input got `{kind}`; expected one of {', '.join(get_args(Kind))}."
            f"{closest(kind, get_args(Kind))}"
        )
    return ("path", "start_s", "end_s") if kind == "audio" else ("path",)


def csv_line(fields: Sequence[str]) -> str:
    line = io.StringIO()
    # The writer quotes the characters of its own line end; readers take either of them for one.
    csv.writer(line, lineterminator="\r\n").writerow(fields)
    return plain_text(line.getvalue().removesuffix("\r\n"))


class FileSink(Sink):
    """What all tables in one file share: columns, and an `AtomicFile` that is there while the sink is open.

    Args:
        path: the table.
        labels: names of the score columns; None names them after their place.
        fixed: names of the columns before them.
        drafts: where the table is until it is whole; None takes its own folder.
    """

    def __init__(
        self,
        path: Path,
        *,
        labels: Sequence[str] | None,
        fixed: tuple[str, ...],
        drafts: Path | None = None,
    ) -> None:
        self._path = path
        self._drafts = drafts
        self._columns = Columns(path, labels=labels, fixed=fixed)
        self._file: AtomicFile | None = None

    def open(self) -> None:
        """Make the temporary file. Raises `JobError` where it cannot be made."""
        self._file = AtomicFile(self._path, drafts=self._drafts)

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


class LineSink(FileSink):
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
            file.write(csv_line([*self._columns.fixed, *self._score_names()]).encode() + b"\n")

    def _score_names(self) -> Sequence[str]:
        """Return the header of the scores."""
        return self._columns.names or ()


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


def seconds_text(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"


@final
class CsvSink(LineSink):
    """A CSV table: `path,start_s,end_s,<labels...>`, without the times for images and arrays.

    Args:
        path: the table.
        labels: names of the score columns; None names them after their place.
        kind: what the inputs are.
        drafts: where the table is until it is whole; None takes its own folder.

    Raises:
        UsageError: when two columns would have the same name.
    """

    def __init__(
        self, path: str | Path, *, labels: Sequence[str] | None, kind: Kind, drafts: Path | None = None
    ) -> None:
        super().__init__(Path(path), labels=labels, fixed=fixed_columns(kind), drafts=drafts)

    def write(self, rows: Sequence[Row], scores: Scores) -> None:
        """Append one line per row; `scores` has shape (n, c), or (n, ...) and is flattened per row.

        Raises:
            JobError: when the scores do not fit the rows or columns, or cannot be written.
        """
        flat = self._columns.flatten(rows, scores)
        paths = {path: csv_line([path]) for path in {row.path for row in rows}}
        if len(self._columns.fixed) == 1:
            prefixes = [paths[row.path] for row in rows]
        else:
            prefixes = [
                f"{paths[row.path]},{seconds_text(row.start_s)},{seconds_text(row.end_s)}" for row in rows
            ]
        self._append(prefixes, flat)


@final
class ParquetSink(FileSink):
    """A Parquet table with the columns of `CsvSink`; scores are float32, times float64.

    Rows are written in groups of bounded size, so memory does not grow with the table.

    Args:
        path: the table.
        labels: names of the score columns; None names them after their place.
        kind: what the inputs are.
        drafts: where the table is until it is whole; None takes its own folder.

    Raises:
        UsageError: when two columns would have the same name.
    """

    def __init__(
        self, path: str | Path, *, labels: Sequence[str] | None, kind: Kind, drafts: Path | None = None
    ) -> None:
        super().__init__(Path(path), labels=labels, fixed=fixed_columns(kind), drafts=drafts)
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
            fields += [(plain_text(name), pyarrow.float32()) for name in names]
            with writing(self._path):
                self._writer = parquet.ParquetWriter(file.stream, pyarrow.schema(fields))
        if not self._rows:
            return
        scores = np.concatenate(self._scores)
        columns: list[Any] = [pyarrow.array([plain_text(row.path) for row in self._rows], pyarrow.string())]
        if len(self._columns.fixed) > 1:
            columns.append(pyarrow.array([row.start_s for row in self._rows], pyarrow.float64()))
            columns.append(pyarrow.array([row.end_s for row in self._rows], pyarrow.float64()))
        columns += [pyarrow.array(column) for column in np.ascontiguousarray(scores.T)]
        table = pyarrow.Table.from_arrays(columns, schema=self._writer.schema)
        with writing(self._path):
            self._writer.write_table(table, row_group_size=group_rows)
        self._rows, self._scores = [], []


@final
class ParquetPartsSink(Sink):
    """A folder of Parquet files `part-00000.parquet`, ... of bounded size, with the columns of `ParquetSink`.

    Readers of Parquet take the folder for one table; the order of the names is that of the rows.

    Args:
        path: the folder.
        labels: names of the score columns; None names them after their place.
        kind: what the inputs are.
        drafts: where the folder is until it is whole; None takes the one above `path`.

    Raises:
        UsageError: when two columns would have the same name.
    """

    def __init__(
        self, path: str | Path, *, labels: Sequence[str] | None, kind: Kind, drafts: Path | None = None
    ) -> None:
        self._path = Path(path)
        self._labels = labels
        self._kind = kind
        self._drafts = drafts
        self._folder: AtomicFolder | None = None
        self._part: ParquetSink | None = None
        self._values = 0
        self._parts = 0
        Columns(self._path, labels=labels, fixed=fixed_columns(kind))

    def open(self) -> None:
        """Make the folder.

        Raises:
            EngineUnavailableError: when pyarrow is not installed.
            JobError: where the folder cannot be made.
            UsageError: where the folder is there and holds anything else.
        """
        _pyarrow()
        self._parts = 0
        self._folder = AtomicFolder(self._path, suffix=PARQUET_SUFFIX, drafts=self._drafts)
        self._begin_part(self._folder)

    def write(self, rows: Sequence[Row], scores: Scores) -> None:
        """Append one line per row; `scores` has shape (n, c), or (n, ...) and is flattened per row.

        Raises:
            JobError: when the scores do not fit the rows or columns, or cannot be written.
        """
        if self._folder is None or self._part is None:
            raise JobError(f"{self._path}: the table is not open. Use the sink in a `with` block.")
        if self._values and self._values + scores.size > PARQUET_PART_VALUES:
            self._part.close()
            self._begin_part(self._folder)
        self._part.write(rows, scores)
        self._values += scores.size

    def close(self) -> None:
        """Put the folder in its place. Raises `JobError` where it cannot be written."""
        if self._folder is None or self._part is None:
            raise JobError(f"{self._path}: the table is not open. Use the sink in a `with` block.")
        self._part.close()
        folder, self._folder, self._part = self._folder, None, None
        folder.commit()

    def discard(self) -> None:
        """Remove what was written; an old folder stays as it is."""
        if self._part is not None:
            self._part.discard()
            self._part = None
        if self._folder is not None:
            self._folder.discard()
            self._folder = None

    def _begin_part(self, folder: AtomicFolder) -> None:
        path = folder.draft / f"part-{self._parts:05d}{PARQUET_SUFFIX}"
        self._part = ParquetSink(path, labels=self._labels, kind=self._kind)
        self._part.open()
        self._parts += 1
        self._values = 0


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise EngineUnavailableError("pyarrow", install="pip install 'alula[parquet]'") from error
    return pyarrow, parquet


@final
class ErrorReport:
    """`errors.csv`: one line `path,error` per input that failed.

    Without errors no file is made, and that of an earlier run is removed. What is there and no such report
    is neither replaced nor removed. Not thread-safe.

    Args:
        path: the report.
        drafts: where it is until it is whole; None takes its own folder.
    """

    def __init__(self, path: str | Path, *, drafts: Path | None = None) -> None:
        self.path = Path(path)
        self._list = ListFile(self.path, b"path,error\n", holds="inputs that fail", drafts=drafts)

    @property
    def count(self) -> int:
        """Inputs that failed so far."""
        return self._list.lines

    def open(self) -> None:
        """Look at what is in the place of the report.

        Raises:
            UsageError: it is anything but the report of an earlier run.
            JobError: it cannot be read.
        """
        self._list.check()

    def add(self, path: str, error: AlulaError) -> None:
        """Append a line.

        Raises:
            JobError: when it cannot be written.
        """
        reason = error.reason if isinstance(error, DataError) and error.path == path else str(error)
        self._list.add(csv_line([path, " ".join(reason.split())]))

    def close(self) -> None:
        """Put the report in its place, or remove an old one when nothing failed.

        Raises:
            JobError: when it cannot be written.
            UsageError: when something else was put there since.
        """
        if self.count:
            self._list.commit()
        else:
            self._list.forget()

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
            self._list.discard()
