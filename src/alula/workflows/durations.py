"""Durations as people write them."""

from __future__ import annotations

import re

from alula.errors import UsageError
from alula.planning import in_words

__all__ = ["in_words", "parse_duration_s"]


def parse_duration_s(text: str | float) -> float:
    """Return seconds of a duration such as `90s`, `10m`, `1h30m` or `50ms`; plain numbers are seconds.

    Raises:
        UsageError: it is no duration, or not positive.

    >>> parse_duration_s("1h30m")
    5400.0
    """
    seconds = float(text) if isinstance(text, float) else _read(str(text))
    if not 0 < seconds < float("inf"):
        raise UsageError(f"`{text}` is no positive duration; expected for example `10m`.")
    return seconds


def _read(text: str) -> float:
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "": 1.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(ms|[hms]?)", text)
    if not re.fullmatch(r"\s*(\d+(?:\.\d+)?\s*(ms|[hms])\s*)+|\s*\d+(?:\.\d+)?\s*", text) or not parts:
        raise UsageError(f"`{text}` is no duration; expected for example `90s`, `10m` or `1h30m`.")
    return sum(float(number) * units[unit] for number, unit in parts)
