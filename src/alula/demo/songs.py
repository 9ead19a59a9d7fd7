"""Imaginary birds: songs, clips and soundscapes made from a seed, with known truth.

Twelve species that do not exist sing from 1 to 10 kHz: whistles, sweeps, trills, reels, rasps and coos.
No two songs are alike: individuals differ in pitch, tempo, number of phrases and distance, and they sing
in pink to brown noise with wind, rain, insects, a distant engine and unknown callers. Many songs are
barely above the noise, so that a good small network is right about nineteen times in twenty, not always.

Everything is a function of its seed (NumPy's PCG64, which is the same on every platform); nothing is
read from disk or network. Clips and soundscapes draw from separate random streams: no seed of one gives
material of the other.
"""

from __future__ import annotations

import csv
import wave
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alula.errors import DataError, EngineUnavailableError, UsageError

__all__ = [
    "CLIP_S",
    "LABELS",
    "SAMPLE_RATE_HZ",
    "SPECIES",
    "Event",
    "Note",
    "Species",
    "read_truth",
    "synthesize_clip",
    "synthesize_song",
    "synthesize_soundscape",
    "window_truth",
    "write_clips",
    "write_soundscapes",
]

SAMPLE_RATE_HZ = 32_000
CLIP_S = 5.0
AudioFormat = Literal["wav", "ogg"]
Wave = NDArray[np.float32]

# Songs start and end on whole milliseconds, so that a truth file with three decimals is exact.
_MS = SAMPLE_RATE_HZ // 1000
# Above this, a harmonic is left out: it would fold back at half the sample rate.
_HIGHEST_HZ = 15_000.0
_LONGEST_SONG_S = 3.6
_SHORTEST_SONG_S = 0.8
# First words of the seeds; they keep the random streams of the three makers apart.
_SONG_STREAM, _CLIP_STREAM, _SOUNDSCAPE_STREAM = 1, 2, 3
# Song level against the background inside the species' own band, in dB. A whistle fills a small part of
# its band, so it is still visible in a spectrogram well below 0 dB; these ranges were set so that the
# shipped network gets 90 to 96 of 100 clips right.
_CLIP_SNR_DB = (-14.0, 12.0)
_SOUNDSCAPE_SNR_DB = (-10.0, 14.0)
_SONGS_PER_S = 0.16
_MOST_IN_A_SET = 100_000


@dataclass(frozen=True, kw_only=True)
class Note:
    """One element of a song: a tone that glides, with vibrato, flutter and a pause after it.

    Attributes:
        length_s: how long it sounds.
        pause_s: silence after it.
        start_hz: frequency at its start.
        end_hz: frequency at its end.
        bow_hz: how far the glide bends up in its middle; negative bends down.
        vibrato_hz: depth of the frequency vibrato.
        vibrato_per_s: rate of the vibrato.
        flutter_per_s: rate of a full amplitude modulation, which is heard as a buzz; 0 for none.
        decay: how fast it fades: 0 holds its level, 5 rings off like a bell.
        level: loudness relative to the other notes.
    """

    length_s: float
    pause_s: float
    start_hz: float
    end_hz: float
    bow_hz: float = 0.0
    vibrato_hz: float = 0.0
    vibrato_per_s: float = 0.0
    flutter_per_s: float = 0.0
    decay: float = 0.0
    level: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Species:
    """An imaginary bird: its name and how it sings.

    Attributes:
        label: name of its class folder and of its column in results.
        name: its name for people.
        low_hz: lower edge of the band in which its song is strongest.
        high_hz: upper edge of that band.
        phrase: the notes of one phrase.
        repeats: fewest and most phrases in a song.
        rest_s: silence between phrases.
        pitch_step: factor on the pitch from one phrase to the next.
        tempo_step: factor on all durations from one phrase to the next.
        harmonics: amplitudes of the overtones 2, 3, ... relative to the fundamental.
    """

    label: str
    name: str
    low_hz: float
    high_hz: float
    phrase: tuple[Note, ...]
    repeats: tuple[int, int]
    rest_s: float = 0.0
    pitch_step: float = 1.0
    tempo_step: float = 1.0
    harmonics: tuple[float, ...] = ()


# In the order of their labels, which is the order in which class folders are read.
SPECIES: tuple[Species, ...] = (
    Species(
        label="ashen_tinklark",
        name="Ashen Tinklark",
        low_hz=6200,
        high_hz=9800,
        phrase=(Note(length_s=0.07, pause_s=0.08, start_hz=8300, end_hz=7900, decay=2),),
        repeats=(6, 12),
        pitch_step=0.99,
    ),
    Species(
        label="copper_bellchat",
        name="Copper Bellchat",
        low_hz=2200,
        high_hz=3500,
        phrase=(Note(length_s=0.24, pause_s=0.12, start_hz=2850, end_hz=2800, decay=4),),
        repeats=(3, 7),
        harmonics=(0.25, 0.2),
    ),
    Species(
        label="dusk_fluter",
        name="Dusk Fluter",
        low_hz=1150,
        high_hz=2700,
        phrase=(
            Note(length_s=0.32, pause_s=0.06, start_hz=1650, end_hz=1650),
            Note(length_s=0.26, pause_s=0.05, start_hz=2200, end_hz=1950, bow_hz=100),
            Note(length_s=0.38, pause_s=0.1, start_hz=1450, end_hz=1550, vibrato_hz=30, vibrato_per_s=9),
        ),
        repeats=(1, 2),
        rest_s=0.35,
        harmonics=(0.2, 0.08),
    ),
    Species(
        label="ember_trillet",
        name="Ember Trillet",
        low_hz=3700,
        high_hz=7300,
        phrase=(Note(length_s=0.034, pause_s=0.016, start_hz=6300, end_hz=4500),),
        repeats=(20, 44),
        pitch_step=0.998,
    ),
    Species(
        label="frost_siskret",
        name="Frost Siskret",
        low_hz=3000,
        high_hz=8800,
        phrase=(
            Note(length_s=0.2, pause_s=0.05, start_hz=3700, end_hz=7500, bow_hz=-500),
            Note(length_s=0.22, pause_s=0.08, start_hz=6200, end_hz=5800, flutter_per_s=65),
        ),
        repeats=(2, 4),
        rest_s=0.12,
    ),
    Species(
        label="harrow_pipling",
        name="Harrow Pipling",
        low_hz=3900,
        high_hz=6600,
        phrase=(Note(length_s=0.06, pause_s=0.22, start_hz=5600, end_hz=4700, decay=1),),
        repeats=(9, 15),
        tempo_step=0.9,
        pitch_step=1.003,
    ),
    Species(
        label="lantern_warbler",
        name="Lantern Warbler",
        low_hz=2100,
        high_hz=7200,
        phrase=(
            Note(length_s=0.12, pause_s=0.03, start_hz=3000, end_hz=4600),
            Note(length_s=0.1, pause_s=0.03, start_hz=5600, end_hz=3800, bow_hz=300),
            Note(length_s=0.16, pause_s=0.04, start_hz=2700, end_hz=2900, bow_hz=700),
            Note(length_s=0.09, pause_s=0.03, start_hz=4300, end_hz=6100),
            Note(length_s=0.14, pause_s=0.05, start_hz=5200, end_hz=2900),
        ),
        repeats=(2, 4),
        harmonics=(0.12,),
    ),
    Species(
        label="moss_reeler",
        name="Moss Reeler",
        low_hz=4500,
        high_hz=6700,
        phrase=(Note(length_s=2.1, pause_s=0.1, start_hz=5500, end_hz=5550, flutter_per_s=38),),
        repeats=(1, 1),
    ),
    Species(
        label="quill_chiffer",
        name="Quill Chiffer",
        low_hz=2800,
        high_hz=5700,
        phrase=(
            Note(length_s=0.1, pause_s=0.16, start_hz=5000, end_hz=3800),
            Note(length_s=0.1, pause_s=0.17, start_hz=4300, end_hz=3300),
        ),
        repeats=(2, 5),
    ),
    Species(
        label="sable_rasper",
        name="Sable Rasper",
        low_hz=950,
        high_hz=4700,
        phrase=(Note(length_s=0.34, pause_s=0.18, start_hz=1250, end_hz=1120, flutter_per_s=85),),
        repeats=(2, 5),
        harmonics=(0.9, 0.8, 0.4),
    ),
    Species(
        label="thimble_wren",
        name="Thimble Wren",
        low_hz=2700,
        high_hz=8800,
        phrase=(
            Note(length_s=0.05, pause_s=0.015, start_hz=3600, end_hz=7300),
            Note(length_s=0.05, pause_s=0.015, start_hz=6900, end_hz=3400),
            Note(length_s=0.11, pause_s=0.02, start_hz=4400, end_hz=4200, vibrato_hz=350, vibrato_per_s=28),
        ),
        repeats=(5, 10),
    ),
    Species(
        label="velvet_murmurdove",
        name="Velvet Murmurdove",
        low_hz=850,
        high_hz=1600,
        phrase=(
            Note(
                length_s=0.42,
                pause_s=0.2,
                start_hz=1080,
                end_hz=1180,
                bow_hz=110,
                vibrato_hz=25,
                vibrato_per_s=16,
            ),
        ),
        repeats=(2, 5),
        harmonics=(0.15,),
    ),
)
LABELS: tuple[str, ...] = tuple(species.label for species in SPECIES)


class Event(NamedTuple):
    """One song in a recording: from `start_s` to `end_s`, by the species called `label`."""

    start_s: float
    end_s: float
    label: str


def _generator(*words: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def _check_species(species: int) -> None:
    if not 0 <= species < len(SPECIES):
        raise UsageError(
            f"No species has number {species}. Expected 0 to {len(SPECIES) - 1}; `LABELS` gives their names."
        )


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise UsageError(f"The seed was {seed}. Expected a whole number of at least 0.")


def _seeds(seed: int, count: int, *, of: str) -> range:
    """The seeds of the recordings of a set, of which sets of other seeds have none."""
    _check_seed(seed)
    if not 1 <= count <= _MOST_IN_A_SET:
        raise UsageError(f"The number of {of} was {count}. Expected 1 to {_MOST_IN_A_SET:,}.")
    return range(seed * _MOST_IN_A_SET, seed * _MOST_IN_A_SET + count)


# ---------------------------------------------------------------------------------------------- songs


def _note(
    note: Note,
    *,
    pitch: float,
    tempo: float,
    harmonics: tuple[float, ...],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """One note and the pause after it, float64 of shape (t,)."""
    pitch = pitch * (1 + 0.012 * rng.standard_normal())
    length = max(int(note.length_s * tempo * rng.uniform(0.9, 1.1) * SAMPLE_RATE_HZ), 64)
    pause = int(note.pause_s * tempo * rng.uniform(0.85, 1.15) * SAMPLE_RATE_HZ)
    position = np.arange(length) / length
    seconds = np.arange(length) / SAMPLE_RATE_HZ
    frequency = note.start_hz + (note.end_hz - note.start_hz) * position
    if note.bow_hz:
        frequency += note.bow_hz * 4 * position * (1 - position)
    if note.vibrato_hz:
        start = rng.uniform(0, 2 * np.pi)
        frequency += note.vibrato_hz * np.sin(2 * np.pi * note.vibrato_per_s * seconds + start)
    frequency *= pitch
    phase = 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE_HZ
    tone = np.sin(phase)
    for order, amplitude in enumerate(harmonics, start=2):
        if order * frequency.max() < _HIGHEST_HZ:
            tone += amplitude * np.sin(order * phase)
    # Attack and release of 8 ms, shorter in short notes: hard edges would click over the whole spectrum.
    edge = np.minimum(
        1.0, np.minimum(position, 1 - position) * length / min(0.008 * SAMPLE_RATE_HZ, length / 3)
    )
    tone *= np.sin(0.5 * np.pi * edge) ** 2
    if note.decay:
        tone *= np.exp(-note.decay * position)
    if note.flutter_per_s:
        rate = note.flutter_per_s / tempo
        tone *= 0.5 - 0.5 * np.cos(2 * np.pi * rate * seconds)
    return np.concatenate([tone * (note.level * rng.uniform(0.7, 1.0)), np.zeros(pause)])


def _song(species: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A song at unit RMS of its sounding part, a whole number of milliseconds long, float64 (t,)."""
    bird = SPECIES[species]
    individual_pitch = float(np.clip(1 + 0.055 * rng.standard_normal(), 0.88, 1.12))
    individual_tempo = float(np.clip(np.exp(0.13 * rng.standard_normal()), 0.7, 1.4))
    parts: list[NDArray[np.float64]] = []
    seconds = 0.0
    for index in range(int(rng.integers(bird.repeats[0], bird.repeats[1] + 1))):
        tempo = individual_tempo * bird.tempo_step**index
        pitch = individual_pitch * bird.pitch_step**index
        phrase = [
            _note(note, pitch=pitch, tempo=tempo, harmonics=bird.harmonics, rng=rng) for note in bird.phrase
        ]
        phrase_s = sum(map(len, phrase)) / SAMPLE_RATE_HZ
        if parts and seconds + phrase_s > _LONGEST_SONG_S:
            break
        rest = np.zeros(int(bird.rest_s * tempo * SAMPLE_RATE_HZ))
        parts += [*phrase, rest]
        seconds += phrase_s + len(rest) / SAMPLE_RATE_HZ
    song = np.trim_zeros(np.concatenate(parts), "b")[: int(_LONGEST_SONG_S * SAMPLE_RATE_HZ)]
    length = max(-(-len(song) // _MS) * _MS, int(_SHORTEST_SONG_S * SAMPLE_RATE_HZ))
    song = np.pad(song, (0, length - len(song)))
    sounding = np.abs(song) > 1e-3
    song /= np.sqrt(np.mean(song[sounding] ** 2))
    return song


def synthesize_song(species: int, seed: int) -> Wave:
    """A clean song, close by and without background, float32 of shape (t,), between -1 and 1.

    Args:
        species: its number in `SPECIES`.
        seed: any whole number of at least 0; the same seed gives the same song.

    Raises:
        UsageError: there is no such species, or the seed is negative.

    >>> song = synthesize_song(LABELS.index("copper_bellchat"), 1)
    >>> song.dtype.name, 0.8 <= len(song) / SAMPLE_RATE_HZ <= 3.6
    ('float32', True)
    """
    _check_species(species)
    _check_seed(seed)
    song = _song(species, _generator(_SONG_STREAM, species, seed))
    song *= 0.9 / np.abs(song).max()
    return song.astype(np.float32)


def _at_distance(song: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """The song from some way off: treble lost on the way and two faint echoes; same length, unit RMS kept."""
    treble_db_at_8_khz = rng.uniform(0, 8)
    spectrum = np.fft.rfft(song)
    frequency = np.linspace(0, SAMPLE_RATE_HZ / 2, len(spectrum))
    heard = np.fft.irfft(spectrum * 10 ** (-treble_db_at_8_khz / 20 * (frequency / 8000)), len(song))
    for _ in range(2):
        delay = int(rng.uniform(0.02, 0.11) * SAMPLE_RATE_HZ)
        heard[delay:] += rng.uniform(0.05, 0.25) * heard[:-delay]
    result: NDArray[np.float64] = heard * np.sqrt(np.sum(song**2) / max(np.sum(heard**2), 1e-12))
    return result


# ------------------------------------------------------------------------------------------ background


def _noise(gain: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Gaussian noise of n samples with the given spectral gain, scaled to unit RMS."""
    bins = len(gain)
    spectrum = (rng.standard_normal(bins) + 1j * rng.standard_normal(bins)) * gain
    noise = np.fft.irfft(spectrum, n)
    result: NDArray[np.float64] = noise / np.sqrt(np.mean(noise**2))
    return result


def _slow(n: int, per_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A smooth random curve in [0, 1] that changes about `per_s` times a second, float64 (n,)."""
    knots = max(int(n / SAMPLE_RATE_HZ * per_s), 1) + 2
    return np.interp(np.linspace(0, knots - 1, n), np.arange(knots), rng.uniform(0, 1, knots))


def _background(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """What the microphone hears without the twelve birds, unit RMS, float64 (n,)."""
    seconds = np.arange(n) / SAMPLE_RATE_HZ
    frequency = np.linspace(0, SAMPLE_RATE_HZ / 2, n // 2 + 1)
    audible = np.maximum(frequency, 40.0)
    colour = rng.uniform(0.4, 1.0)  # exponent of the amplitude: 0.5 is pink, 1 is brown
    sound = _noise(audible**-colour, n, rng)
    if rng.random() < 0.4:  # wind: gusts of low noise
        gusts = _noise(1 / (1 + (audible / 220) ** 2), n, rng)
        sound += rng.uniform(0.5, 2.0) * gusts * _slow(n, 1.2, rng) ** 2
    if rng.random() < 0.3:  # rain: a hiss and single drops
        sound += rng.uniform(0.05, 0.3) * _noise(np.clip(audible / 2500, 0, 1), n, rng)
        drops = np.zeros(n)
        count = int(rng.uniform(4, 40) * n / SAMPLE_RATE_HZ)
        drops[rng.integers(0, n, count)] = rng.exponential(1.0, count)
        ringing = np.sin(2 * np.pi * 2600 * seconds[:160]) * np.exp(-seconds[:160] * 900)
        sound += rng.uniform(0.1, 0.6) * np.convolve(drops, ringing)[:n]
    if rng.random() < 0.3:  # an insect: a narrow buzz in bouts
        centre = rng.uniform(4000, 9500)
        stridulation = 0.5 - 0.5 * np.cos(2 * np.pi * rng.uniform(18, 70) * seconds)
        band = np.exp(-0.5 * ((frequency - centre) / rng.uniform(80, 450)) ** 2)
        bouts = np.clip(3 * _slow(n, 0.8, rng) - rng.uniform(0, 1), 0, 1)
        sound += rng.uniform(0.03, 0.2) * _noise(band, n, rng) * stridulation * bouts
    if rng.random() < 0.25:  # a distant engine
        turning = rng.uniform(45, 110)
        for order in range(1, 7):
            start = rng.uniform(0, 2 * np.pi)
            sound += rng.uniform(0.1, 0.5) / order * np.sin(2 * np.pi * order * turning * seconds + start)
    sound /= np.sqrt(np.mean(sound**2))
    return sound


def _add_strangers(sound: NDArray[np.float64], rng: np.random.Generator) -> None:
    """Add single calls of no known species to a recording, in place, about one in twelve seconds."""
    power = _BandPower(sound)
    for _ in range(int(rng.poisson(len(sound) / SAMPLE_RATE_HZ / 12))):
        start_hz = rng.uniform(1500, 8000)
        end_hz = start_hz * rng.uniform(0.75, 1.3)
        call = _note(
            Note(
                length_s=rng.uniform(0.05, 0.35),
                pause_s=0.0,
                start_hz=start_hz,
                end_hz=end_hz,
                flutter_per_s=rng.uniform(30, 90) if rng.random() < 0.3 else 0.0,
            ),
            pitch=1.0,
            tempo=1.0,
            harmonics=(),
            rng=rng,
        )
        level = power.rms(0.8 * start_hz, 1.25 * start_hz) * 10 ** (rng.uniform(-8, 8) / 20)
        begin = int(rng.integers(0, len(sound) - len(call)))
        sound[begin : begin + len(call)] += 1.4 * level * call


class _BandPower:
    """Answers how strong a sound is within a frequency band; one FFT, then two look-ups per answer."""

    def __init__(self, sound: NDArray[np.float64]) -> None:
        spectrum = np.fft.rfft(sound)
        # Parseval: the mean square is the sum of both halves of the spectrum over n squared.
        self._up_to = np.concatenate([[0.0], np.cumsum(2 * np.abs(spectrum) ** 2 / len(sound) ** 2)])

    def rms(self, low_hz: float, high_hz: float) -> float:
        bins = len(self._up_to) - 1
        low = int(low_hz / (SAMPLE_RATE_HZ / 2) * bins)
        high = max(int(high_hz / (SAMPLE_RATE_HZ / 2) * bins), low + 1)
        return float(np.sqrt(self._up_to[min(high, bins)] - self._up_to[low]))


def _recording(sound: NDArray[np.float64], rng: np.random.Generator) -> Wave:
    """The sound at the level of some recorder, float32 (t,), between -1 and 1."""
    loudness: float = 10 ** (rng.uniform(-38, -22) / 20) / np.sqrt(np.mean(sound**2))
    return np.clip(sound * loudness, -1, 1).astype(np.float32)


# --------------------------------------------------------------------------------- clips, soundscapes


def synthesize_clip(species: int, seed: int) -> Wave:
    """A recording of 5 s in which one bird sings once, float32 of shape (160000,), between -1 and 1.

    Args:
        species: its number in `SPECIES`.
        seed: any whole number of at least 0; the same seed gives the same clip.

    Raises:
        UsageError: there is no such species, or the seed is negative.

    >>> synthesize_clip(0, 7).shape
    (160000,)
    """
    _check_species(species)
    _check_seed(seed)
    rng = _generator(_CLIP_STREAM, species, seed)
    n = int(CLIP_S * SAMPLE_RATE_HZ)
    sound = _background(n, rng)
    power = _BandPower(sound)
    _add_strangers(sound, rng)
    song = _at_distance(_song(species, rng), rng)
    bird = SPECIES[species]
    level = power.rms(bird.low_hz, bird.high_hz) * 10 ** (rng.uniform(*_CLIP_SNR_DB) / 20)
    begin = int(rng.integers(0, n - len(song) + 1))
    sound[begin : begin + len(song)] += level * song
    return _recording(sound, rng)


def synthesize_soundscape(seed: int, duration_s: float) -> tuple[Wave, list[Event]]:
    """A recording in which several species sing, and when: the wave and its events in order of time.

    Songs come at random, so some overlap and some stretches hold none. Four to seven of the species live
    at the place; the others are not heard.

    Args:
        seed: any whole number of at least 0; the same seed and duration give the same soundscape.
        duration_s: its length, at least 5 s.

    Returns:
        The wave, float32 of shape (t,), between -1 and 1; and its events. Times are whole milliseconds.

    Raises:
        UsageError: the seed is negative or the duration too short.

    >>> wave, events = synthesize_soundscape(3, 20.0)
    >>> wave.shape, all(0 <= event.start_s < event.end_s <= 20 for event in events)
    ((640000,), True)
    """
    _check_seed(seed)
    if duration_s < CLIP_S:
        raise UsageError(f"The duration was {duration_s:g} s. Expected at least {CLIP_S:g} s.")
    rng = _generator(_SOUNDSCAPE_STREAM, seed)
    n = round(duration_s * 1000) * _MS
    sound = _background(n, rng)
    power = _BandPower(sound)
    _add_strangers(sound, rng)
    residents = rng.choice(len(SPECIES), size=int(rng.integers(4, 8)), replace=False)
    events = []
    for _ in range(int(rng.poisson(duration_s * _SONGS_PER_S))):
        species = int(rng.choice(residents))
        bird = SPECIES[species]
        song = _at_distance(_song(species, rng), rng)
        level = power.rms(bird.low_hz, bird.high_hz) * 10 ** (rng.uniform(*_SOUNDSCAPE_SNR_DB) / 20)
        begin = int(rng.integers(0, (n - len(song)) // _MS + 1)) * _MS
        sound[begin : begin + len(song)] += level * song
        events.append(Event(begin / SAMPLE_RATE_HZ, (begin + len(song)) / SAMPLE_RATE_HZ, bird.label))
    return _recording(sound, rng), sorted(events)


def window_truth(
    truth: Iterable[Event],
    window_s: float,
    *,
    n_windows: int,
    labels: Sequence[str],
    min_overlap_s: float = 0.5,
) -> NDArray[np.int8]:
    """Which species sing in which window, int8 of shape (n, c), 0 or 1.

    Args:
        truth: the events of one recording; events of labels that are not asked for are left out.
        window_s: length of a window; window k starts at `k * window_s`.
        n_windows: n, how many windows.
        labels: the c columns.
        min_overlap_s: a label counts when at least this much of one song lies in the window.

    >>> window_truth([Event(4.0, 6.0, "a"), Event(6.0, 10.2, "b")], 5.0, n_windows=3, labels=["a", "b"])
    array([[1, 0],
           [1, 1],
           [0, 0]], dtype=int8)
    """
    matrix = np.zeros((n_windows, len(labels)), dtype=np.int8)
    columns = {label: column for column, label in enumerate(labels)}
    starts = np.arange(n_windows) * window_s
    for event in truth:
        if event.label in columns:
            overlap = np.minimum(event.end_s, starts + window_s) - np.maximum(event.start_s, starts)
            # Times are whole milliseconds; half of one absorbs the rounding of their binary fractions.
            matrix[overlap >= min_overlap_s - 5e-4, columns[event.label]] = 1
    return matrix


# ----------------------------------------------------------------------------------------------- files


def _write_audio(path: Path, samples: Wave) -> None:
    """Write mono audio: 16-bit WAV by the standard library, Vorbis by soundfile."""
    if path.suffix == ".ogg":
        try:
            import soundfile
        except ImportError as error:
            raise EngineUnavailableError("soundfile", install="pip install 'alula[audio]'") from error
        # A second at a time: libsndfile's Vorbis encoder takes a whole call on its stack, and two minutes
        # in one call overflow it.
        with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, 1, format="OGG", subtype="VORBIS") as file:
            for start in range(0, len(samples), SAMPLE_RATE_HZ):
                file.write(samples[start : start + SAMPLE_RATE_HZ])
        return
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())


def write_clips(
    folder: Path | str, per_class: int, *, seed: int = 0, audio_format: AudioFormat = "wav"
) -> list[Path]:
    """Write clips of 5 s into one folder per species and return their paths, species by species.

    Args:
        folder: made if it is not there; clips go to `folder/<label>/<label>_<number>.wav`.
        per_class: clips of each species.
        seed: of the whole set; sets of different seeds share no clip.
        audio_format: `wav` (16 bit) or `ogg` (Vorbis, a tenth of the size, needs soundfile).

    Raises:
        UsageError: `per_class` is not from 1 to 100,000, or the seed is negative.
        EngineUnavailableError: `ogg` was asked for and soundfile is not installed.
    """
    seeds = _seeds(seed, per_class, of="clips per class")
    paths = []
    for species, label in enumerate(LABELS):
        (Path(folder) / label).mkdir(parents=True, exist_ok=True)
        for index, clip_seed in enumerate(seeds):
            path = Path(folder) / label / f"{label}_{index:03d}.{audio_format}"
            _write_audio(path, synthesize_clip(species, clip_seed))
            paths.append(path)
    return paths


def write_soundscapes(
    folder: Path | str,
    count: int,
    *,
    duration_s: float = 60.0,
    seed: int = 0,
    audio_format: AudioFormat = "wav",
) -> Path:
    """Write soundscapes and their truth, and return the path of the truth file.

    The truth is `folder/truth.csv` with the columns `path,start_s,end_s,label`: one line per song, paths
    relative to the folder. `read_truth` reads it.

    Args:
        folder: made if it is not there; recordings go to `folder/soundscape_<number>.wav`.
        count: soundscapes to write.
        duration_s: length of each.
        seed: of the whole set; sets of different seeds share no soundscape.
        audio_format: `wav` (16 bit) or `ogg` (Vorbis, needs soundfile).

    Raises:
        UsageError: `count` is not from 1 to 100,000, the duration is too short or the seed negative.
        EngineUnavailableError: `ogg` was asked for and soundfile is not installed.
    """
    seeds = _seeds(seed, count, of="soundscapes")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    truth_path = folder / "truth.csv"
    with truth_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "start_s", "end_s", "label"])
        for index, soundscape_seed in enumerate(seeds):
            path = folder / f"soundscape_{index:03d}.{audio_format}"
            samples, events = synthesize_soundscape(soundscape_seed, duration_s)
            _write_audio(path, samples)
            writer.writerows(
                [path.name, f"{event.start_s:.3f}", f"{event.end_s:.3f}", event.label] for event in events
            )
    return truth_path


def read_truth(path: Path | str) -> dict[str, list[Event]]:
    """The events of a truth file, by the path of their recording as the file gives it.

    A recording without any song has no line in the file, and so no key here.

    Raises:
        DataError: the file cannot be read, or a line is not `path,start_s,end_s,label`.
    """
    events: dict[str, list[Event]] = {}
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                event = Event(float(row["start_s"]), float(row["end_s"]), row["label"])
                events.setdefault(row["path"], []).append(event)
    except OSError as error:
        raise DataError(path, f"the truth file could not be read ({error.strerror}).") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            path, f"a line is not a song ({error}). Expected the columns `path,start_s,end_s,label`."
        ) from error
    return events
