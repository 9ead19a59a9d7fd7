"""Metrics: how good outputs are, once and for a thousand bootstrap resamples.

Every metric takes `y_true` either as class indexes, shape (n,), or as 0/1 per class, shape (n, c),
where that makes sense, and `y_pred` as scores or logits, shape (n, c). The label-free ones take the
baseline's outputs as `y_true`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np
import numpy.typing as npt

from alula.accuracy.ranking import Ranking, blocks_of, rank
from alula.errors import AccuracyError

__all__ = [
    "Agreement",
    "BalancedAccuracy",
    "Cosine",
    "MacroAuc",
    "MeanSquaredError",
    "Metric",
    "PaddedCmap",
    "Top1",
    "UserMetric",
    "is_multi_label",
]

Array = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PADDING_ROWS = 5
"""Rows of ones that BirdCLEF 2023 adds to both sides, so that classes without positives count."""


class Metric(Protocol):
    """A number that says how good outputs are.

    `replicates` exists beside `value` because a bootstrap needs the metric a thousand times on the
    same samples with other multiplicities, which most metrics can do for all resamples at once.
    Metrics are immutable and safe to use from several threads.
    """

    @property
    def name(self) -> str:
        """What the metric is called on the command line and in reports."""

    @property
    def higher_is_better(self) -> bool:
        """Whether larger values are better; if not, a drop is the relative increase."""

    @property
    def needs_labels(self) -> bool:
        """Whether `y_true` holds labels; if not, it holds the baseline's outputs."""

    @property
    def counts_samples(self) -> bool:
        """Whether it is a share of samples, so that no change in n samples still allows 3/n."""

    @property
    def costly(self) -> bool:
        """Whether every replicate is a call of its own, so that fewer are drawn."""

    def value(self, y_true: Array, y_pred: Array) -> float:
        """Return the metric.

        Args:
            y_true: labels, shape (n,) or (n, c); for a label-free metric the baseline's outputs.
            y_pred: outputs, shape (n, c), without NaN.

        Raises:
            AccuracyError: the metric is not defined for these arrays.
        """

    def replicates(self, y_true: Array, y_pred: Array, counts: Counts) -> FloatArray:
        """Return the metric on each of B resamples.

        Args:
            y_true: as for `value`.
            y_pred: as for `value`.
            counts: how often each resample holds each sample, shape (B, n).

        Returns:
            Shape (B,); NaN where the metric is not defined on that resample.

        Raises:
            AccuracyError: the metric is not defined for these arrays.
        """


class _SampleMean(ABC):
    """A metric that is the mean of a number per sample."""

    costly = False

    def value(self, y_true: Array, y_pred: Array) -> float:
        return float(self._of_samples(y_true, y_pred).mean())

    def replicates(self, y_true: Array, y_pred: Array, counts: Counts) -> FloatArray:
        return np.asarray(counts @ self._of_samples(y_true, y_pred).astype(np.float64) / counts.sum(axis=1))

    @abstractmethod
    def _of_samples(self, y_true: Array, y_pred: Array) -> Array:
        """Return the number of each sample, shape (n,)."""


class _Resampled(ABC):
    """A metric that is computed on all resamples at once; the samples as they are count as one of these.

    Attributes:
        undefined: why it is not defined where it is not, and what to do.
    """

    name: str
    undefined = "Give more validation samples."
    costly = False

    def value(self, y_true: Array, y_pred: Array) -> float:
        once = np.ones((1, len(y_pred)), dtype=np.int64)
        found = float(self.replicates(y_true, y_pred, once)[0])
        if np.isnan(found):
            raise AccuracyError(f"Metric `{self.name}` is not defined: {self.undefined}")
        return found

    @abstractmethod
    def replicates(self, y_true: Array, y_pred: Array, counts: Counts) -> FloatArray:
        """See `Metric.replicates`."""


@final
class Top1(_SampleMean):
    """Share of samples whose highest score is the right class (any right class with several labels).

    >>> Top1().value(np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]]))
    0.5
    """

    name = "top1"
    higher_is_better = True
    needs_labels = True
    counts_samples = True

    def _of_samples(self, y_true: Array, y_pred: Array) -> BoolArray:
        guesses = _guesses(y_pred, self.name)
        if y_true.ndim == 1:
            return np.asarray(_classes(y_true, y_pred, self.name) == guesses)
        truth = _one_hot(y_true, y_pred, self.name)
        return np.asarray(truth[np.arange(len(guesses)), guesses])


@final
class BalancedAccuracy(_Resampled):
    """Mean over classes of the share of their samples that were recognised (mean recall).

    Classes without samples are left out, as in scikit-learn's `balanced_accuracy_score`.

    >>> BalancedAccuracy().value(np.array([0, 0, 0, 1]), np.eye(2)[[0, 0, 0, 0]])
    0.5
    """

    name = "balanced_accuracy"
    higher_is_better = True
    needs_labels = True
    counts_samples = True

    def replicates(self, y_true: Array, y_pred: Array, counts: Counts) -> FloatArray:
        if y_true.ndim > 1:
            truth = _one_hot(y_true, y_pred, self.name)
            if not np.all(truth.sum(axis=1) == 1):
                raise AccuracyError(
                    "Metric `balanced_accuracy` got targets with no or several labels per sample; "
                    "expected exactly one. Use `macro_auc` or `padded_cmap` for several labels."
                )
            classes: IntArray = truth.argmax(axis=1)
        else:
            classes = _classes(y_true, y_pred, self.name)
        right = _guesses(y_pred, self.name) == classes
        order = np.argsort(classes, kind="stable")
        starts = np.flatnonzero(np.diff(classes[order], prepend=-1))
        present = np.add.reduceat(counts[:, order], starts, axis=1)
        found = np.add.reduceat((counts * right)[:, order], starts, axis=1)
        recall = np.divide(found, present, out=np.zeros(present.shape), where=present > 0)
        return np.asarray(recall.sum(axis=1) / (present > 0).sum(axis=1))


@final
class MacroAuc(_Resampled):
    """Mean over classes of the area under the ROC curve.

    Classes without positives, or without negatives, are skipped.

    >>> MacroAuc().value(np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.95, 0.05]]))
    0.5
    """

    name = "macro_auc"
    higher_is_better = True
    needs_labels = True
    counts_samples = False
    undefined = (
        "no class has both samples that belong to it and samples that do not. Give more validation samples."
    )

    def replicates(self, y_true: Array, y_pred: Array, counts: Counts) -> FloatArray:
        return _macro(_one_hot(y_true, y_pred, self.name), _columns(y_pred), counts, Ranking.auc)


@final
class PaddedCmap(_Resampled):
    """Padded macro average precision, the score of BirdCLEF 2023.

    Five rows of ones are added to the labels and to the scores, then scikit-learn's
    `average_precision_score(average="macro")` is taken. The padding is not resampled.

    The competition's scores are probabilities. Where a score exceeds 1 the scores are taken as
    logits, and the padding ranks above them all, as it would after a sigmoid.
    """

    name = "padded_cmap"
    higher_is_better = True
    needs_labels = True
    counts_samples = False

    def replicates(self, y_true: Array, y_pred: Array, counts: Counts) -> FloatArray:
        truth, scores = _one_hot(y_true, y_pred, self.name), _columns(y_pred)
        rows = (PADDING_ROWS, scores.shape[1])
        top = 1.0 if scores.max() <= 1.0 else np.inf
        padded_counts = np.concatenate([counts, np.ones((len(counts), PADDING_ROWS), counts.dtype)], axis=1)
        return _macro(
            np.concatenate([truth, np.ones(rows, dtype=bool)]),
            np.concatenate([scores.astype(np.float64), np.full(rows, top)]),
            padded_counts,
            Ranking.average_precision,
        )


@final
class MeanSquaredError(_SampleMean):
    """Mean squared difference from the targets; lower is better.

    >>> MeanSquaredError().value(np.array([1.0, 2.0]), np.array([[1.0], [4.0]]))
    2.0
    """

    name = "mse"
    higher_is_better = False
    needs_labels = True
    counts_samples = False

    def _of_samples(self, y_true: Array, y_pred: Array) -> FloatArray:
        truth, scores = _flat(y_true), _flat(y_pred)
        if truth.shape != scores.shape:
            raise AccuracyError(
                f"Metric `mse` got targets of shape {y_true.shape} for outputs of shape {y_pred.shape}; "
                "expected the same shape. Give targets of that shape, or choose another metric."
            )
        return np.asarray(np.square(truth - scores).mean(axis=1))


@final
class Agreement(_SampleMean):
    """Share of samples whose highest score is the same class as the baseline's; needs no labels.

    >>> Agreement().value(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[5.0, 0.0], [2.0, 1.0]]))
    0.5
    """

    name = "agreement"
    higher_is_better = True
    needs_labels = False
    counts_samples = True

    def _of_samples(self, y_true: Array, y_pred: Array) -> BoolArray:
        return np.asarray(_guesses(y_true, self.name) == _guesses(y_pred, self.name))


@final
class Cosine(_Resampled):
    """Cosine of the angle between all outputs and all of the baseline's, each as one vector; no labels.

    One vector, not one per sample: outputs of a single column have no angle of their own, and a
    sample whose outputs are all near zero says little. A drop of 0.005 is about 20 dB of SQNR.

    >>> round(Cosine().value(np.array([[3.0], [4.0]]), np.array([[6.0], [8.0]])), 12)
    1.0
    """

    name = "cosine"
    higher_is_better = True
    needs_labels = False
    counts_samples = False
    undefined = (
        "every output of the baseline is 0. Check the baseline's weights, or choose a metric with labels."
    )

    def replicates(self, y_true: Array, y_pred: Array, counts: Counts) -> FloatArray:
        ours, theirs = _flat(y_pred), _flat(y_true)
        dot, own, reference = (
            counts @ np.einsum("nc,nc->n", a, b) for a, b in ((ours, theirs), (ours, ours), (theirs, theirs))
        )
        norm = np.sqrt(own) * np.sqrt(reference)
        cosine = np.divide(dot, norm, out=np.zeros(norm.shape), where=norm > 0)
        return np.where(reference > 0, np.clip(cosine, -1.0, 1.0), np.nan)


@final
@dataclass(frozen=True)
class UserMetric:
    """A user's function of `(y_true, y_pred)`; higher is better.

    Attributes:
        name: what it was asked for as, such as `score.py:fn`.
        function: called with the targets as they are and the outputs, shape (n, c); returns a float.
    """

    name: str
    function: Callable[[Array, Array], float]

    higher_is_better = True
    needs_labels = True
    counts_samples = False
    costly = True

    def value(self, y_true: Array, y_pred: Array) -> float:
        try:
            # Copies: it may work in place, and others are judged by the same outputs.
            found = float(self.function(y_true.copy(), y_pred.copy()))
        except Exception as error:  # whatever a user's code raises, the message says it
            raise AccuracyError(
                f"Metric `{self.name}` raised {type(error).__name__}: {error}. It was called with targets of "
                f"shape {y_true.shape} and outputs of shape {y_pred.shape}, and must return one number."
            ) from error
        if not np.isfinite(found):
            raise AccuracyError(f"Metric `{self.name}` returned {found}; expected a finite number.")
        return found

    def replicates(self, y_true: Array, y_pred: Array, counts: Counts) -> FloatArray:
        samples = np.arange(counts.shape[1])
        found = np.full(len(counts), np.nan)
        for row, multiplicities in enumerate(counts):
            chosen = np.repeat(samples, multiplicities)
            try:
                found[row] = float(self.function(y_true[chosen], y_pred[chosen]))
            except Exception:  # noqa: BLE001 - what fails on all samples fails in `value` too
                # Many scores refuse a resample that happens to hold a single class: undefined there.
                continue
        return np.where(np.isfinite(found), found, np.nan)


def is_multi_label(targets: Array | None) -> bool:
    """Return whether targets are 0/1 per class with no or several classes for some sample."""
    return targets is not None and targets.ndim == 2 and not bool(np.all(targets.sum(axis=1) == 1))


def _macro(
    truth: BoolArray,
    scores: Array,
    counts: Counts,
    of_class: Callable[[Ranking, npt.NDArray[np.int32]], FloatArray],
) -> FloatArray:
    """Return the mean over classes for each resample, leaving out classes where it is not defined.

    Args:
        truth: which samples belong to which class, shape (n, c).
        scores: shape (n, c).
        counts: shape (B, n).
        of_class: gives one class's values, shape (b,), for weights of shape (n, b).
    """
    blocks = blocks_of(counts)
    total, defined = np.zeros(len(counts)), np.zeros(len(counts), dtype=np.int64)
    for column in range(scores.shape[1]):
        ranking = rank(scores[:, column], truth[:, column])
        if not len(ranking.positives):
            continue
        values = np.concatenate([of_class(ranking, block) for block in blocks])
        known = np.isfinite(values)
        total[known] += values[known]
        defined += known
    return np.asarray(np.divide(total, defined, out=np.full(len(counts), np.nan), where=defined > 0))


def _flat(values: Array) -> FloatArray:
    """Return float64 of shape (n, c), all axes but the first joined."""
    return np.asarray(values, dtype=np.float64).reshape(len(values), -1)


def _columns(y_pred: Array) -> Array:
    """Return outputs of shape (n,) or (n, c) as (n, c)."""
    scores = y_pred[:, None] if y_pred.ndim == 1 else y_pred
    if scores.ndim != 2:
        raise AccuracyError(
            f"Got outputs of shape {y_pred.shape}; expected (n, classes) for a classification metric. "
            "Use `mse` or `cosine` for other outputs."
        )
    return scores


def _guesses(y_pred: Array, metric: str) -> IntArray:
    """Return the class with the highest score per sample, shape (n,)."""
    scores = _columns(y_pred)
    if scores.shape[1] < 2:
        raise AccuracyError(
            f"Metric `{metric}` got outputs with a single column; expected a score for each of 2 or more "
            "classes. Use `macro_auc` with labels or `cosine` without."
        )
    return np.asarray(scores.argmax(axis=1))


def _classes(y_true: Array, y_pred: Array, metric: str) -> IntArray:
    """Return class indexes, shape (n,), checked against the number of columns of the outputs."""
    classes = max(2, _columns(y_pred).shape[1])
    indexes: IntArray = y_true.astype(np.int64)
    if len(indexes) != len(y_pred) or not np.array_equal(indexes, y_true):
        raise AccuracyError(
            f"Metric `{metric}` got targets of shape {y_true.shape} and type {y_true.dtype} for "
            f"{len(y_pred)} outputs; expected one whole class number per output."
        )
    if indexes.min() < 0 or indexes.max() >= classes:
        raise AccuracyError(
            f"Metric `{metric}` got class numbers from {indexes.min()} to {indexes.max()} for outputs with "
            f"{classes} classes; expected 0 to {classes - 1}. Check that labels and model belong together."
        )
    return indexes


def _one_hot(y_true: Array, y_pred: Array, metric: str) -> BoolArray:
    """Return which sample belongs to which class, shape (n, c) of the outputs."""
    shape = _columns(y_pred).shape
    if y_true.ndim == 1:
        classes = _classes(y_true, y_pred, metric)
        if shape[1] == 1:
            return np.asarray(classes == 1)[:, None]
        return np.asarray(classes[:, None] == np.arange(shape[1]))
    if y_true.shape != shape:
        raise AccuracyError(
            f"Metric `{metric}` got targets of shape {y_true.shape} for outputs of shape {y_pred.shape}; "
            "expected the same shape, or class numbers of shape (n,)."
        )
    if not np.all((y_true == 0) | (y_true == 1)):
        raise AccuracyError(
            f"Metric `{metric}` got targets with values other than 0 and 1. Round soft labels, or use `mse`."
        )
    return np.asarray(y_true, dtype=bool)
