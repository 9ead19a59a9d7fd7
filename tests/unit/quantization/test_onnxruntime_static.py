"""Static quantization against ONNX Runtime's own `quantize_static`, and what variants and scopes change."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_models import (
    Network,
    images,
    material_for,
    signature_of,
    write_perceptron,
    write_residual,
    write_separable,
)
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

from alula.core import Recipe, Settings
from alula.engines import engine_named
from alula.errors import EngineError
from alula.quantization import Material, quantizer_named
from alula.quantization.onnxruntime_preparation import prepare

QUANTIZER = quantizer_named("onnxruntime/int8-static")
FP32 = Recipe("onnxruntime", "fp32")


@pytest.fixture(scope="module")
def separable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network of depthwise convolution and squeeze-excite."""
    return write_separable(tmp_path_factory.mktemp("separable")).parent


@pytest.fixture
def samples() -> np.ndarray:
    """Calibration images."""
    return images(np.random.default_rng(4), 24)


def quantized(material: Material, artifact: Path, name: str = "int8-static") -> onnx.ModelProto:
    artifact.mkdir()
    QUANTIZER.quantize(material, artifact, recipe=Recipe.parse(f"onnxruntime/{name}"))
    assert [path.name for path in artifact.iterdir()] == ["model.onnx"]
    model = onnx.load(artifact / "model.onnx")
    onnx.checker.check_model(model)
    return model


def run(folder: Path, inputs: np.ndarray) -> np.ndarray:
    session = engine_named("onnxruntime").load(
        folder, recipe=FP32, signature=signature_of(folder / "model.onnx"), settings=Settings()
    )
    (outputs,) = session.run((inputs,))
    session.close()
    return np.asarray(outputs)


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.vdot(left, right) / (np.linalg.norm(left) * np.linalg.norm(right)))


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def products_in_float(model: onnx.ModelProto) -> set[str]:
    """Return convolutions and matrix products whose weights are no dequantized integers."""
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return {
        node.name
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] not in dequantized
    }


class Reader:
    """Calibration samples as ONNX Runtime's own calibrators want them."""

    def __init__(self, batches: list[np.ndarray]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"x": batch}


@pytest.mark.parametrize("write", [write_separable, write_residual, write_perceptron])
@pytest.mark.parametrize("saturating", [False, True])
def test_plain_is_what_onnxruntime_makes_itself(
    write: object, saturating: bool, tmp_path: Path, samples: np.ndarray
) -> None:
    assert callable(write)
    export = write(tmp_path).parent
    got = quantized(material_for(export, samples, saturating=saturating), tmp_path / "artifact")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    onnx.save(prepare(export / "model.onnx", scratch), scratch / "prepared.onnx")
    quantize_static(
        scratch / "prepared.onnx",
        scratch / "expected.onnx",
        Reader(np.array_split(samples, 3)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=saturating,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
    expected = onnx.load(scratch / "expected.onnx")

    def structure(model: onnx.ModelProto) -> set[tuple[str, ...]]:
        return {(node.op_type, *node.input, "->", *node.output) for node in model.graph.node}

    assert structure(got) == structure(expected)
    assert set(stored(got)) == set(stored(expected))
    for name, values in stored(expected).items():
        # Sums of one sample and of a batch may differ in the last bit.
        np.testing.assert_allclose(stored(got)[name], values, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [recipe.name.partition("/")[2] for recipe in QUANTIZER.recipes(())])
def test_every_offered_recipe_resembles_fp32(
    name: str, separable: Path, tmp_path: Path, samples: np.ndarray, rng: np.random.Generator
) -> None:
    quantized(material_for(separable, samples), tmp_path / "artifact", name)
    inputs = images(rng, 32)
    assert cosine(run(tmp_path / "artifact", inputs), run(separable, inputs)) > 0.98


def test_plain_comes_first_and_all_names_lead_back() -> None:
    recipes = QUANTIZER.recipes(("avx2",))
    assert recipes[0] == Recipe("onnxruntime", "int8", "static")
    assert len(set(recipes)) == len(recipes)
    assert [Recipe.parse(recipe.name) for recipe in recipes] == list(recipes)


def test_variants_leave_outliers_out(separable: Path, tmp_path: Path, samples: np.ndarray) -> None:
    samples[0, 0, 0, 0] = 60.0
    material = material_for(separable, samples)
    plain, percentile, entropy = (
        stored(quantized(material, tmp_path / name, name))
        for name in ("int8-static", "int8-static-percentile", "int8-static-entropy")
    )
    for scale in ("stem_scale", "stem_silu_scale"):
        assert percentile[scale] < 0.9 * plain[scale]
        assert entropy[scale] < plain[scale] / 2
    assert percentile["x_scale"] == entropy["x_scale"] == plain["x_scale"]


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("all", set()),
        ("no-depthwise", {"depthwise"}),
        ("no-edges", {"stem", "reduce", "expand", "head"}),
        ("dense", {"depthwise", "reduce", "expand"}),
    ],
)
def test_scopes_leave_their_layers_in_float(
    scope: str, expected: set[str], separable: Path, tmp_path: Path, samples: np.ndarray
) -> None:
    name = "int8-static" if scope == "all" else f"int8-static-{scope}"
    model = quantized(material_for(separable, samples), tmp_path / "artifact", name)
    assert products_in_float(model) == expected


def test_rectifiers_go_with_the_layer_before_them(tmp_path: Path, samples: np.ndarray) -> None:
    export = write_residual(tmp_path).parent
    model = quantized(material_for(export, samples), tmp_path / "artifact", "int8-static-no-edges")
    left = {node.name for node in model.graph.node if node.op_type == "Relu"}
    assert left == {"stem_relu"}


@pytest.mark.parametrize(
    "name", ["int8-static-no-depthwise", "int8-static-dense", "int8-static-percentile-dense"]
)
def test_a_scope_that_changes_nothing(name: str, tmp_path: Path, samples: np.ndarray) -> None:
    material = material_for(write_residual(tmp_path).parent, samples)
    scope = "no-depthwise" if name.endswith("depthwise") else "dense"
    with pytest.raises(
        EngineError,
        match=f"Scope `{scope}` leaves nothing of this model in FP32; `onnxruntime/{name}` is the same",
    ):
        quantized(material, tmp_path / "artifact", name)
    assert not any((tmp_path / "artifact").iterdir())


def test_a_scope_that_leaves_nothing_to_quantize(tmp_path: Path, samples: np.ndarray) -> None:
    net = Network()
    flat = net.add("Flatten", net.add("Relu", "x", name="relu"), name="flat")
    net.write(tmp_path / "model.onnx", output=net.linear(flat, 768, 5, name="head"))
    material = material_for(tmp_path, samples)
    assert products_in_float(quantized(material, tmp_path / "plain")) == set()
    with pytest.raises(EngineError, match="no convolution and no matrix product to quantize"):
        quantized(material, tmp_path / "no-edges", "int8-static-no-edges")


def test_a_model_without_products(tmp_path: Path, samples: np.ndarray) -> None:
    net = Network()
    pooled = net.add("GlobalAveragePool", net.add("Relu", "x", name="relu"), name="pool")
    net.write(tmp_path / "model.onnx", output=net.add("Flatten", pooled, name="flat"), classes=3)
    with pytest.raises(EngineError, match="no convolution and no matrix product to quantize"):
        quantized(material_for(tmp_path, samples), tmp_path / "artifact")


def test_an_unknown_variant(separable: Path, tmp_path: Path, samples: np.ndarray) -> None:
    with pytest.raises(EngineError, match="has no variant `best`; known are percentile, entropy"):
        quantized(material_for(separable, samples), tmp_path / "artifact", "int8-static-best")


@pytest.mark.parametrize("saturating", [False, True])
def test_weights_leave_a_bit_where_products_saturate(
    saturating: bool, separable: Path, tmp_path: Path, samples: np.ndarray
) -> None:
    model = quantized(material_for(separable, samples, saturating=saturating), tmp_path / "artifact")
    most = max(
        np.abs(values.astype(int)).max()
        for values in stored(model).values()
        if values.dtype == np.int8 and values.ndim > 1
    )
    assert most == (64 if saturating else 127)


def test_old_files_and_fixed_batches(tmp_path: Path, samples: np.ndarray, rng: np.random.Generator) -> None:
    export = write_separable(tmp_path, batch=4, opset=11).parent
    quantized(material_for(export, samples, size=4), tmp_path / "artifact")
    inputs = images(rng, 4)
    assert cosine(run(tmp_path / "artifact", inputs), run(export, inputs)) > 0.98


def test_unnamed_nodes_have_roles_too(separable: Path, tmp_path: Path, samples: np.ndarray) -> None:
    model = onnx.load(separable / "model.onnx")
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, tmp_path / "model.onnx")
    made = quantized(material_for(tmp_path, samples), tmp_path / "artifact", "int8-static-no-edges")
    assert len(products_in_float(made)) == 4


def test_the_screen_and_the_log_stay_as_they_were(
    separable: Path, tmp_path: Path, samples: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    before = logging.root.manager.disable, logging.root.level
    quantized(material_for(separable, samples), tmp_path / "artifact", "int8-static-entropy")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    material = material_for(separable, samples)
    with pytest.raises(EngineError, match="ONNX Runtime cannot quantize this model: ") as caught:
        quantized(
            Material(
                export=tmp_path,
                module=material.module,
                batches=material.batches,
                signature=material.signature,
                saturating=False,
            ),
            tmp_path / "failed",
        )
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")
    assert (logging.root.manager.disable, logging.root.level) == before
