"""ONNX files and models as layer graphs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alula.errors import EngineUnavailableError, ModelError
from alula.graphs.counting import as_attention, as_convolution, as_einsum, as_matmul, as_recurrent, swapped
from alula.graphs.layers import Kind, Layer, LayerGraph, Shape, global_axes
from alula.graphs.onnx_shapes import settled_shapes

if TYPE_CHECKING:
    import onnx

__all__ = ["name_nodes", "read_onnx"]

_OPERATORS: dict[Kind, str] = {
    "conv": "Conv ConvTranspose",
    "matmul": "MatMul Gemm Einsum",
    "recurrent": "LSTM GRU RNN",
    "attention": "Attention",
    "pool": "AveragePool MaxPool LpPool ReduceMean ReduceMax",
    "global-pool": "GlobalAveragePool GlobalMaxPool GlobalLpPool",
    "multiply": "Mul Div",
    "add": "Add Sub Sum",
    "activation": "Abs Celu Clip Cos Elu Erf Exp Gelu HardSigmoid HardSwish Hardmax LeakyRelu Log LogSoftmax "
    "Mish Neg Pow PRelu Reciprocal Relu Selu Sigmoid Sin Softmax Softplus Softsign Sqrt Swish Tanh "
    "ThresholdedRelu",
    "norm": "BatchNormalization GroupNormalization InstanceNormalization LayerNormalization LpNormalization "
    "LRN MeanVarianceNormalization RMSNormalization",
    "shape": "Cast CastLike Concat DepthToSpace Dropout Expand Flatten Gather GatherElements GatherND "
    "Identity Pad Reshape ReverseSequence Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze",
}
_KINDS: dict[str, Kind] = {
    operator: kind for kind, operators in _OPERATORS.items() for operator in operators.split()
}

_SIZES_ONLY = ("Shape", "Size", "EyeLike")  # what they return does not depend on the values that they read
# Their work is not counted, but it is there: graphs in attributes, and products in other forms.
_NOT_COUNTED = (
    *("If", "Loop", "Scan", "ConvInteger", "DFT", "DeformConv", "MatMulInteger", "QLinearConv"),
    *("QLinearMatMul", "STFT"),
)
_ROUNDING = ("DequantizeLinear", "QuantizeLinear")
_INTEGERS = ("INT32", "INT64", "BOOL")


def name_nodes(model: onnx.ModelProto) -> int:
    """Give every node without a name of its own one, in place, and return how many got one.

    Quantizers address nodes by name, and files may leave names out or give one twice. A new name is the
    operator and the node's position, such as `Conv_12`. `read_onnx` uses the same names, whether the model
    was named before or not.
    """
    names = _node_names(model.graph.node)
    changed = 0
    for node, name in zip(model.graph.node, names, strict=True):
        if node.name != name:
            node.name = name
            changed += 1
    return changed


def read_onnx(
    model: str | Path | onnx.ModelProto, *, shapes: Mapping[str, Sequence[int]] | None = None
) -> LayerGraph:
    """Return the layers of an ONNX model; they have the nodes' names, as `name_nodes` completes them.

    Args:
        model: a file, whose weights in other files are not needed, or a model, which is not changed.
        shapes: of inputs that leave more than their first axis open, by name, the batch axis first.

    Raises:
        ModelError: the file cannot be read, or a node reads what no earlier node makes.
        EngineUnavailableError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise EngineUnavailableError("onnx", install="pip install 'alula[onnxruntime]'") from error
    from google.protobuf.message import DecodeError

    if not isinstance(model, onnx.ModelProto):
        try:
            model = onnx.load(model, load_external_data=False)
        except (OSError, ValueError, DecodeError) as error:
            raise ModelError(f"{model} cannot be read as an ONNX file: {error}") from error
    return _Reading(model, shapes or {}).graph()


class _Reading:
    """One pass over a graph's nodes."""

    def __init__(self, model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
        self._graph = model.graph
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._inputs = [value.name for value in model.graph.input if value.name not in self._stored]
        self._shapes = settled_shapes(model, shapes)
        self._batch = _batch(self._shapes, self._inputs)
        # Tensor to the layer or input that makes it, and constant tensor to what it was computed from.
        self._data = {name: name for name in self._inputs}
        self._constant: dict[str, frozenset[str]] = {name: frozenset((name,)) for name in self._stored}
        self._counted: set[str] = set()

    def graph(self) -> LayerGraph:
        layers = []
        for node, name in zip(self._graph.node, _node_names(self._graph.node), strict=True):
            read = [tensor for tensor in _read_tensors(node) if tensor]
            if missing := [t for t in read if t not in self._data and t not in self._constant]:
                raise ModelError(
                    f"Node `{name}` of the ONNX file reads `{missing[0]}`, which no earlier node makes. "
                    "Check the file with onnx.checker.check_model."
                )
            inputs = tuple(self._data[tensor] for tensor in read if tensor in self._data)
            if node.op_type == "CastLike":
                inputs = inputs[:1] if node.input[0] in self._data else ()
            if inputs and node.op_type not in _SIZES_ONLY:
                layers.append(self._layer(node, name, inputs))
                self._data |= dict.fromkeys(filter(None, node.output), name)
            else:
                self._keep_constant(node)
        outputs = tuple(self._data[value.name] for value in self._graph.output if value.name in self._data)
        return LayerGraph(tuple(layers), tuple(self._inputs), tuple(dict.fromkeys(outputs)))

    def _keep_constant(self, node: Any) -> None:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    self._stored[node.output[0]] = attribute.t
            roots = frozenset(node.output)
        else:
            roots = frozenset().union(*(self._constant.get(tensor, frozenset()) for tensor in node.input))
        self._constant |= dict.fromkeys(filter(None, node.output), roots)

    def _layer(self, node: Any, name: str, inputs: tuple[str, ...]) -> Layer:
        kind = self._kind(node)
        layer = Layer(
            name,
            kind,
            inputs,
            output_shape=self._shapes.get(node.output[0]),
            macs=0 if _is_countable(node) else None,
            parameters=self._parameters(node),
        )
        if kind == "conv":
            return as_convolution(
                layer,
                source=self._shape(node, 0),
                weight=self._shape(node, 1),
                groups=_attribute(node, "group", 1),
                transposed=node.op_type == "ConvTranspose",
                batch=self._batch,
            )
        if kind == "matmul":
            return self._matmul(node, layer)
        if kind == "attention":
            return as_attention(
                layer, query=self._shape(node, 0), key=self._shape(node, 1), batch=self._batch
            )
        if kind == "recurrent":
            return as_recurrent(
                layer,
                source=self._shape(node, 0),
                weights=(self._shape(node, 1), self._shape(node, 2)),
                out_channels=_attribute(node, "hidden_size", None),
                batch=self._batch,
            )
        return layer

    def _matmul(self, node: Any, layer: Layer) -> Layer:
        constants = [index for index, tensor in enumerate(node.input[:2]) if tensor not in self._data]
        constant = constants[0] if constants else None
        if node.op_type == "Einsum":
            operands = [self._shape(node, index) for index in range(len(node.input))]
            equation = _attribute(node, "equation", b"").decode()
            return as_einsum(layer, equation, operands=operands, constant=constant, batch=self._batch)
        left, right = self._shape(node, 0), self._shape(node, 1)
        left = swapped(left) if _attribute(node, "transA", 0) else left
        right = swapped(right) if _attribute(node, "transB", 0) else right
        return as_matmul(layer, left=left, right=right, constant=constant, batch=self._batch)

    def _kind(self, node: Any) -> Kind:
        if node.domain not in ("", "ai.onnx"):
            return "other"
        kind = _KINDS.get(node.op_type, "other")
        if node.op_type == "Gather" and node.input[0] in self._constant:
            return "embedding"
        if kind == "pool" and self._pools_all(node):
            return "global-pool"
        return kind

    def _pools_all(self, node: Any) -> bool:
        before, after = self._shape(node, 0), self._shapes.get(node.output[0])
        if node.op_type.startswith("Reduce"):
            return before is not None and global_axes(self._axes(node), len(before))
        kernel = _attribute(node, "kernel_shape", [])
        return (
            before is not None
            and after is not None
            and list(before[2:]) == list(kernel)
            and all(size == 1 for size in after[2:])
        )

    def _axes(self, node: Any) -> Sequence[int]:
        from onnx import numpy_helper

        given = node.input[1] if len(node.input) > 1 else ""
        if given in self._stored:
            return [int(axis) for axis in numpy_helper.to_array(self._stored[given]).reshape(-1)]
        axes: Sequence[int] = _attribute(node, "axes", [])
        return axes

    def _shape(self, node: Any, index: int) -> Shape:
        return self._shapes.get(node.input[index]) if index < len(node.input) else None

    def _parameters(self, node: Any) -> int:
        from onnx import TensorProto

        # Running mean and variance of a batch normalisation are statistics.
        tensors = list(node.input[:3] if node.op_type == "BatchNormalization" else node.input)
        total = 0
        for root in sorted(
            frozenset().union(*(self._constant.get(tensor, frozenset()) for tensor in tensors))
        ):
            stored = self._stored.get(root)
            if stored is None or root in self._counted:
                continue
            self._counted.add(root)
            size = math.prod(stored.dims)
            if size > 1 and TensorProto.DataType.Name(stored.data_type) not in _INTEGERS:
                total += size
        return total


def _is_countable(node: Any) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return node.op_type in _ROUNDING  # nobody knows what others do
    return node.op_type not in _NOT_COUNTED


def _node_names(nodes: Iterable[Any]) -> list[str]:
    nodes = list(nodes)
    given = {node.name for node in nodes}
    names: list[str] = []
    used: set[str] = set()
    for index, node in enumerate(nodes):
        name = node.name
        if not name or name in used:
            name = f"{node.op_type}_{index}"
            while name in given or name in used:
                name += "_"
        used.add(name)
        names.append(name)
    return names


def _read_tensors(node: Any) -> Iterator[str]:
    """Yield the tensors that a node reads, those that its nested graphs capture too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            made = {value.name for value in (*graph.input, *graph.initializer)}
            for inner in graph.node:
                yield from (tensor for tensor in _read_tensors(inner) if tensor not in made)
                made.update(inner.output)


def _attribute(node: Any, name: str, default: Any) -> Any:
    import onnx

    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


def _batch(shapes: Mapping[str, Shape], inputs: Sequence[str]) -> int:
    """Return the samples in the shapes: the first axis of the first input."""
    shape = shapes.get(inputs[0]) if inputs else None
    return (shape[0] if shape else None) or 1
