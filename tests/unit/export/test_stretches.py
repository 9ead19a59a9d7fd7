"""A network for a stretch of windows: the same columns where nothing was padded, each window at its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from calibration import settled
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from alula.errors import ModelError
from alula.export import export_module, write_stretch_model
from alula.libraries import import_onnxruntime

FRAMES = 32


def write(path: Path, nodes: list[Any], weights: dict[str, np.ndarray], *, frames: int = FRAMES) -> Path:
    """Write a network on (b, 1, 8, t) with four scores."""
    graph = helper.make_graph(
        nodes,
        "drawn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 1, 8, frames])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def weights() -> dict[str, np.ndarray]:
    chance = np.random.default_rng(0)
    drawn = {
        "kernel": chance.standard_normal((3, 1, 3, 3)),
        "wide": chance.standard_normal((3, 3, 1, 5)),
        "gate": chance.standard_normal((3, 3, 1, 1)),
        "linear": chance.standard_normal((3, 4)),
    }
    return {name: value.astype(np.float32) for name, value in drawn.items()} | {
        "places": np.array([2, 3], np.int64),
        "zero": np.array([0], np.int64),
        "thirty_two": np.array([32], np.int64),
        "time": np.array([3], np.int64),
    }


def nodes(*, pad: int, gated: bool = False, source: str = "x") -> list[Any]:
    """Return two convolutions, strided by two, and means over everything."""
    gate = [
        helper.make_node("GlobalAveragePool", ["a"], ["mean"]),
        helper.make_node("Conv", ["mean", "gate"], ["g"]),
        helper.make_node("Sigmoid", ["g"], ["s"]),
        helper.make_node("Mul", ["a", "s"], ["scaled"]),
    ]
    return [
        helper.make_node("Conv", [source, "kernel"], ["a"], pads=[1, pad, 1, pad], strides=[2, 2]),
        *(gate if gated else [helper.make_node("Relu", ["a"], ["scaled"])]),
        helper.make_node("Conv", ["scaled", "wide"], ["maps"], pads=[0, 2 * pad, 0, 2 * pad]),
        helper.make_node("Tanh", ["maps"], ["m"]),
        helper.make_node("ReduceMean", ["m", "places"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "linear"], ["y"]),
    ]


def run(path: Path, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(onnx.load(path), full_check=True)
    (found,) = ReferenceEvaluator(onnx.load(path)).run(None, {"x": x})
    return np.asarray(found)


def sound(batch: int, frames: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, 1, 8, frames)).astype(np.float32)


def test_windows_without_padding_are_those_of_the_network(tmp_path: Path) -> None:
    model = write(tmp_path / "model.onnx", nodes(pad=0), weights())
    frames = FRAMES + 4 * 12
    stretch = write_stretch_model(
        model, tmp_path / "long.onnx", axis=3, windows=5, hop_frames=12.0, frames=frames
    )
    assert stretch.signature.inputs[0].shape == ("b", 1, 8, frames)
    assert stretch.signature.outputs[0].shape == ("b", 5, 4)
    assert not stretch.part.gated
    # 11 columns of a window, 35 of all five: (frames - 3) // 2 + 1 and four fewer.
    assert (stretch.part.columns, stretch.columns) == (11, 35)
    assert stretch.computed_share == pytest.approx(35 / 55)
    x = sound(2, frames)
    got = run(tmp_path / "long.onnx", x)
    for index in range(5):
        np.testing.assert_allclose(
            got[:, index], run(model, x[..., 12 * index : 12 * index + FRAMES]), rtol=1e-4, atol=1e-6
        )


def test_windows_between_columns_are_moved_to_the_nearest_and_the_last_to_the_end(tmp_path: Path) -> None:
    model = write(tmp_path / "model.onnx", nodes(pad=0), weights())
    frames = FRAMES + 20
    write_stretch_model(model, tmp_path / "long.onnx", axis=3, windows=3, hop_frames=10.6, frames=frames)
    x = sound(1, frames)
    got = run(tmp_path / "long.onnx", x)[0]
    # Columns lie two frames apart: 10.6 frames are 5.3 columns, 21.2 are 10.6, but 10 are the last ones.
    for scores, first in zip(got, (0, 10, 20), strict=True):
        np.testing.assert_allclose(
            scores, run(model, x[..., first : first + FRAMES])[0], rtol=1e-4, atol=1e-6
        )


def test_gates_and_padding_are_those_of_the_stretch(tmp_path: Path) -> None:
    model = write(tmp_path / "model.onnx", nodes(pad=1, gated=True), weights())
    stretch = write_stretch_model(
        model, tmp_path / "long.onnx", axis=3, windows=2, hop_frames=16, frames=FRAMES + 16
    )
    assert stretch.part.gated
    x = sound(1, FRAMES + 16)
    got = run(tmp_path / "long.onnx", x)[0]
    alone = np.concatenate([run(model, x[..., :FRAMES]), run(model, x[..., 16:])])
    assert 1e-3 < np.abs(got - alone).max() < 1.0
    # Where all windows are silent there is no difference but that of the padding, which is silence as well.
    np.testing.assert_allclose(run(tmp_path / "long.onnx", 0 * x)[0], 0.0, atol=1e-6)


def test_the_end_that_a_network_leaves_out_of_its_window_is_left_out_of_the_stretch(tmp_path: Path) -> None:
    crop = helper.make_node("Slice", ["x", "zero", "thirty_two", "time"], ["cropped"])
    model = write(
        tmp_path / "model.onnx", [crop, *nodes(pad=0, source="cropped")], weights(), frames=FRAMES + 1
    )
    frames = FRAMES + 16 + 1
    write_stretch_model(model, tmp_path / "long.onnx", axis=3, windows=2, hop_frames=16, frames=frames)
    x = sound(1, frames)
    got = run(tmp_path / "long.onnx", x)[0]
    changed = x.copy()
    changed[..., -1] = 100.0
    np.testing.assert_array_equal(run(tmp_path / "long.onnx", changed)[0], got)
    np.testing.assert_allclose(got[1], run(model, x[..., 16:])[0], rtol=1e-4, atol=1e-6)


def test_a_head_that_reads_past_the_cut_is_refused(tmp_path: Path) -> None:
    drawn = [
        helper.make_node("Conv", ["x", "kernel"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["a"], ["mean"]),
        helper.make_node("Mul", ["a", "mean"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "places"], ["p"], keepdims=0),
        helper.make_node("Squeeze", ["mean", "places"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["both"]),
        helper.make_node("MatMul", ["both", "linear"], ["y"]),
    ]
    model = write(tmp_path / "model.onnx", drawn, weights())
    with pytest.raises(ModelError, match="past the cut"):
        write_stretch_model(model, tmp_path / "l.onnx", axis=3, windows=2, hop_frames=16, frames=48)


def test_a_stretch_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    model = write(tmp_path / "model.onnx", nodes(pad=0), weights())
    with pytest.raises(ModelError, match="gives 7 columns; expected the 11"):
        write_stretch_model(model, tmp_path / "l.onnx", axis=3, windows=2, hop_frames=16, frames=24)


def test_one_window_of_a_real_network_is_the_network(tmp_path: Path) -> None:
    sounds = smooth(np.random.default_rng(3), (8, 1, 64, 192))
    torch.manual_seed(0)
    module = settled(timm.create_model("lcnet_035", pretrained=False, in_chans=1, num_classes=20), sounds)
    export_module(module, [sounds[:2]], target="onnx", folder=tmp_path)
    stretch = write_stretch_model(
        tmp_path / "model.onnx", tmp_path / "long.onnx", axis=3, windows=1, hop_frames=96.0, frames=192
    )
    assert stretch.part.gated
    assert stretch.computed_share == 1.0
    with torch.no_grad():
        expected = module(torch.from_numpy(sounds)).numpy()
    # Float32 through some thirty layers.
    np.testing.assert_allclose(by_onnxruntime(tmp_path / "long.onnx", sounds)[:, 0], expected, atol=1e-3)


def by_onnxruntime(path: Path, x: np.ndarray) -> np.ndarray:
    session = import_onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def smooth(chance: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return noise whose neighbours are alike, of about unit variance."""
    coarse = chance.standard_normal((*shape[:2], shape[2] // 16, shape[3] // 16))
    patches = coarse.repeat(16, axis=2).repeat(16, axis=3)
    return ((patches + chance.standard_normal(shape)) / 2.0**0.5).astype(np.float32)
