"""The list of rows that a deadline left below the first rung, beside the output."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, final

from alula.pipeline.atomic import ListFile
from alula.pipeline.sinks import csv_line, seconds_text

__all__ = ["Stretch", "UnfinishedList", "forget_unfinished"]

_HEADER = b"path,start_s,end_s,rows,rung\n"


class Stretch(NamedTuple):
    """Neighbouring rows of one file that were computed alike.

    Attributes:
        start_s: where the first begins; None for images and arrays.
        end_s: where the last ends.
        rows: how many.
        rung: how they were computed, or `prior` where they were not.
    """

    start_s: float | None
    end_s: float | None
    rows: int
    rung: str


def forget_unfinished(path: Path) -> None:
    """Remove the list of an earlier run; anything else stays.

    Raises:
        JobError: when it cannot be removed.
    """
    _list_at(path).forget()


def _list_at(path: Path, *, drafts: Path | None = None) -> ListFile:
    return ListFile(path, _HEADER, holds="rows that there is no time for", drafts=drafts)


@final
class UnfinishedList:
    """`unfinished.csv`: a line `path,start_s,end_s,rows,rung` per stretch of rows.

    Without any no file is made; that of an earlier run stays until `forget_unfinished`, for other outputs in
    the folder have theirs in the same place. Not thread-safe; in a `with` block.

    Args:
        path: the list.
        drafts: where it is until it is whole; None takes its own folder.

    Raises:
        UsageError: in its place there is a file that is no such list.
    """

    def __init__(self, path: Path, *, drafts: Path | None = None) -> None:
        self.path = path
        self._list = _list_at(path, drafts=drafts)

    @property
    def lines(self) -> int:
        """How many there are so far."""
        return self._list.lines

    def add(self, path: str, stretch: Stretch) -> None:
        """Append a line.

        Raises:
            JobError: when it cannot be written.
        """
        fields = (path, seconds_text(stretch.start_s), seconds_text(stretch.end_s))
        self._list.add(csv_line([*fields, str(stretch.rows), stretch.rung]))

    def __enter__(self) -> Self:
        self._list.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._list.commit()
        finally:
            self._list.discard()
