"""The drop of a metric from baseline to candidate with its interval, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from alula.accuracy.metrics import Agreement, Cosine, Metric, is_multi_label
from alula.core import Accuracy
from alula.errors import AccuracyError, UsageError

__all__ = ["Fidelity", "accept", "compare", "fidelity"]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]

# Counts held at once: 2**22 int64 values are 32 MiB, whatever the number of samples.
_CHUNK_ENTRIES = 2**22
# Efron & Tibshirani (1993, section 6.4): 200 suffice for a standard error; more would take minutes
# when each is a call of a user's function.
_COSTLY_REPLICATES = 200
# Below this a bootstrap has too few samples to imitate the population; a common rule of thumb.
_FEW_SAMPLES = 30
# A baseline with no error at all has no relative increase; this stands in for zero.
_SMALLEST_ERROR = 1e-12
# A difference of two shares, such as 0.91 - 0.905, carries rounding of 1e-16 that would decide the
# verdict at the limit.
_DECIMALS = 12


class Fidelity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How close a candidate's outputs are to the baseline's, labels aside.

    Attributes:
        sqnr_db: energy of the baseline's outputs over the energy of the difference, in dB; None
            when the outputs are the same.
        mean_cosine: mean over samples of the cosine between the two output vectors.
        top1_agreement: share of samples with the same highest score; None for a single column.
    """

    sqnr_db: float | None
    mean_cosine: float
    top1_agreement: float | None


def compare(
    metric: Metric,
    *,
    targets: Array | None,
    baseline: Array,
    candidate: Array,
    max_drop: float,
    seed: int = 0,
    replicates: int = 1000,
) -> Accuracy:
    """Return the metric of baseline and candidate, and the drop between them with its interval.

    The drop is positive when the candidate is worse. Where higher is better it is `baseline -
    candidate` on the metric's own scale; where lower is better (`mse`) it is the relative increase
    `(candidate - baseline) / baseline`; without labels the baseline scores 1.

    The interval is the 95 % percentile interval of a paired bootstrap: baseline and candidate are
    judged on the same resamples, so that the noise they share cancels (Efron & Tibshirani 1993, An
    Introduction to the Bootstrap, chapter 13). Metrics that count samples move in steps of 1/n, and
    a bootstrap of no change at all has no width; their interval therefore reaches at least 3/n to
    either side, which is what n samples without a single change leave open (rule of three: Hanley &
    Lippman-Hand 1983, JAMA 249). For `balanced_accuracy` that supposes changes strike all classes
    alike.

    Args:
        metric: what to compare by. `agreement` needs one class per sample; for a single column,
            other shapes or targets with several labels it becomes `cosine`, and is named so.
        targets: labels, shape (n,) or (n, c); None only for a metric that needs none.
        baseline: the baseline's outputs, shape (n, c) or (n,).
        candidate: the candidate's outputs for the same samples, same shape.
        max_drop: the largest drop allowed, 0 or more.
        seed: of the resampling.
        replicates: resamples; at most 200 are drawn for a user's function.

    Raises:
        AccuracyError: shapes differ, outputs are NaN, or the metric is not defined.
        UsageError: `max_drop` is negative or not a number.
    """
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise UsageError(f"The largest drop allowed must be a number of 0 or more; got {max_drop}.")
    _check(targets, baseline, candidate)
    if isinstance(metric, Agreement) and (
        baseline.ndim != 2 or baseline.shape[1] < 2 or is_multi_label(targets)
    ):
        metric = Cosine()
    if not metric.needs_labels:
        truth = baseline
    elif targets is not None:
        truth = targets
    else:
        raise AccuracyError(
            f"Metric `{metric.name}` needs labels and the data has none. "
            "Give labelled data, or use `agreement`."
        )

    before = metric.value(truth, baseline) if metric.needs_labels else 1.0
    after = metric.value(truth, candidate)
    if not (math.isfinite(before) and math.isfinite(after)):
        raise AccuracyError(
            f"Metric `{metric.name}` is {before} for the baseline and {after} for the candidate; expected "
            "finite numbers. Outputs with infinite values need a metric that only ranks them."
        )
    drop = float(_drop(metric, np.asarray(before), np.asarray(after)))
    n = len(baseline)
    drops = np.concatenate(
        [
            _drop(
                metric,
                metric.replicates(truth, baseline, counts) if metric.needs_labels else np.asarray(1.0),
                metric.replicates(truth, candidate, counts),
            )
            for counts in _resamples(
                n, min(replicates, _COSTLY_REPLICATES) if metric.costly else replicates, seed=seed
            )
        ]
    )
    known = drops[np.isfinite(drops)]
    if not len(known):
        raise AccuracyError(
            f"Metric `{metric.name}` is not defined on any resample of the {n} validation samples. "
            "Give more samples, with more than one class among them."
        )
    low, high = (float(end) for end in np.percentile(known, [2.5, 97.5]))
    low, high = min(low, drop), max(high, drop)
    if metric.counts_samples:
        low, high = min(low, drop - 3 / n), max(high, drop + 3 / n)
        if not metric.needs_labels:
            low = max(low, 0.0)
    unchanged = metric.counts_samples and not known.any()
    result = Accuracy(
        metric=metric.name,
        n=n,
        baseline=before,
        chosen=after,
        drop=round(drop, _DECIMALS),
        drop_low=round(low, _DECIMALS),
        drop_high=round(high, _DECIMALS),
        limit=max_drop,
    )
    warnings = _warnings(result, undefined=1 - len(known) / len(drops), unchanged=unchanged)
    return msgspec.structs.replace(result, warnings=warnings)


def accept(accuracy: Accuracy) -> str | None:
    """Return None when the candidate is accepted, else the reason in one line.

    The rule: accepted when the measured drop is within the limit. Not when the whole interval is:
    with the few hundred validation samples that people have, that would refuse candidates which
    change nothing (no change in 500 samples still allows 0.6 points), and the measured drop is the
    best single estimate there is. A verdict that the samples cannot carry is accepted or refused by
    the same rule, and `accuracy.warnings` says so: show them.
    """
    if accuracy.within_limit:
        return None
    verb = "rose" if accuracy.chosen > accuracy.baseline else "fell"
    kind = "relative increase" if verb == "rose" else "drop"
    return (
        f"`{accuracy.metric}` {verb} from {accuracy.baseline:.4g} to {accuracy.chosen:.4g}: a {kind} of "
        f"{accuracy.drop:.4g} (95 % interval {accuracy.drop_low:.4g} to {accuracy.drop_high:.4g}, "
        f"{accuracy.n} samples), more than the {accuracy.limit:g} allowed"
    )


def fidelity(baseline: Array, candidate: Array) -> Fidelity:
    """Return how close outputs are to the baseline's.

    Args:
        baseline: the baseline's outputs, shape (n, ...).
        candidate: the candidate's outputs, same shape.

    Raises:
        AccuracyError: shapes differ or outputs are NaN.

    >>> fidelity(np.array([[1.0, 0.0]]), np.array([[1.1, 0.0]]))
    Fidelity(sqnr_db=20.0, mean_cosine=1.0, top1_agreement=1.0)
    """
    _check(None, baseline, candidate)
    reference = np.asarray(baseline, dtype=np.float64).reshape(len(baseline), -1)
    ours = np.asarray(candidate, dtype=np.float64).reshape(len(candidate), -1)
    noise, signal = float(np.square(ours - reference).sum()), float(np.square(reference).sum())
    norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(ours, axis=1)
    dots = np.einsum("nc,nc->n", reference, ours)
    # Two outputs of nothing but zeros point the same way; one beside something else does not.
    same = np.all(reference == ours, axis=1).astype(np.float64)
    cosines = np.divide(dots, norms, out=same, where=norms > 0)
    classes = baseline.ndim == 2 and baseline.shape[1] > 1
    return Fidelity(
        sqnr_db=None if noise == 0 else round(10 * math.log10(max(signal, _SMALLEST_ERROR) / noise), 6),
        mean_cosine=round(float(cosines.mean()), _DECIMALS),
        top1_agreement=Agreement().value(baseline, candidate) if classes else None,
    )


def _check(targets: Array | None, baseline: Array, candidate: Array) -> None:
    if baseline.shape != candidate.shape:
        raise AccuracyError(
            f"The candidate gave outputs of shape {candidate.shape}; expected the baseline's "
            f"{baseline.shape}. The recipe changed what the model puts out, or lost samples."
        )
    if not baseline.size:
        raise AccuracyError("There are no validation samples to compare. Give at least one.")
    if targets is not None and len(targets) != len(baseline):
        raise AccuracyError(
            f"Got {len(targets)} targets for {len(baseline)} outputs; expected one per output. "
            "Check that every input has a label."
        )
    if targets is not None and targets.dtype.kind == "f" and np.isnan(targets).any():
        raise AccuracyError(
            f"{int(np.isnan(targets).sum())} target values are NaN; expected numbers. "
            "Leave out samples without labels."
        )
    _check_numbers("baseline", np.isnan(baseline))
    # An infinity that the baseline has too is a masked class; one of the candidate's own is an overflow.
    _check_numbers("candidate", np.isnan(candidate) | (np.isinf(candidate) & np.isfinite(baseline)))


def _check_numbers(who: str, bad: Array) -> None:
    samples = int(bad.reshape(len(bad), -1).any(axis=1).sum())
    if samples:
        raise AccuracyError(
            f"The {who} gave NaN or infinite outputs for {samples} of {len(bad)} validation samples "
            f"({int(bad.sum())} values); expected finite numbers."
        )


def _drop(metric: Metric, before: FloatArray, after: FloatArray) -> FloatArray:
    if metric.higher_is_better:
        return before - after
    return np.asarray((after - before) / np.maximum(before, _SMALLEST_ERROR))


def _resamples(n: int, replicates: int, *, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield how often each of n samples is drawn in n draws with replacement, shape (b, n)."""
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK_ENTRIES // n)
    for start in range(0, replicates, step):
        rows = min(step, replicates - start)
        draws = generator.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(draws.ravel(), minlength=rows * n).reshape(rows, n)


def _warnings(accuracy: Accuracy, *, undefined: float, unchanged: bool) -> tuple[str, ...]:
    found = []
    if accuracy.n < _FEW_SAMPLES:
        found.append(
            f"only {accuracy.n} validation samples: the interval itself is unreliable below {_FEW_SAMPLES}"
        )
    if undefined > 0.05:
        found.append(
            f"`{accuracy.metric}` was not defined on {undefined:.0%} of the resamples: "
            "too few samples of some classes"
        )
    if not accuracy.conclusive:
        half = (accuracy.drop_high - accuracy.drop_low) / 2
        found.append(
            f"{accuracy.n:,} validation samples cannot tell whether the drop is within {accuracy.limit:g}: "
            f"it is {accuracy.drop:.2g} with a 95 % interval of {accuracy.drop_low:.2g} to "
            f"{accuracy.drop_high:.2g} (half width {half:.2g}); "
            + _enough(accuracy, half, unchanged=unchanged)
        )
    return tuple(found)


def _enough(accuracy: Accuracy, half: float, *, unchanged: bool) -> str:
    """Say about how many samples would tell the drop from the limit."""
    gap = abs(accuracy.limit - accuracy.drop)
    if not gap:
        return "no number of samples tells a drop from a limit that it lies on"
    # Without a change the interval is 3/n; with changes it narrows with the square root of n.
    needed = 3 / gap if unchanged else accuracy.n * (half / gap) ** 2
    scale = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return f"about {math.ceil(needed / scale) * scale:,} would"
