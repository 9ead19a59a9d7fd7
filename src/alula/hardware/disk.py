"""A full disk: told from other failures, and said in one line."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from alula.errors import AlulaError, DiskFullError

__all__ = ["disk_full", "free_bytes", "is_full", "writing"]

# No space left on the device, or none of the user's share of it.
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Less room than this is none: the smallest artifact of a network takes more.
_LEAST_BYTES = 1 << 20


def free_bytes(path: Path) -> int:
    """Return the bytes free where a path is or would be; 0 where that cannot be told."""
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return 0


def disk_full(error: BaseException, *, what: str, path: Path, resumes: bool = False) -> DiskFullError | None:
    """Return the error to raise if a full disk is behind another error, or behind what that came from.

    Args:
        error: what was caught.
        what: what was to be written.
        path: where, should the error itself not say.
        resumes: whether the same command goes on where it stopped.

    >>> disk_full(ValueError("nonsense"), what="the table", path=Path("table.csv")) is None
    True
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, DiskFullError):
            return cause
        if isinstance(cause, OSError) and cause.errno in _FULL:
            # Where two files are named, the second is the one that was copied to.
            named = cause.filename2 or cause.filename
            place = Path(named) if isinstance(named, str) else path
            return DiskFullError(what, place, free_bytes=free_bytes(place), resumes=resumes)
        cause = cause.__cause__ or cause.__context__
    return None


@contextlib.contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Turn a full disk, met inside the block, into a `DiskFullError`; other errors stay as they are.

    Raises:
        DiskFullError: there is no space left for `what` at `path`.
    """
    try:
        yield
    except (AlulaError, OSError) as error:
        full = disk_full(error, what=what, path=path)
        if full is None or full is error:
            raise
        raise full from error


def is_full(folder: Path) -> bool:
    """Return whether a file of 1 MiB cannot be written into a folder for lack of space.

    For libraries that say nothing of the reason when they cannot write. It is tried rather than asked for:
    the numbers of a file system know nothing of quotas.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_LEAST_BYTES))
            file.flush()
    except OSError as error:
        return error.errno in _FULL
    return False
