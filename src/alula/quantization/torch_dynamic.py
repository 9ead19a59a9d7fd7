"""Dynamic quantization of linear and recurrent layers, for eager PyTorch and for TorchScript."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alula.core import ExportFormat, Recipe
from alula.errors import EngineError
from alula.libraries import INSTALL_TORCH, backend_of, require_torch, using_backend
from alula.quantization.base import Material
from alula.quantization.torch_artifacts import (
    looked_up,
    offered_recipes,
    one_line_failures,
    write_torchscript,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TorchDynamic", "for_torch", "for_torchscript"]


class TorchDynamic:
    """PyTorch's dynamic quantization: 8-bit weights once, activations by their range in each call.

    Only layers whose weights weigh more than their activations gain: linear, LSTM, GRU and their cells. They
    are the one scope that there is.
    Ranges are taken over a whole batch, so a sample's outputs depend a little on what it is batched with.
    Activations use 7 bits everywhere (PyTorch's own choice), which no CPU saturates.

    Args:
        engine: that runs the TorchScript file: `torch` as it is, `torchscript` frozen.
    """

    name = "dynamic"
    install = INSTALL_TORCH

    def __init__(self, engine: str) -> None:
        self.engine = engine

    def version(self) -> str:
        """See `Quantizer.version`."""
        return require_torch()

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Quantizer.recipes`."""
        return offered_recipes(isa, engine=self.engine, quantizer=self.name)

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Quantizer.export_format`."""
        return "module"

    def quantize(self, material: Material, artifact: Path, *, recipe: Recipe) -> None:
        """See `Quantizer.quantize`."""
        self.version()
        quantize_dynamic, observers = looked_up(_import_dynamic, "dynamic quantization")
        module = material.module()
        kinds = _kinds()
        if not any(type(child) in kinds for child in module.modules()):
            names = ", ".join(kind.__name__ for kind in kinds)
            raise EngineError(
                f"This model has no layer for dynamic quantization; expected at least one of {names}."
            )
        with using_backend(backend_of(recipe)):
            with one_line_failures("Dynamic quantization cannot quantize this model"):
                quantized = quantize_dynamic(module, dict.fromkeys(kinds, observers), inplace=True)
            write_torchscript(quantized, material, artifact)


def for_torch() -> TorchDynamic:
    """Return the quantizer whose files eager PyTorch runs as they are."""
    return TorchDynamic("torch")


def for_torchscript() -> TorchDynamic:
    """Return the quantizer whose files are frozen before they run."""
    return TorchDynamic("torchscript")


def _import_dynamic() -> tuple[Any, Any]:
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    return quantize_dynamic, per_channel_dynamic_qconfig


def _kinds() -> tuple[type[nn.Module], ...]:
    from torch import nn

    return (nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
