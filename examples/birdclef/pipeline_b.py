"""Pipeline B: the seven networks of the second place of BirdCLEF 2023, with random weights.

Three detect events: they take ten seconds (b, 1, 128, t) and give logits (b, 264) of the five seconds in the
middle. Four classify five seconds (b, 1, f, t). The TOML file that belongs to each is named in
`pipeline_b.toml`, with the blend; `pipeline_b.md` tells what they come from.
"""

from __future__ import annotations

import torch
from birdclef_layers import Crop, GeneralizedMean, Slopes, backbone, settled
from torch import nn
from torch.nn import functional

CLASSES = 264

# Probabilities are kept this far from 0 and 1, so that their logits are finite: +-9.2. Closer to 0 they are
# noise: engines compute a sigmoid to some 1e-8, whatever its size.
EDGE = 1e-4


class EventDetector(nn.Module):
    """A detector of sound events: BatchNorm over mel bands, a backbone, and a score for each of its frames.

    The result are logits of the middle half of the window: the largest score of a frame there, mixed with the
    largest of the same stretch moved by `shift` frames either way, half and quarter and quarter. The
    attention of the original serves its training alone and is left out.

    Source of the head: Kong et al. 2020 (arXiv:1912.10211).

    Args:
        maps: the backbone, gives (b, c, f, t).
        channels: of its maps.
        n_mels: mel bands of the spectrogram.
        in_channels: 3 to add slopes, 1 for the spectrogram alone.
        shift: frames of the backbone's output.
        classes: n.
    """

    def __init__(
        self, maps: nn.Module, *, channels: int, n_mels: int, in_channels: int, shift: int, classes: int
    ) -> None:
        super().__init__()
        self.prepare = Slopes() if in_channels == 3 else nn.Identity()
        self.bands = nn.BatchNorm2d(n_mels)
        self.maps = maps
        self.smooth = nn.AvgPool1d(3, stride=1, padding=1)
        self.peak = nn.MaxPool1d(3, stride=1, padding=1)
        self.hidden = nn.Linear(channels, channels)
        self.classes = nn.Conv1d(channels, classes, 1)
        self.shift = shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.classes(self._frames(x))
        here, before, after = (self._middle(logits, shift) for shift in (0, -self.shift, self.shift))

        def mixed(sign: float) -> torch.Tensor:
            sides = torch.sigmoid(sign * before) + torch.sigmoid(sign * after)
            return (0.5 * torch.sigmoid(sign * here) + 0.25 * sides).clamp(min=EDGE)

        # The complement by itself: 1 minus a probability near 1 has no digits left.
        return torch.log(mixed(1.0)) - torch.log(mixed(-1.0))

    def _frames(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bands(self.prepare(x).transpose(1, 2)).transpose(1, 2)
        columns = self.maps(x).mean(dim=2)
        columns = self.peak(columns) + self.smooth(columns)
        return functional.relu(self.hidden(columns.transpose(1, 2))).transpose(1, 2)

    @staticmethod
    def _middle(scores: torch.Tensor, shift: int) -> torch.Tensor:
        quarter = scores.shape[-1] // 4
        return scores[..., quarter + shift : scores.shape[-1] - quarter + shift].amax(dim=-1)


class PooledClassifier(nn.Module):
    """A backbone over (time, frequency), a generalised mean over both, and one linear layer of logits.

    Args:
        maps: the backbone, gives (b, c, t, f).
        channels: of its maps.
        in_channels: 3 to add slopes, 1 for the spectrogram alone.
        frames: how many frames are used.
        classes: n.
    """

    def __init__(
        self, maps: nn.Module, *, channels: int, in_channels: int, frames: int, classes: int
    ) -> None:
        super().__init__()
        self.prepare = nn.Sequential(Crop(frames), Slopes() if in_channels == 3 else nn.Identity())
        self.maps = maps
        self.pool = GeneralizedMean((2, 3))
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.pool(self.maps(self.prepare(x).transpose(2, 3))))


def sed_v2s() -> nn.Module:
    """EfficientNetV2-S on (b, 1, 128, 768)."""
    return _detector("tf_efficientnetv2_s", "b_sed_v2s.toml", in_channels=3, shift=3)


def sed_b3() -> nn.Module:
    """EfficientNet-B3 on (b, 1, 128, 599)."""
    return _detector("tf_efficientnet_b3", "b_sed_b3.toml", in_channels=3, shift=3)


def sed_seresnext26t() -> nn.Module:
    """SE-ResNeXt-26-T 32x4d on (b, 1, 128, 511)."""
    return _detector("seresnext26t_32x4d", "b_sed_seresnext26t.toml", in_channels=1, shift=2)


def cnn_v2s() -> nn.Module:
    """EfficientNetV2-S on (b, 1, 64, 501), of which 500 frames are used."""
    return _classifier("tf_efficientnetv2_s", "b_cnn_v2s.toml", in_channels=3, frames=500)


def cnn_resnet34d() -> nn.Module:
    """ResNet-34-D on (b, 1, 128, 256)."""
    return _classifier("resnet34d", "b_cnn_128x256.toml", in_channels=3, frames=256)


def cnn_b3() -> nn.Module:
    """EfficientNet-B3 on (b, 1, 128, 300)."""
    return _classifier("tf_efficientnet_b3", "b_cnn_b3.toml", in_channels=3, frames=300)


def cnn_b0() -> nn.Module:
    """EfficientNet-B0 on (b, 1, 128, 256)."""
    return _classifier("tf_efficientnet_b0", "b_cnn_128x256.toml", in_channels=1, frames=256)


def _maps(name: str, in_channels: int) -> tuple[nn.Module, int]:
    """Return a backbone without its pooling, and its channels."""
    # By default the last BatchNorm of a residual block starts at zero, which makes blocks of nothing.
    options = {"zero_init_last": False} if "res" in name else {}
    maps = backbone(name, in_chans=in_channels, num_classes=0, global_pool="", **options)
    return maps, maps.num_features


def _detector(name: str, toml: str, *, in_channels: int, shift: int) -> nn.Module:
    def make() -> nn.Module:
        maps, channels = _maps(name, in_channels)
        return EventDetector(
            maps, channels=channels, n_mels=128, in_channels=in_channels, shift=shift, classes=CLASSES
        )

    return settled(make, toml)


def _classifier(name: str, toml: str, *, in_channels: int, frames: int) -> nn.Module:
    def make() -> nn.Module:
        maps, channels = _maps(name, in_channels)
        return PooledClassifier(
            maps, channels=channels, in_channels=in_channels, frames=frames, classes=CLASSES
        )

    return settled(make, toml)
