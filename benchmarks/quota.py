"""One CPU by quota against one CPU by affinity: does a container's quota cost anything, and is it kept?

A quota lets threads run on every CPU, but stops them all once their sum is used up; a library that starts
a thread per CPU is then stopped half of the time, in the middle of its work. Alula starts as many threads
as the quota allows, so that it should cost nothing against a process that is bound to one CPU.

Two processes take turns: one in a cgroup of one CPU's time, one bound to the first CPU. Each measures the
same ONNX network by each engine as a search would.

    python benchmarks/quota.py [--rounds 9] [--seconds 2] [--markdown FILE]

Needs Linux with a writable cgroup hierarchy (version 1), as a rule the superuser.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

import output
import zoo
from alula.core import Recipe, Settings, Signature
from alula.engines import engine_named
from alula.export import export_module
from alula.hardware import thread_budget
from alula.measure import Concurrency, Round, interleave, ratio

CGROUP = Path("/sys/fs/cgroup/cpu")
PERIOD_US = 100_000
MODEL = "resnet18"
BATCH = 8


class Used(NamedTuple):
    """One round, with the CPU seconds that it took."""

    round: Round
    cpu_s: float
    wall_s: float


def enter(cgroup: str | None) -> None:
    """Limit this process, before any library has counted CPUs."""
    if cgroup is None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    else:
        (Path(cgroup) / "cgroup.procs").write_text("0")


class Contender:
    """A process of its own, limited in its own way."""

    def __init__(self, cgroup: Path | None) -> None:
        self.pool = ProcessPoolExecutor(
            1,
            mp_context=get_context("spawn"),
            initializer=enter,
            initargs=(None if cgroup is None else str(cgroup),),
        )
        self.used: dict[str, list[Used]] = {}

    def timer(self, engine: str, artifact: Path, signature: Signature) -> Callable[[float], Round]:
        """Return what times an engine in this process."""

        def measure(seconds: float) -> Round:
            used = self.pool.submit(measured, engine, artifact, signature, seconds).result()
            if seconds > 0.5:
                self.used.setdefault(engine, []).append(used)
            return used.round

        return measure


def measured(engine: str, artifact: Path, signature: Signature, seconds: float) -> Used:
    """Return a round of an engine with this process's own thread budget."""
    threads = thread_budget()
    session = engine_named(engine).load(
        artifact,
        recipe=Recipe(engine, "fp32"),
        signature=signature,
        settings=Settings(threads=threads, batch_size=BATCH),
    )
    x = zoo.noise(MODEL, BATCH)

    def run(_instance: int) -> int:
        session.run((x,))
        return BATCH

    with Concurrency(1) as concurrency:
        concurrency.warm_up(run, max_s=1.0)
        before, started_s = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        done = concurrency.round(run, seconds=seconds)
        wall_s, after = time.monotonic() - started_s, resource.getrusage(resource.RUSAGE_SELF)
    session.close()
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Used(done, cpu_s, wall_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="default 9")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round (default 2)")
    output.add_markdown_option(parser)
    options = parser.parse_args()
    group = CGROUP / f"alula-benchmark-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(PERIOD_US))
    except OSError as error:
        raise SystemExit(f"No cgroup can be made here: {error}") from error
    contenders = {"quota of 1 CPU": Contender(group), "bound to 1 CPU": Contender(None)}
    rows = []
    try:
        with tempfile.TemporaryDirectory(prefix="alula-benchmark-") as scratch:
            folder = Path(scratch)
            zoo.let_children_import_timm()
            signature = export_module(
                zoo.network(MODEL), [zoo.noise(MODEL, 2)], target="onnx", folder=folder
            ).signature
            for engine in ("onnxruntime", "openvino"):
                artifact = folder / engine
                artifact.mkdir()
                engine_named(engine).build(folder, artifact, recipe=Recipe(engine, "fp32"))
                timers = {name: one.timer(engine, artifact, signature) for name, one in contenders.items()}
                output.say(f"{engine}: {options.rounds} rounds")
                rounds = interleave(timers, rounds=options.rounds, seconds=options.seconds).rounds
                rates = {name: [item.per_s for item in items] for name, items in rounds.items()}
                reference = rates["bound to 1 CPU"]
                for name, one in contenders.items():
                    busy = np.median([used.cpu_s / used.wall_s for used in one.used[engine]])
                    gain = "1" if rates[name] is reference else str(ratio(rates[name], reference))
                    rows.append((engine, name, f"{np.median(rates[name]):.1f}", gain, f"{busy:.2f}"))
    finally:
        for one in contenders.values():
            one.pool.shutdown()
        group.rmdir()
    header = ("engine", "limit", "samples/s", "ratio (95 %)", "CPUs used")
    output.publish(
        f"{MODEL}, batch {BATCH}, {options.rounds} interleaved rounds of {options.seconds:g} s, "
        f"{os.cpu_count()} CPUs.\n\n{output.table(header, rows, left=2)}",
        markdown=options.markdown,
    )


if __name__ == "__main__":
    main()
