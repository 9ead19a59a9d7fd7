"""`alula predict`, killed with SIGKILL as often as it takes: the same bytes as a run that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
            try:
                size = results.stat().st_size
            except FileNotFoundError:
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
