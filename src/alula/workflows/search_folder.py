"""The folder of a search under way: found again by the same command, emptied for any other."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from alula.data import Samples
from alula.errors import AlulaError, DiskFullError, UsageError
from alula.hardware import writing
from alula.sources import Source

__all__ = ["claimed", "search_folder", "search_key"]

_KEY_NAME = "search.key"
_SAMPLED = 64  # samples in memory that stand for all in the key
_READ_BYTES = 1 << 20


@contextmanager
def search_folder(output: Path, keep: Path | None) -> Iterator[Path]:
    """Give the folder that a search works in: `keep`, or `OUTPUT.search` beside the bundle to be made.

    The latter goes when the search has come to a result or to an error of its own. It stays when the
    search was interrupted or killed or the disk was full, so that the same command can continue it.

    Raises:
        UsageError: `keep` exists and is no folder of an earlier search.
        DiskFullError: the disk became full, and the search goes on from there when it is run again.
    """
    folder = (keep or output.with_name(f"{output.name}.search")).absolute()
    if keep is not None and folder.exists() and not (folder / _KEY_NAME).is_file():
        raise UsageError(f"The folder to keep, {keep}, exists already; give a new one.")
    try:
        with writing("the files of the search", folder):
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
    except DiskFullError as error:
        raise DiskFullError(error.what, error.path, free_bytes=error.free_bytes, resumes=True) from error
    except AlulaError:
        if keep is None:
            shutil.rmtree(folder)
        raise
    if keep is None:
        shutil.rmtree(folder)


def claimed(folder: Path, key: str, *, fresh: bool) -> bool:
    """Return whether a folder holds an interrupted search of this key; empty it and sign it otherwise."""
    signed = folder / _KEY_NAME
    if not fresh and signed.is_file() and signed.read_text() == key:
        return True
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    signed.write_text(key)
    return False


def search_key(source: Source, samples: Samples, **options: Any) -> str:
    """Return what a search depends on, as 64 hexadecimal digits: the model, the data, the options.

    Files of the model are read whole; files of data count by path, size and time of change; of data in
    memory, up to 64 samples count.

    Args:
        source: the model.
        samples: the data.
        options: JSON values, or msgspec structs, or tuples and dicts of such.
    """
    digest = hashlib.sha256(msgspec.json.encode([source, options], order="deterministic"))
    spec = Path(source.spec.partition(":")[0])
    for path in (source.spec, source.weights):
        if path is not None and Path(path).is_file():
            _add_file(digest, Path(path))
    if source.kind == "factory" and spec.is_file():
        _add_file(digest, spec)
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
                status = item.path.stat()
                digest.update(f"{item.path} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _add_file(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
