"""Measures bundles and models here and now, interleaved."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from alula.bundle import GOLDEN_NAME, is_bundle, read_manifest, verify
from alula.core import (
    ARTIFACT_FILES,
    Ratio,
    Recipe,
    Roofline,
    Scenario,
    Settings,
    Share,
    Throughput,
    share_of_peak,
)
from alula.errors import MeasurementError, ModelError, UsageError
from alula.export import copy_onnx
from alula.graphs import Products
from alula.hardware import read_memory, thread_budget
from alula.measure import Latency, ServerRate, joined_latency, ratio, stability_warnings, throughput
from alula.quantization import work_of
from alula.sources import Source, parse_source
from alula.tuning import (
    Child,
    ChildError,
    Counted,
    CountRequest,
    Described,
    DescribeRequest,
    ExportRequest,
    Loaded,
    LoadModelRequest,
    LoadRequest,
    compare_speeds,
    measure_latency,
    measure_server,
)
from alula.workflows.durations import parse_duration_s
from alula.workflows.peaks import doubts, roofline_here
from alula.workflows.reporting import products_in
from alula.workflows.running import load_bundle

__all__ = ["BenchReport", "BenchRow", "bench"]

TIMEOUT_S = 600.0
MEMORY_SHARE = 0.8
NOISE_SAMPLES = 32
PASSES = 4  # of the measurement of latency
EAGER_BATCH = 8  # of a model as it is, whose own best size a search finds


class BenchRow(msgspec.Struct, frozen=True, kw_only=True):
    """One contender's speed here.

    Attributes:
        name: path of the bundle, or the model as it was given.
        recipe: what ran.
        settings: with which settings.
        throughput: samples per second of the model alone, raw rounds kept.
        tuned_per_s: what the search measured, wherever that was; None for a model.
        change: this measurement over that one, minus 1; None for a model and for another scenario.
        ratio: over the first contender, from neighbouring rounds; None for the first.
        of_peak: how much of this machine's peak the throughput is.
        latency: in the single-stream scenario.
        server: in the server scenario.
    """

    name: str
    recipe: str
    settings: Settings
    throughput: Throughput
    tuned_per_s: float | None
    change: float | None
    ratio: Ratio | None
    of_peak: Share
    latency: Latency | None = None
    server: ServerRate | None = None


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a bench found, with what disturbed it, and the machine's peaks if they are known."""

    scenario: Scenario
    rows: tuple[BenchRow, ...]
    warnings: tuple[str, ...]
    roofline: Roofline | None = None


@dataclass(frozen=True, kw_only=True)
class _Contender:
    request: LoadRequest | LoadModelRequest
    recipe: str
    tuned_per_s: float | None
    products: tuple[Products, ...]


def bench(
    contenders: Sequence[str | Path],
    *,
    scenario: Scenario = "offline",
    latency_limit: str | float | None = None,
    shape: Sequence[int] | None = None,
    weights: str | Path | None = None,
    trust_code: bool = False,
    threads: int | None = None,
    rounds: int = 9,
    round_s: float = 1.0,
    report: Callable[[str], None] = lambda text: None,
) -> BenchReport:
    """Return the speed of bundles and models on this machine, measured in turn, each in its own process.

    Throughput and latency are measured in rounds that take turns; rates of random arrivals, each of which
    needs the whole machine for minutes, one after the other.

    A bundle runs as its settings say, a model in eager PyTorch with all threads, an ONNX file so in ONNX
    Runtime. Inputs are the golden inputs of the first bundle, or noise of the given shape. The machine's
    peaks are measured first, unless they were before.

    Args:
        contenders: bundle folders, or models as `optimize` takes them by name; ratios are over the first.
        scenario: `offline`; or `single-stream`: one sample at a time, with percentiles of latency; or
            `server`: the highest rate of random arrivals with p99 under `latency_limit`, which takes
            some minutes for each contender.
        latency_limit: such as `50ms`, or seconds as a number; for the server scenario.
        shape: of one sample, without batch axis; needed where there is no bundle.
        weights: state dict for the models.
        trust_code: see `alula.load`.
        threads: thread budget of each; None takes min(affinity, CPU quota).
        rounds: how often each is timed; below 6 no interval can be given.
        round_s: length of a round.
        report: gets lines of text about what is being done.

    Raises:
        BundleError: a bundle is refused or nothing in it is right here.
        ModelError: a model cannot be loaded.
        MeasurementError: a contender fails while it is measured, or meets the limit at no rate.
        UsageError: `rounds` or `round_s` is not positive, a contender is given twice, or there are no inputs.
    """
    names = [str(one) for one in contenders]
    limit_s = _checked(names, rounds=rounds, round_s=round_s, scenario=scenario, latency_limit=latency_limit)
    budget = thread_budget(threads)
    memory_limit_bytes = int(read_memory().available_bytes * MEMORY_SHARE) or 2**62
    with tempfile.TemporaryDirectory(prefix="alula-bench-") as scratch:
        folder = Path(scratch)
        for name in names:
            if not is_bundle(Path(name)):
                parse_source(name, weights=weights, workdir=folder)  # a wrong name is told before all else
        inputs = _inputs(names, shape, folder)

        def new_child(what: str) -> Child:
            return Child(folder / "logs", what, threads=budget, memory_limit_bytes=memory_limit_bytes)

        entered: dict[str, _Contender] = {}
        for name in names:
            report(f"loading {name}")
            if is_bundle(Path(name)):
                entered[name] = _bundle(name, trust_code=trust_code, threads=budget)
            else:
                with new_child("describe") as child:
                    entered[name] = _model(
                        name, weights, inputs, child, threads=budget, workdir=folder, report=report
                    )
        roofline = roofline_here(threads=budget, report=report)
        if scenario == "single-stream":
            entered = {name: _one_at_a_time(one, budget) for name, one in entered.items()}
        report(f"measuring {rounds} rounds of {round_s:g} s each")
        comparison = compare_speeds(
            {name: one.request for name, one in entered.items()},
            inputs=inputs,
            folder=folder / "logs",
            threads=budget,
            memory_limit_bytes=memory_limit_bytes,
            rounds=rounds,
            round_s=round_s,
            timeout_s=TIMEOUT_S,
        )
        for name, loss in comparison.losses.items():
            raise MeasurementError(f"{name} failed while it was measured: {loss.error}")
        latencies: dict[str, Latency] = {}
        rates: dict[str, ServerRate] = {}
        with contextlib.ExitStack() as stack:
            if scenario == "single-stream":
                report(f"single samples, {PASSES} times in turn")
                children = {
                    name: stack.enter_context(new_child(f"scenario-{k}")) for k, name in enumerate(names)
                }
                latencies = _latencies(children, {name: entered[name].request for name in names}, inputs)
            elif limit_s is not None:
                for name in names:
                    report(f"server: {name}")
                    with new_child("scenario") as child, _told(name):
                        child.ask(entered[name].request, Loaded, timeout_s=TIMEOUT_S)
                        rates[name] = measure_server(
                            child,
                            inputs,
                            limit_s=limit_s,
                            offline_per_s=throughput(comparison.rounds[name]).per_s,
                            timeout_s=TIMEOUT_S,
                        )
    first = [item.per_s for item in comparison.rounds[names[0]]]
    rows = []
    for name in names:
        done, one = comparison.rounds[name], entered[name]
        measured = throughput(done, warnings=stability_warnings(done, asked=rounds))
        comparable = one.tuned_per_s is not None and scenario != "single-stream"
        rows.append(
            BenchRow(
                name=name,
                recipe=one.recipe,
                settings=one.request.settings,
                throughput=measured,
                tuned_per_s=one.tuned_per_s,
                change=measured.per_s / one.tuned_per_s - 1 if comparable and one.tuned_per_s else None,
                ratio=None if name == names[0] else ratio([item.per_s for item in done], first),
                of_peak=share_of_peak(
                    measured.per_s, work_of(one.products, Recipe.parse(one.recipe)), roofline
                ),
                latency=latencies.get(name),
                server=rates.get(name),
            )
        )
    return BenchReport(
        scenario=scenario,
        rows=tuple(rows),
        warnings=(*comparison.warnings, *doubts([(row.name, row.of_peak) for row in rows])),
        roofline=roofline,
    )


def _checked(
    names: Sequence[str],
    *,
    rounds: int,
    round_s: float,
    scenario: Scenario,
    latency_limit: str | float | None,
) -> float | None:
    """Return the latency limit in seconds, if all options make sense together."""
    if rounds < 1 or round_s <= 0:
        raise UsageError(f"Got {rounds} rounds of {round_s} s; expected at least 1, longer than 0 s.")
    if len(set(names)) != len(names) or not names:
        raise UsageError("Expected one or more different bundles or models to measure.")
    if (scenario == "server") != (latency_limit is not None):
        raise UsageError("A latency limit belongs to the scenario `server`, and to no other.")
    return None if latency_limit is None else parse_duration_s(latency_limit)


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Say which contender it was that failed."""
    try:
        yield
    except ChildError as error:
        raise MeasurementError(f"{name} failed while it was measured: {error}") from error


def _latencies(
    children: Mapping[str, Child],
    requests: Mapping[str, LoadRequest | LoadModelRequest],
    inputs: tuple[str, ...],
) -> dict[str, Latency]:
    """Return the latency of each contender, measured in passes that take turns: a drift strikes all alike."""
    for name, child in children.items():
        with _told(name):
            child.ask(requests[name], Loaded, timeout_s=TIMEOUT_S)
    parts: dict[str, list[Latency]] = {name: [] for name in children}
    for turn in range(PASSES):
        for name in list(children)[:: 1 if turn % 2 == 0 else -1]:
            with _told(name):
                part = measure_latency(children[name], inputs, timeout_s=TIMEOUT_S, parts=PASSES)
            parts[name].append(part)
    return {name: joined_latency(several) for name, several in parts.items()}


def _inputs(names: Sequence[str], shape: Sequence[int] | None, folder: Path) -> tuple[str, ...]:
    """Write what all contenders run on, one `.npy` (n, ...) per model input, and return the paths."""
    if shape is not None:
        noise = np.random.default_rng(0).standard_normal((NOISE_SAMPLES, *shape), dtype=np.float32)
        np.save(folder / "noise.npy", noise)
        return (str(folder / "noise.npy"),)
    bundle = next((Path(name) for name in names if is_bundle(Path(name))), None)
    if bundle is None:
        raise UsageError(
            "There is no bundle to take inputs from; give the shape of one sample, 3x224x224 say."
        )
    manifest = read_manifest(bundle)
    verify(bundle, manifest)
    paths = []
    with np.load(bundle / GOLDEN_NAME, allow_pickle=False) as golden:
        for name in manifest.golden_inputs:
            path = folder / f"{name}.npy"
            np.save(path, golden[name])
            paths.append(str(path))
    return tuple(paths)


def _bundle(name: str, *, trust_code: bool, threads: int) -> _Contender:
    with load_bundle(name, trust_code=trust_code, threads=threads) as bundle:
        deployed = bundle.deployed
        request = LoadRequest(
            recipe=Recipe.parse(deployed.recipe),
            artifact=str((bundle.path / deployed.artifact).absolute()),
            signature=bundle.manifest.signature,
            settings=bundle.settings,
        )
        products = products_in(bundle.path, bundle.manifest)
    return _Contender(
        request=request,
        recipe=deployed.recipe,
        tuned_per_s=deployed.throughput_per_s,
        products=products,
    )


def _model(
    name: str,
    weights: str | Path | None,
    inputs: tuple[str, ...],
    child: Child,
    *,
    threads: int,
    workdir: Path,
    report: Callable[[str], None],
) -> _Contender:
    source = parse_source(name, weights=weights, workdir=workdir)
    try:
        described = child.ask(DescribeRequest(source=source, samples=inputs), Described, timeout_s=TIMEOUT_S)
    except ChildError as error:
        raise ModelError(str(error)) from error
    signature = described.signature
    fixed = signature.inputs[0].shape[0]
    settings = Settings(threads=threads, batch_size=fixed if isinstance(fixed, int) else EAGER_BATCH)
    request: LoadRequest | LoadModelRequest
    if source.kind == "onnx":
        recipe = Recipe("onnxruntime", "fp32")
        folder = Path(tempfile.mkdtemp(prefix="onnx-", dir=workdir))
        copy_onnx(Path(source.spec), folder / ARTIFACT_FILES["onnx"])
        request = LoadRequest(recipe=recipe, artifact=str(folder), signature=signature, settings=settings)
    else:
        recipe = Recipe("torch", "fp32")
        request = LoadModelRequest(source=source, signature=signature, settings=settings)
    products = _counted(name, source, inputs, child, workdir=workdir, report=report)
    return _Contender(request=request, recipe=recipe.name, tuned_per_s=None, products=products)


def _counted(
    name: str,
    source: Source,
    inputs: tuple[str, ...],
    child: Child,
    *,
    workdir: Path,
    report: Callable[[str], None],
) -> tuple[Products, ...]:
    """Return the work of a model, read from an ONNX file or an export made for this; none where it fails."""
    try:
        if source.kind == "onnx":
            request = CountRequest(target="onnx", path=source.spec, samples=inputs)
        else:
            folder = Path(tempfile.mkdtemp(prefix="counted-", dir=workdir))
            export = ExportRequest(source=source, samples=inputs, target="exported", folder=str(folder))
            child.ask(export, Described, timeout_s=TIMEOUT_S)
            path = str(folder / ARTIFACT_FILES["exported"])
            request = CountRequest(target="exported", path=path, samples=inputs)
        return child.ask(request, Counted, timeout_s=TIMEOUT_S).products
    except ChildError as error:
        report(f"the work of {name} cannot be counted: {error}")
        return ()


def _one_at_a_time(one: _Contender, threads: int) -> _Contender:
    """Return the contender with a single instance and a single sample; its threads stay, if it has more."""
    settings = one.request.settings
    wide = settings.threads if settings.instances == 1 else threads
    single = Settings(threads=wide, batch_size=1, knobs=settings.knobs)
    return replace(one, request=msgspec.structs.replace(one.request, settings=single))
