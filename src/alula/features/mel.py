"""Mel spectrograms on NumPy and `scipy.fft`, without torch.

Written for one core's cache: a window is worked through in chunks of frames that stay in the second
level cache, every step writes into the same few buffers, and the mel product is done band group by band
group, over the FFT bins that the group's triangles cover, since nine tenths of the filter matrix is zero.

The chunks depend on the description alone, so a window's features have the same bits whether it comes
alone or among others, and on whichever thread.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alula.core import Affine, LogMel, MinMax, Normalization, ZScore
from alula.errors import EngineUnavailableError, UsageError

__all__ = ["MelSpectrogram", "MelSpectrograms", "SpectrumKey", "mel_filters", "spectrum_key"]

Float32 = npt.NDArray[np.float32]

# Samples of one chunk of windowed frames: 512 KiB of float32, so that a chunk, its spectrum and its
# power fit in 2 MiB of cache. Measured at 2048/512/128: half as many cost 13 % more, twice as many 4 % less
# where the cache is larger.
_CHUNK_SAMPLES = 1 << 17

# OpenBLAS, which NumPy's wheels carry, computes a product on the calling thread alone while rows x columns
# x depth is at most this. Kept below it, the threads that call us are all the threads there are.
_SINGLE_THREAD_PRODUCT = 1 << 18

# Wider groups multiply more zeros, narrower ones make more calls; 8 to 16 is the flat optimum.
_BANDS_PER_GROUP = 8

# Frames on either side of the slope in `librosa.feature.delta`, whose width is 9.
_DELTA_REACH = 4


class _BandGroup(NamedTuple):
    """Neighbouring mel bands (start to stop) and the FFT bins (low to high) that they cover."""

    start: int
    stop: int
    low: int
    high: int
    weights: Float32  # (stop - start, high - low)


class _Workspace(NamedTuple):
    """The buffers of one transform at work."""

    signal: Float32  # (t + padding,)
    frames: Float32  # (frames, n_fft), a view of `signal`
    windowed: Float32  # (chunk, n_fft)
    squared: Float32  # (chunk, 2 * bins in use): squares of real and imaginary parts by turns
    power: Float32  # (chunk, bins in use)


def _scipy_fft() -> ModuleType:
    try:
        import scipy.fft
    except ImportError as error:
        raise EngineUnavailableError("scipy", install="pip install 'alula[audio]'") from error
    module: ModuleType = scipy.fft
    return module


def _hz_to_mel(hz: float, scale: str) -> float:
    if scale == "htk":
        return 2595.0 * math.log10(1.0 + hz / 700.0)
    if hz < 1000.0:
        return hz * 3.0 / 200.0
    return 15.0 + 27.0 * math.log(hz / 1000.0) / math.log(6.4)


def _mel_to_hz(mel: npt.NDArray[np.float64], scale: str) -> npt.NDArray[np.float64]:
    if scale == "htk":
        hz = 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    else:
        hz = np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp((mel - 15.0) * math.log(6.4) / 27.0))
    return np.asarray(hz, dtype=np.float64)


def mel_filters(mel: LogMel, rate_hz: int) -> Float32:
    """Return the triangular filters that turn FFT bins into mel bands, as `librosa.filters.mel`.

    The Slaney scale is that of the Auditory Toolbox (Slaney 1998), the HTK scale that of the HTK Book
    (Young et al.), both as torchaudio and librosa define them.

    Args:
        mel: the spectrogram; only its mel fields are read.
        rate_hz: samples per second.

    Returns:
        Weights of shape (n_mels, n_fft // 2 + 1), float32, not negative.

    >>> mel_filters(LogMel(n_fft=512, n_mels=20), 16_000).shape
    (20, 257)
    """
    f_max_hz = rate_hz / 2 if mel.f_max_hz is None else mel.f_max_hz
    edges_mel = np.linspace(
        _hz_to_mel(mel.f_min_hz, mel.scale), _hz_to_mel(f_max_hz, mel.scale), mel.n_mels + 2
    )
    edges_hz = _mel_to_hz(edges_mel, mel.scale)
    bins_hz = np.arange(mel.n_fft // 2 + 1) * (rate_hz / mel.n_fft)
    widths_hz = np.diff(edges_hz)
    distances_hz = edges_hz[:, None] - bins_hz
    rising = -distances_hz[:-2] / widths_hz[:-1, None]
    falling = distances_hz[2:] / widths_hz[1:, None]
    weights = np.maximum(0.0, np.minimum(rising, falling))
    if mel.mel_norm == "slaney":
        weights *= (2.0 / (edges_hz[2:] - edges_hz[:-2]))[:, None]
    return weights.astype(np.float32)


def _hann(length: int, n_fft: int) -> Float32:
    """Return the periodic Hann window of `length` samples, centred among `n_fft`."""
    window = np.zeros(n_fft)
    left = (n_fft - length) // 2
    # A window of one sample is 1, not the 0 that the formula gives.
    phase = 2.0 * np.pi * np.arange(length) / length
    window[left : left + length] = 0.5 - 0.5 * np.cos(phase) if length > 1 else 1.0
    return window.astype(np.float32)


def _band_groups(filters: Float32, chunk: int) -> tuple[_BandGroup, ...]:
    """Return all bands in groups, each small enough to be multiplied on one thread."""
    groups: list[_BandGroup] = []
    start = 0
    while start < len(filters):
        stop = start
        low = high = 0
        while stop < len(filters) and stop - start < _BANDS_PER_GROUP:
            covered = np.flatnonzero(filters[start : stop + 1].any(axis=0))
            wider = (int(covered[0]), int(covered[-1]) + 1) if len(covered) else (0, 0)
            product = chunk * (stop + 1 - start) * (wider[1] - wider[0])
            if stop > start and product > _SINGLE_THREAD_PRODUCT:
                break
            low, high = wider
            stop += 1
        groups.append(_BandGroup(start, stop, low, high, np.ascontiguousarray(filters[start:stop, low:high])))
        start = stop
    return tuple(groups)


def _normalize(spectrogram: Float32, how: Normalization) -> None:
    """Normalise one sample in place."""
    match how:
        case Affine(mean=mean, std=std):
            spectrogram -= np.float32(mean)
            spectrogram /= np.float32(std)
        case MinMax(eps=eps):
            low, high = float(spectrogram.min()), float(spectrogram.max())
            spectrogram -= np.float32(low)
            if span := high - low + eps:
                spectrogram /= np.float32(span)
        case ZScore(eps=eps):
            # Summed in float64: the mean of a constant must be that constant to the last bit, or the
            # rounding error of a silent window is blown up by its own tiny standard deviation.
            spectrogram -= np.float32(spectrogram.mean(dtype=np.float64))
            if std := math.sqrt(np.square(spectrogram).mean(dtype=np.float64)) + eps:
                spectrogram /= np.float32(std)


def _slopes(spectrogram: Float32) -> Float32:
    """Return the slope over 9 frames around each frame; the outermost 4 take that of the nearest fit.

    That is a Savitzky-Golay filter of degree 1 with interpolated ends, as `librosa.feature.delta`.
    """
    frames = spectrogram.shape[1]
    inner = frames - 2 * _DELTA_REACH
    slopes = np.empty_like(spectrogram)
    middle = slopes[:, _DELTA_REACH : frames - _DELTA_REACH]
    middle[:] = 0.0
    for reach in range(1, _DELTA_REACH + 1):
        ahead = spectrogram[:, _DELTA_REACH + reach :][:, :inner]
        behind = spectrogram[:, _DELTA_REACH - reach :][:, :inner]
        middle += np.float32(reach) * (ahead - behind)
    middle /= np.float32(2 * sum(k * k for k in range(1, _DELTA_REACH + 1)))
    slopes[:, :_DELTA_REACH] = middle[:, :1]
    slopes[:, frames - _DELTA_REACH :] = middle[:, -1:]
    return slopes


def _take_logarithm(spectrogram: Float32, mel: LogMel) -> None:
    """Take the logarithm of one sample in place."""
    if mel.log is None:
        return
    # A logarithm of zero must not be reached even if `amin` is zero in float32.
    amin = np.float32(max(mel.amin, float(np.finfo(np.float32).tiny)))
    if mel.log == "ln":
        spectrogram += amin
        np.log(spectrogram, out=spectrogram)
        return
    np.maximum(spectrogram, amin, out=spectrogram)
    # The natural logarithm: NumPy has it vectorised on every CPU, log10 only with AVX-512.
    np.log(spectrogram, out=spectrogram)
    decibels_per_neper = (10.0 if mel.power == 2 else 20.0) / math.log(10.0)
    spectrogram *= np.float32(decibels_per_neper)
    if mel.ref == "max":
        spectrogram -= spectrogram.max()
    elif mel.ref != 1.0 or mel.amin > 1.0:
        spectrogram -= np.float32(decibels_per_neper * math.log(max(mel.ref, mel.amin)))
    if mel.top_db is not None:
        np.maximum(spectrogram, spectrogram.max() - np.float32(mel.top_db), out=spectrogram)


class SpectrumKey(NamedTuple):
    """What two descriptions of one rate and one length of windows must have in common to share an FFT."""

    n_fft: int
    hop: int
    win: int
    center: bool
    pad_mode: str


def spectrum_key(mel: LogMel) -> SpectrumKey:
    """Return what the power spectrum of a description depends on, beside the waves.

    >>> spectrum_key(LogMel(n_mels=64, log=None)) == spectrum_key(LogMel(win=2048, f_max_hz=8000.0))
    True
    """
    # Without padding it does not matter by what one would pad.
    pad_mode = mel.pad_mode if mel.center else "constant"
    return SpectrumKey(mel.n_fft, mel.hop, mel.n_fft if mel.win is None else mel.win, mel.center, pad_mode)


class _Bank(NamedTuple):
    """What follows the spectrum for one description."""

    mel: LogMel
    groups: tuple[_BandGroup, ...]

    def multiply(self, power: Float32, spectrogram: Float32) -> None:
        """Write the mel bands of a chunk, shape (bands, frames), of its power, shape (frames, bins)."""
        for group in self.groups:
            np.matmul(
                group.weights, power[:, group.low : group.high].T, out=spectrogram[group.start : group.stop]
            )

    def finish(self, out: Float32) -> None:
        """Take the logarithm, normalise, and fill the other channels; bands are in the first."""
        spectrogram = out[0]
        _take_logarithm(spectrogram, self.mel)
        for normalization in self.mel.normalize:
            _normalize(spectrogram, normalization)
        if self.mel.channels == 3:
            deltas = self.mel.channel_mode == "deltas"
            out[1] = _slopes(spectrogram) if deltas else spectrogram
            out[2] = _slopes(out[1]) if deltas else spectrogram


class MelSpectrograms:
    """Computes several mel spectrograms of windows of one length from one FFT.

    Steps: pad, cut into frames, Hann window, FFT, power; then for each description magnitude or power, mel
    bands, logarithm, the normalisations in their order, and the channels. With `channel_mode="deltas"` the
    slopes are those of the normalised spectrogram, so that all three channels have the scale that the model
    sees. A description's result has the same bits whether others share its FFT or not.

    Thread-safe: any number of threads may call `transform_into` of one object at once. Each uses buffers
    of its own (about 2 MiB and a padded window), which are kept for the next call.

    Args:
        mels: what to compute; all with the same `spectrum_key`.
        rate_hz: samples per second of the windows.
        samples: length of a window.

    Attributes:
        shapes: shape (c, f, t) of one window's result, for each description.

    Raises:
        UsageError: a window of this length has no spectrogram by one of the descriptions, or they have no
            spectrum in common.
        EngineUnavailableError: scipy is missing.
    """

    def __init__(self, mels: Sequence[LogMel], *, rate_hz: int, samples: int) -> None:
        keys = {spectrum_key(mel) for mel in mels}
        if len(keys) != 1:
            raise UsageError(
                f"Spectrograms of {len(keys)} kinds of spectrum cannot share one; expected one kind."
            )
        (self._spectrum,) = keys
        n_fft = self._spectrum.n_fft
        self._samples = samples
        self._pad = n_fft // 2 if self._spectrum.center else 0
        frames = self._frames(samples)
        self._chunk = min(frames, max(1, _CHUNK_SAMPLES // n_fft))
        filters = [_checked_filters(mel, rate_hz, frames) for mel in mels]
        used = np.flatnonzero(np.any([weights.any(axis=0) for weights in filters], axis=0))
        self._low, self._high = int(used[0]), int(used[-1]) + 1
        self._banks = tuple(
            _Bank(mel, _band_groups(weights[:, self._low : self._high], self._chunk))
            for mel, weights in zip(mels, filters, strict=True)
        )
        self._window = _hann(self._spectrum.win, n_fft)
        self._rfft = _scipy_fft().rfft
        self._idle: deque[_Workspace] = deque()
        self.shapes = tuple((mel.channels, mel.n_mels, frames) for mel in mels)

    def _frames(self, samples: int) -> int:
        n_fft = self._spectrum.n_fft
        if self._spectrum.pad_mode == "reflect" and self._pad >= samples:
            raise UsageError(
                f"A window of {samples} samples cannot be padded by reflection for n_fft {n_fft}; "
                f"it must hold more than {self._pad} samples. Use longer windows, a smaller `n_fft` or "
                '`pad_mode = "constant"`.'
            )
        padded = samples + 2 * self._pad
        if padded < n_fft:
            raise UsageError(
                f"A window of {samples} samples holds no frame of n_fft {n_fft}. "
                "Use longer windows, a smaller `n_fft` or `center = true`."
            )
        return 1 + (padded - n_fft) // self._spectrum.hop

    def transform_into(self, wave: Float32, outs: Sequence[Float32]) -> None:
        """Write the features of one window into `outs`.

        Args:
            wave: the window, shape (t,), float32, finite.
            outs: receive the results, shapes (c, f, t') as in `shapes`, float32, contiguous.
        """
        # Taking from and giving back to a deque is atomic, so no two threads hold the same buffers.
        try:
            workspace = self._idle.pop()
        except IndexError:
            workspace = self._new_workspace()
        try:
            self._write_bands(wave, [out[0] for out in outs], workspace)
        finally:
            self._idle.append(workspace)
        for bank, out in zip(self._banks, outs, strict=True):
            bank.finish(out)

    def _new_workspace(self) -> _Workspace:
        n_fft, hop = self._spectrum.n_fft, self._spectrum.hop
        bins = self._high - self._low
        signal = np.zeros(self._samples + 2 * self._pad, dtype=np.float32)
        return _Workspace(
            signal=signal,
            frames=np.lib.stride_tricks.sliding_window_view(signal, n_fft)[::hop],
            windowed=np.empty((self._chunk, n_fft), dtype=np.float32),
            squared=np.empty((self._chunk, 2 * bins), dtype=np.float32),
            power=np.empty((self._chunk, bins), dtype=np.float32),
        )

    def _write_bands(self, wave: Float32, spectrograms: Sequence[Float32], workspace: _Workspace) -> None:
        signal, pad = workspace.signal, self._pad
        signal[pad : pad + self._samples] = wave
        if pad and self._spectrum.pad_mode == "reflect":
            signal[:pad] = wave[pad:0:-1]
            signal[-pad:] = wave[-2 : -pad - 2 : -1]
        banks = list(zip(self._banks, spectrograms, strict=True))
        of_power = [(bank, bands) for bank, bands in banks if bank.mel.power == 2]
        of_magnitude = [(bank, bands) for bank, bands in banks if bank.mel.power == 1]
        frames = spectrograms[0].shape[1]
        for first in range(0, frames, self._chunk):
            last = min(first + self._chunk, frames)
            power = self._power(first, last, workspace)
            for bank, bands in of_power:
                bank.multiply(power, bands[:, first:last])
            if of_magnitude:
                np.sqrt(power, out=power)
            for bank, bands in of_magnitude:
                bank.multiply(power, bands[:, first:last])

    def _power(self, first: int, last: int, workspace: _Workspace) -> Float32:
        """Return the squared magnitudes of some frames, shape (frames, bins in use)."""
        windowed = workspace.windowed[: last - first]
        squared = workspace.squared[: last - first]
        power = workspace.power[: last - first]
        np.multiply(workspace.frames[first:last], self._window, out=windowed)
        spectrum = self._rfft(windowed, axis=1, overwrite_x=True, workers=1)
        parts = spectrum.view(np.float32)[:, 2 * self._low : 2 * self._high]
        np.square(parts, out=squared)
        return np.add(squared[:, ::2], squared[:, 1::2], out=power)


def _checked_filters(mel: LogMel, rate_hz: int, frames: int) -> Float32:
    if mel.channels == 3 and mel.channel_mode == "deltas" and frames <= 2 * _DELTA_REACH:
        raise UsageError(
            f"A spectrogram of {frames} frames has no deltas, which are slopes over "
            f"{2 * _DELTA_REACH + 1} frames. Use longer windows, a shorter `hop` or "
            '`channel_mode = "repeat"`.'
        )
    filters = mel_filters(mel, rate_hz)
    if not filters.any():
        raise UsageError(
            f"No FFT bin lies inside any of the {mel.n_mels} mel bands. "
            "Raise `n_fft`, lower `n_mels` or widen `f_min_hz` to `f_max_hz`."
        )
    return filters


class MelSpectrogram:
    """Computes one mel spectrogram: `MelSpectrograms` of one description, with its steps and its errors.

    Thread-safe, likewise.

    Args:
        mel: what to compute.
        rate_hz: samples per second of the windows.
        samples: length of a window.

    Attributes:
        shape: shape (c, f, t) of one window's result.

    Raises:
        UsageError: a window of this length has no spectrogram by this description.
        EngineUnavailableError: scipy is missing.
    """

    def __init__(self, mel: LogMel, *, rate_hz: int, samples: int) -> None:
        self._all = MelSpectrograms((mel,), rate_hz=rate_hz, samples=samples)
        (self.shape,) = self._all.shapes

    def transform_into(self, wave: Float32, out: Float32) -> None:
        """Write the features of one window into `out`.

        Args:
            wave: the window, shape (t,), float32, finite.
            out: receives the result, shape (c, f, t'), float32, contiguous.
        """
        self._all.transform_into(wave, (out,))
