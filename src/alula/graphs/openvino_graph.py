"""OpenVINO models as layer graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alula.errors import ModelError
from alula.graphs.counting import as_attention, as_convolution, as_einsum, as_matmul, as_recurrent, swapped
from alula.graphs.layers import Kind, Layer, LayerGraph, Shape, global_axes

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["read_openvino"]

_TYPES: dict[Kind, str] = {
    "conv": "Convolution GroupConvolution ConvolutionBackpropData GroupConvolutionBackpropData",
    "matmul": "MatMul Einsum",
    "recurrent": "LSTMSequence GRUSequence RNNSequence LSTMCell GRUCell RNNCell",
    "attention": "ScaledDotProductAttention",
    "pool": "AvgPool MaxPool AdaptiveAvgPool AdaptiveMaxPool ReduceMean ReduceMax",
    "multiply": "Multiply Divide",
    "add": "Add Subtract",
    "activation": "Abs Clamp Cos Elu Erf Exp Gelu HSigmoid HSwish HardSigmoid Log LogSoftmax Mish Negative "
    "PRelu Power Relu Selu Sigmoid Sin SoftPlus SoftSign Softmax Sqrt Swish Tanh",
    "norm": "BatchNormInference GroupNormalization LRN MVN NormalizeL2 RMS",
    "shape": "Broadcast Concat Convert ConvertLike DepthToSpace Gather GatherElements GatherND Pad Reshape "
    "ReverseSequence ShuffleChannels Slice SpaceToDepth Split Squeeze StridedSlice Tile Transpose Unsqueeze "
    "VariadicSplit",
}
_KINDS: dict[str, Kind] = {name: kind for kind, names in _TYPES.items() for name in names.split()}

# Their work is not counted, but it is there: graphs inside, and products in other forms.
_NOT_COUNTED = (
    *("If", "Loop", "TensorIterator", "BinaryConvolution", "DFT", "DeformableConvolution", "IDFT", "IRDFT"),
    *("RDFT", "STFT"),
)
_INTEGERS = ("i32", "i64", "boolean")


def read_openvino(model: ov.Model, *, shapes: Mapping[str, Sequence[int]] | None = None) -> LayerGraph:
    """Return the layers of an OpenVINO model; they have the operations' friendly names.

    Args:
        model: is not changed.
        shapes: of inputs that leave more than their first axis open, by friendly name, the batch axis first.

    Raises:
        ModelError: two operations have the same friendly name, or the shapes do not fit the model.
    """
    return _Reading(model, shapes or {}).graph()


class _Reading:
    """One pass over a model's operations; nodes are known by their unique names, unlike friendly ones."""

    def __init__(self, model: ov.Model, shapes: Mapping[str, Sequence[int]]) -> None:
        self._operations = model.get_ordered_ops()
        self._inputs = [parameter.get_friendly_name() for parameter in model.get_parameters()]
        self._shapes = _settled_shapes(model, shapes)
        first = self._shapes.get((self._inputs[0], 0)) if self._inputs else None
        self._batch = (first[0] if first else None) or 1
        self._data: dict[str, str] = {}
        self._constant: dict[str, frozenset[str]] = {}
        self._stored: dict[str, tuple[int, str]] = {}
        self._counted: set[str] = set()

    def graph(self) -> LayerGraph:
        layers: list[Layer] = []
        outputs: list[str] = []
        for operation in self._operations:
            kind, key = operation.get_type_name(), operation.get_name()
            sources = [value.get_node() for value in operation.input_values()]
            names = [source.get_name() for source in sources]
            inputs = tuple(self._data[name] for name in names if name in self._data)
            if kind == "Parameter":
                self._data[key] = operation.get_friendly_name()
            elif kind == "Result":
                outputs += inputs
            elif inputs and kind != "ShapeOf":
                if kind == "ConvertLike":
                    inputs = inputs[:1]
                layers.append(self._layer(operation, sources, inputs))
                self._data[key] = operation.get_friendly_name()
            else:
                self._keep_constant(operation, names)
        try:
            return LayerGraph(tuple(layers), tuple(self._inputs), tuple(dict.fromkeys(outputs)))
        except ValueError as error:
            raise ModelError(f"The OpenVINO model cannot be read as layers: {error}.") from error

    def _keep_constant(self, operation: Any, sources: Sequence[str]) -> None:
        key = operation.get_name()
        if operation.get_type_name() == "Constant":
            size = 1
            for dim in _shape(operation.output(0)) or ():
                size *= dim or 0
            self._stored[key] = (size, operation.get_element_type().get_type_name())
            self._constant[key] = frozenset((key,))
        else:
            self._constant[key] = frozenset().union(
                *(self._constant.get(source, frozenset()) for source in sources)
            )

    def _layer(self, operation: Any, sources: Sequence[Any], inputs: tuple[str, ...]) -> Layer:
        kind = self._kind(operation, sources)
        name = operation.get_friendly_name()
        layer = Layer(
            name,
            kind,
            inputs,
            output_shape=self._shapes.get((name, 0)),
            macs=None if operation.get_type_name() in _NOT_COUNTED else 0,
            parameters=self._parameters(operation, sources),
        )
        if kind == "conv":
            return self._convolution(operation, layer)
        if kind == "matmul":
            return self._matmul(operation, sources, layer)
        if kind == "attention":
            query, key = self._source(operation, 0), self._source(operation, 1)
            return as_attention(layer, query=query, key=key, batch=self._batch)
        if kind == "recurrent":
            return self._recurrent(operation, layer)
        return layer

    def _convolution(self, operation: Any, layer: Layer) -> Layer:
        weight = self._source(operation, 1)
        groups = 1
        if operation.get_type_name().startswith("Group") and weight is not None:
            groups = weight[0] or 1
            weight = (None if weight[1] is None else groups * weight[1], *weight[2:])
        return as_convolution(
            layer,
            source=self._source(operation, 0),
            weight=weight,
            groups=groups,
            transposed=operation.get_type_name().endswith("BackpropData"),
            batch=self._batch,
        )

    def _matmul(self, operation: Any, sources: Sequence[Any], layer: Layer) -> Layer:
        constants = [index for index, source in enumerate(sources) if source.get_name() in self._constant]
        constant = constants[0] if constants else None
        attributes = operation.get_attributes()
        if operation.get_type_name() == "Einsum":
            operands = [self._source(operation, index) for index in range(len(sources))]
            return as_einsum(
                layer, attributes["equation"], operands=operands, constant=constant, batch=self._batch
            )
        left, right = self._source(operation, 0), self._source(operation, 1)
        left = swapped(left) if attributes["transpose_a"] else left
        right = swapped(right) if attributes["transpose_b"] else right
        return as_matmul(layer, left=left, right=right, constant=constant, batch=self._batch)

    def _recurrent(self, operation: Any, layer: Layer) -> Layer:
        kind = operation.get_type_name()
        # Before the two matrices come the data, one state (two of an LSTM), and lengths of sequences.
        first = 1 + (2 if kind.startswith("LSTM") else 1) + (1 if kind.endswith("Sequence") else 0)
        return as_recurrent(
            layer,
            source=self._source(operation, 0),
            weights=(self._source(operation, first), self._source(operation, first + 1)),
            out_channels=operation.get_attributes()["hidden_size"],
            batch=self._batch,
        )

    def _kind(self, operation: Any, sources: Sequence[Any]) -> Kind:
        name = operation.get_type_name()
        kind = _KINDS.get(name, "other")
        if name == "Gather" and sources[0].get_name() in self._constant:
            return "embedding"
        if kind == "pool" and self._pools_all(operation, sources):
            return "global-pool"
        return kind

    def _pools_all(self, operation: Any, sources: Sequence[Any]) -> bool:
        before = self._source(operation, 0)
        if before is None:
            return False
        name = operation.get_type_name()
        if name.startswith("Reduce"):
            constant = sources[1].get_type_name() == "Constant"
            axes = sources[1].get_data().reshape(-1).tolist() if constant else []
            return global_axes(axes, len(before))
        after = self._shapes.get((operation.get_friendly_name(), 0))
        if after is None or any(size != 1 for size in after[2:]):
            return False
        return name.startswith("Adaptive") or list(before[2:]) == list(operation.get_attributes()["kernel"])

    def _source(self, operation: Any, index: int) -> Shape:
        value = operation.input_value(index)
        source = value.get_node()
        if source.get_name() in self._data:
            return self._shapes.get((source.get_friendly_name(), value.get_index()))
        return _shape(value)

    def _parameters(self, operation: Any, sources: Sequence[Any]) -> int:
        # Running mean and variance of a batch normalisation are statistics.
        last = 3 if operation.get_type_name() == "BatchNormInference" else len(sources)
        roots = frozenset().union(
            *(self._constant.get(source.get_name(), frozenset()) for source in sources[:last])
        )
        total = 0
        for root in roots - self._counted:
            size, dtype = self._stored[root]
            total += size if size > 1 and dtype not in _INTEGERS else 0
        self._counted |= roots
        return total


def _shape(value: Any) -> Shape:
    sizes = value.get_partial_shape()
    if sizes.rank.is_dynamic:
        return None
    return tuple(size.get_length() if size.is_static else None for size in sizes)


def _settled_shapes(model: ov.Model, given: Mapping[str, Sequence[int]]) -> dict[tuple[str, int], Shape]:
    """Return shapes by friendly name and output index, for one sample where the batch axis is open."""
    settled = model
    if given or model.is_dynamic():
        # `Model.reshape` would also fuse operations, which then have no shape.
        settled = model.clone()
        wanted = []
        for parameter in settled.get_parameters():
            shape = parameter.get_partial_shape()
            if parameter.get_friendly_name() in given:
                shape = type(shape)(list(given[parameter.get_friendly_name()]))
            elif shape.rank.is_static and len(shape) and shape[0].is_dynamic:
                shape[0] = 1
            parameter.set_partial_shape(shape)
            wanted.append(str(shape))
        try:
            settled.validate_nodes_and_infer_types()
        except RuntimeError as error:
            raise ModelError(
                f"The OpenVINO model does not take inputs of shapes {', '.join(wanted)}: {error}"
            ) from error
    return {
        (operation.get_friendly_name(), index): _shape(operation.output(index))
        for operation in settled.get_ordered_ops()
        for index in range(operation.get_output_size())
    }
