"""One spectrogram of a whole recording, frame after frame, for networks that run over it once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from alula.core import Affine, AudioInput
from alula.errors import UsageError
from alula.features.audio import AudioFeatures
from alula.features.mel import MelSpectrogram

__all__ = ["LongSpectrogram"]

Float32 = npt.NDArray[np.float32]


class LongSpectrogram:
    """Computes the spectrogram of a recording of any length in bounded memory.

    It is not exactly that of the windows, laid side by side: windows begin at frames, so that one whose
    start lies between two frames is moved by half a frame at most; where windows overlap or touch, frames
    see the sound on both sides instead of padding; the recording's own ends are padded with zeros; and the
    floor of `top_db` is that of the loudest frame within half a window, before or after.

    Thread-safe: one object may serve any number of recordings at once.

    Args:
        description: of the windows.

    Attributes:
        window_frames: frames of one window.

    Raises:
        UsageError: the spectrogram depends on its window by more than that: a normalisation by the window's
            own values, the slopes of its frames, or no spectrogram at all.
        EngineUnavailableError: scipy is missing.
    """

    def __init__(self, description: AudioInput) -> None:
        mel = description.mel
        if mel is None or (reason := _bound_to_window(description)) is not None:
            reason = "there is no spectrogram" if mel is None else reason
            raise UsageError(
                f"The input cannot be computed once for a whole recording: {reason}. Run it window by window."
            )
        self._description = description
        self._mel = mel
        self._pad = mel.n_fft // 2 if mel.center else 0
        self.window_frames = self._frames(description.window_samples)
        self._chunk_frames = self.window_frames
        plain = msgspec.structs.replace(mel, center=False, top_db=None, normalize=(), channels=1)
        self._chunk_samples = (self._chunk_frames - 1) * mel.hop + mel.n_fft
        self._plain = MelSpectrogram(plain, rate_hz=description.sample_rate_hz, samples=self._chunk_samples)
        self._waves = AudioFeatures(msgspec.structs.replace(description, mel=None))

    def first_frame(self, window: int) -> int:
        """Return the frame that a window begins with, the nearest to its first sample."""
        return round(window * self._description.hop_samples / self._mel.hop)

    def chunks(
        self, blocks: Iterable[npt.NDArray[Any]], rate_hz: int, *, ended: Callable[[int], None]
    ) -> Iterator[Float32]:
        """Yield the spectrogram of a recording in consecutive pieces, each float32 of shape (c, f, t).

        Args:
            blocks: consecutive pieces of the recording, each float32 of shape (t, c), any t.
            rate_hz: samples per second of the blocks.
            ended: gets the number of windows, once the last sample has been read. The pieces reach to the
                end of the last of them; a recording without samples has none, and no pieces.

        Raises:
            DataError: a block has another shape or type, or the rate is not positive.
            EngineUnavailableError: soxr is missing and the rate is another.
        """
        frames = self._floored(self._bands(self._waves.waves(blocks, rate_hz), ended))
        for piece in frames:
            scaled = piece
            for how in self._mel.normalize:
                assert isinstance(how, Affine)
                scaled = (scaled - np.float32(how.mean)) / np.float32(how.std)
            yield np.repeat(scaled[None], self._mel.channels, axis=0)

    def _frames(self, samples: int) -> int:
        return 1 + (samples + 2 * self._pad - self._mel.n_fft) // self._mel.hop

    def _bands(self, waves: Iterable[Float32], ended: Callable[[int], None]) -> Iterator[Float32]:
        """Yield the spectrogram (f, t) before its floor, and report the number of windows."""
        held = np.zeros(self._pad, np.float32)
        samples = given = 0
        for wave in waves:
            samples += len(wave)
            held = np.concatenate([held, wave])
            while len(held) >= self._chunk_samples:
                yield self._transformed(held[: self._chunk_samples])
                given += self._chunk_frames
                held = held[self._chunk_frames * self._mel.hop :]
        if not samples:
            ended(0)
            return
        length, hop = self._description.window_samples, self._description.hop_samples
        windows = 1 + max(0, -(-(samples - length) // hop))
        ended(windows)
        left = self._frames((windows - 1) * hop + length) - given
        while left > 0:
            stretch = np.zeros(self._chunk_samples, np.float32)
            part = held[: self._chunk_samples]
            stretch[: len(part)] = part
            yield self._transformed(stretch)[:, :left]
            left -= self._chunk_frames
            held = held[self._chunk_frames * self._mel.hop :]

    def _transformed(self, stretch: Float32) -> Float32:
        out = np.empty(self._plain.shape, np.float32)
        self._plain.transform_into(stretch, out)
        bands: Float32 = out[0]
        return bands

    def _floored(self, pieces: Iterator[Float32]) -> Iterator[Float32]:
        """Yield the pieces with the floor of `top_db` below the loudest frame near each frame."""
        if self._mel.top_db is None:
            yield from pieces
            return
        reach = self.window_frames // 2
        top_db = np.float32(self._mel.top_db)
        # Loudest band of the frames before the held ones; nothing comes before the recording.
        past = np.full(reach, -np.inf, np.float32)
        held: Float32 | None = None
        for piece in pieces:
            held = piece if held is None else np.concatenate([held, piece], axis=1)
            ready = held.shape[1] - reach
            if ready > 0:
                loudest = np.concatenate([past, held.max(axis=0)])
                yield self._with_floor(held[:, :ready], loudest, top_db)
                past = loudest[ready : ready + reach]
                held = held[:, ready:]
        if held is not None and held.shape[1]:
            loudest = np.concatenate([past, held.max(axis=0), np.full(reach, -np.inf, np.float32)])
            yield self._with_floor(held, loudest, top_db)

    def _with_floor(self, piece: Float32, loudest: Float32, top_db: np.float32) -> Float32:
        width = 2 * (self.window_frames // 2) + 1
        near = np.lib.stride_tricks.sliding_window_view(loudest, width)[: piece.shape[1]].max(axis=1)
        floored: Float32 = np.maximum(piece, near - top_db)
        return floored


def _bound_to_window(description: AudioInput) -> str | None:
    """Return why a description's spectrogram depends on its window, None where it does not."""
    mel = description.mel
    assert mel is not None
    if description.peak_normalize or description.std_normalize:
        return "each window's wave is divided by a number of its own"
    if mel.log == "db" and mel.ref == "max":
        return "0 dB is each window's own maximum"
    if not all(isinstance(how, Affine) for how in mel.normalize):
        return "each window is normalised by its own values"
    if mel.channels == 3 and mel.channel_mode == "deltas":
        return "the slopes at a window's ends are its own"
    return None
