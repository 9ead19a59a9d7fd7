"""Measures bundles again, here and now, interleaved."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from alula.bundle import GOLDEN_NAME, Deployed
from alula.core import Ratio, Recipe, Settings, Throughput
from alula.errors import MeasurementError, UsageError
from alula.hardware import read_memory, thread_budget
from alula.measure import ratio, stability_warnings, throughput
from alula.tuning import LoadRequest, compare_speeds
from alula.workflows.running import Bundle, load

__all__ = ["BenchReport", "BenchRow", "bench"]

TIMEOUT_S = 600.0
MEMORY_SHARE = 0.8


class BenchRow(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle's speed here.

    Attributes:
        bundle: its path.
        recipe: what ran.
        settings: with which settings.
        throughput: samples per second of the model alone, raw rounds kept.
        tuned_per_s: what the search measured, wherever that was.
        change: this measurement over that one, minus 1.
        ratio: over the first bundle, from neighbouring rounds; None for the first.
    """

    bundle: str
    recipe: str
    settings: Settings
    throughput: Throughput
    tuned_per_s: float
    change: float
    ratio: Ratio | None


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a bench found, with what disturbed it."""

    rows: tuple[BenchRow, ...]
    warnings: tuple[str, ...]


def bench(
    paths: Sequence[str | Path],
    *,
    trust_code: bool = False,
    threads: int | None = None,
    rounds: int = 9,
    round_s: float = 1.0,
    report: Callable[[str], None] = lambda text: None,
) -> BenchReport:
    """Return the throughput of bundles on this machine, measured in turn, each in its own process.

    The model runs on the bundle's golden inputs, as many batches at once as its settings say.

    Args:
        paths: bundle folders; ratios are over the first.
        trust_code: see `alula.load`.
        threads: thread budget of each; None takes min(affinity, CPU quota).
        rounds: how often each is timed; below 6 no interval can be given.
        round_s: length of a round.
        report: gets lines of text about what is being done.

    Raises:
        BundleError: a bundle is refused or nothing in it is right here.
        MeasurementError: a bundle fails while it is measured.
        UsageError: `rounds` or `round_s` is not positive, or a bundle is given twice.
    """
    if rounds < 1 or round_s <= 0:
        raise UsageError(f"Got {rounds} rounds of {round_s} s; expected at least 1, longer than 0 s.")
    names = [str(path) for path in paths]
    if len(set(names)) != len(names) or not names:
        raise UsageError("Expected one or more different bundles to measure.")
    budget = thread_budget(threads)
    chosen: dict[str, tuple[Deployed, Settings]] = {}
    with tempfile.TemporaryDirectory(prefix="alula-bench-") as scratch:
        contenders: dict[str, LoadRequest] = {}
        inputs: tuple[str, ...] = ()
        for name in names:
            report(f"loading {name}")
            with load(name, trust_code=trust_code, threads=budget) as bundle:
                deployed = bundle.deployed
                chosen[name] = deployed, bundle.settings
                contenders[name] = LoadRequest(
                    recipe=Recipe.parse(deployed.recipe),
                    artifact=str((bundle.path / deployed.artifact).absolute()),
                    signature=bundle.manifest.signature,
                    settings=bundle.settings,
                )
                inputs = inputs or _write_inputs(bundle, Path(scratch))
        report(f"measuring {rounds} rounds of {round_s:g} s each")
        comparison = compare_speeds(
            contenders,
            inputs=inputs,
            folder=Path(scratch) / "logs",
            threads=budget,
            memory_limit_bytes=int(read_memory().available_bytes * MEMORY_SHARE) or 2**62,
            rounds=rounds,
            round_s=round_s,
            timeout_s=TIMEOUT_S,
        )
    for name, loss in comparison.losses.items():
        raise MeasurementError(f"{name} failed while it was measured: {loss.error}")
    first = [item.per_s for item in comparison.rounds[names[0]]]
    rows = []
    for name in names:
        done = comparison.rounds[name]
        deployed, settings = chosen[name]
        measured = throughput(done, warnings=stability_warnings(done, asked=rounds))
        rows.append(
            BenchRow(
                bundle=name,
                recipe=deployed.recipe,
                settings=settings,
                throughput=measured,
                tuned_per_s=deployed.throughput_per_s,
                change=measured.per_s / deployed.throughput_per_s - 1,
                ratio=None if name == names[0] else ratio([item.per_s for item in done], first),
            )
        )
    return BenchReport(rows=tuple(rows), warnings=comparison.warnings)


def _write_inputs(bundle: Bundle, folder: Path) -> tuple[str, ...]:
    paths = []
    with np.load(bundle.path / GOLDEN_NAME, allow_pickle=False) as golden:
        for name in bundle.manifest.golden_inputs:
            path = folder / f"{name}.npy"
            np.save(path, golden[name])
            paths.append(str(path))
    return tuple(paths)
