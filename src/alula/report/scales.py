"""Axes: where a value lies, and at which values to draw a tick."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["LinearScale", "LogScale", "linear_ticks", "log_ticks"]

_MANTISSAS = ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))
_MOST_TICKS = 100


@dataclass(frozen=True, kw_only=True)
class LinearScale:
    """Values `low` to `high` on coordinates `start` to `end`; values outside lie outside."""

    low: float
    high: float
    start: float
    end: float

    def position(self, value: float) -> float:
        """Return the coordinate of a value.

        >>> LinearScale(low=0, high=4, start=10, end=30).position(1)
        15.0
        """
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def clipped(self, value: float) -> float:
        """Return the coordinate of a value, or of the nearer end."""
        return self.position(min(max(value, self.low), self.high))


@dataclass(frozen=True, kw_only=True)
class LogScale:
    """Values above 0 from `low` to `high` on coordinates `start` to `end`, equal ratios as equal lengths."""

    low: float
    high: float
    start: float
    end: float

    def position(self, value: float) -> float:
        """Return the coordinate of a value.

        >>> LogScale(low=1, high=100, start=0, end=20).position(10)
        10.0
        """
        share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return self.start + share * (self.end - self.start)

    def clipped(self, value: float) -> float:
        """Return the coordinate of a value, or of the nearer end."""
        return self.position(min(max(value, self.low), self.high))


def linear_ticks(scale: LinearScale, most: int) -> tuple[float, ...]:
    """Return round values inside the scale, at most `most` of them, 1, 2 or 5 times a power of ten apart.

    >>> linear_ticks(LinearScale(low=-0.1, high=0.7, start=0, end=1), 5)
    (0.0, 0.2, 0.4, 0.6)
    """
    exponent = math.floor(math.log10((scale.high - scale.low) / max(most, 1)))
    for step in (factor * 10.0 ** (exponent + more) for more in (0, 1, 2) for factor in (1, 2, 5)):
        first, last = math.ceil(scale.low / step), math.floor(scale.high / step)
        if last - first + 1 <= most:
            # Multiples of 0.1 have tails of rounding that would be written out.
            return tuple(float(f"{index * step:.12g}") for index in range(first, last + 1))
    return ()


def log_ticks(scale: LogScale, fits: Callable[[Sequence[float]], bool]) -> tuple[float, ...]:
    """Return round values inside the scale, as many as fit beside each other.

    Args:
        scale: the axis.
        fits: whether ticks at these values, in rising order, leave each other room.

    >>> log_ticks(LogScale(low=0.8, high=9, start=0, end=1), lambda values: len(values) <= 3)
    (1.0, 2.0, 5.0)
    """
    for ticks in _tick_sets(scale):
        if 2 <= len(ticks) <= _MOST_TICKS and fits(ticks):
            return ticks
    return ()


def _tick_sets(scale: LogScale) -> Iterator[tuple[float, ...]]:
    """Yield sets of ticks, the densest first."""
    first, last = math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high))
    if scale.high < 3 * scale.low:
        # Less than half a decade has too few of the usual values; even steps serve it better.
        even = LinearScale(low=scale.low, high=scale.high, start=0.0, end=1.0)
        for most in (8, 6, 5, 4, 3, 2):
            yield linear_ticks(even, most)
        return
    if last - first <= _MOST_TICKS:
        for mantissas in _MANTISSAS:
            yield _inside(scale, range(first, last + 1), mantissas)
    for stride in (2, 3, 5, 10, 20, 50, 100):
        yield _inside(scale, range(first, last + 1, stride), (1,))


def _inside(scale: LogScale, decades: range, mantissas: tuple[int, ...]) -> tuple[float, ...]:
    values = (float(f"{mantissa}e{decade}") for decade in decades for mantissa in mantissas)
    return tuple(value for value in values if scale.low <= value <= scale.high)
