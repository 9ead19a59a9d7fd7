"""OpenVINO's recipes, batch sizes, precisions and manners in the calling thread."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import write_linear_onnx

from alula.core import ARTIFACT_FILES, Recipe, Settings, Signature, TensorSpec
from alula.engines import openvino as subject
from alula.engines.openvino import OpenVinoEngine, OpenVinoSession
from alula.errors import EngineError

ov = pytest.importorskip("openvino")

FP32 = Recipe("openvino", "fp32")
BF16 = Recipe("openvino", "bf16")
DIRECT = Recipe("openvino", "fp32", variant="direct")
FP16_WEIGHTS = Recipe("openvino", "fp32", variant="fp16-weights")

IMAGES = Signature(
    (TensorSpec("x", "float32", ("b", 3, 8, 8)),), (TensorSpec("y", "float32", ("b", 4, 8, 8)),)
)
LAYOUTS = [Settings(threads=1), Settings(threads=2), Settings(threads=1, instances=2)]


def write_ir(path: Path, build: Callable[[Any, Any], Any]) -> Path:
    """Write the model that `build` makes of the operations and an input (b, 3, 8, 8)."""
    from openvino import opset13 as op

    x = op.parameter([-1, 3, 8, 8], np.float32, name="x")
    ov.save_model(ov.Model([build(op, x)], [x], "m"), path, compress_to_fp16=False)
    return path


def convolution(op: Any, x: Any, *, gain: float = 1.0) -> Any:
    weights = np.random.default_rng(3).normal(size=(4, 3, 1, 1)).astype(np.float32)
    product = op.convolution(x, op.constant(weights), [1, 1], [0, 0], [0, 0], [1, 1])
    return op.multiply(product, op.constant(np.float32(gain)))


def reference(x: np.ndarray) -> np.ndarray:
    weights = np.random.default_rng(3).normal(size=(4, 3, 1, 1)).astype(np.float32)
    return np.einsum("bihw,oi->bohw", x, weights[:, :, 0, 0])


def images(rng: np.random.Generator, batch: int) -> np.ndarray:
    return rng.normal(size=(batch, 3, 8, 8)).astype(np.float32)


def opened(
    folder: Path,
    build: Callable[[Any, Any], Any] = convolution,
    *,
    recipe: Recipe = FP32,
    settings: Settings | None = None,
) -> OpenVinoSession:
    write_ir(folder / ARTIFACT_FILES["openvino"], build)
    return OpenVinoEngine().load(folder, recipe=recipe, signature=IMAGES, settings=settings or Settings())


def flushes_denormals() -> bool:
    return bool(np.float64(5e-324) * np.float64(1.0) == 0.0)


def test_bf16_is_offered_where_it_has_instructions() -> None:
    plain = OpenVinoEngine().recipes(("avx2", "avx512_vnni"))
    assert plain == (FP32, DIRECT, FP16_WEIGHTS)
    assert OpenVinoEngine().recipes(("amx_bf16",)) == (FP32, BF16, DIRECT, FP16_WEIGHTS)


def test_only_the_direct_recipe_starts_from_openvino() -> None:
    engine = OpenVinoEngine()
    formats = {recipe.name: engine.export_format(recipe) for recipe in (FP32, BF16, DIRECT, FP16_WEIGHTS)}
    assert formats.pop("openvino/fp32-direct") == "openvino"
    assert set(formats.values()) == {"onnx"}


@pytest.mark.parametrize("recipe", [FP32, FP16_WEIGHTS], ids=str)
def test_weights_take_the_space_that_the_recipe_says(recipe: Recipe, tmp_path: Path) -> None:
    weights = np.random.default_rng(1).normal(size=(256, 64)).astype(np.float32)
    export, artifact = tmp_path / "export", tmp_path / "artifact"
    export.mkdir()
    artifact.mkdir()
    write_linear_onnx(export / ARTIFACT_FILES["onnx"], weights, shape=("b", 256))
    engine = OpenVinoEngine()
    engine.build(export, artifact, recipe=recipe)
    stored = 2 if recipe == FP16_WEIGHTS else 4
    size = (artifact / "model.bin").stat().st_size
    assert stored * weights.size <= size < stored * weights.size + 1000
    signature = Signature(
        (TensorSpec("x", "float32", ("b", 256)),), (TensorSpec("scores", "float32", ("b", 64)),)
    )
    session = engine.load(artifact, recipe=recipe, signature=signature, settings=Settings(batch_size=2))
    x = np.random.default_rng(2).normal(size=(2, 256)).astype(np.float32)
    # Computed with the stored weights in FP32: as near to those as FP32 is.
    expected = x @ (weights.astype(np.float16).astype(np.float32) if recipe == FP16_WEIGHTS else weights)
    np.testing.assert_allclose(session.run((x,))[0], expected, rtol=1e-4, atol=1e-4)


def test_the_direct_recipe_takes_the_export_as_it_is(tmp_path: Path, rng: np.random.Generator) -> None:
    export, artifact = tmp_path / "export", tmp_path / "artifact"
    export.mkdir()
    artifact.mkdir()
    write_ir(export / ARTIFACT_FILES["openvino"], convolution)
    engine = OpenVinoEngine()
    engine.build(export, artifact, recipe=DIRECT)
    assert sorted(path.name for path in artifact.iterdir()) == ["model.bin", "model.xml"]
    session = engine.load(artifact, recipe=DIRECT, signature=IMAGES, settings=Settings())
    x = images(rng, 1)
    np.testing.assert_allclose(session.run((x,))[0], reference(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_batch_size_is_right_however_often_it_comes(
    layout: Settings, tmp_path: Path, rng: np.random.Generator
) -> None:
    settings = Settings(threads=layout.threads, instances=layout.instances, batch_size=4)
    session = opened(tmp_path, settings=settings)
    for batch in (4, 1, 3, 4, 2, 1, 3, 2, 1, 4, 5, 9, 1):
        x = images(rng, batch)
        (y,) = session.run((x,))
        assert y.shape == (batch, 4, 8, 8)
        np.testing.assert_allclose(y, reference(x), rtol=1e-5, atol=1e-5)


def test_a_second_compilation_waits_for_the_fifth_smaller_batch(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int | str] = []

    class Counted(subject._Compiled):
        def __init__(self, path: Path, config: Any, *, specs: tuple[TensorSpec, ...], requests: int) -> None:
            compiled.append(specs[0].shape[0])
            super().__init__(path, config, specs=specs, requests=requests)

    monkeypatch.setattr(subject, "_Compiled", Counted)
    session = opened(tmp_path, settings=Settings(batch_size=4))
    for _ in range(4):
        session.run((images(rng, 4),))
        session.run((images(rng, 3),))
    assert compiled == [4]
    for _ in range(3):
        session.run((images(rng, 3),))
    assert compiled == [4, "b"]


def test_a_model_that_fixes_its_batch_itself(tmp_path: Path, rng: np.random.Generator) -> None:
    def build(op: Any, x: Any) -> Any:
        x.set_partial_shape(ov.PartialShape([2, 3, 8, 8]))
        return convolution(op, x)

    write_ir(tmp_path / ARTIFACT_FILES["openvino"], build)
    signature = Signature(
        (TensorSpec("x", "float32", (2, 3, 8, 8)),), (TensorSpec("y", "float32", (2, 4, 8, 8)),)
    )
    session = OpenVinoEngine().load(
        tmp_path, recipe=FP32, signature=signature, settings=Settings(batch_size=2)
    )
    x = images(rng, 2)
    np.testing.assert_allclose(session.run((x,))[0], reference(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(EngineError, match="expected float32"):
        session.run((images(rng, 1),))


@pytest.mark.parametrize("instances", [1, 2])
def test_run_after_close_is_an_error(instances: int, tmp_path: Path, rng: np.random.Generator) -> None:
    session = opened(tmp_path, settings=Settings(instances=instances, batch_size=2))
    session.run((images(rng, 1),))
    session.close()
    session.close()
    for batch in (2, 1, 3):
        with pytest.raises(EngineError, match="is closed; load the artifact again"):
            session.run((images(rng, batch),))


def test_more_callers_than_instances_take_turns(tmp_path: Path, rng: np.random.Generator) -> None:
    session = opened(tmp_path, settings=Settings(instances=2, batch_size=2))
    batches = [images(rng, 1 + index % 4) for index in range(8)]
    answers: list[list[np.ndarray]] = [[] for _ in batches]

    def work(index: int) -> None:
        for _ in range(10):
            answers[index].append(session.run((batches[index],))[0])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for x, got in zip(batches, answers, strict=True):
        assert len(got) == 10
        for y in got:
            np.testing.assert_allclose(y, reference(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("batch", [2, 3])
def test_denormals_are_flushed_inside_and_kept_outside(layout: Settings, batch: int, tmp_path: Path) -> None:
    assert not flushes_denormals()
    settings = Settings(threads=layout.threads, instances=layout.instances, batch_size=2)
    session = opened(tmp_path, lambda op, x: convolution(op, x, gain=1e30), settings=settings)
    assert not flushes_denormals()
    # Denormal numbers that the model would lift to ordinary ones.
    (y,) = session.run((np.full((batch, 3, 8, 8), 1e-39, np.float32),))
    np.testing.assert_array_equal(y, 0.0)
    assert not flushes_denormals()
    kept: list[bool] = []
    thread = threading.Thread(target=lambda: kept.append(flushes_denormals()))
    thread.start()
    thread.join()
    assert kept == [False]


def test_outputs_are_the_callers_own(tmp_path: Path, rng: np.random.Generator) -> None:
    session = opened(tmp_path, settings=Settings(batch_size=3))
    for batch in (3, 2, 5):
        x = images(rng, batch)
        (first,) = session.run((x,))
        kept = first.copy()
        first[...] = 7.0
        (second,) = session.run((x,))
        np.testing.assert_array_equal(second, kept)
        assert not np.shares_memory(first, second)


def test_bf16_that_nothing_is_computed_in_is_an_error(tmp_path: Path) -> None:
    from openvino import opset13 as op

    # Whole numbers are computed in no kind of floating point, on any CPU.
    x = op.parameter([-1, 4], np.int32, name="x")
    model = ov.Model([op.add(x, op.constant(np.int32(1)))], [x], "m")
    ov.save_model(model, tmp_path / ARTIFACT_FILES["openvino"])
    spec = TensorSpec("x", "int32", ("b", 4))
    signature = Signature((spec,), (spec,))
    OpenVinoEngine().load(tmp_path, recipe=FP32, signature=signature, settings=Settings())
    with pytest.raises(EngineError, match=r"nothing of this model in BF16 .*`openvino/bf16`") as caught:
        OpenVinoEngine().load(tmp_path, recipe=BF16, signature=signature, settings=Settings())
    assert len(str(caught.value).splitlines()) == 1


def test_bf16_rounds_products_and_fp32_does_not(tmp_path: Path, rng: np.random.Generator) -> None:
    try:
        session = opened(tmp_path, recipe=BF16, settings=Settings(batch_size=2))
    except EngineError as error:
        pytest.skip(f"NOT COVERED HERE: {error}")
    x = images(rng, 2)
    expected = reference(x)
    scale = np.abs(expected).max()
    rounded = np.abs(session.run((x,))[0] - expected).max() / scale
    # bfloat16 keeps eight bits: errors of 2**-9 in inputs, weights and outputs.
    assert 1e-4 < rounded < 4 * 2.0**-8
    plain = opened(tmp_path, recipe=FP32, settings=Settings(batch_size=2))
    assert np.abs(plain.run((x,))[0] - expected).max() / scale < 1e-5


def test_knobs(tmp_path: Path, rng: np.random.Generator) -> None:
    engine = OpenVinoEngine()
    x = images(rng, 1)
    for knobs in ({}, *engine.knobs(FP32, Settings())):
        session = opened(tmp_path, settings=Settings(knobs=knobs))
        np.testing.assert_allclose(session.run((x,))[0], reference(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(EngineError, match="no knob `pinn`; known are pin"):
        opened(tmp_path, settings=Settings(knobs={"pinn": True}))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_performance_hint_would_change_nothing_but_its_own_name(layout: Settings, tmp_path: Path) -> None:
    path = write_ir(tmp_path / "model.xml", convolution)
    config = {
        "INFERENCE_NUM_THREADS": layout.total_threads,
        "NUM_STREAMS": layout.instances,
        "ENABLE_HYPER_THREADING": True,
    }
    # One core for both: each has a signal stack of its own, and the second would put the first's back after
    # that is gone.
    core, found = ov.Core(), []
    for hint in ("LATENCY", "THROUGHPUT"):
        compiled = core.compile_model(path, "CPU", {**config, "PERFORMANCE_HINT": hint})
        names = set(compiled.get_property("SUPPORTED_PROPERTIES")) - {"PERFORMANCE_HINT"}
        found.append({name: str(compiled.get_property(name)) for name in sorted(names)})
    assert found[0] == found[1]
    assert opened(tmp_path)._config.keys() >= config.keys()
    assert found[0]["NUM_STREAMS"] == str(layout.instances)
    assert found[0]["INFERENCE_NUM_THREADS"] == str(layout.total_threads)


def test_a_signal_is_survived_after_sessions_have_come_and_gone(tmp_path: Path) -> None:
    """The plug-in lends a signal stack to the thread that starts it, and takes it away in any order."""
    write_ir(tmp_path / ARTIFACT_FILES["openvino"], convolution)
    script = """
import pickle, signal, sys
from alula.engines.openvino import OpenVinoEngine

signal.signal(signal.SIGINT, signal.default_int_handler)
engine, arguments = OpenVinoEngine(), pickle.loads(sys.stdin.buffer.read())
sessions = [engine.load(*arguments[:1], **arguments[1]) for _ in range(3)]
while sessions:
    del sessions[0]
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("survived")
"""
    keywords = {"recipe": FP32, "signature": IMAGES, "settings": Settings()}
    ended = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps((tmp_path, keywords)), capture_output=True
    )
    assert (ended.returncode, ended.stdout) == (0, b"survived\n"), ended.stderr.decode()


def test_an_onnx_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / ARTIFACT_FILES["onnx"]).write_bytes(b"no model at all\n" * 20)
    with pytest.raises(EngineError, match=r"OpenVINO cannot convert the ONNX export: .+") as caught:
        OpenVinoEngine().build(tmp_path, tmp_path, recipe=FP32)
    assert len(str(caught.value).splitlines()) == 1
