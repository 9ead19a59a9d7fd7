"""The synthesised birds: reproducible, inside their declared bands, and with a truth that is true."""

from __future__ import annotations

import csv
import itertools
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alula.demo.songs import (
    CLIP_S,
    LABELS,
    SAMPLE_RATE_HZ,
    SPECIES,
    Event,
    read_truth,
    synthesize_clip,
    synthesize_song,
    synthesize_soundscape,
    window_truth,
    write_clips,
    write_soundscapes,
)
from alula.errors import DataError, UsageError

ALL_SPECIES = range(len(SPECIES))


def test_labels_are_in_the_order_in_which_class_folders_are_read() -> None:
    assert list(LABELS) == sorted(LABELS)
    assert len(set(LABELS)) == 12


@pytest.mark.parametrize("species", ALL_SPECIES, ids=LABELS)
def test_same_seed_same_clip_other_seed_other_clip(species: int) -> None:
    clip = synthesize_clip(species, 5)
    assert clip.shape == (round(CLIP_S * SAMPLE_RATE_HZ),)
    assert clip.dtype == np.float32
    assert np.array_equal(clip, synthesize_clip(species, 5))
    assert not np.allclose(clip, synthesize_clip(species, 6))
    assert not np.allclose(clip, synthesize_clip((species + 1) % len(SPECIES), 5))


def test_clips_of_one_seed_do_not_share_their_background() -> None:
    # Differences of neighbouring samples whiten the noise, so that chance correlation is below 1 %.
    first, second = (np.diff(synthesize_clip(species, 5)) for species in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_every_clip_is_audible_and_does_not_clip() -> None:
    for species in ALL_SPECIES:
        clip = synthesize_clip(species, 11)
        assert np.isfinite(clip).all()
        assert np.abs(clip).max() < 1.0
        # Recorders are set from -38 to -22 dB of full scale.
        level_db = 20 * np.log10(np.sqrt(np.mean(clip.astype(np.float64) ** 2)))
        assert -38.1 < level_db < -21.9


@pytest.mark.parametrize("species", ALL_SPECIES, ids=LABELS)
def test_song_is_strongest_inside_its_declared_band(species: int) -> None:
    signal = pytest.importorskip("scipy.signal")
    bird = SPECIES[species]
    for seed in range(8):
        song = synthesize_song(species, seed)
        frequency_hz, power = signal.welch(song, SAMPLE_RATE_HZ, nperseg=1024)
        assert bird.low_hz <= frequency_hz[power.argmax()] <= bird.high_hz
        inside = (frequency_hz >= bird.low_hz) & (frequency_hz <= bird.high_hz)
        # Overtones may lie outside, but most of the energy does not.
        assert power[inside].sum() > 0.6 * power.sum()


@pytest.mark.parametrize("species", ALL_SPECIES, ids=LABELS)
def test_songs_of_a_species_vary_within_bounds(species: int) -> None:
    songs = [synthesize_song(species, seed) for seed in range(10)]
    lengths_s = [len(song) / SAMPLE_RATE_HZ for song in songs]
    assert len({len(song) for song in songs}) > 3
    assert all(0.8 <= length_s <= 3.6 for length_s in lengths_s)
    for song in songs:
        assert len(song) % 32 == 0
        assert np.abs(song).max() == pytest.approx(0.9, rel=1e-6)


def test_a_song_can_be_heard_in_its_clip_but_not_always_clearly() -> None:
    """The band of the bird holds from hardly more to far more energy than the same band of the noise."""
    signal = pytest.importorskip("scipy.signal")
    species = LABELS.index("copper_bellchat")
    contrasts_db = []
    for seed in range(30):
        frequency_hz, _, power = signal.spectrogram(
            synthesize_clip(species, seed), SAMPLE_RATE_HZ, nperseg=2048
        )
        inside = (frequency_hz >= SPECIES[species].low_hz) & (frequency_hz <= SPECIES[species].high_hz)
        strongest = power[inside].max(axis=0)
        contrasts_db.append(10 * np.log10(strongest.max() / np.median(strongest)))
    assert max(contrasts_db) > 20
    assert min(contrasts_db) < 12


def test_soundscape_is_reproducible() -> None:
    sound, events = synthesize_soundscape(4, 15.0)
    again, events_again = synthesize_soundscape(4, 15.0)
    other, events_other = synthesize_soundscape(5, 15.0)
    assert sound.dtype == np.float32
    assert sound.shape == (15 * SAMPLE_RATE_HZ,)
    assert np.array_equal(sound, again)
    assert events == events_again
    assert not np.allclose(sound, other)
    assert events != events_other


def test_soundscapes_hold_overlaps_and_silence_and_few_species_each() -> None:
    overlapping = empty_windows = 0
    for seed in range(6):
        _, events = synthesize_soundscape(seed, 60.0)
        assert events == sorted(events)
        assert all(0 <= event.start_s < event.end_s <= 60.0 for event in events)
        assert all(event.start_s == round(event.start_s, 3) for event in events)
        assert len({event.label for event in events}) <= 7
        overlapping += sum(
            later.start_s < earlier.end_s and later.label != earlier.label
            for earlier, later in itertools.pairwise(events)
        )
        empty_windows += int((window_truth(events, 5.0, n_windows=12, labels=LABELS).sum(axis=1) == 0).sum())
    assert overlapping >= 5
    assert empty_windows >= 10


def test_truth_says_where_the_songs_are() -> None:
    """Inside an event its band is stronger than the same band of the recording's silent stretches."""
    signal = pytest.importorskip("scipy.signal")
    stronger = total = 0
    for seed in range(5):
        sound, events = synthesize_soundscape(seed, 40.0)
        frequency_hz, time_s, power = signal.spectrogram(sound, SAMPLE_RATE_HZ, nperseg=1024)
        singing = np.zeros(len(time_s), dtype=bool)
        for event in events:
            singing |= (time_s >= event.start_s) & (time_s <= event.end_s)
        for event in events:
            bird = SPECIES[LABELS.index(event.label)]
            band = power[(frequency_hz >= bird.low_hz) & (frequency_hz <= bird.high_hz)].max(axis=0)
            during = band[(time_s >= event.start_s) & (time_s <= event.end_s)]
            stronger += bool(np.quantile(during, 0.9) > np.quantile(band[~singing], 0.9))
            total += 1
    assert total > 15
    # The faintest songs drown; if the truth were unrelated to the sound, about half would pass.
    assert stronger / total > 0.8


def _slow_window_truth(
    events: list[Event], window_s: float, n_windows: int, labels: list[str]
) -> list[list[int]]:
    rows = []
    for index in range(n_windows):
        begin, end = index * window_s, (index + 1) * window_s
        rows.append(
            [
                int(
                    any(
                        event.label == label
                        and round(min(end, event.end_s) - max(begin, event.start_s), 6) >= 0.5
                        for event in events
                    )
                )
                for label in labels
            ]
        )
    return rows


@given(
    songs=st.lists(
        st.tuples(st.integers(0, 20_000), st.integers(800, 3600), st.sampled_from(["a", "b", "c", "x"])),
        max_size=8,
    ),
    window_ms=st.sampled_from([2500, 5000]),
)
def test_window_truth_equals_its_definition(songs: list[tuple[int, int, str]], window_ms: int) -> None:
    events = [
        Event(start_ms / 1000, (start_ms + length_ms) / 1000, label) for start_ms, length_ms, label in songs
    ]
    labels = ["a", "b", "c"]
    got = window_truth(events, window_ms / 1000, n_windows=5, labels=labels)
    assert got.shape == (5, 3)
    assert got.tolist() == _slow_window_truth(events, window_ms / 1000, 5, labels)


def test_half_a_second_counts_and_a_millisecond_less_does_not() -> None:
    just = window_truth([Event(3.0, 5.5, "a")], 5.0, n_windows=2, labels=["a"])
    short = window_truth([Event(3.0, 5.499, "a")], 5.0, n_windows=2, labels=["a"])
    assert just.tolist() == [[1], [1]]
    assert short.tolist() == [[1], [0]]


def test_written_clips_are_the_synthesised_ones(tmp_path) -> None:
    paths = write_clips(tmp_path, 1, seed=3)
    assert [path.parent.name for path in paths] == list(LABELS)
    assert sorted(path.name for path in tmp_path.iterdir()) == list(LABELS)
    with wave.open(str(paths[2]), "rb") as file:
        assert file.getframerate() == SAMPLE_RATE_HZ
        assert file.getnchannels() == 1
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
    # Half a step of 16 bits.
    np.testing.assert_allclose(samples, synthesize_clip(2, 300_000), atol=0.51 / 32767)


def test_written_soundscapes_and_their_truth(tmp_path) -> None:
    truth_path = write_soundscapes(tmp_path, 2, duration_s=10.0, seed=1)
    with truth_path.open(newline="") as file:
        assert next(csv.reader(file)) == ["path", "start_s", "end_s", "label"]
    truth = read_truth(truth_path)
    for index in range(2):
        sound, events = synthesize_soundscape(100_000 + index, 10.0)
        assert truth.get(f"soundscape_{index:03d}.wav", []) == events
        with wave.open(str(tmp_path / f"soundscape_{index:03d}.wav"), "rb") as file:
            assert file.getnframes() == len(sound)
    assert truth


def test_ogg_is_read_back_as_the_same_sound(tmp_path) -> None:
    soundfile = pytest.importorskip("soundfile")
    path = write_clips(tmp_path, 1, seed=0, audio_format="ogg")[0]
    samples, rate = soundfile.read(path)
    clip = synthesize_clip(0, 0)
    assert rate == SAMPLE_RATE_HZ
    assert len(samples) == len(clip)
    # Vorbis loses detail, not the sound.
    assert np.corrcoef(samples, clip)[0, 1] > 0.9


@pytest.mark.parametrize("species", [-1, 12])
def test_unknown_species_is_refused(species: int) -> None:
    with pytest.raises(UsageError, match="Expected 0 to 11"):
        synthesize_clip(species, 0)


def test_negative_seeds_and_short_soundscapes_are_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="seed was -1"):
        synthesize_soundscape(-1, 10.0)
    with pytest.raises(UsageError, match="at least 5 s"):
        synthesize_soundscape(0, 4.0)
    with pytest.raises(UsageError, match="Expected 1 to 100,000"):
        write_clips(tmp_path, 0)
    with pytest.raises(UsageError, match="Expected 1 to 100,000"):
        write_soundscapes(tmp_path, 0)


@pytest.mark.parametrize(
    "text",
    ["path,start_s\na.wav,1\n", "path,start_s,end_s,label\na.wav,one,2,b\n"],
    ids=["columns", "number"],
)
def test_a_broken_truth_file_is_refused(tmp_path, text: str) -> None:
    path = tmp_path / "truth.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"path,start_s,end_s,label"):
        read_truth(path)


def test_a_missing_truth_file_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="could not be read"):
        read_truth(tmp_path / "none.csv")
