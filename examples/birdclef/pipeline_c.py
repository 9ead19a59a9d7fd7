"""Pipeline C: networks of the first place of BirdCLEF 2024, with random weights.

Each takes (b, 1, 128, 641), ten seconds as `c_mel.toml` describes them, and gives logits (b, 182). The blend
of six is in `pipeline_c.toml`, and what they come from in `pipeline_c.md`.
"""

from __future__ import annotations

from birdclef_layers import Crop, backbone, settled
from torch import nn

CLASSES = 182
FRAMES = 640


def efficientnet_b0() -> nn.Module:
    """EfficientNet-B0, first fold."""
    return _network("efficientnet_b0", seed=1)


def efficientnet_b0_fold2() -> nn.Module:
    """EfficientNet-B0, second fold."""
    return _network("efficientnet_b0", seed=2)


def efficientnet_b0_fold3() -> nn.Module:
    """EfficientNet-B0, third fold."""
    return _network("efficientnet_b0", seed=3)


def regnety_008() -> nn.Module:
    """RegNetY-800MF, first fold."""
    return _network("regnety_008", seed=1, zero_init_last=False)


def regnety_008_fold2() -> nn.Module:
    """RegNetY-800MF, second fold."""
    return _network("regnety_008", seed=2, zero_init_last=False)


def regnety_008_fold3() -> nn.Module:
    """RegNetY-800MF, third fold."""
    return _network("regnety_008", seed=3, zero_init_last=False)


def _network(name: str, *, seed: int, **options: bool) -> nn.Module:
    def make() -> nn.Module:
        whole = backbone(name, seed=seed, in_chans=1, num_classes=CLASSES, **options)
        return nn.Sequential(Crop(FRAMES), whole)

    return settled(make, "c_mel.toml", seed=seed)
