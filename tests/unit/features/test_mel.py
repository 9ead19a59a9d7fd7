"""Mel spectrograms against librosa in float64, which shares no code and no precision with ours."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import librosa
import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.core import Affine, AudioInput, LogMel, MinMax, ZScore
from alula.errors import UsageError
from alula.features import AudioFeatures, MelSpectrogram, mel_filters

RATE_HZ = 16_000
SAMPLES = 12_345

# float32 has 1.2e-7; the sums of an FFT and of a filter lose a factor of ten to a hundred.
RTOL = 2e-5
# In a band with next to no energy what counts is the rounding error of the loudest.
ATOL_OF_LOUDEST = 1e-7
# A relative error of 1e-4 in power, which is what the specification allows, is 4.3e-4 dB.
ATOL_DB = 4.3e-4


def song(samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """Noise, so that no band is empty, and a chirp 20 dB above it."""
    rng = np.random.default_rng(seed)
    chirp = scipy.signal.chirp(np.arange(samples) / RATE_HZ, 500.0, samples / RATE_HZ, 6_000.0)
    return (0.05 * rng.standard_normal(samples) + 0.5 * chirp).astype(np.float32)


def ours(mel: LogMel, wave: np.ndarray, rate_hz: int = RATE_HZ) -> np.ndarray:
    spectrogram = MelSpectrogram(mel, rate_hz=rate_hz, samples=len(wave))
    out = np.full(spectrogram.shape, np.nan, dtype=np.float32)
    spectrogram.transform_into(wave, out)
    return out


def theirs(mel: LogMel, wave: np.ndarray, rate_hz: int = RATE_HZ) -> np.ndarray:
    """The same by librosa, in float64, up to the logarithm."""
    spectrogram = librosa.feature.melspectrogram(
        y=wave.astype(np.float64),
        sr=rate_hz,
        n_fft=mel.n_fft,
        hop_length=mel.hop,
        win_length=mel.win,
        window="hann",
        center=mel.center,
        pad_mode=mel.pad_mode,
        power=mel.power,
        n_mels=mel.n_mels,
        fmin=mel.f_min_hz,
        fmax=mel.f_max_hz,
        htk=mel.scale == "htk",
        norm=mel.mel_norm,
        dtype=np.float64,
    )
    if mel.log is None:
        return spectrogram
    if mel.log == "ln":
        return np.log(spectrogram + mel.amin)
    to_db = librosa.power_to_db if mel.power == 2 else librosa.amplitude_to_db
    ref = np.max if mel.ref == "max" else mel.ref
    return to_db(spectrogram, ref=ref, amin=mel.amin, top_db=mel.top_db)


BASE = {"n_fft": 512, "hop": 160, "n_mels": 40}

LINEAR = [
    LogMel(**BASE, log=None, scale=scale, mel_norm=norm, power=power, center=center, pad_mode=pad_mode)
    for scale in ("htk", "slaney")
    for norm in (None, "slaney")
    for power in (1, 2)
    for center, pad_mode in ((True, "reflect"), (True, "constant"), (False, "reflect"))
] + [
    LogMel(n_fft=512, hop=160, win=400, n_mels=40, log=None),
    LogMel(n_fft=512, hop=160, win=401, n_mels=40, log=None),
    LogMel(n_fft=500, hop=125, n_mels=30, log=None),
    LogMel(n_fft=501, hop=100, n_mels=30, log=None),
    LogMel(n_fft=512, hop=1_000, n_mels=40, log=None),
    LogMel(n_fft=1024, hop=1, n_mels=20, log=None, f_min_hz=50.0, f_max_hz=7_000.0),
    LogMel(n_fft=2048, hop=512, n_mels=128, log=None, f_min_hz=300.0, f_max_hz=6_500.0),
    LogMel(n_fft=4096, hop=300, n_mels=3, log=None),
    LogMel(n_fft=4096, hop=300, n_mels=1, log=None, scale="slaney"),
    LogMel(n_fft=512, hop=160, n_mels=40, log=None, f_min_hz=7_000.0),
]


@pytest.mark.parametrize("mel", LINEAR, ids=str)
def test_linear_mel_equals_librosa(mel: LogMel) -> None:
    wave = song()
    expected = theirs(mel, wave)
    got = ours(mel, wave)[0]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=RTOL, atol=ATOL_OF_LOUDEST * expected.max())


@pytest.mark.parametrize(
    "mel",
    [
        LogMel(**BASE, power=power, ref=ref, amin=amin, top_db=top_db)
        for power in (1, 2)
        for ref, amin, top_db in (
            (1.0, 1e-10, 80.0),
            (1.0, 1e-10, None),
            (1.0, 1e-10, 15.0),
            ("max", 1e-10, 80.0),
            ("max", 1e-2, 80.0),
            (0.02, 1e-5, 60.0),
            (1e-6, 1e-3, 60.0),
            (0.5, 2.0, None),
            (1.0, 2.0, None),
        )
    ],
    ids=str,
)
def test_decibels_equal_librosa(mel: LogMel) -> None:
    wave = song()
    np.testing.assert_allclose(ours(mel, wave)[0], theirs(mel, wave), rtol=1e-6, atol=ATOL_DB)


@pytest.mark.parametrize("amin", [1e-10, 1e-6, 1.0])
def test_natural_logarithm(amin: float) -> None:
    mel = LogMel(**BASE, log="ln", amin=amin)
    np.testing.assert_allclose(ours(mel, song())[0], theirs(mel, song()), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("rate_hz", [22_050, 32_000, 48_000])
@pytest.mark.parametrize("n_mels", [64, 128])
def test_the_usual_sizes_equal_librosa(rate_hz: int, n_mels: int) -> None:
    mel = LogMel(n_mels=n_mels, f_min_hz=20.0, f_max_hz=11_000.0)
    wave = song(rate_hz)
    np.testing.assert_allclose(
        ours(mel, wave, rate_hz)[0], theirs(mel, wave, rate_hz), rtol=1e-6, atol=ATOL_DB
    )


@settings(max_examples=60, deadline=None)
@given(
    rate_hz=st.sampled_from([8_000, 22_050, 32_000, 48_000]),
    n_fft=st.sampled_from([1_000, 1_024, 2_048]),
    n_mels=st.integers(1, 30),
    f_min_hz=st.floats(0.0, 500.0),
    f_max_hz=st.floats(2_500.0, 4_000.0),
    scale=st.sampled_from(["htk", "slaney"]),
    norm=st.sampled_from(["slaney", None]),
)
def test_filters_equal_librosa(
    rate_hz: int, n_fft: int, n_mels: int, f_min_hz: float, f_max_hz: float, scale: str, norm: str | None
) -> None:
    mel = LogMel(n_fft=n_fft, n_mels=n_mels, f_min_hz=f_min_hz, f_max_hz=f_max_hz, scale=scale, mel_norm=norm)
    expected = librosa.filters.mel(
        sr=rate_hz,
        n_fft=n_fft,
        n_mels=n_mels,
        fmin=f_min_hz,
        fmax=f_max_hz,
        htk=scale == "htk",
        norm=norm,
        dtype=np.float64,
    )
    np.testing.assert_allclose(mel_filters(mel, rate_hz), expected, rtol=1e-6, atol=1e-9)


def test_empty_bands_are_zero_and_the_others_right() -> None:
    # Of 100 bands over 65 bins many lie between two bins; published pipelines have such bands.
    mel = LogMel(n_fft=128, hop=64, n_mels=100, log=None)
    wave = song()
    with pytest.warns(UserWarning, match="Empty filters"):
        expected = theirs(mel, wave)
    got = ours(mel, wave)[0]
    assert (got == 0).all(axis=1).sum() == (expected == 0).all(axis=1).sum() > 0
    np.testing.assert_allclose(got, expected, rtol=RTOL, atol=ATOL_OF_LOUDEST * expected.max())


# Normalisation and channels -----------------------------------------------------------------------------


def reference_normalized(x: np.ndarray, *steps: Affine | MinMax | ZScore) -> np.ndarray:
    for step in steps:
        match step:
            case Affine():
                x = (x - step.mean) / step.std
            case MinMax():
                x = (x - x.min()) / (x.max() - x.min() + step.eps)
            case ZScore():
                x = (x - x.mean()) / (x.std() + step.eps)
    return x


@pytest.mark.parametrize(
    "steps",
    [
        (MinMax(),),
        (ZScore(),),
        (Affine(mean=-40.0, std=20.0),),
        (ZScore(), MinMax()),
        (MinMax(eps=0.5), ZScore(eps=0.1), Affine(mean=0.5, std=0.2)),
    ],
)
def test_normalisations_in_their_order(steps: tuple[Affine | MinMax | ZScore, ...]) -> None:
    mel = LogMel(**BASE, normalize=steps)
    expected = reference_normalized(theirs(mel, song()), *steps)
    # 4.3e-4 dB, over a standard deviation of at least 5 dB.
    np.testing.assert_allclose(ours(mel, song())[0], expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("eps", [0.0, 1e-6])
@pytest.mark.parametrize("level", [0.0, 0.3])
@pytest.mark.parametrize("step", [MinMax, ZScore])
def test_a_constant_spectrogram_becomes_zero(step: type, eps: float, level: float) -> None:
    # A threshold above everything makes all values equal; silence does so too.
    mel = LogMel(**BASE, amin=1e9, normalize=(step(eps=eps),))
    assert not ours(mel, np.full(SAMPLES, level, np.float32)).any()


@pytest.mark.parametrize("amin", [1e-10, 3.3e-7, 0.7])
@pytest.mark.parametrize("step", [MinMax, ZScore])
def test_silence_becomes_zero_and_not_its_own_rounding_error(step: type, amin: float) -> None:
    assert not ours(LogMel(amin=amin, normalize=(step(),)), np.zeros(160_000, np.float32), 32_000).any()


def test_three_channels_repeat_the_one() -> None:
    single = ours(LogMel(**BASE), song())
    triple = ours(LogMel(**BASE, channels=3), song())
    assert triple.shape == (3, *single.shape[1:])
    np.testing.assert_array_equal(triple, np.broadcast_to(single, triple.shape))


@pytest.mark.parametrize("samples", [1_280, 1_440, SAMPLES])
def test_deltas_are_slopes_of_the_normalised_spectrogram(samples: int) -> None:
    mel = LogMel(**BASE, normalize=(ZScore(),))
    wave = song(samples)
    single = ours(mel, wave)[0].astype(np.float64)
    assert single.shape[1] >= 9
    got = ours(LogMel(**BASE, normalize=(ZScore(),), channels=3, channel_mode="deltas"), wave)
    delta = librosa.feature.delta(single, width=9)
    np.testing.assert_array_equal(got[0], single)
    np.testing.assert_allclose(got[1], delta, atol=1e-6)
    np.testing.assert_allclose(got[2], librosa.feature.delta(delta, width=9), atol=1e-6)


# Floors and silence -------------------------------------------------------------------------------------


def test_silence_is_finite_everywhere() -> None:
    for mel in (
        LogMel(**BASE),
        LogMel(**BASE, ref="max"),
        LogMel(**BASE, log="ln", amin=1e-45),
        LogMel(**BASE, amin=1e-45, normalize=(ZScore(), MinMax())),
        LogMel(**BASE, power=1, log=None),
    ):
        assert np.isfinite(ours(mel, np.zeros(SAMPLES, np.float32))).all()


def test_top_db_counts_from_the_samples_own_maximum() -> None:
    features = AudioFeatures(
        AudioInput(sample_rate_hz=RATE_HZ, window_s=0.5, mel=LogMel(**BASE, top_db=30.0))
    )
    quiet, loud = song(8_000) * 1e-3, song(8_000)
    both = features.transform(np.stack([quiet, loud]))
    np.testing.assert_array_equal(both[0], features.transform(quiet[None])[0])
    for each in both:
        assert each.max() - each.min() == pytest.approx(30.0, abs=1e-4)


# One and many -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mel",
    [
        LogMel(),
        LogMel(n_fft=512, hop=127, n_mels=40, normalize=(ZScore(), MinMax())),
        LogMel(n_fft=1024, hop=320, channels=3, channel_mode="deltas"),
    ],
    ids=str,
)
def test_a_window_has_the_same_bits_alone_and_in_a_batch(mel: LogMel) -> None:
    features = AudioFeatures(AudioInput(sample_rate_hz=RATE_HZ, window_s=1.0, mel=mel))
    waves = np.stack([song(RATE_HZ, seed) for seed in range(5)])
    batch = features.transform(waves)
    for index, wave in enumerate(waves):
        np.testing.assert_array_equal(features.transform(wave[None])[0], batch[index])
    np.testing.assert_array_equal(features.transform(waves[::-1]), batch[::-1])
    np.testing.assert_array_equal(features.transform(np.asfortranarray(waves)), batch)


def test_threads_share_one_object() -> None:
    features = AudioFeatures(AudioInput(sample_rate_hz=RATE_HZ, window_s=1.0, mel=LogMel()))
    waves = np.stack([song(RATE_HZ, seed) for seed in range(40)])
    expected = features.transform(waves)
    with ThreadPoolExecutor(max_workers=8) as pool:
        for _ in range(3):
            got = list(pool.map(lambda wave: features.transform(wave[None])[0], waves))
            np.testing.assert_array_equal(np.stack(got), expected)


def test_buffers_of_one_window_do_not_reach_the_next() -> None:
    mel = LogMel(**BASE, pad_mode="constant")
    spectrogram = MelSpectrogram(mel, rate_hz=RATE_HZ, samples=SAMPLES)
    loud, silent = np.empty(spectrogram.shape, np.float32), np.empty(spectrogram.shape, np.float32)
    spectrogram.transform_into(song(), loud)
    spectrogram.transform_into(np.zeros(SAMPLES, np.float32), silent)
    assert silent.min() == silent.max() == pytest.approx(-100.0)


# Impossible descriptions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mel", "samples", "reason"),
    [
        (LogMel(n_fft=2048), 1_024, "more than 1024 samples"),
        (LogMel(n_fft=2048, center=False), 2_047, "no frame of n_fft 2048"),
        (LogMel(n_fft=2048, channels=3, channel_mode="deltas"), 4_095, "A spectrogram of 8 frames"),
        (LogMel(n_fft=64, n_mels=1, f_min_hz=10.0, f_max_hz=20.0), 1_000, "No FFT bin"),
    ],
)
def test_impossible_descriptions_are_usage_errors(mel: LogMel, samples: int, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        MelSpectrogram(mel, rate_hz=32_000, samples=samples)


def test_the_shortest_possible_windows() -> None:
    assert ours(LogMel(n_fft=2048), np.ones(1_025, np.float32)).shape == (1, 128, 3)
    assert ours(LogMel(n_fft=2048, center=False), np.ones(2_048, np.float32)).shape == (1, 128, 1)
