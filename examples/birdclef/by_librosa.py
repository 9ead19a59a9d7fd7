"""What librosa makes of a recording by an input description, window by window."""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
from numpy.typing import NDArray
from pipelines import Member

from alula.core import Affine, AudioInput, LogMel, MinMax, ZScore

Waves = NDArray[np.float32]

ROW_S = 5.0


def read_wave(path: Path, rate_hz: int) -> Waves:
    """Return a recording as mono, float32 of shape (t,)."""
    wave, _ = librosa.load(path, sr=rate_hz, mono=True)
    return np.asarray(wave, np.float32)


def windows(wave: Waves, member: Member, lead_s: float) -> NDArray[np.float32]:
    """Return a network's input for each row of five seconds, (rows, 1, f, t).

    Args:
        wave: the recording, with the sample rate of the member's input.
        member: of a pipeline.
        lead_s: how much earlier than its row a window begins; there is silence outside of the recording.
    """
    description = member.description()
    rate_hz = description.sample_rate_hz
    lead, length, hop = round(lead_s * rate_hz), description.window_samples, round(ROW_S * rate_hz)
    rows = -(-len(wave) // hop)
    padded = np.pad(wave, (lead, lead + rows * hop - len(wave)))
    return np.stack([image(padded[k * hop : k * hop + length], description) for k in range(rows)])


def image(window: Waves, description: AudioInput) -> NDArray[np.float32]:
    """Return librosa's spectrogram of one window by a description, float32 of shape (1, f, t)."""
    mel = description.mel
    if mel is None:
        raise ValueError("expected a description with a log-mel spectrogram")
    if description.peak_normalize:
        window = window / (np.abs(window).max() or 1.0)
    if description.std_normalize:
        window = window / (window.std() or 1.0)
    found = decibels(window, mel, description.sample_rate_hz)
    for how in mel.normalize:
        match how:
            case ZScore(eps=eps):
                found = (found - found.mean()) / (found.std() + eps)
            case MinMax(eps=eps):
                found = (found - found.min()) / (found.max() - found.min() + eps)
            case Affine(mean=mean, std=std):
                found = (found - mean) / std
    return found[None].astype(np.float32)


def decibels(window: Waves, mel: LogMel, rate_hz: int) -> NDArray[np.float32]:
    """Return librosa's log-mel spectrogram, (f, t)."""
    power = librosa.feature.melspectrogram(
        y=window,
        sr=rate_hz,
        n_fft=mel.n_fft,
        hop_length=mel.hop,
        win_length=mel.win,
        n_mels=mel.n_mels,
        fmin=mel.f_min_hz,
        fmax=mel.f_max_hz,
        htk=mel.scale == "htk",
        norm=mel.mel_norm,
        power=mel.power,
        center=mel.center,
        pad_mode=mel.pad_mode,
    )
    ref = np.max if mel.ref == "max" else mel.ref
    return np.asarray(librosa.power_to_db(power, ref=ref, amin=mel.amin, top_db=mel.top_db), np.float32)
