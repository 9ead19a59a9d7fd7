"""The thread budget seen from outside: CPU time and running threads of a child that computes as it likes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from alula.core import Recipe, Settings, Signature, TensorSpec
from alula.engines import engine_named, engine_names
from alula.errors import EngineUnavailableError
from alula.export import export_module
from alula.hardware import fingerprint, thread_budget
from alula.quantization import quantizer_for
from alula.sources import Source
from alula.tuning import Child, Loaded, LoadRequest, measure_round
from alula.tuning.messages import BuildRequest, Built

ROUND_S = 0.6
LOOK_S = 0.01
# A busy machine lets one look rarely, and at threads that would be done elsewhere. What starts a thread too
# many has it in every round.
ROUNDS = 3
# Python's own work between batches, the kernel's for the process, and the granularity of its clock.
SLACK = 0.15
# Threads that hand over a batch run beside those that compute. One too many would be 1.
RUNNING_SLACK = 0.5
SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("b", 16, 32, 32)),), (TensorSpec("output", "float32", ("b", 16)),)
)
CGROUP = Path("/sys/fs/cgroup/cpu")


RECIPES = [Recipe(name, "fp32") for name in engine_names() if engine_named(name).offered]
QUANTIZED = [Recipe("openvino", "int8", "nncf"), Recipe("onnxruntime", "int8", "static")]


@pytest.fixture(autouse=True)
def waiting_as_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of OpenMP are as many as elsewhere, and spin where they wait, so that they are seen."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("OMP_WAIT_POLICY")


class Work(nn.Module):
    """(b, 16, 32, 32) to (b, 16): enough to do for every thread that an engine may start."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(8)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).mean(dim=(2, 3))


def threads_of(leader: int) -> Iterator[list[str]]:
    """Yield the fields of `stat`, from the state on, of every thread of a process group."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(_fields(stat)[2]) == leader:
                for thread in (stat.parent / "task").glob("*/stat"):
                    yield _fields(thread)
        except OSError:
            continue  # it ended meanwhile


def _fields(stat: Path) -> list[str]:
    return stat.read_text().rpartition(")")[2].split()


def cpu_s(leader: int) -> float:
    """Return the CPU seconds that the living threads of a process group have used so far."""
    ticks = sum(int(fields[11]) + int(fields[12]) for fields in threads_of(leader))
    return ticks / os.sysconf("SC_CLK_TCK")


@dataclass
class Usage:
    """What a process group used: CPUs by their time, and threads that were running or would have liked to."""

    cpus: float = 0.0
    running: float = 0.0


@contextmanager
def usage(leader: int) -> Iterator[Usage]:
    """Give what is filled in at the end with what a process group used in the block."""
    found, running, over = Usage(), list[int](), threading.Event()

    def look() -> None:
        while not over.wait(LOOK_S):
            running.append(sum(fields[0] == "R" for fields in threads_of(leader)))

    looking = threading.Thread(target=look)
    before, started_s = cpu_s(leader), time.monotonic()
    looking.start()
    try:
        yield found
    finally:
        over.set()
        looking.join()
    found.cpus = (cpu_s(leader) - before) / (time.monotonic() - started_s)
    found.running = sum(running) / len(running)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    samples = [np.random.default_rng(0).normal(size=(2, 16, 32, 32)).astype(np.float32)]
    folders = {}
    for target in ("onnx", "exported", "torchscript"):
        folders[target] = tmp_path_factory.mktemp(target)
        export_module(Work().eval(), samples, target=target, folder=folders[target])  # type: ignore[arg-type]
    return folders


@pytest.fixture(scope="module", params=[*RECIPES, *QUANTIZED], ids=str)
def made(
    request: pytest.FixtureRequest, exports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, Path, Path]:
    """A recipe, its artifact, built in a child process as a search does, and samples to run."""
    recipe, folder = request.param, tmp_path_factory.mktemp("made")
    try:
        maker = quantizer_for(recipe) if recipe.precision == "int8" else engine_named(recipe.engine)
        maker.version()
    except EngineUnavailableError as error:
        pytest.skip(f"NOT COVERED HERE: {error}")
    artifact, samples = folder / "artifact", folder / "samples.npy"
    artifact.mkdir()
    np.save(samples, np.random.default_rng(1).normal(size=(64, 16, 32, 32)).astype(np.float32))
    build = BuildRequest(
        recipe=recipe,
        source=Source(kind="timm", spec="timm:never_loaded"),
        export=str(exports[maker.export_format(recipe)]),
        artifact=str(artifact),
        calibration=(str(samples),),
        signature=SIGNATURE,
        saturating=False,
    )
    with Child(folder / "logs", "build", threads=1, memory_limit_bytes=2**33, bound=True) as child:
        child.ask(build, Built, timeout_s=300)
    return recipe, artifact, samples


@pytest.mark.parametrize(
    "settings",
    [Settings(batch_size=4), Settings(threads=2, batch_size=4), Settings(instances=2, batch_size=4)],
    ids=str,
)
def test_no_engine_uses_more_than_its_settings_say(
    made: tuple[Recipe, Path, Path], settings: Settings, tmp_path: Path
) -> None:
    recipe, artifact, samples = made
    threads = settings.total_threads
    with Child(tmp_path / "logs", "run", threads=threads, memory_limit_bytes=2**33) as child:
        request = LoadRequest(recipe=recipe, artifact=str(artifact), signature=SIGNATURE, settings=settings)
        child.ask(request, Loaded, timeout_s=300)
        measure_round(child, (str(samples),), 0.2, timeout_s=300)
        for _ in range(ROUNDS):
            with usage(child.pid) as used:
                measure_round(child, (str(samples),), ROUND_S, timeout_s=300)
            # Also where there are no more CPUs: threads that wait for one count as running.
            if used.running <= threads + RUNNING_SLACK:
                break
    assert used.cpus <= threads + SLACK
    assert used.running <= threads + RUNNING_SLACK


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
