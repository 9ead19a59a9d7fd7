"""A search survives that its children are killed at any moment, as the system does when memory is short."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tiny import FEATURES, write_factory, write_onnx

from alula.accuracy import metric_named
from alula.core import Failed, Outcome, Recipe, Rejected
from alula.errors import AlulaError, MeasurementError, ModelError
from alula.sources import Source, parse_source
from alula.tuning import Journal, SearchPlan, read_journal, search

KILLED = "The process was ended by signal SIGKILL (often the system's way to free memory)."


def children() -> list[tuple[int, str]]:
    """Return the living children of this process, oldest first: process id and the name of its log."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid() and fields[0] not in "ZX":
                log = (stat.parent / "fd" / "2").readlink()
                if log.suffix == ".log":
                    found.append((int(fields[19]), int(stat.parent.name), log.stem))
        except (OSError, IndexError):
            continue  # it ended meanwhile
    return [(pid, name) for _, pid, name in sorted(found)]


def kill(pid: int) -> bool:
    """Kill a child and nobody else; return whether it still lived."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # The number may have gone to another process since it was read.
        if pid not in dict(children()):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def killer(seed: int, *, longest_wait_s: float, most: int) -> Iterator[list[str]]:
    """Kill the newest child at random moments; give the names of those that were hit."""
    chance = random.Random(seed)
    stop = threading.Event()
    hit: list[str] = []

    def work() -> None:
        while len(hit) < most and not stop.wait(chance.uniform(0.02, longest_wait_s)):
            for pid, name in children()[-1:]:
                if kill(pid):
                    hit.append(name)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield hit
    finally:
        stop.set()
        thread.join()


def check(
    source: Source,
    shape: tuple[int, ...],
    recipes: tuple[str, ...],
    workdir: Path,
    *,
    seed: int,
    longest_wait_s: float,
) -> None:
    """Search while up to four children are killed, and check that the search ends well."""
    random_numbers = np.random.default_rng(seed)
    workdir.mkdir()
    for name in ("calibration", "validation"):
        np.save(workdir / f"{name}.npy", random_numbers.normal(size=(24, *shape)).astype(np.float32))
    plan = SearchPlan(
        source=source,
        workdir=workdir,
        calibration=(str(workdir / "calibration.npy"),),
        validation=(str(workdir / "validation.npy"),),
        targets=None,
        metric=metric_named("agreement"),
        max_drop=0.0,
        recipes=tuple(Recipe(name.partition("/")[0], "fp32") for name in recipes),
        threads=1,
        saturating=False,
        budget_s=600.0,
        closing_s=0.0,
        memory_limit_bytes=8 * 2**30,
        timeout_s=20.0,
        round_s=0.05,
        final_rounds=6,
        seed=seed,
    )
    outcomes: list[Outcome] = []
    journal = Journal(workdir / "search.jsonl")
    failure: AlulaError | None = None
    # What was hit is known when the killer has stopped.
    with killer(seed, longest_wait_s=longest_wait_s, most=4) as hit:
        try:
            result = search(plan, journal=journal, on_outcome=outcomes.append)
        except (MeasurementError, ModelError) as error:
            failure = error
        finally:
            assert children() == []
            assert list(read_journal(journal.path)) == outcomes
    if failure is not None:
        # Only where what nothing goes on without had its second try, and that was hit too.
        needed = ("baseline", "baseline-last") if isinstance(failure, MeasurementError) else ("describe",)
        assert any({name, f"{name}-again"} <= set(hit) for name in needed), hit
        assert KILLED in str(failure)
        return
    assert hit
    assert result.baseline_throughput.per_s > 0
    assert len(result.baseline_throughput.rounds_per_s) == 6
    # Nothing is wrong with any recipe: whatever failed was killed.
    assert not [outcome for outcome in outcomes if isinstance(outcome, Rejected)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert {failure.error for failure in failures} <= {KILLED}, (hit, failures)
    assert len({failure.reproduce for failure in failures}) <= len(hit)
    # Every recipe is accounted for, and a finalist is one of those that were accepted.
    accepted = {one.candidate.recipe for one in result.accepted}
    assert accepted | {failure.recipe for failure in failures} == set(plan.recipes)
    assert {one.accepted.candidate.recipe for one in result.finalists} <= accepted


@pytest.mark.parametrize("seed", range(8))
def test_an_onnx_file(tmp_path: Path, seed: int) -> None:
    """Children that live for a second, hit at every stage."""
    check(
        parse_source(write_onnx(tmp_path / "model.onnx", batch=8)),
        (FEATURES,),
        ("fake", "onnxruntime", "openvino"),
        tmp_path / "search",
        seed=seed,
        longest_wait_s=0.8,
    )


@pytest.mark.parametrize("seed", [1])
def test_a_module(tmp_path: Path, seed: int) -> None:
    """Exports too."""
    check(
        parse_source(f"{write_factory(tmp_path)}:tiny"),
        (3, 16, 16),
        ("onnxruntime", "torchscript"),
        tmp_path / "search",
        seed=seed,
        longest_wait_s=6.0,
    )
