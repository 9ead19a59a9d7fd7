"""Libraries that TorchInductor compiled ahead of time, called so that other Python threads go on meanwhile.

PyTorch's own loader holds Python's global lock while a model computes, so that of several instances in one
process only one would. The libraries have a C interface for programs without Python
(`torch/csrc/inductor/aoti_runtime/interface.h`), and ctypes lets go of the lock.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alula.errors import EngineError

if TYPE_CHECKING:
    import torch

__all__ = ["EXTERN_NAME", "LIBRARY_NAME", "load_library"]

LIBRARY_NAME = "model.so"

EXTERN_NAME = "model.json"
"""What a library must ask PyTorch to compute, beside the library; absent where there is nothing."""

# Python's handles of addresses, which PyTorch takes and gives.
_address_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_handle_of = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


class Library:
    """A compiled model. Thread-safe: as many callers compute at once as it was loaded for, others wait.

    Args:
        path: of the library.
        instances: callers that compute at the same time.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it is no compiled model.
        RuntimeError: it cannot be prepared.
    """

    def __init__(self, path: Path, instances: int) -> None:
        self._library = ctypes.CDLL(str(path))
        self._run = self._library.AOTInductorModelContainerRun
        # Of the OpenMP runtime that the library was linked with, which need not be PyTorch's own.
        self._set_threads = self._library.omp_set_num_threads
        self._model = ctypes.c_void_p()
        create = self._library.AOTInductorModelContainerCreateWithDevice
        self._check(create(ctypes.byref(self._model), ctypes.c_size_t(instances), b"cpu", None))
        count = ctypes.c_size_t()
        self._check(self._library.AOTInductorModelContainerGetNumOutputs(self._model, ctypes.byref(count)))
        self._outputs = count.value

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs of one batch.

        Raises:
            RuntimeError: the model failed.
        """
        import torch
        from torch._C import _aoti

        self._set_threads(torch.get_num_threads())
        # Addresses of new references, which the model takes over; those of the outputs become ours.
        handles = _aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))
        given = (ctypes.c_void_p * len(handles))(*(_address_in(handle, None) for handle in handles))
        made = (ctypes.c_void_p * self._outputs)()
        self._check(
            self._run(
                self._model,
                given,
                ctypes.c_size_t(len(given)),
                made,
                ctypes.c_size_t(len(made)),
                None,
                None,
            )
        )
        return tuple(
            _aoti.alloc_tensors_by_stealing_from_void_ptrs(
                [_handle_of(address, None, None) for address in made]
            )
        )

    def close(self) -> None:
        """Free the model's weights. Calling it twice is allowed."""
        if self._model:
            self._library.AOTInductorModelContainerDelete(self._model)
            self._model = ctypes.c_void_p()

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(self._last_error() or "the compiled model failed")

    def _last_error(self) -> str:
        try:
            tell = self._library.AOTInductorGetLastError
        except AttributeError:  # PyTorch before 2.12 prints it to standard error only
            return ""
        message = ctypes.c_char_p()
        tell(ctypes.byref(message))
        return (message.value or b"").decode(errors="replace")


class SharedLibrary:
    """A compiled model that asks PyTorch for some operators; its callers compute one after the other.

    Args:
        path: of the library.

    Raises:
        RuntimeError: it cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        from torch._C import _aoti

        self._runner: Any = _aoti.AOTIModelContainerRunnerCpu(str(path), 1)

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs of one batch.

        Raises:
            RuntimeError: the model failed.
        """
        return tuple(self._runner.run(list(tensors)))

    def close(self) -> None:
        """Free the model's weights. Calling it twice is allowed."""
        self._runner = None


def load_library(folder: Path, *, instances: int) -> Library | SharedLibrary:
    """Return the compiled model of a folder, ready to be called with tensors.

    Args:
        folder: with a library and, where it needs one, the file of what it asks PyTorch for.
        instances: callers that compute at the same time, where the model allows more than one.

    Raises:
        EngineError: it cannot be loaded.
    """
    path = folder / LIBRARY_NAME
    try:
        if (folder / EXTERN_NAME).exists():
            return SharedLibrary(path)
        return Library(path, instances)
    except (OSError, AttributeError, RuntimeError) as error:
        raise EngineError(
            f"{path} is no library that this PyTorch can load: {str(error).splitlines()[0]}. "
            "Build the artifact again on this machine."
        ) from error
