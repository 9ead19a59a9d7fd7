"""What to compute next so that a job ends before its deadline with the best output there is time for.

A job declares a *ladder*: ways to compute a row, the best first, each cheaper than the one before. It asks
`DeadlineScheduler.decide` before each piece of work, and computes that piece as told. Below the last rung
there is the declared prior: rows that the time did not allow are filled with it and listed (`complete`), so
the output is complete whatever happens.

- Down, as soon as the forecast of all that is left on this rung, an upper quantile, lies behind the time to
  stop; down to the cheapest rung at once, when even that one's surest quantile does.
- Up again, only where that cannot endanger the deadline: all that is left fits on the higher rung, and after
  one more piece there the cheapest rung would still take every row if the machine were from then on as slow
  as in its slowest stretch so far. A job that has time for something between two rungs therefore computes
  its first rows on the lower one and the others on the higher one.
- Past rungs that are not worth using: where a mixture of the rungs above and below gives more for the time.
  What a rung costs is learned in the job, so this is not known when the ladder is declared.
- Stop, at the deadline less a reserve for writing. Work that is under way then is left.

Nothing here starts threads, reads files or sleeps: the clock is given, and so is what was measured.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar, final

import msgspec
import numpy as np
import numpy.typing as npt

from alula.errors import UsageError
from alula.pipeline.forecast import Finished, Forecast, Remaining, StageCost

__all__ = [
    "Care",
    "Completed",
    "DeadlineScheduler",
    "Decision",
    "Reserve",
    "Rung",
    "StepTaken",
    "WorkLeft",
    "complete",
]

Array: TypeAlias = npt.NDArray[Any]
FloatArray: TypeAlias = npt.NDArray[np.float64]
K = TypeVar("K", bound=Hashable)


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """One way to compute a row.

    Attributes:
        name: such as `3 members, overlap 2`.
        loads: units of each stage that a row takes; a stage that is not named takes none.
        score: validated score of rows computed like this; higher is better.
    """

    name: str
    loads: dict[str, float]
    score: float

    def __post_init__(self) -> None:
        if not self.loads or not all(math.isfinite(load) and load > 0 for load in self.loads.values()):
            raise ValueError(f"a rung takes a positive number of units per row; got {self.loads}")


class WorkLeft(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a job.

    Attributes:
        rows: rows that no piece was begun for, as far as is known.
        rows_high: not exceeded by `rows` once every input was opened; `rows` where it is less.
        units: work by stage that comes whatever is decided: pieces under way, inputs to open.
    """

    rows: float
    rows_high: float = 0.0
    units: dict[str, float] = {}

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rows) and self.rows > 0 and math.isfinite(self.rows_high)):
            raise ValueError(f"a backlog holds rows; got {self.rows}, at most {self.rows_high}")


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What to do next.

    Attributes:
        rung: place in the ladder; None to stop: begin nothing more, leave what is under way, write.
        rows: at most so many rows for the next piece; 0 to stop.
        stop_s: the clock's time at which everything is left as it is and the output written.
        expected_end_s: when the work ends if all of it is done on this rung.
        high_end_s: the same at the upper quantile.
    """

    rung: int | None
    rows: int
    stop_s: float
    expected_end_s: float
    high_end_s: float


class StepTaken(msgspec.Struct, frozen=True, kw_only=True):
    """A change of rung.

    Attributes:
        at_s: seconds since the start.
        before: name of the rung that was left.
        after: name of the rung that was gone to, or `stop`.
        rows_left: rows that no piece was begun for.
        needed_s: upper quantile of the time for them on the rung that was left.
        left_s: time there was.
    """

    at_s: float
    before: str
    after: str
    rows_left: float
    needed_s: float
    left_s: float


class Reserve(msgspec.Struct, frozen=True, kw_only=True):
    """Time kept free at the end.

    Attributes:
        write_s: seconds that writing the whole output takes, as measured before.
        stall_s: longest stall of the machine while it is written that the deadline shall survive.
    """

    write_s: float
    stall_s: float

    def __post_init__(self) -> None:
        if not (0 <= self.write_s < math.inf and 0 <= self.stall_s < math.inf):
            raise ValueError(f"a reserve is not negative; got {self.write_s} s and {self.stall_s} s")


class Care(msgspec.Struct, frozen=True, kw_only=True):
    """How careful a scheduler is.

    The chances of the first two are low because a wrong step is made good by a later one; what must not go
    wrong is the third. On simulated jobs 0.95 and 0.99 for them cost 2.5 % of the score and saved no row.

    Attributes:
        down: chance with which the rest must fit, or it steps down.
        up: chance with which the rest must fit on a higher rung before it steps up.
        sure: chance with which the rest must fit on the cheapest rung, or it goes there.
        piece: share of the time allowed that one piece takes at most.
        block: share of the time allowed that is one reading of the rate.
        least_slowness: times the measured time that is kept for writing, at least.
        most_slowness: and at most, however slow the machine was.
    """

    down: float = 0.6
    up: float = 0.7
    sure: float = 0.99
    piece: float = 0.01
    block: float = 0.01
    least_slowness: float = 3.0
    most_slowness: float = 6.0

    def __post_init__(self) -> None:
        if not 0.5 <= self.down <= self.up <= self.sure < 1:
            raise ValueError(
                f"expected 0.5 <= down <= up <= sure < 1; got {self.down}, {self.up} and {self.sure}"
            )
        if not (0 < self.piece < 1 and 0 < self.block < 1):
            raise ValueError(f"shares are between 0 and 1; got {self.piece} and {self.block}")
        if not 1 <= self.least_slowness <= self.most_slowness:
            raise ValueError(
                f"expected 1 <= least <= most; got {self.least_slowness} and {self.most_slowness}"
            )


@final
class DeadlineScheduler:
    """Says on which rung the next piece of work is computed, and when to stop.

    Thread-safe.

    Args:
        ladder: the best rung first; costs fall strictly.
        costs: what a unit of each stage was measured to cost.
        cpus: cores' worth of work that the job is expected to do in a second.
        deadline_s: the clock's time at which the written output must be there.
        reserve: see `Reserve`.
        clock: seconds, never going back; thread-safe.
        care: see `Care`.

    Raises:
        UsageError: the ladder is empty or does not get cheaper, a stage has no cost, or the deadline is over.

    >>> now_s = [0.0]
    >>> scheduler = DeadlineScheduler(
    ...     [
    ...         Rung(name="two", loads={"a": 1, "b": 1}, score=0.8),
    ...         Rung(name="one", loads={"a": 1}, score=0.7),
    ...     ],
    ...     costs={"a": StageCost(core_s=1.0), "b": StageCost(core_s=3.0)},
    ...     cpus=1.0,
    ...     deadline_s=100.0,
    ...     reserve=Reserve(write_s=1.0, stall_s=1.0),
    ...     clock=lambda: now_s[0],
    ... )
    >>> scheduler.decide(WorkLeft(rows=10)).rung, scheduler.decide(WorkLeft(rows=50)).rung
    (0, 1)
    """

    def __init__(
        self,
        ladder: Sequence[Rung],
        *,
        costs: Mapping[str, StageCost],
        cpus: float,
        deadline_s: float,
        reserve: Reserve,
        clock: Callable[[], float],
        care: Care | None = None,
    ) -> None:
        self._start_s = clock()
        self._allowed_s = deadline_s - self._start_s
        if not ladder or not self._allowed_s > 0:
            raise UsageError(
                f"A job got {len(ladder)} ways to compute a row and {self._allowed_s:.1f} s; expected at "
                "least one way and a deadline that is not over."
            )
        self._ladder = tuple(ladder)
        self._care = care or Care()
        self._clock = clock
        self._deadline_s = deadline_s
        self._reserve = reserve
        block_s = self._care.block * self._allowed_s
        self._forecast = Forecast(costs, cpus=cpus, start_s=self._start_s, block_s=block_s)
        self._loads = np.array([self._forecast.units(rung.loads) for rung in ladder])
        declared = self._loads @ np.array([costs[stage].core_s for stage in self._forecast.stages])
        if np.any(np.diff(declared) >= 0):
            raise UsageError(
                f"The ladder costs {', '.join(f'{cost:.4g}' for cost in declared)} core-seconds per row; "
                "expected each rung to be cheaper than the one before."
            )
        self._scores = np.array([rung.score for rung in ladder])
        self._rung: int | None = None
        self._stopped = False
        self._steps: list[StepTaken] = []
        self._lock = threading.Lock()

    @property
    def steps(self) -> tuple[StepTaken, ...]:
        """Every change of rung so far, in order."""
        with self._lock:
            return tuple(self._steps)

    def record(self, finished: Mapping[str, Finished]) -> None:
        """Take note of work that has ended, by stage.

        Raises:
            UsageError: a stage has no declared cost.
        """
        with self._lock:
            self._forecast.record(finished, now_s=self._clock())

    def stop_s(self) -> float:
        """Return the clock's time at which the job must stop and write, as far as is known now.

        It comes earlier when the machine turns out to be slower.
        """
        with self._lock:
            return self._stop_s(self._clock())

    def decide(self, backlog: WorkLeft) -> Decision:
        """Return what to do next. Once it says stop, it always does.

        Raises:
            UsageError: a stage in the backlog has no declared cost.
        """
        with self._lock:
            now_s = self._clock()
            stop_s = self._stop_s(now_s)
            left_s = stop_s - now_s
            fixed = self._forecast.units(backlog.units)
            rows = max(backlog.rows, backlog.rows_high)
            rest = rows * self._loads + fixed
            with_fixed = np.vstack([rest, fixed])
            down = self._forecast.remaining(with_fixed, now_s=now_s, chance=self._care.down)
            fixed_s = float(down.expected_s[-1])
            down = Remaining(down.expected_s[:-1], down.high_s[:-1], down.worst_s[:-1])
            rung = self._chosen(rest, down, now_s=now_s, left_s=left_s)
            before = rung if self._rung is None else self._rung
            self._rung = rung
            row_s = (float(down.expected_s[rung]) - fixed_s) / rows
            stops = self._stopped or left_s <= 0 or row_s > left_s
            if (stops and not self._stopped) or (not stops and rung != before):
                self._steps.append(
                    StepTaken(
                        at_s=now_s - self._start_s,
                        before=self._ladder[before].name,
                        after="stop" if stops else self._ladder[rung].name,
                        rows_left=backlog.rows,
                        needed_s=float(down.high_s[before]),
                        left_s=left_s,
                    )
                )
            self._stopped = stops
            # Half of the time that is left, so that what is begun last has a chance to end.
            piece_s = min(self._care.piece * self._allowed_s, left_s / 2)
            return Decision(
                rung=None if stops else rung,
                rows=0 if stops else max(1, min(math.ceil(backlog.rows), int(piece_s / row_s))),
                stop_s=stop_s,
                expected_end_s=now_s + float(down.expected_s[rung]),
                high_end_s=now_s + float(down.high_s[rung]),
            )

    def _chosen(self, rest: FloatArray, down: Remaining, *, now_s: float, left_s: float) -> int:
        """Return the rung for the next piece.

        Args:
            rest: units of all that is left on each of r rungs, shape (r, k).
            down: how long that takes.
            now_s: the time.
            left_s: time there is.
        """
        cheapest = int(np.argmin(down.expected_s))
        least = self._forecast.remaining(rest[[cheapest]], now_s=now_s, chance=self._care.sure)
        # The next piece comes first, whatever its rung; none is begun that is expected to take more than half
        # of the time left.
        piece_s = min(self._care.piece * self._allowed_s * self._forecast.slowness(now_s), left_s / 2)
        if least.high_s[0] + piece_s > left_s:
            return cheapest
        worth = _worth_using(down.expected_s, self._scores)
        fits = worth & (down.high_s <= left_s)
        if self._rung is None:
            return _first(fits, fallback=cheapest)
        fits[: self._rung] = False
        kept = _first(fits, fallback=cheapest)
        if least.worst_s[0] + piece_s > left_s:
            return kept
        up = self._forecast.remaining(rest, now_s=now_s, chance=self._care.up)
        return min(kept, _first(worth & (up.high_s <= left_s), fallback=kept))

    def _stop_s(self, now_s: float) -> float:
        slowness = min(
            max(self._forecast.slowness(now_s), self._care.least_slowness), self._care.most_slowness
        )
        return self._deadline_s - self._reserve.stall_s - slowness * self._reserve.write_s


def _first(fits: npt.NDArray[np.bool_], *, fallback: int) -> int:
    """Return the first place that fits, or the fallback where none does."""
    found = np.flatnonzero(fits)
    return int(found[0]) if len(found) else fallback


def _worth_using(costs: FloatArray, scores: FloatArray) -> npt.NDArray[np.bool_]:
    """Return which rungs lie on the upper hull of (cost, score), so that no mixture of others beats them.

    Andrew 1979's monotone chain, from the last rung up; where a higher rung has turned out to be cheaper as
    well, the lower one is not worth using.
    """
    kept: list[int] = []
    for k in range(len(costs) - 1, -1, -1):
        if kept and scores[k] <= scores[kept[-1]]:
            continue
        while kept and costs[k] <= costs[kept[-1]]:
            kept.pop()
        while len(kept) > 1 and (scores[kept[-1]] - scores[kept[-2]]) * (costs[k] - costs[kept[-1]]) <= (
            scores[k] - scores[kept[-1]]
        ) * (costs[kept[-1]] - costs[kept[-2]]):
            kept.pop()
        kept.append(k)
    worth = np.zeros(len(costs), dtype=bool)
    worth[kept] = True
    return worth


@dataclass(frozen=True, slots=True)
class Completed(Generic[K]):
    """A complete output.

    Attributes:
        outputs: one row for each key, in the order of the keys; shape (n, ...).
        filled: the keys whose rows are the prior, in order.
    """

    outputs: Array
    filled: tuple[K, ...]


def complete(keys: Sequence[K], scored: Mapping[K, Array], prior: Array) -> Completed[K]:
    """Return one row for every key: its scores, or the declared prior where there are none.

    Args:
        keys: of all rows that the output must hold, in order.
        scored: the rows that were computed; each of the prior's shape.
        prior: what a row holds that there was no time for; finite.

    Raises:
        UsageError: the prior is not finite, a row differs from it in shape, or a scored key is not expected.

    >>> done = complete(["a_5", "a_10"], {"a_5": np.array([0.9, 0.0])}, np.array([0.1, 0.2]))
    >>> done.outputs.tolist(), done.filled
    ([[0.9, 0.0], [0.1, 0.2]], ('a_10',))
    """
    if not np.all(np.isfinite(prior)):
        raise UsageError("The prior holds values that are not finite; expected one number per output.")
    unexpected = scored.keys() - set(keys)
    if unexpected:
        raise UsageError(
            f"Got scores of {len(unexpected)} rows that the output does not hold, such as "
            f"`{next(iter(unexpected))}`; expected rows of the given keys only."
        )
    outputs = np.empty((len(keys), *prior.shape), np.result_type(prior, *list(scored.values())[:1]))
    filled: list[K] = []
    for k, key in enumerate(keys):
        row = scored.get(key)
        if row is None:
            filled.append(key)
            outputs[k] = prior
        elif row.shape == prior.shape:
            outputs[k] = row
        else:
            raise UsageError(
                f"Row `{key}` has shape {row.shape} and the prior {prior.shape}; expected the same shape."
            )
    return Completed(outputs, tuple(filled))
