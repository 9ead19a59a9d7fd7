"""Pipeline A: the three networks of the first place of BirdCLEF 2023, with random weights.

Each takes (b, 1, 128, 313), five seconds as `a_mel.toml` describes them, and gives probabilities (b, 264).
Their blend is in `pipeline_a.toml`, and what they come from in `pipeline_a.md`.
"""

from __future__ import annotations

import torch
from birdclef_layers import GeneralizedMean, backbone, settled
from torch import nn

CLASSES = 264
HIDDEN = 512
CLIP_SHARE = 0.75


class AttentionClassifier(nn.Module):
    """A backbone, generalised mean over frequency, and attention over time.

    The score of a class is three quarters of its attention-weighted mean over time and a quarter of its
    maximum.

    Args:
        stages: gives feature maps (b, c, f, t), the last one counts.
        channels: of that one.
        classes: n.
    """

    def __init__(self, stages: nn.Module, *, channels: int, classes: int) -> None:
        super().__init__()
        self.stages = stages
        self.over_frequency = GeneralizedMean((2,))
        self.hidden = nn.Sequential(nn.Dropout(0.25), nn.Linear(channels, HIDDEN), nn.ReLU(), nn.Dropout(0.5))
        self.attention = nn.Conv1d(HIDDEN, classes, 1)
        self.classes = nn.Conv1d(HIDDEN, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = self.over_frequency(self.stages(x)[-1])
        hidden = self.hidden(columns.transpose(1, 2)).transpose(1, 2)
        weights = torch.softmax(torch.tanh(self.attention(hidden)), dim=-1)
        scores = torch.sigmoid(self.classes(hidden))
        clip = (weights * scores).sum(dim=-1)
        return CLIP_SHARE * clip + (1.0 - CLIP_SHARE) * scores.amax(dim=-1)


def eca_nfnet_l0() -> nn.Module:
    """NFNet-L0 with efficient channel attention."""
    return _network("eca_nfnet_l0", seed=1)


def convnext_small() -> nn.Module:
    """ConvNeXt-S. Its residual branches are scaled by 0.1, as far as training brings them, not by 1e-6."""
    return _network("convnext_small", seed=2, ls_init_value=0.1)


def convnextv2_tiny() -> nn.Module:
    """ConvNeXt V2-T."""
    return _network("convnextv2_tiny", seed=3)


def _network(name: str, *, seed: int, **options: float) -> nn.Module:
    def make() -> nn.Module:
        stages = backbone(name, seed=seed, in_chans=1, features_only=True, **options)
        return AttentionClassifier(stages, channels=stages.feature_info.channels()[-1], classes=CLASSES)

    return settled(make, "a_mel.toml", seed=seed)
