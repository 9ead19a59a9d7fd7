"""A folder run against a deadline: the ways to compute a row, and what becomes of rows that got none."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from alula.bundle import DeclaredRung
from alula.engines import Arrays
from alula.pipeline import (
    FileKey,
    FileTask,
    Finished,
    Pacer,
    Reserve,
    Rung,
    StageCost,
)
from alula.workflows.ensembling import Ensemble, most_sparse
from alula.workflows.running import Bundle, Key, Scorer
from alula.workflows.samples import Decoding

__all__ = ["PacedJob", "Way", "Ways", "pacer_of", "reserve_of", "ways_of"]

# Writing a table: formatting a score takes 200 ns on a 2.5 GHz Xeon, ranking one of a member 150 ns, a row
# of two scores 3 us (CSV, Parquet) to 7 us (a submission). The scheduler takes three to six times of this, as
# the machine may be slower while it writes.
_WRITE_VALUE_S = 2e-7
_WRITE_ROW_S = 7e-6
_WRITE_FILE_S = 2e-4
_WRITE_S = 0.2
# How long a machine may stand still while the output is written, as a share of the time allowed; at least
# what the end of a process takes, at most what a disk takes that wakes up.
_STALL_SHARE, _LEAST_STALL_S, _MOST_STALL_S = 0.005, 1.0, 30.0
# A set of features that was never computed alone costs its share of all, more or less.
_UNSEEN_SPREAD = 0.5
# Scores of the rungs of an ensemble that declares none: each further member gives half of what the one before
# it gave, and sparse windows and another member than the first cost little beside that.
_SPARSE_SHARE, _CHEAPEST_SHARE = 0.98, 0.9
# A rung that saves less is none.
_LEAST_SAVING = 0.01

_DECODE = "decode"


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to compute rows: a rung of the ladder.

    Attributes:
        name: for people.
        members: places of the models that score a row, ascending.
        demands: which arrays of a row they take.
        every: only one of so many windows is computed; those between are left out.
        score: validated or declared worth.
        loads: units of each stage that a row takes.
    """

    name: str
    members: tuple[int, ...]
    demands: frozenset[int]
    every: int
    score: float
    loads: dict[str, float]

    @property
    def features(self) -> str:
        """Name of the stage that makes its features."""
        return _features_stage(self.demands)


class Ways(Protocol):
    """What can be computed of a row, and how."""

    @property
    def scorer(self) -> Scorer:
        """What runs."""
        ...

    @property
    def top(self) -> Way:
        """The first rung: everything, as without a deadline."""
        ...

    @property
    def least_rows(self) -> int:
        """Rows that are worth a call."""
        ...

    def declare(self, measured: Mapping[str, StageCost]) -> tuple[list[Way], dict[str, StageCost]]:
        """Return the ladder, `top` first, each rung cheaper than the one before, and what its stages cost."""
        ...

    def rows(
        self, path: Path, *, decoding: Decoding, wanted: Callable[[int], Collection[int]]
    ) -> Iterator[tuple[Key, Arrays]]:
        """Yield the rows of a file; see `Ensemble.rows`."""
        ...

    def scores(
        self, batch: Arrays, way: Way, *, stopped: Callable[[], bool]
    ) -> tuple[NDArray[Any] | None, dict[str, float]]:
        """Return the scores of rows, None when stopped, and core-seconds by stage."""
        ...


def ways_of(scorer: Bundle | Ensemble, *, prior: NDArray[Any], clock: Callable[[], float]) -> Ways:
    """Return the ways to compute a row: of a bundle of one model there is one.

    Args:
        scorer: what runs.
        prior: score of classes that no member of a rung knows; of the shape of a row.
        clock: seconds.
    """
    if isinstance(scorer, Ensemble):
        return _EnsembleWays(scorer, prior=prior, clock=clock)
    return _BundleWays(scorer, clock=clock)


@final
class _BundleWays:
    """The one way of a bundle of one model."""

    def __init__(self, bundle: Bundle, *, clock: Callable[[], float]) -> None:
        self.scorer = bundle
        self.least_rows = bundle.settings.batch_size
        self._clock = clock
        self._stage = "model"
        demands = frozenset({0})
        self.top = Way(
            name="model",
            members=(0,),
            demands=demands,
            every=1,
            score=1.0,
            loads={_DECODE: 1.0, _features_stage(demands): 1.0, self._stage: 1.0},
        )

    def declare(self, measured: Mapping[str, StageCost]) -> tuple[list[Way], dict[str, StageCost]]:
        return [self.top], dict(measured)

    def rows(
        self, path: Path, *, decoding: Decoding, wanted: Callable[[int], Collection[int]]
    ) -> Iterator[tuple[Key, Arrays]]:
        return self.scorer.rows(path, decoding=decoding)

    def scores(
        self, batch: Arrays, way: Way, *, stopped: Callable[[], bool]
    ) -> tuple[NDArray[Any] | None, dict[str, float]]:
        if stopped():
            return None, {}
        start_s = self._clock()
        (scores,) = self.scorer.full_batch_scores(batch)
        return scores, {self._stage: (self._clock() - start_s) * self.scorer.settings.threads}


@final
class _EnsembleWays:
    """Fewer members, sparser windows, the cheapest member alone: as declared, or in this order."""

    def __init__(self, ensemble: Ensemble, *, prior: NDArray[Any], clock: Callable[[], float]) -> None:
        self.scorer = ensemble
        self.least_rows = ensemble.least_rows
        self._prior = prior
        self._clock = clock
        self._names = [member.name for member in ensemble.manifest.members]
        count = len(self._names)
        self.top = self._way(tuple(range(count)), every=1, score=1 - 0.5**count)

    def _way(self, members: tuple[int, ...], *, every: int, score: float) -> Way:
        demands = frozenset(self.scorer.takes[place] for place in members)
        share = 1.0 / every
        names = [self._names[place] for place in members]
        return Way(
            name=" + ".join(names) + (f", every {_ordinal(every)} window" if every > 1 else ""),
            members=members,
            demands=demands,
            every=every,
            score=score,
            loads={_DECODE: 1.0, _features_stage(demands): share}
            | {_member_stage(name): share for name in names},
        )

    def declare(self, measured: Mapping[str, StageCost]) -> tuple[list[Way], dict[str, StageCost]]:
        ladder = self._ladder(measured)
        costs = dict(measured)
        whole = measured[self.top.features]
        cascade, sure = self.scorer.manifest.cascade, self.scorer.sure_member
        if cascade is not None and sure is not None:
            # Members that no row was uncertain enough for look free. They cost more than the one asked first.
            first = measured[_member_stage(self._names[sure])]
            least = StageCost(core_s=cascade.share * first.core_s, spread=_UNSEEN_SPREAD)
            for stage in map(_member_stage, self._names):
                if costs[stage].core_s < least.core_s:
                    costs[stage] = least
        for way in ladder:
            share = len(way.demands) / len(self.top.demands)
            costs.setdefault(way.features, StageCost(core_s=whole.core_s * share, spread=_UNSEEN_SPREAD))
        kept: list[Way] = []
        least_s = float("inf")
        for way in ladder:
            cost_s = sum(units * costs[stage].core_s for stage, units in way.loads.items())
            if cost_s < (1 - _LEAST_SAVING) * least_s or not kept:
                kept.append(way)
                least_s = cost_s
        return kept, costs

    def _ladder(self, measured: Mapping[str, StageCost]) -> list[Way]:
        ensemble = self.scorer
        if ensemble.whole_job:
            return [self.top]  # ranks of rows by different members cannot be compared
        if ensemble.manifest.ladder:
            return [self._declared(rung) for rung in ensemble.manifest.ladder]
        # Members without a weight have no say: alone they would be computed for nothing.
        places = tuple(place for place in self.top.members if ensemble.hears([place]))
        fewer = [places[:count] for count in range(len(places), 0, -1) if places[:count] != self.top.members]
        if ensemble.sure_member is not None:
            fewer = [(ensemble.sure_member,)]  # what the others cost for every row is not measured
        ways = [self.top, *(self._way(some, every=1, score=1 - 0.5 ** len(some)) for some in fewer)]
        last = ways[-1]
        most = most_sparse(ensemble.demands, ensemble.manifest.steps)
        for every in sorted({2, most} if most > 1 else ()):
            ways.append(self._way(last.members, every=every, score=ways[-1].score * _SPARSE_SHARE))
        cheapest = min(places, key=lambda place: measured[_member_stage(self._names[place])].core_s)
        if ensemble.sure_member is None and (cheapest,) != last.members:
            last = ways[-1]
            ways.append(self._way((cheapest,), every=last.every, score=last.score * _CHEAPEST_SHARE))
        return ways

    def _declared(self, rung: DeclaredRung) -> Way:
        members = sorted(self._names.index(name) for name in rung.members)
        return self._way(tuple(members), every=rung.every, score=rung.score)

    def rows(
        self, path: Path, *, decoding: Decoding, wanted: Callable[[int], Collection[int]]
    ) -> Iterator[tuple[Key, Arrays]]:
        return self.scorer.rows(path, decoding=decoding, wanted=wanted)

    def scores(
        self, batch: Arrays, way: Way, *, stopped: Callable[[], bool]
    ) -> tuple[NDArray[Any] | None, dict[str, float]]:
        scores, took_s = self.scorer.some_scores(
            batch, way.members, unheard=self._prior, stopped=stopped, clock=self._clock
        )
        # A member has the whole budget while it is its turn.
        return scores, {
            _member_stage(self._names[place]): seconds * self.scorer.threads
            for place, seconds in zip(way.members, took_s, strict=False)
        }


def _features_stage(demands: Collection[int]) -> str:
    return f"features {' + '.join(str(place + 1) for place in sorted(demands))}"


def _member_stage(name: str) -> str:
    return f"member {name}"


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


def reserve_of(
    scorer: Bundle | Ensemble, *, rows: float, files: int, columns: int, allowed_s: float
) -> Reserve:
    """Return the time to keep for writing a job's output.

    Args:
        scorer: what runs.
        rows: of the output, about.
        files: of the job.
        columns: scores of a row.
        allowed_s: until the deadline.
    """
    values = rows * columns
    if isinstance(scorer, Ensemble) and scorer.whole_job:
        values += rows * scorer.job_shape[0]
    return Reserve(
        write_s=_WRITE_S + values * _WRITE_VALUE_S + rows * _WRITE_ROW_S + files * _WRITE_FILE_S,
        stall_s=min(max(_LEAST_STALL_S, _STALL_SHARE * allowed_s), _MOST_STALL_S),
    )


def pacer_of(
    ways: Ways,
    guesses: Mapping[FileKey, float | None],
    *,
    ladder: list[Way],
    deadline_s: float,
    reserve: Reserve,
    clock: Callable[[], float],
) -> Pacer[FileKey]:
    """Return what paces a job; `ladder` is empty and gets the ways, the first one at once.

    Args:
        ways: what can be computed.
        guesses: rows of each file as `Ways.rows` yields them, where known.
        ladder: receives the rungs in order.
        deadline_s: the clock's time.
        reserve: time kept for writing.
        clock: seconds.
    """
    ladder[:] = [ways.top]

    def declare(measured: Mapping[str, StageCost]) -> tuple[Sequence[Rung], Mapping[str, StageCost]]:
        ladder[:], costs = ways.declare(measured)
        return [Rung(name=way.name, loads=way.loads, score=way.score) for way in ladder], costs

    return Pacer(
        guesses,
        ladder=declare,
        cpus=ways.scorer.threads,
        deadline_s=deadline_s,
        reserve=reserve,
        clock=clock,
        first_rows=ways.least_rows,
        least_rows=ways.least_rows,
        at_once=ways.scorer.settings.instances,
    )


@final
class PacedJob:
    """What `run_job` calls in a job with a deadline: rows and batches, watched, on the rungs they get.

    Thread-safe. A row has one array more: the rung that its features were made for. So has a batch's result:
    the rung that each row was computed on, or -1.

    Args:
        ways: what can be computed.
        ladder: see `pacer_of`.
        pacer: decides.
        last_rows: number of the last row of each file, as far as its header tells.
        clock: seconds.
    """

    def __init__(
        self,
        ways: Ways,
        ladder: Sequence[Way],
        *,
        pacer: Pacer[FileKey],
        last_rows: Mapping[FileKey, int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ways = ways
        self._ladder = ladder
        self._pacer = pacer
        self._last_rows = last_rows
        self._clock = clock
        self._thinned: set[FileKey] = set()
        self._ends_s: dict[FileKey, float] = {}

    def prepare(self, task: FileTask) -> Iterator[tuple[Key, Arrays]]:
        """Yield the rows of a file, each with its rung; see `Scorer.rows`."""
        pacer, clock = self._pacer, self._clock
        watch = _Watch(self._ladder, pacer, last=self._last_rows.get(task.key), clock=clock)
        pacer.opened(task.key)
        try:
            rows = self._ways.rows(task.path, decoding=watch.decoding, wanted=watch.wanted)
            left_out: Key | None = None
            while True:
                start_s = clock()
                row = next(rows, None)
                took_s, decode_s = clock() - start_s, watch.decode_s
                watch.decode_s = 0.0
                if row is None:
                    if left_out is not None and left_out[1] is not None:
                        self._ends_s[task.key] = left_out[1]
                    return
                pacer.seen(task.key)
                pacer.prepared(
                    {
                        _DECODE: Finished(1.0, decode_s),
                        self._ladder[watch.rung].features: Finished(
                            0.0 if watch.leaves_out else 1.0, max(0.0, took_s - decode_s)
                        ),
                    }
                )
                if watch.leaves_out:
                    self._thinned.add(task.key)
                    pacer.skipped()
                    left_out, _ = row
                    continue
                left_out = None
                key, arrays = row
                yield key, (*arrays, np.asarray(watch.rung, np.int16))
        finally:
            pacer.closed(task.key)

    def infer(self, batch: Arrays) -> Arrays | None:
        """Return scores and rungs of a batch, piece by piece on the rung that each gets; None for nothing."""
        *arrays, floors = batch
        rungs = np.full(len(floors), -1, np.int16)
        scores: NDArray[Any] | None = None
        at = 0
        while at < len(floors):
            piece = self._pacer.next_piece(len(floors) - at)
            if piece is None:
                break
            done: dict[str, Finished] = {}
            on = np.array([self._fitting(piece.rung, int(floor)) for floor in floors[at : at + piece.rows]])
            alike = np.unique(on)
            for rung in alike:
                # All of one rung, as nearly always, are not copied.
                rows = slice(at, at + piece.rows) if len(alike) == 1 else at + np.flatnonzero(on == rung)
                part = tuple(array[rows] for array in arrays)
                found, busy_s = self._ways.scores(part, self._ladder[rung], stopped=self._pacer.over)
                if found is None:
                    return None if scores is None else (scores, rungs)
                if scores is None:
                    scores = np.zeros((len(floors), *found.shape[1:]), found.dtype)
                scores[rows], rungs[rows] = found, rung
                for stage, seconds in busy_s.items():
                    before = done.get(stage, Finished(0.0, 0.0))
                    done[stage] = Finished(before.units + len(found), before.busy_s + seconds)
            self._pacer.finished(done)
            at += piece.rows
        return None if scores is None else (scores, rungs)

    def _fitting(self, decided: int, floor: int) -> int:
        """Return the rung for a row whose features were made for `floor`."""
        wanted, made = self._ladder[decided], self._ladder[floor]
        fits = wanted.demands <= made.demands and wanted.every >= made.every
        return decided if fits else floor

    def is_whole(self, task: FileTask, rungs: NDArray[np.int16]) -> bool:
        """Return whether all rows of a file were computed as without a deadline."""
        return task.key not in self._thinned and not rungs.any()

    def uncovered_end_s(self, task: FileTask) -> float | None:
        """Return where the last row of a file ends if it was left out, and so covers no end; None if not.

        It is left out where a header tells of more rows than there are.
        """
        return self._ends_s.get(task.key)


@final
class _Watch:
    """Watches one file being read: time of decoding, and what the next row is made for. One thread."""

    def __init__(
        self, ladder: Sequence[Way], pacer: Pacer[FileKey], *, last: int | None, clock: Callable[[], float]
    ) -> None:
        self.decode_s = 0.0
        self.rung = 0
        self.leaves_out = False
        self._ladder = ladder
        self._pacer = pacer
        self._last = last
        self._clock = clock

    def decoding(self, blocks: Iterator[NDArray[Any]], /) -> Iterator[NDArray[Any]]:
        while True:
            start_s = self._clock()
            block = next(blocks, None)
            self.decode_s += self._clock() - start_s
            if block is None:
                return
            yield block

    def wanted(self, index: int) -> Collection[int]:
        self.rung = self._pacer.place
        way = self._ladder[self.rung]
        # The last row covers the end. Where it is not known which one that is, none is left out.
        self.leaves_out = bool(index % way.every) and self._last is not None and index < self._last
        return () if self.leaves_out else way.demands
