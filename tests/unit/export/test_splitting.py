"""A network in two files: together they are the network, and the first takes any length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from alula.core import ARTIFACT_FILES
from alula.errors import ModelError
from alula.export import split_for_whole_files

FRAMES = 32


def write(path: Path, nodes: list[Any]) -> Path:
    """Write a network on (b, 1, 8, t) with two outputs' worth of weights."""
    chance = np.random.default_rng(0)
    weights = {
        "kernel": chance.standard_normal((3, 1, 3, 3)),
        "wide": chance.standard_normal((3, 3, 1, 5)),
        "gate": chance.standard_normal((3, 3, 1, 1)),
        "linear": chance.standard_normal((3, 4)),
    }
    graph = helper.make_graph(
        nodes,
        "drawn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 1, 8, FRAMES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 4])],
        [
            *(numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()),
            numpy_helper.from_array(np.array([2, 3], np.int64), "places"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def gated_nodes() -> list[Any]:
    return [
        helper.make_node("Conv", ["x", "kernel"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["a"], ["mean"]),
        helper.make_node("Conv", ["mean", "gate"], ["g"]),
        helper.make_node("Sigmoid", ["g"], ["s"]),
        helper.make_node("Mul", ["a", "s"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "wide"], ["maps"], pads=[0, 2, 0, 2]),
        helper.make_node("Tanh", ["maps"], ["t"]),
        helper.make_node("Mul", ["maps", "t"], ["m"]),
        helper.make_node("ReduceMean", ["m", "places"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "linear"], ["y"]),
    ]


def run(folder: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ReferenceEvaluator(onnx.load(folder / ARTIFACT_FILES["onnx"])).run(None, feeds)


def test_both_halves_together_are_the_network(tmp_path: Path) -> None:
    model = write(tmp_path / "model.onnx", gated_nodes())
    split = split_for_whole_files(model, tmp_path, axis=3)
    x = np.random.default_rng(1).standard_normal((1, 1, 8, FRAMES)).astype(np.float32)
    (expected,) = ReferenceEvaluator(onnx.load(model)).run(None, {"x": x})
    columns = run(split.backbone, {"x": x})
    names = [spec.name for spec in split.head_signature.inputs]
    assert names == [spec.name for spec in split.backbone_signature.outputs] == ["m"]
    (got,) = run(split.head, dict(zip(names, columns, strict=True)))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_the_first_half_takes_any_length_and_the_second_any_number_of_windows(tmp_path: Path) -> None:
    split = split_for_whole_files(write(tmp_path / "model.onnx", gated_nodes()), tmp_path, axis=3)
    assert split.backbone_signature.inputs[0].shape == (1, 1, 8, "t")
    assert split.head_signature.inputs[0].shape == ("b", 3, 4, 16)
    assert split.head_signature.outputs[0].shape == ("b", 4)
    (columns,) = run(split.backbone, {"x": np.ones((1, 1, 8, 5 * FRAMES), np.float32)})
    assert columns.shape == (1, 3, 4, 5 * 16)
    windows = np.ascontiguousarray(columns[0].reshape(3, 4, 5, 16).transpose(2, 0, 1, 3))
    (got,) = run(split.head, {split.part.cut[0]: windows})
    assert got.shape == (5, 4)
    for folder in (split.backbone, split.head):
        onnx.checker.check_model(onnx.load(folder / ARTIFACT_FILES["onnx"]), full_check=True)


def test_each_half_holds_its_own_weights_alone(tmp_path: Path) -> None:
    split = split_for_whole_files(write(tmp_path / "model.onnx", gated_nodes()), tmp_path, axis=3)
    held = [
        {tensor.name for tensor in onnx.load(folder / ARTIFACT_FILES["onnx"]).graph.initializer}
        for folder in (split.backbone, split.head)
    ]
    assert held == [{"kernel", "wide", "gate"}, {"places", "linear"}]


def test_a_head_that_reads_past_the_cut_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["a"], ["mean"]),
        helper.make_node("Mul", ["a", "mean"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "places"], ["p"], keepdims=0),
        helper.make_node("Squeeze", ["mean", "places"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["both"]),
        helper.make_node("MatMul", ["both", "linear"], ["y"]),
    ]
    with pytest.raises(ModelError, match="past the cut"):
        split_for_whole_files(write(tmp_path / "model.onnx", nodes), tmp_path, axis=3)
