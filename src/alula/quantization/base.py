"""The quantizer contract: an FP32 export and calibration samples in, an INT8 artifact out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from alula.core import ExportFormat, Recipe, Signature

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Batches", "Material", "Quantizer"]

Batches = Callable[[], Iterator[tuple[NDArray[np.generic], ...]]]
"""Gives a fresh pass over the calibration batches: one array (b, ...) per model input."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a quantizer makes an artifact from.

    Attributes:
        export: folder written by an exporter, in the recipe's export format; empty for `module`. A quantizer
            may keep there what it found out, for other recipes that start from the same export.
        module: gives the user's module in eval mode, rewritten as before every export; it is the caller's
            to change. Raises `ModelError` where the model is no PyTorch module.
        batches: calibration data; never the samples that decide acceptance.
        signature: inputs and outputs of the model.
        saturating: whether this CPU's u8 x s8 products saturate in 16 bits, so that weights must leave
            one bit unused.
    """

    export: Path
    module: Callable[[], nn.Module]
    batches: Batches
    signature: Signature
    saturating: bool


@runtime_checkable
class Quantizer(Protocol):
    """Makes INT8 artifacts for one engine.

    Attributes:
        name: the quantizer's part of a recipe name.
        engine: the engine that its artifacts are for.
        install: command that installs it.
    """

    name: str
    engine: str
    install: str

    def version(self) -> str:
        """Return the installed version.

        Raises:
            EngineUnavailableError: the quantizer is not installed.
        """
        ...

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """Return the recipes that can be fast on a CPU: variants and scopes, the plain one first.

        Args:
            isa: instruction sets of the CPU, named as in `alula.hardware.Cpu.isa`.
        """
        ...

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """Return what the artifact of one of `recipes` is made from."""
        ...

    def quantize(self, material: Material, artifact: Path, *, recipe: Recipe) -> None:
        """Write the INT8 artifact of one of `recipes` into an empty folder.

        Raises:
            EngineUnavailableError: the quantizer is not installed.
            EngineError: the model cannot be quantized this way.
        """
        ...
