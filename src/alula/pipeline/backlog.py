"""The files of a job in order: which are still to do, and which are next to be told."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import final

from alula.pipeline.journal import FileTask, Journal, Kept

__all__ = ["READY_PER_RESULT", "Backlog"]

# What was done before is told a few files at a time, so that the work does not wait for it at the start.
READY_PER_RESULT = 8


@final
class Backlog:
    """Gives out what the journal lacks, in any order done, and gives back everything in the first order.

    Belongs to one thread.

    Args:
        tasks: the files; read lazily, as far as `missing` is asked.
        journal: open; the caller puts into it what came of each file.
    """

    def __init__(self, tasks: Iterable[FileTask], journal: Journal) -> None:
        self._tasks = iter(tasks)
        self._journal = journal
        self._waiting: deque[FileTask] = deque()

    def missing(self) -> Iterator[FileTask]:
        """Yield the tasks that the journal does not know, in order."""
        for task in self._tasks:
            self._waiting.append(task)
            if self._journal.find(task.key) is None:
                yield task

    def rest(self) -> Iterator[tuple[FileTask, Kept | None]]:
        """Yield all other tasks in order with what the journal has of them, each once; nothing of some."""
        for _ in self.missing():
            pass
        while self._waiting:
            task = self._waiting.popleft()
            yield task, self._journal.find(task.key)

    def ready(self, limit: int | None = None) -> Iterator[tuple[FileTask, Kept]]:
        """Yield the next tasks in order with what the journal has of them, each once.

        Ends at the first that is not done.

        Args:
            limit: how many at most; None for no limit.
        """
        while self._waiting and limit != 0:
            kept = self._journal.find(self._waiting[0].key)
            if kept is None:
                return
            yield self._waiting.popleft(), kept
            limit = None if limit is None else limit - 1
