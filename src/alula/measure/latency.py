"""The single-stream scenario: one sample after the other, and percentiles that say how sure they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from alula.errors import MeasurementError
from alula.measure.clock import Clock, SystemClock
from alula.measure.statistics import trend

__all__ = [
    "BLOCKS",
    "MAX_QUERIES",
    "MIN_QUERIES",
    "Latency",
    "Percentile",
    "drift_of",
    "effective_count",
    "joined_latency",
    "percentile_with_interval",
    "percentiles_of",
    "queries_needed",
    "single_stream",
]

MAX_QUERIES = 1_000_000
"""No measurement keeps more times than this: 32 MB as Python numbers."""

MIN_QUERIES = 368
"""The fewest that give p99 an interval."""

BLOCKS = 20
"""Parts of a measurement, in the order taken, that are compared to see clusters and drift."""

# Half of what a 95 % interval may miss, on either side.
_TAIL = 0.025
# What the variance of 20 block counts of independent queries exceeds by chance, over its expectation, in
# one of 20 cases: the 95 % point of chi-squared with 19 degrees of freedom, over 19.
_CLUSTERED = 1.587
_DRIFTED = 0.10


class Percentile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A percentile of measured times with its 95 % interval.

    Attributes:
        q: the share of queries that took at most this long, above 0 and below 1.
        value_s: the smallest measured time that at least this share did not exceed (nearest rank).
        low_s: lower end of the interval; None: too few queries for one.
        high_s: upper end; None: too few queries for one (see `queries_needed`).
    """

    q: float
    value_s: float
    low_s: float | None
    high_s: float | None

    def __str__(self) -> str:
        low, high = ("?" if end_s is None else f"{end_s * 1e3:.4g}" for end_s in (self.low_s, self.high_s))
        return f"p{self.q * 100:g} {self.value_s * 1e3:.4g} ms [{low}, {high}]"


class Latency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long one sample takes when it is alone, from the raw times kept beside it.

    Attributes:
        p50: half of the queries were at least as fast.
        p90: what MLPerf reports for this scenario.
        p99: the slow end.
        n: queries.
        seconds: from the start of the first query to the end of the last.
        times_s: of each query, in order.
        warnings: what makes the result doubtful, in words.
    """

    p50: Percentile
    p90: Percentile
    p99: Percentile
    n: int
    seconds: float
    times_s: tuple[float, ...]
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.p50}, {self.p90}, {self.p99}; {self.n:,} queries, {self.seconds:.0f} s"


def queries_needed(q: float) -> int:
    """Return how many queries the 95 % interval of a percentile takes.

    With fewer, even the slowest of all (the fastest, below the median) may well lie on the wrong side.

    Raises:
        MeasurementError: `q` is not between 0 and 1.

    >>> queries_needed(0.5), queries_needed(0.9), queries_needed(0.99)
    (6, 36, 368)
    """
    _check_share(q)
    return math.ceil(math.log(_TAIL) / math.log(max(q, 1 - q)))


def percentile_with_interval(
    times_s: Sequence[float] | npt.NDArray[np.float64], q: float, *, effective_n: int | None = None
) -> Percentile:
    """Return a percentile with the 95 % interval that holds for any distribution.

    The interval lies between two order statistics, whose ranks are binomial quantiles such that each
    end misses the true percentile in at most 2.5 % of cases (Hahn & Meeker 1991, Statistical Intervals,
    section 5.2). Nothing is assumed of the times but that they are independent.

    Args:
        times_s: of each query.
        q: above 0 and below 1.
        effective_n: as how many independent queries they count (`effective_count`); all, if None. The
            ranks are then those of so many clusters of equal size, as in Woodruff 1952, Journal of the
            American Statistical Association 47.

    Raises:
        MeasurementError: there are no times, a time is negative or not finite, or `q` or `effective_n` is
            out of range.

    >>> percentile_with_interval([0.4, 0.1, 0.3, 0.2, 0.5, 0.6], 0.5)
    Percentile(q=0.5, value_s=0.3, low_s=0.1, high_s=0.6)
    >>> percentile_with_interval([0.4, 0.1, 0.3], 0.99).high_s is None
    True
    """
    _check_share(q)
    ordered = np.sort(_checked(times_s))
    n = len(ordered)
    counted = n if effective_n is None else effective_n
    if not 1 <= counted <= n:
        raise MeasurementError(f"{n} queries cannot count as {counted}; expected 1 to {n}.")
    low_rank = _lower_rank(counted, q)
    high_rank = counted + 1 - _lower_rank(counted, 1 - q)
    # A rank among clusters is taken outwards: the low end at its cluster's first query, the high end at
    # its cluster's last.
    low_at = (low_rank - 1) * n // counted
    high_at = -(-high_rank * n // counted) - 1
    return Percentile(
        q=q,
        value_s=float(ordered[_nearest_rank(n, q) - 1]),
        low_s=float(ordered[low_at]) if low_rank >= 1 else None,
        high_s=float(ordered[high_at]) if high_rank <= counted else None,
    )


def effective_count(times_s: Sequence[float] | npt.NDArray[np.float64], threshold_s: float) -> int:
    """Return as how many independent queries these count when it is asked how many are slower than that.

    Slow queries come in clusters: all that wait in one queue are slow together, and so are all that a
    busy neighbour disturbs. The times, in the order taken, are cut into 20 blocks. If the number of slow
    ones varies from block to block by more than chance explains (test of dispersion at 5 %), the count is
    divided by that excess, the design effect of Kish 1965. Clusters longer than a block are not seen
    whole, so choose a duration of many of them.

    Args:
        times_s: of each query, in the order taken.
        threshold_s: what is slow.

    Raises:
        MeasurementError: there are no times, or a time is negative or not finite.

    >>> effective_count([0.1] * 75 + [0.9] * 25, 0.5)
    19
    """
    # Finer differences than a nanosecond are rounding.
    times = np.round(_checked(times_s), 9)
    threshold_s = round(threshold_s, 9)
    n = len(times)
    if n < 2 * BLOCKS:
        return n
    # Times may be equal to the threshold; then the slow ones are either those above it or those from it on.
    excess = max(_excess(times > threshold_s), _excess(times >= threshold_s))
    return n if excess <= _CLUSTERED else max(1, int(n / excess))


def percentiles_of(
    times_s: npt.NDArray[np.float64],
) -> tuple[tuple[Percentile, Percentile, Percentile], list[str]]:
    """Return p50, p90 and p99 of times in the order taken, and why their intervals are wide or missing."""
    found, doubts = [], []
    n = len(times_s)
    for q in (0.5, 0.9, 0.99):
        counted = effective_count(times_s, percentile_with_interval(times_s, q).value_s)
        one = percentile_with_interval(times_s, q, effective_n=counted)
        found.append(one)
        why = "" if counted == n else f" that count as {counted}, because slow ones come in clusters"
        if one.high_s is None or one.low_s is None:
            doubts.append(
                f"the 95 % interval of p{q * 100:g} takes {queries_needed(q)} independent queries; "
                f"there were {n}{why}"
            )
        elif why:
            doubts.append(f"the interval of p{q * 100:g} is that of {n} queries{why}")
    return (found[0], found[1], found[2]), doubts


def drift_of(times_s: npt.NDArray[np.float64]) -> float:
    """Return the change of the median time from first to last block, over the median; 0 if by chance."""
    if len(times_s) < 2 * BLOCKS:
        return 0.0
    medians = np.array([np.median(block) for block in np.array_split(times_s, BLOCKS)])
    middle = float(np.median(medians))
    return trend(medians) / middle if middle > 0 else 0.0


def single_stream(
    run: Callable[[], object],
    *,
    seconds: float,
    min_queries: int = MIN_QUERIES,
    max_s: float | None = None,
    clock: Clock | None = None,
) -> Latency:
    """Call `run` in this thread, each call as soon as the last ended, and return how long calls take.

    The rules are those of MLPerf's loadgen for its scenario of this name (Reddi et al. 2020, MLPerf
    Inference Benchmark), with shorter runs: it ends when both `seconds` are over and `min_queries` are
    done. Warm up before.

    Args:
        run: computes one sample.
        seconds: at least so long.
        min_queries: at least so many.
        max_s: but no call starts later than this, except the first. No more than `MAX_QUERIES` are made.
        clock: tells the time.

    Raises:
        Exception: the one that `run` raised.
        MeasurementError: the clock did not move.

    >>> from alula.measure.fake import ScriptedClock
    >>> clock = ScriptedClock()
    >>> found = single_stream(lambda: clock.advance(0.25), seconds=1.0, min_queries=6, clock=clock)
    >>> found.n, found.seconds, str(found.p50)
    (6, 1.5, 'p50 250 ms [250, 250]')
    """
    used: Clock = SystemClock() if clock is None else clock
    times: list[float] = []
    start_s = now_s = used.monotonic()
    while len(times) < MAX_QUERIES:
        spent_s = now_s - start_s
        if times and (
            (spent_s >= seconds and len(times) >= min_queries) or (max_s is not None and spent_s >= max_s)
        ):
            break
        run()
        before_s, now_s = now_s, used.monotonic()
        times.append(now_s - before_s)
    if now_s <= start_s:
        raise MeasurementError(
            f"{len(times)} queries took {now_s - start_s} s by the clock; expected more than 0. "
            "Give each call more work than the clock can resolve."
        )
    return _latency(times, seconds=now_s - start_s, min_queries=min_queries)


def joined_latency(parts: Sequence[Latency], *, min_queries: int = MIN_QUERIES) -> Latency:
    """Return the latency of one model from several measurements of it, between which others took their turn.

    Args:
        parts: in the order taken, at least one.
        min_queries: of all together; fewer are warned of.

    >>> from alula.measure.fake import ScriptedClock
    >>> clock = ScriptedClock()
    >>> part = single_stream(lambda: clock.advance(0.25), seconds=1.0, min_queries=3, clock=clock)
    >>> both = joined_latency([part, part], min_queries=6)
    >>> part.n, both.n, both.seconds
    (4, 8, 2.0)
    """
    times = [time_s for part in parts for time_s in part.times_s]
    return _latency(times, seconds=sum(part.seconds for part in parts), min_queries=min_queries)


def _latency(times: Sequence[float], *, seconds: float, min_queries: int) -> Latency:
    ordered = np.array(times)
    (p50, p90, p99), doubts = percentiles_of(ordered)
    if len(times) < min_queries:
        doubts.append(f"only {len(times)} of {min_queries} queries were made")
    drift = drift_of(ordered)
    if abs(drift) > _DRIFTED:
        doubts.append(
            f"latency {'rose' if drift > 0 else 'fell'} over the queries by {abs(drift):.0%} of its "
            "median: a warm-up that was too short, throttling, or another load"
        )
    return Latency(
        p50=p50,
        p90=p90,
        p99=p99,
        n=len(times),
        seconds=seconds,
        times_s=tuple(times),
        warnings=tuple(doubts),
    )


def _check_share(q: float) -> None:
    if not 0 < q < 1:
        raise MeasurementError(f"A percentile is a share above 0 and below 1; got {q}.")


def _checked(times_s: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    times: npt.NDArray[Any] = np.asarray(times_s, dtype=np.float64)
    if not (times.size and np.all(np.isfinite(times)) and np.all(times >= 0)):
        raise MeasurementError(
            f"Got {times.size} times to take a percentile of; expected at least one, all finite and not "
            "negative."
        )
    return times


def _nearest_rank(n: int, q: float) -> int:
    """Return ceil(n q), in which the rounding of 0.07 * 100 to 7.000000000000001 adds no rank."""
    return max(1, math.ceil(n * q - 1e-9))


def _excess(slow: npt.NDArray[np.bool_]) -> float:
    """Return the variance of the count per block, over that of independent queries; 0 if all are alike."""
    share = float(slow.mean())
    if share in (0.0, 1.0):
        return 0.0
    counts = np.array([block.sum() for block in np.array_split(slow, BLOCKS)])
    return float(counts.var(ddof=1)) / (len(slow) / BLOCKS * share * (1 - share))


def _lower_rank(n: int, q: float) -> int:
    """Return the largest rank whose order statistic exceeds the percentile in at most 2.5 % of cases.

    0 where there is none. The statistic of rank l exceeds it when fewer than l of n times lie below it,
    of which the number is binomial.
    """
    factorials = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    below = np.arange(n + 1)
    logarithms = factorials[n] - factorials - factorials[::-1] + below * math.log(q)
    chances = np.exp(logarithms + (n - below) * math.log1p(-q))
    return int(np.searchsorted(np.cumsum(chances), _TAIL, side="right"))
