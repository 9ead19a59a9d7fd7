"""The field of a real search: candidates in child processes, verdicts on real samples, all journalled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from alula.accuracy import Metric, accept, compare
from alula.core import (
    Accepted,
    Accuracy,
    Candidate,
    Failed,
    Outcome,
    Recipe,
    Rejected,
    Scenario,
    Settings,
    Signature,
    largest_difference,
    rms_difference,
)
from alula.engines import engine_named
from alula.errors import AccuracyError
from alula.measure import Clock, Round, throughput
from alula.tuning.candidates import batch_neighbours, layout_neighbours, settings_grid
from alula.tuning.comparison import measure_round, patience_s
from alula.tuning.kinship import outdone
from alula.tuning.limits import StepLimit
from alula.tuning.messages import Loaded, LoadRequest, Predicted, PredictRequest
from alula.tuning.process import Child, ChildError
from alula.tuning.strategy import NO_TIME
from alula.tuning.workshop import StepError, Workshop, file_name

__all__ = ["ROUNDED", "ProcessField", "Reference", "predict"]

# FP32 recipes compute the same function; engines differ by the order of sums and fast exponentials.
FP32_DIFFERENCE = 1e-3
ROUNDED = ("fp16-weights",)
"""Variants of FP32 whose weights are rounded, so that the metric alone decides whether they are right."""
WARM_UP_S = 0.5  # of a fast model in a process that has just loaded it
LOADING_S = 3.0  # and warming up, before any was seen
COMPARING_S = 1.0  # of outputs, before it was seen
# Root mean square of the differences of an output that the metric does not see, as a share of its own.
ANOTHER_FUNCTION = 0.5
WORTH_SAYING = 0.05
SCREENED = 256  # validation samples of the first, rough check
MOST_HANGS = 2  # of a recipe: each costs minutes, and other settings may be well


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """What everything is judged by: the model as it is, and its outputs.

    Attributes:
        candidate: how the model runs fastest as it is.
        per_s: samples per second of that, as screened; for progress only.
        loading_s: how long it took to load it into a new process.
        n: validation samples compared.
        scores: `.npy` of its first output on them.
        golden: `.npy` files of a few real inputs.
        golden_outputs: `.npy` files of all its outputs on those.
    """

    candidate: Candidate
    per_s: float
    loading_s: float
    n: int
    scores: str
    golden: tuple[str, ...]
    golden_outputs: tuple[str, ...]


class ProcessField:
    """Implements `alula.tuning.strategy.Field`. Not thread-safe; use it in a `with` block.

    Args:
        workshop: makes the artifacts.
        reference: the baseline.
        validation: one `.npy` (n, ...) per model input; never shown to a quantizer.
        targets: of the validation samples, or None without labels.
        metric: decides acceptance.
        max_drop: the largest drop of the metric allowed.
        threads: thread budget of every candidate.
        scenario: decides which settings are tried.
        latency_limit_s: of p99 in the server scenario; a candidate whose batches take more than half of it
            is out.
        seed: of the bootstrap.
        limit: gives the seconds that a step may take now.
        record: gets every outcome as it is known.
        earlier: the outcomes of an interrupted search with the same workshop folder.
        report: gets lines of text about what is being done.
        clock: tells the time.
    """

    def __init__(
        self,
        workshop: Workshop,
        *,
        reference: Reference,
        validation: tuple[str, ...],
        targets: NDArray[np.generic] | None,
        metric: Metric,
        max_drop: float,
        threads: int,
        scenario: Scenario,
        latency_limit_s: float | None,
        seed: int,
        limit: StepLimit,
        record: Callable[[Outcome], None],
        earlier: Iterable[Outcome],
        report: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self._workshop = workshop
        self._reference = reference
        self._baseline_scores: NDArray[np.generic] = np.load(reference.scores)
        self._validation = validation
        self._targets = targets
        self._metric = metric
        self._max_drop = max_drop
        self._threads = threads
        self._scenario = scenario
        self._latency_limit_s = latency_limit_s
        self._seed = seed
        self._limit = limit
        self._record = record
        self._report = report
        self._clock = clock
        self._stack = contextlib.ExitStack()
        self._held: dict[Candidate, Child] = {}
        self._visitor: tuple[Recipe, Child] | None = None
        self._loaded: dict[Child, Candidate] = {}
        self._accuracy: dict[Recipe, Accuracy] = {}
        self._accepted: dict[Candidate, Accepted] = {}
        self._gone: set[Recipe] = set()
        self._wrong: dict[Recipe, Rejected] = {}  # of those, what runs
        self._loading_s: dict[Recipe, float] = {}  # the longest that was seen
        self._again_s: dict[tuple[Recipe, int], float] = {}  # by batch size, of all loads but the first
        self._loaded_before: set[tuple[Recipe, int]] = set()
        self._per_s: dict[Recipe, float] = {}  # the least that was seen
        self._hangs: dict[Recipe, int] = {}
        self._trials = 0
        self._noted_s = clock.monotonic()
        self._comparing_s = COMPARING_S
        self.golden_outputs: dict[Recipe, tuple[str, ...]] = {}
        for outcome in earlier:
            self._remember(outcome)

    def _remember(self, outcome: Outcome) -> None:
        self._trials += 1
        match outcome:
            case Accepted():
                recipe = outcome.candidate.recipe
                self._accepted[outcome.candidate] = outcome
                known = self._accuracy.get(recipe, outcome.accuracy)
                self._set_accuracy(recipe, max(outcome.accuracy, known, key=lambda accuracy: accuracy.n))
                golden = _golden_paths(self._output_folder(recipe), self._workshop.signature)
                if all(Path(path).is_file() for path in golden):
                    self.golden_outputs[recipe] = golden
            case Rejected(tried=True):
                self._gone.add(outcome.recipe)
                self._wrong[outcome.recipe] = outcome
            case Failed(settings=None):
                self._gone.add(outcome.recipe)
            case Failed(settings=Settings() as settings):
                self._accepted.pop(Candidate(outcome.recipe, settings), None)
            case _:
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all child processes."""
        self._held.clear()
        self._loaded.clear()
        self._visitor = None
        self._stack.close()

    def accepted(self, candidate: Candidate) -> Accepted:
        """Return the outcome of a candidate that was measured."""
        return self._accepted[candidate]

    def _progress(self) -> str:
        ranked = [one for one in self._accepted.values() if one.candidate.recipe not in self._gone]
        if not ranked:
            return "no candidate yet"
        leader = max(ranked, key=lambda one: one.relative or 0.0)
        about = leader.throughput.per_s / self._reference.per_s
        return f"{self._trials} trials so far, {leader.candidate} leads with about {about:.1f}x"

    def best_of_each_recipe(self) -> tuple[Accepted, ...]:
        """Return the fastest candidate of every recipe that was not found wrong, the fastest first."""
        best: dict[Recipe, Accepted] = {}
        for one in sorted(self._accepted.values(), key=lambda one: -(one.relative or 0.0)):
            if one.candidate.recipe not in self._gone:
                best.setdefault(one.candidate.recipe, one)
        return tuple(best.values())

    def lose(self, candidate: Candidate, *, error: str, reproduce: str) -> None:
        """Take note that a candidate failed, and forget what it reached before."""
        self._accepted.pop(candidate, None)
        self._note(
            Failed(recipe=candidate.recipe, settings=candidate.settings, error=error, reproduce=reproduce)
        )

    # What the strategy asks for.

    def prepare(self, recipe: Recipe, *, until_s: float) -> tuple[Settings, ...]:
        """See `Field.prepare`."""
        if recipe in self._gone:
            return ()
        self._report(f"trying {recipe}; {self._progress()}")
        grid = settings_grid(self._threads, self._workshop.signature, scenario=self._scenario)
        with self._limit.optional(until_s=until_s):
            try:
                self._workshop.artifact(recipe)
                verdict = self._judge(Candidate(recipe, grid[0]), min(SCREENED, self._reference.n))
            except StepError as error:
                if error.timed_out and self._limit.was_short:
                    self._leave(recipe, f"{NO_TIME}, before it was made and checked")
                else:
                    self._fail(recipe, error)
                return ()
        if isinstance(verdict, Rejected):
            self._reject(verdict)
        else:
            self._accuracy[recipe] = verdict
        return grid

    def is_wrong(self, recipe: Recipe) -> bool:
        """See `Field.is_wrong`."""
        return recipe in self._wrong

    def variations(self, candidate: Candidate) -> tuple[Settings, ...]:
        """See `Field.variations`."""
        settings = candidate.settings
        self._report(f"looking closer at {candidate.recipe}; {self._progress()}")
        knobs = engine_named(candidate.recipe.engine).knobs(candidate.recipe, settings)
        grid = settings_grid(self._threads, self._workshop.signature, scenario=self._scenario)
        coarse = tuple(
            msgspec.structs.replace(settings, threads=one.threads, instances=one.instances, knobs={})
            for one in grid
        )
        single = self._scenario == "single-stream"
        near = (
            ()
            if single
            else (
                *batch_neighbours(settings, self._workshop.signature, scenario=self._scenario),
                *layout_neighbours(settings, self._threads),
            )
        )
        layouts = [one for one in dict.fromkeys((*near, *coarse)) if one != settings]
        return (
            *layouts,
            *(msgspec.structs.replace(settings, knobs=one) for one in ({}, *knobs) if one != settings.knobs),
        )

    def hold(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """See `Field.hold`."""
        self.close()
        if len(candidates) > 1:
            self._report(f"racing the best {len(candidates)}; {self._progress()}")
        for index, candidate in enumerate(candidates):
            child = self._stack.enter_context(
                self._workshop.child(f"hold-{index}-{file_name(candidate.recipe)}")
            )
            try:
                self._load(child, candidate)
                self._held[candidate] = child
            except StepError as error:
                self.lose(candidate, error=str(error), reproduce=error.reproduce)
                child.close()
        return tuple(self._held)

    def measure(self, candidate: Candidate, seconds: float) -> Round:
        """See `Field.measure`."""
        child = self._child_of(candidate)
        try:
            self._check_hangs(candidate, child)
            self._load(child, candidate)
            allowed_s = min(self._limit(), self._patience_s(candidate, seconds))
            try:
                taken = measure_round(child, self._validation, seconds, timeout_s=allowed_s)[0]
            except ChildError as error:
                if error.timed_out:
                    self._hangs[candidate.recipe] = self._hangs.get(candidate.recipe, 0) + 1
                raise StepError.of(error, child.reproduce) from error
            self._check_latency(taken, child)
            self._note_speed(candidate.recipe, taken.per_s)
            return taken
        except StepError as error:
            self._loaded.pop(child, None)
            self.lose(candidate, error=str(error), reproduce=error.reproduce)
            raise

    def _patience_s(self, candidate: Candidate, seconds: float) -> float:
        """Return after how long a round of a candidate hangs.

        Engines may compile anew for what they meet in the first calls, which takes about as long as loading.
        """
        settings = candidate.settings
        per_s = self._per_s.get(candidate.recipe, self._reference.per_s)
        call_s = settings.batch_size * settings.instances / per_s
        return patience_s(seconds, call_s) + 2 * self._longest_loading_s(candidate.recipe)

    def _note_speed(self, recipe: Recipe, per_s: float) -> None:
        self._per_s[recipe] = min(per_s, self._per_s.get(recipe, per_s))

    def _check_hangs(self, candidate: Candidate, child: Child) -> None:
        if self._hangs.get(candidate.recipe, 0) >= MOST_HANGS and candidate not in self._accepted:
            raise StepError(f"Not tried: {MOST_HANGS} other settings of it hung.", child.reproduce)

    def scored(self, candidate: Candidate, taken: Round, score: float) -> None:
        """See `Field.scored`."""
        wrong = self._wrong.get(candidate.recipe)
        if wrong is not None:
            self._reject(msgspec.structs.replace(wrong, relative=score))
            return
        outcome = Accepted(
            candidate=candidate,
            accuracy=self._accuracy[candidate.recipe],
            throughput=throughput([taken]),
            relative=score,
        )
        self._accepted[candidate] = outcome
        self._note(outcome)

    def known_scores(self, recipe: Recipe) -> dict[Candidate, float] | None:
        """See `Field.known_scores`."""
        if recipe in self._gone:
            return {}
        known = {
            one: outcome.relative
            for one, outcome in self._accepted.items()
            if one.recipe == recipe and outcome.relative is not None
        }
        return known or None

    def outdone(self, recipe: Recipe, *, best: float) -> str | None:
        """See `Field.outdone`."""
        known = [(one.recipe, outcome.relative) for one, outcome in self._accepted.items()]
        known += [(one, outcome.relative) for one, outcome in self._wrong.items()]
        speeds: dict[Recipe, float] = {}
        for one, relative in known:
            if relative is not None:
                speeds[one] = max(relative, speeds.get(one, 0.0))
        return outdone(recipe, speeds, wrong=self._gone, best=best)

    def skip(self, recipe: Recipe, reason: str) -> None:
        """See `Field.skip`."""
        if recipe not in self._gone:
            self._record(Rejected(recipe=recipe, reason=reason, tried=False))

    def loading_s(self, candidate: Candidate) -> float:
        """See `Field.loading_s`.

        What an engine compiles for a batch size it may keep, and need not compile again. A load into the
        same process imports nothing, so that of the baseline into a new one is added.
        """
        longest_s = self._longest_loading_s(candidate.recipe)
        again_s = self._again_s.get((candidate.recipe, candidate.settings.batch_size))
        return longest_s if again_s is None else min(longest_s, again_s + self._reference.loading_s)

    def _longest_loading_s(self, recipe: Recipe) -> float:
        return self._loading_s.get(recipe, max(self._loading_s.values(), default=LOADING_S))

    def accept(self, candidate: Candidate) -> bool:
        """See `Field.accept`."""
        recipe, n = candidate.recipe, self._reference.n
        if recipe in self._gone or candidate not in self._accepted:
            return False
        if not self._is_checked(recipe):
            self._report(f"checking the accuracy of {recipe} on {n} samples")
            self._noted_s = started_s = self._clock.monotonic()  # what came before was of no one recipe
            try:
                with contextlib.nullcontext() if self._has_right() else self._limit.needed():
                    verdict = self._judge(candidate, n)
            except StepError as error:
                if error.timed_out and self._limit.was_short:
                    self._gone.add(recipe)
                    self._leave(recipe, f"{NO_TIME}, before its accuracy was checked")
                else:
                    self._fail(recipe, error)
                return False
            comparing_s = self._clock.monotonic() - started_s - self._predicting_s(recipe, n)
            self._comparing_s = max(self._comparing_s, comparing_s)
            if isinstance(verdict, Accuracy):
                reason = accept(verdict)
                if reason is not None:
                    verdict = Rejected(recipe=recipe, reason=reason, accuracy=verdict)
            if isinstance(verdict, Rejected):
                self._reject(verdict)
                return False
            self._set_accuracy(recipe, verdict)
            self._note(self._accepted[candidate])
        return True

    def checking_s(self, candidate: Candidate) -> float:
        """See `Field.checking_s`."""
        if self._is_checked(candidate.recipe):
            return 0.0
        return self._predicting_s(candidate.recipe, self._reference.n) + self._comparing_s

    def _is_checked(self, recipe: Recipe) -> bool:
        """Whether a recipe was judged on all validation samples, and its outputs are still there."""
        known = self._accuracy.get(recipe)
        return known is not None and self._suffices(known) and recipe in self.golden_outputs

    def _has_right(self) -> bool:
        """Whether a recipe was accepted on all validation samples."""
        return any(
            self._suffices(accuracy) and recipe not in self._gone
            for recipe, accuracy in self._accuracy.items()
        )

    def _suffices(self, accuracy: Accuracy) -> bool:
        """Whether a verdict accepts, and on as many samples as now: a rough one may be of more than those."""
        return accuracy.n >= self._reference.n and accept(accuracy) is None

    def _predicting_s(self, recipe: Recipe, n: int) -> float:
        return n / self._per_s.get(recipe, self._reference.per_s)

    def _set_accuracy(self, recipe: Recipe, accuracy: Accuracy) -> None:
        """Take a verdict for all settings of a recipe: they compute the same."""
        self._accuracy[recipe] = accuracy
        for one, outcome in self._accepted.items():
            if one.recipe == recipe:
                self._accepted[one] = msgspec.structs.replace(outcome, accuracy=accuracy)

    # Steps.

    def _check_latency(self, taken: Round, child: Child) -> None:
        limit_s = self._latency_limit_s
        call_s = float(np.median(taken.calls))
        if limit_s is not None and call_s > limit_s / 2:
            raise StepError(
                f"A batch takes {1e3 * call_s:.3g} ms, more than half of the latency limit of "
                f"{1e3 * limit_s:.3g} ms, which leaves no time to wait.",
                child.reproduce,
            )

    def _child_of(self, candidate: Candidate) -> Child:
        """Return the child that holds a candidate, or else the visitors' one, to be loaded."""
        child = self._held.get(candidate)
        if child is not None and child.alive:
            return child
        self._held.pop(candidate, None)
        return self._visiting(candidate.recipe)

    def _visiting(self, recipe: Recipe) -> Child:
        """Return the one child process for candidates that are not held; it changes with the recipe."""
        if self._visitor is not None and (self._visitor[0] != recipe or not self._visitor[1].alive):
            self._visitor[1].close()
            self._visitor = None
        if self._visitor is None:
            self._visitor = recipe, self._stack.enter_context(self._workshop.child(file_name(recipe)))
        return self._visitor[1]

    def _load(self, child: Child, candidate: Candidate) -> None:
        if self._loaded.get(child) == candidate:
            return
        request = LoadRequest(
            recipe=candidate.recipe,
            artifact=str(self._workshop.artifact(candidate.recipe)),
            signature=self._workshop.signature,
            settings=candidate.settings,
        )
        started_s = self._clock.monotonic()
        try:
            child.ask(request, Loaded, timeout_s=self._limit())
        except ChildError as error:
            raise StepError.of(error, child.reproduce) from error
        self._loaded[child] = candidate
        # The longest is that into a new process, which imports the engine first.
        took_s = self._clock.monotonic() - started_s + WARM_UP_S
        self._loading_s[candidate.recipe] = max(took_s, self._loading_s.get(candidate.recipe, 0.0))
        compiled = candidate.recipe, candidate.settings.batch_size
        if compiled in self._loaded_before:
            self._again_s[compiled] = max(took_s, self._again_s.get(compiled, 0.0))
        self._loaded_before.add(compiled)

    def _judge(self, candidate: Candidate, n: int) -> Accuracy | Rejected:
        """Compare the recipe's outputs on the first n validation samples with the baseline's."""
        recipe = candidate.recipe
        child = self._child_of(candidate)
        self._load(child, candidate)
        try:
            scores, golden = predict(
                child,
                self._output_folder(recipe),
                signature=self._workshop.signature,
                validation=self._validation,
                golden=self._reference.golden,
                n=n,
                timeout_s=lambda: self._limit(expected_s=self._predicting_s(recipe, n)),
            )
        except ChildError as error:
            raise StepError.of(error, child.reproduce) from error
        self.golden_outputs[recipe] = golden
        if recipe.precision == "fp32" and recipe.variant not in ROUNDED:
            difference = largest_difference(
                [np.load(path) for path in self._reference.golden_outputs],
                [np.load(path) for path in golden],
            )
            if not difference <= FP32_DIFFERENCE:
                return Rejected(
                    recipe=recipe,
                    reason=f"FP32 outputs differ from the model's by {difference:.2g} of their scale; "
                    f"at most {FP32_DIFFERENCE:g} is rounding",
                )
        problem = self._other_outputs(golden, worse_than=ANOTHER_FUNCTION)
        if problem is not None:
            return Rejected(recipe=recipe, reason=problem)
        try:
            accuracy = compare(
                self._metric,
                targets=None if self._targets is None else self._targets[:n],
                baseline=self._baseline_scores[:n],
                candidate=np.load(scores),
                max_drop=self._max_drop,
                seed=self._seed,
            )
        except AccuracyError as error:
            if n < self._reference.n:  # too few samples for this metric
                return self._judge(candidate, self._reference.n)
            return Rejected(recipe=recipe, reason=str(error))
        doubt = self._other_outputs(golden, worse_than=WORTH_SAYING)
        if doubt is not None:
            accuracy = msgspec.structs.replace(accuracy, warnings=(*accuracy.warnings, doubt))
        if n == self._reference.n:
            reason = accept(accuracy)
        else:  # a part of the samples decides only what it makes certain
            reason = accept(accuracy) if accuracy.drop_low > accuracy.limit else None
        return accuracy if reason is None else Rejected(recipe=recipe, reason=reason, accuracy=accuracy)

    def _other_outputs(self, golden: tuple[str, ...], *, worse_than: float) -> str | None:
        """Return which output beside the first differs too much from the model's on the golden inputs."""
        specs = self._workshop.signature.outputs
        for spec, want, have in list(zip(specs, self._reference.golden_outputs, golden, strict=True))[1:]:
            difference = rms_difference(np.load(want), np.load(have))
            if not difference <= worse_than:
                return (
                    f"Output `{spec.name}`, which the metric does not see, differs from the model's by "
                    f"{difference:.2g} of its size (root mean square on a few samples)."
                )
        return None

    def _output_folder(self, recipe: Recipe) -> Path:
        return self._workshop.folder / "outputs" / file_name(recipe)

    def _fail(self, recipe: Recipe, error: StepError) -> None:
        self._gone.add(recipe)
        self._note(Failed(recipe=recipe, error=str(error), reproduce=error.reproduce))

    def _leave(self, recipe: Recipe, reason: str) -> None:
        """Take note that there was no time for a recipe: with more of it, it may be right."""
        self._note(Rejected(recipe=recipe, reason=reason, tried=False))

    def _reject(self, verdict: Rejected) -> None:
        self._gone.add(verdict.recipe)
        self._wrong[verdict.recipe] = verdict
        self._note(verdict)

    def _note(self, outcome: Outcome) -> None:
        """Record an outcome with the time that it took since the one before."""
        before_s, self._noted_s = self._noted_s, self._clock.monotonic()
        self._trials += 1
        self._record(msgspec.structs.replace(outcome, seconds=self._noted_s - before_s))


def predict(
    child: Child,
    folder: Path,
    *,
    signature: Signature,
    validation: tuple[str, ...],
    golden: tuple[str, ...],
    n: int,
    timeout_s: Callable[[], float],
) -> tuple[str, tuple[str, ...]]:
    """Run what a child has loaded over n validation samples and the golden inputs.

    Returns:
        `.npy` files: the first output on the validation samples, and all outputs on the golden inputs.

    Raises:
        ChildError: the child failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scores = str(folder / "validation.npy")
    answers = _golden_paths(folder, signature)
    child.ask(PredictRequest(inputs=validation, outputs=(scores,), limit=n), Predicted, timeout_s=timeout_s())
    child.ask(PredictRequest(inputs=golden, outputs=answers), Predicted, timeout_s=timeout_s())
    return scores, answers


def _golden_paths(folder: Path, signature: Signature) -> tuple[str, ...]:
    return tuple(str(folder / f"golden_{index}.npy") for index in range(len(signature.outputs)))
