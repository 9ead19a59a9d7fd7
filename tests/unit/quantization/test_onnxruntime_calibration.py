"""Ranges against NumPy and against slow readings of the definitions; memory as the system sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_models import IMAGE, Network, images, signature_of, write_separable
from scipy.special import rel_entr

from alula.core import Signature, TensorSpec
from alula.errors import EngineError
from alula.quantization.onnxruntime_calibration import (
    LEVELS,
    Method,
    calibrated_ranges,
    entropy_range,
    percentile_range,
)
from alula.quantization.onnxruntime_findings import BINS, Histogram

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("b", *IMAGE)),), (TensorSpec("flat", "float32", ("b", 768)),)
)


def elementwise(scale: float) -> onnx.ModelProto:
    """Return x -> scaled -> rectified -> flat, which NumPy can follow exactly."""
    net = Network()
    scaled = net.add("Mul", "x", net.constant(np.float32(scale)), name="scaled")
    rectified = net.add("Relu", scaled, name="rectified")
    net.add("Flatten", rectified, name="flat")
    graph = helper.make_graph(
        net.nodes,
        "elementwise",
        [helper.make_tensor_value_info("x", 1, ("b", *IMAGE))],
        [helper.make_tensor_value_info("flat", 1, ("b", 768))],
        net.stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def ranges_of(
    samples: np.ndarray,
    method: Method,
    *,
    scale: float = 2.0,
    size: int = 5,
    signature: Signature = SIGNATURE,
) -> dict[str, tuple[float, float]]:
    return calibrated_ranges(
        elementwise(scale),
        ("x", "scaled", "rectified", "flat"),
        lambda: ((samples[start : start + size],) for start in range(0, len(samples), size)),
        signature=signature,
        method=method,
    )


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_of_a_model_only_the_input_may_be_unknown(method: Method, rng: np.random.Generator) -> None:
    """As after a scope that left the first layer in float."""
    samples = images(rng, 13)
    model = elementwise(2.0)
    found = calibrated_ranges(model, ("x",), lambda: [(samples,)], signature=SIGNATURE, method=method)
    assert found == {"x": (float(samples.min()), float(samples.max()))}


def test_minmax_is_exact(rng: np.random.Generator) -> None:
    samples = images(rng, 13)
    low, high = float(samples.min()), float(samples.max())
    assert ranges_of(samples, "minmax") == {
        "x": (low, high),
        "scaled": (2 * low, 2 * high),
        "rectified": (0.0, 2 * high),
        "flat": (0.0, 2 * high),
    }


def test_percentile_is_that_of_all_values_together(rng: np.random.Generator) -> None:
    samples = images(rng, 40) ** 3
    ranges = ranges_of(samples, "percentile")
    for name, values in (("scaled", 2 * samples), ("rectified", np.maximum(2 * samples, 0))):
        width = (values.max() - values.min()) / BINS
        expected = np.quantile(values, [0.00005, 0.99995], method="inverted_cdf")
        np.testing.assert_allclose(ranges[name], expected, atol=width)
        assert ranges[name][1] < values.max() - 10 * width  # so that taking all in would fail


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_what_enters_and_leaves_the_network_is_not_clipped(method: Method, rng: np.random.Generator) -> None:
    samples = images(rng, 20) ** 3
    ranges, whole = ranges_of(samples, method), ranges_of(samples, "minmax")
    assert (ranges["x"], ranges["flat"]) == (whole["x"], whole["flat"])
    assert ranges["scaled"] != whole["scaled"]


def test_a_fixed_batch_is_computed_whole(rng: np.random.Generator) -> None:
    samples = images(rng, 8)
    fixed = Signature((TensorSpec("x", "float32", (4, *IMAGE)),), SIGNATURE.outputs)
    assert ranges_of(samples, "percentile", size=4, signature=fixed) == ranges_of(samples, "percentile")


def test_constant_activations_have_no_outliers() -> None:
    samples = np.ones((3, *IMAGE), np.float32)
    assert ranges_of(samples, "percentile")["scaled"] == (2.0, 2.0)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_next_to_nothing_has_no_outliers(method: Method, rng: np.random.Generator) -> None:
    samples = images(rng, 3) * np.float32(1e-36)
    assert ranges_of(samples, method) == ranges_of(samples, "minmax")


def test_what_cannot_be_calibrated(rng: np.random.Generator) -> None:
    with pytest.raises(EngineError, match="nothing to calibrate with; expected at least one sample"):
        ranges_of(images(rng, 0), "minmax")
    with pytest.raises(EngineError, match=r"Activation `scaled` ranges from .* to inf on the calibration"):
        ranges_of(np.abs(images(rng, 2)) * 3, "minmax", scale=3e38)
    broken = images(rng, 2)
    broken[1, 0, 0, 0] = np.nan
    with pytest.raises(EngineError, match="ranges from nan to nan"):
        ranges_of(broken, "percentile")


@given(st.lists(st.integers(0, 2 * BINS - 1), min_size=1, max_size=300), st.integers(1, 7))
def test_counts_are_those_of_numpy(halves: list[int], pieces: int) -> None:
    # Odd quarters lie inside the bins of width 1/2, so that no rounding can move a value to a neighbour.
    values = np.array(halves, np.float32) / 4 + np.float32(0.125)
    histogram = Histogram(0.0, BINS / 2)
    for piece in np.array_split(values, pieces):
        histogram.add(piece)
    expected, edges = np.histogram(values, BINS, (0, BINS / 2))
    np.testing.assert_array_equal(histogram.counts, expected)
    np.testing.assert_array_equal(histogram.edges, edges)


def test_values_outside_count_in_the_outer_bins() -> None:
    histogram = Histogram(-1.0, 1.0)
    histogram.add(np.array([[-5.0, 1.0], [2.0, 0.0]], np.float32))
    assert (histogram.counts[0], histogram.counts[-1], histogram.counts.sum()) == (1, 2, 4)


@given(
    st.integers(0, 2**32 - 1), st.floats(50, 99.99), st.sampled_from(["normal", "exponential", "standard_t"])
)
def test_percentiles_are_those_of_numpy(seed: int, percentile: float, kind: str) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, 5000) if kind == "standard_t" else getattr(rng, kind)(size=5000)
    values = values.astype(np.float32)
    histogram = Histogram(float(values.min()), float(values.max()))
    histogram.add(values)
    outside = (1 - percentile / 100) / 2
    got = percentile_range(histogram, percentile)
    below, above = (np.quantile(values, [outside, 1 - outside], method=m) for m in ("lower", "higher"))
    width = (histogram.high - histogram.low) / BINS
    assert np.all(got >= np.minimum(below, above) - width)
    assert np.all(got <= np.maximum(below, above) + width)


def slow_divergence(counts: np.ndarray, start: int, stop: int) -> float:
    """Return the divergence as the method is written down, bin by bin."""
    inside = counts[start:stop].astype(float)
    wanted = inside.copy()
    wanted[0] += counts[:start].sum()
    wanted[-1] += counts[stop:].sum()
    given_back = np.zeros_like(wanted)
    for level in range(LEVELS):
        bins = [bin_ for bin_ in range(len(inside)) if bin_ * LEVELS // len(inside) == level]
        used = [bin_ for bin_ in bins if wanted[bin_] > 0]
        for bin_ in used:
            given_back[bin_] = inside[bins].sum() / len(used)
    return float(rel_entr(wanted / wanted.sum(), given_back / given_back.sum()).sum())


@pytest.mark.parametrize("low", [0.0, -0.3, -5.0])
def test_entropy_takes_the_range_of_least_divergence(low: float, rng: np.random.Generator) -> None:
    values = np.clip(rng.standard_t(3, 20_000), low, 12).astype(np.float32)
    histogram = Histogram(float(values.min()), float(values.max()))
    histogram.add(values)
    start, stop = np.round(
        (np.array(entropy_range(histogram)) - histogram.low) / (histogram.edges[1] - histogram.low)
    ).astype(int)
    counts = histogram.counts.astype(float)
    zero = np.searchsorted(histogram.edges, 0.0, side="right") - 1
    counts[zero] = np.mean(counts[[near for near in (zero - 1, zero + 1) if near >= 0]])
    chosen = slow_divergence(counts, start, stop)
    width = (histogram.high - histogram.low) / BINS
    for limit in np.linspace(width * (LEVELS + 16), max(-histogram.low, histogram.high), 9):
        other = (
            max(0, round((-limit - histogram.low) / width)),
            min(BINS, round((limit - histogram.low) / width)),
        )
        if other[1] - other[0] >= LEVELS:
            # The search looks at every eighth edge, so that a limit between two may be a little better.
            assert chosen <= slow_divergence(counts, *other) * 1.05


def test_entropy_leaves_outliers_out_and_nothing_else(rng: np.random.Generator) -> None:
    def limit(values: np.ndarray) -> float:
        histogram = Histogram(float(values.min()), float(values.max()))
        histogram.add(values.astype(np.float32))
        return entropy_range(histogram)[1]

    even = rng.uniform(0, 1, 100_000)
    assert limit(even) == pytest.approx(1.0, abs=0.01)
    bell = np.abs(rng.normal(0, 1, 100_000))
    with_outlier = np.append(bell, 30.0)
    assert 3.0 < limit(with_outlier) < 8.0
    # As after a ReLU: most values are exactly zero.
    assert limit(np.append(with_outlier, np.zeros(1_000_000))) == pytest.approx(limit(with_outlier), abs=1.0)


WIDE = (64, 96, 96)

PEAK = """
import re, sys
import numpy as np
import onnx
from pathlib import Path
from alula.quantization.onnxruntime_calibration import calibrated_ranges
from alula.quantization.onnxruntime_preparation import one_line_failures, prepare
from onnx_models import signature_of

path = Path(sys.argv[1])
model = prepare(path, path.parent)
tensors = [node.output[0] for node in model.graph.node if node.op_type != "Gemm"]
rng = np.random.default_rng(0)
batches = lambda: (
    (rng.standard_normal((2, *{shape}), dtype=np.float32),) for _ in range(int(sys.argv[3]))
)
calibrated_ranges(model, tensors, batches, signature=signature_of(path), method=sys.argv[2])
# Not `ru_maxrss`, which starts at what the parent of the process used.
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read where Linux tells it")
@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_memory_does_not_grow_with_the_samples(method: Method, tmp_path: Path) -> None:
    net = Network()
    source = "x"
    for index in range(12):
        source = net.add("Relu", net.add("Neg", source, name=f"neg_{index}"), name=f"relu_{index}")
    flat = net.add("Flatten", net.add("GlobalAveragePool", source, name="pool"), name="flat")
    path = net.write(tmp_path / "wide.onnx", output=net.linear(flat, WIDE[0], 5, name="head"), shape=WIDE)

    def peak_bytes(n: int) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PEAK.replace("{shape}", str(WIDE)), str(path), method, str(n)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        return int(done.stdout) * 1024

    few, many = peak_bytes(2), peak_bytes(22)
    one_tensor = int(np.prod(WIDE)) * 4
    # Forty more samples with 24 tensors each, of which not one is kept: what the allocator leaves in pieces
    # is at most one sample's activations.
    assert many - few < 24 * one_tensor < 40 * one_tensor


def test_activations_inside_are_those_of_the_network(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write_separable(tmp_path)
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    samples = images(rng, 6)
    reference = onnx.ModelProto()
    reference.CopyFrom(model)
    names = ("stem", "depthwise_silu", "gate", "residual")
    known = {value.name: value for value in model.graph.value_info}
    reference.graph.output.extend(known[name] for name in names)
    outputs = dict(
        zip(
            names,
            ReferenceEvaluator(reference).run(list(names), {"x": samples}),
            strict=True,
        )
    )
    ranges = calibrated_ranges(
        model, names, lambda: iter([(samples,)]), signature=signature_of(path), method="minmax"
    )
    for name in names:
        np.testing.assert_allclose(ranges[name], (outputs[name].min(), outputs[name].max()), rtol=1e-5)
