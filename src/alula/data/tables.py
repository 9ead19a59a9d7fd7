"""Tables with a row for each window or file: scores as `alula predict` writes them, or the truth of rows."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from alula.errors import DataError, EngineUnavailableError

__all__ = ["RowKey", "ScoreTable", "places_of", "read_scores"]

FloatArray: TypeAlias = npt.NDArray[np.float64]

_IDENTITY = ("path", "row_id", "start_s", "end_s")
# Rows whose cells are held as text at once.
_BLOCK_ROWS = 512
# Times that differ by less are one: tables hold ten digits of sums of binary fractions.
_TIME_DIGITS = 3


class RowKey(NamedTuple):
    """What a row is about.

    Attributes:
        path: the file, as it is written in the table; of a `row_id` the part before the last underscore.
        start_s: where the stretch begins, in seconds; None for whole files and in tables with a `row_id`.
        end_s: where it ends; None for whole files.
    """

    path: str
    start_s: float | None = None
    end_s: float | None = None

    def rounded(self) -> RowKey:
        """Return the key with times in whole milliseconds, however they were summed.

        >>> RowKey("a.ogg", 0.1 + 0.2, 0.6).rounded()
        RowKey(path='a.ogg', start_s=0.3, end_s=0.6)
        """
        start_s = None if self.start_s is None else round(self.start_s, _TIME_DIGITS)
        end_s = None if self.end_s is None else round(self.end_s, _TIME_DIGITS)
        return RowKey(self.path, start_s, end_s)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreTable:
    """A table of numbers per row and class.

    Attributes:
        source: the file.
        keys: what each row is about, length n.
        classes: names of the columns of numbers.
        values: float64, shape (n, c), without NaN.
        texts: columns of text that were asked for and are there, each of length n.
    """

    source: Path
    keys: tuple[RowKey, ...]
    classes: tuple[str, ...]
    values: FloatArray
    texts: dict[str, tuple[str, ...]]


def read_scores(
    path: str | Path, *, texts: Collection[str] = (), told_apart_by: str | None = None
) -> ScoreTable:
    """Return a table of numbers: CSV, or Parquet where the suffix is `.parquet` or `.pq`.

    Rows are told by the columns `path` and, for recordings, `start_s` and `end_s`; or by `row_id`, a file
    stem, an underscore and the end in seconds. Every other column is a class, apart from those of text.

    Args:
        path: the table.
        texts: names of columns that hold text where they are there.
        told_apart_by: one more of these; rows that differ in it may otherwise be about the same.

    Raises:
        DataError: it cannot be read, has no rows, no column that tells them, two rows alike, or a cell that
            is no number; says where.
        EngineUnavailableError: it is Parquet and pyarrow is not installed.
    """
    path = Path(path)
    texts = {*texts, *([] if told_apart_by is None else [told_apart_by])}
    read = _read_parquet if path.suffix.lower() in (".parquet", ".pq") else _read_csv
    header, columns, values = read(path, {*_IDENTITY, *texts})
    identity = "path" if "path" in header else "row_id"
    if not len(values):
        raise DataError(path, "It has no rows. Expected one for each window or file.")
    keys = tuple(_keys(path, identity, columns))
    apart = columns.get(told_apart_by or "", ("",) * len(keys))
    seen: set[tuple[RowKey, str]] = set()
    for key, other in zip(keys, apart, strict=True):
        rounded = (key.rounded(), other)
        if rounded in seen:
            raise DataError(path, f"Two rows are about {_words(key)}. Expected each once.")
        seen.add(rounded)
    return ScoreTable(
        source=path,
        keys=keys,
        classes=tuple(name for name in header if name not in {*_IDENTITY, *texts}),
        values=values,
        texts={name: columns[name] for name in texts if name in columns},
    )


def places_of(
    wanted: Sequence[RowKey], found: Sequence[RowKey], *, source: str | Path, reference: str | Path
) -> npt.NDArray[np.intp]:
    """Return where each of the wanted rows is among those found, shape (n,).

    Paths are compared as they are written; where not all fit, by the stem of the file and the end of the row,
    which also fits a `row_id` to a path.

    Args:
        wanted: rows that must be there.
        found: rows that are; there may be others.
        source: of those found, for messages.
        reference: of those wanted.

    Raises:
        DataError: a row is missing, or the stems of several files are alike where they are needed.

    >>> row_id, path = RowKey("a_b", None, 5.0), RowKey("x/a_b.ogg", 0.0, 5.0)
    >>> places_of([row_id], [path], source="scores.csv", reference="truth.csv").tolist()
    [0]
    """
    exact = {key.rounded(): place for place, key in enumerate(found)}
    places = [exact.get(key.rounded()) for key in wanted]
    if None in places:
        short: dict[RowKey, int] = {}
        for place, key in enumerate(found):
            if short.setdefault(_short_key(key), place) != place:
                short[_short_key(key)] = -1
        places = [short.get(_short_key(key)) for key in wanted]
        doubtful = next((key for key, place in zip(wanted, places, strict=True) if place == -1), None)
        if doubtful is not None:
            raise DataError(
                source, f"Several of its rows could be {_words(doubtful)}. Write paths as {reference} does."
            )
    missing = [key for key, place in zip(wanted, places, strict=True) if place is None]
    if missing:
        raise DataError(
            source,
            f"It has no row for {_words(missing[0])}"
            + (f" and {len(missing) - 1} others" if len(missing) > 1 else "")
            + f" of the {len(wanted)} of {reference}. Expected the same rows in both.",
        )
    return np.array(places, np.intp)


def _read_csv(path: Path, texts: Collection[str]) -> tuple[list[str], dict[str, tuple[str, ...]], FloatArray]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header)
            kept = {name: header.index(name) for name in header if name in texts}
            others = [place for place, name in enumerate(header) if name not in texts]
            columns: dict[str, list[str]] = {name: [] for name in kept}
            blocks = []
            for rows in _blocks(path, reader, len(header)):
                for name, place in kept.items():
                    columns[name].extend(row[place] for row in rows)
                blocks.append(_numbers(path, [[row[place] for place in others] for row in rows]))
    except OSError as error:
        raise DataError(path, f"The table cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(path, f"The table is not UTF-8 text: {error.reason}. Save it as UTF-8.") from error
    except csv.Error as error:
        raise DataError(path, f"A line is not CSV: {error}.") from error
    values = np.concatenate(blocks) if blocks else np.empty((0, len(others)))
    return header, {name: tuple(column) for name, column in columns.items()}, values


def _blocks(path: Path, reader: Iterator[list[str]], width: int) -> Iterator[list[list[str]]]:
    rows = (row for row in reader if any(cell.strip() for cell in row))
    while block := list(itertools.islice(rows, _BLOCK_ROWS)):
        wrong = next((row for row in block if len(row) != width), None)
        if wrong is not None:
            raise DataError(
                path, f"The row of `{wrong[0]}` has {len(wrong)} cells for {width} columns. Quote commas."
            )
        yield block


def _read_parquet(
    path: Path, texts: Collection[str]
) -> tuple[list[str], dict[str, tuple[str, ...]], FloatArray]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise EngineUnavailableError("pyarrow", install="pip install 'alula[parquet]'") from error
    try:
        # By the file: of a name alone pyarrow makes a data set, which would read a folder as well.
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(path, f"The table is not a whole Parquet file: {error}.") from error
    header = list(table.schema.names)
    _check_header(path, header)
    columns = {
        name: tuple("" if value is None else str(value) for value in table[name].to_pylist())
        for name in header
        if name in texts
    }
    others = [name for name in header if name not in texts]
    arrays = []
    for name in others:
        try:
            arrays.append(np.asarray(table[name].to_numpy(), np.float64))
        except (TypeError, ValueError) as error:
            raise DataError(path, f"The column `{name}` holds no numbers. Leave it out.") from error
    values = np.stack(arrays, axis=1) if arrays else np.empty((table.num_rows, 0))
    return header, columns, _finite(path, values)


def _check_header(path: Path, header: Sequence[str]) -> None:
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(path, f"The column `{twice}` is there more than once.")
    if "path" not in header and "row_id" not in header:
        raise DataError(
            path,
            f"It has no column `path` or `row_id`; its columns are {_short(header)}. Expected a table as "
            "`alula predict` writes it.",
        )


def _numbers(path: Path, cells: list[list[str]]) -> FloatArray:
    try:
        return _finite(path, np.array(cells).astype(np.float64))
    except ValueError as error:
        wrong = next(cell for row in cells for cell in row if not _is_number(cell))
        raise DataError(path, f"A cell holds `{wrong}`; expected a number for each class.") from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _finite(path: Path, values: FloatArray) -> FloatArray:
    if np.isnan(values).any():
        raise DataError(path, f"{int(np.isnan(values).sum())} cells hold NaN; expected a number in each.")
    return values


def _keys(path: Path, identity: str, columns: dict[str, tuple[str, ...]]) -> Iterator[RowKey]:
    names = columns[identity]
    if identity == "row_id":
        for name in names:
            stem, _, end = name.rpartition("_")
            if not stem or not _is_number(end):
                raise DataError(path, f"The row id `{name}` is no file stem, underscore and seconds.")
            yield RowKey(stem, None, float(end))
        return
    nothing = ("",) * len(names)
    starts, ends = columns.get("start_s", nothing), columns.get("end_s", nothing)
    for name, start, end in zip(names, starts, ends, strict=True):
        yield RowKey(name, _seconds(path, start), _seconds(path, end))


def _seconds(path: Path, text: str) -> float | None:
    if not text.strip():
        return None
    value = float(text) if _is_number(text) else math.nan
    if not math.isfinite(value):
        raise DataError(path, f"A time is `{text}`; expected seconds.")
    return value


def _short_key(key: RowKey) -> RowKey:
    # A row id has no suffix to take off, and its stem may hold dots.
    stem = key.path if key.start_s is None and key.end_s is not None else PurePath(key.path).stem
    return RowKey(stem, None, key.end_s).rounded()


def _words(key: RowKey) -> str:
    if key.end_s is None:
        return f"`{key.path}`"
    start = "" if key.start_s is None else f"from {key.start_s:g} "
    return f"`{key.path}` {start}to {key.end_s:g} s"


def _short(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:5])
    return f"{shown}{', …' if len(names) > 5 else ''}" or "none"
