"""Plans: against all subsets at all overlaps, and what they tell."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import msgspec
import numpy as np
import pytest

from alula.accuracy import MacroAuc
from alula.errors import AccuracyError, UsageError
from alula.pipeline import StageCost
from alula.planning import (
    CostSheet,
    JudgedCascade,
    Machine,
    Member,
    Overlap,
    Plan,
    Stage,
    Validation,
    Workload,
    duration,
    halves,
    judge_cascade,
    make_plan,
    plan_rows,
)
from alula.planning import plan as plan_module

OVERLAPS = (Overlap(name="none"), Overlap(name="half", windows_per_row=2.0))
WORKLOAD = Workload(files=20, rows=2400, longest_rows=120)
COSTS = {"tiny": 0.02, "small": 0.05, "mid": 0.1, "big": 0.3}
QUALITY = {"tiny": 1.0, "small": 1.4, "mid": 1.8, "big": 2.6}


def members() -> list[Member]:
    return [Member(name=name, model=f"model {name}", features=("mel",)) for name in COSTS]


def sheet() -> CostSheet:
    def stage(core_s: float, per: Any) -> Stage:
        return Stage(cost=StageCost(core_s=core_s), per=per)

    return CostSheet(
        stages={
            "decode": stage(0.004, "row"),
            "mel": stage(0.005, "window"),
            **{f"model {name}": stage(cost, "window") for name, cost in COSTS.items()},
        },
        common=("decode",),
    )


def validation(seed: int, *, rows: int = 300, sharp: float = 1.0) -> Validation:
    rng = np.random.default_rng(seed)
    truth = rng.random((rows, 5)) < 0.15

    def scores(quality: float) -> Any:
        return 1 / (1 + np.exp(-(truth * quality * sharp + rng.normal(0, 1, truth.shape) - 1.5)))

    return Validation(
        metric=MacroAuc(),
        y_true=truth,
        predictions={
            overlap: {name: scores(quality + more) for name, quality in QUALITY.items()}
            for overlap, more in (("none", 0.0), ("half", 0.2))
        },
        groups=np.repeat(np.arange(rows // 10), 10),
    )


def planned(known: Validation, deadline_s: float, **options: Any) -> Plan:
    given: dict[str, Any] = {"machine": Machine(cpus=2), "workload": WORKLOAD, "sheet": sheet(), **options}
    return make_plan(
        given.pop("members", members()), OVERLAPS, validation=known, deadline_s=deadline_s, **given
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("deadline_s", [150.0, 400.0, 5000.0])
def test_no_subset_at_any_overlap_that_fits_is_better(seed: int, deadline_s: float) -> None:
    known = validation(seed)
    plan = planned(known, deadline_s, margin=0.1)
    best = -1.0
    for overlap in OVERLAPS:
        for size in range(1, 5):
            for some in itertools.combinations(members(), size):
                time = duration(some, overlap, sheet=sheet(), workload=WORKLOAD, machine=Machine(cpus=2))
                if time.high_s <= deadline_s * 0.9:
                    mean = np.mean([known.predictions[overlap.name][one.name] for one in some], axis=0)
                    best = max(best, MacroAuc().value(known.y_true, mean))
    assert plan.fits
    assert plan.time.high_s <= plan.limit_s == pytest.approx(deadline_s * 0.9)
    assert plan.score >= best - 1e-12
    assert plan.score == pytest.approx(known.score(plan.overlap, plan.counts))


def test_rows_that_are_made_of_others_are_judged_as_they_come_out() -> None:
    """At the denser overlap there are twice as many rows, and a row that is judged is the mean of two."""
    known = validation(0)
    dense = {name: np.repeat(scores, 2, axis=0) for name, scores in known.predictions["half"].items()}
    rng = np.random.default_rng(1)
    noise = {name: rng.normal(0, 0.1, known.predictions["half"][name].shape) for name in dense}
    for name, scores in dense.items():
        scores[::2] += noise[name]
        scores[1::2] -= noise[name]

    def finish(overlap: str, scores: Any) -> Any:
        return scores if overlap == "none" else scores.reshape(-1, 2, scores.shape[1]).mean(axis=1)

    predictions = {"none": known.predictions["none"], "half": dense}
    made_of_others = dataclasses.replace(known, predictions=predictions, finish=finish)
    for name in COSTS:
        assert made_of_others.score("half", {name: 1}) == pytest.approx(known.score("half", {name: 1}))
    one, other = planned(known, 400.0), planned(made_of_others, 400.0, max_drop=0.1)
    assert other.counts == one.counts
    assert other.judged_score == pytest.approx(one.judged_score)
    assert other.cascade is None  # of rows that are made of others none is learned
    with pytest.raises(UsageError, match="one shape with a row for each"):
        dataclasses.replace(made_of_others, finish=None)


def test_a_member_that_brings_nothing_is_given_back() -> None:
    """Picked greedily, a member may stay whose absence is no loss: the plan is the top of its ladder."""
    known = validation(2)
    for deadline_s in (300.0, 800.0, 5000.0):
        plan = planned(known, deadline_s, exhaustive_up_to=1)
        assert set(plan.ladder[0].members) == set(plan.counts)
        assert plan.ladder[0].overlap == plan.overlap
        assert plan.ladder[0].score == pytest.approx(plan.score)


def test_steps_end_at_the_plan_and_everything_else_is_accounted_for() -> None:
    plan = planned(validation(0), 400.0)
    assert plan.steps[-1].score == pytest.approx(plan.score)
    assert plan.steps[-1].time == plan.time
    assert [step.added for step in plan.steps] == list(plan.steps[-1].members)
    assert set(plan.counts) == set(plan.steps[-1].members)
    left = {one.what for one in plan.left_out}
    others = {f"overlap {one.name}" for one in OVERLAPS if one.name != plan.overlap}
    assert left == (set(COSTS) - set(plan.counts)) | others
    for one in plan.left_out:
        assert ("would take" in one.reason) == (one.time.high_s > plan.limit_s)


def test_the_judged_score_is_that_of_plans_made_on_the_other_half() -> None:
    known = validation(4, rows=100)
    plan = planned(known, 400.0)
    assert plan.judged_score is not None
    scores = []
    sides = halves(known)
    for mine, other in (sides, sides[::-1]):
        part = Validation(
            metric=MacroAuc(),
            y_true=known.y_true[mine],
            predictions={
                overlap: {name: scores[mine] for name, scores in members.items()}
                for overlap, members in known.predictions.items()
            },
        )
        chosen = planned(part, 400.0)
        scores.append(known.judged(known.blended(chosen.overlap, chosen.counts), other))
    assert plan.judged_score == pytest.approx(np.mean(scores))


def test_one_recording_is_not_judged() -> None:
    known = dataclasses.replace(validation(4, rows=100), groups=np.zeros(100))
    assert planned(known, 400.0).judged_score is None


def test_over_many_sets_the_judged_score_flatters_less() -> None:
    gaps = []
    for seed in range(8):
        plan = planned(validation(seed, rows=60), 5000.0)
        assert plan.judged_score is not None
        fresh = validation(500 + seed, rows=1500)
        true = fresh.score(plan.overlap, plan.counts)
        gaps.append((plan.score - true, plan.judged_score - true))
    flattery, judged = np.mean(gaps, axis=0)
    assert flattery > judged


def test_the_table_says_score_time_and_why() -> None:
    plan = planned(validation(0), 400.0)
    head, first, *rest = plan_rows(plan)
    assert head == ("step", "score", "time", "why")
    assert first[0] == plan.steps[0].added and first[3].startswith("first, weight")
    assert [row[0] for row in rest].count("judged") == 1
    assert len(rest) == len(plan.steps) + len(plan.left_out)
    assert any("would take up to" in row[3] for row in rest)


def test_the_ladder_starts_with_the_plan_and_ends_with_its_cheapest_member() -> None:
    plan = planned(validation(1), 5000.0)
    assert plan.ladder[0].score == pytest.approx(plan.score)
    cheapest = min(plan.counts, key=COSTS.__getitem__)
    assert [name for name in plan.ladder[-1].loads if name.startswith("model")] == [f"model {cheapest}"]


def test_where_nothing_fits_the_cheapest_is_planned_and_it_is_said() -> None:
    plan = planned(validation(0), 5.0)
    assert (plan.fits, plan.counts, plan.overlap) == (False, {"tiny": 1}, "none")
    assert "no time for any member" in plan.notes[0]


def test_a_plan_for_another_machine_is_said_to_be_an_estimate() -> None:
    here = planned(validation(0), 400.0)
    there = planned(validation(0), 400.0, machine=Machine(cpus=4, speed=0.8, measured=False))
    assert here.notes == ()
    assert "estimate" in there.notes[0] and "4 CPUs of 0.8 times" in there.notes[0]


def test_of_two_precisions_of_one_model_at_most_one_is_taken() -> None:
    pair = [
        msgspec.structs.replace(one, variant_of="x" if one.name in ("mid", "big") else "")
        for one in members()
    ]
    for seed in range(3):
        plan = planned(validation(seed), 5000.0, members=pair)
        assert len({"mid", "big"} & set(plan.counts)) == 1
        (other,) = (one for one in plan.left_out if one.what in ("mid", "big"))
        assert other.reason.startswith("in place of") or "would take" in other.reason


def test_a_cascade_is_offered_where_it_wins_and_not_where_it_does_not() -> None:
    clear = validation(0, rows=2000, sharp=4.0)
    plan = planned(clear, 5000.0, max_drop=0.005)
    offer = plan.cascade
    assert offer is not None
    assert offer.time.high_s <= plan.limit_s
    assert offer.judged.drop <= 0.005
    more = offer.judged.score > offer.plain_score
    assert more or offer.time.expected_s <= 0.8 * plan.time.expected_s
    assert any(row[0].startswith("cascade on") for row in plan_rows(plan))
    # The time is that of the cheap member everywhere and the others where it is uncertain.
    cheap = offer.judged.cascade.cheap
    overlap = next(one for one in OVERLAPS if one.name == offer.overlap)
    others = sum(COSTS[name] for name in offer.counts if name != cheap)
    models_s = COSTS[cheap] + offer.judged.share * others
    row_s = 0.004 + overlap.windows_per_row * (0.005 + models_s)
    assert offer.time.expected_s == pytest.approx(row_s * WORKLOAD.rows * sheet().overhead / 2)
    assert planned(clear, 5000.0).cascade is None  # nobody said what may be lost
    blurred = validation(0, sharp=0.2)
    assert planned(blurred, 5000.0, max_drop=0.0).cascade is None


@pytest.mark.parametrize(("cost_s", "first"), [(0.2, "best"), (1.5, "big")])
def test_a_cascade_may_begin_with_the_best_that_does_not_cost_too_much(
    monkeypatch: pytest.MonkeyPatch, cost_s: float, first: str
) -> None:
    known, costs = validation(0), sheet()
    stage = msgspec.structs.replace(costs.stages["model big"], cost=StageCost(core_s=cost_s))
    costs = msgspec.structs.replace(costs, stages={**costs.stages, "model best": stage})
    best = Member(name="best", model="model best", features=("mel",))
    noise = np.random.default_rng(1).normal(0, 1, known.y_true.shape)
    scores = 1 / (1 + np.exp(-(4.0 * known.y_true + noise)))
    predictions = {overlap: {**found, "best": scores} for overlap, found in known.predictions.items()}
    tried: list[str] = []
    drops: set[float] = set()

    def spied(*_: Any, cheap: str, learned_drop: float, **__: Any) -> None:
        tried.append(cheap)
        drops.add(learned_drop)

    monkeypatch.setattr(plan_module, "judge_cascade", spied)
    known = dataclasses.replace(known, predictions=predictions)
    plan = planned(known, 5000.0, members=[*members(), best], sheet=costs, max_drop=0.01)
    assert {"best", "big"} <= plan.counts.keys()
    assert set(tried) == {"tiny", "small", "mid", first}
    assert drops == {0.005, 0.01}  # half of the limit, and all of it


def test_no_cascade_where_the_recordings_cannot_judge_one() -> None:
    known = validation(0, rows=100, sharp=4.0)
    alone = dataclasses.replace(known, groups=np.zeros(100))
    truth = np.array(known.y_true)
    truth[50:] = False
    one_sided = dataclasses.replace(known, y_true=truth, groups=np.repeat([0, 1], 50))
    for few in (alone, one_sided):
        plan = planned(few, 5000.0, max_drop=0.005)
        assert (plan.judged_score, plan.cascade) == (None, None)
        assert plan.score > 0.9


def test_a_cascade_whose_score_is_not_defined_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    clear = validation(0, rows=2000, sharp=4.0)
    offer = planned(clear, 5000.0, max_drop=0.005).cascade
    assert offer is not None
    best = offer.judged.cascade.cheap

    def undefined(known: Validation, **options: Any) -> JudgedCascade | None:
        if options["cheap"] == best:
            raise AccuracyError("not defined")
        return judge_cascade(known, **options)

    monkeypatch.setattr(plan_module, "judge_cascade", undefined)
    other = planned(clear, 5000.0, max_drop=0.005).cascade
    assert other is None or other.judged.cascade.cheap != best


@pytest.mark.parametrize("exhaustive_up_to", [12, 1])
def test_no_cascade_has_two_precisions_of_one_model(
    monkeypatch: pytest.MonkeyPatch, exhaustive_up_to: int
) -> None:
    """Neither in the ensemble that there is no time for, nor the first member beside the others."""
    words = {"tiny": "x", "big": "x", "small": "y", "mid": "y"}
    pairs = [msgspec.structs.replace(one, variant_of=words[one.name]) for one in members()]
    tried: list[set[str]] = []

    def spied(known: Validation, **options: Any) -> JudgedCascade | None:
        tried.append({options["cheap"], *options["counts"]})
        return judge_cascade(known, **options)

    monkeypatch.setattr(plan_module, "judge_cascade", spied)
    known = validation(0, sharp=2.0)
    planned(known, 150.0, members=pairs, max_drop=0.01, exhaustive_up_to=exhaustive_up_to)
    assert any("big" in names for names in tried)
    for names in tried:
        assert len({words[name] for name in names}) == len(names)


def test_a_plan_goes_to_json_and_back() -> None:
    plan = planned(validation(0, rows=1000, sharp=3.0), 400.0, max_drop=0.01)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


def test_what_does_not_belong_together_is_refused() -> None:
    known = validation(0)
    stranger = Member(name="stranger", model="model tiny")
    with pytest.raises(UsageError, match="stranger"):
        planned(known, 400.0, members=[stranger])
    with pytest.raises(UsageError, match="its own"):
        planned(known, 400.0, members=[members()[0], members()[0]])
    with pytest.raises(UsageError, match="deadline"):
        planned(known, -1.0)
    with pytest.raises(UsageError, match="every overlap"):
        make_plan(
            members(),
            [Overlap(name="other")],
            sheet=sheet(),
            validation=known,
            workload=WORKLOAD,
            machine=Machine(cpus=1),
            deadline_s=1.0,
        )


def test_predictions_that_do_not_agree_are_refused() -> None:
    truth = np.zeros((3, 2))
    with pytest.raises(UsageError, match="one shape"):
        Validation(metric=MacroAuc(), y_true=truth, predictions={"none": {"a": np.zeros((4, 2))}})
    with pytest.raises(UsageError, match="every member at each"):
        Validation(
            metric=MacroAuc(),
            y_true=truth,
            predictions={"none": {"a": truth}, "half": {"b": truth}},
        )
    with pytest.raises(UsageError, match="groups"):
        Validation(metric=MacroAuc(), y_true=truth, predictions={"none": {"a": truth}}, groups=np.zeros(2))
