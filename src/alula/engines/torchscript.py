"""TorchScript: traced, frozen, optimised for inference."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Collection
from pathlib import Path

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Settings, Signature
from alula.engines.base import Knobs
from alula.engines.torch_eager import INSTALL, TorchSession, require_torch
from alula.errors import EngineError

__all__ = ["TorchScriptEngine"]


class TorchScriptEngine:
    """TorchScript on a traced module; freezing and fusion happen when it is loaded."""

    name = "torchscript"
    install = INSTALL
    runs_code = True
    offered = True

    def version(self) -> str:
        """See `Engine.version`."""
        return require_torch()

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Engine.recipes`."""
        return (Recipe(self.name, "fp32"),)

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Engine.export_format`."""
        return "torchscript"

    def knobs(self, recipe: Recipe, settings: Settings) -> tuple[Knobs, ...]:
        """See `Engine.knobs`."""
        return ()

    def build(self, export: Path, artifact: Path, *, recipe: Recipe) -> None:
        """See `Engine.build`: the traced module is the artifact.

        `optimize_for_inference` packs weights for the running CPU and cannot be saved, so it is
        applied by `load`.
        """
        shutil.copy2(export / ARTIFACT_FILES["torchscript"], artifact)

    def load(
        self, artifact: Path, *, recipe: Recipe, signature: Signature, settings: Settings
    ) -> TorchSession:
        """See `Engine.load`."""
        require_torch()
        import torch

        path = artifact / ARTIFACT_FILES["torchscript"]
        try:
            with warnings.catch_warnings():
                # TorchScript is deprecated as a whole; the user chose neither it nor its replacement.
                warnings.simplefilter("ignore", DeprecationWarning)
                module = torch.jit.load(path, map_location="cpu").eval()
                module = torch.jit.optimize_for_inference(torch.jit.freeze(module))
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineError(f"{path} is no readable TorchScript module: {error}") from error
        return TorchSession(self.name, module, signature=signature, settings=settings)
