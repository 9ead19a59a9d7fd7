"""OpenVINO models that do not come from ONNX, and their names."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from alula.errors import ModelError
from alula.graphs import assign_roles, read_openvino, total_macs, total_parameters


def constant(*shape: int) -> ov.Node:
    return ops.constant(np.ones(shape, np.float32))


def image(*shape: int) -> ov.op.Parameter:
    parameter = ops.parameter(ov.PartialShape(list(shape)), np.float32)
    parameter.set_friendly_name("x")
    return parameter


def named(node: ov.Node, name: str) -> ov.Node:
    node.set_friendly_name(name)
    return node


def test_groups_and_channels_come_from_the_weights() -> None:
    x = image(-1, 4, 6, 6)
    around, flat = ([1, 1], [1, 1], [1, 1]), ([0, 0], [0, 0], [1, 1])
    dense = named(ops.convolution(x, constant(8, 4, 3, 3), [1, 1], *around), "dense")
    depth = ops.group_convolution(dense, constant(8, 1, 1, 3, 3), [1, 1], *around)
    grouped = ops.group_convolution(named(depth, "depth"), constant(2, 3, 4, 1, 1), [1, 1], *flat)
    up = ops.convolution_backprop_data(named(grouped, "grouped"), constant(6, 5, 2, 2), [2, 2])
    graph = read_openvino(ov.Model([named(up, "up")], [x], "m"))
    read = {
        layer.name: (layer.groups, layer.in_channels, layer.out_channels, layer.macs)
        for layer in graph.layers
    }
    assert read == {
        "dense": (1, 4, 8, 4 * 8 * 9 * 36),
        "depth": (8, 8, 8, 8 * 9 * 36),
        "grouped": (2, 8, 6, 4 * 6 * 36),
        "up": (1, 6, 5, 6 * 5 * 4 * 36),
    }
    assert assign_roles(graph) == {"dense": "stem", "depth": "depthwise", "grouped": "grouped", "up": "head"}
    assert total_parameters(graph) == 8 * 4 * 9 + 8 * 9 + 2 * 3 * 4 + 6 * 5 * 4


def test_weights_stored_as_half_precision_are_weights() -> None:
    x = image(-1, 4)
    half = ops.convert(ops.constant(np.ones((4, 5), np.float16)), "f32")
    graph = read_openvino(ov.Model([named(ops.matmul(x, half, False, False), "m")], [x], "m"))
    layer = graph.layer("m")
    assert (layer.kind, layer.in_channels, layer.out_channels, layer.parameters) == ("matmul", 4, 5, 20)


def test_a_whole_attention_is_counted() -> None:
    x = image(-1, 2, 7, 4)
    graph = read_openvino(ov.Model([named(ops.scaled_dot_product_attention(x, x, x), "sdpa")], [x], "m"))
    assert graph.layer("sdpa").kind == "attention"
    assert total_macs(graph) == 2 * 2 * 7 * 7 * 4


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_recurrent_layer_is_counted(kind: str) -> None:
    steps, size, state = 6, 3, 5
    gates = {"lstm": 4, "gru": 3}[kind]
    x = image(-1, steps, size)
    batch = ops.gather(ops.shape_of(x), ops.constant(0), ops.constant(0))
    lengths = ops.broadcast(ops.constant(steps), ops.unsqueeze(batch, ops.constant(0)))
    target = ops.concat([ops.unsqueeze(batch, ops.constant(0)), ops.constant(np.array([1, state]))], 0)
    zero = ops.broadcast(ops.constant(np.float32(0)), target)
    weights = (
        constant(1, gates * state, size),
        constant(1, gates * state, state),
        constant(1, gates * state),
    )
    if kind == "lstm":
        layer = ops.lstm_sequence(x, zero, zero, lengths, *weights, state, "forward")
    else:
        layer = ops.gru_sequence(x, zero, lengths, *weights, state, "forward")
    graph = read_openvino(ov.Model([named(layer, "r").output(0)], [x], "m"))
    assert [layer.name for layer in graph.layers] == ["r"]
    got = graph.layer("r")
    assert got.macs == steps * gates * state * (size + state)
    assert (got.kind, got.in_channels, got.out_channels) == ("recurrent", size, state)


def test_open_sizes_are_given_or_unknown() -> None:
    x = image(-1, 3, -1, -1)
    conv = ops.convolution(x, constant(4, 3, 3, 3), [1, 1], [0, 0], [0, 0], [1, 1])
    model = ov.Model([named(conv, "conv")], [x], "m")
    assert read_openvino(model).layer("conv").macs is None
    for batch in (1, 2):
        assert total_macs(read_openvino(model, shapes={"x": (batch, 3, 5, 7)})) == 4 * 27 * 3 * 5
    with pytest.raises(ModelError, match=r"inputs of shapes \[1,5,5,7\]"):
        read_openvino(model, shapes={"x": (1, 5, 5, 7)})
    assert str(model.input(0).get_partial_shape()) == "[?,3,?,?]"


def test_one_name_for_two_operations_is_refused() -> None:
    x = image(-1, 4)
    first = named(ops.relu(x), "same")
    model = ov.Model([named(ops.tanh(first), "same")], [x], "m")
    with pytest.raises(ModelError, match="'same' more than once"):
        read_openvino(model)
