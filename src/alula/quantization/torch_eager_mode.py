"""Eager-mode post-training static quantization, for modules written with `QuantStub` and `DeQuantStub`."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alula.core import ExportFormat, Recipe
from alula.errors import EngineError
from alula.libraries import INSTALL_TORCH, backend_of, copies, leaves, require_torch, using_backend
from alula.quantization.base import Material
from alula.quantization.torch_artifacts import (
    calibrate,
    example_of,
    largest_difference,
    looked_up,
    offered_recipes,
    one_line_failures,
    qconfig_mapping,
    write_torchscript,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["TorchEagerMode", "for_torch", "for_torchscript", "fused", "sequences_called"]

# Folding a normalisation into weights rounds them; a sequence that is no sequence is off by far more.
FUSION_LIMIT = 1e-3


class TorchEagerMode:
    """PyTorch's eager-mode quantization: fuse, `prepare`, calibrate, `convert`, TorchScript.

    The module says with its stubs where integers begin and end, so there is no scope to choose. What can be
    fused is found by watching which modules pass tensors to each other, and kept where the outputs stay the
    same.

    Args:
        engine: that runs the TorchScript file: `torch` as it is, `torchscript` frozen.
    """

    name = "eager"
    install = INSTALL_TORCH

    def __init__(self, engine: str) -> None:
        self.engine = engine

    def version(self) -> str:
        """See `Quantizer.version`."""
        return require_torch()

    def recipes(self, isa: Collection[str]) -> tuple[Recipe, ...]:
        """See `Quantizer.recipes`."""
        return offered_recipes(isa, engine=self.engine, quantizer=self.name)

    def export_format(self, recipe: Recipe) -> ExportFormat:
        """See `Quantizer.export_format`."""
        return "module"

    def quantize(self, material: Material, artifact: Path, *, recipe: Recipe) -> None:
        """See `Quantizer.quantize`."""
        self.version()
        quantization = looked_up(_import_eager_mode, "eager-mode quantization")
        backend = backend_of(recipe)
        module = material.module()
        if not any(isinstance(child, quantization.QuantStub) for child in module.modules()):
            raise EngineError(
                "This model has no QuantStub; recipe `int8-eager` is for modules written for eager-mode "
                "quantization. Put QuantStub and DeQuantStub around what shall be integer, or use `int8-fx`."
            )
        with using_backend(backend):
            with one_line_failures("Eager-mode quantization cannot quantize this model"):
                ready = fused(module, example_of(material))
                if getattr(ready, "qconfig", None) is None:
                    ready.qconfig = qconfig_mapping(backend, saturating=material.saturating).global_qconfig
                quantization.prepare(ready, inplace=True)
                calibrate(ready, material.batches)
                quantization.convert(ready, inplace=True)
            write_torchscript(ready, material, artifact)


def for_torch() -> TorchEagerMode:
    """Return the quantizer whose files eager PyTorch runs as they are."""
    return TorchEagerMode("torch")


def for_torchscript() -> TorchEagerMode:
    """Return the quantizer whose files are frozen before they run."""
    return TorchEagerMode("torchscript")


def _import_eager_mode() -> Any:
    from torch.ao import quantization

    for part in ("QuantStub", "prepare", "convert", "fuse_modules", "get_default_qconfig_mapping"):
        getattr(quantization, part)
    return quantization


def fused(module: nn.Module, example: Sequence[torch.Tensor]) -> nn.Module:
    """Return a copy of a module, convolutions, normalisations and ReLUs fused where outputs stay the same.

    All sequences are fused at once; if that changes the outputs, one after the other, without those that do.

    Args:
        module: in eval mode; not changed.
        example: a batch.
    """
    import torch

    sequences = sequences_called(module, example)
    with torch.no_grad():
        expected = leaves(module(*copies(example)))
        together = _fused_if_same(module, sequences, example, expected)
        if together is not None:
            return together
        result = copy.deepcopy(module)
        for sequence in sequences:
            result = _fused_if_same(result, [sequence], example, expected) or result
    return result


def _fused_if_same(
    module: nn.Module,
    sequences: Sequence[Sequence[str]],
    example: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
) -> nn.Module | None:
    from torch.ao.quantization import fuse_modules

    candidate = copy.deepcopy(module)
    if sequences:
        candidate = fuse_modules(candidate, [list(sequence) for sequence in sequences], inplace=True)
    difference = largest_difference(expected, leaves(candidate(*copies(example))))
    return candidate if difference <= FUSION_LIMIT else None


def sequences_called(module: nn.Module, example: Sequence[torch.Tensor]) -> list[tuple[str, ...]]:
    """Return paths of modules that PyTorch can fuse, as they are called one after the other.

    Two modules follow each other when the second takes the very tensor that the first gave, and each is
    called once. What else reads that tensor cannot be seen from here.

    Args:
        module: in eval mode.
        example: a batch.
    """
    from torch import nn

    pairs = (
        (nn.Conv1d, nn.BatchNorm1d),
        (nn.Conv2d, nn.BatchNorm2d),
        (nn.Conv3d, nn.BatchNorm3d),
    )
    patterns = {
        *((convolution, normalisation, nn.ReLU) for convolution, normalisation in pairs),
        *pairs,
        *((convolution, nn.ReLU) for convolution, _ in pairs),
        (nn.Linear, nn.ReLU),
    }
    calls = _calls(module, example)
    counts = Counter(call.path for call in calls)
    found = []
    start = 0
    while start < len(calls):
        length = 1
        for longer in (3, 2):
            chain = calls[start : start + longer]
            joined = all(after.received is before.given for before, after in pairwise(chain))
            once = all(counts[call.path] == 1 for call in chain)
            if joined and once and tuple(call.kind for call in chain) in patterns:
                found.append(tuple(call.path for call in chain))
                length = longer
                break
        start += length
    return found


@dataclass(frozen=True)
class _Call:
    """One call of a module without children: what it took first and what it gave."""

    path: str
    kind: type[nn.Module]
    received: object
    given: object


def _calls(module: nn.Module, example: Sequence[torch.Tensor]) -> list[_Call]:
    import torch

    calls: list[_Call] = []

    def recording(path: str) -> Any:
        def hook(child: nn.Module, args: tuple[Any, ...], output: object) -> None:
            calls.append(_Call(path, type(child), args[0] if args else None, output))

        return hook

    handles = [
        child.register_forward_hook(recording(path))
        for path, child in module.named_modules()
        if path and not any(child.children())
    ]
    try:
        with torch.no_grad():
            module(*copies(example))
    finally:
        for handle in handles:
            handle.remove()
    return calls
