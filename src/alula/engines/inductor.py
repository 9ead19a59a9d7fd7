"""TorchInductor: generated C++ with frozen weights, compiled ahead of time and called without Python."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection
from pathlib import Path

import msgspec
import numpy as np

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Settings, Signature
from alula.engines.base import Arrays, Knobs, check_inputs, check_knobs
from alula.engines.inductor_compile import (
    MAX_AUTOTUNE,
    compile_for_any_batch,
    compiled_for_batch,
    require_compiler,
)
from alula.engines.inductor_library import Library, SharedLibrary, load_library
from alula.engines.torch_eager import INSTALL, TorchSession, require_torch, thread_settings
from alula.errors import EngineError
from alula.hardware import bf16_is_native, read_cpu

__all__ = ["InductorEngine", "InductorSession"]

AOT = "aot"
"""The variant whose artifact is the library itself, for batches of any size and for this kind of CPU only."""

NOTE_NAME = "made-for.json"


class _MadeFor(msgspec.Struct, frozen=True):
    """What a library runs with, and its content: loading another CPU's code or half a file ends the process.

    Attributes:
        torch: version of PyTorch.
        arch: as in `alula.hardware.Cpu`.
        isa: as in `alula.hardware.Cpu`.
        sha256: of the other files of the artifact.
    """

    torch: str
    arch: str
    isa: tuple[str, ...]
    sha256: str


class InductorEngine:
    """TorchInductor's C++ backend on an exported program, in FP32, BF16, or quantized by PT2E.

    Most artifacts are the exported program, which any CPU can run, and are compiled when they are loaded,
    for one batch size. That takes five seconds to minutes, but only the first time on a machine. `aot` is
    compiled when it is built, and loads at once where the CPU has what it was built for; no compiler is
    needed there. `max-autotune` also tries generated matrix products, which matters to transformers and not
    to convolutions.
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
        require_compiler()
        return version

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Engine.recipes`."""
        fp32 = tuple(Recipe(self.name, "fp32", None, variant) for variant in (None, AOT, MAX_AUTOTUNE))
        return (*fp32, Recipe(self.name, "bf16")) if bf16_is_native(isa) else fp32

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Engine.export_format`."""
        return "exported"

    def knobs(self, recipe: Recipe, settings: Settings) -> tuple[Knobs, ...]:
        """See `Engine.knobs`."""
        return ()

    def build(self, export: Path, artifact: Path, *, recipe: Recipe) -> None:
        """See `Engine.build`: the exported program is the artifact, but for `aot`."""
        if recipe.variant != AOT:
            shutil.copy2(export / ARTIFACT_FILES["exported"], artifact)
            return
        self.version()
        compile_for_any_batch(export, artifact, recipe=recipe)
        note = msgspec.json.encode(_made_for(artifact))
        try:
            (artifact / NOTE_NAME).write_bytes(note)
        except OSError as error:
            raise EngineError(f"{artifact / NOTE_NAME} cannot be written: {error}.") from error

    def load(
        self, artifact: Path, *, recipe: Recipe, signature: Signature, settings: Settings
    ) -> InductorSession:
        """See `Engine.load`; compiles for the batch size, unless this machine did so before."""
        require_torch()
        check_knobs(self.name, settings, ())
        with thread_settings(settings.threads):
            if recipe.variant == AOT:
                _check_made_for_here(artifact)
                folder, batch_size = artifact, None
            else:
                fixed = signature.inputs[0].shape[0]
                batch_size = fixed if isinstance(fixed, int) else settings.batch_size
                folder = compiled_for_batch(artifact, recipe=recipe, batch_size=batch_size)
            library = load_library(folder, instances=settings.instances)
        return InductorSession(library, signature=signature, settings=settings, batch_size=batch_size)


class InductorSession:
    """A compiled model. Thread-safe.

    Args:
        library: to call.
        signature: inputs and outputs.
        settings: see `Engine.load`.
        batch_size: that it was compiled for; larger batches are run in pieces, smaller ones are filled up.
            None takes any.
    """

    def __init__(
        self,
        library: Library | SharedLibrary,
        *,
        signature: Signature,
        settings: Settings,
        batch_size: int | None,
    ) -> None:
        self._specs = signature.inputs
        self._batch_size = batch_size
        self._library = library
        self._session = TorchSession("inductor", library, signature=signature, settings=settings)

    def run(self, inputs: Arrays) -> Arrays:
        """See `alula.engines.base.Session.run`."""
        count, size = check_inputs("inductor", self._specs, inputs), self._batch_size
        if size is None or count == size:
            return self._session.run(inputs)
        missing = -count % size
        if missing:
            inputs = tuple(
                np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for array in inputs
            )
        pieces = [
            self._session.run(tuple(array[start : start + size] for array in inputs))
            for start in range(0, count, size)
        ]
        return tuple(np.concatenate(column)[:count] for column in zip(*pieces, strict=True))

    def close(self) -> None:
        """See `alula.engines.base.Session.close`."""
        self._session.close()
        self._library.close()


def _made_for(folder: Path) -> _MadeFor:
    """Return what the note of a library says that is compiled and loaded here."""
    cpu = read_cpu()
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name != NOTE_NAME:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return _MadeFor(require_torch(), cpu.arch, cpu.isa, digest.hexdigest())


def _check_made_for_here(artifact: Path) -> None:
    """Check that a library cannot end the process by what it needs or lacks.

    Raises:
        EngineError: this machine or its PyTorch is not what it was compiled for, or it does not say, or it is
            not the file that was written.
    """
    path = artifact / NOTE_NAME
    try:
        here = _made_for(artifact)
        made = msgspec.json.decode(path.read_bytes(), type=_MadeFor)
    except (OSError, msgspec.MsgspecError) as error:
        raise EngineError(f"{path} does not say what the library was compiled for: {error}.") from error
    instead = "Use a recipe that is compiled where it is loaded, such as inductor/fp32."
    if made.arch != here.arch:
        raise EngineError(f"{artifact} was compiled for {made.arch}, and this CPU is {here.arch}. {instead}")
    lacking = ", ".join(sorted(set(made.isa) - set(here.isa)))
    if lacking:
        raise EngineError(
            f"{artifact} was compiled for a CPU with instruction sets that this one lacks: {lacking}. "
            f"{instead}"
        )
    if made.torch != here.torch:
        raise EngineError(
            f"{artifact} was compiled with PyTorch {made.torch}; this is {here.torch}. {instead}"
        )
    if made.sha256 != here.sha256:
        raise EngineError(
            f"{artifact} is not what was compiled: a file in it is damaged. Copy or build it again."
        )
