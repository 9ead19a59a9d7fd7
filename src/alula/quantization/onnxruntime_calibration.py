"""Ranges of a network's activations for ONNX Runtime's quantizer, in memory that no sample adds to.

One sample is computed at a time, and of its activations nothing stays but extremes, then counts in
histograms of fixed width: one pass for extremes, a second one where ranges leave outliers out. ONNX
Runtime's own histogram calibrators keep every activation of every sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from alula.core import Signature
from alula.errors import EngineError
from alula.quantization.base import Batches
from alula.quantization.onnxruntime_findings import (
    BINS,
    Findings,
    Histogram,
    Range,
    findings_file,
    read_findings,
    write_findings,
)
from alula.quantization.onnxruntime_preparation import open_session

if TYPE_CHECKING:
    import onnx

__all__ = ["Method", "calibrated_ranges", "entropy_range", "percentile_range"]

Method = Literal["minmax", "percentile", "entropy"]

LEVELS = 256
"""Values of an 8-bit activation."""

PERCENTILE = 99.99

# Narrower ranges would overflow float32 when values are scaled to bins; nothing in them is an outlier.
_LEAST_WIDTH = 1e-30
# Entropy is compared at every eighth edge: finer ones change the range by less than a rounding step.
_STRIDE = 8


def calibrated_ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Batches,
    *,
    signature: Signature,
    method: Method,
    keep: Path | None = None,
) -> dict[str, Range]:
    """Return the lowest and highest value to represent of each tensor.

    What enters and leaves the network is never clipped: of logits above a limit, none is the largest.

    Args:
        model: with the shapes of its tensors.
        tensors: names of float32 tensors.
        batches: calibration data, read up to three times.
        signature: inputs and outputs of the model.
        method: `minmax` takes all values in; `percentile` all but one in ten thousand; `entropy` the
            range whose histogram keeps most information when quantized.
        keep: folder of the export, to keep there what is found out; what was found before, for another
            method or other tensors, is taken from there.

    Raises:
        EngineError: there are no samples, or an activation is not finite.
    """
    path = None if keep is None else findings_file(keep, model, batches)
    known = Findings() if path is None else read_findings(path)
    missing = [name for name in tensors if name not in known.extremes]
    if missing:
        found = _extremes(_Activations(model, missing, signature), batches)
        known = Findings(known.extremes | found, known.histograms)
        if path is not None:
            write_findings(path, known)
    ranges = {name: known.extremes[name] for name in tensors if name in known.extremes}
    if method == "minmax":
        return ranges
    whole = {spec.name for spec in (*signature.inputs, *signature.outputs)}
    narrow = [name for name, (low, high) in ranges.items() if name not in whole and high - low > _LEAST_WIDTH]
    uncounted = {name: Histogram(*ranges[name]) for name in narrow if name not in known.histograms}
    if uncounted:
        for values in _Activations(model, list(uncounted), signature).computed(batches):
            for name, histogram in uncounted.items():
                histogram.add(values[name])
        known = Findings(known.extremes, known.histograms | uncounted)
        if path is not None:
            write_findings(path, known)
    narrowed = {
        name: percentile_range(known.histograms[name], PERCENTILE)
        if method == "percentile"
        else entropy_range(known.histograms[name])
        for name in narrow
    }
    return ranges | narrowed


def percentile_range(histogram: Histogram, percentile: float) -> Range:
    """Return the range that holds a percentage of the values, as much left out above as below.

    Exact to the width of a bin, within which values are taken as spread evenly.

    >>> histogram = Histogram(0.0, 1.0)
    >>> histogram.add(np.linspace(0, 1, 100_001, dtype=np.float32))
    >>> low, high = percentile_range(histogram, 90.0)
    >>> round(low, 2), round(high, 2)
    (0.05, 0.95)
    """
    shares = np.concatenate([[0.0], np.cumsum(histogram.counts) / histogram.counts.sum()])
    outside = (1 - percentile / 100) / 2
    low, high = np.interp([outside, 1 - outside], shares, histogram.edges)
    return float(low), float(high)


def entropy_range(histogram: Histogram) -> Range:
    """Return the range around zero of which quantized values tell most about the values.

    The range is cut at one distance from zero on both sides, as far as there are values, where the
    divergence of Kullback and Leibler between two distributions is least: the values, with those outside
    counted in the outer bins, and what is left of those inside when all bins of one level share its count
    (Migacz 2017, "8-bit inference with TensorRT"; here with 256 levels over an asymmetric range). The count
    of the bin with zero is replaced by its neighbours': zero has no rounding error, and after a ReLU
    it outweighs everything.
    """
    counts = _without_zeros(histogram)
    edges = histogram.edges
    width = (histogram.high - histogram.low) / BINS
    best, least = (0, BINS), np.inf
    for step in range(0, BINS, _STRIDE):
        limit = max(abs(histogram.low), abs(histogram.high)) - step * width
        start = max(0, round((-limit - histogram.low) / width))
        stop = min(BINS, round((limit - histogram.low) / width))
        if stop - start < LEVELS:
            break
        divergence = _divergence(counts, start, stop)
        if divergence < least:
            best, least = (start, stop), divergence
    return float(edges[best[0]]), float(edges[best[1]])


def _without_zeros(histogram: Histogram) -> NDArray[np.float64]:
    counts = histogram.counts.astype(np.float64)
    if histogram.low <= 0 <= histogram.high:
        place = min(BINS - 1, int(-histogram.low * BINS / (histogram.high - histogram.low)))
        counts[place] = np.mean([counts[near] for near in (place - 1, place + 1) if 0 <= near < BINS])
    return counts


def _divergence(counts: NDArray[np.float64], start: int, stop: int) -> float:
    """Return the divergence for the bins from `start` to before `stop`; infinite if a level has lost all."""
    inside = counts[start:stop]
    wanted = inside.copy()
    wanted[0] += counts[:start].sum()
    wanted[-1] += counts[stop:].sum()
    filled = wanted > 0
    level = np.arange(len(inside)) * LEVELS // len(inside)
    shared = np.bincount(level, weights=inside, minlength=LEVELS)
    bins = np.bincount(level, weights=filled, minlength=LEVELS)
    p, q = wanted[filled], (shared / np.maximum(bins, 1))[level[filled]]
    if not q.all():
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))


def _extremes(activations: _Activations, batches: Batches) -> dict[str, Range]:
    lows: dict[str, np.float32] = {}
    highs: dict[str, np.float32] = {}
    samples = 0
    for values in activations.computed(batches):
        samples += 1
        for name, value in values.items():
            if value.size:
                lows[name] = np.minimum(lows.get(name, np.float32(np.inf)), value.min())
                highs[name] = np.maximum(highs.get(name, np.float32(-np.inf)), value.max())
    if not samples:
        raise EngineError("There is nothing to calibrate with; expected at least one sample.")
    for name, low in lows.items():
        if not (np.isfinite(low) and np.isfinite(highs[name])):
            raise EngineError(
                f"Activation `{name}` ranges from {low} to {highs[name]} on the calibration samples; "
                "INT8 needs finite values. Use an FP32 recipe."
            )
    return {name: (float(low), float(highs[name])) for name, low in lows.items()}


class _Activations:
    """Computes tensors inside a model, sample by sample where the batch axis allows it."""

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str], signature: Signature) -> None:
        import onnx

        self._inputs = [spec.name for spec in signature.inputs]
        self._whole = isinstance(signature.inputs[0].shape[0], int)
        # An output that is an input comes back as the caller's own array, or worse (onnxruntime#21922).
        self._given = [name for name in tensors if name in self._inputs]
        self._inside = [name for name in tensors if name not in self._inputs]
        opened = onnx.ModelProto()
        opened.CopyFrom(model)
        known = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
        del opened.graph.output[:]
        opened.graph.output.extend(known[name] for name in self._inside)
        self._session = open_session(opened)

    def computed(self, batches: Batches) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Yield the tensors by name for each sample; they are gone when the next is asked for."""
        for batch in batches():
            sizes = len(batch[0])
            for start in range(0, sizes, sizes if self._whole else 1):
                stop = sizes if self._whole else start + 1
                values = self._compute(
                    {
                        name: np.ascontiguousarray(array[start:stop])
                        for name, array in zip(self._inputs, batch, strict=True)
                    }
                )
                yield values
                values.clear()

    def _compute(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        # Without names the session computes all its outputs, of which there are none.
        values = self._session.run(self._inside, dict(inputs)) if self._inside else []
        return dict(zip(self._inside, values, strict=True)) | {name: inputs[name] for name in self._given}
