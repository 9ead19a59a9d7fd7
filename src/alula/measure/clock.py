"""Clocks."""

from __future__ import annotations

import time
from typing import Protocol, final

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Tells the time, so that tests can tell it for themselves. Safe to read from several threads."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start; never runs backwards."""


@final
class SystemClock:
    """The machine's steady clock of the highest resolution."""

    def monotonic(self) -> float:
        return time.perf_counter()
