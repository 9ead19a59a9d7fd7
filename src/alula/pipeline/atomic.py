"""A file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from alula.errors import JobError, UsageError

__all__ = ["AtomicFile", "writing"]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `JobError` that names `path` and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full. Free some space or write to another disk, and run again."
        else:
            reason = f"{error.strerror or error}. Check the folder and its permissions, and run again."
        raise JobError(f"{path}: could not be written: {reason}") from error


class AtomicFile:
    """A new file beside `path` that takes its place on `commit`; until then an old file stays as it is.

    Args:
        path: the file to write; its folder is made if it is missing. A link is followed.

    Raises:
        UsageError: when `path` is a folder or a device.
        JobError: when the folder cannot be made or written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            self._target = path.resolve()
            if self._target.exists() and not self._target.is_file():
                raise UsageError(f"{path}: is not a regular file. Name a file to write.")
            self._target.parent.mkdir(parents=True, exist_ok=True)
            # In the same folder, because a rename is atomic only inside one file system. Opened by name
            # and not by `tempfile`, whose files nobody else may read.
            self._part = self._target.with_name(f".{self._target.name}.{uuid.uuid4().hex[:12]}.tmp")
            self.stream: BinaryIO = _create(self._part)

    def write(self, data: bytes) -> None:
        """Append `data`.

        Raises:
            JobError: when it cannot be written.
        """
        with writing(self.path):
            self.stream.write(data)

    def commit(self) -> None:
        """Put the file in its place, on disk and whole; on failure remove it and keep the old one.

        Raises:
            JobError: when it cannot be written.
        """
        try:
            with writing(self.path):
                self.stream.flush()
                os.fsync(self.stream.fileno())
                self.stream.close()
                self._part.replace(self._target)
                _sync_folder(self._target.parent)
        except JobError:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove the new file; an old one stays as it is."""
        # Closing flushes, and what cannot be flushed is thrown away here anyway.
        with contextlib.suppress(OSError):
            self.stream.close()
        self._part.unlink(missing_ok=True)


def _create(path: Path) -> BinaryIO:
    return path.open("xb")


def _sync_folder(folder: Path) -> None:
    # Some network file systems refuse this; the file itself is on disk by then.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
