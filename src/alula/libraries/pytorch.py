"""PyTorch: installed or not, what a module takes and returns, and the kernels of its integer layers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from alula.core import Recipe
from alula.errors import EngineError, EngineUnavailableError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "INSTALL_TORCH",
    "backend_of",
    "copies",
    "import_torch",
    "leaves",
    "require_torch",
    "using_backend",
    "with_flat_outputs",
]

INSTALL_TORCH = "pip install 'alula[torch]'"

_DEFAULT_BACKEND = "x86"
_backend_lock = threading.Lock()


def import_torch() -> Any:
    """Return the module `torch`.

    Raises:
        EngineUnavailableError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise EngineUnavailableError("torch", install=INSTALL_TORCH) from error
    return torch


def require_torch() -> str:
    """Return the installed PyTorch version.

    Raises:
        EngineUnavailableError: PyTorch is not installed.
    """
    return str(import_torch().__version__)


def leaves(outputs: object) -> tuple[torch.Tensor, ...]:
    """Return the tensors of a module's output (tensor, or nested tuple, list or dict), in order."""
    import torch
    from torch.utils import _pytree as pytree

    return tuple(leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor))


def copies(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return copies to call a module with, which may change its inputs in place."""
    return tuple(tensor.clone() for tensor in tensors)


def with_flat_outputs(module: nn.Module) -> nn.Module:
    """Return a module in eval mode that returns the `leaves` of what this one returns.

    The module is its attribute `model`, so paths in graphs made from it begin with that.
    """
    import torch

    class FlatOutputs(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return leaves(self.model(*inputs))

    return FlatOutputs().eval()


def backend_of(recipe: Recipe) -> str:
    """Return the backend whose kernels an INT8 recipe is for: its variant, or `x86` where it has none.

    >>> backend_of(Recipe("torch", "int8", "fx")), backend_of(Recipe("torch", "int8", "fx", "onednn"))
    ('x86', 'onednn')
    """
    return recipe.variant or _DEFAULT_BACKEND


@contextlib.contextmanager
def using_backend(name: str) -> Iterator[None]:
    """Make integer weights be packed for a backend; the process's own choice is put back afterwards.

    Weights are packed for the process's backend when a module is converted, when a file, which holds plain
    ones, is read, and again when a module is frozen, which copies them. Packed ones keep their kernels,
    whatever the backend is when they run. One thread at a time: others wait.

    Raises:
        EngineUnavailableError: PyTorch is not installed.
        EngineError: this PyTorch has no such backend on this CPU.
    """
    quantized = import_torch().backends.quantized
    if name not in quantized.supported_engines:
        there = ", ".join(sorted(set(quantized.supported_engines) - {"none"}))
        raise EngineError(f"This PyTorch has no quantized kernels `{name}` on this CPU; it has {there}.")
    with _backend_lock:
        before = quantized.engine
        quantized.engine = name
        try:
            yield
        finally:
            quantized.engine = before
