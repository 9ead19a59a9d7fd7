"""TOML files of the user's, with errors for people."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from alula.errors import UsageError

__all__ = ["parse_toml", "read_toml", "read_toml_text"]


def read_toml(path: Path, *, what: str) -> dict[str, Any]:
    """Return what a TOML file says.

    Args:
        path: of the file.
        what: how an error calls it before its path, such as `--ladder`.

    Raises:
        UsageError: it cannot be read, or is not TOML.
    """
    return parse_toml(read_toml_text(path, what=what), name=f"{what} {path}")


def read_toml_text(path: Path, *, what: str) -> str:
    """Return the text of a TOML file, see `read_toml`.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} {path} is not UTF-8 text, so it is not TOML.") from error


def parse_toml(text: str, *, name: str) -> dict[str, Any]:
    """Return what a TOML text says.

    Args:
        text: TOML.
        name: what it is called in errors.

    Raises:
        UsageError: the text is not TOML.

    >>> parse_toml("k = 2", name="settings")
    {'k': 2}
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name} is not TOML: {error}.") from error
