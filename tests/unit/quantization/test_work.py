"""The work of a small network by precision, counted by hand and held against what quantizers really made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import Network, images, material_for, write_separable

from alula.core import Recipe, Work
from alula.errors import ModelError
from alula.graphs import Products, products_of, read_onnx, total_macs
from alula.quantization import quantizer_for, work_of

# `write_separable` on 16x16: multiplications of each layer, by hand.
STEM = 16 * 16 * 8 * 3 * 9
DEPTHWISE = 16 * 16 * 8 * 9
SQUEEZE_EXCITE = 4 * 8 + 8 * 4
POINTWISE = 16 * 16 * (8 * 8 + 16 * 8)
HEAD = 5 * 16
TOTAL = STEM + DEPTHWISE + SQUEEZE_EXCITE + POINTWISE + HEAD


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> tuple[Products, ...]:
    folder = tmp_path_factory.mktemp("separable")
    return products_of(read_onnx(write_separable(folder)))


def test_the_work_of_a_network_by_roles(products: tuple[Products, ...]) -> None:
    found = {one.role: one.macs for one in products if one.kind == "conv"}
    # The last convolution before the head is a pointwise one, too.
    assert found == {
        "stem": STEM,
        "depthwise": DEPTHWISE,
        "squeeze-excite": SQUEEZE_EXCITE,
        "pointwise": POINTWISE,
    }
    assert sum(one.macs for one in products) == TOTAL


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("torch/fp32", Work(fp32=TOTAL)),
        ("openvino/fp32-direct", Work(fp32=TOTAL)),
        ("torch/bf16", Work(bf16=TOTAL)),
        ("openvino/int8-nncf", Work(int8=TOTAL)),
        ("openvino/int8-nncf-dense", Work(int8=STEM + POINTWISE + HEAD, fp32=DEPTHWISE + SQUEEZE_EXCITE)),
        (
            "openvino/int8-nncf-bf16-dense",
            Work(int8=STEM + POINTWISE + HEAD, bf16=DEPTHWISE + SQUEEZE_EXCITE),
        ),
        (
            "openvino/int8-nncf-mixed-bf16-dense",
            Work(int8=STEM + POINTWISE + HEAD, bf16=DEPTHWISE + SQUEEZE_EXCITE),
        ),
        ("onnxruntime/int8-static-no-depthwise", Work(int8=TOTAL - DEPTHWISE, fp32=DEPTHWISE)),
        (
            "onnxruntime/int8-static-percentile-no-edges",
            Work(int8=DEPTHWISE + POINTWISE, fp32=STEM + SQUEEZE_EXCITE + HEAD),
        ),
        ("onnxruntime/int8-dynamic", Work(int8=HEAD, fp32=TOTAL - HEAD)),
        ("torchscript/int8-fx", Work(int8=TOTAL)),
    ],
)
def test_the_work_of_a_recipe(products: tuple[Products, ...], recipe: str, expected: Work) -> None:
    assert work_of(products, Recipe.parse(recipe)) == expected


@pytest.mark.parametrize("recipe", ["torch/int8-eager", "other/int8-own"])
def test_what_a_quantizer_takes_may_not_be_known(products: tuple[Products, ...], recipe: str) -> None:
    assert work_of(products, Recipe.parse(recipe)) is None


def test_recurrent_layers_and_attention() -> None:
    net = (
        Products(kind="recurrent", role="recurrent", macs=100),
        Products(kind="attention", role="attention", macs=50),
        Products(kind="matmul", role="head", macs=10),
    )
    assert work_of(net, Recipe.parse("openvino/int8-nncf")) == Work(int8=135, fp32=25)
    assert work_of(net, Recipe.parse("onnxruntime/int8-static")) == Work(int8=60, fp32=100)
    assert work_of(net, Recipe.parse("torch/int8-dynamic")) == Work(int8=110, fp32=50)
    # ONNX Runtime quantizes LSTMs and not GRUs, which a kind does not tell apart.
    assert work_of(net, Recipe.parse("onnxruntime/int8-dynamic")) is None


def test_without_counts_nothing_is_known() -> None:
    assert work_of((), Recipe.parse("torch/fp32")) is None


@pytest.mark.parametrize("scope", ["", "-no-depthwise", "-dense", "-no-edges"])
def test_onnxruntime_quantizes_what_is_counted(tmp_path: Path, rng: np.random.Generator, scope: str) -> None:
    """In the file that its quantizer writes, products that read rounded values are those counted as INT8."""
    recipe = Recipe.parse(f"onnxruntime/int8-static{scope}")
    export, artifact = tmp_path / "export", tmp_path / "artifact"
    export.mkdir()
    artifact.mkdir()
    products = products_of(read_onnx(write_separable(export)))
    quantizer_for(recipe).quantize(material_for(export, images(rng, 16)), artifact, recipe=recipe)
    model = onnx.load(artifact / "model.onnx")
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    rounded = {
        node.name
        for node in model.graph.node
        if all(makers.get(name) == "DequantizeLinear" for name in node.input[:2])
    }
    layers = read_onnx(model).layers
    expected = work_of(products, recipe)
    assert expected is not None
    assert sum(layer.macs or 0 for layer in layers if layer.name in rounded) == expected.int8
    assert sum(layer.macs or 0 for layer in layers) == expected.total


@pytest.mark.parametrize(
    ("domain", "operator"), [("com.example", "Mystery"), ("", "DFT"), ("com.microsoft", "FusedConv")]
)
def test_an_operation_whose_work_is_not_counted_makes_the_whole_unknown(
    tmp_path: Path, domain: str, operator: str
) -> None:
    net = Network()
    stem = net.conv("x", 3, 8, kernel=3, name="stem")
    flat = net.add("Flatten", net.add("GlobalAveragePool", stem, name="pool"), name="flat")
    model = onnx.load(net.write(tmp_path / "model.onnx", output=net.linear(flat, 8, 5, name="head")))
    assert total_macs(read_onnx(model)) == STEM + 5 * 8
    model.graph.node.append(helper.make_node(operator, ["pool"], ["more"], name="more", domain=domain))
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    with pytest.raises(ModelError, match="`more`"):
        products_of(read_onnx(model))
