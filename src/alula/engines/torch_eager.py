"""Eager PyTorch: the baseline's engine, and the last resort of a bundle."""

from __future__ import annotations

import logging
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alula.core import ARTIFACT_FILES, ExportFormat, Settings, Signature
from alula.engines.base import Arrays, check_inputs
from alula.errors import EngineError, EngineUnavailableError

if TYPE_CHECKING:
    import torch

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
        self._prepared = threading.local()

    def _prepare_thread(self) -> None:
        # PyTorch keeps one OpenMP team and one flush-to-zero flag per calling thread. Another session may
        # have left its own count in this thread since the last call.
        import torch

        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        if not getattr(self._prepared, "done", False):
            torch.set_flush_denormal(True)
            self._prepared.done = True

    def run(self, inputs: Arrays) -> Arrays:
        """See `alula.engines.base.Session.run`."""
        import torch

        check_inputs(self._name, self._signature.inputs, inputs)
        self._prepare_thread()
        tensors = [_as_tensor(array) for array in inputs]
        try:
            with torch.inference_mode():
                return flat_arrays(self._call(*tensors))
        except (RuntimeError, TypeError, ValueError) as error:
            raise EngineError(f"Engine `{self._name}` failed on a batch: {_first_line(error)}") from error

    def close(self) -> None:
        """See `alula.engines.base.Session.close`."""
        self._call = _closed


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
    export_format: ExportFormat = "exported"
    runs_code = True
    offered = True

    def version(self) -> str:
        """See `Engine.version`."""
        return require_torch()

    def build(self, export: Path, artifact: Path) -> None:
        """See `Engine.build`: the exported program is the artifact."""
        shutil.copy2(export / ARTIFACT_FILES["exported"], artifact)

    def load(self, artifact: Path, *, signature: Signature, settings: Settings) -> TorchSession:
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
