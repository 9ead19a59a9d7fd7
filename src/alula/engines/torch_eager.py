"""Eager PyTorch: the baseline's engine, and the last resort of a bundle."""

from __future__ import annotations

import contextlib
import logging
import shutil
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alula.core import ARTIFACT_FILES, ExportFormat, Precision, Recipe, Settings, Signature
from alula.engines.base import Arrays, Knobs, check_inputs, check_knobs
from alula.engines.torch_graphs import CHANNELS_LAST, bf16, channels_last
from alula.errors import EngineError
from alula.hardware import bf16_is_native
from alula.libraries import INSTALL_TORCH as INSTALL
from alula.libraries import backend_of, leaves, require_torch, using_backend

if TYPE_CHECKING:
    import torch
    from torch import fx

__all__ = [
    "INSTALL",
    "TorchEngine",
    "TorchSession",
    "first_line",
    "flat_arrays",
    "load_exported",
    "load_torchscript",
    "packing_for",
    "require_torch",
    "thread_settings",
]

_SMALLEST = np.float64(5e-324)  # the smallest denormal of float64


def flat_arrays(outputs: object) -> Arrays:
    """Return copies of the tensors of a module's output (tensor, or nested tuple, list or dict), in order.

    An output may be an input, a weight, or a view of one; the caller's arrays are none of these.
    """
    return tuple(np.array(leaf.detach().numpy(), order="C") for leaf in leaves(outputs))


class TorchSession:
    """Runs a callable on tensors. Thread-safe: thread counts are set in each calling thread.

    Args:
        name: engine name for messages.
        call: takes tensors, returns a tensor or a nest of tensors.
        signature: inputs and outputs.
        settings: `threads` is applied in every thread that calls `run`.
    """

    def __init__(
        self, name: str, call: Callable[..., object], *, signature: Signature, settings: Settings
    ) -> None:
        self._name = name
        self._call = call
        self._signature = signature
        self._threads = settings.threads
        self._changes_inputs: bool | None = None  # not known before the first call

    def run(self, inputs: Arrays) -> Arrays:
        """See `alula.engines.base.Session.run`."""
        import torch

        check_inputs(self._name, self._signature.inputs, inputs)
        tensors = [_as_tensor(array, copied=self._changes_inputs is not False) for array in inputs]
        try:
            with thread_settings(self._threads), torch.inference_mode():
                outputs = flat_arrays(self._call(*tensors))
        except (RuntimeError, TypeError, ValueError, LookupError, AssertionError) as error:
            raise EngineError(f"Engine `{self._name}` failed on a batch: {first_line(error)}") from error
        if self._changes_inputs is None:
            # A module may work in place; the caller's arrays stay what they were.
            pairs = ((mine.numpy(), given) for mine, given in zip(tensors, inputs, strict=True))
            self._changes_inputs = not all(np.array_equal(*pair, equal_nan=True) for pair in pairs)
        return outputs

    def forget_example(self) -> None:
        """Look again at the next batch whether it is changed in place: one of zeros may not show it."""
        self._changes_inputs = None

    def close(self) -> None:
        """See `alula.engines.base.Session.close`."""
        self._call = _closed


@contextlib.contextmanager
def thread_settings(threads: int) -> Iterator[None]:
    """Set the calling thread's number of OpenMP threads and flush denormals; put both back afterwards.

    Loading needs it too: it packs weights, folds constants and tries kernels, and OpenMP's threads, which
    stay, flush denormals if the thread did that started them.
    """
    import torch

    threads_before, flushes_before = torch.get_num_threads(), _flushes_denormals()
    if threads_before != threads:
        torch.set_num_threads(threads)
    if not flushes_before:
        torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if not flushes_before:
            torch.set_flush_denormal(False)
        if threads_before != threads:
            torch.set_num_threads(threads_before)


def _flushes_denormals() -> bool:
    # PyTorch sets the flag but does not tell it.
    return bool(_SMALLEST * np.float64(1.0) == 0.0)


def _as_tensor(array: np.ndarray[Any, Any], *, copied: bool) -> torch.Tensor:
    import torch

    # from_numpy shares memory, warns on read-only arrays, which memory-mapped inputs are, and refuses
    # negative strides.
    plain = not copied and array.flags.writeable and array.flags.c_contiguous
    return torch.from_numpy(array if plain else array.copy(order="C"))


def _closed(*_: object) -> object:
    raise RuntimeError("the session is closed")


def first_line(error: BaseException) -> str:
    """Return the type and the first line of what an exception says, or the one that tells the cause."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    # TorchScript's interpreter tells where it was first, and what happened, with its type, last.
    if len(lines) > 1 and lines[0].startswith("The following operation failed"):
        return lines[-1].strip()
    return f"{type(error).__name__}: {lines[0]}"


class TorchEngine:
    """Eager PyTorch on an exported program (`.pt2`), or on the TorchScript file of a quantizer, as it is.

    `channels-last` keeps images and weights of 2-D convolutions with the channels innermost. `bf16` computes
    convolutions and matrix products in bfloat16, and what needs the range or the digits in float32
    (autocast); their weights are converted once, when loaded. Outputs are as the signature says.
    """

    name = "torch"
    install = INSTALL
    runs_code = True
    offered = True

    def version(self) -> str:
        """See `Engine.version`."""
        return require_torch()

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Engine.recipes`."""
        precisions: tuple[Precision, ...] = ("fp32", "bf16") if bf16_is_native(isa) else ("fp32",)
        return tuple(
            Recipe(self.name, precision, None, variant)
            for precision in precisions
            for variant in (None, CHANNELS_LAST)
        )

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Engine.export_format`."""
        return "exported"

    def knobs(self, recipe: Recipe, settings: Settings) -> tuple[Knobs, ...]:
        """See `Engine.knobs`."""
        return ()

    def build(self, export: Path, artifact: Path, *, recipe: Recipe) -> None:
        """See `Engine.build`: the exported program is the artifact; layout and precision are for `load`."""
        shutil.copy2(export / ARTIFACT_FILES["exported"], artifact)

    def load(
        self, artifact: Path, *, recipe: Recipe, signature: Signature, settings: Settings
    ) -> TorchSession:
        """See `Engine.load`."""
        check_knobs(self.name, settings, ())
        require_torch()
        call: Callable[..., object]
        with thread_settings(settings.threads):
            if recipe.precision == "int8":
                with packing_for(recipe):
                    call = _unoptimized(load_torchscript(artifact / ARTIFACT_FILES["torchscript"]))
            else:
                call = module = load_exported(artifact / ARTIFACT_FILES["exported"])
                if recipe.variant == CHANNELS_LAST:
                    call = channels_last(module)
                if recipe.precision == "bf16":
                    call = bf16(module, call)
        return TorchSession(self.name, call, signature=signature, settings=settings)


def load_exported(path: Path) -> fx.GraphModule:
    """Return the module of a `.pt2` file.

    Raises:
        EngineError: the file cannot be read as an exported program.
    """
    require_torch()
    import torch

    # Before it fails, torch logs a traceback of its first attempt; the error says the same in one line.
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return torch.export.load(path).module()
    except (RuntimeError, ValueError, OSError, KeyError, AssertionError, zipfile.BadZipFile) as error:
        raise EngineError(f"{path} is no readable exported program: {first_line(error)}") from error
    finally:
        logger.setLevel(level)


def load_torchscript(path: Path) -> torch.jit.ScriptModule:
    """Return the module of a TorchScript file in eval mode.

    Raises:
        EngineError: the file cannot be read.
    """
    require_torch()
    import torch

    try:
        with warnings.catch_warnings():
            # TorchScript is deprecated as a whole; the user chose neither it nor its replacement.
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise EngineError(f"{path} is no readable TorchScript module: {first_line(error)}") from error


def packing_for(recipe: Recipe) -> contextlib.AbstractContextManager[None]:
    """Return what makes a recipe's integer weights be packed for its backend, see `using_backend`."""
    return using_backend(backend_of(recipe)) if recipe.precision == "int8" else contextlib.nullcontext()


def _unoptimized(module: torch.jit.ScriptModule) -> Callable[..., object]:
    """Return a module that is run operator by operator, without the passes of TorchScript's executor."""
    import torch

    def call(*tensors: torch.Tensor) -> object:
        with torch.jit.optimized_execution(False):
            return module(*tensors)

    return call
