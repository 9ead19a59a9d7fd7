"""The folder of a search under way: found again by the same command, emptied for any other."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from alula.data import Samples
from alula.errors import AlulaError, DiskFullError, UsageError
from alula.export import external_files
from alula.hardware import writing
from alula.sources import Source

__all__ = ["SearchFolder", "folder_beside", "locked", "search_folder", "search_key"]

_KEY_NAME = "search.key"
_LOCK_NAME = "search.lock"
_SAMPLED = 64  # samples in memory that stand for all in the key
_READ_BYTES = 1 << 20


class SearchFolder:
    """The folder that one search works in.

    Args:
        path: exists, and is locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_found = (path / _KEY_NAME).is_file()
        self._is_claimed = self._is_continued = False

    def claim(self, key: str, *, fresh: bool) -> bool:
        """Return whether it holds an interrupted search of this key; empty it and sign it otherwise."""
        self._is_claimed = True
        signed = self.path / _KEY_NAME
        if not fresh and signed.is_file() and signed.read_text() == key:
            self._is_continued = True
            return True
        signed.unlink(missing_ok=True)
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != _LOCK_NAME:
                entry.unlink()
        signed.write_text(key)
        return False

    def is_spoilt_by(self, error: AlulaError) -> bool:
        """Return whether the same command would end in this error again, so that the folder is of no use.

        It is of use as long as it holds what an earlier command began, and this one was mistyped.
        """
        if not self._is_claimed:
            return not self._is_found
        return not (self._is_continued and isinstance(error, UsageError))


def folder_beside(output: Path) -> Path:
    """Return where a search works whose bundle is to be written to `output`."""
    return output.with_name(f"{output.name}.search").absolute()


@contextmanager
def search_folder(output: Path, keep: Path | None) -> Iterator[SearchFolder]:
    """Give the folder that a search works in: `keep`, or `OUTPUT.search` beside the bundle to be made.

    The latter goes when the search has come to a result or to an error of its own. It stays when the
    search was interrupted or killed or the disk was full, so that the same command can continue it, and when
    another command fails before it claims the folder.

    Raises:
        UsageError: `keep` exists and is no folder of an earlier search, or a search works there now.
        DiskFullError: the disk became full, and the search goes on from there when it is run again.
    """
    folder = folder_beside(output) if keep is None else keep.absolute()
    if keep is not None and folder.exists() and not _may_work_in(folder):
        raise UsageError(f"The folder to keep, {keep}, exists already; give a new one.")
    try:
        with writing("the files of the search", folder):
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder):
                found = SearchFolder(folder)
                try:
                    yield found
                except DiskFullError:
                    raise
                except AlulaError as error:
                    if keep is None and found.is_spoilt_by(error):
                        _remove(folder)
                    raise
                if keep is None:
                    _remove(folder)
    except DiskFullError as error:
        raise DiskFullError(error.what, error.path, free_bytes=error.free_bytes, resumes=True) from error


def _may_work_in(folder: Path) -> bool:
    """Whether a folder that exists is of an earlier search, or holds nothing of anybody's."""
    return (folder / _KEY_NAME).is_file() or {entry.name for entry in folder.iterdir()} <= {_LOCK_NAME}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other searches out of a folder for as long as the block lasts, and the process lives.

    Raises:
        UsageError: one works there now.
    """
    with (folder / _LOCK_NAME).open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"Another search works in {folder} now. Wait until it has ended, or write to another bundle."
            ) from None
        except OSError:  # a file system without locks: nobody else is kept out
            pass
        yield


def _remove(folder: Path) -> None:
    # Without its key, what an interrupt leaves of the folder is not taken for a search to continue.
    (folder / _KEY_NAME).unlink(missing_ok=True)
    shutil.rmtree(folder)


def search_key(source: Source, samples: Samples, *, metric: str = "", **options: Any) -> str:
    """Return what a search depends on, as 64 hexadecimal digits: the model, the data, the options.

    Files of the model are read whole: its code is all that lies beside the file of its factory, or in the
    package of it. Files of data, and of an ONNX model's weights, count by path, size and time of change; of
    data in memory, up to 64 samples count.

    Args:
        source: the model.
        samples: the data.
        metric: its name; a function's counts with its code.
        options: JSON values, or msgspec structs, or tuples and dicts of such.
    """
    digest = hashlib.sha256(msgspec.json.encode([source, metric, options], order="deterministic"))
    for path in [*_files_of(source), *(_code_of(metric, sys.path) if ":" in metric else ())]:
        _add_file(digest, path)
    for path in external_files(Path(source.spec)) if source.kind == "onnx" else ():
        _add_status(digest, path)
    digest.update(f"{samples.kind} {len(samples)}".encode())
    if samples.targets is not None:
        digest.update(np.ascontiguousarray(samples.targets).tobytes())
    if samples.kind == "array":
        for index in np.unique(np.linspace(0, len(samples) - 1, _SAMPLED).astype(int)).tolist():
            for array in samples.array(index):
                digest.update(np.ascontiguousarray(array).tobytes())
    else:
        for item in samples.items:
            if item.path is not None and item.path.exists():
                _add_status(digest, item.path)
    return digest.hexdigest()


def _files_of(source: Source) -> list[Path]:
    """Return the files that a model is made of, but for the weights beside an ONNX file."""
    files = [Path(path) for path in (source.spec, source.weights) if path is not None]
    if source.kind == "factory":
        files += _code_of(source.spec, source.search_path)
    return [path for path in files if path.is_file()]


def _code_of(spec: str, search_path: Iterable[str]) -> list[Path]:
    """Return the Python files behind `file.py:NAME` or `package.module:NAME`, without running any."""
    where = spec.rpartition(":")[0]
    if where.endswith(".py"):
        return sorted(Path(where).absolute().parent.glob("*.py"))
    top = where.partition(".")[0]
    for folder in map(Path, search_path):
        if (folder / top).is_dir():
            return sorted((folder / top).rglob("*.py"))
        if (folder / f"{top}.py").is_file():
            return [folder / f"{top}.py"]
    return []


def _add_status(digest: Any, path: Path) -> None:
    status = path.stat()
    digest.update(os.fsencode(path) + f" {status.st_size} {status.st_mtime_ns}".encode())


def _add_file(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
