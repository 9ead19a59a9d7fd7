"""From a trained model and a sample of data to a bundle."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from alula._version import __version__
from alula.accuracy import default_metric, metric_named
from alula.bundle import (
    Activation,
    Baseline,
    Deployed,
    FinalRounds,
    FolderRun,
    Manifest,
    Measurements,
    RaceRounds,
    check_target,
    read_manifest,
    rewrite_manifest,
    start,
    write_bundle,
)
from alula.core import Accepted, Failed, InputDescription, Outcome, Precision, Roofline, Scenario
from alula.data import Samples, Split, open_samples, split
from alula.engines import engine_named
from alula.errors import AccuracyError, DataError, DiskFullError, UsageError, plain_text
from alula.features import make_features, read_description
from alula.hardware import fingerprint, int8_class, read_memory, thread_budget
from alula.sources import Source, parse_source
from alula.tuning import (
    ROUNDED,
    Journal,
    SearchPlan,
    SearchResult,
    offered_recipes,
    read_journal,
    read_note,
    search,
    startable_recipes,
    write_note,
)
from alula.workflows.durations import parse_duration_s
from alula.workflows.peaks import doubts, roofline_here, time_for_peaks_s
from alula.workflows.prediction import run_over_files
from alula.workflows.running import Bundle
from alula.workflows.samples import Materialized, default_description, materialize
from alula.workflows.search_folder import search_folder, search_key

__all__ = ["optimize"]

MAX_BYTES_PER_SPLIT = 2 * 2**30  # of model inputs on disk
SHARED_MEMORY_SHARE = 0.8  # of the available memory, for one child process
FOLDER_SECONDS = 8.0
WRITING_S = 2.0  # the bundle, and loading it
# Shares of the budget after which no more samples are read, however many there are.
CALIBRATION_SHARE, PREPARING_SHARE = 0.07, 0.2
LEAST_PREPARED = 50  # model inputs of each part, whatever the time
_DISTRIBUTIONS = (
    "torch",
    "torchao",
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "numpy",
    "soundfile",
    "soxr",
    "pillow",
)

Report = Callable[[str], None]


def optimize(
    model: Any,
    data: Any,
    *,
    output: str | Path,
    weights: str | Path | None = None,
    input: str | Path | InputDescription | None = None,  # noqa: A002 - the name of the option
    labels: Sequence[str] | None = None,
    metric: str | None = None,
    max_drop: float = 0.005,
    scenario: Scenario = "offline",
    latency_limit: str | float | None = None,
    budget: str | float = "10m",
    engines: Sequence[str] | None = None,
    precisions: Sequence[Precision] | None = None,
    threads: int | None = None,
    calibration: int = 300,
    max_validation: int = 10_000,
    activation: Activation = "none",
    seed: int = 0,
    replace: bool = False,
    keep: str | Path | None = None,
    fresh: bool = False,
    report: Report = lambda text: None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> Bundle:
    """Find the fastest way to run a model on this CPU within an accuracy limit, and write it as a bundle.

    The data are split once into calibration samples, which quantizers see, and validation samples,
    which decide acceptance. Every recipe is built, judged and timed in child processes; whatever goes
    wrong with one is recorded in the bundle's `search.jsonl`, and the search goes on.

    Args:
        model: an `nn.Module`; or `file.py:factory`, `package.module:factory`, `timm:NAME?option=value`,
            `torchvision:NAME`, a `.onnx`, `.pt2` or TorchScript file.
        data: a folder of class folders, a CSV or Parquet manifest, `.npz`, a torch `Dataset` or
            `DataLoader`, or a sequence of arrays or `(x, y)` pairs.
        output: the bundle folder to make, `NAME.alula`.
        weights: `.safetensors`, `.pth`, `.pt` or `.th` with a state dict.
        input: an input description, a preset's name, or a TOML file; needed for audio and images.
        labels: class names in the order of the model's outputs; taken from the data if they have names.
        metric: `top1`, `balanced_accuracy`, `macro_auc`, `padded_cmap`, `mse`, `agreement`, `cosine`, or
            `file.py:function` called with (y_true, y_pred); None chooses by the targets.
        max_drop: the largest drop of the metric allowed, on its own scale (0.005 of `top1` is half a
            percentage point).
        scenario: `offline` (samples per second), `single-stream` (latency of one sample after the other) or
            `server` (the rate of random arrivals whose p99 latency stays under `latency_limit`).
        latency_limit: such as `50ms`, or seconds as a number; for the server scenario.
        budget: time for everything, from reading the data to the written bundle, such as `10m`, `90s`, or
            seconds as a number; kept once a first recipe is accepted.
        engines: only these.
        precisions: only these.
        threads: thread budget; None takes min(affinity, CPU quota).
        calibration: samples for quantizers.
        max_validation: at most so many validation samples.
        activation: what `predict` applies to the model's first output.
        seed: of the split and of the bootstrap.
        replace: whether a bundle at `output` may be replaced.
        keep: a new folder for exports, artifacts, logs and the requests that repeat a failure; None
            removes them when the search is over. An interrupted search leaves them (in
            `NAME.alula.search` without `keep`), and the same call continues it.
        fresh: start over rather than continue an interrupted search.
        report: gets lines of text about what is being done.
        on_outcome: gets every outcome of the search as it is known.

    Returns:
        The bundle, loaded.

    Raises:
        UsageError: an option is wrong.
        ModelError: the model cannot be loaded or run.
        DataError: the data cannot be used.
        AccuracyError: no recipe could be exported and accepted.
        BundleError: the bundle cannot be written.
        DiskFullError: there is no space left; the same call goes on where this one stopped.
    """
    latency_limit_s = _latency_limit_s(scenario, latency_limit)
    if not max_drop >= 0:
        raise UsageError(f"The largest drop allowed is {max_drop}; expected 0 or more.")
    target = Path(output)
    check_target(target, replace=replace)
    started_s = time.monotonic()
    budget_s = parse_duration_s(budget)
    budget_threads = thread_budget(threads)
    machine = msgspec.structs.replace(fingerprint(), thread_budget=budget_threads)
    recipes = offered_recipes(
        machine.isa,
        engines=None if engines is None else tuple(engines),
        precisions=None if precisions is None else tuple(precisions),
    )
    report("reading the data")
    samples = open_samples(data, labels=labels)
    description = _description(input, samples)
    parts = split(samples, calibration=calibration, max_validation=max_validation, seed=seed)
    chosen_metric = metric_named(metric or default_metric(samples.targets))
    with search_folder(target, None if keep is None else Path(keep)) as place:
        workdir = place.path
        source = parse_source(model, weights=weights, workdir=workdir)
        recipes = startable_recipes(recipes, source)
        key = search_key(
            source,
            samples,
            description=description,
            metric=chosen_metric.name,
            max_drop=max_drop,
            recipes=tuple(recipe.name for recipe in recipes),
            threads=budget_threads,
            scenario=scenario,
            latency_limit_s=latency_limit_s,
            split=(parts.calibration, parts.validation),
            seed=seed,
            isa=machine.isa,
            cpu=(machine.model_name, machine.physical_cores, machine.logical_cores),
            versions=_versions(),
        )
        if place.claim(key, fresh=fresh):
            report("continuing the earlier search of this command")
        elif not isinstance(model, str | Path):  # its file went with all that was in the folder
            source = parse_source(model, weights=weights, workdir=workdir)
        prepared = _prepared(samples, parts, description, workdir, budget_threads, budget_s, report)
        stages_s = {"data": time.monotonic() - started_s}
        roofline = _peaks(budget_s, budget_threads, workdir, report)
        stages_s["peaks of the machine"] = time.monotonic() - started_s - stages_s["data"]
        names = _names(samples.labels if labels is None else labels)
        plan = SearchPlan(
            source=source,
            workdir=workdir,
            calibration=prepared.calibration.paths,
            validation=prepared.validation.paths,
            targets=None if samples.targets is None else samples.targets[list(prepared.validation.rows)],
            metric=chosen_metric,
            max_drop=max_drop,
            recipes=recipes,
            threads=budget_threads,
            saturating=int8_class(machine.isa) == "saturating",
            budget_s=budget_s - (time.monotonic() - started_s),
            scenario=scenario,
            latency_limit_s=latency_limit_s,
            labels=names,
            closing_s=WRITING_S + (0.0 if samples.kind == "array" else 2 * FOLDER_SECONDS),
            memory_limit_bytes=int(read_memory().available_bytes * SHARED_MEMORY_SHARE) or 2**62,
            seed=seed,
        )
        journal = Journal(workdir / "search.jsonl")
        result = search(plan, journal=journal, report=report, on_outcome=on_outcome)
        if not result.finalists:
            raise AccuracyError(
                "No recipe that can be made here is inside the accuracy limit and still ran at the end, so "
                "there is nothing to put into a bundle. " + _failures(journal.path)
            )
        report("writing the bundle")
        measurements = _measurements(result, scenario, stages_s, roofline)
        chosen, fallbacks, artifacts = _deployments(result, measurements)
        baseline_share = measurements.of_peak(result.baseline.recipe, result.baseline_throughput.per_s)
        shares = [("the model as it is", baseline_share)]
        shares += [(one.recipe, one.of_peak) for one in (chosen, *fallbacks) if one.of_peak is not None]
        winner = result.finalists[0]
        manifest = Manifest(
            schema_version=1,
            alula_version=__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            model=_model_name(source),
            signature=result.signature,
            input=description,
            labels=_labels(names, result),
            activation=activation,
            chosen=chosen,
            fallbacks=fallbacks,
            baseline=Baseline(
                recipe=result.baseline.recipe.name,
                settings=result.baseline.settings,
                throughput_per_s=result.baseline_throughput.per_s,
                rounds_per_s=result.baseline_throughput.rounds_per_s,
                of_peak=baseline_share,
            ),
            speedup=winner.speedup,
            accuracy=winner.accepted.accuracy,
            folder=None,
            calibration=prepared.calibration.read,
            validation=prepared.validation.read,
            data=plain_text(samples.source),
            seed=seed,
            machine=machine,
            versions=_versions(),
            notes=result.notes,
            warnings=(*_warnings(result, winner.accepted, prepared, scenario), *doubts(shares)),
            golden_inputs=tuple(f"input_{index}" for index in range(len(result.golden))),
            files={},
        )
        write_bundle(
            target,
            manifest,
            artifacts=artifacts,
            golden=_golden(result, manifest),
            journal=journal.path,
            measurements=measurements,
            replace=replace,
        )
    bundle = _reopen(target, budget_threads)
    model_s = len(prepared.validation.rows) / prepared.validation.samples / winner.throughput.per_s
    try:
        return _with_folder_run(bundle, samples, parts, 1 / (prepared.per_file_s + model_s), report)
    except KeyboardInterrupt:
        report("interrupted: the bundle is whole, but for the speed of the folder run")
        return bundle


def _latency_limit_s(scenario: Scenario, limit: str | float | None) -> float | None:
    if scenario not in get_args(Scenario):
        raise UsageError(f"The scenario is `{scenario}`; expected {', '.join(get_args(Scenario))}.")
    if (scenario == "server") != (limit is not None):
        raise UsageError("A latency limit belongs to the scenario `server`, and to no other.")
    return None if limit is None else parse_duration_s(limit)


def _peaks(budget_s: float, threads: int, workdir: Path, report: Report) -> Roofline | None:
    limit_s = time_for_peaks_s(budget_s)
    roofline = roofline_here(threads=threads, limit_s=limit_s, also=workdir, report=report)
    if roofline is None and not limit_s:
        report("the budget is too short to measure the machine's peaks; no shares of them will be known")
    return roofline


def _description(given: str | Path | InputDescription | None, samples: Samples) -> InputDescription:
    if given is None:
        return default_description(samples)
    return read_description(given) if isinstance(given, str | Path) else given


class _Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """The samples as model inputs on disk; a note of the search, so that one that goes on has the same."""

    calibration: Materialized
    validation: Materialized
    per_file_s: float  # that reading it took


def _prepared(
    samples: Samples,
    parts: Split,
    description: InputDescription,
    workdir: Path,
    threads: int,
    budget_s: float,
    report: Report,
) -> _Prepared:
    """Return as many of the samples as there is time for; any first part of either is a fair one."""
    note = workdir / "prepared.json"
    known = read_note(note, _Prepared)
    if known is not None:
        return known
    started_s, max_rows = time.monotonic(), _max_rows(samples, description)
    made = {}
    for name, indices, share in (
        ("calibration", parts.calibration, CALIBRATION_SHARE),
        ("validation", parts.validation, PREPARING_SHARE),
    ):
        report(f"preparing {len(indices)} {name} samples")
        made[name] = materialize(
            samples,
            indices,
            description=description,
            folder=workdir,
            name=name,
            threads=threads,
            max_rows=max_rows,
            until_s=started_s + share * budget_s,
            least_rows=LEAST_PREPARED,
        )
        if made[name].samples < len(indices) and len(made[name].rows) < max_rows:
            report(
                f"the budget leaves time to read {made[name].samples} of the {len(indices)} {name} samples"
            )
    taken_s = time.monotonic() - started_s
    for name, part in made.items():
        if len(part.rows) < 2:
            raise DataError(
                samples.source,
                f"It gives {len(part.rows)} {name} sample; expected at least 2. Give more data.",
            )
    prepared = _Prepared(
        calibration=made["calibration"],
        validation=made["validation"],
        per_file_s=taken_s / sum(part.samples for part in made.values()),
    )
    write_note(note, prepared)
    return prepared


def _max_rows(samples: Samples, description: InputDescription) -> int:
    shape = make_features(description).sample_shape
    if shape is None and samples.kind == "array":
        size = sum(array.nbytes for array in samples.array(0))
    else:
        size = int(np.prod(shape or (1,))) * 4
    return max(64, MAX_BYTES_PER_SPLIT // max(1, size))


def _deployments(
    result: SearchResult, measurements: Measurements
) -> tuple[Deployed, tuple[Deployed, ...], dict[str, Path]]:
    """Return the chosen recipe, its fallbacks, and the artifact folders to copy."""
    winner = result.finalists[0]
    chosen = _deployed(winner.accepted, result, measurements, rounds=winner.throughput.rounds_per_s)
    fallbacks: list[Deployed] = []
    # One portable FP32 recipe of another kind; and one that needs no code, if the chosen one is code.
    for accepted in result.accepted:
        recipe = accepted.candidate.recipe
        engine = engine_named(recipe.engine)
        # The golden samples tell that FP32 arithmetic is right. Of rounded weights they do not.
        is_fp32 = recipe.precision == "fp32" and recipe.variant not in ROUNDED
        if is_fp32 and not engine.runs_code and recipe.name != chosen.recipe:
            rounds = accepted.throughput.rounds_per_s
            fallbacks.append(_deployed(accepted, result, measurements, rounds=rounds))
            break
    artifacts = {item.artifact: result.artifacts[item.recipe] for item in (chosen, *fallbacks)}
    return chosen, tuple(fallbacks), artifacts


def _deployed(
    accepted: Accepted, result: SearchResult, measurements: Measurements, *, rounds: tuple[float, ...]
) -> Deployed:
    recipe = accepted.candidate.recipe
    per_s = float(np.median(rounds))
    safe = recipe.name.replace("/", "-")
    return Deployed(
        recipe=recipe.name,
        artifact=f"artifacts/{safe}",
        settings=accepted.candidate.settings,
        throughput_per_s=per_s,
        rounds_per_s=rounds,
        runs_code=engine_named(recipe.engine).runs_code,
        golden=tuple(f"{safe}_{index}" for index in range(len(result.golden_outputs[recipe.name]))),
        of_peak=measurements.of_peak(recipe, per_s),
    )


def _golden(result: SearchResult, manifest: Manifest) -> dict[str, NDArray[Any]]:
    arrays = {name: np.load(path) for name, path in zip(manifest.golden_inputs, result.golden, strict=True)}
    arrays |= {f"baseline_{index}": np.load(path) for index, path in enumerate(result.baseline_outputs)}
    for deployed in (manifest.chosen, *manifest.fallbacks):
        paths = result.golden_outputs[deployed.recipe]
        arrays |= {name: np.load(path) for name, path in zip(deployed.golden, paths, strict=True)}
    return arrays


def _measurements(
    result: SearchResult, scenario: Scenario, stages_s: dict[str, float], roofline: Roofline | None
) -> Measurements:
    return Measurements(
        scenario=scenario,
        finalists=tuple(
            FinalRounds(
                candidate=one.accepted.candidate,
                throughput=one.throughput,
                speedup=one.speedup,
                rate_per_s=None if one.server is None else one.server.per_s,
            )
            for one in result.finalists
        ),
        race=tuple(RaceRounds(candidate=one, rounds_per_s=rates) for one, rates in result.race.items()),
        disturbance=result.disturbance,
        latency=result.latency,
        server=result.server,
        stages_s={**stages_s, **result.stages_s},
        roofline=roofline,
        products=result.products,
    )


def _warnings(
    result: SearchResult, accepted: Accepted, prepared: _Prepared, scenario: Scenario
) -> tuple[str, ...]:
    found = [*result.warnings, *accepted.accuracy.warnings, *result.finalists[0].throughput.warnings]
    if result.disturbed:
        found.insert(
            0,
            "the speed-up is not to be trusted: the machine was disturbed during the last comparison, and "
            "the model as it is loses far more to other work than engines do; measure again with "
            "`alula bench` when nothing else runs",
        )
    speedup = result.finalists[0].speedup
    if not speedup.certain:
        found.append("no difference in speed to the baseline could be shown")
    elif speedup.median < 1:
        found.append("slower than the baseline: allow more engines, or run the model as it is")
    if result.server is not None:
        found += result.server.warnings
    elif scenario == "server":
        found.append(f"the highest rate is not known: {result.unmeasured}")
    if scenario == "single-stream" and result.latency is None:
        found.append(f"the latency is not known: {result.unmeasured}")
    problems = [*prepared.calibration.problems, *prepared.validation.problems]
    if problems:
        found.append(f"of the data, {len(problems)} could not be read, for example: {problems[0]}")
    return tuple(found)


def _versions() -> dict[str, str]:
    found = {"alula": __version__}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _names(labels: Sequence[str] | None) -> tuple[str, ...] | None:
    # Of folders: their names need not be UTF-8.
    return None if labels is None else tuple(map(plain_text, labels))


def _labels(names: tuple[str, ...] | None, result: SearchResult) -> tuple[str, ...] | None:
    """Return the names of the columns of scores: one score of two classes is that of the second."""
    one = math.prod(np.load(result.baseline_outputs[0]).shape[1:]) == 1
    return names[1:] if names is not None and len(names) == 2 and one else names


def _model_name(source: Source) -> str:
    return "an nn.Module from Python" if source.kind == "module" else source.spec


def _failures(journal: Path) -> str:
    lines = []
    for outcome in read_journal(journal):
        if not isinstance(outcome, Accepted):
            reason = outcome.error if isinstance(outcome, Failed) else outcome.reason
            lines.append(f"{outcome.recipe}: {reason}")
    return " ".join(lines)


def _reopen(target: Path, threads: int) -> Bundle:
    # The files were written by this call: there is nothing to verify, and their code is the user's own.
    manifest = read_manifest(target)
    running = start(target, manifest, trust_code=True, threads=threads)
    return Bundle(target, manifest, running, threads=threads)


def _with_folder_run(
    bundle: Bundle, samples: Samples, parts: Split, files_per_s: float, report: Report
) -> Bundle:
    """Measure the folder run on the data's own files, as `predict` will do it, and note it in the bundle.

    Args:
        bundle: as written.
        samples: the data.
        parts: which of them are for validation.
        files_per_s: about how many files a second can be read and run.
        report: gets lines of text about what is being done.
    """
    if samples.kind == "array" or len(bundle.manifest.signature.inputs) > 1:
        return bundle
    report("measuring the folder run")
    files = [samples.items[index].path for index in parts.validation]
    distinct = list(dict.fromkeys(path for path in files if path is not None))
    distinct = distinct[: max(1, int(FOLDER_SECONDS * files_per_s))]
    # One pass warms caches and threads and tells how many files fill the time; the second one counts.
    first = run_over_files(bundle, distinct, emit=_ignore, fail=_ignore_failure)
    if not first.samples:
        return bundle
    count = max(len(distinct), int(len(distinct) * FOLDER_SECONDS / first.wall_s))
    repeated = (distinct * (count // len(distinct) + 1))[:count]
    job = run_over_files(bundle, repeated, emit=_ignore, fail=_ignore_failure)
    folder = FolderRun(samples_per_s=job.samples_per_s, samples=job.samples, files=job.tasks_done)
    manifest = msgspec.structs.replace(bundle.manifest, folder=folder)
    try:
        rewrite_manifest(bundle.path, manifest)
        bundle.manifest = read_manifest(bundle.path)
    except DiskFullError:
        # The bundle is whole, and nothing in it depends on this figure.
        report("the disk is full: the speed of the folder run could not be noted in the bundle")
        bundle.manifest = manifest
    return bundle


def _ignore(path: Path, keys: object, outputs: object) -> None:
    pass


def _ignore_failure(path: Path, error: object) -> None:
    pass
