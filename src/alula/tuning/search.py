"""The search: build every recipe, judge its accuracy, measure its settings, confirm the best.

Whatever a recipe does (crash, hang, eat the memory, lie) is an outcome in the journal, and the search
goes on with the rest. Only a baseline that cannot run ends it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from alula.accuracy import Metric, accept, compare
from alula.core import (
    ARTIFACT_FILES,
    Accepted,
    Accuracy,
    Candidate,
    ExportFormat,
    Failed,
    Outcome,
    Ratio,
    Recipe,
    Rejected,
    Settings,
    Signature,
    Throughput,
)
from alula.engines import engine_named
from alula.errors import AccuracyError, EngineError, MeasurementError, ModelError
from alula.export import copy_onnx, largest_difference
from alula.measure import Clock, Round, SystemClock, ratio, stability_warnings, throughput
from alula.quantization import quantizer_for
from alula.sources import Source
from alula.tuning.candidates import settings_grid
from alula.tuning.comparison import Comparison, compare_speeds, measure_round
from alula.tuning.journal import Journal
from alula.tuning.messages import (
    BuildRequest,
    Built,
    Described,
    DescribeRequest,
    ExportRequest,
    Loaded,
    LoadModelRequest,
    LoadRequest,
    Predicted,
    PredictRequest,
)
from alula.tuning.process import Child, ChildError

__all__ = ["Finalist", "SearchPlan", "SearchResult", "search"]

# FP32 recipes compute the same function; engines differ by the order of sums and fast exponentials.
FP32_DIFFERENCE = 1e-3
GOLDEN_SAMPLES = 4
MIN_CHECKED = 200  # validation samples that are checked however slow the baseline is
FINALISTS = 4
FINALISTS_PER_RECIPE = 2

_BASELINE = "baseline"

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """All that a search needs to know.

    Attributes:
        source: the model.
        workdir: empty folder for exports, artifacts, logs and outputs.
        calibration: one `.npy` (n, ...) per model input.
        validation: one `.npy` (n, ...) per model input; never shown to a quantizer.
        targets: of the validation samples, or None without labels.
        metric: decides acceptance.
        max_drop: the largest drop of the metric allowed.
        recipes: what to try, in order.
        threads: thread budget of every candidate.
        saturating: whether INT8 products saturate on this CPU.
        budget_s: once this much time is used up and a recipe is accepted, no other is started.
        memory_limit_bytes: of each child process.
        timeout_s: of each step of each child process.
        round_s: length of one timing round.
        final_rounds: interleaved rounds of the last comparison.
        seed: of the bootstrap and the order of rounds.
    """

    source: Source
    workdir: Path
    calibration: tuple[str, ...]
    validation: tuple[str, ...]
    targets: NDArray[np.generic] | None
    metric: Metric
    max_drop: float
    recipes: tuple[Recipe, ...]
    threads: int
    saturating: bool
    budget_s: float
    memory_limit_bytes: int
    timeout_s: float = 600.0
    round_s: float = 0.6
    final_rounds: int = 9
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A candidate in the last comparison: its speed there, and against the baseline's neighbouring rounds."""

    accepted: Accepted
    throughput: Throughput
    speedup: Ratio


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found.

    Attributes:
        signature: the model's inputs and outputs.
        baseline: the user's model as it is, and its speed in the last comparison.
        finalists: the fastest first; the winner, and the best of other recipes.
        accepted: the best settings of every accepted recipe, the fastest first, as screened.
        artifacts: folder of every recipe that was built.
        golden: `.npy` files of a few real inputs.
        golden_outputs: by recipe name, `.npy` files of the outputs of those inputs.
        baseline_outputs: the baseline's, in the same order.
        validation_samples: how many of the validation samples were compared.
        notes: what was rewritten before export, in words.
        warnings: what disturbed the measurements, in words.
    """

    signature: Signature
    baseline: Candidate
    baseline_throughput: Throughput
    finalists: tuple[Finalist, ...]
    accepted: tuple[Accepted, ...]
    artifacts: dict[str, Path]
    golden: tuple[str, ...]
    golden_outputs: dict[str, tuple[str, ...]]
    baseline_outputs: tuple[str, ...]
    validation_samples: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


Report = Callable[[str], None]


def search(
    plan: SearchPlan,
    *,
    journal: Journal,
    report: Report = lambda text: None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    clock: Clock | None = None,
) -> SearchResult:
    """Return the fastest accepted candidates, confirmed against the baseline in interleaved rounds.

    Args:
        plan: see `SearchPlan`.
        journal: gets every outcome as it is known.
        report: gets one line of text about what is being done.
        on_outcome: gets every outcome too.
        clock: tells when the budget is used up.

    Raises:
        ModelError: the model cannot be loaded or fails on the samples.
        MeasurementError: the baseline cannot be run, even at a second try.
    """
    return _Search(plan, journal, report, on_outcome, clock or SystemClock()).run()


@dataclass
class _Exports:
    """Exports made so far: the folder, or why there is none."""

    folders: dict[ExportFormat, Path] = field(default_factory=dict)
    failures: dict[ExportFormat, tuple[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class _Search:
    def __init__(
        self,
        plan: SearchPlan,
        journal: Journal,
        report: Report,
        on_outcome: Callable[[Outcome], None],
        clock: Clock,
    ) -> None:
        self._plan = plan
        self._journal = journal
        self._report = report
        self._on_outcome = on_outcome
        self._clock = clock
        self._started = clock.monotonic()
        self._exports = _Exports()
        self._artifacts: dict[str, Path] = {}
        self._golden_outputs: dict[str, tuple[str, ...]] = {}
        self._accepted: list[Accepted] = []
        # Set by the first two steps of `run`.
        self._signature = Signature((), ())
        self._golden: tuple[str, ...] = ()
        self._baseline_scores: NDArray[np.generic] = np.empty(0)
        self._n = 0

    def run(self) -> SearchResult:
        self._describe()
        baseline = self._run_baseline()
        for recipe in self._plan.recipes:
            self._try(recipe)
        final = self._confirm(baseline)
        return SearchResult(
            signature=self._signature,
            baseline=baseline,
            baseline_throughput=final.baseline,
            finalists=final.finalists,
            accepted=tuple(sorted(self._accepted, key=lambda accepted: -accepted.throughput.per_s)),
            artifacts=self._artifacts,
            golden=self._golden,
            golden_outputs=self._golden_outputs,
            baseline_outputs=self._golden_outputs[_BASELINE],
            validation_samples=self._n,
            notes=tuple(dict.fromkeys(self._exports.notes)),
            warnings=final.warnings,
        )

    # The model and the baseline. Both are asked twice if their process dies: all else rests on them.

    def _describe(self) -> None:
        self._report("reading the model")
        plan = self._plan

        def ask(child: Child) -> Described:
            return child.ask(
                DescribeRequest(source=plan.source, samples=plan.validation),
                Described,
                timeout_s=plan.timeout_s,
            )

        try:
            self._signature = self._with_second_try("describe", ask).signature
        except ChildError as error:
            raise ModelError(str(error)) from error
        self._golden = self._write_golden()
        if plan.source.kind == "onnx":
            self._exports.folders["onnx"] = self._copy_onnx()

    def _write_golden(self) -> tuple[str, ...]:
        folder = self._plan.workdir / "golden"
        folder.mkdir()
        paths = []
        for index, path in enumerate(self._plan.validation):
            golden = folder / f"input_{index}.npy"
            np.save(golden, np.load(path, mmap_mode="r")[:GOLDEN_SAMPLES])
            paths.append(str(golden))
        return tuple(paths)

    def _copy_onnx(self) -> Path:
        folder = self._plan.workdir / "exports" / "onnx"
        folder.mkdir(parents=True)
        copy_onnx(Path(self._plan.source.spec), folder / ARTIFACT_FILES["onnx"])
        return folder

    def _run_baseline(self) -> Candidate:
        """Measure the user's model as it is, and keep its outputs to judge everything else by."""
        self._report("measuring the baseline")
        plan = self._plan
        grid = [s for s in settings_grid(plan.threads, self._signature) if s.instances == 1]
        onnx = plan.source.kind == "onnx"
        recipe = Recipe("onnxruntime", "fp32") if onnx else Recipe("torch", "fp32")

        def measure(child: Child) -> Candidate:
            speeds: list[float] = []
            for settings in grid:
                self._load_baseline(child, Candidate(recipe, settings))
                speeds.append(self._measure(child).per_s)
            best = grid[int(np.argmax(speeds))]
            # The check of accuracy takes at most a twelfth of the budget for the slowest, the baseline.
            affordable = int(max(speeds) * plan.budget_s / 12)
            total = len(np.load(plan.validation[0], mmap_mode="r"))
            self._n = min(total, max(MIN_CHECKED, affordable))
            self._load_baseline(child, Candidate(recipe, best))
            self._baseline_scores = self._predict(child, _BASELINE)
            return Candidate(recipe, best)

        try:
            return self._with_second_try("baseline", measure)
        except ChildError as error:
            raise MeasurementError(
                f"The baseline ({recipe}, the model as it is) cannot be run: {error} "
                "Without it nothing can be judged."
            ) from error

    def _baseline_request(self, baseline: Candidate) -> LoadRequest | LoadModelRequest:
        if self._plan.source.kind == "onnx":
            return LoadRequest(
                recipe=baseline.recipe,
                artifact=str(self._exports.folders["onnx"]),
                signature=self._signature,
                settings=baseline.settings,
            )
        return LoadModelRequest(
            source=self._plan.source, signature=self._signature, settings=baseline.settings
        )

    def _load_baseline(self, child: Child, baseline: Candidate) -> None:
        child.ask(self._baseline_request(baseline), Loaded, timeout_s=self._plan.timeout_s)

    def _with_second_try(self, name: str, ask: Callable[[Child], Answer]) -> Answer:
        try:
            with self._child(name) as child:
                return ask(child)
        except ChildError as error:
            if not error.died:
                raise
            with self._child(f"{name}-again") as child:
                return ask(child)

    # One recipe.

    def _try(self, recipe: Recipe) -> None:
        started = self._clock.monotonic()
        # A budget that the baseline alone uses up still ends with a result.
        if self._accepted and started - self._started > self._plan.budget_s:
            self._record(
                Rejected(
                    recipe=recipe, reason=f"not tried: the budget of {self._plan.budget_s:.0f} s is used up"
                )
            )
            return
        self._report(f"trying {recipe}")
        name = recipe.name.replace("/", "-")
        try:
            self._build(recipe, self._export(recipe))
            grid = settings_grid(self._plan.threads, self._signature)
            with self._child(name) as child:
                verdict = self._judge(child, recipe, grid[0])
                if isinstance(verdict, Rejected):
                    self._record(verdict)
                    return
                self._measure_grid(child, recipe, verdict, grid)
        except _StepError as error:
            self._record(
                Failed(
                    recipe=recipe,
                    error=str(error),
                    reproduce=error.reproduce,
                    seconds=self._clock.monotonic() - started,
                )
            )

    def _export(self, recipe: Recipe) -> Path:
        target = (
            quantizer_for(recipe).export_format(recipe)
            if recipe.precision == "int8"
            else engine_named(recipe.engine).export_format(recipe)
        )
        exports = self._exports
        if target in exports.failures:
            raise _StepError(*exports.failures[target])
        if target not in exports.folders:
            if self._plan.source.kind == "onnx":
                raise _StepError("It needs a PyTorch module, and the model is an ONNX file.", "")
            self._report(f"exporting to {target}")
            folder = self._plan.workdir / "exports" / target
            folder.mkdir(parents=True)
            requests: list[str] = []

            def ask(child: Child) -> Described:
                requests.append(child.reproduce)
                return child.ask(
                    ExportRequest(
                        source=self._plan.source,
                        samples=self._plan.calibration,
                        target=target,
                        folder=str(folder),
                    ),
                    Described,
                    timeout_s=self._plan.timeout_s,
                )

            try:
                described = self._with_second_try(f"export-{target}", ask)
            except ChildError as error:
                exports.failures[target] = (str(error), requests[-1])
                raise _StepError(str(error), requests[-1]) from error
            exports.folders[target] = folder
            exports.notes += described.notes
        return exports.folders[target]

    def _build(self, recipe: Recipe, export: Path) -> None:
        name = recipe.name.replace("/", "-")
        artifact = self._plan.workdir / "artifacts" / name
        artifact.mkdir(parents=True)
        with self._child(f"build-{name}") as child, _step(child):
            child.ask(
                BuildRequest(
                    recipe=recipe,
                    source=self._plan.source,
                    export=str(export),
                    artifact=str(artifact),
                    calibration=self._plan.calibration,
                    signature=self._signature,
                    saturating=self._plan.saturating,
                ),
                Built,
                timeout_s=self._plan.timeout_s,
            )
        self._artifacts[recipe.name] = artifact

    def _judge(self, child: Child, recipe: Recipe, settings: Settings) -> Accuracy | Rejected:
        """Compare the recipe's outputs on the validation samples with the baseline's."""
        with _step(child):
            self._load(child, Candidate(recipe, settings))
            scores = self._predict(child, recipe.name)
        if recipe.precision == "fp32":
            difference = largest_difference(
                [np.load(path) for path in self._golden_outputs[_BASELINE]],
                [np.load(path) for path in self._golden_outputs[recipe.name]],
            )
            if not difference <= FP32_DIFFERENCE:
                return Rejected(
                    recipe=recipe,
                    reason=f"FP32 outputs differ from the model's by {difference:.2g} of their scale; "
                    f"at most {FP32_DIFFERENCE:g} is rounding",
                )
        try:
            accuracy = compare(
                self._plan.metric,
                targets=None if self._plan.targets is None else self._plan.targets[: self._n],
                baseline=self._baseline_scores,
                candidate=scores,
                max_drop=self._plan.max_drop,
                seed=self._plan.seed,
            )
        except AccuracyError as error:
            return Rejected(recipe=recipe, reason=str(error))
        reason = accept(accuracy)
        return accuracy if reason is None else Rejected(recipe=recipe, reason=reason, accuracy=accuracy)

    def _measure_grid(
        self, child: Child, recipe: Recipe, accuracy: Accuracy, grid: Sequence[Settings]
    ) -> None:
        for settings in grid:
            started = self._clock.monotonic()
            candidate = Candidate(recipe, settings)
            try:
                with _step(child):
                    self._load(child, candidate)
                    measured = self._measure(child)
            except _StepError as error:
                self._record(
                    Failed(recipe=recipe, settings=settings, error=str(error), reproduce=error.reproduce)
                )
                if not child.alive:
                    return  # settings measured so far stand
                continue
            self._record(
                Accepted(
                    candidate=candidate,
                    accuracy=accuracy,
                    throughput=throughput([measured]),
                    seconds=self._clock.monotonic() - started,
                )
            )

    # The last comparison.

    def _confirm(self, baseline: Candidate) -> _Final:
        """Measure the baseline and the best candidates in turn, each in its own living process."""
        plan = self._plan
        self._report("confirming the best in interleaved rounds")
        by_key = {str(accepted.candidate): accepted for accepted in _shortlist(self._accepted)}
        contenders: dict[str, LoadRequest | LoadModelRequest] = {_BASELINE: self._baseline_request(baseline)}
        for key, accepted in by_key.items():
            contenders[key] = self._load_request(accepted.candidate)
        comparison = compare_speeds(
            contenders,
            inputs=plan.validation,
            folder=plan.workdir / "logs",
            threads=plan.threads,
            memory_limit_bytes=plan.memory_limit_bytes,
            rounds=plan.final_rounds,
            round_s=plan.round_s,
            timeout_s=plan.timeout_s,
            seed=plan.seed,
        )
        reference = self._baseline_rounds(comparison, baseline)
        for key, loss in comparison.losses.items():
            if key in by_key:
                candidate = by_key[key].candidate
                self._record(
                    Failed(
                        recipe=candidate.recipe,
                        settings=candidate.settings,
                        error=loss.error,
                        reproduce=loss.reproduce,
                    )
                )
        baseline_per_s = [item.per_s for item in reference]
        finalists = [
            Finalist(
                accepted=by_key[key],
                throughput=throughput(items, warnings=stability_warnings(items, asked=plan.final_rounds)),
                speedup=ratio(
                    [item.per_s for item in items],
                    baseline_per_s,
                    paired=len(items) == len(reference),
                    seed=plan.seed,
                ),
            )
            for key, items in comparison.rounds.items()
            if key != _BASELINE
        ]
        finalists.sort(key=lambda finalist: -finalist.throughput.per_s)
        return _Final(
            baseline=throughput(reference, warnings=stability_warnings(reference, asked=plan.final_rounds)),
            finalists=tuple(finalists),
            warnings=comparison.warnings,
        )

    def _baseline_rounds(self, comparison: Comparison, baseline: Candidate) -> list[Round]:
        """Return the baseline's rounds of the comparison, or of a second try of its own."""
        if _BASELINE in comparison.rounds:
            return comparison.rounds[_BASELINE]
        plan = self._plan

        def measure(child: Child) -> list[Round]:
            self._load_baseline(child, baseline)
            return [self._measure(child) for _ in range(plan.final_rounds)]

        try:
            return self._with_second_try("baseline-last", measure)
        except ChildError as error:
            raise MeasurementError(f"The baseline failed in the last comparison: {error}") from error

    # Steps in a child process.

    def _child(self, name: str) -> Child:
        return Child(
            self._plan.workdir / "logs",
            name,
            threads=self._plan.threads,
            memory_limit_bytes=self._plan.memory_limit_bytes,
        )

    def _load_request(self, candidate: Candidate) -> LoadRequest:
        return LoadRequest(
            recipe=candidate.recipe,
            artifact=str(self._artifacts[candidate.recipe.name]),
            signature=self._signature,
            settings=candidate.settings,
        )

    def _load(self, child: Child, candidate: Candidate) -> None:
        child.ask(self._load_request(candidate), Loaded, timeout_s=self._plan.timeout_s)

    def _predict(self, child: Child, name: str) -> NDArray[np.generic]:
        """Return the first output on the validation samples; write all outputs of the golden inputs."""
        folder = self._plan.workdir / "outputs" / name.replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        scores = folder / "validation.npy"
        golden = tuple(str(folder / f"golden_{i}.npy") for i in range(len(self._signature.outputs)))
        for inputs, outputs, limit in (
            (self._plan.validation, (str(scores),), self._n),
            (self._golden, golden, None),
        ):
            child.ask(
                PredictRequest(inputs=inputs, outputs=outputs, limit=limit),
                Predicted,
                timeout_s=self._plan.timeout_s,
            )
        self._golden_outputs[name] = golden
        loaded: NDArray[np.generic] = np.load(scores)
        return loaded

    def _measure(self, child: Child) -> Round:
        plan = self._plan
        return measure_round(child, plan.validation, plan.round_s, timeout_s=plan.timeout_s)[0]

    def _record(self, outcome: Outcome) -> None:
        self._journal.append(outcome)
        if isinstance(outcome, Accepted):
            self._accepted.append(outcome)
        self._on_outcome(outcome)


@dataclass(frozen=True)
class _Final:
    baseline: Throughput
    finalists: tuple[Finalist, ...]
    warnings: tuple[str, ...]


class _StepError(EngineError):
    """A step of a recipe failed: one readable line, and the command that repeats it."""

    def __init__(self, message: str, reproduce: str) -> None:
        super().__init__(message)
        self.reproduce = reproduce


@contextlib.contextmanager
def _step(child: Child) -> Iterator[None]:
    try:
        yield
    except ChildError as error:
        raise _StepError(str(error), child.reproduce) from error


def _shortlist(accepted: Sequence[Accepted]) -> list[Accepted]:
    """Return the fastest candidates, at most two of one recipe."""
    chosen: list[Accepted] = []
    for candidate in sorted(accepted, key=lambda item: -item.throughput.per_s):
        same = sum(item.candidate.recipe == candidate.candidate.recipe for item in chosen)
        if same < FINALISTS_PER_RECIPE and len(chosen) < FINALISTS:
            chosen.append(candidate)
    return chosen
