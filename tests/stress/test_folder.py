"""Folders as they are: many files, broken ones among them, and recordings of hours."""

from __future__ import annotations

import csv
import io
import json
import struct
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import SONGS, write_wav

from alula.workflows import load, predict

RATE_HZ = 8000


def wav_bytes(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def float_wav(samples: np.ndarray) -> bytes:
    """Return 32-bit float WAV (format 3), which can hold what is no number."""
    data = samples.astype("<f4").tobytes()
    layout = struct.pack("<HHIIHH", 3, 1, RATE_HZ, 4 * RATE_HZ, 4, 32)
    body = (
        b"WAVEfmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", len(data)) + data
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def flac_bytes(samples: np.ndarray) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE_HZ, format="FLAC")
    return buffer.getvalue()


def corruptions(rng: np.random.Generator) -> dict[str, Callable[[], bytes]]:
    """Return ways for a sound file to be none, by name."""
    noise = rng.integers(-9000, 9000, RATE_HZ)
    whole = wav_bytes(noise)
    with_nan = noise / 9000
    with_nan[4000] = np.nan
    flac = flac_bytes(noise / 9000)
    return {
        "empty": lambda: b"",
        "text": lambda: b"this is no sound\n" * 40,
        "truncated": lambda: whole[: len(whole) // 2],
        "header only": lambda: whole[:44],
        "half a header": lambda: whole[:20],
        "no samples": lambda: wav_bytes(noise[:0]),
        "nan": lambda: float_wav(with_nan),
        "infinite": lambda: float_wav(np.where(noise == noise[7], np.inf, 0.0)),
        "nonsense values": lambda: float_wav(noise * 1e30),
        "wrong magic": lambda: b"RIFX" + whole[4:8] + b"EVAW" + whole[12:],
        "random": lambda: rng.bytes(5000),
        "zeros": lambda: bytes(16_044),
        "cut flac": lambda: flac[: len(flac) // 2],
        "damaged flac": lambda: flac[: len(flac) // 2] + rng.bytes(2000) + flac[len(flac) // 2 + 2000 :],
        "no channels": lambda: whole[:22] + b"\0\0" + whole[24:],
        "no rate": lambda: whole[:24] + bytes(4) + whole[28:],
        "html": lambda: b"<!DOCTYPE html><html><title>404</title></html>",
    }


def test_a_thousand_files_of_which_fifty_are_broken(
    audio_bundle: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    broken = set(rng.choice(1000, 50, replace=False).tolist())
    makers = list(corruptions(rng).items())
    expected: dict[str, str] = {}
    for index in range(1000):
        path = folder / f"{index:04}.wav"
        if index not in broken:
            write_wav(path, rng.uniform(-0.9, 0.9, RATE_HZ // 4))
            continue
        name, make = makers[len(expected) % len(makers)]
        expected[str(path)] = name
        path.write_bytes(make())
    (folder / "a folder.wav").mkdir()  # looked into, and there is nothing
    (folder / "notes.txt").write_text("not asked for")
    with load(audio_bundle, threads=2) as bundle:
        report = predict(bundle, [folder], output=tmp_path / "scores.csv")
    assert (report.job.tasks_done, report.job.tasks_failed, report.job.samples) == (950, 50, 950)
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (tmp_path / "errors.csv").open(newline="") as file:
        errors = list(csv.DictReader(file))
    assert {row["path"]: expected.get(row["path"]) for row in errors} == expected
    assert len(errors) == 50
    assert [row["path"] for row in rows] == sorted(
        str(folder / f"{index:04}.wav") for index in range(1000) if index not in broken
    )
    assert all(np.isfinite([float(row[song]) for song in SONGS]).all() for row in rows)
    assert all(row["error"] and "Traceback" not in row["error"] for row in errors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errors.csv", "in", "scores.csv"]


def test_a_table_of_nothing_but_errors(audio_bundle: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    makers = corruptions(rng)
    for name, make in makers.items():
        (tmp_path / f"{name}.wav").write_bytes(make())
    with load(audio_bundle, threads=2) as bundle:
        report = predict(bundle, [tmp_path], output=tmp_path / "out" / "scores.csv")
    assert (report.job.tasks_done, report.job.tasks_failed) == (0, len(makers))
    assert (tmp_path / "out" / "scores.csv").read_text().splitlines() == [
        ",".join(["path", "start_s", "end_s", *SONGS])
    ]


_PREDICT = """
import json, re, sys, threading
from pathlib import Path
from alula.workflows import load, predict

# Not `ru_maxrss`, which starts at what the parent of the process used.
def status(name):
    return 1024 * int(re.search(name + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

held, over = [], threading.Event()
def watch():
    while not over.wait(0.05):
        held.append(status("VmRSS"))

watching = threading.Thread(target=watch)
with load(sys.argv[1], threads=2) as bundle:
    watching.start()
    report = predict(bundle, [sys.argv[2]], output=sys.argv[3])
    over.set()
    watching.join()
told = {"samples": report.job.samples, "failed": report.job.tasks_failed}
print(json.dumps({"peak_bytes": status("VmHWM"), "held_bytes": held, **told}))
"""


def predicted(bundle: Path, inputs: Path, table: Path) -> dict[str, Any]:
    """Return rows, failures and memory of a job in a process of its own."""
    command = [sys.executable, "-c", _PREDICT, str(bundle), str(inputs), str(table)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    told: dict[str, Any] = json.loads(finished.stdout)
    return told


def check_growth(told: dict[str, Any]) -> None:
    """Memory is what it was when the job had settled."""
    held = told["held_bytes"]
    assert len(held) >= 20, "the job was too short to say"
    settled, last = held[len(held) // 4 : len(held) // 2], held[-len(held) // 4 :]
    assert np.median(last) < np.median(settled) + 40e6


@pytest.mark.parametrize(("suffix", "hours"), [("wav", 8), ("flac", 3)])
def test_a_recording_of_hours_takes_no_more_memory_than_a_window(
    audio_bundle: Path, tmp_path: Path, rng: np.random.Generator, suffix: str, hours: int
) -> None:
    import soundfile

    seconds = hours * 3600
    path = tmp_path / f"night.{suffix}"
    minute = rng.uniform(-0.9, 0.9, 60 * RATE_HZ).astype(np.float32)
    with soundfile.SoundFile(path, "w", RATE_HZ, 1, "PCM_16") as file:
        for index in range(seconds // 60):
            file.write(minute * (index % 5) / 5)
    told = predicted(audio_bundle, path, tmp_path / "scores.csv")
    path.unlink()
    assert (told["samples"], told["failed"]) == (seconds, 0)
    # Held as float32, three hours alone would take 346 MB and eight 922 MB; the whole process takes some 100.
    assert told["peak_bytes"] < 300e6
    check_growth(told)
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["start_s"]) for row in rows] == list(range(seconds))
    # Minutes of the same sound have the same scores, wherever they lie.
    scores = np.array([[float(row[song]) for song in SONGS] for row in rows])
    np.testing.assert_allclose(scores[60:300], scores[-240:], rtol=1e-4, atol=1e-6)


def test_ten_thousand_files_of_a_second(audio_bundle: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    noise = rng.uniform(-0.9, 0.9, 2 * RATE_HZ)
    for index in range(10_000):
        start = int(rng.integers(RATE_HZ))
        write_wav(folder / f"{index:05}.wav", noise[start : start + RATE_HZ])
    told = predicted(audio_bundle, folder, tmp_path / "scores.csv")
    assert (told["samples"], told["failed"]) == (10_000, 0)
    assert told["peak_bytes"] < 300e6
    check_growth(told)
    with (tmp_path / "scores.csv").open(newline="") as file:
        names = [Path(row["path"]).stem for row in csv.DictReader(file)]
    assert names == [f"{index:05}" for index in range(10_000)]
