"""ROC-AUC and average precision of one class under many sets of sample weights at once.

A bootstrap resample is the same samples with other multiplicities, so the order of the scores never
changes: sort once, then sum weights along that order for all resamples together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Ranking", "blocks_of", "rank"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
WeightArray = npt.NDArray[np.int32]

# Entries of one block of weights. 2**18 int32 values (1 MiB) stay in a second-level cache: with 2,000
# samples and 264 classes that took 0.7 s for 1,000 resamples, against 1.0 s for blocks eight times larger.
_BLOCK_ENTRIES = 2**18


@dataclass(frozen=True)
class Ranking:
    """The order of one class's scores, ready to be weighted.

    Attributes:
        positives: samples of the class, by ascending score, shape (p,).
        negatives: the other samples, by ascending score, shape (q,).
        below: for each positive, how many negatives score lower, shape (p,).
        not_above: for each positive, how many negatives score lower or the same, shape (p,).
        tied: for each positive, how many positives score lower, shape (p,).
    """

    positives: IntArray
    negatives: IntArray
    below: IntArray
    not_above: IntArray
    tied: IntArray

    def auc(self, weights: WeightArray) -> FloatArray:
        """Area under the ROC curve for each column of weights, ties counted half.

        Args:
            weights: multiplicity of each sample, shape (n, b), int32.

        Returns:
            Shape (b,), float64 in [0, 1]; NaN where all positives or all negatives weigh 0.

        This is the Mann-Whitney form: the share of (positive, negative) pairs in the right order
        (Hanley & McNeil 1982, Radiology 143).
        """
        positive = weights[self.positives]
        negative = _cumulated(weights[self.negatives])
        ordered = negative[self.below].astype(np.float64) + negative[self.not_above]
        pairs = positive.sum(axis=0, dtype=np.float64) * negative[-1]
        return _ratio(np.einsum("pb,pb->b", positive.astype(np.float64), ordered) / 2, pairs)

    def average_precision(self, weights: WeightArray) -> FloatArray:
        """Average precision for each column of weights, without interpolation, ties as one threshold.

        Args:
            weights: multiplicity of each sample, shape (n, b), int32.

        Returns:
            Shape (b,), float64 in [0, 1]; NaN where all positives weigh 0.

        It is the sum over thresholds of (recall gained) x precision, as scikit-learn's
        `average_precision_score` defines it.
        """
        positive = weights[self.positives]
        cumulated = _cumulated(positive)
        negative = _cumulated(weights[self.negatives])
        hits = (cumulated[-1] - cumulated[self.tied]).astype(np.float64)
        false_alarms = negative[-1] - negative[self.below]
        precision = _ratio(hits, hits + false_alarms, otherwise=0.0)
        gained = np.einsum("pb,pb->b", positive.astype(np.float64), precision)
        return _ratio(gained, cumulated[-1].astype(np.float64))


def rank(scores: npt.NDArray[Any], positive: npt.NDArray[np.bool_]) -> Ranking:
    """Return the order of one class's scores.

    Args:
        scores: score of each sample, shape (n,), any real dtype, no NaN.
        positive: which samples belong to the class, shape (n,).
    """
    order = np.argsort(scores, kind="stable")
    is_positive = positive[order]
    positives, negatives = order[is_positive], order[~is_positive]
    own, others = scores[positives], scores[negatives]
    return Ranking(
        positives=positives,
        negatives=negatives,
        below=np.searchsorted(others, own, side="left"),
        not_above=np.searchsorted(others, own, side="right"),
        tied=np.searchsorted(own, own, side="left"),
    )


def blocks_of(counts: npt.NDArray[np.integer[Any]]) -> list[WeightArray]:
    """Return resample counts of shape (B, n) as blocks of shape (n, b) that fit a cache, in order."""
    resamples, n = counts.shape
    step = max(16, _BLOCK_ENTRIES // max(n, 1))
    return [
        np.ascontiguousarray(counts[start : start + step].T, dtype=np.int32)
        for start in range(0, resamples, step)
    ]


def _cumulated(weights: WeightArray) -> WeightArray:
    """Return sums of the first 0, 1, ..., n rows, shape (n + 1, b)."""
    sums = np.zeros((len(weights) + 1, weights.shape[1]), dtype=np.int32)
    np.cumsum(weights, axis=0, out=sums[1:])
    return sums


def _ratio(top: FloatArray, bottom: FloatArray, *, otherwise: float = np.nan) -> FloatArray:
    return np.asarray(np.divide(top, bottom, out=np.full(top.shape, otherwise), where=bottom > 0))
