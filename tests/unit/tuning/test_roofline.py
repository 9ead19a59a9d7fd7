"""The machine's peaks: what is counted, what is timed, and what is said when an engine fails."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from alula.core import Recipe
from alula.engines import engine_named
from alula.errors import EngineError, EngineUnavailableError, MeasurementError, UsageError
from alula.measure import Round
from alula.measure.fake import ScriptedClock
from alula.tuning import roofline
from alula.tuning.roofline import ENGINES, Workload, measure_roofline, open_peaks

SMALL = Workload(layers=2, channels=8, size=6, rows=5, features=16, array_bytes=8 * 1000)
CONVOLUTIONS = 2 * 6 * 6 * 8 * 8 * 9
PRODUCTS = 2 * 5 * 16 * 16


@pytest.fixture(autouse=True)
def one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "ENGINES", ("onnxruntime",))


@pytest.mark.parametrize("name", ENGINES)
def test_the_engines_take_onnx_files(name: str) -> None:
    assert engine_named(name).export_format(Recipe(name, "fp32")) == "onnx"


def ticking(step_s: float) -> ScriptedClock:
    """A clock that moves by so much at each reading: every call takes as long."""
    return ScriptedClock(steps_s=itertools.repeat(step_s))


def test_the_peaks_are_work_over_time() -> None:
    """Each call takes a quarter of a second by this clock, so the larger work wins, whatever the machine."""
    roof = measure_roofline(threads=1, seconds=0.25, rounds=3, clock=ticking(0.25), workload=SMALL)
    assert CONVOLUTIONS > PRODUCTS
    assert roof.fp32_gmacs_per_s == pytest.approx(4 * CONVOLUTIONS / 1e9)
    assert roof.int8_gmacs_per_s == pytest.approx(4 * CONVOLUTIONS / 1e9)
    assert roof.bandwidth_gb_per_s == pytest.approx(4 * 3 * 8000 / 1e9)
    assert roof.bf16_gmacs_per_s is None  # ONNX Runtime has no such recipe
    assert roof.threads == 1
    assert "FP32 from onnxruntime on 3x3 convolutions" in roof.method
    assert "3 interleaved rounds of 0.25 s, 1 threads" in roof.method


def test_the_better_of_two_graphs_is_the_peak() -> None:
    wide = widened(SMALL, features=128)
    roof = measure_roofline(threads=1, seconds=0.25, rounds=1, clock=ticking(0.25), workload=wide)
    assert roof.fp32_gmacs_per_s == pytest.approx(4 * 2 * 5 * 128 * 128 / 1e9)
    assert "FP32 from onnxruntime on matrix products" in roof.method


def widened(work: Workload, *, features: int) -> Workload:
    return Workload(
        layers=work.layers,
        channels=work.channels,
        size=work.size,
        rows=work.rows,
        features=features,
        array_bytes=work.array_bytes,
    )


def test_a_disturbed_round_does_not_lower_the_peak() -> None:
    """A clock on which every second call takes four times as long; memory is left out."""
    uneven = ScriptedClock(steps_s=itertools.cycle([0.25, 0.25, 0.25, 0.25, 1.0]))
    roof = measure_roofline(threads=1, seconds=0.25, rounds=9, memory=False, clock=uneven, workload=SMALL)
    assert roof.fp32_gmacs_per_s == pytest.approx(4 * CONVOLUTIONS / 1e9)
    assert roof.bandwidth_gb_per_s is None
    assert "memory" not in roof.method


def test_all_threads_take_part() -> None:
    """Two instances make two samples a call, each in its own thread."""
    with open_peaks(threads=2, workload=SMALL) as peaks:
        for run in peaks.contenders.values():
            assert run(0.0).instances == 2
        memory = peaks.contenders["memory"](0.0)
        assert memory.samples == 2 * 3 * 4000  # half of the arrays each


def test_other_contenders_take_no_part_in_the_result() -> None:
    with open_peaks(threads=1, workload=SMALL, clock=ticking(0.25)) as peaks:
        rounds = {name: [run(0.0)] for name, run in peaks.contenders.items()}
        other = Round(samples=10**9, wall_s=1.0, calls=(1.0,))
        roof = peaks.roofline({**rounds, "eager": [other]}, failures={}, method="once")
    assert roof.fp32_gmacs_per_s == pytest.approx(4 * CONVOLUTIONS / 1e9)


@pytest.mark.parametrize("kind", ["3x3 convolutions", "matrix products"])
def test_the_int8_graph_computes_what_the_fp32_graph_does(tmp_path: Path, kind: str) -> None:
    """By ONNX's own reference, which knows nothing of engines; 8 bits leave a few percent of the scale."""
    outputs = {}
    for product, graph in roofline._graphs(SMALL, tmp_path, isa=()):
        if product.kind != kind:
            continue
        model = onnx.load(graph.folder / "model.onnx")
        onnx.checker.check_model(model)
        operators = {node.op_type for node in model.graph.node}
        assert ("QuantizeLinear" in operators) == (product.precision == "int8")
        expected = ReferenceEvaluator(model).run(None, {"x": graph.sample})[0]
        with contextlib.closing(roofline._loaded(product, graph, tmp_path / "made", threads=1)) as session:
            np.testing.assert_allclose(session.run((graph.sample,))[0], expected, atol=0.05)
        shutil.rmtree(tmp_path / "made")
        outputs[product.precision] = expected
    assert 0.2 < outputs["fp32"].std() < 3
    np.testing.assert_allclose(outputs["int8"], outputs["fp32"], atol=0.15)


@pytest.fixture
def int8_fails(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    whole = roofline._loaded

    def loaded(product, graph, artifact, *, threads):
        if product.precision == "int8":
            raise EngineError("no such products here")
        return whole(product, graph, artifact, threads=threads)

    monkeypatch.setattr(roofline, "_loaded", loaded)
    yield


def test_a_precision_that_no_engine_computes_is_said_with_its_reason(int8_fails: None) -> None:
    with pytest.raises(MeasurementError, match=r"int8.*matrix products: no such products here"):
        measure_roofline(threads=1, seconds=0.0, rounds=1, workload=SMALL)


def test_no_engine_is_said_with_how_to_install_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(self: object) -> str:
        raise EngineUnavailableError("onnxruntime", install="pip install 'alula[onnxruntime]'")

    monkeypatch.setattr(type(engine_named("onnxruntime")), "version", version)
    with pytest.raises(EngineUnavailableError, match=r"pip install 'alula\[onnxruntime\]'"):
        measure_roofline(threads=1, workload=SMALL)


def test_wrong_threads_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="thread"):
        measure_roofline(threads=0, workload=SMALL)


@pytest.mark.parametrize(
    ("l3", "l2", "threads", "available", "expected"),
    [
        (32 * 2**20, 2**20, 2, 64 * 2**30, 4 * 32 * 2**20),
        (0, 2 * 2**20, 16, 64 * 2**30, 4 * 32 * 2**20),
        (0, 0, 2, 64 * 2**30, 4 * 16 * 2**20),
        (256 * 2**20, 2**20, 2, 2 * 2**30, 2**28),
        (32 * 2**20, 2**20, 2, 0, 4 * 32 * 2**20),
    ],
    ids=["L3", "no L3", "caches not known", "little memory", "memory not known"],
)
def test_arrays_are_larger_than_the_caches_and_fit_into_memory(
    l3: int, l2: int, threads: int, available: int, expected: int
) -> None:
    cpu = msgspec.structs.replace(roofline.read_cpu(), l3_bytes=l3, l2_bytes=l2)
    assert roofline._array_bytes(cpu, threads, available) == expected


def test_the_memory_is_added_up() -> None:
    run = roofline._adder(8 * 300, 3)
    assert [run(instance) for instance in range(3)] == [3 * 800] * 3
