"""Dynamic quantization: what it takes, what it refuses, and how near to FP32 it stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_models import (
    Network,
    images,
    material_for,
    signature_of,
    write_perceptron,
    write_residual,
    write_separable,
)

from alula.core import Recipe, Settings
from alula.engines import engine_named
from alula.errors import EngineError
from alula.quantization import quantizer_named
from alula.quantization.onnxruntime_preparation import one_line_failures

QUANTIZER = quantizer_named("onnxruntime/int8-dynamic")
RECIPE = Recipe("onnxruntime", "int8", "dynamic")


def quantized(export: Path, artifact: Path, *, saturating: bool = False) -> onnx.ModelProto:
    artifact.mkdir()
    nothing = np.empty((0, 3, 16, 16), np.float32)
    QUANTIZER.quantize(material_for(export, nothing, saturating=saturating), artifact, recipe=RECIPE)
    assert [path.name for path in artifact.iterdir()] == ["model.onnx"]
    return onnx.load(artifact / "model.onnx")


def run(folder: Path, inputs: np.ndarray) -> np.ndarray:
    session = engine_named("onnxruntime").load(
        folder, recipe=RECIPE, signature=signature_of(folder / "model.onnx"), settings=Settings()
    )
    (outputs,) = session.run((inputs,))
    session.close()
    return np.asarray(outputs)


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.vdot(left, right) / (np.linalg.norm(left) * np.linalg.norm(right)))


def counts(model: onnx.ModelProto) -> dict[str, int]:
    operators = [node.op_type for node in model.graph.node]
    return {operator: operators.count(operator) for operator in operators}


@pytest.mark.parametrize("saturating", [False, True])
def test_matrix_products(saturating: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    export = write_perceptron(tmp_path).parent
    model = quantized(export, tmp_path / "artifact", saturating=saturating)
    assert counts(model)["MatMulInteger"] == 3
    assert "Gemm" not in counts(model)
    weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    most = max(np.abs(w.astype(int)).max() for w in weights if w.dtype == np.int8 and w.ndim == 2)
    assert most == (64 if saturating else 127)
    inputs = images(rng, 16)
    assert cosine(run(tmp_path / "artifact", inputs), run(export, inputs)) > 0.999


def write_recurrent(folder: Path, *, hidden: int = 24) -> Path:
    """Write `model.onnx`: rows of an image as steps of an LSTM, the last state as logits."""
    net = Network(seed=3)
    shape = np.array([0, 16, 48], np.int64)
    net.stored.append(numpy_helper.from_array(shape, "steps"))
    net.stored.append(numpy_helper.from_array(np.array([0], np.int64), "direction"))
    rows = net.add("Reshape", "x", "steps", name="rows")
    first = net.add("Transpose", rows, name="first", perm=[1, 0, 2])
    weights = [net.weights(1, 4 * hidden, size, fan_in=size) for size in (48, hidden)]
    net.add("LSTM", first, *weights, name="all", outputs=2, hidden_size=hidden)
    last = net.add("Squeeze", "all_1", "direction", name="last")
    return net.write(folder / "model.onnx", output=net.linear(last, hidden, 5, name="head"))


def test_recurrent_layers(tmp_path: Path, rng: np.random.Generator) -> None:
    export = write_recurrent(tmp_path).parent
    assert counts(quantized(export, tmp_path / "artifact"))["DynamicQuantizeLSTM"] == 1
    inputs = images(rng, 16)
    assert cosine(run(tmp_path / "artifact", inputs), run(export, inputs)) > 0.99


def test_products_of_two_activations_stay(tmp_path: Path) -> None:
    net = Network()
    rows = net.add("MatMul", "x", net.weights(16, 16, fan_in=16), name="weighted")
    both = net.add("MatMul", rows, net.add("Transpose", rows, name="turned", perm=[0, 1, 3, 2]), name="both")
    flat = net.add("Flatten", both, name="flat")
    net.write(tmp_path / "model.onnx", output=net.linear(flat, 768, 5, name="head"))
    made = counts(quantized(tmp_path, tmp_path / "artifact"))
    assert (made["MatMul"], made["MatMulInteger"]) == (1, 2)


@pytest.mark.parametrize("write", [write_separable, write_residual])
def test_a_head_alone_is_not_worth_it(write: object, tmp_path: Path) -> None:
    assert callable(write)
    export = write(tmp_path).parent
    with pytest.raises(
        EngineError,
        match=r"matrix products with weights and LSTMs, which are 0\.\d% of this model's work; use",
    ):
        quantized(export, tmp_path / "artifact")
    assert not any((tmp_path / "artifact").iterdir())


def test_a_model_without_weights(tmp_path: Path) -> None:
    net = Network()
    pooled = net.add("GlobalAveragePool", net.add("Relu", "x", name="relu"), name="pool")
    net.write(tmp_path / "model.onnx", output=net.add("Flatten", pooled, name="flat"), classes=3)
    with pytest.raises(EngineError, match=r"which are 0\.0% of this model's work"):
        quantized(tmp_path, tmp_path / "artifact")


def test_the_screen_and_the_log_stay_clean(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    quantized(write_perceptron(tmp_path).parent, tmp_path / "artifact")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_shapes_that_an_exporter_noted_of_weights(tmp_path: Path) -> None:
    model = onnx.load(write_perceptron(tmp_path))
    for tensor in model.graph.initializer:
        noted = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.value_info.append(noted)
    onnx.save(model, tmp_path / "model.onnx")
    assert counts(quantized(tmp_path, tmp_path / "artifact"))["MatMulInteger"] == 3


def test_offered_once_for_the_onnx_export() -> None:
    assert QUANTIZER.recipes(("avx2",)) == (RECIPE,)
    assert QUANTIZER.export_format(RECIPE) == "onnx"


def test_a_layer_that_is_used_twice(tmp_path: Path, rng: np.random.Generator) -> None:
    net = Network()
    flat = net.add("Flatten", "x", name="flat")
    first = net.linear(flat, 768, 48, name="first")
    weights, bias = net.weights(48, 48, fan_in=48), net.weights(48, fan_in=48)
    for name in ("once", "twice"):
        first = net.add("Gemm", first, weights, bias, name=name, transB=1)
    net.write(tmp_path / "model.onnx", output=net.linear(first, 48, 5, name="head"))
    assert counts(quantized(tmp_path, tmp_path / "artifact"))["MatMulInteger"] == 4
    inputs = images(rng, 16)
    assert cosine(run(tmp_path / "artifact", inputs), run(tmp_path, inputs)) > 0.99


@pytest.mark.parametrize("kind", ["ConvertError", "EncodeError"])
def test_what_onnx_and_protobuf_raise_is_one_line(kind: str) -> None:
    from google.protobuf import message
    from onnx import version_converter

    error = getattr(version_converter, kind, None) or getattr(message, kind)
    with (
        pytest.raises(EngineError, match=f"cannot quantize this model: {kind}: no adapter"),
        one_line_failures(),
    ):
        raise error("no adapter\nfor this operator")
