"""BirdCLEF submissions, in the shape of a sample submission where one is given."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from alula.errors import DataError, JobError, UsageError, closest
from alula.pipeline.atomic import AtomicFile
from alula.pipeline.sinks import Kind, LineSink, Row, Scores, csv_line

__all__ = ["BirdclefSink", "SampleSubmission", "read_sample_submission"]

# Sigmoids in reduced precision overshoot by rounding.
SCORE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class SampleSubmission:
    """What a competition's `sample_submission.csv` asks for.

    Attributes:
        path: the file.
        columns: names of the score columns, in order.
        row_ids: in order; empty where it has a header alone.
        rows_elsewhere: whether it asks for rows of recordings that are in other parts of the job.
    """

    path: Path
    columns: tuple[str, ...]
    row_ids: tuple[str, ...]
    rows_elsewhere: bool = False

    def part(self, stems: Collection[str], *, others: Collection[str], last: bool) -> SampleSubmission:
        """Return what is asked of one part of a job, so that all parts together have each row once.

        Args:
            stems: of the recordings in the part.
            others: of the recordings in all other parts.
            last: whether it is the last part, which gets the rows of recordings that are in none.

        >>> sample = SampleSubmission(Path("s.csv"), ("wren",), ("a_5", "b_5", "c_5"))
        >>> sample.part("a", others="b", last=False).row_ids
        ('a_5',)
        >>> sample.part("b", others="a", last=True).row_ids
        ('b_5', 'c_5')
        """
        stem_of = {row_id: row_id.rpartition("_")[0] for row_id in self.row_ids}
        return SampleSubmission(
            self.path,
            self.columns,
            tuple(
                row_id for row_id, stem in stem_of.items() if stem not in others and (last or stem in stems)
            ),
            rows_elsewhere=not set(stem_of.values()).isdisjoint(others),
        )

    def ends_s(self) -> dict[str, list[float]]:
        """Return where the rows of each recording end, by its stem; row ids that say no time are left out.

        >>> SampleSubmission(Path("s.csv"), ("wren",), ("a_5", "a_10", "b_5")).ends_s()
        {'a': [5.0, 10.0], 'b': [5.0]}
        """
        found: dict[str, list[float]] = {}
        for row_id in self.row_ids:
            stem, _, end = row_id.rpartition("_")
            if stem and end.isdecimal():
                found.setdefault(stem, []).append(float(end))
        return found


def read_sample_submission(path: str | Path) -> SampleSubmission:
    """Return the columns and rows that a sample submission asks for.

    Raises:
        DataError: it cannot be read, its first column is not `row_id`, it has no other columns, or a column
            or a row is there twice.
    """
    path = Path(path)
    row_ids: dict[str, None] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = csv.reader(stream)
            header = next(lines, [])
            for line in lines:
                if line and line[0] in row_ids:
                    raise DataError(path, f"has two rows `{line[0]}`. Give the file of the competition.")
                if line:
                    row_ids[line[0]] = None
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror or error}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(path, f"is no table: {error}. Give the file of the competition.") from error
    columns = tuple(header[1:])
    if header[:1] != ["row_id"] or not columns:
        shown = ", ".join(f"`{name}`" for name in header[:3]) or "nothing"
        raise DataError(path, f"begins with {shown}; expected `row_id` and a column per label.")
    if len(set(columns)) < len(columns):
        twice = next(name for k, name in enumerate(columns) if name in columns[:k])
        raise DataError(path, f"has two columns `{twice}`. Give the file of the competition.")
    return SampleSubmission(path, columns, tuple(row_ids))


@final
class BirdclefSink(LineSink):
    """A BirdCLEF submission: `row_id,<labels...>` with `row_id = {stem}_{end in whole seconds}`.

    A sample submission gives the columns and their order; labels that it does not name are left out. If it
    names any of the rows, it must name all: its rows that no input has given, as a recording could not be
    read or was missing, get the same score for all labels (1 / labels), for a submission with missing rows
    is not scored. If it names none of them, as in a dry run over other recordings, its rows do not count.

    Args:
        path: the table, often `submission.csv`.
        labels: the bundle's labels, in their order.
        kind: must be `audio`.
        sample: what the competition asks for; None takes the labels as columns.
        drafts: where the table is until it is whole; None takes its own folder.

    Raises:
        UsageError: without labels, for inputs that are not audio, or where the sample has a column for which
            there is no label.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        labels: Sequence[str] | None,
        kind: Kind,
        sample: SampleSubmission | None = None,
        drafts: Path | None = None,
    ) -> None:
        if labels is None:
            raise UsageError(
                f"{path}: format `birdclef` got a bundle without labels; expected labels for its columns. "
                "Give the bundle labels or use format `csv`."
            )
        if kind != "audio":
            raise UsageError(
                f"{path}: format `birdclef` got inputs of kind `{kind}`; expected `audio`. Use format `csv`."
            )
        super().__init__(Path(path), labels=labels, fixed=("row_id",), drafts=drafts)
        self._sample = sample
        self._names = tuple(labels) if sample is None else sample.columns
        self._places = None if sample is None else _places(sample, labels)
        self._paths: dict[str, str] = {}
        self._ends_s: dict[str, int] = {}
        self._missing: dict[str, None] = {}
        self._matched = False
        self._extra: str | None = None
        self._notes: tuple[str, ...] = ()
        self._odd_rows, self._odd_row = 0, ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Rows that were filled, or a sample whose rows did not count."""
        return self._notes

    def open(self) -> None:
        """Make the temporary file. Raises `JobError` where it cannot be made."""
        self._paths.clear()
        self._ends_s.clear()
        self._missing = dict.fromkeys(() if self._sample is None else self._sample.row_ids)
        self._matched = self._sample is not None and self._sample.rows_elsewhere
        self._extra, self._notes = None, ()
        self._odd_rows, self._odd_row = 0, ""
        super().open()

    def expect(self, paths: Sequence[str]) -> None:
        """Raise `JobError` where two recordings would have the same row ids."""
        known: dict[str, str] = {}
        for path in paths:
            self._check_stem(known, path)

    def write(self, rows: Sequence[Row], scores: Scores) -> None:
        """Append one line per row; `scores` has shape (n, c), values in [0, 1].

        Scores that are no numbers, as silence gives in some models, are filled: no site takes such a table.

        Raises:
            JobError: when a score is out of range, two rows would have the same `row_id`, the sample
                lacks some of the rows, the scores do not fit the rows or columns, or the table cannot be
                written.
        """
        flat = self._columns.flatten(rows, scores)
        if self._places is not None:
            flat = flat[:, self._places]
        row_ids = [self._row_id(row) for row in rows]
        odd = ~np.isfinite(flat)
        if odd.any():
            self._odd_row = self._odd_row or row_ids[int(np.argmax(odd.any(axis=1)))]
            self._odd_rows += int(odd.any(axis=1).sum())
            flat = np.where(odd, np.float32(self._even), flat)
        within = (flat >= -SCORE_TOLERANCE) & (flat <= 1 + SCORE_TOLERANCE)
        if not within.all():
            i, k = (int(place[0]) for place in np.nonzero(~within))
            raise JobError(
                f"{self._path}: `{row_ids[i]}` got {flat[i, k]} for `{self._names[k]}`; expected a score "
                "from 0 to 1. Make the bundle with `--activation sigmoid`, or use format `csv`."
            )
        self._compare(row_ids)
        self._append([csv_line([row_id]) for row_id in row_ids], np.clip(flat, 0, 1))

    def _row_id(self, row: Row) -> str:
        if row.end_s is None:
            raise JobError(f"{self._path}: {row.path} has no times; expected windows of audio.")
        end_s = round(row.end_s)
        stem = self._check_stem(self._paths, row.path)
        if end_s <= self._ends_s.get(stem, -1):
            raise JobError(
                f"{self._path}: two windows of {row.path} would have the row id `{stem}_{end_s}`. "
                "Use windows that start at least one second apart."
            )
        self._ends_s[stem] = end_s
        return f"{stem}_{end_s}"

    def _check_stem(self, known: dict[str, str], path: str) -> str:
        """Return the stem of a recording, which no other known one may have."""
        stem = Path(path).stem
        other = known.setdefault(stem, path)
        if other != path:
            raise JobError(
                f"{self._path}: {other} and {path} would have the same row ids. Rename one of them or run "
                "them apart."
            )
        return stem

    def _compare(self, row_ids: Sequence[str]) -> None:
        if self._sample is None or not (self._sample.row_ids or self._sample.rows_elsewhere):
            return
        for row_id in row_ids:
            if row_id in self._missing:
                del self._missing[row_id]
                self._matched = True
            elif self._extra is None:
                self._extra = row_id
        if self._matched and self._extra is not None:
            raise JobError(
                f"{self._path}: {self._sample.path} has other rows of these recordings, but none "
                f"`{self._extra}`; expected the same rows. Give the windows of the competition and its "
                "recordings only."
            )

    def _finish(self, file: AtomicFile) -> None:
        super()._finish(file)
        if self._odd_rows:
            self._notes = (
                f"{self._odd_rows} rows, such as `{self._odd_row}`, had scores that are no numbers; these "
                f"are filled with {self._even:.3g}.",
            )
        if self._sample is None or not self._missing:
            return
        count, first = len(self._missing), next(iter(self._missing))
        if self._extra is not None:
            self._notes += (
                f"None of the {count} rows of {self._sample.path}, such as `{first}`, was predicted: its "
                "columns were used, its rows were not.",
            )
            return
        even = np.full((1, len(self._names)), self._even, np.float32)
        for row_id in self._missing:
            self._append([csv_line([row_id])], even)
        self._notes += (
            f"{count} rows of {self._sample.path}, such as `{first}`, had no prediction and were filled with "
            f"{self._even:.3g} for each label.",
        )

    @property
    def _even(self) -> float:
        return 1 / len(self._names)

    def _score_names(self) -> Sequence[str]:
        return self._names


def _places(sample: SampleSubmission, labels: Sequence[str]) -> list[int]:
    """Return which score goes into which column of a sample."""
    places = {label: k for k, label in enumerate(labels)}
    absent = [name for name in sample.columns if name not in places]
    if absent:
        shown = ", ".join(f"`{name}`" for name in absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise UsageError(
            f"{sample.path}: {len(absent)} of {len(sample.columns)} columns are no label of the bundle: "
            f"{shown}; expected its labels.{closest(absent[0], places)} Give the sample of the competition "
            "that the model was trained for, or a bundle with these labels."
        )
    return [places[name] for name in sample.columns]
