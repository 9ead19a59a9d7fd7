"""What a run has finished, kept so that the same command goes on after a kill at any moment.

A journal is a folder beside the output. `lock` is locked while a run works there; the kernel takes the lock
off a process that dies. `results` is only ever appended to: a record per file with its scores, or with why
it failed. Tables being written lie there too, until they are whole.

A record is a head (magic, bytes of the note, bytes of the payload, CRC-32 of all the rest), a note in JSON
and a payload: window starts, window ends (float64, n each; only where inputs have times), scores (n, ...),
and where a job ran short of time the rung of each row (int16, n). Records with rungs count in their own run
only.
Reading stops at the first record that is not whole, and what lies behind is cut off. So half a record is as
good as none, and nothing that was read before can change.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import shutil
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias, final

import msgspec
import numpy as np
import numpy.typing as npt

from alula.errors import AlulaError, DataError, JobError, UsageError
from alula.hardware import disk_full
from alula.pipeline.atomic import is_draft, writing

__all__ = ["FileKey", "FileTask", "JobKey", "Journal", "Kept", "KeptBlock", "file_key", "journal_folder"]

Times: TypeAlias = npt.NDArray[np.float64]

SCHEMA_VERSION = 1
# Values in a block that is read back at once: 4 MiB of float32.
BLOCK_VALUES = 2**20
READ_BYTES = 2**20
# A killed process loses nothing that it has written; this bounds what a power failure takes.
SYNC_EVERY_S = 5.0

_MAGIC = b"ALJR"
_FRONT = struct.Struct("<4sIQ")  # magic, bytes of the note, bytes of the payload
_CHECK = struct.Struct("<I")  # CRC-32 of the front, the note and the payload
_HEAD_BYTES = _FRONT.size + _CHECK.size
_LOCK_NAME, _RESULTS_NAME = "lock", "results"
# How they begin. After a power failure there may be nothing there yet, or zeros.
_BEGINNINGS = {_LOCK_NAME: b"process ", _RESULTS_NAME: _MAGIC}


class JobKey(msgspec.Struct, frozen=True, kw_only=True):
    """What the scores of a job depend on besides its files.

    Attributes:
        bundle: name of the bundle, for people; not compared.
        checksum: of the bundle's manifest, which lists the hashes of all its files.
        recipe: what runs, as a bundle may fall back to another.
        options: other choices that change scores, by name.
    """

    bundle: str
    checksum: str
    recipe: str
    options: dict[str, str] = {}


class FileKey(NamedTuple):
    """What tells a file from others and from what it was before.

    Attributes:
        path: absolute, as the file system has it.
        size_bytes: -1 where the file cannot be looked at.
        mtime_ns: time of its last change, likewise.
    """

    path: bytes
    size_bytes: int
    mtime_ns: int


def file_key(path: str | Path) -> FileKey:
    """Return the key of a file as it is now; never raises."""
    absolute = os.fsencode(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow links)
    try:
        status = os.stat(path)  # noqa: PTH116 (a path may be text)
    except OSError:
        return FileKey(absolute, -1, -1)
    return FileKey(absolute, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class FileTask:
    """One file of a job; its text is the path, for messages."""

    path: Path
    key: FileKey

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class Kept:
    """Where the journal has what came of a file.

    Attributes:
        reason: why the file failed, or None.
        rows: how many rows of scores there are.
        shape: of the scores of one row.
        dtype: of the scores, in NumPy's short form.
        timed: whether rows have times.
        graded: whether rows have rungs, because time was short.
        ended: whether all rows of the file are there.
        at: where the payload begins.
    """

    reason: str | None
    rows: int
    shape: tuple[int, ...]
    dtype: str
    timed: bool
    graded: bool
    ended: bool
    at: int


class KeptBlock(NamedTuple):
    """Consecutive rows of one file.

    Attributes:
        start_s: where windows start, float64 of shape (n,); None for images and arrays.
        end_s: where they end, likewise.
        scores: shape (n, ...).
    """

    start_s: Times | None
    end_s: Times | None
    scores: npt.NDArray[Any]


class _Opening(msgspec.Struct, frozen=True, kw_only=True):
    """The note of the first record."""

    schema_version: int
    key: JobKey


class _Version(msgspec.Struct, frozen=True):
    schema_version: int


# Bytes, because neither paths nor messages that quote them need be text.
class _Note(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The note of a record.

    Attributes:
        path: see `FileKey`, as are the next two.
        reason: why the file failed.
        graded: whether rows have rungs.
        ended: whether all rows of the file are there.
        lasting: whether later runs take it as it is: all its rows on the first rung, or a failure that would
            come again as long as the file is not changed.
    """

    path: bytes
    size_bytes: int
    mtime_ns: int
    rows: int = 0
    shape: tuple[int, ...] = ()
    dtype: str = ""
    timed: bool = False
    graded: bool = False
    ended: bool = True
    reason: bytes | None = None
    lasting: bool = True


def journal_folder(output: Path) -> Path:
    """Return where the journal of a run that writes `output` is: `OUTPUT.job` beside it, links followed.

    >>> journal_folder(Path("/data/scores.csv")).as_posix()
    '/data/scores.csv.job'
    """
    target = output.resolve()
    return target.with_name(f"{target.name}.job")


@final
class Journal:
    """An append-only store of results, locked while it is open.

    Belongs to one thread, in a `with` block. When the block ends the folder stays, unless `finish` was
    called or nothing is in it.

    Args:
        folder: of the journal; made if it is missing.
        key: what the scores depend on.
        fresh: forget what is there.
        clock: seconds, never going back.

    Raises:
        JobError: when another run works there, or the folder cannot be written to.
        UsageError: when an unfinished run with another key is there, or anything that is no journal.
        DiskFullError: when there is no space.

    Example:
        >>> import tempfile
        >>> key = JobKey(bundle="birds.alula", checksum="00", recipe="fake/fp32")
        >>> wav = FileKey(b"/a.wav", 1, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Journal(Path(folder) / "scores.csv.job", key) as journal:
        ...         journal.keep(wav, start_s=None, end_s=None, scores=np.array([[0.25, 0.5]]))
        ...     with Journal(Path(folder) / "scores.csv.job", key) as journal:
        ...         kept = journal.find(wav)
        ...         [block.scores.tolist() for block in journal.blocks(kept)]
        [[[0.25, 0.5]]]
    """

    def __init__(
        self,
        folder: Path,
        key: JobKey,
        *,
        fresh: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self._key = key
        self._fresh = fresh
        self._clock = clock
        self._results = folder / _RESULTS_NAME
        self._index: dict[FileKey, Kept] = {}
        self._lock = -1
        self._file = -1
        self._end = 0
        self._synced_s = 0.0
        self._removes = False
        self._stays = False
        self._continues = False

    def __enter__(self) -> Self:
        self._check_folder()
        self._lock = _locked(self.folder)
        try:
            with _keeping(self._results):
                self._file = os.open(self._results, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                self._continues = os.fstat(self._file).st_size > 0
                if self._fresh:
                    os.ftruncate(self._file, 0)
                self._synced_s = self._clock()
                self._recover()
                self._remove_drafts()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._removes or not (self._index or self._stays):
            self._remove()
        self._close()

    def __len__(self) -> int:
        """Return how many files there is something of."""
        return len(self._index)

    def find(self, key: FileKey) -> Kept | None:
        """Return what is known of a file, or None if it has to be done.

        A failure of an earlier run counts only if it is the file's fault: one for want of memory, of a
        library or of a disk that answers may be over.
        """
        return self._index.get(key)

    def keep(
        self,
        key: FileKey,
        *,
        start_s: Times | None,
        end_s: Times | None,
        scores: npt.NDArray[Any],
        rungs: npt.NDArray[np.int16] | None = None,
        ended: bool = True,
    ) -> None:
        """Append the scores of a file, all or none of them.

        Args:
            key: of the file.
            start_s: where windows start, shape (n,); None for images and arrays.
            end_s: where they end, likewise.
            scores: shape (n, ...).
            rungs: how each row was computed, shape (n,), where time was short; only this run takes the scores
                as they are. None where all is as it should be.
            ended: whether all rows of the file are there.

        Raises:
            JobError: when they cannot be written.
            DiskFullError: when there is no space for them.
        """
        parts = [np.ascontiguousarray(part, np.float64) for part in (start_s, end_s) if part is not None]
        parts.append(np.ascontiguousarray(scores))
        if rungs is not None:
            parts.append(np.ascontiguousarray(rungs, np.int16))
        note = _Note(
            **key._asdict(),
            rows=len(scores),
            shape=scores.shape[1:],
            dtype=scores.dtype.str,
            timed=start_s is not None,
            graded=rungs is not None,
            ended=ended,
            lasting=rungs is None,
        )
        at = self._append(msgspec.json.encode(note), [part.reshape(-1).view(np.uint8) for part in parts])
        self._index[key] = _noted(note, at)

    def keep_failure(self, key: FileKey, path: str, error: AlulaError) -> None:
        """Append why a file failed.

        Args:
            key: of the file.
            path: as the error names it.
            error: what happened.

        Raises:
            JobError: when it cannot be written.
            DiskFullError: when there is no space for it.
        """
        reason = error.reason if isinstance(error, DataError) and error.path == path else str(error)
        note = _Note(
            **key._asdict(),
            reason=reason.encode("utf-8", "surrogatepass"),
            lasting=isinstance(error, DataError) and not isinstance(error.__cause__, OSError | MemoryError),
        )
        self._index[key] = _noted(note, self._append(msgspec.json.encode(note), []))

    def blocks(self, kept: Kept) -> Iterator[KeptBlock]:
        """Yield the rows of a file in order, in blocks whose size depends on the shape of a row alone.

        Raises:
            JobError: when they cannot be read.
        """
        dtype = np.dtype(kept.dtype)
        values = math.prod(kept.shape)
        step = max(1, BLOCK_VALUES // max(1, values))
        scores_at = kept.at + (16 * kept.rows if kept.timed else 0)
        for first in range(0, kept.rows, step):
            count = min(step, kept.rows - first)
            start_s = end_s = None
            if kept.timed:
                start_s = np.frombuffer(self._read(kept.at + 8 * first, 8 * count), np.float64)
                end_s = np.frombuffer(self._read(kept.at + 8 * (kept.rows + first), 8 * count), np.float64)
            row_bytes = values * dtype.itemsize
            data = self._read(scores_at + first * row_bytes, count * row_bytes)
            yield KeptBlock(start_s, end_s, np.frombuffer(data, dtype).reshape(count, *kept.shape))

    def rungs(self, kept: Kept) -> npt.NDArray[np.int16]:
        """Return how each row of a graded record was computed, shape (n,).

        Raises:
            JobError: when they cannot be read.
        """
        row_bytes = math.prod(kept.shape) * np.dtype(kept.dtype).itemsize + (16 if kept.timed else 0)
        return np.frombuffer(self._read(kept.at + row_bytes * kept.rows, 2 * kept.rows), np.int16)

    @property
    def continues(self) -> bool:
        """Whether an earlier run of this output had not finished, `fresh` or not."""
        return self._continues

    def finish(self, *, whole: bool = True) -> None:
        """Say that the output is in its place.

        Args:
            whole: whether nothing is left to do: then the folder goes when the block ends. If not, it stays,
                whether or not there is a result in it.
        """
        self._removes, self._stays = whole, not whole

    # Appending.

    def _append(self, note: bytes, parts: Sequence[npt.NDArray[np.uint8]]) -> int:
        """Write a record; return where its payload begins."""
        front = _FRONT.pack(_MAGIC, len(note), sum(part.nbytes for part in parts))
        check = zlib.crc32(note, zlib.crc32(front))
        for part in parts:
            check = zlib.crc32(part.data, check)
        record: list[bytes | memoryview] = [front + _CHECK.pack(check) + note]
        record.extend(part.data for part in parts)
        at = self._end
        with _keeping(self._results):
            try:
                for data in record:
                    _write(self._file, data, at)
                    at += len(data)
            except OSError:
                # Gives the space back. The next record would be written over it in any case.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._end)
                raise
            if self._clock() - self._synced_s >= SYNC_EVERY_S:
                getattr(os, "fdatasync", os.fsync)(self._file)  # macOS has no such call
                self._synced_s = self._clock()
        payload_at = self._end + _HEAD_BYTES + len(note)
        self._end = at
        return payload_at

    # Reading.

    def _recover(self) -> None:
        """Read what is there, cut off what is not whole, and sign an empty journal."""
        frames = self._frames(os.fstat(self._file).st_size)
        opening = next(frames, None)
        if opening is None:
            os.ftruncate(self._file, 0)
            note = _Opening(schema_version=SCHEMA_VERSION, key=self._key)
            self._append(msgspec.json.encode(note), [])
            return
        self._check_opening(opening[0])
        decoder = msgspec.json.Decoder(_Note)
        for data, payload_at in frames:
            note_ = decoder.decode(data)
            key = FileKey(note_.path, note_.size_bytes, note_.mtime_ns)
            if note_.lasting:
                self._index[key] = _noted(note_, payload_at)
        os.ftruncate(self._file, self._end)

    def _frames(self, size: int) -> Iterator[tuple[bytes, int]]:
        """Yield the note of each whole record and where its payload begins; `_end` is behind the last one."""
        self._end = 0
        while self._end + _HEAD_BYTES <= size:
            head = self._read(self._end, _HEAD_BYTES)
            magic, note_bytes, payload_bytes = _FRONT.unpack_from(head)
            payload_at = self._end + _HEAD_BYTES + note_bytes
            if magic != _MAGIC or payload_at + payload_bytes > size:
                return
            note = self._read(self._end + _HEAD_BYTES, note_bytes)
            check = zlib.crc32(note, zlib.crc32(head[: _FRONT.size]))
            for at in range(payload_at, payload_at + payload_bytes, READ_BYTES):
                check = zlib.crc32(self._read(at, min(READ_BYTES, payload_at + payload_bytes - at)), check)
            if check != _CHECK.unpack_from(head, _FRONT.size)[0]:
                return
            self._end = payload_at + payload_bytes
            yield note, payload_at

    def _read(self, at: int, count: int) -> bytes:
        data = bytearray()
        with writing(self._results):
            while len(data) < count:
                more = os.pread(self._file, count - len(data), at + len(data))
                if not more:
                    raise JobError(
                        f"{self._results}: ends before byte {at + count}: it was changed while in use. Start "
                        "over with --fresh."
                    )
                data += more
        return bytes(data)

    def _check_opening(self, note: bytes) -> None:
        output = _output_of(self.folder)
        again = f"or start over with --fresh, which forgets what is in {self.folder}."
        version = msgspec.json.decode(note, type=_Version).schema_version
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"{output}: an unfinished run of another release of Alula is there. Finish it with that one, "
                f"{again}"
            )
        there = msgspec.json.decode(note, type=_Opening).key
        here = self._key
        if there.checksum != here.checksum:
            differs = f"of the bundle {there.bundle}; this is {here.bundle}, with other content"
        elif there.recipe != here.recipe:
            differs = f"that ran {there.recipe}; this one runs {here.recipe}"
        elif there.options != here.options:
            names = sorted(
                name
                for name in there.options.keys() | here.options.keys()
                if there.options.get(name) != here.options.get(name)
            )
            differs = "with " + ", ".join(
                f"{name} {there.options.get(name, 'not given')} (now {here.options.get(name, 'not given')})"
                for name in names
            )
        else:
            return
        raise UsageError(
            f"{output}: an unfinished run is there, {differs}. Run that command again, give another output, "
            f"{again}"
        )

    # The folder.

    def _check_folder(self) -> None:
        """Refuse a folder with anything in it that is not ours: drafts in it are removed."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{self.folder}: is no folder; expected one for the journal. Name another.")
        if not self.folder.exists():
            return
        for path in self.folder.iterdir():
            if not is_draft(path) and not _is_ours(path):
                raise UsageError(
                    f"{self.folder}: holds `{path.name}`, which is no part of a journal; expected an empty "
                    "folder or a journal. Name another folder."
                )

    def _remove_drafts(self) -> None:
        """Remove what a killed run was writing when it was killed."""
        for path in self.folder.iterdir():
            if not is_draft(path):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _remove(self) -> None:
        # What cannot be removed is no reason to fail: the output is in its place, or there was nothing.
        with contextlib.suppress(OSError):
            self._remove_drafts()
            self._results.unlink(missing_ok=True)
            (self.folder / _LOCK_NAME).unlink(missing_ok=True)
            self.folder.rmdir()

    def _close(self) -> None:
        for handle in (self._file, self._lock):
            if handle >= 0:
                os.close(handle)
        self._file = self._lock = -1


def _is_ours(path: Path) -> bool:
    """Return whether something in a journal's folder is part of a journal, or was and has just gone."""
    beginning = _BEGINNINGS.get(path.name)
    if beginning is None:
        return False
    try:
        with _keeping(path), path.open("rb") as file:
            found = file.read(len(beginning))
    except JobError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return True
        if isinstance(error.__cause__, IsADirectoryError):
            return False
        raise
    return beginning.startswith(found) or not found.strip(b"\0")


def _noted(note: _Note, at: int) -> Kept:
    return Kept(
        reason=None if note.reason is None else note.reason.decode("utf-8", "surrogatepass"),
        rows=note.rows,
        shape=note.shape,
        dtype=note.dtype,
        timed=note.timed,
        graded=note.graded,
        ended=note.ended,
        at=at,
    )


def _output_of(folder: Path) -> Path:
    return folder.with_name(folder.name.removesuffix(".job"))


def _locked(folder: Path) -> int:
    """Return a handle that holds the lock of a journal's folder, which is made if it is missing.

    Raises:
        JobError: when another run holds it, or it cannot be made.
    """
    path = folder / _LOCK_NAME
    while True:
        with _keeping(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                continue  # a run that ended here has just removed the folder
        try:
            _take_lock(handle, folder)
            # A run that ends removes the file. A lock on a removed file keeps nobody out.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                with _keeping(path):
                    os.ftruncate(handle, 0)
                    holder = (
                        f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}"
                    )
                    os.pwrite(handle, holder.encode(), 0)
                return handle
        except FileNotFoundError:
            pass  # removed between the two looks at it
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _take_lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 500, 0).decode("utf-8", "replace") or "another process"
        raise JobError(
            f"{_output_of(folder)}: another run is writing it ({holder}). Wait until it ends, end it, or "
            "give another output."
        ) from None
    except OSError as error:
        raise JobError(
            f"{folder}: the file system has no locks ({error.strerror}), so that two runs could write one "
            "output. Write to another disk and move the output after."
        ) from error


@contextlib.contextmanager
def _keeping(path: Path) -> Iterator[None]:
    """Turn a failure to write into an error that says that nothing is lost."""
    try:
        with writing(path):
            yield
    except JobError as error:
        full = disk_full(error, what="the results so far", path=path, resumes=True)
        if full is None:
            raise
        raise full from error


def _write(handle: int, data: bytes | memoryview, at: int) -> None:
    """Write all of `data`; the system may take less than it is given."""
    left = memoryview(data)
    while left:
        count = os.pwrite(handle, left, at)
        left = left[count:]
        at += count
