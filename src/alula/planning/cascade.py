"""A cascade: a cheap member scores every window, the others only those where it is uncertain.

A window is uncertain where the cheap score of any class lies in that class's band. The band reaches from the
scores below which hardly any positive of the class lies to those above which hardly any negative lies, so
outside it the cheap member alone orders the class rightly. How much "hardly any" is, is one number per class,
raised as long as the score stays within the limit.

Bands learned on some recordings look better on these than on others. What a cascade is worth is therefore
judged on the half of the recordings that it was not learned on, both ways round (`judge_cascade`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from alula.accuracy import Metric
from alula.core import in_band
from alula.errors import UsageError
from alula.planning.validation import Validation, halves

__all__ = [
    "LEARNED_SHARES",
    "NARROWED_CLASSES",
    "TAILS",
    "Cascade",
    "JudgedCascade",
    "bands",
    "judge_cascade",
    "learn_cascade",
]

Array: TypeAlias = npt.NDArray[Any]
FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
IntArray: TypeAlias = npt.NDArray[np.int64]

TAILS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
"""Shares of a class's positives below its band, and of its negatives above it, that are tried."""

NARROWED_CLASSES = 48
"""Classes whose bands are narrowed one by one: those that make most windows uncertain."""

LEARNED_SHARES = (0.5, 1.0)
"""Shares of the limit that are tried to be spent on the recordings learned on.

With all of it far fewer windows are uncertain, but on other recordings the limit may not hold."""


class Cascade(msgspec.Struct, frozen=True, kw_only=True):
    """When the expensive members are asked.

    Attributes:
        cheap: the member that scores every window.
        lower: by class, the lower end of its band; shape (c,).
        upper: by class, its upper end; below the lower end where no score is uncertain.
    """

    cheap: str
    lower: tuple[float, ...]
    upper: tuple[float, ...]

    def uncertain(self, scores: Array) -> BoolArray:
        """Return which windows the expensive members are needed for, shape (n,).

        Args:
            scores: of the cheap member, shape (n, c).

        Raises:
            UsageError: the classes are not those that were learned.

        >>> cascade = Cascade(cheap="a", lower=(0.2, 0.2), upper=(0.8, 0.1))
        >>> cascade.uncertain(np.array([[0.5, 0.0], [0.9, 0.9]]))
        array([ True, False])
        """
        if scores.ndim != 2 or scores.shape[1] != len(self.lower):
            raise UsageError(
                f"A cascade of {len(self.lower)} classes got scores of shape {scores.shape}; expected "
                f"(n, {len(self.lower)})."
            )
        inside = in_band(scores, np.array(self.lower), np.array(self.upper))
        return np.asarray(inside.any(axis=1))


class JudgedCascade(msgspec.Struct, frozen=True, kw_only=True):
    """A cascade and what it is worth on recordings that it was not learned on.

    Attributes:
        cascade: learned on all rows.
        share: of windows that are uncertain, judged.
        share_spread: relative standard deviation of that share.
        score: judged score; higher is better.
        full_score: score, on the same rows, of the expensive members on every window.
        learned_score: score on the rows it was learned on, which flatters.
    """

    cascade: Cascade
    share: float
    share_spread: float
    score: float
    full_score: float
    learned_score: float

    @property
    def drop(self) -> float:
        """Judged loss of score beside the expensive members on every window."""
        return self.full_score - self.score


def bands(cheap: Array, truth: BoolArray, tail: float) -> tuple[FloatArray, FloatArray]:
    """Return the ends of each class's band, shapes (c,).

    A class without positives or without negatives gets the band of all classes together: nothing is known of
    its own.

    Args:
        cheap: scores, shape (n, c).
        truth: which classes a row has, shape (n, c); some and not all of its values are true.
        tail: the share of positives below the band and of negatives above it.
    """
    ends = np.empty((2, cheap.shape[1]))
    known = _judgeable(truth)
    for k in np.flatnonzero(known):
        ends[:, k] = _band(cheap[:, k], truth[:, k], tail)
    if not known.all():
        ends[:, ~known] = np.array(_band(cheap, truth, tail))[:, None]
    return ends[0], ends[1]


def _judgeable(truth: BoolArray) -> BoolArray:
    """Return which classes have positives and negatives, shape (c,)."""
    return np.asarray(truth.any(axis=0) & ~truth.all(axis=0))


def _band(cheap: Array, truth: BoolArray, tail: float) -> tuple[float, float]:
    return float(np.quantile(cheap[truth], tail)), float(np.quantile(cheap[~truth], 1 - tail))


def learn_cascade(
    cheap_name: str,
    cheap: Array,
    full: Array,
    *,
    y_true: Array,
    metric: Metric,
    max_drop: float,
    narrowed: int = NARROWED_CLASSES,
) -> Cascade | None:
    """Return the cascade with the fewest uncertain windows whose score on these rows stays within the limit.

    First one tail for all classes, the best of `TAILS`; then, for the classes whose bands hold most windows,
    larger ones as long as the limit holds. None where no tail keeps it.

    Args:
        cheap_name: the member that scores every window.
        cheap: its scores, shape (n, c).
        full: scores of the whole ensemble, which an uncertain window gets; shape (n, c).
        y_true: labels, shape (n,) or (n, c).
        metric: judges scores.
        max_drop: largest loss beside `full`, in units of the metric.
        narrowed: so many classes get bands of their own, those that make most windows uncertain, of the ones
            with positives and negatives on these rows.

    Raises:
        AccuracyError: the metric is not defined on these rows.
    """
    truth = _classes(y_true, cheap.shape[1])
    if truth.all() or not truth.any():
        return None
    sign = 1.0 if metric.higher_is_better else -1.0
    least = sign * metric.value(y_true, full) - max_drop

    def holds(uncertain: BoolArray) -> bool:
        return sign * metric.value(y_true, np.where(uncertain[:, None], full, cheap)) >= least

    found: tuple[int, float] | None = None
    for tail in TAILS:
        inside = np.asarray(in_band(cheap, *bands(cheap, truth, tail)).any(axis=1))
        count = int(inside.sum())
        if (found is None or count < found[0]) and holds(inside):
            found = (count, tail)
    if found is None:
        return None
    lower, upper = bands(cheap, truth, found[1])
    inside = in_band(cheap, lower, upper)
    widest = np.argsort(-inside.sum(axis=0), kind="stable")
    # Of the others no row could tell how narrow is too narrow.
    for k in widest[_judgeable(truth)[widest]][:narrowed]:
        others = np.asarray(np.delete(inside, k, axis=1).any(axis=1))
        for tail in TAILS[TAILS.index(found[1]) + 1 :]:
            low, high = _band(cheap[:, k], truth[:, k], tail)
            column = in_band(cheap[:, k], low, high)
            if not holds(others | column):
                break
            if column.sum() < inside[:, k].sum():
                inside[:, k], lower[k], upper[k] = column, low, high
    return Cascade(cheap=cheap_name, lower=tuple(map(float, lower)), upper=tuple(map(float, upper)))


def judge_cascade(
    validation: Validation,
    *,
    overlap: str,
    cheap: str,
    counts: Mapping[str, int],
    learned_drop: float,
    seed: int = 0,
    narrowed: int = NARROWED_CLASSES,
) -> JudgedCascade | None:
    """Return a cascade learned on all rows, and its worth as learned on one half and judged on the other.

    None where no cascade keeps the limit even on the rows that it is learned on.

    Args:
        validation: predictions and labels.
        overlap: which predictions.
        cheap: the member that scores every window.
        counts: the ensemble that scores uncertain windows.
        learned_drop: largest loss of score on the rows that it is learned on, in units of the metric.
        seed: of the split.
        narrowed: see `learn_cascade`.

    Raises:
        AccuracyError: the metric is not defined on one of the halves.
        UsageError: there is only one recording.
    """
    # Blended alone, it is on the scale of the others' blend.
    scores = np.asarray(validation.blended(overlap, {cheap: 1}))
    full = validation.blended(overlap, counts)

    def learned_on(rows: IntArray) -> Cascade | None:
        return learn_cascade(
            cheap,
            scores[rows],
            full[rows],
            y_true=validation.y_true[rows],
            metric=validation.metric,
            max_drop=learned_drop,
            narrowed=narrowed,
        )

    final = learned_on(np.arange(len(scores), dtype=np.int64))
    if final is None:
        return None
    sides = halves(validation, seed=seed)
    judged, whole, learned = [], [], []
    uncertain_where_judged = np.ones(len(scores), bool)
    for mine, other in (sides, sides[::-1]):
        cascade = learned_on(mine)
        uncertain = np.ones(len(scores), bool) if cascade is None else cascade.uncertain(scores)
        mixed = np.where(uncertain[:, None], full, scores)
        uncertain_where_judged[other] = uncertain[other]
        judged.append(validation.judged(mixed, other))
        learned.append(validation.judged(mixed, mine))
        whole.append(validation.judged(full, other))
    share, spread = _share(uncertain_where_judged, validation.groups)
    return JudgedCascade(
        cascade=final,
        share=share,
        share_spread=spread,
        score=float(np.mean(judged)),
        full_score=float(np.mean(whole)),
        learned_score=float(np.mean(learned)),
    )


def _share(uncertain: BoolArray, groups: Array | None) -> tuple[float, float]:
    """Return the share of uncertain windows, and its relative standard deviation.

    Windows of one recording are alike, so it is recordings that were drawn: the ratio estimator for clusters
    (Cochran 1977, Sampling Techniques, section 6.4).
    """
    share = float(uncertain.mean())
    if share == 0:
        return 0.0, 0.0
    of_rows = np.arange(len(uncertain)) if groups is None else groups
    _, place, sizes = np.unique(of_rows, return_inverse=True, return_counts=True)
    found = np.bincount(place.reshape(-1), weights=uncertain)
    clusters = len(sizes)
    variance = clusters / (clusters - 1) * float(np.square(found - share * sizes).sum()) / sizes.sum() ** 2
    return share, variance**0.5 / share


def _classes(y_true: Array, count: int) -> BoolArray:
    """Return labels as one column per class, shape (n, c)."""
    if y_true.ndim == 1:
        return np.asarray(y_true[:, None] == np.arange(count))
    return np.asarray(y_true > 0)
