"""The thread budget seen from outside: CPU time and running threads of a child that computes as it likes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from alula.core import Recipe, Settings
from alula.engines import engine_named, engine_names
from alula.errors import EngineUnavailableError
from alula.export import export_module
from alula.hardware import fingerprint, thread_budget
from alula.tuning import Child, Loaded, LoadRequest, measure_round

ROUND_S = 1.5
# Python's own work between batches, the kernel's for the process, and the granularity of its clock.
SLACK = 0.15
CGROUP = Path("/sys/fs/cgroup/cpu")


class Work(nn.Module):
    """(b, 16, 32, 32) to (b, 16): enough to do for every thread that an engine may start."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(8)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).mean(dim=(2, 3))


def cpu_s(leader: int) -> float:
    """Return the CPU seconds that a process group has used so far."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[2]) == leader:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def usage(leader: int) -> Iterator[list[float]]:
    """Give a list to which the CPUs that a process group used in the meantime are appended."""
    found: list[float] = []
    before, started_s = cpu_s(leader), time.monotonic()
    yield found
    found.append((cpu_s(leader) - before) / (time.monotonic() - started_s))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    samples = [np.random.default_rng(0).normal(size=(2, 16, 32, 32)).astype(np.float32)]
    folders = {}
    for target in ("onnx", "exported", "torchscript"):
        folders[target] = tmp_path_factory.mktemp(target)
        export_module(Work().eval(), samples, target=target, folder=folders[target])  # type: ignore[arg-type]
    return folders


@pytest.mark.parametrize("settings", [Settings(batch_size=4), Settings(instances=2, batch_size=4)], ids=str)
@pytest.mark.parametrize("name", [name for name in engine_names() if engine_named(name).offered])
def test_no_engine_uses_more_than_its_settings_say(
    name: str, settings: Settings, exports: dict[str, Path], tmp_path: Path
) -> None:
    engine, recipe = engine_named(name), Recipe(name, "fp32")
    try:
        engine.version()
    except EngineUnavailableError as error:
        pytest.skip(f"NOT COVERED HERE: {error}")
    if settings.total_threads >= (os.cpu_count() or 1):
        pytest.skip("NOT COVERED HERE: this machine has no more CPUs than the settings ask for")
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    export = exports[engine.export_format(recipe)]
    engine.build(export, artifact, recipe=recipe)
    samples = tmp_path / "samples.npy"
    np.save(samples, np.random.default_rng(1).normal(size=(16, 16, 32, 32)).astype(np.float32))
    signature = export_module(
        Work().eval(), [np.load(samples)[:2]], target="torchscript", folder=tmp_path
    ).signature
    with Child(tmp_path / "logs", name, threads=settings.total_threads, memory_limit_bytes=2**33) as child:
        request = LoadRequest(recipe=recipe, artifact=str(artifact), signature=signature, settings=settings)
        child.ask(request, Loaded, timeout_s=300)
        measure_round(child, (str(samples),), 0.2, timeout_s=300)
        with usage(child.pid) as used:
            measure_round(child, (str(samples),), ROUND_S, timeout_s=300)
    assert used[0] <= settings.total_threads + SLACK


@pytest.fixture
def quota() -> Iterator[Path]:
    """A cgroup of one CPU's time for processes that may run on any CPU."""
    group = CGROUP / f"alula-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text("100000")
    except OSError as error:
        pytest.skip(f"NOT COVERED HERE: no cgroup (version 1) can be made: {error}")
    yield group
    group.rmdir()


_JOIN = """
import sys
from pathlib import Path
(Path(sys.argv[1]) / "cgroup.procs").write_text("0")
from alula.hardware import read_limits, thread_budget
print(thread_budget(), read_limits().quota, flush=True)
"""


def test_a_quota_of_one_cpu_is_a_budget_of_one_thread(quota: Path) -> None:
    assert thread_budget() == len(os.sched_getaffinity(0)), "the test itself is limited"
    # The group must be the reader's own: it looks at the group of its process.
    told = subprocess.run(
        [sys.executable, "-c", _JOIN, str(quota)], capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stdout.split() == ["1", "1.0"]


def test_the_fingerprint_knows_the_budget() -> None:
    assert fingerprint().thread_budget == thread_budget()
