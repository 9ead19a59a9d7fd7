"""Steps over all rows of one file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, assert_never

import numpy as np
import numpy.typing as npt

from alula.core import CutOff, OverlapMean, Smoothing, Step, TopScaling
from alula.errors import UsageError

__all__ = ["Track", "apply_steps", "needs_times"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

# Times are sums of binary fractions: 12 windows of 0.1 s end at 1.2000000000000002 s.
_TIME_DIGITS = 6


class Track(NamedTuple):
    """The scores of one file, in order of time.

    Attributes:
        start_s: where each row begins, shape (n,); None for files without times.
        end_s: where it ends, likewise.
        scores: shape (n, c), float32.
    """

    start_s: Float64 | None
    end_s: Float64 | None
    scores: Float32


def needs_times(steps: Sequence[Step]) -> bool:
    """Return whether any of the steps is about rows that follow each other in time.

    >>> needs_times([CutOff(below=0.1)]), needs_times([Smoothing(kernel=(0.1, 0.8, 0.1))])
    (False, True)
    """
    return any(isinstance(step, OverlapMean | Smoothing) for step in steps)


def apply_steps(steps: Sequence[Step], track: Track) -> Track:
    """Return the rows of one file after all steps, in their order; the given ones stay as they are.

    Args:
        steps: what to do; their docstrings in `alula.core` have the formulas.
        track: at least one row.

    Raises:
        UsageError: a step needs times and there are none.

    >>> rows = Track(None, None, np.array([[0.05], [0.04]], np.float32))
    >>> apply_steps([CutOff(below=0.1)], rows).scores.tolist()
    [[0.02500000037252903], [0.019999999552965164]]
    """
    for step in steps:
        match step:
            case Smoothing():
                track = track._replace(scores=_smoothed(track.scores, step.kernel))
            case OverlapMean():
                track = _segments(track, step.segment_s)
            case TopScaling():
                track = track._replace(scores=track.scores * _top_mean(track.scores, step.k))
            case CutOff():
                unlikely = track.scores.max(axis=0) < step.below
                factors = np.where(unlikely, np.float32(step.factor), np.float32(1.0))
                track = track._replace(scores=track.scores * factors)
            case _:
                assert_never(step)
    return track


def _smoothed(scores: Float32, kernel: Sequence[float]) -> Float32:
    n, reach = len(scores), len(kernel) // 2
    total = np.zeros_like(scores)
    weight = np.zeros((n, 1), np.float32)
    for offset, tap in enumerate(kernel, -reach):
        first, last = max(0, -offset), min(n, n - offset)
        if first < last:
            total[first:last] += np.float32(tap) * scores[first + offset : last + offset]
            weight[first:last] += np.float32(tap)
    total /= weight
    return total


def _top_mean(scores: Float32, k: int) -> Float32:
    n = len(scores)
    highest = scores if k >= n else np.partition(scores, n - k, axis=0)[n - k :]
    return np.asarray(highest.mean(axis=0), dtype=np.float32)


def _segments(track: Track, segment_s: float) -> Track:
    if track.start_s is None or track.end_s is None:
        raise UsageError("The step `overlap` needs recordings; images and arrays have no times.")
    start_s, end_s = np.round(track.start_s, _TIME_DIGITS), np.round(track.end_s, _TIME_DIGITS)
    least_s = 10.0**-_TIME_DIGITS
    first = math.floor((start_s[0] + least_s) / segment_s)
    count = max(1, math.ceil((end_s[-1] - least_s) / segment_s) - first)
    total = np.zeros((count, track.scores.shape[1]), np.float32)
    weight = np.zeros(count)
    earliest = np.floor(start_s / segment_s).astype(np.intp)
    # A row reaches over at most this many segments; each turn takes one of them from every row.
    for turn in range(math.ceil((end_s - start_s).max() / segment_s) + 1):
        segment = earliest + turn
        overlap_s = np.minimum(end_s, (segment + 1) * segment_s) - np.maximum(start_s, segment * segment_s)
        rows = np.flatnonzero((overlap_s > least_s) & (segment >= first) & (segment < first + count))
        if not len(rows):
            continue
        # Rows are in order of time, so those of one segment are neighbours.
        place = segment[rows] - first
        begins = np.flatnonzero(np.diff(place, prepend=-1))
        shares = overlap_s[rows]
        terms = track.scores[rows] * shares[:, None].astype(np.float32)
        total[place[begins]] += np.add.reduceat(terms, begins, axis=0)
        weight[place[begins]] += np.add.reduceat(shares, begins)
    filled = np.flatnonzero(weight)
    means = total[filled] / weight[filled, None].astype(np.float32)
    index = first + filled.astype(np.float64)
    return Track(
        start_s=index * segment_s,
        end_s=(index + 1) * segment_s,
        scores=np.asarray(means, dtype=np.float32),
    )
