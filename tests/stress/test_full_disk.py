"""A disk that is full in the middle of a search: one line, nobody blamed, and the same command goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundles import write_wav
from tiny import write_linear_onnx

from alula.bundle import read_manifest, verify
from alula.core import Accepted
from alula.tuning import read_journal

FEATURES, CLASSES = 256, 2048  # weights of 2 MiB
MIB = 1 << 20


class SmallDisk:
    """A file system of its own in memory, whose size can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder))

    def grow(self, size_bytes: int) -> None:
        self._run("mount", "-o", f"remount,size={size_bytes // 1024}k", str(self.folder))

    def close(self) -> None:
        self._run("umount", str(self.folder))

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        small = SmallDisk(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"NOT COVERED HERE: no file system can be mounted: {error}")
    yield small
    small.close()


def test_a_search_goes_on_each_time_that_the_disk_has_grown(
    disk: SmallDisk, tmp_path: Path, rng: np.random.Generator
) -> None:
    weights = rng.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    model = write_linear_onnx(tmp_path / "model.onnx", weights, shape=(8, FEATURES))
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(60, FEATURES)).astype(np.float32))
    target = disk.folder / "a.alula"
    journal = disk.folder / "a.alula.search" / "search.jsonl"
    command = [sys.executable, "-m", "alula", "optimize", str(model), "--data", str(tmp_path / "x.npz")]
    command += ["-o", str(target), "--threads", "1", "--engines", "onnxruntime", "--precisions", "fp32"]
    command += ["--budget", "8s"]
    known: list[object] = []
    full: list[str] = []
    # From less than the data take, over less than the export, the artifact and the bundle, to enough.
    for size_bytes in (48 * 1024, 1 * MIB, 3 * MIB, 5 * MIB, 7 * MIB, 32 * MIB):
        disk.grow(size_bytes)
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
        assert "Traceback" not in done.stderr
        if journal.exists():
            outcomes = list(read_journal(journal))
            assert outcomes[: len(known)] == known
            assert {type(one) for one in outcomes} <= {Accepted}, outcomes
            known = list(outcomes)
        if done.returncode == 0:
            break
        assert done.returncode == 1, done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: The disk is full: ")
        assert last.endswith("Free some space and run the same command again; it goes on where it stopped.")
        assert str(disk.folder) in last
        full.append(last.partition(" could not be written")[0].removeprefix("error: The disk is full: "))
        assert not target.exists()
    assert done.returncode == 0, done.stderr
    assert "continuing the earlier search of this command" in done.stderr
    assert "trying onnxruntime/fp32" not in done.stderr, "it began anew"
    # Data, what a child process writes, and the bundle, which is written when all else is done.
    assert len(set(full)) >= 3, full
    assert full[-1] == "the bundle", full
    verify(target, read_manifest(target))
    assert list(read_journal(target / "search.jsonl"))[: len(known)] == known
    assert sorted(path.name for path in disk.folder.iterdir()) == ["a.alula"]


def test_a_folder_run_goes_on_each_time_that_the_disk_has_grown(
    disk: SmallDisk, audio_bundle: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    for index in range(120):
        write_wav(inputs / f"{index:03}.wav", rng.uniform(-0.9, 0.9, 8000 * 20))
    alone, output = tmp_path / "scores.csv", disk.folder / "scores.csv"
    base = [sys.executable, "-m", "alula", "predict", str(audio_bundle), str(inputs), "--threads", "1", "-o"]
    assert subprocess.run([*base, str(alone)], capture_output=True).returncode == 0
    resumed: list[int] = []
    # From less than the results take, over less than results and table take, to enough.
    for size_bytes in (48 * 1024, 128 * 1024, 32 * MIB):
        disk.grow(size_bytes)
        done = subprocess.run(
            [*base, str(output), "--json", "-q"],
            capture_output=True,
            text=True,
            env={**os.environ, "NO_COLOR": "1"},
        )
        assert "Traceback" not in done.stderr
        if done.returncode == 0:
            resumed.append(json.loads(done.stdout)["resumed"])
            break
        assert done.returncode == 1, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: The disk is full: ")
        assert line.endswith("Free some space and run the same command again; it goes on where it stopped.")
        assert not output.exists()
    assert done.returncode == 0, done.stderr
    assert 0 < resumed[0] < 120
    assert output.read_text() == alone.read_text()
    assert sorted(path.name for path in disk.folder.iterdir()) == ["scores.csv"]
