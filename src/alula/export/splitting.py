"""An ONNX network in two files: what may run once over a whole recording, and what pools each window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alula.core import ARTIFACT_FILES, Signature, TensorSpec
from alula.errors import ModelError
from alula.graphs import LocalPart, local_part
from alula.graphs.onnx_shapes import settled_shapes

if TYPE_CHECKING:
    import onnx

__all__ = ["SplitModel", "split_for_whole_files"]

# Weights lie in memory while a file is split, and a protobuf message holds no more.
_MOST_BYTES = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class SplitModel:
    """The two halves of a network.

    Attributes:
        part: how far the first half looks, and where it was cut.
        backbone: folder with an ONNX file from a stretch of any length to columns; one sample.
        backbone_signature: its input and outputs; the axis `t` is open.
        head: folder with an ONNX file from the columns of windows to the network's outputs.
        head_signature: its inputs and outputs; only the batch axis is open.
    """

    part: LocalPart
    backbone: Path
    backbone_signature: Signature
    head: Path
    head_signature: Signature


def split_for_whole_files(model: Path, folder: Path, *, axis: int) -> SplitModel:
    """Write the two halves of an ONNX network, cut where it first pools over the whole of an axis.

    Args:
        model: the file, exported for windows of one length, its batch axis open.
        folder: existing folder; `backbone` and `head` are made in it.
        axis: the time, of the model's only input.

    Raises:
        ModelError: the network has no part that looks only so far, or it is too large for one message.
        EngineUnavailableError: onnx is not installed.
    """
    part = local_part(model, axis=axis)
    import onnx

    whole = onnx.load(model)
    if whole.ByteSize() > _MOST_BYTES:
        raise ModelError(f"{model} holds more than 2 GiB of weights, which one message cannot.")
    shapes = settled_shapes(whole, {})

    def spec(name: str, time: int | str, place: int, batch: int | str) -> TensorSpec:
        shape = shapes.get(name) or ()
        sizes: list[int | str] = [
            size if size is not None else f"d{index}" for index, size in enumerate(shape)
        ]
        sizes[0] = batch
        sizes[place] = time
        return TensorSpec(name, "float32", tuple(sizes))

    entry = spec(part.entry, "t", part.entry_axis, 1)
    open_columns = [
        spec(name, f"t{index}", place, 1)
        for index, (name, place) in enumerate(zip(part.cut, part.cut_axes, strict=True))
    ]
    columns = [
        spec(name, part.columns, place, "b") for name, place in zip(part.cut, part.cut_axes, strict=True)
    ]
    outputs = [
        TensorSpec(value.name, "float32", ("b", *_known(shapes.get(value.name))))
        for value in whole.graph.output
    ]
    backbone = Signature((entry,), tuple(open_columns))
    head = Signature(tuple(columns), tuple(outputs))
    for name, signature in (("backbone", backbone), ("head", head)):
        (folder / name).mkdir()
        onnx.save(_extracted(whole, signature), folder / name / ARTIFACT_FILES["onnx"])
    return SplitModel(
        part=part,
        backbone=folder / "backbone",
        backbone_signature=backbone,
        head=folder / "head",
        head_signature=head,
    )


def _known(shape: Sequence[int | None] | None) -> tuple[int | str, ...]:
    return tuple(size if size is not None else f"d{index}" for index, size in enumerate((shape or ())[1:]))


def _extracted(whole: onnx.ModelProto, signature: Signature) -> onnx.ModelProto:
    """Return the nodes between the tensors of a signature as a model of their own, without noted shapes."""
    from onnx import TensorProto, helper

    given = {spec.name for spec in signature.inputs}
    makers = {tensor: node for node in whole.graph.node for tensor in node.output}
    stored = {tensor.name: tensor for tensor in whole.graph.initializer}
    outside = {value.name for value in whole.graph.input} - stored.keys() - given
    kept: set[int] = set()
    weights: dict[str, Any] = {}
    waiting = [spec.name for spec in signature.outputs]
    while waiting:
        tensor = waiting.pop()
        if tensor in outside:
            raise ModelError(
                f"What pools the windows also reads `{tensor}`, the input itself, past the cut. "
                "It can be run window by window only."
            )
        if tensor in given or tensor in weights:
            continue
        if tensor in stored:
            weights[tensor] = stored[tensor]
        elif id(makers[tensor]) not in kept:
            kept.add(id(makers[tensor]))
            waiting += filter(None, makers[tensor].input)
    graph = helper.make_graph(
        [node for node in whole.graph.node if id(node) in kept],
        "part",
        _infos(signature.inputs, TensorProto.FLOAT),
        _infos(signature.outputs, TensorProto.FLOAT),
        list(weights.values()),
    )
    return helper.make_model(
        graph, opset_imports=whole.opset_import, ir_version=whole.ir_version, functions=whole.functions
    )


def _infos(specs: Iterable[TensorSpec], dtype: int) -> list[Any]:
    from onnx import helper

    return [helper.make_tensor_value_info(spec.name, dtype, list(spec.shape)) for spec in specs]
