"""The search: the baseline, every recipe by the strategy, and a last comparison in interleaved rounds.

Whatever a recipe does (crash, hang, eat the memory, lie) is an outcome in the journal, and the search
goes on with the rest. Only a baseline that cannot run ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from alula.accuracy import Metric
from alula.core import (
    Accepted,
    Candidate,
    Failed,
    Outcome,
    Ratio,
    Recipe,
    Scenario,
    Signature,
    Throughput,
)
from alula.errors import MeasurementError
from alula.graphs import Products
from alula.measure import (
    Clock,
    Latency,
    Round,
    ServerRate,
    SystemClock,
    ratio,
    stability_warnings,
    throughput,
)
from alula.sources import Source
from alula.tuning.candidates import settings_grid
from alula.tuning.comparison import (
    Comparison,
    compare_speeds,
    measure_latency,
    measure_round,
    measure_server,
)
from alula.tuning.field import ProcessField, Reference, predict
from alula.tuning.journal import Journal
from alula.tuning.messages import Loaded, LoadModelRequest, LoadRequest
from alula.tuning.process import Child, ChildError
from alula.tuning.strategy import Effort, Strategy
from alula.tuning.workshop import Workshop, read_note, write_note

__all__ = ["Finalist", "SearchPlan", "SearchResult", "search"]

GOLDEN_SAMPLES = 4
MIN_CHECKED = 200  # validation samples that are checked however slow the baseline is
FINALISTS = 3
LEAST_STEP_S = 30.0  # what a step may take even when the budget is used up
INTERRUPTED_ROUNDS = 6
# Loading and warming up a contender of the last comparison.
LOADING_S = 3.0

_BASELINE = "baseline"

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """All that a search needs to know.

    Attributes:
        source: the model.
        workdir: folder for exports, artifacts, logs and outputs; empty, or left by an interrupted search
            of the same model, data and options, which is then continued.
        calibration: one `.npy` (n, ...) per model input.
        validation: one `.npy` (n, ...) per model input; never shown to a quantizer.
        targets: of the validation samples, or None without labels.
        metric: decides acceptance.
        max_drop: the largest drop of the metric allowed.
        recipes: what to try, in order.
        threads: thread budget of every candidate.
        scenario: what is to be fast.
        latency_limit_s: of p99 in the server scenario, None in others.
        saturating: whether INT8 products saturate on this CPU.
        budget_s: time for the whole search, the last comparison included. Kept once a recipe is accepted.
        closing_s: part of the budget that the caller needs after the search.
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
    closing_s: float
    memory_limit_bytes: int
    timeout_s: float = 600.0
    round_s: float = 0.6
    final_rounds: int = 9
    seed: int = 0
    scenario: Scenario = "offline"
    latency_limit_s: float | None = None


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
        stages_s: wall seconds of the parts of the search, by their names, in order.
        latency: of the winner, in the single-stream scenario.
        server: of the winner, in the server scenario.
        notes: what was rewritten before export, in words.
        warnings: what disturbed the measurements, in words.
        products: the work of one sample by kind and role of layers; none where it could not be counted.
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
    stages_s: dict[str, float]
    latency: Latency | None
    server: ServerRate | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    products: tuple[Products, ...] = ()


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
        self._deadline_s = clock.monotonic() + plan.budget_s - plan.closing_s
        self._any_accepted = False
        self._lap_start_s = clock.monotonic()
        self._workshop = Workshop(
            plan.source,
            plan.workdir,
            calibration=plan.calibration,
            validation=plan.validation,
            threads=plan.threads,
            saturating=plan.saturating,
            memory_limit_bytes=plan.memory_limit_bytes,
            timeout_s=self._timeout_s,
            report=report,
        )

    def run(self) -> SearchResult:
        plan = self._plan
        reference = self._reference()
        field = ProcessField(
            self._workshop,
            reference=reference,
            validation=plan.validation,
            targets=plan.targets,
            metric=plan.metric,
            max_drop=plan.max_drop,
            threads=plan.threads,
            scenario=plan.scenario,
            latency_limit_s=plan.latency_limit_s,
            seed=plan.seed,
            timeout_s=self._timeout_s,
            record=self._record,
            earlier=self._journal.earlier,
            report=self._report,
            clock=self._clock,
        )
        stages_s = {"model and baseline": self._lap_s()}
        with field:
            chosen, rounds = self._chosen(field)
            field.close()  # nothing may run beside the last comparison
            products = self._workshop.products()
            stages_s["building, checking and timing recipes"] = self._lap_s()
            final = self._confirm(reference.candidate, [field.accepted(one) for one in chosen], rounds)
            accepted = field.best_of_each_recipe()
            stages_s["last comparison"] = self._lap_s()
            golden_outputs = {recipe.name: paths for recipe, paths in field.golden_outputs.items()}
        return SearchResult(
            signature=self._workshop.signature,
            baseline=reference.candidate,
            baseline_throughput=final.baseline,
            finalists=final.finalists,
            accepted=accepted,
            artifacts={
                one.candidate.recipe.name: self._workshop.artifact(one.candidate.recipe) for one in accepted
            },
            golden=reference.golden,
            golden_outputs=golden_outputs,
            baseline_outputs=reference.golden_outputs,
            validation_samples=reference.n,
            stages_s=stages_s,
            latency=self._latency(final) if plan.scenario == "single-stream" else None,
            server=self._server(final) if plan.scenario == "server" else None,
            notes=tuple(dict.fromkeys(self._workshop.notes)),
            warnings=final.warnings,
            products=products,
        )

    def _lap_s(self) -> float:
        """Return the seconds since the last call, or since the start."""
        before_s, self._lap_start_s = self._lap_start_s, self._clock.monotonic()
        return self._lap_start_s - before_s

    def _chosen(self, field: ProcessField) -> tuple[list[Candidate], int]:
        """Return the candidates of the last comparison and its number of rounds.

        An interrupt ends the search early, with the best that was found until then; a second one ends
        it for good.
        """
        plan = self._plan
        effort = Effort(round_s=plan.round_s, look_s=min(Effort.look_s, plan.round_s))
        strategy = Strategy(field, clock=self._clock, effort=effort)
        last_s = (FINALISTS + 1) * (plan.final_rounds * plan.round_s + LOADING_S)
        try:
            standings = strategy.run(plan.recipes, deadline_s=self._deadline_s - last_s)
            return [one.candidate for one in standings[:FINALISTS]], plan.final_rounds
        except KeyboardInterrupt:
            if not strategy.best_so_far():
                raise
            self._report("interrupted: finishing with the best found so far; interrupt again to stop at once")
            # A child that was interrupted in the middle of an answer cannot be asked again.
            field.close()
            for candidate in strategy.best_so_far():
                if field.accept(candidate):
                    return [candidate], min(INTERRUPTED_ROUNDS, plan.final_rounds)
            raise

    def _timeout_s(self) -> float:
        """Return what a step may take: the rest of the budget, once there is something to fall back on."""
        if not self._any_accepted:
            return self._plan.timeout_s
        left_s = self._deadline_s - self._clock.monotonic()
        return min(self._plan.timeout_s, max(LEAST_STEP_S, left_s))

    # The baseline is asked twice if its process dies: all else rests on it.

    def _reference(self) -> Reference:
        """Measure the user's model as it is, and keep its outputs to judge everything else by."""
        plan, signature = self._plan, self._workshop.signature
        note = plan.workdir / "reference.json"
        known = read_note(note, Reference)
        if known is not None:
            return known
        self._report("measuring the baseline")
        golden = self._write_golden()
        grid = settings_grid(plan.threads, signature, scenario=plan.scenario)
        grid = tuple(one for one in grid if one.instances == 1)
        recipe = Recipe("onnxruntime" if plan.source.kind == "onnx" else "torch", "fp32")

        def measure(child: Child) -> Reference:
            speeds: list[float] = []
            for settings in grid:
                self._load_baseline(child, Candidate(recipe, settings))
                speeds.append(self._measure(child).per_s)
            best = Candidate(recipe, grid[int(np.argmax(speeds))])
            # The check of accuracy takes at most a twelfth of the budget for the slowest, the baseline.
            affordable = int(max(speeds) * plan.budget_s / 12)
            total = len(np.load(plan.validation[0], mmap_mode="r"))
            n = min(total, max(MIN_CHECKED, affordable))
            self._load_baseline(child, best)
            scores, outputs = predict(
                child,
                plan.workdir / "outputs" / _BASELINE,
                signature=signature,
                validation=plan.validation,
                golden=golden,
                n=n,
                timeout_s=self._timeout_s,
            )
            return Reference(
                candidate=best,
                per_s=max(speeds),
                n=n,
                scores=scores,
                golden=golden,
                golden_outputs=outputs,
            )

        try:
            reference = self._workshop.with_second_try("baseline", measure)
        except ChildError as error:
            raise MeasurementError(
                f"The baseline ({recipe}, the model as it is) cannot be run: {error} "
                "Without it nothing can be judged."
            ) from error
        write_note(note, reference)
        return reference

    def _write_golden(self) -> tuple[str, ...]:
        folder = self._plan.workdir / "golden"
        folder.mkdir(exist_ok=True)
        paths = []
        for index, path in enumerate(self._plan.validation):
            golden = folder / f"input_{index}.npy"
            np.save(golden, np.load(path, mmap_mode="r")[:GOLDEN_SAMPLES])
            paths.append(str(golden))
        return tuple(paths)

    def _baseline_request(self, baseline: Candidate) -> LoadRequest | LoadModelRequest:
        if self._plan.source.kind == "onnx":
            return LoadRequest(
                recipe=baseline.recipe,
                artifact=str(self._workshop.export("onnx")),
                signature=self._workshop.signature,
                settings=baseline.settings,
            )
        return LoadModelRequest(
            source=self._plan.source, signature=self._workshop.signature, settings=baseline.settings
        )

    def _load_baseline(self, child: Child, baseline: Candidate) -> None:
        child.ask(self._baseline_request(baseline), Loaded, timeout_s=self._plan.timeout_s)

    def _measure(self, child: Child) -> Round:
        plan = self._plan
        return measure_round(child, plan.validation, plan.round_s, timeout_s=plan.timeout_s)[0]

    # The last comparison.

    def _confirm(self, baseline: Candidate, chosen: Sequence[Accepted], rounds: int) -> _Final:
        """Measure the baseline and the best candidates in turn, each in its own living process."""
        plan = self._plan
        self._report("confirming the best in interleaved rounds")
        by_key = {str(accepted.candidate): accepted for accepted in chosen}
        contenders: dict[str, LoadRequest | LoadModelRequest] = {_BASELINE: self._baseline_request(baseline)}
        for key, accepted in by_key.items():
            contenders[key] = self._load_request(accepted.candidate)
        comparison = compare_speeds(
            contenders,
            inputs=plan.validation,
            folder=plan.workdir / "logs",
            threads=plan.threads,
            memory_limit_bytes=plan.memory_limit_bytes,
            rounds=rounds,
            round_s=plan.round_s,
            timeout_s=plan.timeout_s,
            seed=plan.seed,
        )
        reference = self._baseline_rounds(comparison, baseline, rounds)
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
                throughput=throughput(items, warnings=stability_warnings(items, asked=rounds)),
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
            baseline=throughput(reference, warnings=stability_warnings(reference, asked=rounds)),
            finalists=tuple(finalists),
            warnings=comparison.warnings,
        )

    def _baseline_rounds(self, comparison: Comparison, baseline: Candidate, rounds: int) -> list[Round]:
        """Return the baseline's rounds of the comparison, or of a second try of its own."""
        if _BASELINE in comparison.rounds:
            return comparison.rounds[_BASELINE]

        def measure(child: Child) -> list[Round]:
            self._load_baseline(child, baseline)
            return [self._measure(child) for _ in range(rounds)]

        try:
            return self._workshop.with_second_try("baseline-last", measure)
        except ChildError as error:
            raise MeasurementError(f"The baseline failed in the last comparison: {error}") from error

    def _load_request(self, candidate: Candidate) -> LoadRequest:
        return LoadRequest(
            recipe=candidate.recipe,
            artifact=str(self._workshop.artifact(candidate.recipe)),
            signature=self._workshop.signature,
            settings=candidate.settings,
        )

    # The scenarios whose figure is no throughput, on the winner alone.

    def _with_winner(self, final: _Final, ask: Callable[[Child], Answer]) -> Answer | None:
        if not final.finalists:
            return None
        request = self._load_request(final.finalists[0].accepted.candidate)

        def loaded(child: Child) -> Answer:
            child.ask(request, Loaded, timeout_s=self._plan.timeout_s)
            return ask(child)

        try:
            return self._workshop.with_second_try("scenario", loaded)
        except ChildError as error:
            raise MeasurementError(
                f"The winner failed in the {self._plan.scenario} scenario: {error}"
            ) from error

    def _latency(self, final: _Final) -> Latency | None:
        plan = self._plan
        self._report("measuring the latency of single samples")
        return self._with_winner(
            final, lambda child: measure_latency(child, plan.validation, timeout_s=plan.timeout_s)
        )

    def _server(self, final: _Final) -> ServerRate | None:
        plan, limit_s = self._plan, self._plan.latency_limit_s
        assert limit_s is not None
        self._report(f"looking for the highest rate with p99 under {1e3 * limit_s:.3g} ms")

        def ask(child: Child) -> ServerRate:
            return measure_server(
                child,
                plan.validation,
                limit_s=limit_s,
                offline_per_s=final.finalists[0].throughput.per_s,
                timeout_s=plan.timeout_s,
                seed=plan.seed,
            )

        return self._with_winner(final, ask)

    def _record(self, outcome: Outcome) -> None:
        self._journal.append(outcome)
        self._any_accepted = self._any_accepted or isinstance(outcome, Accepted)
        self._on_outcome(outcome)


@dataclass(frozen=True)
class _Final:
    baseline: Throughput
    finalists: tuple[Finalist, ...]
    warnings: tuple[str, ...]
