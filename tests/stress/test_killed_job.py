"""`alula predict`, killed with SIGKILL as often as it takes: the same bytes as a run that was left alone."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from bundles import write_wav

FILES, SECONDS = 160, 20
# A row: two times and three scores.
ROW_BYTES = 8 + 8 + 3 * 4


def command(bundle: Path, inputs: Path, output: Path) -> list[str]:
    arguments = [str(bundle), str(inputs), "-o", str(output), "--json", "-q", "--threads", "2"]
    return [sys.executable, "-m", "alula", "predict", *arguments]


def kill_when_written(arguments: list[str], results: Path, least_bytes: int) -> bool:
    """Run a command and kill it when its journal is so long; return whether there was time for that."""
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while run.poll() is None:
            time.sleep(0.001)
            try:
                size = results.stat().st_size
            except FileNotFoundError:  # not begun, or over
                continue
            if size >= least_bytes:
                run.kill()
                break
        return run.wait() < 0


def test_killed_three_times(audio_bundle: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    for index in range(FILES):
        write_wav(inputs / f"{index:03}.wav", rng.uniform(-0.9, 0.9, 8000 * SECONDS))
    (inputs / "050b.wav").write_bytes(b"RIFF")
    alone = tmp_path / "alone" / "scores.csv"
    done = subprocess.run(command(audio_bundle, inputs, alone), capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["resumed"] == 0
    output = tmp_path / "out" / "scores.csv"
    arguments = command(audio_bundle, inputs, output)
    results = tmp_path / "out" / "scores.csv.job" / "results"
    whole_bytes = FILES * SECONDS * ROW_BYTES
    kills = sum(kill_when_written(arguments, results, round(part * whole_bytes)) for part in (0.05, 0.3, 0.6))
    assert not output.exists()
    assert kills, "it was never killed"
    lost = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert lost.returncode == 3, lost.stderr
    told = json.loads(lost.stdout)
    if kills == 3:
        # Records hold their notes too, so that at the last kill it was less than what was waited for.
        assert FILES // 3 <= told["resumed"] < FILES
    assert told["job"]["tasks_done"] + told["job"]["tasks_failed"] == FILES + 1 - told["resumed"]
    assert output.read_bytes() == alone.read_bytes()
    assert (output.parent / "errors.csv").read_bytes() == (alone.parent / "errors.csv").read_bytes()
    assert sorted(path.name for path in output.parent.iterdir()) == ["errors.csv", "scores.csv"]


KILLS = 30
MANY_FILES = 400
# Two are decoded, and the rows of two more wait for their batch.
IN_FLIGHT = 4
# inotify(7): a file was opened; `struct inotify_event` without its name.
IN_OPEN = 0x20
EVENT = struct.Struct("iIII")


class Opened:
    """Tells which files of a folder were opened, by any process."""

    def __init__(self, folder: Path) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self._handle = library.inotify_init1(os.O_NONBLOCK)
        if self._handle < 0 or library.inotify_add_watch(self._handle, os.fsencode(folder), IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), "the folder cannot be watched")

    def since_last(self) -> set[str]:
        """Return their names."""
        names = set()
        while True:
            try:
                events = os.read(self._handle, 1 << 16)
            except BlockingIOError:
                return names - {""}  # the folder itself
            at = 0
            while at < len(events):
                *_, length = EVENT.unpack_from(events, at)
                names.add(os.fsdecode(events[at + EVENT.size : at + EVENT.size + length].rstrip(b"\0")))
                at += EVENT.size + length


def test_thirty_kills_at_random_moments(audio_bundle: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    for index in range(MANY_FILES):
        write_wav(inputs / f"{index:03}.wav", rng.uniform(-0.9, 0.9, 8000 * int(rng.integers(1, 40))))
    alone = tmp_path / "alone" / "scores.csv"
    done = subprocess.run(command(audio_bundle, inputs, alone), check=True, capture_output=True, text=True)
    work_s = json.loads(done.stdout)["job"]["wall_s"]
    output = tmp_path / "out" / "scores.csv"
    arguments = command(audio_bundle, inputs, output)
    opened = Opened(inputs)
    kills = 0
    times_opened: dict[str, int] = {}
    while not output.exists():
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
            names: set[str] = set()
            if kills < KILLS:
                # One in four while the command starts, the others in the midst of the work.
                if rng.uniform() < 0.25:
                    time.sleep(rng.uniform(0.0, 1.0))
                else:
                    while not names and run.poll() is None:
                        names = opened.since_last()
                    time.sleep(rng.uniform(0.0, work_s / KILLS))
                run.kill()
            complaints = run.communicate()[1]
        assert run.returncode in (0, -9), complaints
        kills += run.returncode != 0
        for name in names | opened.since_last():
            times_opened[name] = times_opened.get(name, 0) + 1
    assert kills == KILLS, f"the job was over after {kills} kills"
    assert output.read_bytes() == alone.read_bytes()
    again = sum(times_opened.values()) - MANY_FILES
    assert len(times_opened) == MANY_FILES
    assert again <= kills * IN_FLIGHT
    assert not (tmp_path / "out" / "scores.csv.job").exists()
