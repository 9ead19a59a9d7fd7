"""The quantizer contract: an FP32 export and calibration samples in, an INT8 artifact out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from alula.core import ExportFormat, Signature

__all__ = ["Batches", "Quantizer"]

Batches = Callable[[], Iterator[tuple[NDArray[np.generic], ...]]]
"""Gives a fresh pass over the calibration batches: one array (b, ...) per model input."""


@runtime_checkable
class Quantizer(Protocol):
    """Makes INT8 artifacts for one engine.

    Attributes:
        name: the quantizer's part of a recipe name.
        engine: the engine that its artifacts are for.
        install: command that installs it.
        export_format: the export that it starts from.
    """

    name: str
    engine: str
    install: str
    export_format: ExportFormat

    def version(self) -> str:
        """Return the installed version.

        Raises:
            EngineUnavailableError: the quantizer is not installed.
        """
        ...

    def quantize(
        self, export: Path, artifact: Path, *, batches: Batches, signature: Signature, saturating: bool
    ) -> None:
        """Write the INT8 artifact.

        Args:
            export: folder written by an exporter, in `export_format`.
            artifact: empty folder to fill.
            batches: calibration data; never the samples that decide acceptance.
            signature: inputs and outputs of the model.
            saturating: whether this CPU's u8 x s8 products saturate in 16 bits, so that weights must
                leave one bit unused.

        Raises:
            EngineError: the model cannot be quantized this way.
        """
        ...
