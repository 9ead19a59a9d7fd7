"""Declarative input descriptions: how a file becomes the array that a model takes.

A description is data. It is written in TOML by a user, stored in the bundle, and carried out by
`alula.features`. Two models whose descriptions are equal can share the computed features.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = [
    "Affine",
    "ArrayInput",
    "AudioInput",
    "ImageInput",
    "InputDescription",
    "LogMel",
    "MinMax",
    "Normalization",
    "ZScore",
]

Positive = Annotated[float, msgspec.Meta(gt=0)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
# Of a window or a step: up to a day, so that it is a number of samples.
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class MinMax(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="minmax"):
    """Per sample: `(x - min) / (max - min + eps)`, so values lie in [0, 1]."""

    eps: NonNegative = 1e-6


class ZScore(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="zscore"):
    """Per sample: `(x - mean) / (std + eps)` with the population standard deviation."""

    eps: NonNegative = 1e-6


class Affine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="affine"):
    """The same for all samples: `(x - mean) / std`."""

    mean: float = 0.0
    std: Positive = 1.0


Normalization = MinMax | ZScore | Affine


class LogMel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A (log-)mel spectrogram, as librosa and torchaudio define it.

    Attributes:
        n_fft: samples per FFT.
        hop: samples between frames.
        win: samples of the Hann window (periodic), centred in `n_fft`; None means `n_fft`.
        n_mels: mel bands.
        f_min_hz: lower edge of the lowest band.
        f_max_hz: upper edge of the highest band; None means half the sample rate.
        scale: mel scale. `htk`: 2595 log10(1 + f/700); `slaney`: linear below 1 kHz, logarithmic above.
        mel_norm: `slaney` divides each band by its width in Hz; None leaves peaks at 1.
        power: exponent of the magnitude: 1 or 2.
        center: pad by `n_fft // 2` on both sides, so that frame k is centred at sample k * hop.
        pad_mode: how `center` pads.
        log: `db` takes 10 log10 (20 log10 for power 1), `ln` takes log(x + amin), None stays linear.
        amin: floor (`db`) or offset (`ln`) before the logarithm.
        ref: `db` only: value of 0 dB; `max` means the largest value of the sample.
        top_db: `db` only: floor at this many dB below the sample's own maximum; None for no floor.
        normalize: applied in order after the logarithm.
        channels: channels of the result. 1, or 3 with `channel_mode`.
        channel_mode: `repeat` copies the one channel; `deltas` gives [x, delta, delta of delta]
            (Savitzky-Golay slope over 9 frames, as `librosa.feature.delta`).
    """

    n_fft: PositiveInt = 2048
    hop: PositiveInt = 512
    win: PositiveInt | None = None
    n_mels: PositiveInt = 128
    f_min_hz: NonNegative = 0.0
    f_max_hz: Positive | None = None
    scale: Literal["htk", "slaney"] = "htk"
    mel_norm: Literal["slaney"] | None = None
    power: Literal[1, 2] = 2
    center: bool = True
    pad_mode: Literal["reflect", "constant"] = "reflect"
    log: Literal["db", "ln"] | None = "db"
    amin: Positive = 1e-10
    ref: Positive | Literal["max"] = 1.0
    top_db: Positive | None = 80.0
    normalize: tuple[Normalization, ...] = ()
    channels: Literal[1, 3] = 1
    channel_mode: Literal["repeat", "deltas"] = "repeat"

    def __post_init__(self) -> None:
        if self.win is not None and self.win > self.n_fft:
            raise ValueError(f"`win` must not exceed `n_fft`; got win={self.win} with n_fft={self.n_fft}")
        if self.f_max_hz is not None and self.f_max_hz <= self.f_min_hz:
            raise ValueError(
                f"`f_max_hz` must exceed `f_min_hz`; got {self.f_max_hz} with f_min_hz={self.f_min_hz}"
            )


class AudioInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="audio"):
    """Audio cut into windows, mixed to mono, optionally as a mel spectrogram.

    Attributes:
        sample_rate_hz: files at other rates are resampled to it (soxr, high quality).
        window_s: length of one window; the last window of a file is padded with zeros.
        hop_s: distance between window starts; None means `window_s` (no overlap).
        peak_normalize: divide each window by its largest absolute value (windows of silence stay 0).
        std_normalize: divide each window by its standard deviation (constant windows stay as they are).
        mel: the spectrogram; None gives the waveform itself, shape (t,).

    Result of one window: float32 of shape (c, f, t) with a spectrogram, (t,) without.
    """

    sample_rate_hz: PositiveInt = 32_000
    window_s: Seconds = 5.0
    hop_s: Seconds | None = None
    peak_normalize: bool = False
    # Not written where it is not asked for, so that bundles of before there was it keep their checksum.
    std_normalize: bool | msgspec.UnsetType = msgspec.UNSET
    mel: LogMel | None = None

    def __post_init__(self) -> None:
        if self.std_normalize is False:
            msgspec.structs.force_setattr(self, "std_normalize", msgspec.UNSET)
        if self.hop_s is not None and self.hop_s > self.window_s:
            raise ValueError(
                f"`hop_s` must not exceed `window_s`, or audio between windows is never looked at; "
                f"got hop_s={self.hop_s} with window_s={self.window_s}"
            )
        if (
            self.mel is not None
            and self.mel.f_max_hz is not None
            and self.mel.f_max_hz > self.sample_rate_hz / 2
        ):
            raise ValueError(
                f"`f_max_hz` must not exceed half the sample rate ({self.sample_rate_hz / 2:g} Hz); "
                f"got {self.mel.f_max_hz:g}"
            )
        if self.peak_normalize and self.std_normalize:
            raise ValueError("`peak_normalize` and `std_normalize` exclude each other; got both")
        if self.window_samples < 1 or self.hop_samples < 1:
            raise ValueError("a window and its hop must hold at least one sample each")

    @property
    def window_samples(self) -> int:
        """Samples in one window at `sample_rate_hz`."""
        return round(self.window_s * self.sample_rate_hz)

    @property
    def hop_samples(self) -> int:
        """Samples between the starts of two windows at `sample_rate_hz`."""
        return round((self.window_s if self.hop_s is None else self.hop_s) * self.sample_rate_hz)


class ImageInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="image"):
    """An image: decoded, resized, centre-cropped, normalised; float32 of shape (c, h, w).

    Attributes:
        height: rows of the result.
        width: columns of the result.
        resize: length of the shorter side before the centre crop; None resizes straight to
            (height, width), or leaves an image of that size untouched.
        interpolation: of the resize.
        channels: 3 for RGB, 1 for grey.
        mean: subtracted per channel, on the scale [0, 1].
        std: divided by per channel, on the scale [0, 1].
    """

    height: PositiveInt = 224
    width: PositiveInt = 224
    resize: PositiveInt | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] = (0.0,)
    std: tuple[Positive, ...] = (1.0,)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise ValueError(f"`{name}` must have 1 or {self.channels} values; got {getattr(self, name)}")
        if self.resize is not None and self.resize < max(self.height, self.width):
            raise ValueError(
                f"`resize` must be at least the crop; got {self.resize} with crop {self.height}x{self.width}"
            )


class ArrayInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="array"):
    """Arrays as they are: `.npy` files, or arrays in memory; one sample without its batch axis.

    Attributes:
        shape: expected shape of one sample; None accepts what comes.
        dtype: NumPy name of the type that the model takes; arrays are cast to it.
    """

    shape: tuple[int, ...] | None = None
    dtype: str = "float32"


InputDescription = AudioInput | ImageInput | ArrayInput
