"""Counting what is left and measuring what is done: by hand, and on simulated jobs that know no costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import deadline_jobs
import numpy as np
import pytest

from alula.measure.fake import ScriptedClock
from alula.pipeline import Finished, Pacer, Reserve, Rung, StageCost

TWO = Rung(name="two", loads={"decode": 1, "a": 1, "b": 1}, score=0.8)
ONE = Rung(name="one", loads={"decode": 1, "a": 1}, score=0.7)


class Told:
    """What a pacer says of its costs when it declares its ladder."""

    def __init__(self, *ladder: Rung) -> None:
        self.ladder = ladder
        self.measured: list[Mapping[str, StageCost]] = []

    def __call__(self, measured: Mapping[str, StageCost]) -> tuple[Sequence[Rung], Mapping[str, StageCost]]:
        self.measured.append(measured)
        return self.ladder, measured


@pytest.fixture
def clock() -> ScriptedClock:
    return ScriptedClock()


def pacer_of(
    clock: ScriptedClock,
    told: Told,
    guesses: Mapping[int, float | None],
    *,
    deadline_s: float = 100.0,
    at_once: int = 1,
) -> Pacer[int]:
    return Pacer(
        guesses,
        ladder=told,
        cpus=1,
        deadline_s=deadline_s,
        reserve=Reserve(write_s=0.5, stall_s=1.0),
        clock=clock.monotonic,
        first_rows=4,
        least_rows=4,
        at_once=at_once,
    )


def compute(pacer: Pacer[int], clock: ScriptedClock, rows: int, costs: Mapping[str, float]) -> None:
    """Take note of rows that were computed at these costs."""
    clock.advance(rows * sum(costs.values()))
    pacer.finished({stage: Finished(float(rows), rows * cost) for stage, cost in costs.items()})


def test_the_first_piece_is_on_the_first_rung_and_declares_the_ladder(clock: ScriptedClock) -> None:
    told = Told(TWO, ONE)
    pacer = pacer_of(clock, told, {0: 100.0})
    assert (pacer.rung(), pacer.eta_s(), told.measured) == (None, None, [])
    pacer.opened(0)
    pacer.prepared({"decode": Finished(8.0, 0.8)})
    piece = pacer.next_piece(20)
    assert piece is not None
    assert (piece.rung, piece.rows) == (0, 4)
    compute(pacer, clock, 4, {"a": 0.5, "b": 1.0})
    (measured,) = told.measured
    assert {stage: cost.core_s for stage, cost in measured.items()} == pytest.approx(
        {"decode": 0.1, "a": 0.5, "b": 1.0}
    )
    # 96 rows take 154 s on the first rung and 58 s on the second.
    piece = pacer.next_piece(16)
    assert piece is not None
    assert piece.rung == 1
    assert pacer.rung() == "one"
    assert 0 < (pacer.eta_s() or 0.0) <= 97.5 - 6.0


def test_pieces_are_whole_calls_where_there_are_rows_for_them(clock: ScriptedClock) -> None:
    pacer = pacer_of(clock, Told(TWO), {0: 50.0})
    pacer.opened(0)
    pacer.prepared({"decode": Finished(4.0, 0.4)})
    assert pacer.next_piece(4) is not None
    compute(pacer, clock, 4, {"a": 0.1, "b": 0.1})
    # One per cent of the time is 3 rows.
    piece = pacer.next_piece(30)
    assert piece is not None
    assert piece.rows == 4
    compute(pacer, clock, 4, {"a": 0.1, "b": 0.1})
    last = pacer.next_piece(2)
    assert last is not None
    assert last.rows == 2


@pytest.mark.parametrize(("at_once", "begun"), [(1, True), (8, False)])
def test_a_piece_that_shares_the_cpus_with_others_takes_as_many_times_longer(
    clock: ScriptedClock, at_once: int, begun: bool
) -> None:
    pacer = pacer_of(clock, Told(TWO), {0: 12.0}, deadline_s=30.0, at_once=at_once)
    pacer.opened(0)
    pacer.prepared({"decode": Finished(4.0, 0.4)})
    assert pacer.next_piece(4) is not None
    compute(pacer, clock, 4, {"a": 0.5, "b": 0.5})
    # About 20 s are left for pieces of four rows, of which one takes 5 with all CPUs.
    assert (pacer.next_piece(4) is not None) == begun


def test_what_files_hold_corrects_the_guesses(clock: ScriptedClock) -> None:
    """Files that were guessed to hold 10 rows hold 40: rows that would fit if the guess were right do not."""
    rungs = []
    for true_rows in (10, 40):
        pacer = pacer_of(
            clock, Told(TWO, ONE), dict.fromkeys(range(10), 10.0), deadline_s=clock.monotonic() + 100
        )
        for file in (0, 1):
            pacer.opened(file)
            for _ in range(true_rows):
                pacer.seen(file)
            pacer.closed(file)
        pacer.prepared({"decode": Finished(4.0, 0.04)})
        pacer.next_piece(4)
        compute(pacer, clock, 4, {"a": 0.1, "b": 0.3})
        piece = pacer.next_piece(4)
        assert piece is not None
        rungs.append(piece.rung)
    assert rungs == [0, 1]


def test_rows_of_a_task_that_failed_are_not_left(clock: ScriptedClock) -> None:
    pacer = pacer_of(clock, Told(TWO, ONE), {0: 10.0, 1: 10.0})
    for task in (0, 1):
        pacer.opened(task)
        for _ in range(10):
            pacer.seen(task)
    pacer.closed(0)
    assert pacer._left(1).rows == 20
    pacer.skipped(10)
    assert pacer._left(1).rows == 10


def test_the_time_is_over_while_nothing_happens(clock: ScriptedClock) -> None:
    pacer = pacer_of(clock, Told(TWO), {0: None, 1: 5.0})
    assert pacer.stop_s == pytest.approx(100 - 1 - 3 * 0.5)
    clock.advance(97.4)
    assert not pacer.over()
    clock.advance(0.2)
    assert pacer.over()
    assert pacer.next_piece(1) is None


def test_jobs_that_know_nothing_of_costs_are_complete_in_time() -> None:
    outcomes, best = [], []
    for seed in range(30):
        draw = deadline_jobs.drawn(seed)
        outcomes.append(deadline_jobs.run_paced(draw))
        best.append(deadline_jobs.clairvoyant_score(draw))
        assert outcomes[-1].written_s <= draw.allowed_s, seed
    reached = np.mean([outcome.score for outcome in outcomes]) / np.mean(best)
    assert reached > 0.94
