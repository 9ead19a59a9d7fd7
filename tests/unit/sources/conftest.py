"""A small network, and files made of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

FACTORY = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
"""


def network() -> nn.Sequential:
    """Linear, BatchNorm, dropout: its outputs tell training from evaluation mode."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


@pytest.fixture
def net() -> nn.Sequential:
    """The network with weights and statistics that no initialisation gives by chance, in eval mode."""
    generator = torch.Generator().manual_seed(7)
    module = network()
    state = {
        name: torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in module.state_dict().items()
    }
    module.load_state_dict(state)
    return module.eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand((5, 4), generator=torch.Generator().manual_seed(8))


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    """A file whose `build` makes the network without weights."""
    path = tmp_path / "net.py"
    path.write_text(FACTORY)
    return path


@pytest.fixture
def save_torchscript() -> Callable[[nn.Module, Path], None]:
    def save(module: nn.Module, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.script(module).save(str(path))

    return save


@pytest.fixture
def save_exported() -> Callable[[nn.Module, torch.Tensor, Path], None]:
    def save(module: nn.Module, x: torch.Tensor, path: Path) -> None:
        shapes = ({0: torch.export.Dim("b")},)
        torch.export.save(torch.export.export(module, (x,), dynamic_shapes=shapes), path)

    return save
