"""Input descriptions carried out: audio windows and log-mel, images, arrays; no torch.

A sample's features never depend on the other samples that are computed with it.
"""

from typing import assert_never

from alula.core import ArrayInput, AudioInput, ImageInput, InputDescription
from alula.features.array import ArrayFeatures
from alula.features.audio import AudioFeatures, Window
from alula.features.describe import PRESETS, parse_description, read_description, to_toml
from alula.features.image import ImageFeatures
from alula.features.mel import MelSpectrogram, MelSpectrograms, SpectrumKey, mel_filters, spectrum_key
from alula.features.shared import (
    Demand,
    SharedAudioFeatures,
    SharedRow,
    canonical,
    distinct_demands,
    feature_key,
)

__all__ = [
    "PRESETS",
    "ArrayFeatures",
    "AudioFeatures",
    "Demand",
    "ImageFeatures",
    "MelSpectrogram",
    "MelSpectrograms",
    "SharedAudioFeatures",
    "SharedRow",
    "SpectrumKey",
    "Window",
    "canonical",
    "distinct_demands",
    "feature_key",
    "make_features",
    "mel_filters",
    "parse_description",
    "read_description",
    "spectrum_key",
    "to_toml",
]


def make_features(description: InputDescription) -> AudioFeatures | ImageFeatures | ArrayFeatures:
    """Return the object that carries out a description.

    Raises:
        UsageError: the description asks for something impossible.

    >>> make_features(PRESETS["mel-128x313"]).sample_shape
    (1, 128, 313)
    """
    match description:
        case AudioInput():
            return AudioFeatures(description)
        case ImageInput():
            return ImageFeatures(description)
        case ArrayInput():
            return ArrayFeatures(description)
        case _:
            assert_never(description)
