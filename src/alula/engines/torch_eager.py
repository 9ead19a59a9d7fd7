"""Eager PyTorch: the baseline's engine, and the last resort of a bundle."""

from __future__ import annotations

import contextlib
import logging
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Settings, Signature
from alula.engines.base import Arrays, Knobs, check_inputs
from alula.errors import EngineError, EngineUnavailableError

if TYPE_CHECKING:
    import torch

_SMALLEST = np.float64(5e-324)  # the smallest denormal of float64

__all__ = ["INSTALL", "TorchEngine", "TorchSession", "flat_arrays", "require_torch"]

INSTALL = "pip install 'alula[torch]'"


def require_torch() -> str:
    """Return the installed PyTorch version.

    Raises:
        EngineUnavailableError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise EngineUnavailableError("torch", install=INSTALL) from error
    return str(torch.__version__)


def flat_arrays(outputs: object) -> Arrays:
    """Return copies of the tensors of a module's output (tensor, or nested tuple, list or dict), in order.

    An output may be an input, a weight, or a view of one; the caller's arrays are none of these.
    """
    import torch
    from torch.utils import _pytree as pytree

    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    return tuple(np.array(leaf.detach().numpy(), order="C") for leaf in leaves)


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

    def run(self, inputs: Arrays) -> Arrays:
        """See `alula.engines.base.Session.run`."""
        import torch

        check_inputs(self._name, self._signature.inputs, inputs)
        tensors = [_as_tensor(array) for array in inputs]
        try:
            with _thread_settings(self._threads), torch.inference_mode():
                return flat_arrays(self._call(*tensors))
        except (RuntimeError, TypeError, ValueError) as error:
            raise EngineError(f"Engine `{self._name}` failed on a batch: {_first_line(error)}") from error

    def close(self) -> None:
        """See `alula.engines.base.Session.close`."""
        self._call = _closed


@contextlib.contextmanager
def _thread_settings(threads: int) -> Iterator[None]:
    """Set the calling thread's number of OpenMP threads and flush denormals; put both back afterwards."""
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


def _as_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    import torch

    # from_numpy shares memory, warns on read-only arrays, which memory-mapped inputs are, and refuses
    # negative strides.
    plain = array.flags.writeable and array.flags.c_contiguous
    return torch.from_numpy(array if plain else array.copy(order="C"))


def _closed(*_: object) -> object:
    raise RuntimeError("the session is closed")


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


class TorchEngine:
    """Eager PyTorch on an exported program (`.pt2`)."""

    name = "torch"
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
        return "exported"

    def knobs(self, recipe: Recipe, settings: Settings) -> tuple[Knobs, ...]:
        """See `Engine.knobs`."""
        return ()

    def build(self, export: Path, artifact: Path, *, recipe: Recipe) -> None:
        """See `Engine.build`: the exported program is the artifact."""
        shutil.copy2(export / ARTIFACT_FILES["exported"], artifact)

    def load(
        self, artifact: Path, *, recipe: Recipe, signature: Signature, settings: Settings
    ) -> TorchSession:
        """See `Engine.load`."""
        module = load_exported(artifact / ARTIFACT_FILES["exported"])
        return TorchSession(self.name, module, signature=signature, settings=settings)


def load_exported(path: Path) -> torch.nn.Module:
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
        raise EngineError(f"{path} is no readable exported program: {_first_line(error)}") from error
    finally:
        logger.setLevel(level)
