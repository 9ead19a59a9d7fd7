"""The search goes on whatever a recipe does, and says in one line what it did."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from quick import take_looks_as_they_are
from tiny import CLASSES, FEATURES, write_factory, write_onnx

from alula.accuracy import metric_named
from alula.core import Accepted, Failed, Outcome, Recipe, Rejected, Scenario
from alula.engines.fake import SCRIPT_VARIABLE, FakeScript
from alula.errors import AccuracyError, DiskFullError, MeasurementError, ModelError, UsageError
from alula.measure import ratio
from alula.measure.fake import ScriptedClock
from alula.sources import parse_source
from alula.tuning import Journal, SearchPlan, SearchResult, comparison, read_journal, search

# The function hides its module.
searching = importlib.import_module("alula.tuning.search")

FAKE = Recipe("fake", "fp32")
REAL = Recipe("onnxruntime", "fp32")
N = 40


@dataclass
class Found:
    """What came of a search."""

    result: SearchResult
    outcomes: list[Outcome]
    reports: list[str] = field(default_factory=list)

    def of(self, recipe: Recipe) -> list[Outcome]:
        return [
            outcome
            for outcome in self.outcomes
            if (outcome.candidate.recipe if isinstance(outcome, Accepted) else outcome.recipe) == recipe
        ]


def run(plan: SearchPlan, **options: Any) -> Found:
    """Search; the journal holds what `on_outcome` got, whatever happens."""
    outcomes: list[Outcome] = []
    reports: list[str] = []
    journal = Journal(plan.workdir / "search.jsonl")
    try:
        result = search(plan, journal=journal, report=reports.append, on_outcome=outcomes.append, **options)
    finally:
        assert list(read_journal(journal.path)) == outcomes
    return Found(result, outcomes, reports)


@pytest.fixture
def plan(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> SearchPlan:
    """A search over the fake engine and ONNX Runtime, on an ONNX file that both compute alike.

    The batch axis is fixed, so that there is one setting to measure.
    """
    take_looks_as_they_are(monkeypatch)
    workdir = tmp_path / "search"
    workdir.mkdir()
    x = rng.normal(size=(N, FEATURES)).astype(np.float32)
    np.save(workdir / "validation.npy", x)
    np.save(workdir / "calibration.npy", x[:10] + 1)
    return SearchPlan(
        source=parse_source(write_onnx(tmp_path / "model.onnx", batch=8)),
        workdir=workdir,
        calibration=(str(workdir / "calibration.npy"),),
        validation=(str(workdir / "validation.npy"),),
        targets=x[:, :CLASSES].argmax(axis=1),
        metric=metric_named("top1"),
        max_drop=0.01,
        recipes=(FAKE, REAL),
        threads=1,
        saturating=False,
        budget_s=600.0,
        closing_s=0.0,
        memory_limit_bytes=4 * 2**30,
        timeout_s=60.0,
        round_s=0.01,
        final_rounds=6,
    )


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[Recipe, FakeScript]], None]:
    """Say what the fake engine does with each recipe in this search."""

    def set_scripts(of: dict[Recipe, FakeScript]) -> None:
        named = {recipe.name: script for recipe, script in of.items()}
        monkeypatch.setenv(SCRIPT_VARIABLE, msgspec.json.encode(named).decode())

    return set_scripts


@pytest.fixture
def script(scripts: Callable[[dict[Recipe, FakeScript]], None]) -> Callable[..., None]:
    """Say what the fake engine does with its plain recipe."""

    def set_script(**fields: Any) -> None:
        scripts({FAKE: FakeScript(**fields)})

    return set_script


def test_the_fastest_right_recipe_wins(plan: SearchPlan, script: Callable[..., None]) -> None:
    script(seconds_per_batch=0.02)
    found = run(plan)
    assert set(map(type, found.outcomes)) == {Accepted}
    result = found.result
    # ONNX Runtime multiplies 8x4 numbers in microseconds, the fake engine sleeps for 20 ms.
    assert {finalist.accepted.candidate.recipe for finalist in result.finalists} == {REAL}
    assert [accepted.candidate.recipe for accepted in result.accepted] == [REAL, FAKE]
    assert result.accepted[1].relative == pytest.approx(1, abs=0.3)  # the anchor is the first that works
    assert all(len(finalist.throughput.rounds_per_s) == 6 for finalist in result.finalists)
    assert set(result.race) >= {finalist.accepted.candidate for finalist in result.finalists}
    assert all(rate > 0 for rates in result.race.values() for rate in rates)
    assert result.baseline.recipe == REAL
    assert result.validation_samples == N
    assert result.finalists[0].accepted.accuracy.drop == 0
    assert set(result.artifacts) == {FAKE.name, REAL.name}
    golden = np.load(result.golden[0])
    for paths in (result.baseline_outputs, *map(result.golden_outputs.get, (FAKE.name, REAL.name))):
        assert paths is not None
        np.testing.assert_allclose(np.load(paths[0]), golden[:, :CLASSES], rtol=1e-6)


def test_each_recipe_that_breaks_costs_one_line(
    plan: SearchPlan, scripts: Callable[[dict[Recipe, FakeScript]], None]
) -> None:
    says = {
        "error": r"The fake engine failed, as its script says\.",
        "exit": r"The process ended with exit code 41\.",
        "hang": r"Stopped: no answer within 8 s\.",
        "memory": r"Stopped: it used \d+\.\d GiB of memory; allowed were 0\.8 GiB\.",
    }
    breaking = {
        Recipe("fake", "fp32", variant=f"{fault}-at-{place}"): FakeScript(fault=fault, fault_at=place)
        for fault in says
        for place in ("build", "load", "run")
    }
    scripts(breaking)
    limits: dict[str, Any] = {"timeout_s": 8.0, "memory_limit_bytes": int(0.8 * 2**30)}
    found = run(replace(plan, recipes=(*breaking, REAL), **limits))
    for recipe, script in breaking.items():
        (failed,) = found.of(recipe)
        assert isinstance(failed, Failed)
        assert re.fullmatch(says[script.fault or ""], failed.error), recipe
        assert failed.seconds > 0
        assert "alula.tuning.worker < " in failed.reproduce
        assert Path(shlex.split(failed.reproduce)[-1]).is_file()
    assert set(map(type, found.of(REAL))) == {Accepted}
    assert {finalist.accepted.candidate.recipe for finalist in found.result.finalists} == {REAL}


def test_the_command_of_a_failure_repeats_it(plan: SearchPlan, script: Callable[..., None]) -> None:
    script(fault="error", fault_at="run")
    (failed,) = run(replace(plan, recipes=(FAKE,))).of(FAKE)
    assert isinstance(failed, Failed)
    command = failed.reproduce.replace(Path(sys.executable).name, shlex.quote(sys.executable), 1)
    again = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0, again.stderr
    last = msgspec.json.decode(again.stdout.splitlines()[-1])
    assert last == {"type": "Problem", "error": failed.error}


def test_what_computes_something_else_is_rejected_and_rounding_is_not(
    plan: SearchPlan, scripts: Callable[[dict[Recipe, FakeScript]], None]
) -> None:
    """A factor of 1.01 changes no top-1 result, and is no rounding; 1.0001 is."""

    def named(variant: str) -> Recipe:
        return Recipe("fake", "fp32", variant=variant)

    wrong = {
        named("larger"): FakeScript(scale=1.01),
        named("negative"): FakeScript(scale=-1.0),
        named("nothing"): FakeScript(scale=0.0),
        named("nan"): FakeScript(fault="nan"),
        # Right on the golden samples: the first two of five batches.
        named("nan-later"): FakeScript(fault="nan", fault_after=2),
    }
    rounded = named("rounded")
    scripts({**wrong, rounded: FakeScript(scale=1.0001, seconds_per_batch=0.02)})
    found = run(replace(plan, recipes=(*wrong, rounded, REAL)))
    for recipe, script in wrong.items():
        (rejected,) = found.of(recipe)
        assert isinstance(rejected, Rejected)
        assert "\n" not in rejected.reason
        if script.fault is None:
            assert rejected.reason.startswith("FP32 outputs differ from the model's by ")
    assert set(map(type, found.of(rounded))) == {Accepted}
    assert {finalist.accepted.candidate.recipe for finalist in found.result.finalists} == {REAL}


def test_a_recipe_that_dies_while_it_is_timed_is_lost_and_the_others_stand(
    plan: SearchPlan, script: Callable[..., None]
) -> None:
    # Calls are counted from each load; the check of accuracy takes 6 of them.
    script(fault="exit", fault_after=8, seconds_per_batch=0.02)
    found = run(replace(plan, round_s=0.05, final_rounds=9))
    lost = found.of(FAKE)[0]
    assert isinstance(lost, Failed)
    assert lost.error == "The process ended with exit code 41."
    assert lost.settings is not None
    assert {finalist.accepted.candidate.recipe for finalist in found.result.finalists} == {REAL}
    assert len(found.result.finalists[0].throughput.rounds_per_s) == 9


def test_a_recipe_that_hangs_while_it_is_timed_is_stopped_long_before_a_step_must_end(
    plan: SearchPlan, script: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "PATIENCE", 0)
    monkeypatch.setattr(comparison, "LEAST_PATIENCE_S", 0.5)
    script(fault="hang", fault_after=8)
    found = run(plan)
    lost = found.of(FAKE)[0]
    assert isinstance(lost, Failed)
    assert lost.settings is not None
    stopped = re.fullmatch(r"Stopped: no answer within (\d+) s\.", lost.error)
    assert stopped is not None
    assert int(stopped[1]) < plan.timeout_s / 2  # half a second, and twice the time of loading
    assert {finalist.accepted.candidate.recipe for finalist in found.result.finalists} == {REAL}


def test_the_result_says_what_disturbed_the_search(plan: SearchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, float]] = []

    def describe(before: object, after: object, **times: float) -> tuple[str, ...]:
        told.append(times)
        return ("other processes used 0.8 of 2 CPUs",)

    monkeypatch.setattr(searching, "describe_disturbance", describe)
    result = run(replace(plan, recipes=(REAL,))).result
    assert result.disturbance == ("other processes used 0.8 of 2 CPUs",)
    # The children that have ended are the search's own: they import ONNX Runtime, for one.
    assert 0.1 < told[0]["own_cpu_s"] < 10 * told[0]["wall_s"]


def test_a_metric_that_is_not_defined_for_the_model_is_told_before_anything_is_tried(
    plan: SearchPlan,
) -> None:
    reports: list[str] = []
    targets = np.full(N, 7 * CLASSES)  # the model has no such class
    with pytest.raises(AccuracyError, match="class"):
        search(
            replace(plan, targets=targets),
            journal=Journal(plan.workdir / "search.jsonl"),
            report=reports.append,
        )
    assert not [text for text in reports if text.startswith("trying")]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_not_as_many_class_names_as_scores_are_refused_before_anything_is_tried(
    plan: SearchPlan, n: int
) -> None:
    journal = Journal(plan.workdir / "search.jsonl")
    with pytest.raises(
        UsageError, match=rf"There are {n} class names \(a, b[^)]*\), but the model gives 4 scores"
    ):
        search(replace(plan, labels=tuple("abcde"[:n])), journal=journal)
    assert not list(read_journal(journal.path))


def test_where_all_finalists_are_lost_at_the_end_the_next_best_wins(
    plan: SearchPlan, script: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(seconds_per_batch=0.02)
    compared: list[set[str]] = []

    def losing(contenders: dict[str, Any], **options: Any) -> comparison.Comparison:
        compared.append(set(contenders) - {"baseline"})
        made = comparison.compare_speeds(contenders, **options)
        lost = {
            name: comparison.Loss(error="It crashed.", reproduce="again")
            for name in made.rounds
            if name.startswith(REAL.name)
        }
        kept = {name: rounds for name, rounds in made.rounds.items() if name not in lost}
        return replace(made, rounds=kept, losses=lost)

    monkeypatch.setattr(searching, "compare_speeds", losing)
    found = run(plan)
    recipes = [{name.partition(" ")[0] for name in names} for names in compared]
    assert recipes[0] == {REAL.name}
    assert recipes[-1] == {FAKE.name}
    assert [one.accepted.candidate.recipe for one in found.result.finalists] == [FAKE]
    assert not compared[0] & {str(one.candidate) for one in found.result.accepted}  # for no fallback either
    last = found.of(REAL)[-1]
    assert isinstance(last, Failed)
    assert last.error == "It crashed."


def test_a_baseline_that_is_measured_after_the_others_is_no_neighbour_of_them(
    plan: SearchPlan, script: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_the_baseline(contenders: dict[str, Any], **options: Any) -> comparison.Comparison:
        made = comparison.compare_speeds(contenders, **options)
        return replace(made, rounds={name: one for name, one in made.rounds.items() if name != "baseline"})

    paired: list[bool] = []

    def noting(*rates: Any, **options: Any) -> Any:
        paired.append(options["paired"])
        return ratio(*rates, **options)

    monkeypatch.setattr(searching, "compare_speeds", without_the_baseline)
    monkeypatch.setattr(searching, "ratio", noting)
    found = run(replace(plan, recipes=(REAL,)))
    assert paired
    assert not any(paired)
    assert any("measured after them" in text for text in found.result.warnings)


def test_when_every_recipe_fails_the_baseline_is_left(plan: SearchPlan, script: Callable[..., None]) -> None:
    script(fault="exit", fault_at="load")
    found = run(replace(plan, recipes=(FAKE,)))
    assert found.result.finalists == found.result.accepted == ()
    assert found.result.baseline_throughput.per_s > 0


def test_no_recipe_is_started_after_the_budget(plan: SearchPlan) -> None:
    class Impatient(ScriptedClock):
        """A clock on which every look takes a minute."""

        def monotonic(self) -> float:
            self.advance(60.0)
            return super().monotonic()

    found = run(replace(plan, budget_s=90.0, recipes=(REAL, FAKE)), clock=Impatient())
    assert set(map(type, found.of(REAL))) == {Accepted}
    assert found.of(FAKE) == [Rejected(recipe=FAKE, reason="the budget is used up", tried=False)]


def test_a_recipe_that_the_budget_ends_is_no_failure_and_is_tried_again(
    plan: SearchPlan, script: Callable[..., None]
) -> None:
    script(fault="hang", fault_at="build")
    found = run(replace(plan, budget_s=10.0, recipes=(REAL, FAKE)))
    (left,) = found.of(FAKE)
    assert isinstance(left, Rejected)
    assert not left.tried
    script()
    again = search(replace(plan, recipes=(REAL, FAKE)), journal=Journal(plan.workdir / "search.jsonl"))
    assert {one.candidate.recipe for one in again.accepted} == {REAL, FAKE}


def test_a_full_disk_is_no_recipes_fault_and_the_same_search_continues(
    plan: SearchPlan, script: Callable[..., None]
) -> None:
    script(fault="full", fault_at="build")
    plan = replace(plan, recipes=(REAL, FAKE))
    with pytest.raises(DiskFullError, match=r"^The disk is full: .* could not be written"):
        run(plan)
    known = list(read_journal(plan.workdir / "search.jsonl"))
    assert {type(outcome) for outcome in known} == {Accepted}
    script()
    reports: list[str] = []
    result = search(plan, journal=Journal(plan.workdir / "search.jsonl"), report=reports.append)
    assert {one.candidate.recipe for one in result.accepted} == {REAL, FAKE}
    assert not [text for text in reports if text.startswith((f"trying {REAL}", "reading", "measuring"))]


def test_an_onnx_file_has_no_other_export(plan: SearchPlan) -> None:
    recipe = Recipe("torchscript", "fp32")
    found = run(replace(plan, recipes=(recipe, REAL)))
    (failed,) = found.of(recipe)
    assert isinstance(failed, Failed)
    assert failed.error == "It needs a PyTorch module, and the model is an ONNX file."
    assert {finalist.accepted.candidate.recipe for finalist in found.result.finalists} == {REAL}


def test_a_model_that_cannot_be_read_ends_the_search(plan: SearchPlan, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"model\.onnx"):
        run(plan)


def test_a_model_that_does_not_fit_the_samples_ends_the_search(plan: SearchPlan) -> None:
    np.save(plan.validation[0], np.zeros((N, FEATURES + 1), np.float32))
    with pytest.raises(MeasurementError, match=r"^The baseline .* cannot be run: .*\(8, 9\)"):
        run(plan)


def test_a_module_from_a_file_is_searched_beside_a_broken_engine(
    plan: SearchPlan, script: Callable[..., None], tmp_path: Path, rng: np.random.Generator
) -> None:
    script(fault="exit", fault_at="run")
    for path in (*plan.validation, *plan.calibration):
        np.save(path, rng.normal(size=(N, 3, 16, 16)).astype(np.float32))
    found = run(
        replace(
            plan,
            source=parse_source(f"{write_factory(tmp_path)}:tiny"),
            targets=None,
            metric=metric_named("agreement"),
            recipes=(FAKE, REAL, Recipe("torchscript", "fp32")),
        )
    )
    assert found.result.baseline.recipe == Recipe("torch", "fp32")
    assert [type(outcome) for outcome in found.of(FAKE)] == [Failed]
    assert {one.candidate.recipe.engine for one in found.result.accepted} == {"onnxruntime", "torchscript"}
    assert all(a.accuracy.drop == 0 for a in found.result.accepted)


def test_an_export_that_fails_is_tried_once_for_all_recipes_that_need_it(
    plan: SearchPlan, tmp_path: Path, rng: np.random.Generator
) -> None:
    (tmp_path / "net.py").write_text(_NOT_EXPORTABLE)
    for path in (*plan.validation, *plan.calibration):
        np.save(path, rng.normal(size=(N, FEATURES)).astype(np.float32))
    found = run(
        replace(
            plan,
            source=parse_source(f"{tmp_path}/net.py:awkward"),
            targets=None,
            metric=metric_named("agreement"),
            recipes=(FAKE, REAL),
        )
    )
    first, second = found.outcomes
    assert isinstance(first, Failed)
    assert isinstance(second, Failed)
    assert first.error == second.error
    assert "\n" not in first.error
    assert found.reports.count("exporting to onnx") == 1


_NOT_EXPORTABLE = """
import numpy as np
import torch

class Awkward(torch.nn.Module):
    def forward(self, x):
        # NumPy in the middle: no exporter follows it.
        return torch.from_numpy(np.sort(x.detach().numpy(), axis=1)[:, :4].copy())

def awkward():
    return Awkward()
"""


def test_an_interrupt_ends_with_the_best_so_far_and_the_same_search_continues(
    plan: SearchPlan, script: Callable[..., None]
) -> None:
    script(seconds_per_batch=0.005)
    plan = replace(plan, recipes=(REAL, FAKE))

    class KilledError(Exception):
        """Stands for the end of the process."""

    def interrupt(text: str) -> None:
        if text.startswith(f"trying {FAKE}"):
            raise KeyboardInterrupt

    result = search(plan, journal=Journal(plan.workdir / "search.jsonl"), report=interrupt)
    assert [finalist.accepted.candidate.recipe for finalist in result.finalists] == [REAL]

    def kill(outcome: Outcome) -> None:
        if isinstance(outcome, Accepted) and outcome.candidate.recipe == FAKE:
            raise KilledError

    with pytest.raises(KilledError):
        search(plan, journal=Journal(plan.workdir / "search.jsonl"), on_outcome=kill)
    reports: list[str] = []
    again: list[Outcome] = []
    result = search(
        plan,
        journal=Journal(plan.workdir / "search.jsonl"),
        report=reports.append,
        on_outcome=again.append,
    )
    assert not [text for text in reports if text.startswith(("trying", "reading", "measuring"))]
    assert {one.candidate.recipe for one in result.accepted} == {REAL, FAKE}


def test_an_interrupt_of_the_last_comparison_leaves_a_shorter_one_of_the_best(
    plan: SearchPlan, script: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(seconds_per_batch=0.02)
    plan = replace(plan, final_rounds=12)
    compared: list[tuple[set[str], int]] = []

    def interrupted_once(contenders: dict[str, Any], **options: Any) -> comparison.Comparison:
        compared.append((set(contenders), options["rounds"]))
        if len(compared) == 1:
            raise KeyboardInterrupt
        return comparison.compare_speeds(contenders, **options)

    monkeypatch.setattr(searching, "compare_speeds", interrupted_once)
    found = run(plan)
    (first, rounds), (second, fewer) = compared
    assert second <= first and len(second) == 2
    assert fewer < rounds == 12
    assert [one.accepted.candidate.recipe for one in found.result.finalists] == [REAL]
    assert any(text.startswith("interrupted: ") for text in found.reports)

    def interrupted(contenders: dict[str, Any], **options: Any) -> comparison.Comparison:
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "compare_speeds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(plan, journal=Journal(plan.workdir / "search.jsonl"))


def test_an_interrupt_while_latency_is_measured_costs_only_the_latency(
    plan: SearchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "measure_latency", interrupted)
    found = run(replace(plan, recipes=(REAL,), scenario="single-stream"))
    assert found.result.latency is None
    assert found.result.unmeasured == "the search was interrupted before"
    assert {one.accepted.candidate.recipe for one in found.result.finalists} == {REAL}
    assert found.reports[-1].startswith("interrupted: ")


@pytest.mark.parametrize(
    ("scenario", "limit_s", "measuring"),
    [("single-stream", None, "measure_latency"), ("server", 1.0, "measure_server")],
)
def test_a_figure_that_cannot_be_measured_costs_only_itself(
    plan: SearchPlan,
    monkeypatch: pytest.MonkeyPatch,
    scenario: Scenario,
    limit_s: float | None,
    measuring: str,
) -> None:
    def failing(*_: Any, **options: Any) -> Any:
        raise MeasurementError("p99 is over the limit at any rate.")

    monkeypatch.setattr(searching, measuring, failing)
    found = run(replace(plan, recipes=(REAL,), scenario=scenario, latency_limit_s=limit_s)).result
    assert (found.latency, found.server) == (None, None)
    assert found.unmeasured == "p99 is over the limit at any rate."
    assert {one.accepted.candidate.recipe for one in found.finalists} == {REAL}
