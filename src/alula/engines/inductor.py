"""TorchInductor: `torch.compile` with frozen weights, compiled when the artifact is loaded."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Collection
from pathlib import Path

import numpy as np

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Settings, Signature
from alula.engines.base import Arrays, Knobs, check_inputs, check_knobs
from alula.engines.torch_eager import INSTALL, TorchSession, load_exported, require_torch
from alula.errors import EngineError, EngineUnavailableError

__all__ = ["InductorEngine"]


class InductorEngine:
    """TorchInductor's C++ backend on an exported program.

    The generated code bakes in its thread count and vector width, so it is compiled where it runs;
    the artifact stays portable. A C++ compiler must be installed.
    """

    name = "inductor"
    install = f"{INSTALL} and a C++ compiler such as g++"
    runs_code = True
    offered = True

    def version(self) -> str:
        """See `Engine.version`.

        Raises:
            EngineUnavailableError: PyTorch or a C++ compiler is missing.
        """
        version = require_torch()
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            raise EngineUnavailableError("inductor (no C++ compiler found)", install="apt-get install g++")
        return version

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Engine.recipes`."""
        return (Recipe(self.name, "fp32"),)

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Engine.export_format`."""
        return "exported"

    def knobs(self, recipe: Recipe, settings: Settings) -> tuple[Knobs, ...]:
        """See `Engine.knobs`."""
        return ()

    def build(self, export: Path, artifact: Path, *, recipe: Recipe) -> None:
        """See `Engine.build`: the exported program is the artifact."""
        shutil.copy2(export / ARTIFACT_FILES["exported"], artifact)

    def load(
        self, artifact: Path, *, recipe: Recipe, signature: Signature, settings: Settings
    ) -> InductorSession:
        """See `Engine.load`; compiles, which takes up to a minute."""
        self.version()
        check_knobs(self.name, settings, ())
        return InductorSession(artifact / ARTIFACT_FILES["exported"], signature=signature, settings=settings)


class InductorSession:
    """A compiled module for one batch size; smaller batches are padded. Thread-safe."""

    def __init__(self, path: Path, *, signature: Signature, settings: Settings) -> None:
        import torch
        from torch._inductor import config

        module = load_exported(path)
        self._specs = signature.inputs
        self._batch_size = settings.batch_size
        # Compilation runs in this thread; callers later reuse its result.
        with (
            config.patch({"freezing": True, "cpp.threads": settings.threads}),
            warnings.catch_warnings(),
        ):
            # Inductor warns of torch's own deprecated parts, which the user did not choose.
            warnings.simplefilter("ignore")
            compiled = torch.compile(module, dynamic=False)
            self._session = TorchSession("inductor", compiled, signature=signature, settings=settings)
            try:
                self.run(_example(signature, settings.batch_size))
            except torch._dynamo.exc.TorchDynamoException as error:
                first = str(error).strip().splitlines()[0]
                raise EngineError(f"Inductor could not compile the model: {first}") from error

    def run(self, inputs: Arrays) -> Arrays:
        """See `alula.engines.base.Session.run`."""
        missing = self._batch_size - check_inputs("inductor", self._specs, inputs)
        if missing <= 0:
            return self._session.run(inputs)
        padded = tuple(np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for array in inputs)
        return tuple(output[:-missing] for output in self._session.run(padded))

    def close(self) -> None:
        """See `alula.engines.base.Session.close`."""
        self._session.close()


def _example(signature: Signature, batch: int) -> Arrays:
    return tuple(
        np.zeros([batch, *[1 if isinstance(size, str) else size for size in spec.shape[1:]]], spec.dtype)
        for spec in signature.inputs
    )
