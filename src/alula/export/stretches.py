"""An ONNX network for one window becomes one for a stretch of several windows that overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alula.core import Signature, TensorSpec
from alula.errors import ModelError
from alula.graphs import LocalPart, local_part
from alula.graphs.onnx_shapes import settled_shapes

if TYPE_CHECKING:
    import onnx

__all__ = ["StretchModel", "write_stretch_model"]

# Weights lie in memory while a file is written, and a protobuf message holds no more.
_MOST_BYTES = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class StretchModel:
    """A network that gives the outputs of several windows of one stretch.

    Attributes:
        signature: takes (b, ...) with the longer time axis, gives (b, windows, ...) for each output.
        part: what of it runs once over the stretch.
        columns: of the maps, for all windows.
        computed_share: columns that are computed, over those that the windows have one by one.
    """

    signature: Signature
    part: LocalPart
    columns: int
    computed_share: float


def write_stretch_model(
    model: Path, target: Path, *, axis: int, windows: int, hop_frames: float, frames: int
) -> StretchModel:
    """Write a network whose first part runs once over a stretch, and whose rest pools each window of it.

    It is cut where it first pools over the whole of the time. A window that begins between two columns of the
    maps is moved to the nearest, and the last ones so that they end where the maps end. The outputs differ
    from those of window by window: at a window's ends the maps see the sound beside it instead of padding,
    and gates are means over the stretch.

    Args:
        model: ONNX file, exported for windows of one length, its batch axis open.
        target: file to write.
        axis: the time, of the model's only input.
        windows: of a stretch.
        hop_frames: from one window to the next, along the time; need not be whole.
        frames: of a stretch.

    Raises:
        ModelError: no part of the network looks only so far, its outputs have open sizes, the stretch is too
            short, or it is too large for one message.
        EngineUnavailableError: onnx is not installed.
    """
    part = local_part(model, axis=axis)
    import onnx
    from onnx import helper

    whole = onnx.load(model)
    if whole.ByteSize() > _MOST_BYTES:
        raise ModelError(f"{model} holds more than 2 GiB of weights, which one message cannot.")
    (given,) = _inputs(whole)
    shapes = settled_shapes(whole, {})
    sizes = [*_known(given, shapes.get(given), model)]
    # A network that leaves the end of its window out leaves as much of the stretch out.
    taken = frames - (sizes[axis - 1] - part.frames)
    sizes[axis - 1] = frames
    entry = TensorSpec(given, "float32", ("b", *sizes))
    specs = [
        TensorSpec(value.name, "float32", ("b", windows, *_known(value.name, shapes.get(value.name), model)))
        for value in whole.graph.output
    ]
    made = _Making(whole, model)
    if part.entry != given:
        made.cut_out(given, part.entry, axis=part.entry_axis, first=0, count=taken)
    made.copy_between([part.entry], part.cut, renamed={})
    columns = made.columns(entry, part)
    if columns < part.columns:
        raise ModelError(
            f"A stretch of {frames} frames gives {columns} columns; expected the {part.columns} of a window "
            "at least."
        )
    firsts = [
        min(round(index * hop_frames / part.stride), columns - part.columns) for index in range(windows)
    ]
    renamed = {spec.name: f"{spec.name}/windows" for spec in specs}
    for name, place in zip(part.cut, part.cut_axes, strict=True):
        renamed[name] = f"{name}/windows"
        made.stack_windows(name, renamed[name], axis=place, firsts=firsts, count=part.columns)
    made.copy_between(part.cut, [spec.name for spec in specs], renamed=renamed)
    for spec in specs:
        made.part_windows(renamed[spec.name], spec, windows)
    graph = helper.make_graph(made.nodes, "stretch", _infos([entry]), _infos(specs), [*made.weights.values()])
    onnx.save(made.model_of(graph), target)
    return StretchModel(
        signature=Signature((entry,), tuple(specs)),
        part=part,
        columns=columns,
        computed_share=columns / (windows * part.columns),
    )


class _Making:
    """Nodes and weights of the new graph, as they are put together.

    Attributes:
        nodes: in order.
        weights: stored tensors by name.
    """

    def __init__(self, whole: onnx.ModelProto, model: Path) -> None:
        self._whole = whole
        self._model = model
        self._makers = {tensor: node for node in whole.graph.node for tensor in node.output}
        self._stored = {tensor.name: tensor for tensor in whole.graph.initializer}
        self._copied: set[str] = set()
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}

    def copy_between(self, begins: Sequence[str], ends: Sequence[str], *, renamed: Mapping[str, str]) -> None:
        """Copy the nodes between some tensors and others, which get other names."""
        import onnx

        needed = self._needed(begins, ends)
        for node in self._whole.graph.node:
            if node.output[0] not in needed or node.output[0] in self._copied:
                continue
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.input[:] = [renamed.get(name, name) for name in node.input]
            copied.output[:] = [renamed.get(name, name) for name in node.output]
            self.nodes.append(copied)
            self._copied.add(node.output[0])

    def _needed(self, begins: Sequence[str], ends: Sequence[str]) -> set[str]:
        """Return the first outputs of the nodes between some tensors and others; take their weights along."""
        outside = {*_inputs(self._whole)} - {*begins}
        needed: set[str] = set()
        waiting = list(ends)
        while waiting:
            tensor = waiting.pop()
            if tensor in outside:
                raise ModelError(
                    f"What pools the windows of {self._model.name} also reads `{tensor}`, the input itself, "
                    "past the cut. It can be run window by window only."
                )
            if tensor in begins:
                continue
            if tensor in self._stored:
                self.weights[tensor] = self._stored[tensor]
            elif (maker := self._makers[tensor]).output[0] not in needed:
                needed.add(maker.output[0])
                waiting += filter(None, maker.input)
        return needed

    def _constant(self, name: str, values: Sequence[int]) -> str:
        from onnx import numpy_helper

        self.weights[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def cut_out(self, source: str, result: str, *, axis: int, first: int, count: int) -> None:
        """Add a node that takes some positions along an axis."""
        from onnx import helper

        bounds = [
            self._constant(f"{result}/{what}", [value])
            for what, value in (("from", first), ("to", first + count), ("axis", axis))
        ]
        self.nodes.append(helper.make_node("Slice", [source, *bounds], [result]))

    def stack_windows(
        self, source: str, result: str, *, axis: int, firsts: Sequence[int], count: int
    ) -> None:
        """Add nodes that lay windows one after the other along the batch: all first ones, all second ones."""
        from onnx import helper

        pieces = [f"{result}_{index}" for index in range(len(firsts))]
        for piece, first in zip(pieces, firsts, strict=True):
            self.cut_out(source, piece, axis=axis, first=first, count=count)
        self.nodes.append(helper.make_node("Concat", pieces, [result], axis=0))

    def part_windows(self, source: str, spec: TensorSpec, windows: int) -> None:
        """Add nodes that give such windows an axis of their own, behind the batch."""
        from onnx import helper

        sizes = [size for size in spec.shape[2:] if isinstance(size, int)]
        apart = f"{spec.name}/apart"
        shape = self._constant(f"{spec.name}/shape", [windows, -1, *sizes])
        self.nodes.append(helper.make_node("Reshape", [source, shape], [apart]))
        order = [1, 0, *range(2, len(spec.shape))]
        self.nodes.append(helper.make_node("Transpose", [apart], [spec.name], perm=order))

    def columns(self, entry: TensorSpec, part: LocalPart) -> int:
        """Return how many columns the maps have, by the nodes so far."""
        from onnx import helper

        ends = [helper.make_empty_tensor_value_info(name) for name in part.cut]
        graph = helper.make_graph(self.nodes, "maps", _infos([entry]), ends, [*self.weights.values()])
        found = settled_shapes(self.model_of(graph), {})
        sizes = {
            None if (shape := found.get(name)) is None else shape[place]
            for name, place in zip(part.cut, part.cut_axes, strict=True)
        }
        size = sizes.pop()
        if sizes or size is None:
            raise ModelError(
                "How many columns the maps of a longer stretch have cannot be told from the graph. "
                "It can be run window by window only."
            )
        return size

    def model_of(self, graph: onnx.GraphProto) -> onnx.ModelProto:
        """Return a model of the original's version and operators."""
        from onnx import helper

        whole = self._whole
        return helper.make_model(
            graph, opset_imports=whole.opset_import, ir_version=whole.ir_version, functions=whole.functions
        )


def _inputs(whole: onnx.ModelProto) -> tuple[str, ...]:
    stored = {tensor.name for tensor in whole.graph.initializer}
    return tuple(value.name for value in whole.graph.input if value.name not in stored)


def _known(name: str, shape: Sequence[int | None] | None, model: Path) -> tuple[int, ...]:
    sizes = tuple(size for size in (shape or (None, None))[1:] if size is not None)
    if shape is None or len(sizes) < len(shape) - 1:
        raise ModelError(
            f"`{name}` of {model.name} has the shape {shape}; expected known sizes after the batch axis."
        )
    return sizes


def _infos(specs: Iterable[TensorSpec]) -> list[Any]:
    from onnx import TensorProto, helper

    return [helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, list(spec.shape)) for spec in specs]
