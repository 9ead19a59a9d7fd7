"""Lets a real job run against a deadline: counts what is left, measures what is done, asks the scheduler.

Before a job nothing is known of what its stages cost here and now. So the first piece is computed on the
first rung whatever the time, and the ladder is declared from what that cost; from then on the scheduler
decides.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, final

import msgspec

from alula.pipeline.deadline import Care, DeadlineScheduler, Decision, Reserve, Rung, StepTaken, WorkLeft
from alula.pipeline.forecast import Finished, StageCost

__all__ = ["Pace", "Pacer", "Piece"]

K = TypeVar("K", bound=Hashable)

# The first piece warms caches and engines up; later ones cost less by up to this share.
_FIRST_SPREAD = 0.3
# Pieces shorter than this are taken together: a decision and a reading cost some tenths of a millisecond.
_LOOK_S = 0.02
# Least cost of a unit: a stage that costs nothing could not be learned of.
_LEAST_CORE_S = 1e-9
# What was opened corrects the guesses of what was not, as soon as it is this share of them.
_TRUST_IN_GUESSES = 0.1
_ROWS_HIGH = 1.05


class Pace(Protocol):
    """What a job asks while it runs. Thread-safe."""

    def over(self) -> bool:
        """Whether the time is over: everything is left as it is, and what is there is delivered."""
        ...

    def eta_s(self) -> float | None:
        """Return the seconds that the rest takes by the forecast; None while there is none."""
        ...

    def rung(self) -> str | None:
        """Return what rows are computed on now; None while there is one way only."""
        ...

    def skipped(self, rows: int = 1) -> None:
        """Take note of rows that were prepared and are not computed."""
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows to compute at once.

    Attributes:
        rung: place in the ladder.
        rows: how many.
    """

    rung: int
    rows: int


@final
class Pacer(Generic[K]):
    """Counts rows, measures pieces, and says on which rung the next one is computed. Thread-safe.

    Rows are counted from guesses, such as the lengths in the headers of recordings, which are corrected by
    what the tasks that were opened turn out to hold.

    Args:
        guesses: rows that each task is thought to hold; None where nothing is known.
        ladder: called once with the measured cost of a unit of each stage that a row on the first rung takes;
            returns the ladder and what units of its stages cost. The first rung stays what it is; each must
            be cheaper than the one before.
        cpus: threads that compute.
        deadline_s: the clock's time at which the output must be there.
        reserve: time kept for writing.
        clock: seconds, never going back; thread-safe.
        first_rows: rows of a first piece.
        least_rows: no piece is smaller, as far as there are rows.
        at_once: pieces that are computed at the same time, so that each takes as many times longer.
        care: see `Care`.
    """

    def __init__(
        self,
        guesses: Mapping[K, float | None],
        *,
        ladder: Callable[[Mapping[str, StageCost]], tuple[Sequence[Rung], Mapping[str, StageCost]]],
        cpus: int,
        deadline_s: float,
        reserve: Reserve,
        clock: Callable[[], float],
        first_rows: int,
        least_rows: int = 1,
        at_once: int = 1,
        care: Care | None = None,
    ) -> None:
        self._declare = ladder
        self._cpus = cpus
        self._deadline_s = deadline_s
        self._reserve = reserve
        self._care = care or Care()
        self._clock = clock
        self._first_rows = first_rows
        self._least_rows = least_rows
        self._at_once = at_once
        self._decides_since_s = 0.0
        self._decided_s = self._recorded_s = self._looked_s = -math.inf
        self._row_s = 0.0
        self._lock = threading.Lock()
        known = [rows for rows in guesses.values() if rows is not None]
        mean = sum(known) / len(known) if known else 1.0
        # Below one row would be no task.
        self._guesses = {task: max(1.0, mean if rows is None else rows) for task, rows in guesses.items()}
        self._unopened = sum(self._guesses.values())
        self._open: dict[K, int] = {}
        self._closed_rows = 0
        self._closed_guesses = 0.0
        self._begun = 0
        self._prepared: dict[str, Finished] = {}
        self._measured: dict[str, Finished] = {}
        self._scheduler: DeadlineScheduler | None = None
        self._names: tuple[str, ...] = ()
        self._latest: Decision | None = None
        self._rung = 0
        self._stop_s = deadline_s - reserve.stall_s - self._care.least_slowness * reserve.write_s
        self._is_over = False

    # What tasks hold.

    def opened(self, task: K) -> None:
        """Take note that a task was begun."""
        with self._lock:
            self._unopened -= self._guesses[task]
            self._open[task] = 0

    def seen(self, task: K) -> None:
        """Take note of one more row of an open task."""
        with self._lock:
            self._open[task] += 1

    def closed(self, task: K) -> None:
        """Take note that an open task has no further rows, or has failed."""
        with self._lock:
            self._closed_rows += self._open.pop(task)
            self._closed_guesses += self._guesses[task]

    def skipped(self, rows: int = 1) -> None:
        """Take note of rows that are not computed: the rung is sparse, or their task has failed."""
        with self._lock:
            self._begun += rows

    def _left(self, at_hand: int) -> WorkLeft:
        # In case a guess was too low, what is known to be left, at least.
        open_rows = sum(max(self._guesses[task], rows) for task, rows in self._open.items())
        trust = _TRUST_IN_GUESSES * self._unopened
        known = self._closed_guesses + trust
        ratio = (self._closed_rows + trust) / known if known > 0 else 1.0
        unopened = max(0.0, self._unopened) * ratio
        left = self._closed_rows + open_rows - self._begun + unopened
        return WorkLeft(rows=max(left, at_hand), rows_high=left + (_ROWS_HIGH - 1) * unopened)

    # What is computed.

    def prepared(self, stages: Mapping[str, Finished]) -> None:
        """Take note of what was prepared; it is learned from together with the next finished piece."""
        with self._lock:
            _add(self._prepared, stages)

    def next_piece(self, at_hand: int) -> Piece | None:
        """Return what to compute of the rows at hand, or None to leave them: the time is over.

        Args:
            at_hand: at least 1.
        """
        with self._lock:
            if self._over():
                return None
            if self._scheduler is None:
                rows = min(at_hand, self._first_rows)
                self._begun += rows
                return Piece(0, rows)
            now_s = self._clock()
            decision = self._latest
            if decision is None or now_s - self._decided_s >= _LOOK_S:
                left = self._left(at_hand)
                decision = self._latest = self._scheduler.decide(left)
                self._decided_s = now_s
                self._row_s = (decision.expected_end_s - now_s) / left.rows
            rows = at_hand
            if decision.rows < at_hand:
                rows = min(at_hand, max(1, decision.rows // self._least_rows) * self._least_rows)
            # A piece that would not end in time would keep the process from its end, and be lost.
            piece_s = rows * self._row_s * self._at_once
            if decision.rung is None or now_s + piece_s > decision.stop_s:
                self._is_over = True
                return None
            self._rung = decision.rung
            self._begun += rows
            return Piece(decision.rung, rows)

    def finished(self, stages: Mapping[str, Finished]) -> None:
        """Take note of a piece that has ended."""
        with self._lock:
            _add(self._prepared, stages)
            now_s = self._clock()
            if self._scheduler is not None and now_s - self._recorded_s < _LOOK_S:
                return
            self._recorded_s = now_s
            done, self._prepared = self._prepared, {}
            if self._scheduler is not None:
                self._scheduler.record(done)
                return
            self._measured = done
            self._begin_to_decide()

    def _begin_to_decide(self) -> None:
        measured = {
            stage: StageCost(core_s=max(one.busy_s / one.units, _LEAST_CORE_S), spread=_FIRST_SPREAD)
            for stage, one in self._measured.items()
            if one.units > 0
        }
        ladder, costs = self._declare(measured)
        self._names = tuple(rung.name for rung in ladder)
        if self._clock() >= self._deadline_s:
            self._is_over = True
            return
        self._decides_since_s = self._clock()
        self._scheduler = DeadlineScheduler(
            ladder,
            costs=costs,
            cpus=self._cpus,
            deadline_s=self._deadline_s,
            reserve=self._reserve,
            clock=self._clock,
            care=self._care,
        )

    # What a job asks.

    @property
    def place(self) -> int:
        """The rung that rows are prepared for now."""
        return self._rung

    def over(self) -> bool:
        """Whether the time is over; once it is, it stays so."""
        with self._lock:
            return self._over()

    def _over(self) -> bool:
        if not self._is_over:
            now_s = self._clock()
            if self._scheduler is not None and now_s - self._looked_s >= _LOOK_S:
                self._stop_s = self._scheduler.stop_s()
                self._looked_s = now_s
            self._is_over = now_s >= self._stop_s
        return self._is_over

    def eta_s(self) -> float | None:
        """Return the seconds that the rest takes, no more than there are."""
        with self._lock:
            if self._latest is None:
                return None
            now_s = self._clock()
            return max(0.0, min(self._latest.expected_end_s, self._stop_s) - now_s)

    def rung(self) -> str | None:
        """Return the name of the present rung; None while there is one way only."""
        with self._lock:
            return self._names[self._rung] if len(self._names) > 1 else None

    @property
    def stop_s(self) -> float:
        """The clock's time at which everything is left as it is, as far as is known now."""
        with self._lock:
            return self._stop_s

    def steps(self, *, since_s: float) -> tuple[StepTaken, ...]:
        """Return every change of rung so far, in order; `at_s` counts from the clock's time `since_s`."""
        if self._scheduler is None:
            return ()
        before_s = self._decides_since_s - since_s
        return tuple(
            msgspec.structs.replace(step, at_s=step.at_s + before_s) for step in self._scheduler.steps
        )


def _add(to: dict[str, Finished], more: Mapping[str, Finished]) -> None:
    for stage, one in more.items():
        before = to.get(stage, Finished(0.0, 0.0))
        to[stage] = Finished(before.units + one.units, before.busy_s + one.busy_s)
