"""OpenVINO's CPU plug-in."""

from __future__ import annotations

import contextlib
import queue
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Settings, Signature
from alula.engines.base import Arrays, Knobs, check_inputs
from alula.errors import EngineError, EngineUnavailableError

__all__ = ["OpenVinoEngine"]


class OpenVinoEngine:
    """OpenVINO on its intermediate representation (`model.xml` and `model.bin`)."""

    name = "openvino"
    install = "pip install 'alula[openvino]'"
    runs_code = False
    offered = True

    def version(self) -> str:
        """See `Engine.version`."""
        return str(_import().__version__).split("-", 1)[0]

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
        """See `Engine.build`: converts the ONNX file, with weights kept in FP32."""
        ov = _import()
        try:
            model = ov.Core().read_model(export / ARTIFACT_FILES["onnx"])
            ov.save_model(model, artifact / ARTIFACT_FILES["openvino"], compress_to_fp16=False)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot convert the ONNX export: {_last_line(error)}") from error

    def load(
        self, artifact: Path, *, recipe: Recipe, signature: Signature, settings: Settings
    ) -> OpenVinoSession:
        """See `Engine.load`."""
        return OpenVinoSession(artifact / ARTIFACT_FILES["openvino"], signature=signature, settings=settings)


class OpenVinoSession:
    """A compiled model with one stream and one inference request per instance. Thread-safe.

    Each caller takes a free request, so up to `settings.instances` batches run at once, each on its
    own stream of `settings.threads` threads.
    """

    def __init__(self, path: Path, *, signature: Signature, settings: Settings) -> None:
        ov = _import()
        config = {
            "INFERENCE_NUM_THREADS": settings.total_threads,
            "NUM_STREAMS": settings.instances,
            # Pinned processes fight for the same cores (openvino#32444), and quotas know no cores.
            "ENABLE_CPU_PINNING": bool(settings.knobs.get("pin", False)),
            # Machines with AMX would run BF16 silently; FP32 must mean FP32.
            "INFERENCE_PRECISION_HINT": "f32",
            "CPU_DENORMALS_OPTIMIZATION": True,
        }
        try:
            self._compiled = ov.Core().compile_model(path, "CPU", config)
            self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
            for _ in range(settings.instances):
                self._requests.put(self._compiled.create_infer_request())
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot load {path}: {_last_line(error)}") from error
        self._specs = signature.inputs

    def run(self, inputs: Arrays) -> Arrays:
        """See `alula.engines.base.Session.run`."""
        check_inputs("openvino", self._specs, inputs)
        request = self._requests.get()
        try:
            # Inputs are shared for the length of the call; outputs are copied, since the request's
            # buffers are overwritten by its next user.
            outputs = request.infer(
                dict(enumerate(map(np.ascontiguousarray, inputs))), share_inputs=True, share_outputs=False
            )
            return tuple(np.array(value) for value in outputs.to_tuple())
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on a batch: {_last_line(error)}") from error
        finally:
            self._requests.put(request)

    def close(self) -> None:
        """See `alula.engines.base.Session.close`."""
        self._requests = queue.SimpleQueue()
        self._compiled = None


def _import() -> Any:
    try:
        with _unreported():
            import openvino
    except ImportError as error:
        raise EngineUnavailableError("openvino", install=OpenVinoEngine.install) from error
    return openvino


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """Hide the package through which OpenVINO reports to a server that it was imported.

    Reporting also forks this process, which may have threads, and writes into the user's home folder.
    """
    name = "openvino_telemetry"
    if name in sys.modules:  # the user's own choice
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if sys.modules.get(name, name) is None:
            del sys.modules[name]


def _last_line(error: BaseException) -> str:
    # OpenVINO prints the chain of source positions first and the cause last.
    text = [line for line in str(error).strip().splitlines() if line.strip()]
    return text[-1].strip() if text else type(error).__name__
