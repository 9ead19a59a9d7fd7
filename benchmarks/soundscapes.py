"""Recordings for benchmarks: real clips of birds and frogs at random times and distances over noise.

Each clip is a class of its own, so the truth of every row of five seconds is known.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alula.data import open_audio

RATE_HZ = 32_000
ROW_S = 5.0

# Of a clip within a row. Less may be a call's last echo.
HEARD_S = 0.5

PROJECT = Path(__file__).resolve().parent.parent


def class_name(clip: int) -> str:
    """Return the name of the class that a clip is."""
    return f"species_{clip:03d}"


class Sound(NamedTuple):
    """A clip in a recording: its number, and where it begins and ends there, in seconds."""

    clip: int
    start_s: float
    end_s: float


def clips() -> list[np.ndarray]:
    """Return the real clips, mono at 32 kHz, each with a peak of 1.

    Raises:
        SystemExit: they are not there.
    """
    import soxr

    given = os.environ.get("ALULA_TEST_DATA")
    root = (Path(given) if given else PROJECT.parent / "shared" / "data") / "birds"
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".wav", ".flac"))
    if not files:
        raise SystemExit(f"{root} holds no clips; set ALULA_TEST_DATA to the folder of real data.")
    found = []
    for path in files:
        with open_audio(path) as audio:
            wave = np.concatenate(list(audio.blocks())).mean(axis=1)
            wave = soxr.resample(wave, audio.rate_hz, RATE_HZ).astype(np.float32)
        # Clips of almost no length or no sound are tests of readers, not sounds.
        if len(wave) >= RATE_HZ and (peak := float(np.abs(wave).max())) > 1e-3:
            found.append(wave / peak)
    return found


def soundscape(sounds: Sequence[np.ndarray], seconds: float, *, seed: int) -> tuple[np.ndarray, list[Sound]]:
    """Return a recording over noise that falls with the frequency, and what sounds in it.

    Args:
        sounds: the clips, float32 at 32 kHz.
        seconds: length of the recording.
        seed: the same makes the same recording.
    """
    from scipy.signal import lfilter

    chance = np.random.default_rng(seed)
    samples = round(seconds * RATE_HZ)
    white = chance.standard_normal(samples).astype(np.float32)
    # Falls by 6 dB an octave from 100 Hz on.
    wave = np.asarray(0.002 * (white + lfilter([0.3], [1.0, -0.98], white)), np.float32)
    heard = []
    at = 0
    while at < samples:
        number = int(chance.integers(len(sounds)))
        sound = sounds[number]
        first = int(chance.integers(max(1, len(sound) - 8 * RATE_HZ)))
        part = sound[first : first + int(chance.integers(1, 8) * RATE_HZ)][: samples - at]
        wave[at : at + len(part)] += np.float32(10.0 ** chance.uniform(-1.6, -0.3)) * part
        heard.append(Sound(number, at / RATE_HZ, (at + len(part)) / RATE_HZ))
        at += int(chance.uniform(0.5, 12.0) * RATE_HZ)
    return np.clip(wave, -0.99, 0.99), heard


def recordings(folder: Path, count: int, seconds: float, *, seed: int) -> list[Path]:
    """Return Ogg files, made unless they are there, beside `truth.csv`.

    The table is what `alula optimize` and `alula plan` take as labelled data: a line per row of five seconds,
    with the classes in it as `species_000;species_001`.
    """
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"soundscape_{seed + index:05d}.ogg" for index in range(count)]
    truth = folder / "truth.csv"
    if truth.is_file() and all(path.is_file() for path in files):
        return files
    sounds = clips()
    lines: list[tuple[str, str, float, float]] = []
    for path in files:
        wave, heard = soundscape(sounds, seconds, seed=int(path.stem.rpartition("_")[2]))
        for start_s in np.arange(0.0, seconds, ROW_S):
            end_s = min(start_s + ROW_S, seconds)
            present = sorted(
                {one.clip for one in heard if min(end_s, one.end_s) - max(start_s, one.start_s) >= HEARD_S}
            )
            # A lone `;` is a row in which no class is heard.
            lines.append((path.name, ";".join(class_name(clip) for clip in present) or ";", start_s, end_s))
        if path.is_file():
            continue
        half_made = path.with_suffix(".part")
        # In pieces: one long write has made the Vorbis encoder of libsndfile overflow its stack.
        with soundfile.SoundFile(half_made, "w", RATE_HZ, 1, format="OGG", subtype="VORBIS") as file:
            for start in range(0, len(wave), RATE_HZ):
                file.write(wave[start : start + RATE_HZ])
        half_made.rename(path)
    with truth.open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(("path", "label", "start_s", "end_s"))
        writer.writerows(lines)
    return files
