"""ONNX Runtime's knobs, its threads counted from outside, and what it leaves behind in the caller."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import images, signature_of, write_separable

from alula.core import Recipe, Scalar, Settings, Signature, TensorSpec
from alula.engines import Session, engine_named
from alula.errors import EngineError

FP32 = Recipe("onnxruntime", "fp32")
ENGINE = engine_named("onnxruntime")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
flushing = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="NOT COVERED HERE: denormals of this CPU"
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small network."""
    return write_separable(tmp_path_factory.mktemp("separable")).parent


def load(artifact: Path, **settings: object) -> Session:
    return ENGINE.load(
        artifact,
        recipe=FP32,
        signature=signature_of(artifact / "model.onnx"),
        settings=Settings(**settings),  # type: ignore[arg-type]
    )


def count_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@linux
@pytest.mark.parametrize(
    ("threads", "instances", "inter_op"),
    [(1, 1, 1), (3, 1, 1), (1, 3, 1), (2, 2, 1), (3, 2, 1), (2, 1, 2), (4, 1, 2), (3, 1, 3), (2, 2, 3)],
)
def test_pools_and_callers_are_the_threads_of_the_settings(
    artifact: Path, threads: int, instances: int, inter_op: int, rng: np.random.Generator
) -> None:
    ENGINE.version()  # importing numpy's and ONNX Runtime's libraries starts threads of their own
    before = count_threads()
    session = load(artifact, threads=threads, instances=instances, knobs={"inter_op": inter_op})
    session.run((images(rng, 2),))
    # Each instance's caller computes as well.
    assert count_threads() - before == threads * instances - instances
    session.close()


@pytest.mark.parametrize(
    "knobs",
    [
        {"spin": True},
        {"spin": False},
        {"graph": "extended"},
        {"graph": "all"},
        {"inter_op": 2},
        {"arena": False},
    ],
    ids=str,
)
def test_knobs_change_no_results(artifact: Path, knobs: dict[str, Scalar], rng: np.random.Generator) -> None:
    inputs = (images(rng, 3),)
    (expected,) = load(artifact).run(inputs)
    (got,) = load(artifact, threads=2, knobs=knobs).run(inputs)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"spin": 1}, r"Knob `spin` .* got 1; expected one of True, False"),
        ({"graph": "none"}, r"Knob `graph` .* got 'none'; expected one of 'all', 'extended'"),
        ({"inter_op": 3}, r"Knob `inter_op` .* got 3; expected one of 1, 2 with 2 threads per instance"),
        ({"inter_op": 0}, r"Knob `inter_op` .* got 0"),
        ({"arena": "no"}, r"Knob `arena` .* got 'no'"),
        ({"spinning": True}, r"no knob `spinning`; known are arena, graph, inter_op, spin"),
    ],
    ids=str,
)
def test_what_no_knob_can_be(artifact: Path, knobs: dict[str, Scalar], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        load(artifact, threads=2, knobs=knobs)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_knobs_worth_a_try_differ_from_the_defaults_and_fit(artifact: Path, precision: str) -> None:
    recipe = Recipe("onnxruntime", "int8", "static") if precision == "int8" else FP32
    for threads, instances in ((1, 1), (2, 1), (1, 2), (4, 1), (2, 2)):
        layout = Settings(threads=threads, instances=instances)
        offered = ENGINE.knobs(recipe, layout)
        assert len(offered) in (1, 2, 3)
        assert ({"spin": instances > 1} in offered) == (threads > 1)
        for knobs in offered:
            load(artifact, threads=threads, instances=instances, knobs=knobs).close()


@pytest.fixture
def squaring(tmp_path: Path) -> Iterator[Path]:
    """A folder with a network that returns the square of its four inputs."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("b", 4)) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "x"], ["y"])], "square", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path


@flushing
def test_denormals_are_zero_for_every_caller_and_in_nobody_elses_arithmetic(squaring: Path) -> None:
    spec = TensorSpec("x", "float32", ("b", 4))
    signature = Signature((spec,), (TensorSpec("y", "float32", ("b", 4)),))
    session = ENGINE.load(squaring, recipe=FP32, signature=signature, settings=Settings(instances=2))
    tiny = np.full((1, 4), 1e-20, np.float32)
    seen = []

    def call() -> None:
        (squares,) = session.run((tiny,))
        seen.append((squares.max(), (tiny * tiny).max() > 0))

    for caller in (threading.Thread(target=call), threading.Thread(target=call)):
        caller.start()
        caller.join()
    call()
    assert seen == [(0.0, True)] * 3


@flushing
def test_the_first_session_of_a_process_leaves_no_trace(squaring: Path) -> None:
    # ONNX Runtime sets the flags once in a process, in the thread that loads the first session.
    code = f"""
import numpy as np
from pathlib import Path
from alula.core import Recipe, Settings, Signature, TensorSpec
from alula.engines import engine_named
signature = Signature((TensorSpec("x", "float32", ("b", 4)),), (TensorSpec("y", "float32", ("b", 4)),))
session = engine_named("onnxruntime").load(
    Path({str(squaring)!r}), recipe=Recipe("onnxruntime", "fp32"), signature=signature, settings=Settings()
)
loaded = np.float64(5e-324) * np.float64(1) > 0
(squares,) = session.run((np.full((1, 4), 1e-20, np.float32),))
print(loaded, squares.max(), np.float64(5e-324) * np.float64(1) > 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "0.0", "True"]
    assert done.stderr == ""


def test_nothing_is_noted_at_home(artifact: Path, tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from onnx_models import signature_of
from alula.core import Recipe, Settings
from alula.engines import engine_named
artifact = Path({str(artifact)!r})
signature = signature_of(artifact / "model.onnx")
recipe = Recipe("onnxruntime", "fp32")
engine_named("onnxruntime").load(artifact, recipe=recipe, signature=signature, settings=Settings())
print("ORT_DISABLE_TELEMETRY" in os.environ)
"""
    environment = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment | home
    )
    assert done.stdout.split() == ["False"]
    assert list(tmp_path.rglob("*")) == []


def test_a_failing_run_is_one_line_and_keeps_the_screen_clean(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("b", 4)) for name in "xy"]
    thirds = numpy_helper.from_array(np.array([-1, 3], np.int64), "thirds")
    whole = numpy_helper.from_array(np.array([-1, 4], np.int64), "whole")
    nodes = [
        helper.make_node("Reshape", ["x", "thirds"], ["z"]),
        helper.make_node("Reshape", ["z", "whole"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "thirds", values[:1], values[1:], [thirds, whole])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    session = load(tmp_path)
    np.testing.assert_array_equal(session.run((np.ones((3, 4), np.float32),))[0], np.ones((3, 4)))
    with pytest.raises(EngineError, match="ONNX Runtime failed on a batch: ") as caught:
        session.run((np.ones((2, 4), np.float32),))
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")
