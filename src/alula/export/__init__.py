"""From a module to the graphs that engines load, each checked numerically against the module."""

from alula.export.exporters import (
    Exported,
    copy_onnx,
    export_module,
    external_files,
    signature_of_module,
    signature_of_onnx,
)
from alula.export.rewrites import flush_denormals, fold_computed_weights, rewritten
from alula.export.stretches import StretchModel, write_stretch_model

__all__ = [
    "Exported",
    "StretchModel",
    "copy_onnx",
    "export_module",
    "external_files",
    "flush_denormals",
    "fold_computed_weights",
    "rewritten",
    "signature_of_module",
    "signature_of_onnx",
    "write_stretch_model",
]
