"""How long a job takes: units counted by hand, intervals by their coverage."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alula.errors import UsageError
from alula.pipeline import StageCost
from alula.planning import (
    CostSheet,
    Machine,
    Member,
    Overlap,
    Stage,
    Workload,
    duration,
    parse_workload,
    row_loads,
)


def stage(core_s: float, per: str, *, serial: bool = False, spread: float = 0.1) -> Stage:
    return Stage(cost=StageCost(core_s=core_s, spread=spread), per=per, serial=serial)  # type: ignore[arg-type]


SHEET = CostSheet(
    stages={
        "open": stage(0.5, "file"),
        "decode": stage(0.01, "row", serial=True),
        "mel": stage(0.02, "window", serial=True),
        "a": stage(0.1, "window"),
        "b": stage(0.3, "window"),
    },
    common=("open", "decode"),
    overhead=1.0,
    spread=0.0,
)
A = Member(name="A", model="a", features=("mel",))
B = Member(name="B", model="b", features=("mel",))
ONCE, TWICE = Overlap(name="none"), Overlap(name="half", windows_per_row=2.0)
LOAD = Workload(files=10, rows=1000, longest_rows=100)


def expected_s(*members: Member, overlap: Overlap = ONCE, machine: Machine | None = None) -> float:
    machine = machine or Machine(cpus=2)
    return duration(members, overlap, sheet=SHEET, workload=LOAD, machine=machine).expected_s


def test_every_stage_is_counted_once_by_its_unit() -> None:
    assert expected_s(A) == pytest.approx((10 * 0.5 + 1000 * (0.01 + 0.02 + 0.1)) / 2)
    assert expected_s(A, B) == pytest.approx((10 * 0.5 + 1000 * (0.01 + 0.02 + 0.1 + 0.3)) / 2)
    assert expected_s(A, overlap=TWICE) == pytest.approx((10 * 0.5 + 1000 * (0.01 + 0.04 + 0.2)) / 2)


def test_one_long_input_is_decoded_on_one_cpu() -> None:
    long = Workload(files=2, rows=1000, longest_rows=999)
    found = duration([A], ONCE, sheet=SHEET, workload=long, machine=Machine(cpus=64))
    assert found.expected_s == pytest.approx(999 * 0.03 + (2 * 0.5 + 1000 * 0.1) / 64)


def test_what_comes_once_per_job_is_not_divided() -> None:
    sheet = msgspec.structs.replace(SHEET, stages=SHEET.stages | {"load": stage(7.0, "job", spread=0.5)})
    loading = Member(name="A", model="a", features=("mel", "load"))
    for machine in (Machine(cpus=2), Machine(cpus=64, speed=0.5)):
        with_it = duration([loading], ONCE, sheet=sheet, workload=LOAD, machine=machine)
        without = duration([A], ONCE, sheet=sheet, workload=LOAD, machine=machine)
        assert with_it.expected_s == pytest.approx(without.expected_s + 7.0 / machine.speed)
    assert with_it.high_s / with_it.low_s > without.high_s / without.low_s
    assert "load" not in row_loads([loading], ONCE, sheet)


def test_another_machine_is_scaled_and_less_certain() -> None:
    here = duration([A], ONCE, sheet=SHEET, workload=LOAD, machine=Machine(cpus=2))
    there = duration(
        [A], ONCE, sheet=SHEET, workload=LOAD, machine=Machine(cpus=4, speed=0.8, measured=False)
    )
    assert there.expected_s == pytest.approx(here.expected_s * 2 / 4 / 0.8)
    assert there.high_s / there.low_s > here.high_s / here.low_s


def test_shares_scale_what_only_some_rows_need() -> None:
    loads = row_loads([A, B], ONCE, SHEET, shares={"B": 0.25})
    assert loads == {"decode": 1.0, "mel": 1.0, "a": 1.0, "b": 0.25}
    alone = row_loads([B], TWICE, SHEET, shares={"B": 0.25})
    assert alone == {"decode": 1.0, "mel": 2.0, "b": 0.5}  # features are made before it is known


def test_the_interval_covers_what_it_says() -> None:
    rng = np.random.default_rng(1)
    told = duration([A, B], ONCE, sheet=SHEET, workload=LOAD, machine=Machine(cpus=2), chance=0.9)
    work = {"open": 10 * 0.5, "decode": 10.0, "mel": 20.0, "a": 100.0, "b": 300.0}
    true = sum(cost * np.maximum(rng.normal(1, 0.1, 4000), 0) for cost in work.values()) / 2
    inside = np.mean((true >= told.low_s) & (true <= told.high_s))
    assert inside == pytest.approx(0.9, abs=0.03)


def test_workloads_in_words_and_from_lengths() -> None:
    told = parse_workload("200x10m", row_s=5, seconds=lambda text: float(text.removesuffix("m")) * 60)
    assert told == Workload(files=200, rows=24_000, longest_rows=120)
    assert told == Workload.of_lengths([600.0] * 200, row_s=5)
    assert Workload.of_lengths([0.3], row_s=0.1).rows == 3  # 0.3 / 0.1 is a little more than 3 and 4 rows


@given(st.lists(st.floats(0.01, 1e5), min_size=1, max_size=20), st.floats(0.1, 30))
def test_every_recording_has_a_row_and_no_row_is_past_its_end(lengths: list[float], row_s: float) -> None:
    load = Workload.of_lengths(lengths, row_s=row_s)
    assert load.files == len(lengths) <= load.rows
    assert sum(lengths) <= load.rows * row_s * (1 + 1e-6)
    assert load.rows < sum(length / row_s + 1 for length in lengths)


@pytest.mark.parametrize("text", ["", "200", "x10m", "0x10m", "-3x10m", "2.5x10m", "200x"])
def test_what_is_no_workload_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no workload"):
        parse_workload(text, row_s=5, seconds=float)


def test_wrong_values_are_refused() -> None:
    with pytest.raises(UsageError, match="at least one"):
        Workload.of_lengths([], row_s=5)
    with pytest.raises(UsageError, match="above 0"):
        Workload.of_lengths([5, 0], row_s=5)
    with pytest.raises(UsageError, match="Did you mean `mel`"):
        row_loads([Member(name="C", model="a", features=("mels",))], ONCE, SHEET)
    for wrong in (
        lambda: Machine(cpus=0),
        lambda: Overlap(name="", windows_per_row=0.5),
        lambda: Workload(files=2, rows=1, longest_rows=1),
        lambda: CostSheet(stages={}, common=("open",)),
    ):
        with pytest.raises(ValueError, match=r"got|missing"):
            wrong()
