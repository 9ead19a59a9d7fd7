"""OpenVINO's CPU plug-in."""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Settings, Signature, TensorSpec
from alula.engines.base import Arrays, Knobs, check_inputs, check_knobs
from alula.engines.batching import filled
from alula.errors import EngineError
from alula.hardware import bf16_is_native
from alula.libraries import INSTALL_OPENVINO, import_openvino, openvino_cause

__all__ = ["OpenVinoEngine"]

_DIRECT = "direct"
_FP16_WEIGHTS = "fp16-weights"
_FILLED_AT_MOST = 4  # a folder has one smaller batch at its end; who has many wants them at their own size


_first_use = threading.Lock()


class OpenVinoEngine:
    """OpenVINO on its intermediate representation (`model.xml` and `model.bin`).

    - `fp32`: from ONNX.
    - `bf16`: the same file, its products in bfloat16; offered where the CPU has instructions for them.
    - `fp32-direct`: converted from PyTorch itself, which keeps operations whole that ONNX takes apart.
    - `fp32-fp16-weights`: weights stored in FP16, a file of half the size; they become FP32 at load.

    One knob, `pin`: each thread is bound to a core. There is none for the performance hint, which only
    chooses the streams, the threads and the use of hyper-threading that are given here (all other properties
    of a compiled model are the same with either), and none for more requests than instances: no more than
    these are ever asked for.
    """

    name = "openvino"
    install = INSTALL_OPENVINO
    runs_code = False
    offered = True

    def version(self) -> str:
        """See `Engine.version`."""
        return str(import_openvino().__version__).split("-", 1)[0]

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Engine.recipes`."""
        bf16 = (Recipe(self.name, "bf16"),) if bf16_is_native(isa) else ()
        others = tuple(Recipe(self.name, "fp32", variant=variant) for variant in (_DIRECT, _FP16_WEIGHTS))
        return (Recipe(self.name, "fp32"), *bf16, *others)

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Engine.export_format`."""
        return "openvino" if recipe.variant == _DIRECT else "onnx"

    def knobs(self, recipe: Recipe, settings: Settings) -> tuple[Knobs, ...]:
        """See `Engine.knobs`."""
        return ({"pin": True},)

    def build(self, export: Path, artifact: Path, *, recipe: Recipe) -> None:
        """See `Engine.build`: converts the ONNX file, or takes the direct conversion as it is."""
        ov = import_openvino()
        target = artifact / ARTIFACT_FILES["openvino"]
        if recipe.variant == _DIRECT:
            source = export / ARTIFACT_FILES["openvino"]
            for suffix in (".xml", ".bin"):
                shutil.copy2(source.with_suffix(suffix), target.with_suffix(suffix))
            return
        try:
            model = ov.Core().read_model(export / ARTIFACT_FILES["onnx"])
            ov.save_model(model, target, compress_to_fp16=recipe.variant == _FP16_WEIGHTS)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot convert the ONNX export: {openvino_cause(error)}") from error

    def load(
        self, artifact: Path, *, recipe: Recipe, signature: Signature, settings: Settings
    ) -> OpenVinoSession:
        """See `Engine.load`.

        Raises:
            EngineError: also where a `bf16` recipe would be computed in FP32.
        """
        check_knobs(self.name, settings, ("pin",))
        return OpenVinoSession(
            artifact / ARTIFACT_FILES["openvino"], recipe=recipe, signature=signature, settings=settings
        )


class OpenVinoSession:
    """A model compiled for batches of `settings.batch_size`, with one stream per instance. Thread-safe.

    Up to `settings.instances` batches run at once, each on its own stream of `settings.threads` threads;
    more callers wait. Fixed sizes make EfficientNet-B0 3 to 8 % and `eca_nfnet_l0` about 20 % faster than a
    free batch size. The first few smaller batches are filled up; for more of them, and for larger ones, the
    model is compiled once more with a free batch size.
    """

    def __init__(self, path: Path, *, recipe: Recipe, signature: Signature, settings: Settings) -> None:
        import_openvino()
        self._path = path
        self._config = {
            "INFERENCE_NUM_THREADS": settings.total_threads,
            "NUM_STREAMS": settings.instances,
            # Pinned processes fight for the same cores (openvino#32444), and quotas know no cores.
            "ENABLE_CPU_PINNING": bool(settings.knobs.get("pin", False)),
            # With the default hint, latency, it would leave every second thread of a core idle.
            "ENABLE_HYPER_THREADING": True,
            # Machines with AMX would run BF16 silently; FP32 must mean FP32.
            "INFERENCE_PRECISION_HINT": "bf16" if _takes_bf16(recipe) else "f32",
            "CPU_DENORMALS_OPTIMIZATION": True,
        }
        self._instances = settings.instances
        self._specs = signature.inputs
        free = isinstance(self._specs[0].shape[0], str)
        self._fixed = _with_batch(self._specs, settings.batch_size) if free else self._specs
        self._slots = threading.BoundedSemaphore(settings.instances)
        self._lock = threading.Lock()
        self._smaller = 0
        self._free: _Compiled | None = None
        self._compiled: _Compiled | None = self._compile(self._fixed)
        if _takes_bf16(recipe) and "bf16" not in self._compiled.precisions():
            raise EngineError(
                f"OpenVINO computes nothing of this model in BF16 on this CPU: `{recipe}` would be the same "
                "as the recipe without BF16."
            )

    def _compile(self, specs: tuple[TensorSpec, ...]) -> _Compiled:
        return _Compiled(self._path, self._config, specs=specs, requests=self._instances)

    def run(self, inputs: Arrays) -> Arrays:
        """See `alula.engines.base.Session.run`."""
        batch = check_inputs("openvino", self._specs, inputs)
        with self._slots:
            compiled, whole = self._chosen(batch, inputs)
            try:
                outputs = compiled.run(whole)
            except RuntimeError as error:
                raise EngineError(f"OpenVINO failed on a batch: {openvino_cause(error)}") from error
        return outputs if whole is inputs else tuple(output[:batch] for output in outputs)

    def _chosen(self, batch: int, inputs: Arrays) -> tuple[_Compiled, Arrays]:
        """Return what a batch runs on, and the batch as it takes it."""
        with self._lock:
            if self._compiled is None:
                raise EngineError("This session of engine `openvino` is closed; load the artifact again.")
            size = self._fixed[0].shape[0]
            if batch == size:
                return self._compiled, inputs
            if isinstance(size, int) and batch < size and self._smaller < _FILLED_AT_MOST:
                self._smaller += 1
                return self._compiled, filled(self._fixed, inputs)
            if self._free is None:
                self._free = self._compile(self._specs)
            return self._free, inputs

    def close(self) -> None:
        """See `alula.engines.base.Session.close`."""
        with self._lock:
            self._compiled = self._free = None


class _Compiled:
    """A compiled model and its inference requests. Thread-safe; more callers than requests wait.

    Args:
        path: of the `.xml` file.
        config: properties of the plug-in.
        specs: the inputs with the sizes to compile for.
        requests: how many batches may run at once.

    Raises:
        EngineError: OpenVINO cannot read or compile the model.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], *, specs: tuple[TensorSpec, ...], requests: int
    ) -> None:
        ov = import_openvino()
        shapes = {
            index: ov.PartialShape([size if isinstance(size, int) else -1 for size in spec.shape])
            for index, spec in enumerate(specs)
        }

        def compiled() -> Any:
            core = ov.Core()
            model = core.read_model(path)
            model.reshape(shapes)
            return core.compile_model(model, "CPU", config)

        with _first_use:
            # OpenVINO makes its table of dtypes at the first use, holding a lock of its own while it waits
            # for Python's: two threads that begin at once would wait for each other for ever.
            ov.Type.f32.to_dtype()
        try:
            # The plug-in leaves the thread that compiles flushing denormals, and starts its own from there.
            # It also changes that thread's signal stack, and what it leaves can be gone at the next signal.
            with ThreadPoolExecutor(1) as thread:
                self._model = thread.submit(compiled).result()
            self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
            for _ in range(requests):
                self._requests.put(self._model.create_infer_request())
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot load {path}: {openvino_cause(error)}") from error

    def run(self, inputs: Arrays) -> Arrays:
        request = self._requests.get()
        try:
            # Started, not inferred: `infer` computes in the calling thread where there is one stream, which
            # then takes denormals as they are. Inputs are shared for the length of the call.
            request.start_async(dict(enumerate(map(np.ascontiguousarray, inputs))), share_inputs=True)
            request.wait()
            outputs: Arrays = request.results.to_tuple()
            return outputs
        finally:
            self._requests.put(request)

    def precisions(self) -> set[str]:
        """Return the precisions in which layers are computed, such as `f32` and `u8`."""
        layers = self._model.get_runtime_model().get_ops()
        return {layer.get_rt_info()["runtimePrecision"].astype(str) for layer in layers}


def _takes_bf16(recipe: Recipe) -> bool:
    return recipe.precision == "bf16" or recipe.rest_in_bf16


def _with_batch(specs: tuple[TensorSpec, ...], size: int) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec.name, spec.dtype, (size, *spec.shape[1:])) for spec in specs)
