"""Reading audio: every format, every rate, and files that are broken in every way we know."""

from __future__ import annotations

import errno
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alula.data.audio import AUDIO_SUFFIXES, open_audio
from alula.errors import DataError, UsageError

RATE_HZ = 32_000

# What quantising to the format may change, on the scale of full swing; None for lossy codecs.
LOSSLESS = [
    ("a.wav", "WAV", "PCM_U8", 2**-7),
    ("a.wav", "WAV", "PCM_16", 2**-15),
    ("a.wav", "WAV", "PCM_24", 2**-23),
    ("a.wav", "WAV", "PCM_32", 2**-23),
    ("a.wav", "WAV", "FLOAT", 0.0),
    ("a.wav", "WAV", "DOUBLE", 0.0),
    ("a.WAV", "WAV", "PCM_16", 2**-15),
    ("a.flac", "FLAC", "PCM_16", 2**-15),
    ("a.FLAC", "FLAC", "PCM_24", 2**-23),
    ("a.aiff", "AIFF", "PCM_16", 2**-15),
    ("a.w64", "W64", "PCM_16", 2**-15),
    ("a.rf64", "RF64", "PCM_16", 2**-15),
    ("a.caf", "CAF", "PCM_16", 2**-15),
    ("a.au", "AU", "PCM_16", 2**-15),
]
LOSSY = [("a.ogg", "OGG", "VORBIS"), ("a.opus", "OGG", "OPUS"), ("a.mp3", "MP3", "MPEG_LAYER_III")]


def noise(seconds: float, channels: int = 1, rate_hz: int = RATE_HZ) -> np.ndarray:
    frames = round(seconds * rate_hz)
    return np.random.default_rng(7).uniform(-0.5, 0.5, (frames, channels)).astype(np.float32)


def tone(seconds: float, rate_hz: int) -> np.ndarray:
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * 440.0 * time_s)).astype(np.float32)[:, None]


def whole(path: Path, **options: float) -> np.ndarray:
    with open_audio(path, **options) as audio:
        return np.concatenate(list(audio.blocks()))


@pytest.mark.parametrize("file", LOSSLESS, ids=lambda file: f"{file[0]}-{file[2]}")
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_lossless_files_come_back_in_blocks(
    tmp_path: Path, file: tuple[str, str, str, float], channels: int
) -> None:
    name, container, subtype, step = file
    samples = noise(1.3, channels)
    soundfile.write(tmp_path / name, samples, RATE_HZ, format=container, subtype=subtype)
    audio = open_audio(tmp_path / name, block_s=0.5)
    blocks = list(audio.blocks())
    assert (audio.rate_hz, audio.channels) == (RATE_HZ, channels)
    assert audio.duration_s == pytest.approx(1.3)
    assert [len(block) for block in blocks] == [16_000, 16_000, 9_600]
    assert all(block.dtype == np.float32 for block in blocks)
    np.testing.assert_allclose(np.concatenate(blocks), samples, atol=step)


@pytest.mark.parametrize(("name", "container", "subtype"), LOSSY)
@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_lossy_files_keep_length_and_sound(
    tmp_path: Path, name: str, container: str, subtype: str, rate_hz: int
) -> None:
    samples = tone(2.0, rate_hz)
    soundfile.write(tmp_path / name, samples, rate_hz, format=container, subtype=subtype)
    read = whole(tmp_path / name)
    assert len(read) == len(samples)
    middle = slice(rate_hz // 2, rate_hz)
    np.testing.assert_allclose(read[middle], samples[middle], atol=0.05)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 96_000, 192_000])
def test_rates_are_read_as_they_are(tmp_path: Path, rate_hz: int) -> None:
    soundfile.write(tmp_path / "a.wav", noise(0.1, rate_hz=rate_hz), rate_hz)
    assert open_audio(tmp_path / "a.wav").rate_hz == rate_hz


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.integers(0, 31_999),
    length=st.integers(1, 40_000),
    block_s=st.floats(0.001, 3.0),
)
def test_a_part_is_a_slice_of_the_whole(tmp_path: Path, start: int, length: int, block_s: float) -> None:
    path = tmp_path / "a.flac"
    samples = noise(1.0, 2)
    if not path.exists():
        soundfile.write(path, samples, RATE_HZ, subtype="PCM_24")
    part = whole(path, start_s=start / RATE_HZ, end_s=(start + length) / RATE_HZ, block_s=block_s)
    np.testing.assert_allclose(part, samples[start : start + length], atol=2**-23)


@pytest.mark.parametrize(("name", "container", "subtype"), LOSSY)
def test_a_part_of_a_lossy_file_is_a_slice_of_the_whole(
    tmp_path: Path, name: str, container: str, subtype: str
) -> None:
    path = tmp_path / name
    soundfile.write(path, noise(20.0, rate_hz=48_000), 48_000, format=container, subtype=subtype)
    full = whole(path)
    for start in (1, 997, 48_001, 300_000, 700_001):
        part = whole(path, start_s=start / 48_000, end_s=(start + 10_000) / 48_000)
        # MP3 frames lean on the bits of earlier ones, so a seek rounds differently in the last place.
        np.testing.assert_allclose(part, full[start : start + 10_000], atol=1e-6)


def test_duration_is_that_of_the_part(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(3.0), RATE_HZ)
    assert open_audio(tmp_path / "a.wav", start_s=1.0, end_s=2.5).duration_s == pytest.approx(1.5)
    assert open_audio(tmp_path / "a.wav", start_s=1.0, end_s=99.0).duration_s == pytest.approx(2.0)


def test_blocks_start_again_at_each_call(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(1.0), RATE_HZ)
    audio = open_audio(tmp_path / "a.wav", block_s=0.3)
    first = next(audio.blocks())
    np.testing.assert_array_equal(next(audio.blocks()), first)


def test_the_extension_has_no_say(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.raw", noise(1.0), RATE_HZ, format="WAV", subtype="FLOAT")
    np.testing.assert_array_equal(whole(tmp_path / "a.raw"), noise(1.0))


def test_names_of_any_encoding(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9 \xf0\x9f\x90\xa6.wav")
    soundfile.write(tmp_path / "a.wav", noise(0.1), RATE_HZ)
    (tmp_path / "a.wav").rename(path)
    assert len(whole(path)) == 3_200


def test_suffixes_are_lower_case_and_complete() -> None:
    assert {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".w64", ".caf"} <= AUDIO_SUFFIXES
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in AUDIO_SUFFIXES)


# Broken files -------------------------------------------------------------------------------------------


def missing(path: Path) -> None:
    pass


def folder(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def no_bytes(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("not audio at all\n" * 100)


def random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(1).bytes(50_000))


def only_riff(path: Path) -> None:
    path.write_bytes(b"RIFF\x24\0\0\0WAVE")


def only_flac_magic(path: Path) -> None:
    path.write_bytes(b"fLaC" + bytes(100))


def only_ogg_magic(path: Path) -> None:
    path.write_bytes(b"OggS" + np.random.default_rng(2).bytes(5_000))


def no_samples(path: Path) -> None:
    soundfile.write(path, noise(0.0), RATE_HZ, format="WAV")


def no_samples_ogg(path: Path) -> None:
    soundfile.write(path, noise(0.0), RATE_HZ, format="OGG")


def never_completed_wav(path: Path) -> None:
    soundfile.write(path, noise(1.0), RATE_HZ, format="WAV", subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[40:44] = bytes(4)
    path.write_bytes(data)


def low_rate(path: Path) -> None:
    soundfile.write(path, noise(1.0), 10, format="WAV")


def high_rate(path: Path) -> None:
    soundfile.write(path, noise(1.0), 2_000_000, format="WAV")


def with_value(value: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        samples = noise(1.0, 2)
        samples[20_000, 1] = value
        soundfile.write(path, samples, RATE_HZ, format="WAV", subtype="FLOAT")

    return write


def cut(container: str, subtype: str, part: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        soundfile.write(path, noise(5.0, rate_hz=48_000), 48_000, format=container, subtype=subtype)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * part)])

    return write


def scrambled(container: str, subtype: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        soundfile.write(path, noise(20.0), RATE_HZ, format=container, subtype=subtype)
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 5_000] = np.random.default_rng(3).bytes(5_000)
        path.write_bytes(data)

    return write


def without_first_mp3_frame(path: Path) -> None:
    """An MP3 of variable bit rate, loud first, without its Xing header."""
    samples = noise(40.0)
    samples[RATE_HZ * 10 :] = 0.0
    soundfile.write(
        path,
        samples,
        RATE_HZ,
        format="MP3",
        subtype="MPEG_LAYER_III",
        bitrate_mode="VARIABLE",
        compression_level=0.3,
    )
    data = path.read_bytes()
    path.write_bytes(data[data.index(data[:2], 2) :])


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (missing, "there is no such file"),
    (folder, "is a folder"),
    (pipe, "is not a regular file"),
    (no_bytes, "0 bytes"),
    (text, "is not audio"),
    (random_bytes, "is not audio"),
    (only_riff, "is not audio"),
    (only_flac_magic, "is not audio"),
    (only_ogg_magic, "is not audio"),
    (no_samples, "no samples"),
    (no_samples_ogg, "no samples"),
    (never_completed_wav, "no samples"),
    (low_rate, "sample rate is 10 Hz"),
    (high_rate, "sample rate is 2000000 Hz"),
    (with_value(np.nan), "NaN or infinite"),
    (with_value(np.inf), "NaN or infinite"),
    (with_value(-np.inf), "NaN or infinite"),
    (with_value(1e30), "samples of 1.0e\\+30"),
    (with_value(-1e30), "samples of 1.0e\\+30"),
    (cut("WAV", "PCM_16", 0.6), "truncated"),
    (cut("WAV", "FLOAT", 0.999), "truncated"),
    (cut("AIFF", "PCM_16", 0.6), "truncated"),
    (cut("W64", "PCM_16", 0.6), "truncated"),
    (cut("RF64", "PCM_16", 0.6), "truncated"),
    (cut("AU", "PCM_16", 0.6), "truncated"),
    (cut("FLAC", "PCM_16", 0.6), "truncated"),
    (cut("OGG", "VORBIS", 0.6), "truncated"),
    (cut("OGG", "VORBIS", 0.99), "truncated"),
    (cut("OGG", "OPUS", 0.6), "truncated"),
    (cut("MP3", "MPEG_LAYER_III", 0.6), "truncated"),
    (scrambled("FLAC", "PCM_16"), "damaged"),
    (without_first_mp3_frame, "without a Xing header"),
]


@pytest.mark.parametrize(("breakage", "reason"), BROKEN, ids=[f"{i}-{r}" for i, (_, r) in enumerate(BROKEN)])
def test_broken_files_are_data_errors(tmp_path: Path, breakage: Callable[[Path], None], reason: str) -> None:
    path = tmp_path / "broken.audio"
    breakage(path)
    with pytest.raises(DataError, match=reason) as caught:
        whole(path)
    assert caught.value.path == str(path)
    assert str(path) not in caught.value.reason


def test_a_file_without_permission_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataError, match="cannot be opened: Permission denied"):
        open_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("size", [0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_streamed_wav_is_read_to_its_end(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(1.0), RATE_HZ, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = struct.pack("<I", size)
    path.write_bytes(data)
    assert len(whole(path)) == RATE_HZ


def test_an_mp3_of_constant_rate_needs_no_xing_header(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(
        path,
        noise(5.0),
        RATE_HZ,
        format="MP3",
        subtype="MPEG_LAYER_III",
        bitrate_mode="CONSTANT",
        compression_level=0.5,
    )
    data = path.read_bytes()
    path.write_bytes(data[data.index(data[:2], 2) :])
    audio = open_audio(path)
    assert audio.duration_s is None
    assert len(whole(path)) == pytest.approx(5.0 * RATE_HZ, abs=4_608)


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ({"start_s": 1.0}, "the recording ends at 1.00 s"),
        ({"start_s": -1.0}, "`start_s` is -1.0"),
        ({"start_s": float("nan")}, "`start_s` is nan"),
        ({"start_s": 0.5, "end_s": 0.5}, "`end_s` is 0.5"),
        ({"end_s": float("nan")}, "`end_s` is nan"),
    ],
)
def test_times_outside_are_data_errors(tmp_path: Path, times: dict[str, float], reason: str) -> None:
    soundfile.write(tmp_path / "a.wav", noise(1.0), RATE_HZ)
    with pytest.raises(DataError, match=reason):
        open_audio(tmp_path / "a.wav", **times)


@pytest.mark.parametrize("block_s", [0.0, -1.0, float("nan")])
def test_a_block_without_length_is_a_usage_error(tmp_path: Path, block_s: float) -> None:
    with pytest.raises(UsageError, match="block_s"):
        open_audio(tmp_path / "a.wav", block_s=block_s)


def test_a_file_changed_in_between_is_a_data_error(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(1.0), RATE_HZ)
    audio = open_audio(tmp_path / "a.wav")
    soundfile.write(tmp_path / "a.wav", noise(1.0), 16_000)
    with pytest.raises(DataError, match="changed"):
        next(audio.blocks())


# Resources ----------------------------------------------------------------------------------------------


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_file_stays_open(tmp_path: Path) -> None:
    good, bad, cut_short = tmp_path / "a.wav", tmp_path / "b.wav", tmp_path / "c.flac"
    soundfile.write(good, noise(2.0), RATE_HZ)
    text(bad)
    cut("FLAC", "PCM_16", 0.6)(cut_short)
    before = open_descriptors()
    audios = [open_audio(good, block_s=0.5) for _ in range(20)]
    assert open_descriptors() == before
    for audio in audios:
        with audio:
            next(audio.blocks())
            assert open_descriptors() == before + 1
        assert open_descriptors() == before
    for path in (bad, cut_short):
        with pytest.raises(DataError):
            whole(path)
    whole(good)
    assert open_descriptors() == before


def test_memory_does_not_grow_with_rate_or_length(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with soundfile.SoundFile(path, "w", 192_000, 8, "PCM_16", format="WAV") as file:
        for _ in range(60):
            file.write(np.zeros((192_000, 8), dtype=np.int16))
    tracemalloc.start()
    try:
        frames = sum(len(block) for block in open_audio(path, block_s=3_600.0).blocks())
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert frames == 60 * 192_000
    # Two blocks of 16 MiB: the one in hand and the next one. The whole file is 352 MiB as float32.
    assert peak_bytes < 48 * 2**20


def test_a_disk_that_fails_is_not_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(3.0), RATE_HZ)
    content = path.read_bytes()
    path.write_bytes(content[: int(0.6 * len(content))])
    with pytest.raises(DataError, match=r"truncated|damaged") as damaged:
        list(open_audio(path).blocks())
    assert not isinstance(damaged.value.__cause__, OSError)

    read = os.pread

    def failing(descriptor: int, count: int, at: int) -> bytes:
        if count >= 2**20:  # not the header and the tail that opening looks at
            raise OSError(errno.EIO, "Input/output error")
        return read(descriptor, count, at)

    # To the decoder a disk that fails is the end of the file.
    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(DataError, match=r"truncated|damaged") as passing:
        list(open_audio(path).blocks())
    assert isinstance(passing.value.__cause__, OSError)
