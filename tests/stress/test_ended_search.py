"""A search whose own process is killed or interrupted: no orphans, and nothing is lost."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tiny import FEATURES, write_onnx

from alula.bundle import read_manifest, verify
from alula.core import Accepted
from alula.tuning import read_journal

ANSWER_S = 120.0  # for what must come; no test waits so long unless it fails


@pytest.fixture
def command(tmp_path: Path, rng: np.random.Generator) -> list[str]:
    """A search by ONNX Runtime that lasts for some seconds, in a folder of its own."""
    model = write_onnx(tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(60, FEATURES)).astype(np.float32))
    options = ["--threads", "1", "--engines", "onnxruntime", "--precisions", "fp32", "--budget", "8s"]
    data = ["--data", str(tmp_path / "x.npz"), "-o", str(tmp_path / "a.alula")]
    return [sys.executable, "-m", "alula", "optimize", str(model), *data, *options]


@contextmanager
def in_the_middle(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a search in a process group of its own, and give it when a first candidate is in its journal."""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0
    ) as search:
        try:
            assert search.stderr is not None
            assert any(line.split()[:1] == ["leads"] for line in search.stderr), "it ended before"
            yield search
        finally:
            search.kill()


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def test_a_search_that_is_killed_leaves_no_orphans_and_is_continued(
    command: list[str], tmp_path: Path
) -> None:
    journal = tmp_path / "a.alula.search" / "search.jsonl"
    with in_the_middle(command) as search:
        descriptors = [os.pidfd_open(pid) for pid in children(search.pid)]
        assert descriptors
        search.kill()  # SIGKILL
        assert search.wait() == -signal.SIGKILL
        for descriptor in descriptors:
            assert select.select([descriptor], [], [], ANSWER_S)[0], "a child lives on"
            os.close(descriptor)
    assert not (tmp_path / "a.alula").exists()
    known = list(read_journal(journal))
    assert known
    again = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
    assert again.returncode == 0, again.stderr
    assert "continuing the earlier search of this command" in again.stderr
    assert "measuring the baseline" not in again.stderr
    assert "trying" not in again.stderr
    verify(tmp_path / "a.alula", read_manifest(tmp_path / "a.alula"))
    assert list(read_journal(tmp_path / "a.alula" / "search.jsonl"))[: len(known)] == known
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.alula", "model.onnx", "x.npz"]


def test_an_interrupt_from_the_terminal_ends_with_the_best_so_far(command: list[str], tmp_path: Path) -> None:
    with in_the_middle(command) as search:
        os.killpg(search.pid, signal.SIGINT)  # as a terminal does
        _, told = search.communicate(timeout=ANSWER_S)
    assert search.returncode == 0, told
    assert "interrupted: finishing with the best found so far" in told
    assert "Traceback" not in told
    manifest = read_manifest(tmp_path / "a.alula")
    verify(tmp_path / "a.alula", manifest)
    accepted = [
        one for one in read_journal(tmp_path / "a.alula" / "search.jsonl") if isinstance(one, Accepted)
    ]
    assert manifest.chosen.recipe in {one.candidate.recipe.name for one in accepted}
    assert manifest.accuracy.n == 40
    assert not (tmp_path / "a.alula.search").exists()
