"""Models so small that a search over them is all search."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FEATURES = 8
CLASSES = 4

FACTORY = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, {classes})

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean(dim=(2, 3)))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Linear(6, {classes})
        self.right = nn.Linear(2, {classes})

    def forward(self, left, right):
        return self.left(left) + self.right(right)

def tiny():
    torch.manual_seed(5)
    return Tiny()

def two():
    torch.manual_seed(6)
    return Two()
"""


def write_factory(folder: Path) -> Path:
    """Write `net.py` with the factories `tiny` (b, 3, h, w) and `two` (b, 6), (b, 2); return its path."""
    path = folder / "net.py"
    path.write_text(FACTORY.format(classes=CLASSES))
    return path


def write_onnx(path: Path, *, batch: int | str = "b") -> Path:
    """Write an ONNX file that returns the first four of eight features: what the fake engine computes."""
    weights = np.eye(FEATURES, CLASSES, dtype=np.float32)
    return write_linear_onnx(path, weights, shape=(batch, FEATURES))


def write_linear_onnx(path: Path, weights: np.ndarray, *, shape: tuple[int | str, ...]) -> Path:
    """Write an ONNX file that flattens `x` of `shape` and multiplies it with weights (features, classes)."""
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "w"], ["scores"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, (shape[0], weights.shape[1]))],
        [onnx.numpy_helper.from_array(np.asarray(weights, np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
