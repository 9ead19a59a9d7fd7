"""Windows of recordings, against a resampling of the whole and plain slicing."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.core import AudioInput, LogMel
from alula.errors import DataError, EngineUnavailableError, UsageError
from alula.features import AudioFeatures, Window


def noise(frames: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(frames).uniform(-0.5, 0.5, (frames, channels)).astype(np.float32)


def pieces(samples: np.ndarray, lengths: list[int]) -> Iterator[np.ndarray]:
    """Cut into blocks of these lengths, over and over."""
    at = turn = 0
    while at < len(samples):
        length = lengths[turn % len(lengths)]
        yield samples[at : at + length]
        at += length
        turn += 1


def reference_windows(mono: np.ndarray, length: int, hop: int) -> list[np.ndarray]:
    """Every window up to the first that reaches the last sample, by the definition."""
    windows = []
    start = 0
    while len(mono):
        window = np.zeros(length, np.float32)
        window[: len(mono[start : start + length])] = mono[start : start + length]
        windows.append(window)
        if start + length >= len(mono):
            break
        start += hop
    return windows


@settings(max_examples=150, deadline=None)
@given(
    frames=st.integers(0, 60),
    length=st.integers(1, 20),
    data=st.data(),
    channels=st.integers(1, 3),
    blocks=st.lists(st.integers(0, 25), min_size=1, max_size=4).filter(any),
)
def test_windows_are_those_of_the_definition(
    frames: int, length: int, data: st.DataObject, channels: int, blocks: list[int]
) -> None:
    hop = data.draw(st.integers(1, length))
    rate_hz = 8
    samples = noise(frames, channels)
    features = AudioFeatures(
        AudioInput(sample_rate_hz=rate_hz, window_s=length / rate_hz, hop_s=hop / rate_hz)
    )
    got = list(features.windows(pieces(samples, blocks), rate_hz))
    mono = samples.astype(np.float64).mean(axis=1)
    expected = reference_windows(mono, length, hop)
    assert len(got) == len(expected)
    for index, (window, reference) in enumerate(zip(got, expected, strict=True)):
        assert window.start_s == index * hop / rate_hz
        assert window.end_s == window.start_s + length / rate_hz
        assert window.samples.dtype == np.float32
        np.testing.assert_allclose(window.samples, reference, atol=1e-7)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (0, []),
        (1, [(0.0, 5.0)]),
        (20, [(0.0, 5.0)]),
        (21, [(0.0, 5.0), (2.5, 7.5)]),
        (30, [(0.0, 5.0), (2.5, 7.5)]),
        (31, [(0.0, 5.0), (2.5, 7.5), (5.0, 10.0)]),
    ],
)
def test_no_window_holds_only_what_was_covered(frames: int, expected: list[tuple[float, float]]) -> None:
    features = AudioFeatures(AudioInput(sample_rate_hz=4, window_s=5.0, hop_s=2.5))
    got = [(window.start_s, window.end_s) for window in features.windows([noise(frames)], 4)]
    assert got == expected
    assert features.spans(frames / 4) == expected


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_other_rates_are_resampled_as_a_whole(rate_hz: int, channels: int) -> None:
    samples = noise(round(2.3 * rate_hz), channels)
    features = AudioFeatures(AudioInput(sample_rate_hz=32_000, window_s=0.5))
    got = list(features.windows(pieces(samples, [rate_hz // 3, 1, 1_001]), rate_hz))
    mono = samples[:, 0] if channels == 1 else (samples[:, 0] + samples[:, 1]) / np.float32(2)
    whole = soxr.resample(mono, rate_hz, 32_000, quality="HQ")
    assert len(whole) == pytest.approx(2.3 * 32_000, abs=1)
    expected = reference_windows(whole, 16_000, 16_000)
    np.testing.assert_array_equal(np.stack([window.samples for window in got]), np.stack(expected))


@pytest.mark.parametrize("rate_hz", [11_025, 22_050, 44_100, 48_000, 96_000])
def test_whole_windows_stay_whole_after_resampling(rate_hz: int) -> None:
    features = AudioFeatures(AudioInput(sample_rate_hz=32_000, window_s=5.0))
    assert len(list(features.windows([noise(10 * rate_hz)], rate_hz))) == 2


@settings(max_examples=20, deadline=None)
@given(blocks=st.lists(st.integers(1, 50_000), min_size=1, max_size=4))
def test_bits_do_not_depend_on_the_blocks(blocks: list[int]) -> None:
    features = AudioFeatures(
        AudioInput(sample_rate_hz=16_000, window_s=0.5, hop_s=0.3, mel=LogMel(n_fft=512, hop=160, n_mels=32))
    )
    samples = noise(44_100, 2)
    blocks = [max(each, 500) for each in blocks]
    got = list(features.windows(pieces(samples, blocks), 44_100))
    expected = list(features.windows([samples], 44_100))
    assert [window[:2] for window in got] == [window[:2] for window in expected]
    np.testing.assert_array_equal(
        np.stack([window.samples for window in got]), np.stack([window.samples for window in expected])
    )


def test_windows_with_a_spectrogram_are_those_of_transform() -> None:
    description = AudioInput(sample_rate_hz=32_000, window_s=0.5, peak_normalize=True, mel=LogMel())
    features = AudioFeatures(description)
    samples = noise(80_000)
    got = [window.samples for window in features.windows(pieces(samples, [12_345]), 32_000)]
    waves = np.stack(reference_windows(samples[:, 0], 16_000, 16_000))
    np.testing.assert_array_equal(np.stack(got), features.transform(waves))
    assert got[0].shape == features.sample_shape == (1, 128, 32)


def test_windows_come_while_blocks_come() -> None:
    features = AudioFeatures(AudioInput(sample_rate_hz=4, window_s=1.0))
    given_out = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal given_out
        for _ in range(10):
            given_out += 1
            yield noise(4)

    next(features.windows(blocks(), 4))
    assert given_out == 1


def test_windows_are_the_callers_to_keep() -> None:
    features = AudioFeatures(AudioInput(sample_rate_hz=4, window_s=1.0))
    samples = noise(8)
    first, second = features.windows([samples], 4)
    second.samples[:] = 9.0
    np.testing.assert_array_equal(first.samples, samples[:4, 0])
    assert isinstance(first, Window)


def test_peaks_become_one_and_silence_stays() -> None:
    features = AudioFeatures(AudioInput(sample_rate_hz=4, window_s=1.0, peak_normalize=True))
    waves = np.array([[0.1, -0.5, 0.2, 0.0], [0.0] * 4, [1e-40, 0.0, 0.0, 0.0]], np.float32)
    before = waves.copy()
    got = features.transform(waves)
    np.testing.assert_allclose(got, [[0.2, -1.0, 0.4, 0.0], [0.0] * 4, [1.0, 0.0, 0.0, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(waves, before)


def test_deviations_become_one_and_constant_windows_stay() -> None:
    features = AudioFeatures(AudioInput(sample_rate_hz=4, window_s=1.0, std_normalize=True))
    waves = np.array([[0.3, -0.5, 0.2, 0.1], [0.1] * 4, [0.0] * 4], np.float32)
    got = features.transform(waves)
    np.testing.assert_allclose(got[0], waves[0] / waves[0].std(), rtol=1e-6)
    np.testing.assert_array_equal(got[1:], waves[1:])


def test_peak_and_deviation_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        AudioInput(peak_normalize=True, std_normalize=True)


def test_a_description_that_does_not_ask_for_the_deviation_is_written_as_before_one_could() -> None:
    said = msgspec.json.encode(AudioInput(std_normalize=False))
    assert b"std_normalize" not in said
    assert AudioInput(std_normalize=False) == AudioInput() == msgspec.json.decode(said, type=AudioInput)
    assert b'"std_normalize":true' in msgspec.json.encode(AudioInput(std_normalize=True))


def test_memory_is_a_block_and_a_window_however_long_the_recording() -> None:
    description = AudioInput(sample_rate_hz=16_000, window_s=1.0, mel=LogMel(n_fft=512, n_mels=32))
    features = AudioFeatures(description)
    block = noise(48_000, 2)

    def count(seconds: int) -> int:
        return sum(1 for _ in features.windows((block for _ in range(seconds)), 48_000))

    count(1)
    tracemalloc.start()
    try:
        assert count(3) == 3
        short_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        assert count(300) == 300
        long_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert long_bytes < short_bytes + 2**18
    # 300 s at 48 kHz in float32 are 58 MB.
    assert long_bytes < 8 * 2**20


@pytest.mark.parametrize(
    "block",
    [np.zeros(10, np.float32), np.zeros((10, 1), np.int16), np.zeros((10, 0), np.float32)],
    ids=["one axis", "integers", "no channels"],
)
def test_other_blocks_are_data_errors(block: np.ndarray) -> None:
    features = AudioFeatures(AudioInput())
    with pytest.raises(DataError, match="expected float32 of shape"):
        list(features.windows([block], 32_000))


def test_a_rate_of_zero_is_a_data_error() -> None:
    with pytest.raises(DataError, match="0 Hz"):
        list(AudioFeatures(AudioInput()).windows([], 0))


@pytest.mark.parametrize(
    "waves", [np.zeros(160_000, np.float32), np.zeros((1, 5), np.float32), np.zeros((1, 160_000), np.int16)]
)
def test_other_waves_are_data_errors(waves: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected float32 of shape \(n, 160000\)"):
        AudioFeatures(AudioInput()).transform(waves)


def test_no_waves_give_no_features() -> None:
    features = AudioFeatures(AudioInput(mel=LogMel()))
    assert features.transform(np.zeros((0, 160_000), np.float32)).shape == (0, 1, 128, 313)


def test_a_window_too_short_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="reflection"):
        AudioFeatures(AudioInput(window_s=0.03, mel=LogMel()))


@pytest.mark.parametrize("library", ["soxr", "scipy"])
def test_a_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    for name in (library, f"{library}.fft"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineUnavailableError, match=rf"`{library}`.*pip install 'alula\[audio\]'"):
        list(AudioFeatures(AudioInput(mel=LogMel())).windows([noise(10)], 16_000))
