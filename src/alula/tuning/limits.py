"""How long a step of a search may take: bounded, but enough where without it there would be no result."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from alula.measure import Clock

__all__ = ["StepLimit"]

# What a step may take even when the time is used up: without it there would be no result.
LEAST_STEP_S = 30.0
# What a step may take that can be done without: enough to end by itself if it is about to.
LEAST_OPTIONAL_S = 1.0
# Times as long as expected: more hangs.
PATIENCE = 3


class StepLimit:
    """Call it for the seconds that a step may take now.

    Args:
        clock: tells the time.
        longest_s: no step may take longer, unless it is known to be longer.
    """

    def __init__(self, clock: Clock, *, longest_s: float) -> None:
        self._clock = clock
        self._longest_s = longest_s
        self._until_s: float | None = None
        self._needed = False
        self._was_short = False
        self.deadline_s = math.inf

    def __call__(self, *, expected_s: float = 0.0) -> float:
        """Return the seconds, above 0.

        Args:
            expected_s: about how long the step takes, where that is known.
        """
        longest_s = max(self._longest_s, PATIENCE * expected_s)
        least_s, until_s = LEAST_STEP_S, self.deadline_s
        if self._until_s is not None:
            least_s, until_s = LEAST_OPTIONAL_S, self._until_s
        left_s = math.inf if self._needed else until_s - self._clock.monotonic()
        seconds = min(longest_s, max(least_s, left_s))
        self._was_short = seconds < longest_s
        return seconds

    @property
    def was_short(self) -> bool:
        """Whether the last step got less than it would have with more time: being cut then proves nothing."""
        return self._was_short

    @contextlib.contextmanager
    def needed(self) -> Iterator[None]:
        """Wait for the steps of the block whatever the time is: without them there would be no result."""
        before, self._needed = self._needed, True
        try:
            yield
        finally:
            self._needed = before

    @contextlib.contextmanager
    def optional(self, *, until_s: float) -> Iterator[None]:
        """Bound the steps of the block, which can be done without, by a time of the clock."""
        before, self._until_s = self._until_s, until_s
        try:
            yield
        finally:
            self._until_s = before
