"""How far networks look along the time, against what changes when one frame changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from alula.errors import ModelError
from alula.graphs import local_part

FRAMES = 97


class Drawing:
    """A network on (b, 2, 8, t), drawn node by node; each call returns the name of its output."""

    def __init__(self, frames: int = FRAMES) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.frames = frames
        self.chance = np.random.default_rng(0)

    def add(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def number(self, value: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def axes(self, *axes: int) -> str:
        return self.number(np.array(axes, np.int64))

    def conv(self, x: str, kernel: tuple[int, int], into: int = 2, of: int = 2, **attributes: object) -> str:
        # Positive weights on positive data: nothing that changes is cut off or cancels.
        weight = self.chance.uniform(0.1, 1.0, (into, of, *kernel)).astype(np.float32)
        return self.add("Conv", x, self.number(weight), **attributes)

    def model(self, output: str, shape: list[object]) -> onnx.ModelProto:
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [output], ["y"])],
            "drawn",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 2, 8, self.frames])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model)
        return model


def pooled(drawing: Drawing, x: str) -> onnx.ModelProto:
    return drawing.model(drawing.add("ReduceMax", x, drawing.axes(2, 3), keepdims=0), ["b", 2])


def strided() -> onnx.ModelProto:
    d = Drawing()
    x = d.conv("x", (3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
    x = d.add("MaxPool", d.add("Relu", x), kernel_shape=[3, 5], strides=[1, 2], pads=[1, 2, 1, 2])
    return pooled(d, d.conv(x, (1, 3), dilations=[1, 2], pads=[0, 2, 0, 2]))


def unpadded() -> onnx.ModelProto:
    d = Drawing()
    return pooled(d, d.conv(d.conv("x", (1, 4), strides=[1, 3]), (3, 2)))


def padded_apart() -> onnx.ModelProto:
    d = Drawing()
    x = d.add("Pad", "x", d.number(np.array([0, 0, 0, 0, 0, 0, 0, 1], np.int64)))
    x = d.conv(x, (1, 3), strides=[1, 2])
    x = d.add("Pad", x, d.axes(3, 3), "", d.axes(3))
    return pooled(d, d.conv(x, (1, 7)))


def residual() -> onnx.ModelProto:
    d = Drawing()
    stem = d.conv("x", (3, 3), pads=[1, 1, 1, 1])
    branch = d.conv(d.conv(stem, (1, 5), pads=[0, 2, 0, 2]), (1, 3), strides=[1, 2], pads=[0, 1, 0, 1])
    short = d.add("AveragePool", stem, kernel_shape=[1, 2], strides=[1, 2], ceil_mode=1)
    return pooled(d, d.add("Add", branch, short))


def transposed() -> onnx.ModelProto:
    d = Drawing()
    x = d.add("Transpose", "x", perm=[0, 1, 3, 2])
    x = d.conv(x, (3, 3), strides=[2, 1], pads=[1, 1, 1, 1])
    x = d.add("Squeeze", d.add("ReduceMean", x, d.axes(3), keepdims=1), d.axes(3))
    x = d.add("Transpose", x, perm=[0, 2, 1])
    x = d.add("MatMul", x, d.number(np.ones((2, 2), np.float32)))
    return d.model(d.add("ReduceMax", x, d.axes(1), keepdims=0), ["b", 2])


@pytest.mark.parametrize("draw", [strided, unpadded, padded_apart, residual, transposed])
def test_a_column_depends_on_what_is_told_and_on_no_more(draw: Any) -> None:
    model = draw()
    part = local_part(model, axis=3)
    (cut,), (axis,) = part.cut, part.cut_axes
    assert (part.entry, part.entry_axis, part.frames, part.gated) == ("x", 3, FRAMES, False)
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    del whole.graph.output[:]
    whole.graph.output.append(helper.make_empty_tensor_value_info(cut))
    run = ReferenceEvaluator(whole)
    still = np.ones((1, 2, 8, FRAMES), np.float32)
    (before,) = run.run(None, {"x": still})
    assert before.shape[axis] == part.columns
    first, last = [FRAMES] * part.columns, [-1] * part.columns
    for frame in range(FRAMES):
        moved = still.copy()
        moved[..., frame] = 50.0
        (after,) = run.run(None, {"x": moved})
        for column in range(part.columns):
            if (after.take(column, axis) != before.take(column, axis)).any():
                first[column], last[column] = min(first[column], frame), max(last[column], frame)
    for column in range(part.columns):
        low, high = column * part.stride - part.before, column * part.stride + part.after
        if low >= 0 and high < FRAMES:
            assert (first[column], last[column]) == (low, high)
        else:
            assert low <= first[column]
            assert last[column] <= high


def test_gates_over_the_whole_time_are_told() -> None:
    d = Drawing()
    x = d.conv("x", (1, 3), pads=[0, 1, 0, 1])
    gate = d.add("Sigmoid", d.conv(d.add("GlobalAveragePool", x), (1, 1)))
    x = d.conv(d.add("Mul", x, gate), (1, 3), strides=[1, 2], pads=[0, 1, 0, 1])
    part = local_part(pooled(d, x), axis=3)
    assert part.gated
    assert (part.cut, part.stride, part.before, part.after) == ((x,), 2, 2, 2)


def test_a_crop_of_the_end_is_left_out() -> None:
    d = Drawing()
    x = d.add("Slice", "x", d.axes(0), d.axes(96), d.axes(-1), d.axes(1))
    part = local_part(pooled(d, d.conv(x, (1, 3), strides=[1, 2], pads=[0, 1, 0, 1])), axis=3)
    assert (part.entry, part.frames, part.columns) == (x, 96, 48)


def test_several_tensors_may_be_pooled() -> None:
    d = Drawing()
    x = d.conv("x", (8, 3), pads=[0, 1, 0, 1])
    scores, wide = d.add("Sigmoid", x), d.add("Tanh", d.conv(x, (1, 5), pads=[0, 2, 0, 2]))
    mixed = d.add("Mul", scores, d.add("Softmax", wide, axis=3))
    part = local_part(d.model(d.add("ReduceSum", mixed, d.axes(2, 3), keepdims=0), ["b", 2]), axis=3)
    assert set(part.cut) == {scores, wide}
    assert (part.before, part.after) == (3, 3)


def test_a_value_for_each_column_ends_the_local_part() -> None:
    d = Drawing()
    x = d.conv("x", (1, 3), pads=[0, 1, 0, 1])
    placed = d.add("Add", x, d.number(np.zeros((1, 1, 1, FRAMES), np.float32)))
    assert local_part(pooled(d, placed), axis=3).cut == (x,)


def test_a_network_without_pooling_is_refused() -> None:
    d = Drawing()
    with pytest.raises(ModelError, match="nothing pools them"):
        local_part(d.model(d.conv("x", (1, 3)), ["b", 2, 8, FRAMES - 2]), axis=3)


def test_a_network_that_reads_all_at_once_is_refused() -> None:
    d = Drawing()
    flat = d.add("Flatten", "x")
    weights = d.number(np.zeros((2 * 8 * FRAMES, 3), np.float32))
    with pytest.raises(ModelError, match="reads all of it"):
        local_part(d.model(d.add("MatMul", flat, weights), ["b", 3]), axis=3)


def test_maps_of_two_resolutions_are_refused() -> None:
    d = Drawing()
    fine = d.conv("x", (1, 3), pads=[0, 1, 0, 1])
    coarse = d.conv(fine, (1, 3), strides=[1, 2], pads=[0, 1, 0, 1])
    peaks = [d.add("ReduceMax", one, d.axes(2, 3), keepdims=0) for one in (fine, coarse)]
    with pytest.raises(ModelError, match="several resolutions"):
        local_part(d.model(d.add("Add", *peaks), ["b", 2]), axis=3)
