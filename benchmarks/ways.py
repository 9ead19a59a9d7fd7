"""What the benchmarks over folders share: ways through a folder, each in a process of its own.

Engines that share a process share threads, and ONNX Runtime's default threads spin for a while after their
work is done.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from alula.measure import Round


class Stages(NamedTuple):
    """Core-seconds of each stage over some recordings, measured alone."""

    decode_s: float
    features_s: float
    model_s: float


class Way(Protocol):
    """One way through a folder."""

    def run(self, files: list[Path], table: Path) -> int:
        """Go the whole way once; return how many rows there were."""

    def scores(self, files: list[Path]) -> list[np.ndarray]:
        """Return the scores of each file, float32 of shape (rows, classes)."""

    def stages(self, files: list[Path]) -> Stages:
        """Run each stage alone."""


# Of this process; set once.
_way: Way | None = None


def _open(make: Callable[..., Way], arguments: tuple[str, ...]) -> None:
    global _way  # noqa: PLW0603 - the process serves one way
    _way = make(*arguments)


def _here() -> Way:
    if _way is None:
        raise SystemExit("The process of a way was asked before the way was made.")
    return _way


def _run_here(files: list[Path], table: Path) -> tuple[int, float, float]:
    """Return rows, wall seconds and core-seconds of one run in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    rows = _here().run(files, table)
    return rows, time.perf_counter() - wall, time.process_time() - cpu


def _scores_here(files: list[Path]) -> list[np.ndarray]:
    return _here().scores(files)


def _stages_here(files: list[Path]) -> Stages:
    return _here().stages(files)


def _peak_bytes_here() -> int:
    """Return the largest memory that this process has held."""
    # Not `ru_maxrss`, which a child begins with at what its parent held when it was made.
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status does not tell the peak of memory; expected a line `VmHWM:`.")


@dataclass
class Contender(AbstractContextManager["Contender"]):
    """A way in its process, and what its runs took.

    Args:
        make: makes the way, in the process.
        arguments: of `make`.

    Attributes:
        cpu_s: core-seconds of each run.
        wall_s: wall seconds of each run.
        peak_bytes: largest memory that the process had held after the last run.
    """

    make: Callable[..., Way]
    arguments: tuple[str, ...]
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def __post_init__(self) -> None:
        self._pool = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=_open, initargs=(self.make, self.arguments)
        )

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def run(self, files: list[Path], table: Path) -> Round:
        """Go over the folder once."""
        rows, wall_s, cpu_s = self._pool.submit(_run_here, files, table).result()
        self.cpu_s.append(cpu_s)
        self.wall_s.append(wall_s)
        self.peak_bytes = self._pool.submit(_peak_bytes_here).result()
        return Round(samples=rows, wall_s=wall_s, calls=(wall_s,))

    def scores(self, files: list[Path]) -> list[np.ndarray]:
        """Return the scores of each file, float32 of shape (rows, classes)."""
        return self._pool.submit(_scores_here, files).result()

    def stages(self, files: list[Path]) -> Stages:
        """Run each stage alone."""
        return self._pool.submit(_stages_here, files).result()

    def forget_runs(self) -> None:
        """Count no run so far: they were there to warm up."""
        self.cpu_s.clear()
        self.wall_s.clear()


def batched(rows: Any, size: int) -> Iterator[Any]:
    """Yield parts of a list or an array, each of at most so many rows."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def core_seconds(stage: Callable[[], object], *, copies: int = 1, repeats: int = 1) -> float:
    """Return the median CPU seconds, summed over all threads, of a stage that has run before.

    Args:
        stage: what runs.
        copies: that run at once, for a stage that takes one thread. With the other threads idle it would be
            faster than it ever is in a job, most of all where two of them share a core.
        repeats: one after the other.
    """
    found = []
    with ThreadPoolExecutor(copies) as pool:
        for _ in range(repeats):
            before = time.process_time()
            for running in [pool.submit(stage) for _ in range(copies)]:
                running.result()
            found.append((time.process_time() - before) / copies)
    return statistics.median(found)
