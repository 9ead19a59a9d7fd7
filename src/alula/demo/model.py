"""The demo's network: a small residual network that names twelve imaginary birds from a log-mel spectrogram.

Dense 3x3 convolutions, BatchNorm and ReLU only (He et al., 2016, "Deep Residual Learning for Image
Recognition"), with channel counts that are multiples of 32: the kind of network that every engine fuses
and that 8-bit arithmetic speeds up most.

torch is imported when a network is built, not when this module is.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from alula.core import AudioInput, LogMel, ZScore
from alula.errors import EngineUnavailableError
from alula.libraries import INSTALL_TORCH, require_torch

if TYPE_CHECKING:
    from torch import nn

__all__ = ["demo_input", "load_songnet", "songnet", "weights_path"]

N_CLASSES = 12
# (channels, stride, residual blocks) of the stages behind the stem.
_STAGES = ((32, 1, 1), (64, 2, 1), (96, 2, 2), (128, 2, 1))
_N_MELS = 128


def demo_input() -> AudioInput:
    """How the network's input is made: windows of 5 s at 32 kHz, 128 HTK mels in dB, z-scored per window.

    >>> demo_input().window_samples // demo_input().mel.hop + 1
    313
    """
    return AudioInput(
        sample_rate_hz=32_000,
        window_s=5.0,
        mel=LogMel(
            n_fft=2048, hop=512, n_mels=_N_MELS, scale="htk", power=2, top_db=80.0, normalize=(ZScore(),)
        ),
    )


def songnet() -> nn.Module:
    """The network with random weights: float32 (b, 1, 128, 313) in, one logit per species (b, 12) out.

    Several species may sing at once, so each logit stands for itself: its sigmoid is the score of that
    species. The mel axis is kept up to the classifier, because a bird is known by its pitch; the time axis
    is reduced by mean and maximum, because a song is short and may be anywhere.

    Raises:
        EngineUnavailableError: torch is not installed.
    """
    require_torch()
    from alula.demo import _songnet

    return _songnet.SongNet(n_mels=_N_MELS, n_classes=N_CLASSES, stages=_STAGES)


def weights_path() -> Path:
    """The trained weights inside the installed package, a `.safetensors` file for `songnet`.

    >>> weights_path().suffix
    '.safetensors'
    """
    return Path(str(resources.files("alula.demo") / "songnet.safetensors"))


def load_songnet() -> nn.Module:
    """The trained network in evaluation mode, on the CPU.

    Raises:
        EngineUnavailableError: torch or safetensors is not installed.
    """
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise EngineUnavailableError("safetensors", install=INSTALL_TORCH) from error
    network = songnet()
    network.load_state_dict(load_file(weights_path()))
    return network.eval()
