"""ONNX files written node by node, and what a quantizer is given for them; no exporter, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from alula.core import Signature, TensorSpec
from alula.quantization import Material

IMAGE = (3, 16, 16)
CLASSES = 5


class Network:
    """Collects nodes; each method adds one and returns its output, named as the node."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(seed)

    def weights(self, *shape: int, fan_in: int) -> str:
        """Return the name of new weights that keep unit scale."""
        return self.constant(self.rng.normal(0, fan_in**-0.5, shape))

    def constant(self, values: np.ndarray) -> str:
        """Return the name of stored float32 values."""
        name = f"stored_{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def add(self, operator: str, *inputs: str, name: str, outputs: int = 1, **attributes: object) -> str:
        """Return the first output of a new node."""
        made = [name, *(f"{name}_{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(operator, inputs, made, name=name, **attributes))
        return name

    def conv(
        self, source: str, channels_in: int, channels: int, *, name: str, kernel: int = 1, groups: int = 1
    ) -> str:
        """Return a convolution with bias that keeps the size."""
        weights = self.weights(
            channels, channels_in // groups, kernel, kernel, fan_in=channels_in // groups * kernel**2
        )
        bias = self.constant(self.rng.normal(0, 0.1, channels))
        pads = [kernel // 2] * 4
        return self.add("Conv", source, weights, bias, name=name, group=groups, pads=pads)

    def silu(self, source: str, *, name: str) -> str:
        """Return x times sigmoid of x."""
        return self.add("Mul", source, self.add("Sigmoid", source, name=f"{name}_sigmoid"), name=name)

    def linear(self, source: str, features_in: int, features: int, *, name: str) -> str:
        """Return a matrix product with bias, its weights stored transposed as exporters do."""
        weights = self.weights(features, features_in, fan_in=features_in)
        return self.add("Gemm", source, weights, self.constant(np.zeros(features)), name=name, transB=1)

    def write(
        self,
        path: Path,
        *,
        output: str,
        shape: Sequence[int] = IMAGE,
        batch: int | str = "b",
        classes: int = CLASSES,
        opset: int = 18,
    ) -> Path:
        """Write the model with input `x` (batch, *shape) and an output (batch, classes); return the path."""
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, *shape))],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, (batch, classes))],
            self.stored,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path


def write_separable(folder: Path, *, batch: int | str = "b", opset: int = 18) -> Path:
    """Write `model.onnx`: stem, depthwise and pointwise convolution, squeeze-excite, SiLU, head."""
    net = Network()
    stem = net.silu(net.conv("x", 3, 8, kernel=3, name="stem"), name="stem_silu")
    deep = net.silu(net.conv(stem, 8, 8, kernel=3, groups=8, name="depthwise"), name="depthwise_silu")
    pooled = net.add("GlobalAveragePool", deep, name="squeeze")
    reduced = net.add("Relu", net.conv(pooled, 8, 4, name="reduce"), name="reduce_relu")
    gate = net.add("Sigmoid", net.conv(reduced, 4, 8, name="expand"), name="gate")
    project = net.conv(net.add("Mul", deep, gate, name="excite"), 8, 8, name="project")
    total = net.add("Add", project, stem, name="residual")
    last = net.silu(net.conv(total, 8, 16, name="last"), name="last_silu")
    flat = net.add("Flatten", net.add("GlobalAveragePool", last, name="pool"), name="flat")
    return net.write(
        folder / "model.onnx",
        output=net.linear(flat, 16, CLASSES, name="head"),
        batch=batch,
        opset=opset,
    )


def write_residual(folder: Path) -> Path:
    """Write `model.onnx`: dense convolutions with ReLU and a shortcut, head."""
    net = Network(seed=1)
    stem = net.add("Relu", net.conv("x", 3, 8, kernel=3, name="stem"), name="stem_relu")
    first = net.add("Relu", net.conv(stem, 8, 8, kernel=3, name="first"), name="first_relu")
    second = net.conv(first, 8, 8, kernel=3, name="second")
    total = net.add("Relu", net.add("Add", second, stem, name="residual"), name="residual_relu")
    last = net.add("Relu", net.conv(total, 8, 16, name="last"), name="last_relu")
    flat = net.add("Flatten", net.add("GlobalAveragePool", last, name="pool"), name="flat")
    return net.write(folder / "model.onnx", output=net.linear(flat, 16, CLASSES, name="head"))


def write_perceptron(folder: Path) -> Path:
    """Write `model.onnx`: `x` (b, 3, 16, 16) flattened, three matrix products."""
    net = Network(seed=2)
    source, features_in = net.add("Flatten", "x", name="flat"), int(np.prod(IMAGE))
    for index in range(2):
        made = net.linear(source, features_in, 64, name=f"linear_{index}")
        source, features_in = net.add("Relu", made, name=f"relu_{index}"), 64
    return net.write(folder / "model.onnx", output=net.linear(source, 64, CLASSES, name="head"))


def images(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return smooth images with noise, float32 (n, 3, 16, 16), around zero."""
    waves = np.sin(np.linspace(0, 6, 16) + rng.uniform(0, 6, (n, 3, 16, 1)))
    return np.asarray(waves + rng.normal(0, 0.5, (n, *IMAGE)), np.float32)


def signature_of(path: Path) -> Signature:
    """Return the float32 inputs and outputs of an ONNX file."""
    graph = onnx.load(path).graph

    def specs(values: Sequence[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                value.name,
                "float32",
                tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
            )
            for value in values
        )

    return Signature(specs(graph.input), specs(graph.output))


def material_for(export: Path, samples: np.ndarray, *, saturating: bool = False, size: int = 8) -> Material:
    """Return what a quantizer is given for `model.onnx` in a folder, with calibration samples (n, ...)."""

    def no_module() -> object:
        raise AssertionError("ONNX Runtime's quantizers start from the file")

    return Material(
        export=export,
        module=no_module,
        batches=lambda: ((samples[start : start + size],) for start in range(0, len(samples), size)),
        signature=signature_of(export / "model.onnx"),
        saturating=saturating,
    )
