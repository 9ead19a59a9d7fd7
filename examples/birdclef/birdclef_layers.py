"""What the networks of the four pipelines share: backbones with settled random weights, heads, pooling.

Each network takes a log-mel spectrogram of one channel, float32 of shape (b, 1, f, t), as the TOML files
beside this one describe it. What can be made from that channel (slopes, a ramp, a crop) is made inside the
network, so that networks with one spectrogram share it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

ZOO = Path(__file__).resolve().parents[2] / "benchmarks" / "zoo.py"

SETTLING_BATCHES = 2
SETTLING_BATCH = 4
PATCHES = (1, 8, 64)


def zoo() -> ModuleType:
    """Return the benchmarks' `zoo`, which knows how timm is imported here and how BatchNorm is settled."""
    spec = importlib.util.spec_from_file_location("alula_zoo", ZOO)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def backbone(name: str, *, seed: int = 0, **options: Any) -> nn.Module:
    """Return a network of timm with random weights, the same for the same seed.

    Args:
        name: timm's name of the architecture.
        seed: folds of one architecture differ by it.
        options: timm's own, such as `in_chans`.
    """
    timm = zoo().import_timm()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = timm.create_model(name, pretrained=False, **options)
    return module


def textured_noise(shape: tuple[int, int, int]) -> torch.Tensor:
    """Return a batch of noise (b, c, f, t) of unit variance: points and patches of two sizes, in equal parts.

    Spectrograms are smooth in part, and convolutions answer to that otherwise than to points: on points alone
    the statistics come out so low that a deep network's values grow from layer to layer on real ones.
    """
    noise = torch.zeros(SETTLING_BATCH, *shape)
    for patch in PATCHES:
        coarse = torch.randn(SETTLING_BATCH, shape[0], -(-shape[1] // patch), -(-shape[2] // patch))
        noise += functional.interpolate(coarse, scale_factor=patch)[..., : shape[1], : shape[2]]
    return noise / len(PATCHES) ** 0.5


def settled(
    make: Callable[[], nn.Module],
    shape: tuple[int, int, int],
    *,
    mean: float,
    std: float,
    seed: int = 0,
) -> nn.Module:
    """Return a network in eval mode, its BatchNorm statistics measured on noise of a spectrogram's scale.

    Without that, random weights make activations of odd size, on which INT8 is misleadingly fast or slow.

    Args:
        make: builds the network.
        shape: (c, f, t) of one sample.
        mean: of the noise, as of the pipeline's spectrograms.
        std: likewise.
        seed: of the parts that `make` builds beside its backbone, and of the noise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make()
        batches = [textured_noise(shape).mul_(std).add_(mean) for _ in range(SETTLING_BATCHES)]
        result: nn.Module = zoo().calibrate(module, batches)
    return result


class GeneralizedMean(nn.Module):
    """The mean of powers, and its root, over some axes; the exponent is learned.

    Source: Radenovic et al. 2018 (arXiv:1711.02512).

    Args:
        axes: over which the mean is taken; they go.
        exponent: where learning starts.
    """

    def __init__(self, axes: tuple[int, ...], *, exponent: float = 3.0) -> None:
        super().__init__()
        self.axes = axes
        self.exponent = nn.Parameter(torch.tensor(exponent))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=1e-6).pow(self.exponent).mean(self.axes).pow(1.0 / self.exponent)


class Slopes(nn.Module):
    """A spectrogram (b, 1, f, t) with its slope and the slope of that: (b, 3, f, t).

    The slope of a frame is that of the line through the five frames around it; the outermost frames are
    repeated beyond the ends. This is `torchaudio.functional.compute_deltas` with `win_length=5`.
    """

    def __init__(self) -> None:
        super().__init__()
        line = torch.arange(-2.0, 3.0) / 10.0
        self.register_buffer("line", line.reshape(1, 1, 1, 5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self._slope(x)
        return torch.cat([x, first, self._slope(first)], dim=1)

    def _slope(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(functional.pad(x, (2, 2, 0, 0), mode="replicate"), self.line)


class FrequencyRamp(nn.Module):
    """A spectrogram (b, 1, f, t) twice and a ramp over frequency, 0 at the lowest band to 1: (b, 3, f, t)."""

    def __init__(self, n_mels: int) -> None:
        super().__init__()
        self.register_buffer("ramp", torch.linspace(0.0, 1.0, n_mels).reshape(1, 1, -1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x, self.ramp.expand_as(x)], dim=1)


class Crop(nn.Module):
    """The first frames of a spectrogram (b, c, f, t)."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., : self.frames]
