"""NNCF post-training quantization of OpenVINO models, whole or dense layers only."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Signature
from alula.errors import EngineError, EngineUnavailableError
from alula.quantization.base import Material

__all__ = ["OpenVinoNncf"]

# What `dense` leaves in FP32: everything but convolutions without groups.
# Depthwise convolutions and element-wise work are bound by memory, and the conversions around them
# can cost more than INT8 saves; whether they do is measured for each model.
_NOT_DENSE = (
    "GroupConvolution",
    "Multiply",
    "Add",
    "ReduceMean",
    "Swish",
    "Sigmoid",
    "HSwish",
    "HSigmoid",
    "MatMul",
)


class OpenVinoNncf:
    """NNCF's default post-training quantization (symmetric, fast bias correction)."""

    name = "nncf"
    engine = "openvino"
    install = "pip install 'alula[openvino]'"

    def version(self) -> str:
        """See `Quantizer.version`."""
        try:
            import nncf
            import openvino  # noqa: F401
        except ImportError as error:
            raise EngineUnavailableError("nncf with openvino", install=self.install) from error
        return str(nncf.__version__)

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Quantizer.recipes`."""
        return tuple(Recipe(self.engine, "int8", self.name, None, scope) for scope in ("all", "dense"))

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Quantizer.export_format`."""
        return "onnx"

    def quantize(self, material: Material, artifact: Path, *, recipe: Recipe) -> None:
        """See `Quantizer.quantize`."""
        self.version()
        import nncf
        import openvino as ov
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

        logging.getLogger("nncf").setLevel(logging.ERROR)
        samples = [
            {name: value[i : i + 1] for name, value in zip(_names(material.signature), batch, strict=True)}
            for batch in material.batches()
            for i in range(batch[0].shape[0])
        ]
        try:
            model = ov.Core().read_model(material.export / ARTIFACT_FILES["onnx"])
            left_out = _NOT_DENSE if recipe.scope == "dense" else ()
            present = {node.get_type_name() for node in model.get_ops()}
            ignored = [kind for kind in left_out if kind in present]
            options: dict[str, Any] = {}
            if ignored:
                names = [n.get_friendly_name() for n in model.get_ops() if n.get_type_name() in ignored]
                options["ignored_scope"] = nncf.IgnoredScope(names=names, validate=False)
            quantized = nncf.quantize(
                model,
                nncf.Dataset(samples),
                subset_size=len(samples),
                advanced_parameters=AdvancedQuantizationParameters(
                    overflow_fix=OverflowFix.ENABLE if material.saturating else OverflowFix.DISABLE
                ),
                **options,
            )
            ov.save_model(quantized, artifact / ARTIFACT_FILES["openvino"], compress_to_fp16=False)
        except (RuntimeError, ValueError, nncf.ValidationError, nncf.InternalError) as error:
            raise EngineError(f"NNCF cannot quantize this model: {type(error).__name__}: {error}") from error


def _names(signature: Signature) -> list[str]:
    return [spec.name for spec in signature.inputs]
