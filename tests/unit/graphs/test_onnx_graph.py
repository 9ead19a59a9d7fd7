"""ONNX files of other exporters: names, opsets, open axes, nested graphs, broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from alula.errors import ModelError
from alula.graphs import LayerGraph, assign_roles, name_nodes, read_onnx, total_macs, total_parameters


def model_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    shape: tuple[int | str, ...],
    opset: int = 18,
    outputs: tuple[str, ...] = ("y",),
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def weight(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def node(
    operator: str, inputs: list[str], output: str, name: str = "", **attributes: object
) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], name=name, **attributes)


def macs_of(graph: LayerGraph) -> dict[str, int | None]:
    return {layer.name: layer.macs for layer in graph.layers}


def test_nodes_without_a_name_of_their_own_get_one() -> None:
    nodes = [
        node("Relu", ["x"], "a"),
        node("Relu", ["a"], "b", name="same"),
        node("Relu", ["b"], "c", name="same"),
        node("Relu", ["c"], "d", name="Relu_0"),
        node("Relu", ["d"], "y"),
    ]
    model = model_of(nodes, {}, shape=("b", 3))
    before = model.SerializeToString(deterministic=True)
    names = [layer.name for layer in read_onnx(model).layers]
    assert model.SerializeToString(deterministic=True) == before
    assert len(set(names)) == 5
    assert (names[1], names[3]) == ("same", "Relu_0")
    assert name_nodes(model) == 3
    assert [n.name for n in model.graph.node] == names
    assert [layer.name for layer in read_onnx(model).layers] == names
    assert name_nodes(model) == 0


def test_arithmetic_on_sizes_and_constants_is_no_layer() -> None:
    nodes = [
        node("Shape", ["x"], "shape"),
        node("Gather", ["shape", "zero"], "batch", axis=0),
        node("Concat", ["batch", "minus"], "target", axis=0),
        node("Reshape", ["x", "target"], "flat", name="flatten"),
        node("Transpose", ["w"], "wt", perm=[1, 0]),
        node("MatMul", ["flat", "wt"], "y", name="product"),
    ]
    constants = {"zero": np.array([0]), "minus": np.array([-1]), "w": weight(5, 12)}
    graph = read_onnx(model_of(nodes, constants, shape=("b", 3, 4)))
    assert [layer.name for layer in graph.layers] == ["flatten", "product"]
    product = graph.layer("product")
    assert (product.in_channels, product.out_channels, product.macs) == (12, 5, 60)
    assert product.output_shape == (1, 5)
    assert total_parameters(graph) == 60


def test_sizes_that_inference_does_not_follow_are_computed() -> None:
    # Indices 0 .. batch - 1 by Range, twice, the second from a tensor that depends on the first.
    def picked(source: str, target: str) -> list[onnx.NodeProto]:
        return [
            node("Shape", [source], f"{target}_shape"),
            node("Gather", [f"{target}_shape", "zero"], f"{target}_batch", axis=0),
            node("Range", ["zero", f"{target}_batch", "one"], f"{target}_range"),
            node("Gather", [source, f"{target}_range"], target, name=target, axis=0),
        ]

    nodes = [
        *picked("x", "first"),
        *picked("first", "second"),
        node("MatMul", ["second", "w"], "y", name="m"),
    ]
    weights = {"zero": np.array(0), "one": np.array(1), "w": weight(4, 5)}
    graph = read_onnx(model_of(nodes, weights, shape=("b", 3, 4)))
    assert [layer.name for layer in graph.layers] == ["first", "second", "m"]
    assert graph.layer("m").output_shape == (1, 3, 5)
    assert total_macs(graph) == 60


def test_constant_outputs_are_no_layers() -> None:
    nodes = [
        node("Shape", ["x"], "size"),
        node("NonZero", ["x"], "where", name="where"),
        node("Range", ["zero", "three", "one"], "steps"),
    ]
    weights = {"zero": np.array(0), "one": np.array(1), "three": np.array(3)}
    outputs = ("size", "where", "steps")
    graph = read_onnx(model_of(nodes, weights, shape=("b", 4), outputs=outputs, dtype=TensorProto.INT64))
    assert graph.outputs == ("where",)
    assert graph.layer("where").output_shape == (2, None)


def test_a_batch_size_in_the_file_is_divided_out() -> None:
    nodes = [node("Conv", ["x", "w"], "y", name="conv", pads=[1, 1, 1, 1])]
    for batch in (1, 6, "b"):
        graph = read_onnx(model_of(nodes, {"w": weight(4, 3, 3, 3)}, shape=(batch, 3, 5, 5)))
        assert macs_of(graph) == {"conv": 4 * 3 * 9 * 25}


def test_sizes_that_the_file_leaves_open_are_given_or_unknown() -> None:
    nodes = [node("Conv", ["x", "w"], "y", name="conv")]
    model = model_of(nodes, {"w": weight(4, 3, 3, 3)}, shape=("b", 3, "h", "w"))
    unknown = read_onnx(model)
    assert macs_of(unknown) == {"conv": None}
    assert unknown.layer("conv").out_channels == 4
    assert assign_roles(unknown) == {"conv": "stem"}
    with pytest.raises(ModelError, match="`conv`"):
        total_macs(unknown)
    assert total_macs(read_onnx(model, shapes={"x": (1, 3, 5, 7)})) == 4 * 27 * 3 * 5
    assert total_macs(read_onnx(model, shapes={"x": (2, 3, 5, 7)})) == 4 * 27 * 3 * 5


@pytest.mark.parametrize("opset", [13, 18])
def test_axes_are_an_attribute_or_an_input(opset: int) -> None:
    reduced = (
        node("ReduceMean", ["x"], "y", name="mean", axes=[-2, -1])
        if opset == 13
        else node("ReduceMean", ["x", "axes"], "y", name="mean")
    )
    weights = {} if opset == 13 else {"axes": np.array([-2, -1])}
    graph = read_onnx(model_of([reduced], weights, shape=("b", 3, 5, 5), opset=opset))
    assert graph.layer("mean").kind == "global-pool"


@pytest.mark.parametrize(
    ("kernel", "strides", "kind"), [([5, 5], [1, 1], "global-pool"), ([4, 4], [1, 1], "pool")]
)
def test_a_window_over_everything_is_a_global_pool(kernel: list[int], strides: list[int], kind: str) -> None:
    nodes = [node("AveragePool", ["x"], "y", name="pool", kernel_shape=kernel, strides=strides)]
    assert read_onnx(model_of(nodes, {}, shape=("b", 3, 5, 5))).layer("pool").kind == kind


def test_transposed_matrices_keep_their_channels() -> None:
    nodes = [
        node("Gemm", ["x", "w", "bias"], "a", name="right", transB=1),
        node("Gemm", ["u", "a"], "y", name="left", transA=1, transB=1),
    ]
    weights = {"w": weight(5, 4), "bias": weight(5), "u": weight(5, 7)}
    graph = read_onnx(model_of(nodes, weights, shape=("b", 4)))
    right, left = graph.layer("right"), graph.layer("left")
    assert (right.in_channels, right.out_channels, right.macs, right.parameters) == (4, 5, 20, 25)
    assert (left.in_channels, left.out_channels, left.macs) == (5, 7, 35)
    assert left.output_shape == (7, 1)


def test_a_recurrent_operator_is_counted() -> None:
    steps, size, state = 6, 3, 5
    nodes = [
        node("Transpose", ["x"], "xt", perm=[1, 0, 2]),
        helper.make_node("LSTM", ["xt", "w", "r"], ["", "y"], name="lstm", hidden_size=state),
    ]
    weights = {"w": weight(1, 4 * state, size), "r": weight(1, 4 * state, state)}
    for batch in ("b", 2):
        layer = read_onnx(model_of(nodes, weights, shape=(batch, steps, size))).layer("lstm")
        assert layer.macs == steps * 4 * state * (size + state)
        assert (layer.kind, layer.in_channels, layer.out_channels) == ("recurrent", size, state)


def test_a_whole_attention_is_counted() -> None:
    nodes = [node("Attention", ["x", "x", "x"], "y", name="attention", q_num_heads=2, kv_num_heads=2)]
    graph = read_onnx(model_of(nodes, {}, shape=("b", 7, 8), opset=23))
    assert total_macs(graph) == 2 * 7 * 7 * 8


def test_a_table_looked_up_by_data_is_an_embedding() -> None:
    nodes = [
        node("Cast", ["x"], "ids", to=TensorProto.INT64),
        node("Gather", ["table", "ids"], "rows", name="table_rows"),
        node("Gather", ["rows", "first"], "y", name="first_row", axis=1),
    ]
    weights = {"table": weight(9, 4), "first": np.array(0)}
    graph = read_onnx(model_of(nodes, weights, shape=("b", 7)))
    assert (graph.layer("table_rows").kind, graph.layer("first_row").kind) == ("embedding", "shape")
    assert graph.layer("table_rows").parameters == 36


def test_shared_weights_count_once() -> None:
    nodes = [node("MatMul", ["x", "w"], "a", name="a"), node("MatMul", ["a", "w"], "y", name="b")]
    graph = read_onnx(model_of(nodes, {"w": weight(4, 4)}, shape=("b", 4)))
    assert [layer.parameters for layer in graph.layers] == [16, 0]
    assert total_macs(graph) == 32


def test_statistics_of_a_normalisation_are_no_parameters() -> None:
    names = ["scale", "bias", "mean", "var"]
    nodes = [node("BatchNormalization", ["x", *names], "y", name="norm")]
    graph = read_onnx(model_of(nodes, {name: weight(3) for name in names}, shape=("b", 3, 5)))
    assert graph.layer("norm").parameters == 6


def test_what_a_branch_captures_it_reads_and_its_work_is_unknown() -> None:
    def branch(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([node("MatMul", ["hidden", "w"], name)], name, [], [out])

    nodes = [
        node("Relu", ["x"], "hidden", name="relu"),
        node("ReduceMax", ["x"], "largest", name="max"),
        node("Cast", ["largest"], "condition", name="cast", to=TensorProto.BOOL),
        helper.make_node(
            "If", ["condition"], ["y"], name="if", then_branch=branch("one"), else_branch=branch("two")
        ),
    ]
    graph = read_onnx(model_of(nodes, {"w": weight(3, 3)}, shape=("b", 3)))
    assert {layer.name for layer in graph.producers("if")} == {"cast", "relu"}
    assert graph.layer("if").macs is None


def test_operators_of_other_domains_are_not_mistaken() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="custom", domain="my.company")]
    model = model_of(nodes, {"w": weight(4, 3, 3, 3)}, shape=("b", 3, 5, 5))
    model.opset_import.append(helper.make_opsetid("my.company", 1))
    assert read_onnx(model).layer("custom").kind == "other"


def test_large_weights_in_another_file_are_not_needed(tmp_path: Path) -> None:
    model = model_of([node("MatMul", ["x", "w"], "y", name="m")], {"w": weight(64, 64)}, shape=("b", 64))
    onnx.save_model(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=1024
    )
    (tmp_path / "m.bin").unlink()
    assert total_macs(read_onnx(tmp_path / "m.onnx")) == 64 * 64


def test_a_file_that_is_no_model_says_so(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"m\.onnx cannot be read as an ONNX file"):
        read_onnx(path)
    with pytest.raises(ModelError, match=r"absent\.onnx cannot be read"):
        read_onnx(tmp_path / "absent.onnx")


def test_nodes_out_of_order_are_refused() -> None:
    model = model_of([node("Relu", ["a"], "y", name="late"), node("Relu", ["x"], "a")], {}, shape=("b", 3))
    with pytest.raises(ModelError, match=r"`late`.*`a`, which no earlier node makes"):
        read_onnx(model)
