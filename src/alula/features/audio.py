"""Windows of audio, as waves or spectrograms, from blocks of any length, rate and number of channels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from alula.core import AudioInput
from alula.errors import DataError, EngineUnavailableError
from alula.features.mel import MelSpectrogram

__all__ = [
    "AudioFeatures",
    "Window",
    "count_windows",
    "cut_stretches",
    "cut_windows",
    "mixed",
    "normalize",
    "resampled",
]

Float32 = npt.NDArray[np.float32]


class Window(NamedTuple):
    """One window of a recording as the model takes it.

    Attributes:
        start_s: where it begins, in seconds from the first sample.
        end_s: `start_s` and the length of a window, also where the recording ends earlier.
        samples: float32, shape (t,) for waves or (c, f, t) for spectrograms.
    """

    start_s: float
    end_s: float
    samples: Float32


def mixed(block: npt.NDArray[Any]) -> Float32:
    """Return the mean over the channels."""
    if block.ndim != 2 or block.shape[1] < 1 or block.dtype.kind != "f":
        raise DataError(
            "audio", f"a block is {block.dtype} of shape {block.shape}; expected float32 of shape (t, c)."
        )
    # One addition per channel: NumPy reduces over a short last axis ten times slower.
    mixed = block[:, 0].astype(np.float32)
    for channel in range(1, block.shape[1]):
        mixed += block[:, channel]
    if block.shape[1] > 1:
        mixed /= np.float32(block.shape[1])
    return mixed


def resampled(waves: Iterable[Float32], from_hz: int, to_hz: int) -> Iterator[Float32]:
    """Yield the waves at another rate; the bits do not depend on how the signal is cut into blocks."""
    try:
        import soxr
    except ImportError as error:
        raise EngineUnavailableError("soxr", install="pip install 'alula[audio]'") from error
    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="HQ")
    for wave in waves:
        yield stream.resample_chunk(wave)
    yield stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


def cut_windows(
    waves: Iterable[Float32], *, length: int, hop: int, lead: int = 0, trail: int = 0
) -> Iterator[Float32]:
    """Yield the windows of a recording, in order, while its waves come in; the last is padded with zeros.

    The last window is the first that reaches the last sample, or the last zero of `trail`. A recording
    without samples has no windows.

    Args:
        waves: consecutive pieces, each of shape (t,), any t.
        length: samples of a window.
        hop: samples between the starts of two windows, at most `length`.
        lead: zeros before the first sample, fewer than `length`.
        trail: zeros behind the last sample.

    Yields:
        Shape (length,); the same array every time, with other content.

    >>> [window.tolist() for window in cut_windows([np.ones(3, np.float32)], length=2, hop=2)]
    [[1.0, 1.0], [1.0, 0.0]]
    """
    for held, _filled in cut_stretches(waves, length=length, hop=hop, lead=lead, trail=trail):
        yield held


def cut_stretches(
    waves: Iterable[Float32], *, length: int, hop: int, lead: int = 0, trail: int = 0
) -> Iterator[tuple[Float32, int]]:
    """Yield the windows of `cut_windows`, each with how many of its samples are the recording's.

    The zeros of `lead` and `trail` count as the recording's.
    """
    held = np.zeros(length, dtype=np.float32)
    filled = lead
    unseen = False
    for wave in waves if not trail else _followed_by_silence(waves, trail):
        taken = 0
        while taken < len(wave):
            piece = wave[taken : taken + length - filled]
            held[filled : filled + len(piece)] = piece
            filled += len(piece)
            taken += len(piece)
            unseen = True
            if filled == length:
                yield held, length
                held[: length - hop] = held[hop:]
                filled = length - hop
                unseen = False
    if unseen:
        held[filled:] = 0.0
        yield held, filled


def count_windows(samples: int, *, length: int, hop: int, lead: int = 0, trail: int = 0) -> int:
    """Return how many windows `cut_windows` gives for so many samples.

    >>> count_windows(3, length=2, hop=2), count_windows(0, length=2, hop=2)
    (2, 0)
    """
    if samples < 1:
        return 0
    return 1 + max(0, math.ceil((lead + samples + trail - length) / hop))


def _followed_by_silence(waves: Iterable[Float32], trail: int) -> Iterator[Float32]:
    heard = False
    for wave in waves:
        heard = heard or len(wave) > 0
        yield wave
    if heard:
        yield np.zeros(trail, dtype=np.float32)


def normalize(waves: Float32, audio: AudioInput) -> None:
    """Scale each window, shape (n, t), in place, as a description asks.

    `peak_normalize` divides it by its largest absolute value, where silence stays 0; `std_normalize` by its
    standard deviation, where a constant window stays as it is.
    """
    if audio.peak_normalize:
        peaks = np.maximum(waves.max(axis=1), -waves.min(axis=1))
        waves /= np.where(peaks > 0, peaks, np.float32(1.0))[:, None]
    if audio.std_normalize:
        for wave in waves:
            # Asked of the values: rounding gives a constant window a tiny deviation that is none.
            if wave.max() > wave.min():
                np.divide(wave, np.float32(wave.std(dtype=np.float64)), out=wave)


class AudioFeatures:
    """Turns recordings into the windows that a model takes.

    Thread-safe: one object may serve any number of threads at once. A window's features do not depend on
    the windows that are computed with it: their bits are the same alone and in a batch.

    Args:
        description: rate, windows and spectrogram.

    Raises:
        UsageError: the windows are too short for the spectrogram.
        EngineUnavailableError: scipy is missing and a spectrogram is asked for.

    >>> features = AudioFeatures(AudioInput(sample_rate_hz=4, window_s=1.0))
    >>> blocks = [np.ones((3, 2), np.float32), np.ones((2, 2), np.float32)]
    >>> [(w.start_s, w.end_s, w.samples.tolist()) for w in features.windows(blocks, 4)]
    [(0.0, 1.0, [1.0, 1.0, 1.0, 1.0]), (1.0, 2.0, [1.0, 0.0, 0.0, 0.0])]
    """

    def __init__(self, description: AudioInput) -> None:
        self._description = description
        self._mel = (
            None
            if description.mel is None
            else MelSpectrogram(
                description.mel, rate_hz=description.sample_rate_hz, samples=description.window_samples
            )
        )

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one window: (c, f, t) with a spectrogram, (t,) without."""
        return (self._description.window_samples,) if self._mel is None else self._mel.shape

    def transform(self, waves: npt.NDArray[Any]) -> Float32:
        """Return the features of windows that are cut already.

        Args:
            waves: mono windows at the description's rate, shape (n, t), float32, finite.

        Returns:
            A new array, float32, of shape (n, c, f, t') or (n, t).

        Raises:
            DataError: the shape or type is another.
        """
        length = self._description.window_samples
        if waves.ndim != 2 or waves.shape[1] != length or waves.dtype.kind != "f":
            raise DataError(
                "audio",
                f"the windows are {waves.dtype} of shape {waves.shape}; expected float32 of shape "
                f"(n, {length}).",
            )
        waves = np.array(waves, dtype=np.float32)
        normalize(waves, self._description)
        if self._mel is None:
            return waves
        features = np.empty((len(waves), *self._mel.shape), dtype=np.float32)
        for wave, out in zip(waves, features, strict=True):
            self._mel.transform_into(wave, out)
        return features

    def waves(self, blocks: Iterable[npt.NDArray[Any]], rate_hz: int) -> Iterable[Float32]:
        """Return a recording as mono waves at the description's rate, piece by piece; see `windows`.

        Raises:
            DataError: a block has another shape or type, or the rate is not positive.
            EngineUnavailableError: soxr is missing and the rate is another.
        """
        if rate_hz < 1:
            raise DataError("audio", f"the sample rate is {rate_hz} Hz; expected a positive number.")
        waves: Iterable[Float32] = map(mixed, blocks)
        target_hz = self._description.sample_rate_hz
        return waves if rate_hz == target_hz else resampled(waves, rate_hz, target_hz)

    def windows(self, blocks: Iterable[npt.NDArray[Any]], rate_hz: int) -> Iterator[Window]:
        """Yield the windows of one recording, in order, while its blocks come in.

        Channels are mixed to their mean and other rates are resampled (soxr, high quality). The last
        window is the first that reaches the last sample; it is padded with zeros. A recording without
        samples has no windows. Beyond one block and one window nothing is held in memory, and the result
        does not depend on where the blocks are cut.

        Args:
            blocks: consecutive pieces of the recording, each float32 of shape (t, c), any t.
            rate_hz: samples per second of the blocks.

        Raises:
            DataError: a block has another shape or type, or the rate is not positive.
            EngineUnavailableError: soxr is missing and the rate is another.
        """
        length, hop = self._description.window_samples, self._description.hop_samples
        for index, wave in enumerate(cut_windows(self.waves(blocks, rate_hz), length=length, hop=hop)):
            yield self._window(wave, index)

    def spans(self, duration_s: float) -> list[tuple[float, float]]:
        """Return where the windows of a recording of this length begin and end, in seconds.

        Of a recording at another rate they may be one more or fewer, by the rounding of its last sample.
        """
        audio = self._description
        samples = round(duration_s * audio.sample_rate_hz)
        count = count_windows(samples, length=audio.window_samples, hop=audio.hop_samples)
        return [self._span(index) for index in range(count)]

    def _span(self, index: int) -> tuple[float, float]:
        start_s = index * self._description.hop_samples / self._description.sample_rate_hz
        return start_s, start_s + self._description.window_s

    def _window(self, wave: Float32, index: int) -> Window:
        return Window(*self._span(index), self.transform(wave[None])[0])
