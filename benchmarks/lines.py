"""Files to which a benchmark appends lines as it knows them, and where it goes on after a kill."""

from __future__ import annotations

from pathlib import Path


def whole_lines(path: Path) -> list[bytes]:
    """Return the lines of a file that were written to their end; none if there is no file."""
    return [line for line in path.read_bytes().split(b"\n")[:-1] if line] if path.exists() else []


def drop_torn_line(path: Path) -> None:
    """Make sure that what is appended does not continue a line that a killed run left half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in whole_lines(path)))
