"""The spectrogram of a whole recording: that of all its samples at once, in pieces."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import librosa
import msgspec
import numpy as np
import pytest

from alula.core import Affine, AudioInput, LogMel, MinMax
from alula.errors import UsageError
from alula.features import AudioFeatures, LongSpectrogram

RATE_HZ = 8_000
MEL = LogMel(
    n_fft=256, hop=100, n_mels=16, pad_mode="constant", top_db=None, mel_norm="slaney", scale="slaney"
)
INPUT = AudioInput(sample_rate_hz=RATE_HZ, window_s=1.0, hop_s=0.5, mel=MEL)


def noise(samples: int) -> np.ndarray:
    chance = np.random.default_rng(samples)
    # Louder and louder, so that a floor taken from the wrong place shows.
    return (chance.standard_normal(samples) * np.geomspace(1e-4, 1.0, samples)).astype(np.float32)[:, None]


def whole(description: AudioInput, samples: np.ndarray, *, block: int = 777) -> tuple[np.ndarray, int]:
    """Return the spectrogram (c, f, t) and the number of windows."""
    counted: list[int] = []
    blocks = [samples[at : at + block] for at in range(0, len(samples), block)]
    pieces = list(LongSpectrogram(description).chunks(blocks, RATE_HZ, ended=counted.append))
    (windows,) = counted
    return np.concatenate(pieces, axis=2) if pieces else np.zeros((1, 16, 0), np.float32), windows


def decibels(samples: np.ndarray, length: int) -> np.ndarray:
    """Return librosa's spectrogram of a recording padded to a length, (f, t)."""
    wave = np.pad(samples[:, 0], (0, length - len(samples)))
    power = librosa.feature.melspectrogram(
        y=wave, sr=RATE_HZ, n_fft=256, hop_length=100, n_mels=16, pad_mode="constant"
    )
    return librosa.power_to_db(power, top_db=None)


@pytest.mark.parametrize(
    ("samples", "windows"), [(1, 1), (8_000, 1), (8_001, 2), (12_000, 2), (50_123, 12), (52_000, 12)]
)
def test_it_is_librosas_up_to_the_end_of_the_last_window(samples: int, windows: int) -> None:
    recording = noise(samples)
    got, counted = whole(INPUT, recording)
    assert counted == windows == sum(1 for _ in AudioFeatures(INPUT).windows([recording], RATE_HZ))
    expected = decibels(recording, 8_000 + 4_000 * (windows - 1))
    assert got.shape == (1, *expected.shape)
    np.testing.assert_allclose(got[0], expected, atol=0.01)


def test_bits_do_not_depend_on_blocks() -> None:
    recording = noise(50_123)
    np.testing.assert_array_equal(whole(INPUT, recording)[0], whole(INPUT, recording, block=50_123)[0])


def test_a_window_inside_has_the_frames_of_its_own_spectrogram() -> None:
    recording = noise(50_123)
    got, _ = whole(INPUT, recording)
    long = LongSpectrogram(INPUT)
    for index, window in enumerate(AudioFeatures(INPUT).windows([recording], RATE_HZ)):
        first = long.first_frame(index)
        part = got[:, :, first : first + long.window_frames]
        assert part.shape == window.samples.shape
        # Two frames at either end see the padding of the window.
        np.testing.assert_allclose(part[:, :, 2:-2], window.samples[:, :, 2:-2], atol=0.01)


def test_the_floor_is_that_of_the_loudest_frame_within_half_a_window() -> None:
    recording = noise(50_123)
    plain, _ = whole(INPUT, recording)
    got, _ = whole(msgspec.structs.replace(INPUT, mel=msgspec.structs.replace(MEL, top_db=20.0)), recording)
    reach = LongSpectrogram(INPUT).window_frames // 2
    frames = plain.shape[2]
    for frame in range(frames):
        near = plain[0, :, max(0, frame - reach) : frame + reach + 1].max()
        np.testing.assert_array_equal(got[0, :, frame], np.maximum(plain[0, :, frame], near - np.float32(20)))
    assert (got != plain).any()


def test_scales_and_copies() -> None:
    recording = noise(12_000)
    mel = msgspec.structs.replace(MEL, normalize=(Affine(mean=-40.0, std=20.0),), channels=3)
    got, _ = whole(msgspec.structs.replace(INPUT, mel=mel), recording)
    plain, _ = whole(INPUT, recording)
    np.testing.assert_allclose(got, np.repeat((plain + 40.0) / 20.0, 3, axis=0), atol=1e-5)


def test_no_samples_no_windows() -> None:
    assert whole(INPUT, noise(1)[:0])[1] == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mel": None}, "no spectrogram"),
        ({"peak_normalize": True}, "divided by a number of its own"),
        ({"std_normalize": True}, "divided by a number of its own"),
        ({"mel": msgspec.structs.replace(MEL, ref="max")}, "its own maximum|each window's own maximum"),
        ({"mel": msgspec.structs.replace(MEL, normalize=(MinMax(),))}, "normalised by its own values"),
        ({"mel": msgspec.structs.replace(MEL, channels=3, channel_mode="deltas")}, "slopes"),
    ],
    ids=["wave", "peak", "deviation", "reference", "min-max", "slopes"],
)
def test_what_belongs_to_a_window_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        LongSpectrogram(msgspec.structs.replace(INPUT, **changes))


def test_memory_does_not_grow_with_the_recording() -> None:
    long = LongSpectrogram(msgspec.structs.replace(INPUT, mel=msgspec.structs.replace(MEL, top_db=40.0)))
    block = noise(RATE_HZ)

    def blocks(count: int) -> Iterator[np.ndarray]:
        return (block for _ in range(count))

    def peak_bytes(count: int) -> int:
        tracemalloc.reset_peak()
        for _ in long.chunks(blocks(count), RATE_HZ, ended=lambda windows: None):
            pass
        return tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        peak_bytes(3)
        assert peak_bytes(100) < peak_bytes(3) + 2**16
    finally:
        tracemalloc.stop()
