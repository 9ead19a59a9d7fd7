"""ONNX Runtime's CPU execution provider."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Scalar, Settings, Signature
from alula.engines.base import Arrays, Knobs, check_inputs, check_knobs
from alula.engines.denormals import flushed_denormals
from alula.errors import EngineError
from alula.libraries import INSTALL_ONNXRUNTIME, import_onnxruntime, onnxruntime_failures

__all__ = ["OnnxRuntimeEngine"]

KNOBS = ("arena", "graph", "inter_op", "spin")


class OnnxRuntimeEngine:
    """ONNX Runtime on an ONNX file, FP32 or INT8.

    Knobs:
        spin (bool): whether idle threads of the pool wait in a loop; by default where there is one instance.
        graph (`extended` or `all`): how far the graph is rewritten; `all`, the default, also lays images out
            in blocks of channels. tf_efficientnet_b0_ns was twice as fast by that in FP32, and not much in
            INT8; a network with few channels may not earn the conversions back.
        inter_op (int): threads between operators, taken from those within them; 1 by default. More than one
            is ONNX Runtime's parallel execution mode, which computes nothing side by side on CPUs since 1.14
            (onnxruntime#13495, #16158): the thread is lost.
        arena (bool): whether memory is kept between batches; true by default.

    A thread pool shared between sessions is no knob: a process that computes has one session.
    """

    name = "onnxruntime"
    install = INSTALL_ONNXRUNTIME
    runs_code = False
    offered = True

    def version(self) -> str:
        """See `Engine.version`."""
        return str(import_onnxruntime().__version__)

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Engine.recipes`."""
        return (Recipe(self.name, "fp32"),)

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Engine.export_format`."""
        return "onnx"

    def knobs(self, recipe: Recipe, settings: Settings) -> tuple[Knobs, ...]:
        """See `Engine.knobs`.

        Spinning decides by what else the machine does, so its opposite comes first. `arena` is not among
        them: it trades speed for memory. Nor is `inter_op`, which only loses a thread.

        >>> OnnxRuntimeEngine().knobs(Recipe("onnxruntime", "fp32"), Settings(threads=2))
        ({'spin': False}, {'graph': 'extended'})
        >>> OnnxRuntimeEngine().knobs(Recipe("onnxruntime", "fp32"), Settings(instances=2))
        ({'graph': 'extended'},)
        """
        spinning: tuple[Knobs, ...] = ({"spin": settings.instances > 1},) if settings.threads > 1 else ()
        return (*spinning, {"graph": "extended"})

    def build(self, export: Path, artifact: Path, *, recipe: Recipe) -> None:
        """See `Engine.build`: the ONNX file is the artifact; graph optimisation happens at load.

        Weights of more than 1.5 GiB lie beside it.
        """
        for file in export.glob(f"{ARTIFACT_FILES['onnx']}*"):
            shutil.copy2(file, artifact)

    def load(
        self, artifact: Path, *, recipe: Recipe, signature: Signature, settings: Settings
    ) -> OnnxRuntimeSession:
        """See `Engine.load`."""
        return OnnxRuntimeSession(artifact / ARTIFACT_FILES["onnx"], signature=signature, settings=settings)


class OnnxRuntimeSession:
    """One ONNX Runtime session shared by all instances: `Run` is thread-safe by its own contract.

    A thread that calls `run` computes too, and all callers share the session's pools. Denormals are zero
    while it computes, in the pools and in the caller, whose own arithmetic stays as it was.
    """

    def __init__(self, path: Path, *, signature: Signature, settings: Settings) -> None:
        ort = import_onnxruntime()
        options = _options(ort, settings)
        try:
            # The first session of a process sets the flags in the thread that loads it, for good.
            with flushed_denormals():
                self._session = ort.InferenceSession(
                    str(path), sess_options=options, providers=["CPUExecutionProvider"]
                )
        except onnxruntime_failures() as error:
            raise EngineError(f"ONNX Runtime cannot load {path}: {_first_line(error)}") from error
        self._specs = signature.inputs
        self._names = [spec.name for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]

    def run(self, inputs: Arrays) -> Arrays:
        """See `alula.engines.base.Session.run`."""
        check_inputs("onnxruntime", self._specs, inputs)
        try:
            with flushed_denormals():
                outputs: list[np.ndarray[Any, Any]] = self._session.run(
                    self._outputs, dict(zip(self._names, inputs, strict=True))
                )
        except onnxruntime_failures() as error:
            raise EngineError(f"ONNX Runtime failed on a batch: {_first_line(error)}") from error
        return tuple(outputs)

    def close(self) -> None:
        """See `alula.engines.base.Session.close`."""
        self._session = None


def _options(ort: Any, settings: Settings) -> Any:
    """Return session options whose pools, with all callers, have no more threads than the settings.

    Raises:
        EngineError: a knob is unknown or has a value that it cannot have.
    """
    check_knobs("onnxruntime", settings, KNOBS)
    # Spinning threads of one call take the core of another call, so they spin only when alone.
    spin = _chosen(settings, "spin", (settings.instances == 1, settings.instances != 1))
    levels = {
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    }
    # Callers compute, and every pool counts one of them as its own first thread.
    spare = settings.total_threads - settings.instances
    side_by_side = int(_chosen(settings, "inter_op", range(1, spare + 2)))
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised; the rest means nothing to users
    options.intra_op_num_threads = spare + 2 - side_by_side
    options.inter_op_num_threads = side_by_side
    options.execution_mode = (
        ort.ExecutionMode.ORT_PARALLEL if side_by_side > 1 else ort.ExecutionMode.ORT_SEQUENTIAL
    )
    options.graph_optimization_level = levels[str(_chosen(settings, "graph", tuple(levels)))]
    options.enable_cpu_mem_arena = _chosen(settings, "arena", (True, False))
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "1" if spin else "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return options


def _chosen(settings: Settings, knob: str, values: Collection[Scalar]) -> Scalar:
    """Return a knob's value, which is the first of the possible ones unless the settings say otherwise."""
    default = next(iter(values))
    value = settings.knobs.get(knob, default)
    if type(value) is not type(default) or value not in values:
        raise EngineError(
            f"Knob `{knob}` of engine `onnxruntime` got {value!r}; expected one of "
            f"{', '.join(map(repr, values))} with {settings.threads} threads per instance."
        )
    return value


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
