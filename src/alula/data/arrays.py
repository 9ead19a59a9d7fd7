"""Arrays from disk: one `.npy` file is one sample."""

from __future__ import annotations

import tokenize
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alula.errors import DataError

__all__ = ["check_numeric", "read_array"]


def read_array(path: str | Path) -> npt.NDArray[Any]:
    """Return the array of a `.npy` file: its own shape and dtype (bool, integer or float), in memory.

    Nothing is unpickled. A header that claims more data than the file holds is refused before any
    memory is taken. May be called from several threads.

    Raises:
        DataError: the file is missing, empty, not `.npy`, damaged, cut short, or not numeric.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise DataError(path, "The file is empty (0 bytes). Expected an array saved with numpy.save.")
        # Mapping compares the header with the length of the file, and refuses pickled objects.
        mapped = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise DataError(path, f"The array cannot be read: {error.strerror or error}.") from error
    except (
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        SyntaxError,
        MemoryError,
        RecursionError,
        tokenize.TokenError,
    ) as error:
        raise DataError(
            path, f"The file is not a whole .npy array of numbers: {error}. Save it with numpy.save."
        ) from error
    return check_numeric(np.array(mapped), source=path)


def check_numeric(array: npt.NDArray[Any], *, source: str | Path) -> npt.NDArray[Any]:
    """Return the array itself where it holds booleans, integers or floats.

    Raises:
        DataError: it holds anything else, such as objects, text or complex numbers.
    """
    if array.dtype.kind not in "biuf":
        raise DataError(
            source,
            f"Got an array of dtype {array.dtype}. Expected booleans, integers or floats. "
            "Convert it with `.astype`.",
        )
    return array
