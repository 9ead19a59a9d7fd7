"""ONNX Runtime's static quantization: QDQ nodes, per channel, QUInt8 activations and QInt8 weights."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Scope
from alula.errors import EngineError
from alula.graphs import left_in_float, read_onnx
from alula.libraries import INSTALL_ONNXRUNTIME
from alula.quantization.base import Material
from alula.quantization.onnxruntime_calibration import Method, calibrated_ranges
from alula.quantization.onnxruntime_findings import Range
from alula.quantization.onnxruntime_preparation import (
    one_line_failures,
    prepare,
    require_onnxruntime,
)

if TYPE_CHECKING:
    import onnx

__all__ = ["OnnxRuntimeStatic"]

_METHODS: dict[str | None, Method] = {None: "minmax", "percentile": "percentile", "entropy": "entropy"}
_OFFERED: tuple[tuple[str | None, Scope], ...] = (
    (None, "all"),
    ("percentile", "all"),
    (None, "no-edges"),
    ("percentile", "no-edges"),
    (None, "no-depthwise"),
    ("entropy", "all"),
    (None, "dense"),
)

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# The quantizer drops them behind a quantized layer, whose output range already does what they do; left in
# float, they would be computed between two conversions. Behind a layer in float it leaves them alone.
_ABSORBED = ("Clip", "Relu")


class OnnxRuntimeStatic:
    """Static quantization with ranges from all values, or without outliers (`percentile`, `entropy`).

    Unsigned activations with signed weights are what x86 dot-product instructions take; the
    library's default (both signed) is not (ONNX Runtime documentation, "Quantize ONNX models").

    Few of the combinations are offered, since each costs a calibration. The plain one is the fastest as a
    rule, because ONNX Runtime's activations leave their blocked layout between INT8 and FP32 layers. Ranges
    without outliers cost no speed and save the accuracy of networks with SiLU; leaving stem, head and
    squeeze-excite in FP32 saves accuracy at a small part of the work, and both together save most. Without
    depthwise convolutions or with dense layers only is mostly slower here. Entropy comes late: it cuts
    more than percentiles do, at the cost of the large values that classes differ by.
    """

    name = "static"
    engine = "onnxruntime"
    install = INSTALL_ONNXRUNTIME

    def version(self) -> str:
        """See `Quantizer.version`."""
        return require_onnxruntime()

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Quantizer.recipes`."""
        return tuple(Recipe(self.engine, "int8", self.name, variant, scope) for variant, scope in _OFFERED)

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Quantizer.export_format`."""
        return "onnx"

    def quantize(self, material: Material, artifact: Path, *, recipe: Recipe) -> None:
        """See `Quantizer.quantize`."""
        self.version()
        if recipe.variant not in _METHODS:
            known = ", ".join(name for name in _METHODS if name)
            raise EngineError(
                f"`{recipe}`: static quantization has no variant `{recipe.variant}`; known are {known}."
            )
        with one_line_failures(), tempfile.TemporaryDirectory(dir=artifact) as scratch:
            model = prepare(material.export / ARTIFACT_FILES["onnx"], Path(scratch))
            left = _left_in_float(model, recipe)
            ranges = calibrated_ranges(
                model,
                _activations(model, left),
                material.batches,
                signature=material.signature,
                method=_METHODS[recipe.variant],
                keep=material.export,
            )
            _write(
                model, ranges, artifact / ARTIFACT_FILES["onnx"], left=left, saturating=material.saturating
            )


def _operators() -> frozenset[str]:
    """Return the operators that `quantize_static` quantizes by default."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return frozenset((*QDQRegistry, *QLinearOpsRegistry))


def _left_in_float(model: onnx.ModelProto, recipe: Recipe) -> tuple[str, ...]:
    """Return the nodes that a recipe's scope leaves out of what would be quantized.

    Raises:
        EngineError: none of them stays in FP32, so that the recipe is the one without a scope; or nothing
            else is left.
    """
    named = set(left_in_float(read_onnx(model), recipe.scope))
    candidates = [node for node in model.graph.node if node.op_type in _operators()]
    left = {node.name for node in candidates if node.name in named and node.op_type not in _ABSORBED}
    kept = [node for node in candidates if node.name not in left]
    if recipe.scope != "all":
        # A node whose tensors all are quantized for its neighbours is computed in INT8, named or not.
        floats = _float_tensors(model)
        quantized = _touched(kept)
        if all(floats & _touched([node]) <= quantized for node in candidates if node.name in left):
            raise EngineError(
                f"Scope `{recipe.scope}` leaves nothing of this model in FP32; "
                f"`{recipe}` is the same as without it."
            )
    if not any(node.op_type in _PRODUCTS for node in kept):
        raise EngineError(
            "ONNX Runtime finds no convolution and no matrix product to quantize in this model "
            f"for `{recipe}`; use `onnxruntime/fp32`."
        )
    return tuple(sorted(left))


def _activations(model: onnx.ModelProto, left: Collection[str]) -> tuple[str, ...]:
    """Return the float tensors that a quantized node reads or makes, without weights."""
    operators = _operators()
    nodes = (node for node in model.graph.node if node.op_type in operators and node.name not in left)
    stored = {tensor.name for tensor in model.graph.initializer}
    return tuple(sorted(_float_tensors(model) & _touched(nodes) - stored))


def _touched(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    return {name for node in nodes for name in (*node.input, *node.output)}


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Return activations and weights of float32, as far as their types are known."""
    import onnx

    graph = model.graph
    return {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    } | {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}


def _write(
    model: onnx.ModelProto,
    ranges: dict[str, Range],
    path: Path,
    *,
    left: Collection[str],
    saturating: bool,
) -> None:
    """Write the quantized model, by the class that `quantize_static` uses after its own calibration."""
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorData, TensorsData

    limits = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=saturating,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
        nodes_to_quantize=[],
        nodes_to_exclude=list(left),
        op_types_to_quantize=list(_operators()),
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(path))
