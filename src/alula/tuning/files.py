"""Files of a search that are whole or absent: notes and arrays, with a full disk told as such."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from alula.hardware import writing

__all__ = ["read_note", "save_array", "write_note"]

Note = TypeVar("Note", bound=msgspec.Struct)


def read_note(path: Path, kind: type[Note]) -> Note | None:
    """Return a note that an earlier search wrote, or None where there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def write_note(path: Path, note: msgspec.Struct) -> None:
    """Write a note so that it is whole or absent, whatever happens.

    Raises:
        DiskFullError: there is no space for it.
    """
    draft = path.with_suffix(".part")
    with writing("a note of the search", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(msgspec.json.encode(note))
        draft.replace(path)


def save_array(path: Path, array: NDArray[np.generic], *, what: str = "an array") -> None:
    """Write an array as `.npy` so that it is whole or absent.

    `np.save` writes through C, which tells a full disk by an error without a number, or not at all where the
    array is small.

    Args:
        path: of the file.
        array: any shape and dtype without Python objects.
        what: it is, for the error.

    Raises:
        DiskFullError: there is no space for it.
    """
    draft = path.with_suffix(".part")
    with writing(what, path):
        with draft.open("wb") as file:
            whole = np.ascontiguousarray(array)
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(whole))
            file.write(whole.data)
        draft.replace(path)
