"""How far a network looks along one axis, and up to where it looks only so far: read from its ONNX graph.

A convolutional network computes column after column of its maps from a stretch of the input around each,
until a layer pools over the whole axis. What lies before that layer can run once over an input of any length;
what lies behind it needs the columns of one window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alula.errors import EngineUnavailableError, ModelError
from alula.graphs.onnx_shapes import settled_shapes

if TYPE_CHECKING:
    import onnx

__all__ = ["LocalPart", "local_part"]

_NAMES = {
    "pointwise": "Abs BatchNormalization Cast Celu Clip Cos Dropout Elu Erf Exp Gelu HardSigmoid HardSwish "
    "Identity LeakyRelu Log Mish Neg Reciprocal Relu Selu Sigmoid Sin Softplus Softsign Sqrt Swish Tanh "
    "ThresholdedRelu",
    "joining": "Add Sub Mul Div Pow Max Min Sum Mean PRelu Concat",
    "sliding": "Conv MaxPool AveragePool LpPool",
    "reducing": "ReduceMean ReduceMax ReduceMin ReduceSum ReduceL2 ReduceLogSumExp ReduceSumSquare",
    "along last axes": "Softmax LogSoftmax Hardmax LayerNormalization",
}
_POINTWISE, _JOINING, _SLIDING, _REDUCING, _ALONG_LAST_AXES = (
    frozenset(names.split()) for names in _NAMES.values()
)


@dataclass(frozen=True, kw_only=True)
class LocalPart:
    """The part of a network that looks only so far along an axis of its input, the time.

    Column `i` of the tensors in `cut` depends on the input's positions `i * stride - before` to
    `i * stride + after`, where those beyond the ends are the network's own padding, and on nothing else;
    unless it is `gated`.

    Attributes:
        entry: tensor that the part starts from: the input, or what is left of it after a crop of its end.
        entry_axis: the time, of that tensor.
        frames: positions of `entry` along the time for one window.
        cut: tensors that the rest of the network starts from.
        cut_axes: the time, of each.
        columns: positions of each along the time for one window.
        stride: input positions between two columns.
        before: input positions that a column sees before its own.
        after: likewise, after its own.
        gated: whether means over the whole time scale the maps, as squeeze-excite does. Then columns depend
            on how much was computed at once, and a longer input gives other values.
    """

    entry: str
    entry_axis: int
    frames: int
    cut: tuple[str, ...]
    cut_axes: tuple[int, ...]
    columns: int
    stride: int
    before: int
    after: int
    gated: bool


@dataclass(frozen=True)
class _Local:
    """What is known of a tensor whose columns look only so far."""

    axis: int
    stride: int = 1
    before: int = 0
    after: int = 0
    gated: bool = False


def local_part(model: str | Path | onnx.ModelProto, *, axis: int) -> LocalPart:
    """Return how far an ONNX model looks along one axis of its input, and where that ends.

    Receptive fields are composed layer by layer: a layer with kernel k, dilation d, padding p and stride s on
    columns that lie j positions apart adds `j * p` before and `j * ((k - 1) * d - p)` after, and puts them
    `j * s` apart (Araujo, Norris and Sim 2019, Distill, "Computing receptive fields").

    Args:
        model: a file, whose weights in other files are not needed, or a model, which is not changed.
        axis: the time, of the model's only input.

    Raises:
        ModelError: there are several inputs, an output has a column for each stretch of the input, or no
            layer looks only so far.
        EngineUnavailableError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise EngineUnavailableError("onnx", install="pip install 'alula[onnxruntime]'") from error

    if not isinstance(model, onnx.ModelProto):
        model = onnx.load(model, load_external_data=False)
    return _Reading(model, axis).part()


class _Reading:
    """One pass over a graph's nodes."""

    def __init__(self, model: onnx.ModelProto, axis: int) -> None:
        graph = model.graph
        self._nodes = list(graph.node)
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        for node in self._nodes:
            if node.op_type == "Constant":
                for one in node.attribute:
                    if one.name == "value":
                        self._stored[node.output[0]] = one.t
        inputs = [value.name for value in graph.input if value.name not in self._stored]
        if len(inputs) != 1:
            raise ModelError(f"The model has {len(inputs)} inputs; expected one to look along.")
        self._outputs = [value.name for value in graph.output]
        self._shapes = settled_shapes(model, {})
        self._entry = self._after_crops(inputs[0], axis)
        self._local = {self._entry: _Local(axis)}
        # Tensors that depend on the entry, local or not; the others are constants.
        self._data = {self._entry}
        self._data_nodes: list[Any] = []

    def part(self) -> LocalPart:
        for node in self._nodes:
            if self._entry in node.output or not self._data.intersection(node.input):
                continue
            self._data_nodes.append(node)
            self._data.update(filter(None, node.output))
            found = self._followed(node)
            if found is not None:
                self._local[node.output[0]] = found
        cut = self._cut()
        locals_ = [self._local[name] for name in cut]
        widths = {self._size(name, self._local[name].axis) for name in cut}
        if len({one.stride for one in locals_}) > 1 or len(widths) > 1:
            raise ModelError(
                "The network pools maps of several resolutions over time; expected one. "
                "It can be run window by window only."
            )
        entry_axis = self._local[self._entry].axis
        frames, (columns,) = self._size(self._entry, entry_axis), widths
        if frames is None or columns is None:
            raise ModelError("The sizes along the axis are unknown. Export the model with a fixed window.")
        return LocalPart(
            entry=self._entry,
            entry_axis=entry_axis,
            frames=frames,
            cut=cut,
            cut_axes=tuple(one.axis for one in locals_),
            columns=columns,
            stride=locals_[0].stride,
            before=max(one.before for one in locals_),
            after=max(0, *(one.after for one in locals_)),
            gated=any(one.gated for one in locals_),
        )

    def _after_crops(self, name: str, axis: int) -> str:
        """Return the tensor that is left when nothing but the end of the axis was cut off an input."""
        while True:
            readers = [node for node in self._nodes if name in node.input]
            if len(readers) != 1 or not self._crops_the_end(readers[0], axis):
                return name
            name = readers[0].output[0]

    def _crops_the_end(self, node: Any, axis: int) -> bool:
        if node.op_type != "Slice" or len(node.input) < 4:
            return False
        rank = len(self._shapes.get(node.input[0]) or ())
        starts, axes = self._values(node, 1), self._values(node, 3)
        steps = self._values(node, 4) if len(node.input) > 4 else np.ones(1, np.int64)
        return (
            starts is not None
            and axes is not None
            and steps is not None
            and [int(one) % rank for one in axes] == [axis]
            and int(starts[0]) == 0
            and int(steps[0]) == 1
        )

    def _cut(self) -> tuple[str, ...]:
        """Return the local tensors that are read where nothing local follows any more."""
        followed: set[str] = set()  # tensors after which something local comes
        read: list[str] = []
        for node in reversed(self._data_nodes):
            onward = any(tensor in self._local or tensor in followed for tensor in node.output)
            if onward:
                followed.update(tensor for tensor in node.input if tensor in self._data)
            else:
                read += [tensor for tensor in node.input if tensor in self._local]
        if framewise := [name for name in self._outputs if name in self._local]:
            raise ModelError(
                f"Output `{framewise[0]}` has a column for each stretch of the input; nothing pools them. "
                "Run it on longer windows instead."
            )
        cut = tuple(dict.fromkeys(reversed(read)))
        if not cut or cut == (self._entry,):
            raise ModelError(
                "No layer of the network looks only so far along the axis: the first one reads all of it. "
                "It can be run window by window only."
            )
        return cut

    def _followed(self, node: Any) -> _Local | None:
        """Return what is known of a node's output, None where it is not local."""
        kind = node.op_type
        first = self._local.get(node.input[0])
        found: _Local | None = None
        if node.domain not in ("", "ai.onnx"):
            return None
        if kind in _JOINING:
            found = self._joined(node)
        elif first is None:
            found = None
        elif kind in _POINTWISE or kind in _ALONG_LAST_AXES:
            found = first if self._keeps_columns_apart(node, first) else None
        elif kind in _SLIDING:
            found = self._slid(node, first)
        elif kind in _REDUCING:
            found = self._reduced(node, first)
        elif kind == "MatMul":
            # The last axis of the left side is summed over; all others stay where they are.
            summed = first.axis == self._rank(node.input[0]) - 1
            found = None if summed or node.input[1] in self._data else first
        elif kind == "Pad":
            found = self._padded(node, first)
        elif kind == "Transpose":
            found = replace(first, axis=list(_attribute(node, "perm", ())).index(first.axis))
        elif kind in ("Squeeze", "Unsqueeze"):
            found = self._with_other_axes(node, first)
        return found

    def _keeps_columns_apart(self, node: Any, first: _Local) -> bool:
        kind = node.op_type
        if kind == "BatchNormalization":
            return first.axis != 1  # what lies on axis 1 has numbers of its own
        if kind == "LayerNormalization":
            return first.axis < self._axis(node, -1)
        return kind not in _ALONG_LAST_AXES or first.axis != self._axis(node, -1)

    def _with_other_axes(self, node: Any, first: _Local) -> _Local | None:
        axes, rank = self._values(node, 1), self._rank(node.input[0])
        if axes is None:
            return None
        if node.op_type == "Squeeze":
            return self._without(first, axes, rank)
        rank += len(axes)
        added = {int(one) % rank for one in axes}
        return replace(first, axis=[place for place in range(rank) if place not in added][first.axis])

    def _slid(self, node: Any, first: _Local) -> _Local | None:
        spatial = first.axis - 2
        weight = self._shapes.get(node.input[1]) if node.op_type == "Conv" else None
        kernel = list(_attribute(node, "kernel_shape", ())) or list((weight or ())[2:])
        if spatial < 0 or not kernel or None in kernel:
            return None
        if node.op_type == "Conv" and node.input[1] in self._data:
            return None
        if _attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            return None  # where the padding lies would depend on the length
        nothing = [0] * (2 * len(kernel))
        pad = list(_attribute(node, "pads", nothing))[spatial]
        ones = [1] * len(kernel)
        reach = (kernel[spatial] - 1) * list(_attribute(node, "dilations", ones))[spatial]
        return replace(
            first,
            stride=first.stride * list(_attribute(node, "strides", ones))[spatial],
            before=first.before + first.stride * pad,
            after=first.after + first.stride * (reach - pad),
        )

    def _padded(self, node: Any, first: _Local) -> _Local | None:
        pads = self._values(node, 1)
        rank = self._rank(node.input[0])
        if pads is None:
            return None
        if len(node.input) > 3 and node.input[3]:
            axes = self._values(node, 3)
            if axes is None:
                return None
            places = [int(one) % rank for one in axes]
        else:
            places = list(range(rank))
        if first.axis not in places:
            return first
        pad = int(pads[places.index(first.axis)])
        return replace(
            first, before=first.before + first.stride * pad, after=first.after - first.stride * pad
        )

    def _reduced(self, node: Any, first: _Local) -> _Local | None:
        rank = self._rank(node.input[0])
        axes = self._values(node, 1) if len(node.input) > 1 else _attribute(node, "axes", None)
        if axes is None or first.axis in {int(one) % rank for one in axes}:
            return None
        return first if _attribute(node, "keepdims", 1) else self._without(first, axes, rank)

    @staticmethod
    def _without(first: _Local, axes: Sequence[int] | NDArray[np.int64], rank: int) -> _Local | None:
        gone = {int(one) % rank for one in axes}
        if first.axis in gone:
            return None
        return replace(first, axis=first.axis - sum(one < first.axis for one in gone))

    def _joined(self, node: Any) -> _Local | None:
        found = [self._local[name] for name in node.input if name in self._local]
        if not found:
            return None
        rank = self._rank(node.output[0])
        # Broadcasting counts axes from the right.
        axis = found[0].axis + rank - self._rank(next(name for name in node.input if name in self._local))
        gated = any(one.gated for one in found)
        for name in node.input:
            place = axis - (rank - self._rank(name))
            if name in self._local:
                one = self._local[name]
                if place != one.axis or one.stride != found[0].stride:
                    return None
            elif place >= 0 and self._size(name, place) != 1:
                return None  # another value for each column, or the time in another form
            elif name in self._data:
                gated = True
        if node.op_type == "Concat" and (self._axis(node, 0) == axis or len(found) < len(node.input)):
            return None
        return _Local(
            axis,
            found[0].stride,
            max(one.before for one in found),
            max(one.after for one in found),
            gated,
        )

    def _axis(self, node: Any, default: int) -> int:
        rank = self._rank(node.input[0])
        return int(_attribute(node, "axis", default)) % rank

    def _rank(self, name: str) -> int:
        shape = self._shapes.get(name)
        if shape is None:
            raise ModelError(
                f"The graph does not tell the shape of `{name}`. Export the model with a fixed window."
            )
        return len(shape)

    def _size(self, name: str, axis: int) -> int | None:
        return (self._shapes.get(name) or ())[axis]

    def _values(self, node: Any, index: int) -> NDArray[np.int64] | None:
        """Return the whole numbers of a constant input, None where it is none."""
        from onnx import numpy_helper

        stored = self._stored.get(node.input[index]) if index < len(node.input) else None
        return None if stored is None else numpy_helper.to_array(stored).reshape(-1).astype(np.int64)


def _attribute(node: Any, name: str, default: Any) -> Any:
    import onnx

    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default
