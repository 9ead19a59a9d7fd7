"""The search: the baseline, every recipe by the strategy, and a last comparison in interleaved rounds.

Whatever a recipe does (crash, hang, eat the memory, lie) is an outcome in the journal, and the search
goes on with the rest. Only a baseline that cannot run ends it.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from alula.accuracy import Metric, compare
from alula.core import (
    Accepted,
    Candidate,
    Outcome,
    Ratio,
    Recipe,
    Scenario,
    Signature,
    Throughput,
)
from alula.errors import MeasurementError, UsageError
from alula.graphs import Products
from alula.hardware import describe_disturbance, take_snapshot, writing
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
    stream_s,
)
from alula.tuning.field import LOADING_S, ProcessField, Reference, predict
from alula.tuning.files import read_note, save_array, write_note
from alula.tuning.journal import Journal
from alula.tuning.limits import StepLimit
from alula.tuning.messages import Loaded, LoadModelRequest, LoadRequest
from alula.tuning.process import Child, ChildError
from alula.tuning.rates import ranked_by_rate
from alula.tuning.strategy import Effort, Strategy
from alula.tuning.workshop import Workshop

__all__ = ["Finalist", "SearchPlan", "SearchResult", "search"]

GOLDEN_SAMPLES = 4
MIN_CHECKED = 200  # validation samples that are checked however slow the baseline is
FINALISTS = 3
LEAST_ROUND_S = 0.1
FEW_ROUNDS = 6  # for an interval; of a last comparison that must be short
CLOSING_SHARE = 1 / 4  # of the budget, for the last comparison at most
SERVER_SHARE = 0.4  # of the budget, for rates of random arrivals
SERVER_S = 300.0  # at most, which is enough for two candidates with the full confirmation
INTERRUPTED_SERVED_S = 20.0
BASELINE_SHARE = 1 / 10  # of the budget, for the batch sizes of the baseline
CHECK_SHARE = 1 / 12  # of the budget, for the check of accuracy of the slowest, the baseline
LEAST_CHECK_SHARE = 1 / 4  # above which fewer than `MIN_CHECKED` samples have to do
FEWEST_CHECKED = 50
# Calls of the baseline for one batch size: two to warm up, and a round of at least one.
_BASELINE_CALLS = 3

_FEW_REPLICATES = 100  # tell as well as thousands whether a metric is defined at all

_BASELINE = "baseline"
_APART = (
    "the model as it is failed among the others and was measured after them, so the speed-up is a rough one"
)

_INTERRUPTED = "the search was interrupted before"

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
        labels: what the model's outputs are called, in order; None if nobody said.
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
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A candidate in the last comparison: its speed there, and against the baseline's neighbouring rounds.

    Attributes:
        server: its rate in the server scenario; None in others, and where there was no time for it.
    """

    accepted: Accepted
    throughput: Throughput
    speedup: Ratio
    server: ServerRate | None = None


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found.

    Attributes:
        signature: the model's inputs and outputs.
        baseline: the user's model as it is, and its speed in the last comparison.
        finalists: the winner, and those that came close, by throughput (in the single-stream scenario of one
            sample after the other); in the server scenario those whose rate is known come first, by it.
        accepted: the best settings of every accepted recipe, the fastest first, as screened.
        artifacts: folder of every recipe that was built.
        golden: `.npy` files of a few real inputs.
        golden_outputs: by recipe name, `.npy` files of the outputs of those inputs.
        baseline_outputs: the baseline's, in the same order.
        validation_samples: how many of the validation samples were compared.
        stages_s: wall seconds of the parts of the search, by their names, in order.
        race: samples per second of the candidates that raced for a place in the last comparison, by lap.
        disturbance: what disturbed the search before the last comparison, in words.
        latency: of the winner, in the single-stream scenario; None where it is not known.
        server: of the winner, in the server scenario; None where it is not known.
        unmeasured: why the figure of such a scenario is not known; empty where it is.
        notes: what was rewritten before export, in words.
        warnings: what disturbed the last comparison or makes it a rough one, in words.
        disturbed: whether the machine was, then.
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
    race: dict[Candidate, tuple[float, ...]]
    disturbance: tuple[str, ...]
    latency: Latency | None
    server: ServerRate | None
    unmeasured: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    disturbed: bool
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
        UsageError: there are not as many class names as the model has outputs.
        AccuracyError: the metric is not defined for the baseline's outputs and the targets.
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
        self._server_s = min(SERVER_S, SERVER_SHARE * plan.budget_s)
        self._limit = StepLimit(clock, longest_s=plan.timeout_s)
        self._interrupted = False
        self._unmeasured = ""
        self._race: dict[Candidate, tuple[float, ...]] = {}
        self._lap_start_s = clock.monotonic()
        if any(isinstance(outcome, Accepted) for outcome in journal.earlier):
            self._limit.deadline_s = self._deadline_s
        self._workshop = Workshop(
            plan.source,
            plan.workdir,
            calibration=plan.calibration,
            validation=plan.validation,
            threads=plan.threads,
            saturating=plan.saturating,
            memory_limit_bytes=plan.memory_limit_bytes,
            timeout_s=self._limit,
            report=report,
        )

    def run(self) -> SearchResult:
        plan = self._plan
        reference = self._reference()
        self._check_labels(reference)
        self._check_metric(reference)
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
            limit=self._limit,
            record=self._record,
            earlier=self._journal.earlier,
            report=self._report,
            clock=self._clock,
        )
        stages_s = {"model and baseline": self._lap_s()}
        with field:
            before, started_s, used_s = take_snapshot(), self._clock.monotonic(), _cpu_s()
            chosen, closing = self._chosen(field, reference)
            disturbance = describe_disturbance(
                before,
                take_snapshot(),
                own_cpu_s=_cpu_s() - used_s,
                wall_s=self._clock.monotonic() - started_s,
            )
            stages_s["building, checking and timing recipes"] = self._lap_s()
            final = self._confirmed(field, reference.candidate, chosen, closing)
            for one in field.best_of_each_recipe():
                if final.finalists:
                    break
                if one.candidate not in chosen and field.accept(one.candidate):
                    field.close()
                    shorter = closing.shortened()
                    final = self._confirmed(field, reference.candidate, [one.candidate], shorter)
            accepted = field.best_of_each_recipe()
            stages_s["last comparison"] = self._lap_s()
            golden_outputs = {recipe.name: paths for recipe, paths in field.golden_outputs.items()}
        if plan.scenario == "server":
            final = self._served(final)
            stages_s["rates of random arrivals"] = self._lap_s()
        latency = self._latency(final) if plan.scenario == "single-stream" else None
        if latency is not None:
            stages_s["latency of single samples"] = self._lap_s()
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
            race=self._race,
            disturbance=disturbance,
            latency=latency,
            server=final.finalists[0].server if final.finalists else None,
            unmeasured=self._unmeasured,
            notes=tuple(dict.fromkeys(self._workshop.notes)),
            warnings=final.warnings,
            disturbed=final.disturbed,
            products=self._workshop.products(),
        )

    def _check_labels(self, reference: Reference) -> None:
        """Hold the names of the classes against the scores of a sample.

        Raises:
            UsageError: they are not as many, so nobody knows which is which.
        """
        if self._plan.labels is None:
            return
        names, shape = len(self._plan.labels), np.load(reference.scores, mmap_mode="r").shape[1:] or (1,)
        one_of_two = names == 2 and math.prod(shape) == 1  # the score of the second
        if not one_of_two and names not in (shape[-1], math.prod(shape)):
            some = ", ".join([*self._plan.labels[:3], *["…"] * (names > 3)])
            raise UsageError(
                f"There are {names} class names ({some}), but the model gives "
                f"{math.prod(shape)} scores per sample. Name all of them in the model's order: `--labels "
                "names.txt`, one per line, or `labels=[…]` in Python."
            )

    def _check_metric(self, reference: Reference) -> None:
        """Compare the baseline with itself: where that cannot be done, no recipe can be judged.

        Raises:
            AccuracyError: the metric is not defined for these outputs and targets.
        """
        plan, n = self._plan, reference.n
        scores = np.load(reference.scores)[:n]
        targets = None if plan.targets is None else plan.targets[:n]
        compare(
            plan.metric,
            targets=targets,
            baseline=scores,
            candidate=scores,
            max_drop=plan.max_drop,
            replicates=_FEW_REPLICATES,
        )

    def _lap_s(self) -> float:
        """Return the seconds since the last call, or since the start."""
        before_s, self._lap_start_s = self._lap_start_s, self._clock.monotonic()
        return self._lap_start_s - before_s

    def _chosen(self, field: ProcessField, reference: Reference) -> tuple[list[Candidate], Closing]:
        """Return the candidates of the last comparison, and how long it is.

        An interrupt ends the search early, with the best that was found until then; a second one ends
        it for good. No child process is left: nothing may run beside the last comparison.
        """
        closing = last_comparison(self._plan)
        strategy = Strategy(
            field,
            clock=self._clock,
            effort=Effort(
                look_s=min(Effort.look_s, closing.round_s),
                round_s=closing.round_s,
                finalists=closing.finalists,
            ),
        )

        def after_s(candidates: Sequence[Candidate]) -> float:
            return self._after_s(candidates, field, strategy, reference, closing)

        def is_late(candidates: Sequence[Candidate]) -> bool:
            return self._clock.monotonic() + after_s(candidates) > self._deadline_s

        chosen: list[Candidate] = []
        try:
            with self._workshop.keeping_processes():
                standings = strategy.run(self._plan.recipes, deadline_s=self._deadline_s, after_s=after_s)
            chosen = [one.candidate for one in standings]
            field.close()
            while len(chosen) > 1 and is_late(chosen):
                chosen.pop()
            return chosen, closing.shortened(halved=True) if is_late(chosen) else closing
        except KeyboardInterrupt:
            found = chosen or strategy.best_so_far()
            if not found:
                raise
            self._interrupt()
            # A child that was interrupted in the middle of an answer cannot be asked again.
            field.close()
            for candidate in found:
                if field.accept(candidate):
                    field.close()
                    return [candidate], closing.shortened()
            raise
        finally:
            self._race = strategy.raced_per_s

    def _interrupt(self) -> None:
        self._interrupted = True
        self._report("interrupted: finishing with the best found so far; interrupt again to stop at once")

    def _after_s(
        self,
        candidates: Sequence[Candidate],
        field: ProcessField,
        strategy: Strategy,
        reference: Reference,
        closing: Closing,
    ) -> float:
        """Return about how long everything takes that follows the race, with these finalists."""
        plan = self._plan
        baseline_call_s = reference.candidate.settings.batch_size / reference.per_s
        contenders = [(reference.loading_s, baseline_call_s)]
        contenders += [(field.loading_s(one), strategy.call_s(one)) for one in candidates]
        # A call that is under way when a round's time is over is finished.
        seconds = sum(
            loading_s + closing.rounds * (closing.round_s + call_s / 2) for loading_s, call_s in contenders
        )
        if plan.scenario == "single-stream" and candidates:
            best = candidates[0]
            seconds += field.loading_s(best) + stream_s(strategy.call_s(best))
        if plan.scenario == "server":
            seconds += self._server_s
        return seconds

    # The baseline is asked twice if its process dies: all else rests on it.

    def _reference(self) -> Reference:
        """Measure the user's model as it is, and keep its outputs to judge everything else by."""
        plan, signature = self._plan, self._workshop.signature
        note = plan.workdir / "reference.json"
        known = read_note(note, Reference)
        if known is not None:
            # The budget may be another now. What was checked on more samples stays so.
            n = min(known.n, samples_checked(known.per_s, plan.budget_s))
            return msgspec.structs.replace(known, n=n)
        self._report("measuring the baseline")
        golden = self._write_golden()
        grid = settings_grid(plan.threads, signature, scenario=plan.scenario)
        grid = tuple(one for one in grid if one.instances == 1)
        recipe = Recipe("onnxruntime" if plan.source.kind == "onnx" else "torch", "fp32")

        def measure(child: Child) -> Reference:
            started_s = loaded_s = self._clock.monotonic()
            speeds: list[float] = []
            for settings in grid:
                ahead_s = settings.batch_size * _BASELINE_CALLS / max(speeds) if speeds else 0.0
                spent_s = self._clock.monotonic() - started_s
                if speeds and spent_s + ahead_s > BASELINE_SHARE * plan.budget_s:
                    break
                self._load_baseline(child, Candidate(recipe, settings))
                if not speeds:
                    loaded_s = self._clock.monotonic()
                speeds.append(self._measure(child, plan.round_s).per_s)
            best = Candidate(recipe, grid[int(np.argmax(speeds))])
            total = len(np.load(plan.validation[0], mmap_mode="r"))
            n = min(total, samples_checked(max(speeds), plan.budget_s))
            self._load_baseline(child, best)
            scores, outputs = predict(
                child,
                plan.workdir / "outputs" / _BASELINE,
                signature=signature,
                validation=plan.validation,
                golden=golden,
                n=n,
                timeout_s=lambda: self._limit(expected_s=n / max(speeds)),
            )
            return Reference(
                candidate=best,
                per_s=max(speeds),
                loading_s=loaded_s - started_s,
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
        with writing("a few real inputs", folder):
            folder.mkdir(exist_ok=True)
        paths = []
        for index, path in enumerate(self._plan.validation):
            golden = folder / f"input_{index}.npy"
            save_array(golden, np.load(path, mmap_mode="r")[:GOLDEN_SAMPLES], what="a few real inputs")
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

    def _measure(self, child: Child, seconds: float) -> Round:
        plan = self._plan
        return measure_round(child, plan.validation, seconds, timeout_s=plan.timeout_s)[0]

    # The last comparison.

    def _confirmed(
        self, field: ProcessField, baseline: Candidate, chosen: Sequence[Candidate], closing: Closing
    ) -> _Final:
        """Return the last comparison; after an interrupt, a short one of the best alone."""
        try:
            return self._confirm(field, baseline, chosen, closing)
        except KeyboardInterrupt:
            if self._interrupted or not chosen:
                raise
            self._interrupt()
            return self._confirm(field, baseline, chosen[:1], closing.shortened())

    def _confirm(
        self, field: ProcessField, baseline: Candidate, chosen: Sequence[Candidate], closing: Closing
    ) -> _Final:
        """Measure the baseline and the best candidates in turn, each in its own living process."""
        plan = self._plan
        self._report("confirming the best in interleaved rounds")
        by_key = {str(candidate): field.accepted(candidate) for candidate in chosen}
        contenders: dict[str, LoadRequest | LoadModelRequest] = {_BASELINE: self._baseline_request(baseline)}
        for key, accepted in by_key.items():
            contenders[key] = self._load_request(accepted.candidate)
        comparison = compare_speeds(
            contenders,
            inputs=plan.validation,
            folder=plan.workdir / "logs",
            threads=plan.threads,
            memory_limit_bytes=plan.memory_limit_bytes,
            rounds=closing.rounds,
            round_s=closing.round_s,
            timeout_s=plan.timeout_s,
            seed=plan.seed,
        )
        reference = self._baseline_rounds(comparison, baseline, closing)
        neighbours = _BASELINE in comparison.rounds
        for key, loss in comparison.losses.items():
            if key in by_key:
                field.lose(by_key[key].candidate, error=loss.error, reproduce=loss.reproduce)
        baseline_per_s = [item.per_s for item in reference]
        finalists = [
            Finalist(
                accepted=by_key[key],
                throughput=throughput(items, warnings=stability_warnings(items, asked=closing.rounds)),
                speedup=ratio(
                    [item.per_s for item in items],
                    baseline_per_s,
                    paired=neighbours and len(items) == len(reference),
                    seed=plan.seed,
                ),
            )
            for key, items in comparison.rounds.items()
            if key != _BASELINE
        ]
        finalists.sort(key=lambda finalist: -finalist.throughput.per_s)
        return _Final(
            baseline=throughput(reference, warnings=stability_warnings(reference, asked=closing.rounds)),
            finalists=tuple(finalists),
            warnings=comparison.warnings + (() if neighbours else (_APART,)),
            disturbed=bool(comparison.warnings),
        )

    def _baseline_rounds(self, comparison: Comparison, baseline: Candidate, closing: Closing) -> list[Round]:
        """Return the baseline's rounds of the comparison, or of a second try of its own."""
        if _BASELINE in comparison.rounds:
            return comparison.rounds[_BASELINE]

        def measure(child: Child) -> list[Round]:
            self._load_baseline(child, baseline)
            return [self._measure(child, closing.round_s) for _ in range(closing.rounds)]

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

    # The scenarios whose figure is no throughput.

    def _with(self, finalist: Finalist, name: str, ask: Callable[[Child], Answer]) -> Answer:
        """Return what is asked of a process that has loaded a finalist.

        Raises:
            MeasurementError: it failed.
        """
        request = self._load_request(finalist.accepted.candidate)

        def loaded(child: Child) -> Answer:
            child.ask(request, Loaded, timeout_s=self._plan.timeout_s)
            return ask(child)

        try:
            return self._workshop.with_second_try(name, loaded)
        except ChildError as error:
            raise MeasurementError(
                f"{finalist.accepted.candidate} failed in the {self._plan.scenario} scenario: {error}"
            ) from error

    def _latency(self, final: _Final) -> Latency | None:
        plan = self._plan
        if not final.finalists:
            return None
        self._report("measuring the latency of single samples")
        try:
            return self._with(
                final.finalists[0],
                "scenario",
                lambda child: measure_latency(child, plan.validation, timeout_s=plan.timeout_s),
            )
        except MeasurementError as error:
            self._unmeasured = str(error)
        except KeyboardInterrupt:
            if self._interrupted:
                raise
            self._interrupt()
            self._unmeasured = _INTERRUPTED
        return None

    def _served(self, final: _Final) -> _Final:
        """Return the finalists with their rates, as many as there is time for, and in their order.

        Where none of those that were measured holds any rate, they stay as they are: what was found before
        is not lost for that.
        """

        def left_s() -> float:
            seconds = self._deadline_s - self._clock.monotonic()
            return min(seconds, INTERRUPTED_SERVED_S) if self._interrupted else seconds

        def interrupt() -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupt()
            self._unmeasured = _INTERRUPTED

        try:
            ranked = ranked_by_rate(
                final.finalists,
                lambda finalist, budget_s: self._rate(finalist, budget_s=budget_s),
                left_s=left_s,
                on_interrupt=interrupt,
            )
        except MeasurementError as error:
            self._unmeasured = str(error)
            return final
        return replace(final, finalists=tuple(replace(one, server=rate) for one, rate in ranked))

    def _rate(self, finalist: Finalist, *, budget_s: float) -> ServerRate:
        plan, limit_s = self._plan, self._plan.latency_limit_s
        assert limit_s is not None
        self._report(
            f"looking for the highest rate of {finalist.accepted.candidate} with p99 under "
            f"{1e3 * limit_s:.3g} ms, for about {budget_s:.0f} s"
        )

        def ask(child: Child) -> ServerRate:
            return measure_server(
                child,
                plan.validation,
                limit_s=limit_s,
                offline_per_s=finalist.throughput.per_s,
                timeout_s=plan.timeout_s,
                budget_s=budget_s,
                seed=plan.seed,
            )

        return self._with(finalist, "scenario", ask)

    def _record(self, outcome: Outcome) -> None:
        self._journal.append(outcome)
        if isinstance(outcome, Accepted):  # from now on there is something to fall back on
            self._limit.deadline_s = self._deadline_s
        self._on_outcome(outcome)


class Closing(NamedTuple):
    """The last comparison: at most so many finalists, and the rounds of each."""

    finalists: int
    rounds: int
    round_s: float

    def shortened(self, *, halved: bool = False) -> Closing:
        """Return one of fewer rounds, halved in length too if asked for; enough for an interval."""
        round_s = max(min(self.round_s, LEAST_ROUND_S), self.round_s / 2) if halved else self.round_s
        return Closing(self.finalists, min(FEW_ROUNDS, self.rounds), round_s)


def last_comparison(plan: SearchPlan) -> Closing:
    """Return the last comparison that a search can afford.

    The whole one where it takes a quarter of the budget or less; else with fewer finalists, then with fewer
    rounds, then with shorter ones.
    """
    share_s = CLOSING_SHARE * plan.budget_s
    for finalists in range(FINALISTS, 0, -1):
        if (finalists + 1) * (plan.final_rounds * plan.round_s + LOADING_S) <= share_s:
            return Closing(finalists, plan.final_rounds, plan.round_s)
    few = min(FEW_ROUNDS, plan.final_rounds)
    return Closing(1, few, min(plan.round_s, max(LEAST_ROUND_S, share_s / (2 * few))))


def _cpu_s() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    used = (resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def samples_checked(baseline_per_s: float, budget_s: float) -> int:
    """Return on how many validation samples accuracy is checked, so that it leaves time for the rest.

    As many as the baseline computes in a twelfth of the budget; 200 where that is fewer, unless they would
    take it a quarter of the budget; 50 at least.

    >>> samples_checked(100.0, 600.0), samples_checked(2.0, 600.0), samples_checked(1.0, 60.0)
    (5000, 200, 50)
    """
    affordable = int(baseline_per_s * budget_s * CHECK_SHARE)
    at_most = int(baseline_per_s * budget_s * LEAST_CHECK_SHARE)
    return max(affordable, min(MIN_CHECKED, max(FEWEST_CHECKED, at_most)))


@dataclass(frozen=True)
class _Final:
    baseline: Throughput
    finalists: tuple[Finalist, ...]
    warnings: tuple[str, ...]
    disturbed: bool
