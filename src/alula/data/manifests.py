"""Manifests: a CSV or Parquet table with the columns `path,label[,start_s,end_s]`."""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from alula.data.folders import array_reader, file_group
from alula.data.formats import Kind, detect_kind, expected_suffixes, kind_of
from alula.data.samples import Item, Samples
from alula.data.targets import Targets, checked_labels, named_targets, sorted_names
from alula.errors import DataError, EngineUnavailableError

__all__ = ["MANIFEST_SUFFIXES", "open_manifest"]

MANIFEST_SUFFIXES = frozenset({".csv", ".parquet", ".pq"})

_COLUMNS = ("path", "label", "start_s", "end_s")


@final
@dataclass(frozen=True, slots=True)
class _Row:
    where: str  # "line 3" or "row 2"
    path: Path
    names: tuple[str, ...]
    several: bool  # whether the label is written as a list
    start_s: float
    end_s: float | None


def open_manifest(manifest: Path, *, labels: Sequence[str] | None = None) -> Samples:
    """Return the samples that a table names.

    Paths are relative to the manifest. `label` may be left out (no labels); several labels of one
    sample are joined by `;`, and one such cell makes the whole table multi-label: a lone `;` then
    stands for none of the classes. `start_s` and `end_s` cut a stretch out of a recording; an empty
    cell means the beginning or the end of the file. Other columns are ignored. Without `labels` the
    classes are sorted: by number if all are whole numbers, else by code point.

    Raises:
        DataError: names the file and the line: a column is missing, a value is wrong, files do not
            exist, kinds are mixed, or a label is not among `labels`.
        EngineUnavailableError: the table is Parquet and pyarrow is not installed.
    """
    read = _csv_records if manifest.suffix.lower() == ".csv" else _parquet_records
    given = checked_labels(labels)
    rows = [_row(manifest, where, record) for where, record in read(manifest)]
    if not rows:
        raise DataError(manifest, "The manifest has no rows. Expected one row per sample.")
    unknown = next((row for row in rows if kind_of(row.path) is None), None)
    if unknown is not None:
        raise DataError(
            f"{manifest}, {unknown.where}",
            f"Got `{unknown.path.name}`, a file of unknown kind. Expected one of {expected_suffixes()}.",
        )
    kind = detect_kind([row.path for row in rows], source=manifest)
    _check_files(manifest, rows, kind)
    targets = _targets(manifest, rows, given)
    # One look at the disk per file, not per row.
    groups = {path: file_group(path) for path in dict.fromkeys(row.path for row in rows)}
    return Samples(
        kind=kind,
        source=f"{manifest}: {len(rows)} samples from {len(groups)} {kind} files",
        items=tuple(
            Item(path=row.path, start_s=row.start_s, end_s=row.end_s, group=groups[row.path]) for row in rows
        ),
        task=targets.task,
        targets=targets.values,
        labels=targets.labels,
        load=array_reader(kind, [row.path for row in rows]),
    )


def _csv_records(manifest: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
                raise DataError(manifest, f"The header is `{header[0]}`. Expected commas between columns.")
            _check_columns(manifest, header)
            before = reader.line_num
            for cells in reader:
                where = f"line {before + 1}"
                before = reader.line_num
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise DataError(
                        f"{manifest}, {where}",
                        f"Got {len(cells)} cells for {len(header)} columns. Quote cells that hold commas.",
                    )
                yield where, dict(zip(header, cells, strict=True))
    except OSError as error:
        raise DataError(manifest, f"The manifest cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            manifest, f"The manifest is not UTF-8 text: {error.reason}. Save it as UTF-8."
        ) from error
    except csv.Error as error:
        raise DataError(f"{manifest}, line {reader.line_num}", f"The line is not CSV: {error}.") from error


def _parquet_records(manifest: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise EngineUnavailableError("pyarrow", install="pip install 'alula[parquet]'") from error
    try:
        with pyarrow.parquet.ParquetFile(manifest) as file:
            names = file.schema_arrow.names
            _check_columns(manifest, names)
            wanted = [name for name in _COLUMNS if name in names]
            number = 0
            for batch in file.iter_batches(columns=wanted):
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", record
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(manifest, f"The manifest is not a whole Parquet file: {error}.") from error


def _check_columns(manifest: Path, header: Sequence[str]) -> None:
    got = ", ".join(f"`{name}`" for name in header) or "none"
    others = {name.lower(): name for name in header if name not in _COLUMNS}
    for name in _COLUMNS:
        if header.count(name) > 1:
            raise DataError(manifest, f"The column `{name}` is there {header.count(name)} times.")
        if name in header:
            continue
        near = difflib.get_close_matches(name, others, n=1, cutoff=0.5 if name == "path" else 0.75)
        if name == "path" and not near:
            near = [other for other in others if "file" in other or "path" in other]
        # An optional column under a wrong name would be left out without a word.
        if name == "path" or near:
            rename = f" Rename `{others[near[0]]}` to `{name}`." if near else ""
            raise DataError(
                manifest,
                f"The manifest has no column `{name}`; its columns are {got}. "
                f"Expected {','.join(_COLUMNS)}, the last three optional.{rename}",
            )


def _row(manifest: Path, where: str, record: Mapping[str, object]) -> _Row:
    at = f"{manifest}, {where}"
    name = _text(record["path"])
    if not name or "\0" in name:
        raise DataError(at, "The path is empty or no file name. Expected a file relative to the manifest.")
    cell = record.get("label")
    if isinstance(cell, list):
        several, names = True, tuple(_text(part) for part in cell)
    else:
        text = _text(cell)
        several, names = ";" in text, tuple(part.strip() for part in text.split(";"))
    start_s = _seconds(record.get("start_s"), at, "start_s")
    end_s = _seconds(record.get("end_s"), at, "end_s")
    if end_s is not None and end_s <= (start_s or 0.0):
        raise DataError(at, f"`end_s` is {end_s:g}. Expected more than `start_s`, {start_s or 0.0:g}.")
    return _Row(
        where=where,
        path=manifest.parent / name,
        names=tuple(dict.fromkeys(part for part in names if part)),
        several=several,
        start_s=start_s or 0.0,
        end_s=end_s,
    )


def _text(cell: object) -> str:
    # Tables made with pandas store a missing text as NaN.
    missing = cell is None or (isinstance(cell, float) and math.isnan(cell))
    return "" if missing else str(cell).strip()


def _seconds(cell: object, at: str, column: str) -> float | None:
    text = _text(cell)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise DataError(at, f"`{column}` is `{text}`. Expected seconds, 0 or more.")
    return value


def _check_files(manifest: Path, rows: Sequence[_Row], kind: Kind) -> None:
    first: dict[Path, _Row] = {}
    for row in rows:
        first.setdefault(row.path, row)
    missing = [row for path, row in first.items() if not path.is_file()]
    if missing:
        shown = ", ".join(f"`{row.path}` ({row.where})" for row in missing[:3])
        shown += " and more" if len(missing) > 3 else ""
        raise DataError(
            manifest,
            f"{len(missing)} of {len(first)} files do not exist: {shown}. "
            "Paths are relative to the manifest.",
        )
    cut = next((row for row in rows if row.start_s > 0 or row.end_s is not None), None)
    if kind != "audio" and cut is not None:
        raise DataError(
            f"{manifest}, {cut.where}", f"Got `start_s` or `end_s` for {kind} files. Only audio has a time."
        )


def _targets(manifest: Path, rows: Sequence[_Row], labels: tuple[str, ...] | None) -> Targets:
    bare = [row for row in rows if not row.names]
    several = any(row.several for row in rows)
    if len(bare) == len(rows) and not (several and labels):
        return Targets()
    if not several and bare:
        raise DataError(
            f"{manifest}, {bare[0].where}",
            f"{len(bare)} of {len(rows)} rows have no label. Label or remove them; write `;` for samples "
            "with none of the classes, which makes the table multi-label.",
        )
    order = labels or sorted_names(name for row in rows for name in row.names)
    if several:
        return named_targets([row.names for row in rows], order, source=manifest)
    return named_targets([row.names[0] for row in rows], order, source=manifest)
