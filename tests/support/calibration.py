"""Modules quantized in a test: what a quantizer is given, and sessions on what it makes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from alula.core import Recipe, Settings, Signature, TensorSpec
from alula.engines import Arrays, Session, engine_named
from alula.export import export_module, signature_of_module
from alula.quantization import Material, quantizer_for

ONE_THREAD = Settings(threads=1)


def settled(module: nn.Module, *arrays: np.ndarray) -> nn.Module:
    """Return the module in eval mode, its normalisations' statistics those of the arrays."""
    module.train()
    with torch.no_grad():
        for _ in range(20):
            module(*(torch.from_numpy(array) for array in arrays))
    return module.eval()


def material_of(
    module: nn.Module,
    *arrays: np.ndarray,
    batch_size: int = 8,
    saturating: bool = False,
    fixed: bool = False,
) -> Material:
    """Return what a quantizer is given for a module and calibration samples (n, ...); nothing is exported."""
    signature = signature_of_module(module, [array[:2] for array in arrays])
    if fixed:
        signature = Signature(
            tuple(TensorSpec(s.name, s.dtype, (batch_size, *s.shape[1:])) for s in signature.inputs),
            tuple(TensorSpec(s.name, s.dtype, (batch_size, *s.shape[1:])) for s in signature.outputs),
        )

    def batches() -> Iterator[Arrays]:
        for start in range(0, len(arrays[0]), batch_size):
            yield tuple(array[start : start + batch_size] for array in arrays)

    return Material(
        export=Path("nothing-exported"),
        module=lambda: copy.deepcopy(module),
        batches=batches,
        signature=signature,
        saturating=saturating,
    )


def with_export(material: Material, folder: Path) -> Material:
    """Return the material with the module's exported program in a folder."""
    folder.mkdir()
    export_module(material.module(), next(material.batches()), target="exported", folder=folder)
    return Material(
        export=folder,
        module=material.module,
        batches=material.batches,
        signature=material.signature,
        saturating=material.saturating,
    )


def quantized(name: str, material: Material, folder: Path) -> Path:
    """Return the artifact folder of an INT8 recipe."""
    recipe = Recipe.parse(name)
    folder.mkdir()
    quantizer_for(recipe).quantize(material, folder, recipe=recipe)
    return folder


def loaded(name: str, artifact: Path, material: Material, settings: Settings = ONE_THREAD) -> Session:
    """Return a session on an artifact."""
    recipe = Recipe.parse(name)
    return engine_named(recipe.engine).load(
        artifact, recipe=recipe, signature=material.signature, settings=settings
    )


def outputs_of(module: nn.Module, *arrays: np.ndarray) -> np.ndarray:
    """Return the module's only output."""
    with torch.no_grad():
        return np.asarray(module(*(torch.from_numpy(np.array(array)) for array in arrays)))


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Return the cosine between two arrays as vectors."""
    return float(np.vdot(left, right) / (np.linalg.norm(left) * np.linalg.norm(right)))
