"""How long the rest of a job takes, from what was really measured while it ran.

Work is counted in units of stages (seconds of sound decoded, windows made into features, windows through a
model), weighed by what a unit was measured to cost before the job. Two things are learned from the job:

- what each stage costs beside the others, from the busy time of every finished piece, so that a forecast
  holds for another set of stages than the one that runs now;
- how much of such work the machine does in a second, from the clock alone. Slow disks, stalls, stolen time
  and waiting between stages are all in it, because a second in which nothing ends is still a second.

A forecast is an upper quantile: the rate that is reckoned with is the mean rate, forgotten slowly, less its
own uncertainty. Beside it stands what comes if all is as slow as in the slowest stretch so far.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import NormalDist
from typing import TypeAlias, final

import msgspec
import numpy as np
import numpy.typing as npt

from alula.errors import UsageError

__all__ = ["Finished", "Forecast", "Remaining", "StageCost"]

FloatArray: TypeAlias = npt.NDArray[np.float64]

# The slowest stretch is one of this many blocks: long enough to hold several pieces of work, short enough to
# see a machine that has become slower after a few per cent of the job.
_STRETCH_BLOCKS = 6
# What disturbs a shared machine lasts for several blocks, so neighbouring blocks are no independent readings.
_CORRELATED_BLOCKS = 3.0
# Blocks are forgotten by half after this many, or after half of the time so far if that is longer.
_HALF_LIFE_BLOCKS = 10.0
# The declared rate counts like this many blocks, so that the first piece of a job does not decide alone.
_PRIOR_BLOCKS = 2.0
# Relative standard deviation of the rate of blocks that is reckoned with before many were seen.
_PRIOR_SPREAD = 0.10
# Relative standard deviation of one piece's share of a stage around its mean.
_PIECE_SPREAD = 0.20
# One piece moves what is believed of a stage by a factor of e at most: a stall is not the stage's nature.
_MAX_SURPRISE = 1.0
# What is believed of a stage never becomes surer than this, so that it can follow a change.
_LEAST_SPREAD = 0.02


class StageCost(msgspec.Struct, frozen=True, kw_only=True):
    """What one unit of a stage costs, measured before a job.

    Attributes:
        core_s: core-seconds per unit.
        spread: relative standard deviation of what a job will see around it.
    """

    core_s: float
    spread: float = 0.10

    def __post_init__(self) -> None:
        if not (math.isfinite(self.core_s) and self.core_s > 0):
            raise ValueError(f"a unit costs a positive number of core-seconds; got {self.core_s}")
        if not (math.isfinite(self.spread) and self.spread >= 0):
            raise ValueError(f"a spread is not negative; got {self.spread}")


class Finished(msgspec.Struct, frozen=True):
    """Work of one stage that has ended.

    Attributes:
        units: how many.
        busy_s: time that threads spent in it, summed over threads, waiting for a disk included.
    """

    units: float
    busy_s: float


class Remaining(msgspec.Struct, frozen=True):
    """Seconds that each of r ways to do the rest of a job takes.

    Attributes:
        expected_s: at the mean rate; shape (r,).
        high_s: not exceeded with the chance that was asked for; shape (r,).
        worst_s: at the rate of the slowest stretch so far; shape (r,).
    """

    expected_s: FloatArray
    high_s: FloatArray
    worst_s: FloatArray


class _Level(msgspec.Struct, frozen=True):
    """What is known of the rate at one moment: work, in declared core-seconds, per second."""

    mean_per_s: float
    deviation_per_s: float
    readings: float
    worst_per_s: float


@final
class Forecast:
    """Learns from finished work and tells how long other work will take.

    Not thread-safe. Times are readings of one clock that never runs backwards.

    Args:
        costs: what a unit of each stage was measured to cost.
        cpus: cores' worth of work that the job is expected to do in a second; it may be broken.
        start_s: when the job started.
        block_s: the rate is read in blocks of at least this length.

    Raises:
        UsageError: there are no stages, or the rate or the length is not positive.

    >>> forecast = Forecast({"model": StageCost(core_s=2.0)}, cpus=2.0, start_s=0.0, block_s=1.0)
    >>> forecast.remaining(np.array([[10.0]]), now_s=0.0, chance=0.5).expected_s.tolist()
    [10.0]
    """

    def __init__(
        self, costs: Mapping[str, StageCost], *, cpus: float, start_s: float, block_s: float
    ) -> None:
        if not costs or not cpus > 0 or not block_s > 0:
            raise UsageError(
                f"A forecast got {len(costs)} stages, {cpus} CPUs and blocks of {block_s} s; expected at "
                "least one stage, and both numbers above 0."
            )
        self.stages = tuple(costs)
        self._index = {stage: k for k, stage in enumerate(self.stages)}
        self._declared_s = np.array([cost.core_s for cost in costs.values()])
        self._log_factor = np.zeros(len(costs))
        self._variance = np.array([max(cost.spread, _LEAST_SPREAD) ** 2 for cost in costs.values()])
        self._cpus = cpus
        self._block_s = block_s
        self._opened_s = start_s
        self._open = np.zeros(len(costs))
        self._units = np.zeros((16, len(costs)))
        self._walls_s = np.zeros(16)
        self._blocks = 0
        self._known: tuple[float, _Level] | None = None

    def units(self, amounts: Mapping[str, float]) -> FloatArray:
        """Return amounts of work by stage as a vector in the order of `stages`, shape (k,).

        Raises:
            UsageError: a stage has no declared cost, or an amount is negative.
        """
        vector = np.zeros(len(self.stages))
        for stage, amount in amounts.items():
            if stage not in self._index or not amount >= 0:
                raise UsageError(
                    f"Got {amount} units of stage `{stage}`; expected none below 0, of the stages "
                    f"{', '.join(self.stages)}."
                )
            vector[self._index[stage]] = amount
        return vector

    def record(self, finished: Mapping[str, Finished], *, now_s: float) -> None:
        """Learn from a piece of work that has ended: all of its stages at once, or one.

        Raises:
            UsageError: a stage has no declared cost.
        """
        units = self.units({stage: done.units for stage, done in finished.items()})
        self._known = None
        self._learn_shares(units, [(self._index[stage], done) for stage, done in finished.items()])
        self._open += units
        if now_s - self._opened_s >= self._block_s and self._open.any():
            self._close_block(now_s)

    def remaining(self, units: FloatArray, *, now_s: float, chance: float) -> Remaining:
        """Return how long r ways to do the rest of a job take.

        Args:
            units: units of each stage, shape (r, k), in the order of `stages`.
            now_s: the time.
            chance: that `high_s` is not exceeded, as far as the past is like the future.
        """
        level = self._level(now_s)
        z = NormalDist().inv_cdf(chance)
        by_stage = units * self._costs_s()
        work = by_stage.sum(axis=1)
        expected_s = work / level.mean_per_s
        unsure = np.sqrt(np.square(by_stage) @ self._variance)
        # Over a long rest good and bad blocks cancel; over a short one they do not.
        ahead = np.maximum(expected_s / self._block_s, 1.0)
        error_per_s = level.deviation_per_s * np.sqrt(
            np.minimum(1.0, _CORRELATED_BLOCKS * (1.0 / level.readings + 1.0 / ahead))
        )
        # A rate cannot be negative, however uncertain it is.
        low_per_s = np.maximum(level.mean_per_s - z * error_per_s, level.mean_per_s / 4)
        high_s = (work + z * unsure) / low_per_s
        return Remaining(expected_s, np.maximum(high_s, expected_s), work / level.worst_per_s)

    def slowness(self, now_s: float) -> float:
        """Return how many times slower than declared the slowest stretch so far was; at least 1."""
        return max(1.0, self._cpus / self._level(now_s).worst_per_s)

    # What stages cost.

    def _costs_s(self) -> FloatArray:
        return np.asarray(self._declared_s * np.exp(self._log_factor))

    def _learn_shares(self, units: FloatArray, finished: Iterable[tuple[int, Finished]]) -> None:
        """Move the cost of each stage beside the others towards what a piece of work shows.

        A Kalman filter of the logarithm of the cost. The piece's own pace is taken out first, so a machine
        that is slower for all stages changes none of them.
        """
        expected_s = units * self._costs_s()
        seen = [(k, done.busy_s) for k, done in finished if done.busy_s > 0 and expected_s[k] > 0]
        if not seen:
            return
        pace = sum(busy_s for _, busy_s in seen) / sum(float(expected_s[k]) for k, _ in seen)
        for k, busy_s in seen:
            surprise = math.log(busy_s / (float(expected_s[k]) * pace))
            gain = self._variance[k] / (self._variance[k] + _PIECE_SPREAD**2)
            self._log_factor[k] += gain * max(-_MAX_SURPRISE, min(_MAX_SURPRISE, surprise))
            self._variance[k] = max((1 - gain) * self._variance[k], _LEAST_SPREAD**2)

    # What the machine does in a second.

    def _close_block(self, now_s: float) -> None:
        if self._blocks == len(self._walls_s):
            self._units = np.concatenate([self._units, np.zeros_like(self._units)])
            self._walls_s = np.concatenate([self._walls_s, np.zeros_like(self._walls_s)])
        self._units[self._blocks] = self._open
        self._walls_s[self._blocks] = now_s - self._opened_s
        self._blocks += 1
        self._open = np.zeros_like(self._open)
        self._opened_s = now_s

    def _level(self, now_s: float) -> _Level:
        if self._known is None or self._known[0] != now_s:
            self._known = (now_s, self._read_level(now_s))
        return self._known[1]

    def _read_level(self, now_s: float) -> _Level:
        costs_s = self._costs_s()
        n = self._blocks
        work = np.append(self._units[:n] @ costs_s, self._open @ costs_s)
        walls_s = np.append(self._walls_s[:n], now_s - self._opened_s)
        # A block that was just opened holds less than a piece of work and says nothing yet.
        if walls_s[-1] < self._block_s:
            work, walls_s = work[:-1], walls_s[:-1]
        prior_s = _PRIOR_BLOCKS * self._block_s
        if not len(work):
            return _Level(self._cpus, _PRIOR_SPREAD * self._cpus, _PRIOR_BLOCKS, self._cpus)
        age_s = walls_s[::-1].cumsum()[::-1] - walls_s
        half_life_s = max(_HALF_LIFE_BLOCKS * self._block_s, float(walls_s.sum()) / 2)
        weight = np.exp2(-age_s / half_life_s)
        weighed_s = weight * walls_s
        total_s = float(weighed_s.sum()) + prior_s
        mean = (float(weight @ work) + prior_s * self._cpus) / total_s
        squares = float(weighed_s @ np.square(work / walls_s - mean)) + prior_s * (_PRIOR_SPREAD * mean) ** 2
        stretch_work, stretch_s = _stretches(work), _stretches(walls_s)
        # A block at the mean rate goes with every stretch, or a stall at the start would say "never".
        rates = (stretch_work + self._block_s * mean) / (stretch_s + self._block_s)
        return _Level(
            mean_per_s=mean,
            deviation_per_s=math.sqrt(squares / total_s),
            readings=total_s / self._block_s,
            worst_per_s=min(mean, float(rates.min())),
        )


def _stretches(values: FloatArray) -> FloatArray:
    """Return the sums over each `_STRETCH_BLOCKS` neighbours, or the sum of all where there are fewer."""
    total = np.concatenate([[0.0], values.cumsum()])
    length = min(_STRETCH_BLOCKS, len(values))
    return np.asarray(total[length:] - total[:-length])
