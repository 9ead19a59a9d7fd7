"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, final

from alula.errors import JobError, UsageError

__all__ = [
    "AtomicFile",
    "AtomicFolder",
    "ListFile",
    "check_file_target",
    "check_folder_target",
    "draft_path",
    "is_draft",
    "writing",
]


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


def check_file_target(path: Path) -> None:
    """Check that a file could be written there, as far as what is there now tells.

    Raises:
        UsageError: when `path` is a folder or a device.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is not a regular file. Name a file to write.")


def check_folder_target(path: Path, *, suffix: str) -> None:
    """Check that a folder of tables could be put there without losing anything else.

    Args:
        path: the folder.
        suffix: how the names of all tables in it end.

    Raises:
        UsageError: when `path` is a file, or a folder in which there is anything but such tables.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise UsageError(f"{path}: is a file; expected a folder. Name a folder to write tables into.")
    for file in path.rglob("*"):
        if not file.is_dir() and not file.name.endswith(suffix):
            raise UsageError(
                f"{path}: holds `{file.relative_to(path)}`, which is no table of an earlier run; the whole "
                "folder would be replaced. Name a new folder."
            )


class AtomicFile:
    """A new file that takes the place of `path` on `commit`; until then an old file stays as it is.

    Args:
        path: the file to write; its folder is made if it is missing. A link is followed.
        drafts: folder for the new file until then, on the same file system; None takes the file's own folder.

    Raises:
        UsageError: when `path` is a folder or a device.
        JobError: when the folder cannot be made or written to.
    """

    def __init__(self, path: Path, *, drafts: Path | None = None) -> None:
        self.path = path
        with writing(path):
            check_file_target(path)
            self._target = path.resolve()
            self._target.parent.mkdir(parents=True, exist_ok=True)
            # In the same folder, because a rename is atomic only inside one file system. Opened by name
            # and not by `tempfile`, whose files nobody else may read.
            self._part = draft_path(self._target, drafts)
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


class AtomicFolder:
    """A new folder that takes the place of `path` on `commit`; until then an old folder stays as it is.

    Args:
        path: the folder to write; the one above it is made if it is missing. A link is followed.
        suffix: how the names of all files in it end. An old folder with other files is not replaced.
        drafts: folder for the new one until then, on the same file system; None takes the one above `path`.

    Raises:
        UsageError: when `path` is a file, or a folder with files of other names.
        JobError: when it cannot be made.
    """

    def __init__(self, path: Path, *, suffix: str, drafts: Path | None = None) -> None:
        self.path = path
        self._suffix = suffix
        with writing(path):
            check_folder_target(path, suffix=suffix)
            self._target = path.resolve()
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self.draft = draft_path(self._target, drafts)
            self.draft.mkdir()

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Return a block whose `OSError` becomes a `JobError` that names the folder and says what to do."""
        return writing(self.path)

    def commit(self) -> None:
        """Put the folder in its place; on failure remove it and keep the old one.

        Two renames: a folder cannot replace one that is not empty. Killed between them, the old folder is
        gone from its place and the new one not yet there.

        Raises:
            UsageError: when something else was put into the old folder since.
            JobError: when it cannot be written.
        """
        aside = self.draft.with_name(f"{self.draft.name}.old")
        try:
            with writing(self.path):
                check_folder_target(self.path, suffix=self._suffix)
                # One call for all: 10,000 small files take a minute to be synchronised one by one.
                os.sync()
                if self._target.exists():
                    self._target.rename(aside)
                self.draft.rename(self._target)
                _sync_folder(self._target.parent)
        except (JobError, UsageError):
            if aside.exists() and not self._target.exists():
                aside.rename(self._target)
            self.discard()
            raise
        shutil.rmtree(aside, ignore_errors=True)

    def discard(self) -> None:
        """Remove the new folder; an old one stays as it is."""
        shutil.rmtree(self.draft, ignore_errors=True)


@final
class ListFile:
    """A list that is there only if it has lines, whole or not at all. Not thread-safe.

    Only a file that begins as such lists do is replaced or removed.

    Args:
        path: the list.
        header: its first line, with its end.
        holds: what it lists, in the plural, for errors.
        drafts: see `AtomicFile`.
    """

    def __init__(self, path: Path, header: bytes, *, holds: str, drafts: Path | None = None) -> None:
        self.path = path
        self.lines = 0
        self._header = header
        self._holds = holds
        self._drafts = drafts
        self._file: AtomicFile | None = None

    def check(self) -> None:
        """Check that the list could be put in its place.

        Raises:
            UsageError: there is anything but such a list.
            JobError: what is there cannot be read.
        """
        with writing(self.path):
            check_file_target(self.path)
            if self.path.exists() and not self._is_ours():
                raise UsageError(
                    f"{self.path}: is there, and no list of an earlier run; expected none, as {self._holds} "
                    "are listed there. Move it, or give another output."
                )

    def add(self, line: str) -> None:
        """Append a line, given without its end.

        Raises:
            JobError: it cannot be written.
        """
        if self._file is None:
            self._file = AtomicFile(self.path, drafts=self._drafts)
            self._file.write(self._header)
        self._file.write(line.encode() + b"\n")
        self.lines += 1

    def commit(self) -> None:
        """Put the list in its place, if it has lines.

        Raises:
            JobError: it cannot be written.
            UsageError: something else was put there since.
        """
        if self._file is not None:
            self.check()
            file, self._file = self._file, None
            file.commit()

    def discard(self) -> None:
        """Remove what was written; an old list stays as it is."""
        if self._file is not None:
            self._file.discard()
            self._file = None

    def forget(self) -> None:
        """Remove the list of an earlier run; anything else stays.

        Raises:
            JobError: it cannot be removed.
        """
        with writing(self.path):
            if self.path.is_file() and self._is_ours():
                self.path.unlink()

    def _is_ours(self) -> bool:
        with self.path.open("rb") as file:
            return file.read(len(self._header)) == self._header


def draft_path(target: Path, drafts: Path | None = None) -> Path:
    """Return a new name for what becomes `target`, in `drafts` or beside it."""
    return (drafts or target.parent) / f".{target.name}.{uuid.uuid4().hex[:12]}.tmp"


def is_draft(path: Path) -> bool:
    """Return whether a name is one of those that files and folders have until they are whole.

    >>> is_draft(Path(".scores.csv.0123456789ab.tmp")), is_draft(Path("scores.csv"))
    (True, False)
    """
    return re.fullmatch(r"\..+\.[0-9a-f]{12}\.tmp(\.old)?", path.name, re.DOTALL) is not None


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
