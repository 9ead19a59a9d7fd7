"""Writes the rows of a job into its table, always from the journal, in the order of the files.

So it cannot matter which run has computed a file, or when. What follows the scores of a file's computation,
the steps of an ensemble and its ranks, is done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from alula.errors import DataError
from alula.pipeline import (
    READY_PER_RESULT,
    Backlog,
    ColumnFile,
    ErrorReport,
    FileTask,
    Journal,
    Kept,
    Row,
    Sink,
)
from alula.workflows.ensembling import Ensemble
from alula.workflows.lateness import Late, filled_rows
from alula.workflows.running import Bundle, Key, kept_rows, keys_of

__all__ = ["Delivery"]


@final
class Delivery:
    """Writes what a journal has of a backlog. Belongs to one thread.

    Args:
        scorer: what runs.
        backlog: the files in order.
        journal: what came of them.
        sink: the table, open.
        report: gets the files that failed.
        late: what becomes of rows that there was no time for; None where every file is computed.
    """

    def __init__(
        self,
        scorer: Bundle | Ensemble,
        backlog: Backlog,
        journal: Journal,
        *,
        sink: Sink,
        report: ErrorReport,
        late: Late | None,
    ) -> None:
        self._scorer = scorer
        self._backlog = backlog
        self._journal = journal
        self._sink = sink
        self._report = report
        self._late = late
        self._ranked = isinstance(scorer, Ensemble) and scorer.whole_job

    def write_some(self) -> None:
        """Write the next few files that are done."""
        if not self._ranked:
            for task, kept in self._backlog.ready(READY_PER_RESULT):
                self._write(task, kept)

    def write_rest(self) -> None:
        """Write all other files."""
        rest = self._backlog.ready() if self._late is None else self._backlog.rest()
        if isinstance(self._scorer, Ensemble) and self._ranked:
            self._write_ranked(self._scorer, list(rest))
            return
        for task, kept in rest:
            self._write(task, kept)

    def _write(self, task: FileTask, kept: Kept | None) -> None:
        if kept is None or kept.reason is not None:
            self._write_file(task, kept, None)
            return
        if kept.graded or self._scorer.needs_whole_files:
            self._write_file(task, kept, kept_rows(self._journal, kept))
            return
        for block in self._journal.blocks(kept):
            keys = keys_of(block.start_s, block.end_s, rows=len(block.scores))
            self._put(task, keys, block.scores)
            self._count(len(keys))

    def _write_file(
        self, task: FileTask, kept: Kept | None, computed: tuple[list[Key], NDArray[Any]] | None
    ) -> None:
        """Write all rows of a file.

        Args:
            task: the file.
            kept: its record.
            computed: where its computed rows lie, and their scores as the scorer's steps take them.
        """
        if kept is not None and kept.reason is not None:
            self._report.add(str(task.path), DataError(str(task.path), kept.reason))
        elif kept is not None and not kept.graded and computed is not None:
            keys, (scores,) = self._scorer.finished(computed[0], (computed[1],))
            self._put(task, keys, scores)
            self._count(len(keys))
        elif self._late is not None:
            self._write_late(task, self._late, kept, computed)

    def _write_late(
        self,
        task: FileTask,
        late: Late,
        kept: Kept | None,
        computed: tuple[list[Key], NDArray[Any]] | None,
    ) -> None:
        rungs = None if kept is None else self._journal.rungs(kept)
        keys, scores, stretches = filled_rows(
            self._scorer,
            [] if kept is not None and kept.ended else late.expected(task),
            computed=None if computed is None or rungs is None else (*computed, rungs),
            names=late.names,
            prior=late.prior,
        )
        self._put(task, keys, scores)
        for stretch in stretches:
            late.note(str(task.path), stretch)
        self._count(len(keys) - sum(stretch.rows for stretch in stretches))

    def _put(self, task: FileTask, keys: Sequence[Key], scores: NDArray[Any]) -> None:
        if keys:
            name = str(task.path)
            self._sink.write([Row(name, start_s, end_s) for start_s, end_s in keys], scores)

    def _count(self, rows: int) -> None:
        if self._late is not None:
            self._late.count(rows)

    def _write_ranked(self, ensemble: Ensemble, done: Sequence[tuple[FileTask, Kept | None]]) -> None:
        """Write a job whose blend needs all of its rows: column by column from the journal, then by file."""
        there = [kept for _, kept in done if kept is not None and kept.rows]
        total = sum(kept.rows for kept in there)
        if not total:
            for task, kept in done:
                self._write_file(task, kept, None)
            return
        wide, narrow = ensemble.job_shape
        with ColumnFile(self._journal.folder, columns=narrow, rows=total) as blended:
            with ColumnFile(self._journal.folder, columns=wide, rows=total) as joined:
                at = 0
                for kept in there:
                    for block in self._journal.blocks(kept):
                        joined.values[:, at : at + len(block.scores)] = block.scores.T
                        at += len(block.scores)
                ensemble.blend_job(joined.values, blended.values)
            at = 0
            for task, found in done:
                if found is None or not found.rows:
                    self._write_file(task, found, None)
                    continue
                keys = [
                    key
                    for block in self._journal.blocks(found)
                    for key in keys_of(block.start_s, block.end_s, rows=len(block.scores))
                ]
                scores = np.array(blended.values[:, at : at + found.rows].T, order="C")
                at += found.rows
                self._write_file(task, found, (keys, scores))
