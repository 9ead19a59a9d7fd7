"""TorchScript: frozen where it is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from alula.core import Recipe, Settings, Signature
from alula.engines import engine_named
from alula.errors import EngineError
from alula.export import export_module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def signature(folder: Path) -> Signature:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    example = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    return export_module(module, [example], target="torchscript", folder=folder).signature


def test_unknown_knobs(folder: Path, signature: Signature) -> None:
    with pytest.raises(EngineError, match=r"Engine `torchscript` has no knob `turbo`"):
        engine_named("torchscript").load(
            folder,
            recipe=Recipe("torchscript", "fp32"),
            signature=signature,
            settings=Settings(knobs={"turbo": True}),
        )


def test_a_backend_that_is_not_there(folder: Path, signature: Signature) -> None:
    before = torch.backends.quantized.engine
    for engine in ("torch", "torchscript"):
        with pytest.raises(
            EngineError, match=rf"no quantized kernels `abacus` on this CPU for `{engine}/int8-fx-"
        ):
            engine_named(engine).load(
                folder,
                recipe=Recipe(engine, "int8", "fx", "abacus"),
                signature=signature,
                settings=Settings(),
            )
    assert torch.backends.quantized.engine == before
