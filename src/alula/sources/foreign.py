"""Runs code that others wrote, and says in one line what went wrong in it."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import random
import struct
import sys
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alula.errors import ModelError
from alula.libraries import import_torch

__all__ = ["READ_ERRORS", "called", "cause_of", "importable", "repeatable", "said"]

_MESSAGE_CHARACTERS = 300

READ_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What damaged or hostile bytes make the readers of Python and torch raise."""


def said(error: BaseException) -> str:
    """Return type and first line of the message of an exception.

    >>> said(ValueError("no such size"))
    'ValueError: no such size'
    """
    lines = str(error).strip().splitlines()
    return type(error).__name__ + (f": {lines[0].strip()[:_MESSAGE_CHARACTERS]}" if lines else "")


def cause_of(error: BaseException, *, near: Path | None = None) -> str:
    """Return type, first line of the message, and place of an exception, in one line.

    Args:
        error: what was raised.
        near: the place is the newest frame inside this file or folder, else the newest frame.
    """
    text = said(error)
    if isinstance(error, SyntaxError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if near is not None and Path(frame.filename).is_relative_to(near)]
    if not (inside or frames):
        return text
    frame = (inside or frames)[-1]
    return f"{text} ({frame.filename}:{frame.lineno})"


def called(what: str, function: Callable[[], Any], *, near: Path | None = None) -> Any:
    """Return what `function` returns; what it prints goes to stderr, because stdout is for results.

    Args:
        what: names the work in the error, as in "`model.py:build`".
        function: code that is not Alula's.
        near: where the author of that code would look; see `cause_of`.

    Raises:
        ModelError: `function` raised, or called `sys.exit`.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return function()
    except SystemExit as error:
        raise ModelError(
            f"{what} ended the program: {cause_of(error, near=near)}. Expected a model. "
            f"Keep command-line parsing under `if __name__ == '__main__':`."
        ) from error
    except Exception as error:  # Foreign code raises what it likes.
        raise ModelError(f"{what} raised {cause_of(error, near=near)}.") from error


@contextlib.contextmanager
def importable(folders: Sequence[str]) -> Iterator[None]:
    """Put folders at the front of `sys.path`, and put the path back as it was.

    Not thread-safe: `sys.path` belongs to the process.
    """
    before = list(sys.path)
    sys.path[:0] = [folder for folder in folders if folder not in before]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Seed the random numbers of Python, NumPy and torch, and put their states back.

    A model without weights is initialised at random, and it is built again in every child process:
    the copies must be the same model. Not thread-safe: these generators belong to the process.
    """
    torch = import_torch()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(0)
        np.random.seed(0)
        torch.default_generator.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
