"""Every error that Alula raises.

::

    AlulaError
    ├── UsageError         the command or call was wrong; carries the closest valid name
    ├── ModelError         a model could not be loaded, exported, or differs after export
    ├── EngineError        an engine or recipe failed
    │   └── EngineUnavailableError   the engine is not installed here; carries the install command
    ├── AccuracyError      a metric could not be computed, or no candidate met the limit
    ├── MeasurementError   a measurement could not be taken
    ├── DataError          an input file or data set could not be used; carries the path
    ├── BundleError        a bundle is damaged, unsafe or too new; carries the path
    ├── DiskFullError      a file could not be written for lack of space; carries the path
    └── JobError           a folder run failed as a whole

Each message says what failed, what was got, what was expected and what to do, in that order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "AccuracyError",
    "AlulaError",
    "BundleError",
    "DataError",
    "DiskFullError",
    "EngineError",
    "EngineUnavailableError",
    "JobError",
    "MeasurementError",
    "ModelError",
    "UsageError",
    "closest",
    "plain_text",
]


class AlulaError(Exception):
    """Base of every error raised on purpose; its message is fit to show to a user as it is.

    Args:
        message: may hold names of files that are not UTF-8; those bytes are escaped.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(plain_text(message))


class UsageError(AlulaError):
    """The call or command was wrong."""

    exit_code = 2


class ModelError(AlulaError):
    """A model could not be found, built, loaded or exported, or its export differs from it."""


class EngineError(AlulaError):
    """An engine could not load or run an artifact, or a recipe could not be made."""


class EngineUnavailableError(EngineError):
    """An engine or quantizer is not installed here.

    Args:
        what: the engine, quantizer or library that is missing.
        install: the command that installs it.
    """

    def __init__(self, what: str, *, install: str) -> None:
        super().__init__(f"`{what}` is not installed here. Install it with `{install}`.")
        self.what = what
        self.install = install


class AccuracyError(AlulaError):
    """A metric could not be computed, or was outside its limit where that is not allowed."""


class MeasurementError(AlulaError):
    """A time could not be measured."""


class DataError(AlulaError):
    """An input file or a data set could not be used.

    Args:
        path: the file or folder at fault, or a short description of in-memory data.
        reason: what is wrong with it and what to do, one sentence each.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


class BundleError(AlulaError):
    """A bundle is damaged, unsafe or of a version that this release does not read.

    Args:
        path: the bundle or the file inside it.
        reason: what is wrong and what to do.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


class DiskFullError(AlulaError):
    """A file could not be written because there is no space left, or none that this user may use.

    It is nobody's fault but the disk's: a search that meets it blames no recipe, and stops.

    Args:
        what: what was to be written, with its article.
        path: the file or folder.
        free_bytes: space left there.
        resumes: whether the same command goes on where it stopped.
    """

    def __init__(self, what: str, path: str | Path, *, free_bytes: int, resumes: bool = False) -> None:
        goes_on = "; it goes on where it stopped" if resumes else ""
        super().__init__(
            f"The disk is full: {what} could not be written to {path}, where {free_bytes / 2**20:,.1f} MiB "
            f"are free. Free some space and run the same command again{goes_on}."
        )
        self.what = what
        self.path = str(path)
        self.free_bytes = free_bytes


class JobError(AlulaError):
    """A folder run failed as a whole (single bad inputs are reported, not raised)."""


def plain_text(text: str) -> str:
    r"""Return text in which bytes of file names that are not UTF-8 are escaped, to be shown or written.

    >>> print(plain_text("caf\udce9.wav"))
    caf\udce9.wav
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def closest(name: str, valid: Iterable[str]) -> str:
    """Return a `` Did you mean `x`?`` hint for a mistyped name, or an empty string.

    >>> closest("onnxruntim", ["onnxruntime", "openvino"])
    ' Did you mean `onnxruntime`?'
    >>> closest("zzz", ["onnxruntime"])
    ''
    """
    found = difflib.get_close_matches(name, list(valid), n=1)
    return f" Did you mean `{found[0]}`?" if found else ""
