"""Medians, ratios with intervals, and doubts: pure functions of the rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, median
from typing import Any

import numpy as np
import numpy.typing as npt

from alula.core import Ratio, Throughput
from alula.errors import MeasurementError
from alula.measure.rounds import Round

__all__ = ["MIN_ROUNDS", "ratio", "stability_warnings", "throughput", "trend"]

MIN_ROUNDS = 6
"""Fewer rounds cannot give a 95 % interval of a median.

Even the widest interval that n rounds offer, from the smallest to the largest, misses the true median
when all n lie on one side of it: with chance 2 / 2**n, which is 6.2 % for 5 rounds and 3.1 % for 6.
"""

_REPLICATES = 9_999
# Spread of undisturbed rounds on a shared two-core machine stays below this; see `stability_warnings`.
_UNSTABLE = 0.10
# With fewer calls per round, the wait for the last instance is a large part of the round.
_FEW_CALLS = 3


def throughput(rounds: Sequence[Round], *, warnings: Sequence[str] = ()) -> Throughput:
    """Return the median samples per second over rounds, with each round's.

    Raises:
        MeasurementError: there are no rounds.
    """
    if not rounds:
        raise MeasurementError("Got no rounds to take a throughput from; expected at least one.")
    rates = tuple(one.per_s for one in rounds)
    return Throughput(per_s=median(rates), rounds_per_s=rates, warnings=tuple(warnings))


def ratio(
    numerator_per_s: Sequence[float],
    denominator_per_s: Sequence[float],
    *,
    paired: bool = True,
    seed: int = 0,
) -> Ratio:
    """Return how many times faster the numerator is, with a 95 % bootstrap interval.

    Args:
        numerator_per_s: samples per second of each round of one side.
        denominator_per_s: of the other side.
        paired: rounds i of both sides were neighbours in time (interleaved). The result is then the
            median of the ratios round by round, in which drift of the machine cancels; otherwise it
            is the ratio of the two medians.
        seed: of the resampling.

    The interval is infinite, [0, inf], below `MIN_ROUNDS` rounds. From there on it is the expanded
    percentile interval (Hesterberg 2015, The American Statistician 69, section 5.3): the plain one is
    too narrow for a handful of rounds (it holds the true median of 7 rounds in 87 % of cases, not in
    95), so its percentiles are moved outwards by what Student's t and the n - 1 of the variance add.
    For a median this comes to nearly the exact interval between two order statistics.

    Raises:
        MeasurementError: a side is empty or not positive, or paired sides differ in length.

    >>> ratio([30.0, 31.0, 29.0], [10.0, 10.0, 10.0])
    Ratio(median=3.0, low=0.0, high=inf)
    """
    top, bottom = _rates(numerator_per_s), _rates(denominator_per_s)
    if paired and len(top) != len(bottom):
        raise MeasurementError(
            f"Got {len(top)} and {len(bottom)} rounds to pair; expected equally many. "
            "Use paired=False for rounds that were not interleaved."
        )
    generator = np.random.default_rng(seed)
    if paired:
        quotients = top / bottom
        middle = float(np.median(quotients))
        replicates = np.median(_resampled(quotients, generator), axis=1)
    else:
        middle = float(np.median(top) / np.median(bottom))
        replicates = np.median(_resampled(top, generator), axis=1) / np.median(
            _resampled(bottom, generator), axis=1
        )
    n = min(len(top), len(bottom))
    if n < MIN_ROUNDS:
        return Ratio(middle, 0.0, math.inf)
    degrees = n - 1 if paired else len(top) + len(bottom) - 2
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * _student_t(degrees))
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Ratio(middle, float(low), float(high))


def stability_warnings(rounds: Sequence[Round], *, asked: int | None = None) -> tuple[str, ...]:
    """Return what makes rounds doubtful, in words; nothing when they look sound.

    Looks for a spread (median absolute deviation) above 10 % of the median, a trend from first to
    last (Mann 1945's test at 5 %, and more than 10 % by the slope of Sen 1968), fewer rounds than
    were asked for, and rounds that hold fewer than 3 calls per instance.

    Args:
        rounds: in the order taken.
        asked: how many were asked for.

    Raises:
        MeasurementError: there are no rounds.
    """
    if not rounds:
        raise MeasurementError("Got no rounds to judge; expected at least one.")
    rates = np.array([one.per_s for one in rounds])
    middle = float(np.median(rates))
    found = []
    spread = float(np.median(np.abs(rates - middle))) / middle
    if spread > _UNSTABLE:
        found.append(
            f"unstable: rounds differ from their median by {spread:.0%} (median absolute deviation); "
            "something else uses this machine"
        )
    change = trend(rates) / middle
    if abs(change) > _UNSTABLE:
        found.append(
            f"throughput {'rose' if change > 0 else 'fell'} over the rounds by {abs(change):.0%} of its "
            "median: a warm-up that was too short, throttling, or another load"
        )
    if asked is not None and len(rounds) < asked:
        found.append(f"only {len(rounds)} of {asked} rounds were taken")
    calls = median(len(one.calls) / one.instances for one in rounds)
    if calls < _FEW_CALLS:
        found.append(
            f"a round holds only {calls:g} calls per instance: the wait for the last one counts, "
            "so the throughput is a low estimate"
        )
    return tuple(found)


def _rates(per_s: Sequence[float]) -> npt.NDArray[np.float64]:
    rates = np.asarray(per_s, dtype=np.float64)
    if not (rates.size and np.all(np.isfinite(rates)) and np.all(rates > 0)):
        raise MeasurementError(
            f"Got rates {list(per_s)} for a ratio; expected at least one, all finite and above 0."
        )
    return rates


def _resampled(values: npt.NDArray[np.float64], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    drawn: npt.NDArray[np.float64] = values[
        generator.integers(0, len(values), size=(_REPLICATES, len(values)))
    ]
    return drawn


def _student_t(degrees: int) -> float:
    """Return the 97.5 % point of Student's t, within 0.2 % from 5 degrees of freedom on.

    Expansion in 1/degrees around the normal point: Abramowitz & Stegun 1964, 26.7.5.
    """
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / float(degrees) ** power for power, term in enumerate(terms))


def trend(values: npt.NDArray[Any]) -> float:
    """Return the change from first to last value by the median slope; 0 where chance explains it.

    The test is that of Mann 1945 at 5 %, the slope that of Sen 1968.

    Args:
        values: in the order taken; shape (n,).
    """
    n = len(values)
    first, second = np.triu_indices(n, k=1)
    differences = values[second] - values[first]
    score = float(np.sign(differences).sum())
    deviation = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    # One step towards zero corrects for the score moving in steps of two.
    if abs(score) - 1 <= NormalDist().inv_cdf(0.975) * deviation:
        return 0.0
    return float(np.median(differences / (second - first))) * (n - 1)
