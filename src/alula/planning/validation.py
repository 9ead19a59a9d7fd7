"""What is known of the members before a job: predictions where the truth is known, and their judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from alula.accuracy import Metric
from alula.errors import UsageError

__all__ = ["Blend", "Finish", "IntArray", "Validation", "halves", "weighted_mean"]

Array: TypeAlias = npt.NDArray[Any]
IntArray: TypeAlias = npt.NDArray[np.int64]
Blend: TypeAlias = Callable[[Sequence[Array], Sequence[float]], Array]
Finish: TypeAlias = Callable[[str, Array], Array]


def weighted_mean(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    """Return the weighted mean of arrays of one shape.

    >>> weighted_mean([np.array([1.0]), np.array([4.0])], [2, 1]).tolist()
    [2.0]
    """
    total = np.zeros(arrays[0].shape, np.float64)
    for array, weight in zip(arrays, weights, strict=True):
        total += weight * array
    return np.asarray(total / sum(weights))


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Validated or out-of-fold predictions of every member, and what they are judged by.

    Attributes:
        metric: judges predictions.
        y_true: labels, shape (n,) or (n, c).
        predictions: by overlap, then by member: scores, shape (n, c), without NaN; with `finish` any
            number of rows, the same for all members at an overlap.
        blend: of members' scores with weights; the weighted mean if not given. What blends in another scale
            (logits, squares, ranks) is a callable as well.
        finish: of an overlap's name and blended scores: the scores of the n rows that are judged. For steps
            after the blend, and where there are more windows than rows.
        groups: the recording of each row, shape (n,), so that no recording is on both sides of a split; each
            row is its own where not given.

    Raises:
        UsageError: rows or members do not agree.
    """

    metric: Metric
    y_true: Array
    predictions: Mapping[str, Mapping[str, Array]]
    blend: Blend = weighted_mean
    finish: Finish | None = None
    groups: Array | None = None

    def __post_init__(self) -> None:
        n = len(self.y_true)
        shapes = {scores.shape for members in self.predictions.values() for scores in members.values()}
        if self.finish is not None:
            each = [{scores.shape for scores in members.values()} for members in self.predictions.values()]
            agree = all(len(one) == 1 for one in each)
        else:
            agree = len(shapes) == 1 and next(iter(shapes))[:1] == (n,)
        if not agree or n == 0:
            raise UsageError(
                f"Got predictions of shapes {', '.join(map(str, sorted(shapes))) or 'none'} for {n} labelled "
                "rows; expected one shape with a row for each. Give the same rows to every member."
            )
        sets = {frozenset(members) for members in self.predictions.values()}
        if len(sets) != 1:
            raise UsageError(
                "Got predictions of different members at different overlaps; expected every member at each."
            )
        if self.groups is not None and len(self.groups) != n:
            raise UsageError(f"Got {len(self.groups)} groups for {n} rows; expected one for each.")

    @property
    def recordings(self) -> int:
        """How many recordings the rows are of."""
        return len(self.y_true) if self.groups is None else len(np.unique(self.groups))

    def blended(self, overlap: str, counts: Mapping[str, int]) -> Array:
        """Return the scores of an ensemble, shape (n, c)."""
        known = self.predictions[overlap]
        scores = self.blend([known[name] for name in counts], [float(count) for count in counts.values()])
        return scores if self.finish is None else self.finish(overlap, scores)

    def judged(self, scores: Array, rows: IntArray | None = None) -> float:
        """Return how good scores are on some rows or on all; higher is better, whatever the metric.

        Raises:
            AccuracyError: the metric is not defined on these rows.
        """
        if rows is None:
            value = self.metric.value(self.y_true, scores)
        else:
            value = self.metric.value(self.y_true[rows], scores[rows])
        return value if self.metric.higher_is_better else -value

    def score(self, overlap: str, counts: Mapping[str, int]) -> float:
        """Return how good an ensemble is on all rows; higher is better.

        Raises:
            AccuracyError: the metric is not defined.
        """
        return self.judged(self.blended(overlap, counts))


def halves(validation: Validation, *, seed: int = 0) -> tuple[IntArray, IntArray]:
    """Return two sets of rows of about the same size that share no recording.

    Groups are dealt to the smaller half, the largest first; ties and order are drawn.

    Raises:
        UsageError: there is only one recording.
    """
    n = len(validation.y_true)
    groups = np.arange(n) if validation.groups is None else validation.groups
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise UsageError(
            "Got rows of one recording; expected at least two, to learn on one and judge on another."
        )
    drawn = np.random.default_rng(seed).permutation(len(sizes))
    order = drawn[np.argsort(-sizes[drawn], kind="stable")]
    side = np.zeros(len(sizes), np.int64)
    filled = [0, 0]
    for group in order:
        smaller = int(filled[1] < filled[0])
        side[group] = smaller
        filled[smaller] += int(sizes[group])
    sides = side[group_of.reshape(-1)]
    rows = np.arange(n, dtype=np.int64)
    return rows[sides == 0], rows[sides == 1]
