"""The torch classes behind `alula.demo.model`; importing this module imports torch."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["SongNet"]


class _Block(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Two 3x3 convolutions around a shortcut; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels_in == channels
            else nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )
        )
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y)) + self.shortcut(x)
        return self.relu(y)


class SongNet(nn.Module):  # type: ignore[misc]  # as above
    """Log-mel spectrograms (b, 1, n_mels, t) to logits (b, n_classes).

    Args:
        n_mels: mel bands; a multiple of 2 for each stride of 2, the stem's included.
        n_classes: logits.
        stages: (channels, stride, residual blocks) of each stage.
    """

    def __init__(self, *, n_mels: int, n_classes: int, stages: tuple[tuple[int, int, int], ...]) -> None:
        super().__init__()
        channels_in = stages[0][0]
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels_in, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(channels_in),
            nn.ReLU(),
        )
        blocks: list[nn.Module] = []
        bands = n_mels // 2
        for channels, stride, count in stages:
            bands //= stride
            for index in range(count):
                blocks.append(_Block(channels_in, channels, stride=stride if index == 0 else 1))
                channels_in = channels
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(2 * channels_in * bands, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.blocks(self.stem(x))
        y = torch.cat([y.mean(dim=3), y.amax(dim=3)], dim=1)
        return self.classifier(self.dropout(y.flatten(1)))
