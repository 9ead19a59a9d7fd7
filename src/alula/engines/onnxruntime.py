"""ONNX Runtime's CPU execution provider."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Settings, Signature
from alula.engines.base import Arrays, Knobs, check_inputs
from alula.errors import EngineError, EngineUnavailableError

__all__ = ["OnnxRuntimeEngine"]


class OnnxRuntimeEngine:
    """ONNX Runtime on an ONNX file, FP32 or QDQ INT8."""

    name = "onnxruntime"
    install = "pip install 'alula[onnxruntime]'"
    runs_code = False
    offered = True

    def version(self) -> str:
        """See `Engine.version`."""
        return str(_import().__version__)

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Engine.recipes`."""
        return (Recipe(self.name, "fp32"),)

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Engine.export_format`."""
        return "onnx"

    def knobs(self, recipe: Recipe, settings: Settings) -> tuple[Knobs, ...]:
        """See `Engine.knobs`."""
        return ()

    def build(self, export: Path, artifact: Path, *, recipe: Recipe) -> None:
        """See `Engine.build`: the ONNX file is the artifact; graph optimisation happens at load."""
        shutil.copy2(export / ARTIFACT_FILES["onnx"], artifact)

    def load(
        self, artifact: Path, *, recipe: Recipe, signature: Signature, settings: Settings
    ) -> OnnxRuntimeSession:
        """See `Engine.load`."""
        return OnnxRuntimeSession(artifact / ARTIFACT_FILES["onnx"], signature=signature, settings=settings)


class OnnxRuntimeSession:
    """One ONNX Runtime session shared by all instances: `Run` is thread-safe by its own contract."""

    def __init__(self, path: Path, *, signature: Signature, settings: Settings) -> None:
        ort = _import()
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only: warnings about constant folding mean nothing to users
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Spinning threads of one call take the core of another call, so they spin only when alone.
        spin = bool(settings.knobs.get("spin", settings.instances == 1))
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        try:
            self._session = ort.InferenceSession(
                str(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except _failures() as error:
            raise EngineError(f"ONNX Runtime cannot load {path}: {_first_line(error)}") from error
        self._specs = signature.inputs
        self._names = [spec.name for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]

    def run(self, inputs: Arrays) -> Arrays:
        """See `alula.engines.base.Session.run`."""
        check_inputs("onnxruntime", self._specs, inputs)
        try:
            outputs: list[np.ndarray[Any, Any]] = self._session.run(
                self._outputs, dict(zip(self._names, inputs, strict=True))
            )
        except _failures() as error:
            raise EngineError(f"ONNX Runtime failed on a batch: {_first_line(error)}") from error
        return tuple(outputs)

    def close(self) -> None:
        """See `alula.engines.base.Session.close`."""
        self._session = None


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineUnavailableError("onnxruntime", install=OnnxRuntimeEngine.install) from error
    return onnxruntime


def _failures() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        RuntimeError,
        ValueError,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
