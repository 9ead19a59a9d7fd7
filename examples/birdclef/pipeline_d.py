"""Pipeline D: networks of the third place of BirdCLEF 2024 (NVBird), with random weights.

Each takes (b, 1, 224, 224), five seconds as `d_mel.toml` describes them, and gives logits (b, 182). The blend
is in `pipeline_d.toml`, and what they come from in `pipeline_d.md`.
"""

from __future__ import annotations

from birdclef_layers import FrequencyRamp, backbone, settled
from torch import nn

CLASSES = 182
N_MELS = 224


def efficientvit_b0() -> nn.Module:
    """EfficientViT-B0 (linear attention), first fold."""
    return _network("efficientvit_b0", seed=1)


def efficientvit_b0_fold2() -> nn.Module:
    """EfficientViT-B0, second fold."""
    return _network("efficientvit_b0", seed=2)


def mnasnet_100() -> nn.Module:
    """MnasNet-B1, first fold."""
    return _network("mnasnet_100", seed=1)


def _network(name: str, *, seed: int) -> nn.Module:
    def make() -> nn.Module:
        whole = backbone(name, seed=seed, in_chans=3, num_classes=CLASSES)
        return nn.Sequential(FrequencyRamp(N_MELS), whole)

    return settled(make, "d_mel.toml", seed=seed)
