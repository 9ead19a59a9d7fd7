"""Real bird recordings: several formats of one recording agree, and edge cases are read as they are."""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile

from alula.core import LogMel
from alula.data.audio import open_audio
from alula.features import PRESETS, AudioFeatures, Window

pytestmark = pytest.mark.real


@pytest.fixture
def focal(data_root: Path) -> Path:
    folder = data_root / "birds" / "focal"
    if not folder.is_dir():
        pytest.skip(f"REAL DATA ABSENT: {folder} is no folder")
    return folder


def windows(path: Path, preset: str, block_s: float = 20.0) -> list[Window]:
    with open_audio(path, block_s=block_s) as audio:
        return list(AudioFeatures(PRESETS[preset]).windows(audio.blocks(), audio.rate_hz))


def test_a_minute_is_twelve_windows_as_by_librosa(focal: Path) -> None:
    got = windows(focal / "1min.wav", "mel-128x313")
    assert [window.end_s for window in got] == [5.0 * k for k in range(1, 13)]
    wave, _ = soundfile.read(focal / "1min.wav", dtype="float64")
    for index, window in enumerate(got):
        part = wave[index * 160_000 : (index + 1) * 160_000]
        power = librosa.feature.melspectrogram(
            y=part / np.abs(part).max(),
            sr=32_000,
            pad_mode="reflect",
            n_mels=128,
            fmin=20.0,
            fmax=16_000.0,
            htk=True,
            norm=None,
        )
        expected = librosa.power_to_db(power, ref=1.0, top_db=80.0)
        expected = (expected - expected.mean()) / expected.std()
        expected = (expected - expected.min()) / (expected.max() - expected.min())
        # 4.3e-4 dB of 80.
        np.testing.assert_allclose(window.samples[0], expected, atol=1e-5)


def test_formats_of_one_soundscape_agree(focal: Path) -> None:
    flac, ogg, mp3 = (windows(focal / f"soundscape.{kind}", "mel-128x313") for kind in ("flac", "ogg", "mp3"))
    assert len(flac) == len(ogg) == len(mp3) == 24
    assert [window.start_s for window in flac] == [window.start_s for window in mp3]
    for lossless, *lossy in zip(flac, ogg, mp3, strict=True):
        for window in lossy:
            # Codecs drop what is not heard; what is left has the same picture.
            correlation = np.corrcoef(lossless.samples.ravel(), window.samples.ravel())[0, 1]
            assert correlation > 0.8


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3"])
def test_blocks_of_a_real_file_leave_no_trace(focal: Path, kind: str) -> None:
    long, short = (windows(focal / f"soundscape.{kind}", "mel-64x313", block_s) for block_s in (60.0, 0.7))
    # The MP3 decoder itself rounds differently in the last place after a block that ends within a frame.
    tolerance = 1e-5 if kind == "mp3" else 0.0
    for one, other in zip(long, short, strict=True):
        np.testing.assert_allclose(one.samples, other.samples, rtol=0.0, atol=tolerance)


def test_a_stereo_file_of_five_frames_is_one_window(focal: Path) -> None:
    (window,) = windows(focal / "stereo.wav", "mel-128x313")
    assert (window.start_s, window.end_s) == (0.0, 5.0)
    assert np.isfinite(window.samples).all()


def test_ten_seconds_of_mp3_are_two_windows_without_the_codecs_padding(focal: Path) -> None:
    got = windows(focal / "silence_10s.mp3", "wave-5s-32k")
    assert [window.end_s for window in got] == [5.0, 10.0]
    # Silence as MP3 is not quite silent.
    assert all(0 <= np.abs(window.samples).max() < 1e-3 for window in got)


def test_every_clip_is_read_to_its_end(focal: Path) -> None:
    files = sorted(path for path in focal.iterdir() if path.suffix in {".wav", ".flac", ".ogg", ".mp3"})
    assert len(files) >= 8
    for path in files:
        audio = open_audio(path)
        frames = sum(len(block) for block in audio.blocks())
        assert frames / audio.rate_hz == pytest.approx(audio.duration_s)


def test_every_clip_is_finite_in_every_kind_of_spectrogram(focal: Path, data_root: Path) -> None:
    clips = [*focal.glob("*.wav"), *sorted((data_root / "birds" / "field").glob("*.wav"))[:4]]
    for mel in (LogMel(log="ln"), LogMel(power=1, ref="max"), LogMel(channels=3, channel_mode="deltas")):
        description = PRESETS["wave-5s-32k"]
        features = AudioFeatures(type(description)(window_s=5.0, mel=mel))
        for path in clips:
            audio = open_audio(path)
            for window in features.windows(audio.blocks(), audio.rate_hz):
                assert np.isfinite(window.samples).all()
