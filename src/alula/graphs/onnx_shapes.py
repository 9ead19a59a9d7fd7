"""Shapes of an ONNX model's tensors for one sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from alula.errors import ModelError
from alula.graphs.layers import Shape

if TYPE_CHECKING:
    import onnx

__all__ = ["settled_shapes"]

# Tensors above this are weights; their values cannot matter to shapes and are kept out of the inference.
_MOST_VALUES = 1024


def settled_shapes(model: onnx.ModelProto, given: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    """Return the shape of every tensor whose shape can be told, an open first axis of an input taken as 1.

    ONNX's inference follows few of the operators that compute sizes. Where it gets stuck, what
    depends on sizes alone is computed, and it goes on from there.

    Args:
        model: is not changed.
        given: full shapes of inputs by name.

    Raises:
        ModelError: the inference fails.
    """
    bare = _without_weights(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in bare.graph.input:
        dims = () if value.name in stored else value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if len(given.get(value.name, ())) == len(dims):
                dim.dim_value = given[value.name][axis]
            elif axis == 0 and dim.dim_value < 1:
                dim.dim_value = 1
    shapes = _inferred(bare)
    while _is_open(bare, shapes) and (values := _computed(bare, shapes)):
        _store(bare, values)
        shapes = _inferred(bare)
    return shapes


def _is_open(bare: onnx.ModelProto, shapes: Mapping[str, Shape]) -> bool:
    known = (shapes.get(tensor) for node in bare.graph.node for tensor in node.output if tensor)
    return any(shape is None or None in shape for shape in known)


def _inferred(bare: onnx.ModelProto) -> dict[str, Shape]:
    import onnx
    from onnx import shape_inference

    try:
        inferred = shape_inference.infer_shapes(bare, data_prop=True).graph
    except (shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise ModelError(f"ONNX cannot infer the shapes of this model: {error}") from error
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in bare.graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and tensor.HasField("shape"):
            shapes[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim
            )
    return shapes


def _computed(bare: onnx.ModelProto, shapes: Mapping[str, Shape]) -> dict[str, NDArray[np.generic]]:
    """Return the values of nodes that depend on known sizes and small constants alone."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    found = {tensor.name for tensor in bare.graph.initializer}
    sizes: dict[str, NDArray[np.generic]] = {}
    nodes = []
    for node in bare.graph.node:
        if node.op_type == "Shape":
            shape = shapes.get(node.input[0])
            if shape is not None and None not in shape:
                bounds = {attribute.name: attribute.i for attribute in node.attribute}
                part = shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
                sizes[node.output[0]] = np.array(part, np.int64)
                found.add(node.output[0])
        elif all(tensor in found for tensor in node.input if tensor) and not _has_graph(node):
            nodes.append(node)
            found.update(node.output)
    outputs = [tensor for node in nodes for tensor in node.output if tensor]
    graph = helper.make_graph(
        nodes,
        "sizes",
        [],
        [helper.make_empty_tensor_value_info(tensor) for tensor in outputs],
        [*bare.graph.initializer, *(_tensor(name, value) for name, value in sizes.items())],
    )
    part_model = helper.make_model(graph, opset_imports=bare.opset_import, ir_version=bare.ir_version)
    try:
        values = ReferenceEvaluator(part_model).run(outputs, {})
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError):
        # An operator that the reference does not know: its sizes stay open.
        return sizes
    return sizes | dict(zip(outputs, map(np.asarray, values), strict=True))


def _has_graph(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _store(bare: onnx.ModelProto, values: Mapping[str, NDArray[np.generic]]) -> None:
    """Put values in the place of the nodes that compute them."""
    kept = [node for node in bare.graph.node if not any(tensor in values for tensor in node.output)]
    del bare.graph.node[:]
    bare.graph.node.extend(kept)
    bare.graph.initializer.extend(_tensor(name, value) for name, value in values.items())


def _tensor(name: str, value: NDArray[np.generic]) -> onnx.TensorProto:
    from onnx import numpy_helper

    tensor: onnx.TensorProto = numpy_helper.from_array(value, name)
    return tensor


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without large tensors' values and without shapes that an exporter noted.

    Inference copies what it gets, which for a large model may be more than one message can hold; and a
    noted shape with an open axis would stay as it is.
    """
    import onnx

    bare = onnx.ModelProto()
    bare.ir_version = model.ir_version
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph = bare.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    declared = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if not external and math.prod(tensor.dims) <= _MOST_VALUES:
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    for value in model.graph.output:
        plain = graph.output.add()
        plain.CopyFrom(value)
        if plain.type.HasField("tensor_type"):
            plain.type.tensor_type.ClearField("shape")
    return bare
