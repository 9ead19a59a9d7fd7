"""ONNX Runtime's static quantization: QDQ nodes, per channel, QUInt8 activations and QInt8 weights."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Signature
from alula.errors import EngineError, EngineUnavailableError
from alula.quantization.base import Batches, Material

__all__ = ["OnnxRuntimeStatic"]


class OnnxRuntimeStatic:
    """Static quantization with MinMax ranges, after ONNX Runtime's own pre-processing.

    Unsigned activations with signed weights are what x86 dot-product instructions take; the
    library's default (both signed) is not (ONNX Runtime documentation, "Quantize ONNX models").
    """

    name = "static"
    engine = "onnxruntime"
    install = "pip install 'alula[onnxruntime]'"

    def version(self) -> str:
        """See `Quantizer.version`."""
        try:
            import onnx  # noqa: F401  (the quantizer needs it, the runtime does not)
            import onnxruntime
        except ImportError as error:
            raise EngineUnavailableError("onnxruntime with onnx", install=self.install) from error
        return str(onnxruntime.__version__)

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Quantizer.recipes`."""
        return (Recipe(self.engine, "int8", self.name),)

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Quantizer.export_format`."""
        return "onnx"

    def quantize(self, material: Material, artifact: Path, *, recipe: Recipe) -> None:
        """See `Quantizer.quantize`."""
        self.version()
        from google.protobuf.message import DecodeError
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        names = [spec.name for spec in material.signature.inputs]
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)  # the quantizer advises its own developers on the root logger
        try:
            with tempfile.TemporaryDirectory(dir=artifact) as scratch:
                prepared = Path(scratch) / "prepared.onnx"
                # Symbolic shape inference is for transformers; it fails on some convolutional graphs.
                quant_pre_process(
                    str(material.export / ARTIFACT_FILES["onnx"]), str(prepared), skip_symbolic_shape=True
                )
                quantize_static(
                    str(prepared),
                    str(artifact / ARTIFACT_FILES["onnx"]),
                    _Reader(names, material.batches),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    reduce_range=material.saturating,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                )
        except (
            RuntimeError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            AssertionError,
            DecodeError,
        ) as error:
            raise EngineError(
                f"ONNX Runtime cannot quantize this model: {type(error).__name__}: {error}"
            ) from error
        finally:
            root.setLevel(level)


class _Reader:
    """The quantizer's view of the calibration batches (its `CalibrationDataReader`)."""

    def __init__(self, names: list[str], batches: Batches) -> None:
        self._names = names
        self._batches = batches
        self._iterator: Iterator[tuple[NDArray[np.generic], ...]] = batches()

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._iterator, None)
        return None if batch is None else dict(zip(self._names, batch, strict=True))

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> dict[str, Any]:
        batch = self.get_next()
        if batch is None:
            raise StopIteration
        return batch
