"""ONNX Runtime's dynamic quantization: INT8 weights, and activations by their range in each batch."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe
from alula.errors import EngineError
from alula.graphs import read_onnx
from alula.libraries import INSTALL_ONNXRUNTIME
from alula.quantization.base import Material
from alula.quantization.onnxruntime_preparation import (
    one_line_failures,
    prepare,
    require_onnxruntime,
)

if TYPE_CHECKING:
    import onnx

__all__ = ["OnnxRuntimeDynamic"]

# Four times faster products in this part of the work make the whole 1.04 times faster at the very best.
LEAST_SHARE = 0.05

# The quantizer turns Gemm into MatMul before it looks.
_QUANTIZED = ("Gemm", "LSTM", "MatMul")
_INTEGER = ("DynamicQuantizeLSTM", "MatMulInteger")


class OnnxRuntimeDynamic:
    """Dynamic quantization of matrix products with weights and of LSTMs; no calibration.

    Convolutions stay in FP32: with ConvInteger (ONNX Runtime 1.31, AVX-512 VNNI) resnet50 was no faster than
    in FP32 and tf_efficientnet_b0_ns half as fast; with signed weights both were four times slower at least.
    So there is but one scope.

    Ranges are taken over a whole batch, so a sample's outputs depend a little on what it is batched with.
    """

    name = "dynamic"
    engine = "onnxruntime"
    install = INSTALL_ONNXRUNTIME

    def version(self) -> str:
        """See `Quantizer.version`."""
        return require_onnxruntime()

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Quantizer.recipes`."""
        return (Recipe(self.engine, "int8", self.name),)

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Quantizer.export_format`."""
        return "onnx"

    def quantize(self, material: Material, artifact: Path, *, recipe: Recipe) -> None:
        """See `Quantizer.quantize`.

        Raises:
            EngineError: besides, hardly any of the model's work would be quantized.
        """
        self.version()
        with one_line_failures(), tempfile.TemporaryDirectory(dir=artifact) as scratch:
            model = prepare(material.export / ARTIFACT_FILES["onnx"], Path(scratch))
            _check_worth(model, recipe)
            target = Path(scratch) / "quantized.onnx"
            _write(model, target, saturating=material.saturating)
            target.rename(artifact / ARTIFACT_FILES["onnx"])


def _check_worth(model: onnx.ModelProto, recipe: Recipe) -> None:
    """Check that matrix products and LSTMs are enough of the work to gain by.

    Raises:
        EngineError: they are not.
    """
    graph = read_onnx(model)
    operators = {node.name: node.op_type for node in model.graph.node}
    quantized = [
        layer
        for layer in graph.layers
        if layer.kind in ("matmul", "recurrent") and operators[layer.name] in _QUANTIZED
    ]
    work = [layer.macs for layer in graph.layers]
    if None in work and quantized:  # the sizes of some layer are unknown
        return
    share = sum(layer.macs or 0 for layer in quantized) / (sum(macs or 0 for macs in work) or 1)
    if share < LEAST_SHARE:
        raise EngineError(
            f"`{recipe}` quantizes matrix products with weights and LSTMs, which are {share:.1%} of this "
            "model's work; use `onnxruntime/int8-static` or `onnxruntime/fp32`."
        )


def _give_own_weights(model: onnx.ModelProto) -> None:
    """Copy the weights that a `Gemm` shares: ONNX Runtime turns both into those of a `MatMul`, in place."""
    readers = Counter(name for node in model.graph.node for name in node.input)
    stored = {weight.name: weight for weight in model.graph.initializer}
    for index, node in enumerate(model.graph.node):
        name = node.input[1] if node.op_type == "Gemm" else ""
        if name in stored and readers[name] > 1:
            own = model.graph.initializer.add()
            own.CopyFrom(stored[name])
            own.name = node.input[1] = f"{name}_of_{index}"
            readers[name] -= 1


def _write(model: onnx.ModelProto, path: Path, *, saturating: bool) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _give_own_weights(model)
    quantize_dynamic(
        model,
        str(path),
        op_types_to_quantize=["LSTM", "MatMul"],
        per_channel=True,
        reduce_range=saturating,
        weight_type=QuantType.QInt8,
    )
    made = {node.op_type for node in onnx.load(path).graph.node}
    if not made.intersection(_INTEGER):
        raise EngineError("ONNX Runtime finds no weights in this model that dynamic quantization takes.")
