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

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from alula.core import AudioInput
from alula.features import AudioFeatures, read_description

HERE = Path(__file__).resolve().parent
ZOO = HERE.parents[1] / "benchmarks" / "zoo.py"

SETTLING_BATCHES = 2
SETTLING_BATCH = 6


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


def soundscape_windows(description: AudioInput, count: int, *, seed: int) -> torch.Tensor:
    """Return windows of synthetic soundscapes as a description makes them, (n, c, f, t).

    Each is noise that falls with the frequency, and calls over it, from faint to loud: chirps with overtones.
    """
    chance = np.random.default_rng(seed)
    samples, rate_hz = description.window_samples, description.sample_rate_hz
    time_s = np.arange(samples) / rate_hz
    shape = 1.0 / np.maximum(np.fft.rfftfreq(samples, 1.0 / rate_hz), 200.0)
    waves = np.empty((count, samples), np.float32)
    for wave in waves:
        noise = np.fft.irfft(np.fft.rfft(chance.standard_normal(samples)) * shape, samples)
        wave[:] = 10.0 ** chance.uniform(-3.0, -1.5) * noise / noise.std()
        for _ in range(chance.integers(1, 8)):
            centre_s, length_s = chance.uniform(0.0, time_s[-1]), chance.uniform(0.05, 1.0)
            low_hz, slope_hz = chance.uniform(800.0, 6_000.0), chance.uniform(-2_000.0, 2_000.0)
            phase = 2.0 * np.pi * (low_hz + slope_hz * (time_s - centre_s)) * (time_s - centre_s)
            call = sum(np.sin(k * phase) / k for k in (1, 2, 3))
            envelope = np.exp(-np.square((time_s - centre_s) / length_s))
            wave[:] += 10.0 ** chance.uniform(-2.5, -0.3) * envelope * call
    return torch.from_numpy(AudioFeatures(description).transform(waves))


def settled(make: Callable[[], nn.Module], toml: str, *, seed: int = 0) -> nn.Module:
    """Return a network in eval mode, its BatchNorm statistics measured on synthetic soundscapes.

    Without that, random weights make activations of odd size, on which INT8 is misleadingly fast or slow, and
    with statistics of plain noise the values of deep networks grow from layer to layer on spectrograms.

    Args:
        make: builds the network.
        toml: description of its input, beside this file.
        seed: of the parts that `make` builds beside its backbone, and of the soundscapes.
    """
    description = read_description(HERE / toml)
    assert isinstance(description, AudioInput)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make()
        windows = soundscape_windows(description, SETTLING_BATCHES * SETTLING_BATCH, seed=seed)
        result: nn.Module = zoo().calibrate(module, windows.split(SETTLING_BATCH))
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
