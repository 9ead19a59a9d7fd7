"""The list of rows that a deadline left below the first rung, beside the output."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, final

from alula.errors import UsageError
from alula.pipeline.atomic import AtomicFile, check_file_target, writing
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
    with writing(path):
        if path.is_file() and _is_ours(path):
            path.unlink()


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_HEADER)) == _HEADER


@final
class UnfinishedList:
    """`unfinished.csv`: a line `path,start_s,end_s,rows,rung` per stretch of rows.

    Without any no file is made, and that of an earlier run is removed. Not thread-safe; in a `with` block.

    Args:
        path: the list.
        drafts: where it is until it is whole; None takes its own folder.

    Raises:
        UsageError: in its place there is a file that is no such list.
    """

    def __init__(self, path: Path, *, drafts: Path | None = None) -> None:
        self.path = path
        self._drafts = drafts
        self.lines = 0
        self._file: AtomicFile | None = None

    def add(self, path: str, stretch: Stretch) -> None:
        """Append a line.

        Raises:
            JobError: when it cannot be written.
        """
        if self._file is None:
            self._file = AtomicFile(self.path, drafts=self._drafts)
            self._file.write(_HEADER)
        fields = (path, seconds_text(stretch.start_s), seconds_text(stretch.end_s))
        self._file.write(csv_line([*fields, str(stretch.rows), stretch.rung]).encode() + b"\n")
        self.lines += 1

    def __enter__(self) -> Self:
        with writing(self.path):
            check_file_target(self.path)
            if self.path.exists() and not _is_ours(self.path):
                raise UsageError(
                    f"{self.path}: is there, and no list of an earlier run; expected none, as rows that "
                    "there is no time for are listed there. Move it, or give another output."
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            if self._file is not None:
                self._file.commit()
            else:
                forget_unfinished(self.path)
        elif self._file is not None:
            self._file.discard()
