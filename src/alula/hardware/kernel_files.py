"""Reading the small text files of /proc and /sys, which may be missing, unreadable or not as expected."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path

__all__ = ["is_folder", "read_pairs", "read_sysctl", "read_text", "whole_number"]


def read_text(path: Path) -> str:
    """Return the text of a file, or an empty string when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):  # ValueError: a NUL in a path that came out of another file
        return ""


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder that may be looked at; `Path.is_dir` raises on forbidden ones."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def whole_number(text: str) -> int | None:
    """Return a count that the kernel wrote, or None for anything else (`max`, `-1`, an empty file).

    >>> whole_number("150000\\n"), whole_number("max"), whole_number("-1"), whole_number("")
    (150000, None, None, None)
    """
    digits = text.strip()
    # 19 digits hold every 64-bit count; longer ones could not be divided as floats.
    return int(digits) if re.fullmatch(r"[0-9]{1,19}", digits) else None


def read_pairs(path: Path) -> dict[str, int]:
    """Return the numbers of a file with a name and a number per line, such as `cpu.stat` or `meminfo`.

    Lines of other forms are passed over; a colon after the name and a unit after the number are dropped.
    """
    pairs: dict[str, int] = {}
    for line in read_text(path).splitlines():
        fields = line.split()
        if len(fields) >= 2 and (number := whole_number(fields[1])) is not None:
            pairs[fields[0].rstrip(":")] = number
    return pairs


def read_sysctl() -> str:
    """Return what `sysctl -a` prints (macOS, BSD), one `name: value` per line; empty where it cannot run."""
    try:
        done = subprocess.run(
            ["sysctl", "-a"], capture_output=True, text=True, errors="replace", timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
