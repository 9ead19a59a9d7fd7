"""The ladder: its order against a naive reading of the rule, and what every ladder must be."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.errors import UsageError
from alula.pipeline import DeadlineScheduler, Reserve, StageCost
from alula.planning import CostSheet, Member, Overlap, Stage, declare_ladder

OVERLAPS = (Overlap(name="none"), Overlap(name="half", windows_per_row=2.0))


def sheet_of(costs: list[float]) -> CostSheet:
    stages = {f"model {k}": Stage(cost=StageCost(core_s=cost), per="window") for k, cost in enumerate(costs)}
    return CostSheet(
        stages={"decode": Stage(cost=StageCost(core_s=0.1), per="row"), **stages}, common=("decode",)
    )


def members_of(count: int) -> list[Member]:
    return [Member(name=f"m{k}", model=f"model {k}") for k in range(count)]


def test_the_least_score_per_second_goes_first_and_the_cheapest_member_stays() -> None:
    values = {"m0": 0.10, "m1": 0.30, "m2": 0.05}

    def score(names: frozenset[str], overlap: str) -> float:
        return sum(values[name] for name in names) + (0.01 if overlap == "half" else 0.0)

    # Per window m0 costs 0.5, m1 1.0 and m2 2.0; overlap doubles that.
    ladder = declare_ladder(members_of(3), OVERLAPS, sheet=sheet_of([0.5, 1.0, 2.0]), score=score)
    assert [rung.name for rung in ladder] == [
        "m0 + m1 + m2, overlap half",
        "m0 + m1 + m2, overlap none",  # 0.01 for 3.5 s
        "m0 + m1, overlap none",  # 0.05 for 2 s
        "m1, overlap none",  # 0.10 for 0.5 s, before 0.30 for 1 s
        "m0, overlap none",
    ]
    assert ladder[0].loads == {"decode": 1.0, "model 0": 2.0, "model 1": 2.0, "model 2": 2.0}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.floats(0.05, 0.95)), min_size=1, max_size=6),
    st.floats(-0.05, 0.1),
)
def test_every_ladder_gets_cheaper_and_worse_and_ends_with_the_cheapest_member(
    members: list[tuple[float, float]], overlap_gain: float
) -> None:
    sheet = sheet_of([cost for cost, _ in members])
    quality = {f"m{k}": value for k, (_, value) in enumerate(members)}

    def score(names: frozenset[str], overlap: str) -> float:
        return 1 - math.prod(1 - quality[name] for name in names) + (overlap_gain if overlap == "half" else 0)

    ladder = declare_ladder(members_of(len(members)), OVERLAPS, sheet=sheet, score=score)
    costs = [
        sum(units * sheet.stages[name].cost.core_s for name, units in rung.loads.items()) for rung in ladder
    ]
    assert costs == sorted(set(costs), reverse=True)
    assert [rung.score for rung in ladder] == sorted({rung.score for rung in ladder}, reverse=True)
    assert costs[-1] == pytest.approx(0.1 + min(cost for cost, _ in members))
    # A scheduler takes every ladder as it is.
    DeadlineScheduler(
        ladder,
        costs={name: stage.cost for name, stage in sheet.stages.items()},
        cpus=1.0,
        deadline_s=1.0,
        reserve=Reserve(write_s=0, stall_s=0),
        clock=lambda: 0.0,
    )


def test_wrong_members_are_refused() -> None:
    with pytest.raises(UsageError, match="at least one"):
        declare_ladder([], OVERLAPS, sheet=sheet_of([1.0]), score=lambda names, overlap: 0.0)
    twins = [Member(name="a", model="model 0"), Member(name="b", model="model 0")]
    with pytest.raises(UsageError, match="its own"):
        declare_ladder(twins, OVERLAPS, sheet=sheet_of([1.0]), score=lambda names, overlap: 0.0)
