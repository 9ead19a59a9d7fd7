"""A table on disk that is written by rows and read by columns, or the other way round."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self, final

import numpy as np
import numpy.typing as npt

from alula.pipeline.atomic import draft_path, writing

__all__ = ["ColumnFile"]

_FILL_BYTES = 2**20


@final
class ColumnFile:
    """Numbers in a temporary file of a folder, in a `with` block; the file goes when the block ends.

    Its pages are the system's to keep in memory or not. The name is that of a draft, so a journal removes
    what a killed run has left.

    Args:
        folder: where to put it.
        columns: how many columns.
        rows: of how many numbers, at least 1.

    Attributes:
        values: float32 of shape (columns, rows), in the order of columns; zeros at first.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, ColumnFile(Path(folder), columns=2, rows=3) as table:
    ...     table.values[:, 1] = 7
    ...     table.values.tolist()
    [[0.0, 7.0, 0.0], [0.0, 7.0, 0.0]]
    """

    values: npt.NDArray[np.float32]

    def __init__(self, folder: Path, *, columns: int, rows: int) -> None:
        self._path = draft_path(folder / "columns")
        self._shape = (columns, rows)

    def __enter__(self) -> Self:
        with writing(self._path):
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                # A write to a page that the disk has no room for would end the process.
                getattr(os, "posix_fallocate", _fill)(handle, 0, 4 * self._shape[0] * self._shape[1])
                self.values = np.memmap(self._path, np.float32, "r+", shape=self._shape)
            except BaseException:
                self._path.unlink()
                raise
            finally:
                os.close(handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self.values
        self._path.unlink(missing_ok=True)


def _fill(handle: int, offset: int, size: int) -> None:
    """Do what `os.posix_fallocate` does to an empty file, where the system has no such call (macOS)."""
    while offset < size:
        offset += os.pwrite(handle, bytes(min(_FILL_BYTES, size - offset)), offset)
