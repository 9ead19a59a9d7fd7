"""A clock that does as it is told, for tests here and elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import final

__all__ = ["ScriptedClock"]


@final
class ScriptedClock:
    """A clock that moves only when told to: by `advance`, or by a step at each reading.

    Args:
        start_s: the first reading.
        steps_s: how far it moves after each reading, in order; then it stands still.

    Safe to use from several threads, which share one time: two threads that each advance it by
    0.1 s have together spent 0.2 s, as on one core.

    >>> clock = ScriptedClock(steps_s=[0.5])
    >>> clock.monotonic(), clock.monotonic()
    (0.0, 0.5)
    >>> clock.advance(2)
    >>> clock.monotonic()
    2.5
    """

    def __init__(self, start_s: float = 0.0, *, steps_s: Iterable[float] = ()) -> None:
        self._now_s = start_s
        self._steps_s = iter(steps_s)
        self._lock = threading.Lock()

    def monotonic(self) -> float:
        """Return the time, then move by the next step."""
        with self._lock:
            now_s = self._now_s
            self._now_s += next(self._steps_s, 0.0)
            return now_s

    def advance(self, seconds: float) -> None:
        """Move the clock by `seconds`, as work that takes this long would.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"a clock never runs backwards; got {seconds}")
        with self._lock:
            self._now_s += seconds
