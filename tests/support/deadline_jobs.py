"""Jobs on a simulated machine that gets slower, stalls and lies about its costs; and a clairvoyant's score.

Everything is drawn from one seed. Time is virtual: a job of four hours takes milliseconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from alula.pipeline import DeadlineScheduler, Finished, Pacer, Reserve, Rung, StageCost, WorkLeft
from alula.planning.costs import CostSheet, Member, Overlap, Stage, row_loads
from alula.planning.ladder import declare_ladder

OVERLAPS = (Overlap(name="none"), Overlap(name="half", windows_per_row=2.0))
PRIOR_SCORE = 0.05
STALL = 0.015  # longest stall of the machine, as a share of the time allowed: what the reserve is told
SLOWEST = 0.3  # of the declared speed
WRITE_ERROR = 0.2


@dataclass(frozen=True)
class Draw:
    """One job: what it is told, and what is true.

    Attributes:
        rows: true rows of each file; shape (f,).
        guessed: what the job believes before it opens a file; shape (f,).
        disk_s: seconds that each file keeps its reader waiting; shape (f,).
        edges_s: virtual times at which the machine's speed changes; shape (s + 1,).
        done_s: seconds of work at declared speed that are done by then; shape (s + 1,).
        factors: by stage, true cost over declared cost.
        reserve_share: of the time that writing and a stall may take, what the job keeps free.
    """

    allowed_s: float
    cpus: int
    members: tuple[Member, ...]
    sheet: CostSheet
    quality: dict[str, float]
    rows: npt.NDArray[np.int64]
    guessed: npt.NDArray[np.float64]
    disk_s: npt.NDArray[np.float64]
    edges_s: npt.NDArray[np.float64]
    done_s: npt.NDArray[np.float64]
    factors: dict[str, float]
    write_s: float
    reserve_share: float = 1.0

    def end_s(self, start_s: float, work_s: float) -> float:
        """Return when work is done that takes `work_s` at the declared speed."""
        return float(
            np.interp(np.interp(start_s, self.edges_s, self.done_s) + work_s, self.done_s, self.edges_s)
        )

    def score(self, names: frozenset[str], overlap: str) -> float:
        missed = math.prod(1 - self.quality[name] for name in names)
        return (1 - missed) * (1.0 if overlap == "half" else 0.985)

    def true_core_s(self, loads: dict[str, float]) -> float:
        return sum(
            units * self.sheet.stages[name].cost.core_s * self.factors[name] for name, units in loads.items()
        )


def drawn(seed: int) -> Draw:
    """Return a job drawn from a seed."""
    rng = np.random.default_rng(seed)
    allowed_s = float(np.exp(rng.uniform(math.log(120), math.log(14_400))))
    cpus = int(rng.choice([1, 2, 4, 8]))
    names = [f"m{k}" for k in range(rng.integers(1, 7))]
    keys = ["mel a", "mel b"]
    members = tuple(
        Member(name=name, model=f"model {name}", features=(keys[rng.integers(2)],)) for name in names
    )
    stages = {
        "open": Stage(cost=StageCost(core_s=float(rng.uniform(0.1, 2))), per="file"),
        "decode": Stage(cost=StageCost(core_s=float(rng.uniform(0.2, 1.0))), per="row"),
        **{key: Stage(cost=StageCost(core_s=float(rng.uniform(0.2, 1.0))), per="window") for key in keys},
        **{
            member.model: Stage(
                cost=StageCost(core_s=float(rng.lognormal(1.0, 0.8)), spread=0.2), per="window"
            )
            for member in members
        },
    }
    rows = _lengths(rng)
    # The unit of cost is such that the whole ladder's top takes `tight` times the time allowed.
    raw = CostSheet(stages=stages, common=("open", "decode"))
    top = row_loads(members, OVERLAPS[1], raw)
    tight = float(np.exp(rng.uniform(math.log(0.4), math.log(8))))
    whole = sum(units * raw.stages[name].cost.core_s for name, units in top.items()) * rows.sum()
    unit = tight * allowed_s * cpus / whole
    sheet = CostSheet(
        stages={
            name: Stage(
                cost=StageCost(core_s=stage.cost.core_s * unit, spread=stage.cost.spread), per=stage.per
            )
            for name, stage in stages.items()
        },
        common=("open", "decode"),
    )
    edges_s, speed = _speeds(rng, allowed_s)
    wrong = rng.lognormal(0, 0.15)  # bytes per second of sound are not what was thought
    write_s = float(rng.uniform(0.001, 0.006)) * allowed_s
    return Draw(
        allowed_s=allowed_s,
        cpus=cpus,
        members=members,
        sheet=sheet,
        quality={name: float(rng.uniform(0.45, 0.8)) for name in names},
        rows=rows,
        guessed=rows * wrong * rng.lognormal(0, 0.1, len(rows)),
        disk_s=np.where(rng.random(len(rows)) < 0.02, rng.uniform(0, 0.03 * allowed_s, len(rows)), 0.0),
        edges_s=edges_s,
        done_s=np.concatenate([[0.0], np.cumsum(np.diff(edges_s) * speed)]),
        factors={name: float(rng.lognormal(0, 0.2)) for name in stages},
        write_s=write_s,
    )


def _lengths(rng: np.random.Generator) -> npt.NDArray[np.int64]:
    kind = rng.integers(3)
    count = int(rng.integers(20, 300))
    if kind == 0:  # all alike, as in a competition
        return np.full(count, rng.integers(12, 240))
    rows = np.maximum(1, rng.lognormal(3, 1, count)).astype(np.int64)
    if kind == 1:  # one recording of hours among short ones, anywhere
        rows[rng.integers(count)] = int(rows.sum() * rng.uniform(0.3, 2))
    return rows


def _speeds(
    rng: np.random.Generator, allowed_s: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the machine's speed over 1.5 times the time allowed, beside the declared one, in pieces."""
    pieces = 450
    edges_s = np.linspace(0, 1.5 * allowed_s, pieces + 1)
    at = edges_s[:-1] / allowed_s
    speed = rng.lognormal(0, 0.1) * rng.lognormal(0, 0.1, pieces)
    for _ in range(rng.poisson(2)):  # another load comes and goes
        start, length = rng.uniform(0, 1.2), rng.exponential(0.1)
        speed[(at >= start) & (at < start + length)] *= rng.uniform(0.3, 0.9)
    if rng.random() < 0.3:  # the CPU gets hot, or the quota smaller, for good
        speed[at >= rng.uniform(0, 1)] *= rng.uniform(0.4, 0.9)
    speed = np.maximum(speed, SLOWEST)
    # Stalls never touch: the reserve is for one.
    for place in rng.permutation(8)[: rng.poisson(1.0)]:
        start_s = (0.05 + 0.12 * place + rng.uniform(0, 0.05)) * allowed_s
        end_s = start_s + rng.uniform(0, STALL) * allowed_s
        edges_s, speed = _with_stall(edges_s, speed, start_s, end_s)
    return edges_s, speed


def _with_stall(
    edges_s: npt.NDArray[np.float64], speed: npt.NDArray[np.float64], start_s: float, end_s: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    cut = np.unique(np.concatenate([edges_s, [start_s, end_s]]))
    middle = (cut[:-1] + cut[1:]) / 2
    before = speed[np.searchsorted(edges_s, middle, side="right") - 1]
    # Not quite nothing, so that work done grows strictly with time.
    return cut, np.where((middle > start_s) & (middle < end_s), 1e-9, before)


@dataclass
class Outcome:
    """What came of a job.

    Attributes:
        score: mean over rows; rows that were filled score `PRIOR_SCORE`.
        written_s: when the output was there.
        filled: rows that hold the prior.
    """

    score: float
    written_s: float
    filled: int
    rungs: list[int] = field(default_factory=list)


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def run(draw: Draw, *, may_step: bool = True) -> Outcome:
    """Run a job as it is told by a scheduler; all on the first rung if it may not step."""
    clock = _Clock()
    ladder = declare_ladder(draw.members, OVERLAPS, sheet=draw.sheet, score=draw.score)
    scheduler = DeadlineScheduler(
        ladder if may_step else ladder[:1],
        costs={name: stage.cost for name, stage in draw.sheet.stages.items()},
        cpus=draw.cpus,
        deadline_s=draw.allowed_s,
        reserve=Reserve(
            write_s=draw.reserve_share * draw.write_s,
            stall_s=draw.reserve_share * STALL * draw.allowed_s,
        ),
        clock=clock,
    )
    total = int(draw.rows.sum())
    file, in_file, earned, scored = 0, 0, 0.0, 0
    seen_true, seen_guess = 0.0, 0.0
    rungs: list[int] = []
    while scored < total:
        if file < len(draw.rows) and in_file == 0:
            seen_true += float(draw.rows[file])
            seen_guess += float(draw.guessed[file])
        # What was opened corrects the guesses of what was not, as soon as it is a tenth of them.
        unopened = float(draw.guessed[file + 1 :].sum())
        ratio = (seen_true + 0.1 * unopened) / (seen_guess + 0.1 * unopened)
        open_rows = float(draw.rows[file] - in_file)
        decision = scheduler.decide(
            WorkLeft(
                rows=open_rows + unopened * ratio,
                rows_high=open_rows + unopened * ratio * 1.05,
                units={"open": float(len(draw.rows) - file)},
            )
        )
        if decision.rung is None:
            break
        rungs.append(decision.rung)
        rung = ladder[decision.rung]
        taken, opened, wait_s = 0, 0, 0.0
        while taken < decision.rows and file < len(draw.rows):
            if in_file == 0:
                opened += 1
                wait_s += float(draw.disk_s[file])
                if taken:
                    seen_true += float(draw.rows[file])
                    seen_guess += float(draw.guessed[file])
            step = min(decision.rows - taken, int(draw.rows[file]) - in_file)
            taken, in_file = taken + step, in_file + step
            if in_file == draw.rows[file]:
                file, in_file = file + 1, 0
        loads = {name: units * taken for name, units in rung.loads.items()}
        if opened:
            loads["open"] = float(opened)
        core_s = draw.true_core_s(loads)
        end_s = draw.end_s(clock.now_s + wait_s, core_s / draw.cpus)
        if end_s > decision.stop_s:  # left as it is when the time is over
            clock.now_s = decision.stop_s
            break
        slow = (end_s - clock.now_s - wait_s) * draw.cpus / core_s
        clock.now_s = end_s
        scheduler.record(
            {
                name: Finished(
                    units,
                    draw.true_core_s({name: units}) * slow + (wait_s if name == "decode" else 0.0),
                )
                for name, units in loads.items()
            }
        )
        earned += taken * rung.score
        scored += taken
    error = 1 + WRITE_ERROR * math.sin(1e3 * draw.write_s)  # what was measured is not quite what it takes
    written_s = draw.end_s(clock.now_s, draw.write_s * error)
    return Outcome((earned + (total - scored) * PRIOR_SCORE) / total, written_s, total - scored, rungs)


BATCH_ROWS = 32


def run_paced(draw: Draw) -> Outcome:
    """Run a job as a `Pacer` tells it, which is told the guessed lengths and nothing of costs.

    Files are decoded batch by batch, then pieces of the batch are computed.
    """
    clock = _Clock()

    def declare(measured: Mapping[str, StageCost]) -> tuple[Sequence[Rung], Mapping[str, StageCost]]:
        stages = {
            name: msgspec.structs.replace(stage, cost=measured.get(name, stage.cost))
            for name, stage in draw.sheet.stages.items()
        }
        sheet = CostSheet(stages=stages, common=draw.sheet.common)
        ladder[:] = declare_ladder(draw.members, OVERLAPS, sheet=sheet, score=draw.score)
        return ladder, {name: stage.cost for name, stage in stages.items()}

    ladder = list(declare_ladder(draw.members, OVERLAPS, sheet=draw.sheet, score=draw.score)[:1])
    pacer = Pacer(
        dict(enumerate(draw.guessed.tolist())),
        ladder=declare,
        cpus=draw.cpus,
        deadline_s=draw.allowed_s,
        reserve=Reserve(write_s=draw.write_s, stall_s=STALL * draw.allowed_s),
        clock=clock,
        first_rows=2,
    )

    def work(loads: dict[str, float], wait_s: float = 0.0) -> dict[str, Finished]:
        core_s = draw.true_core_s(loads)
        end_s = draw.end_s(clock.now_s + wait_s, core_s / draw.cpus)
        slow = (end_s - clock.now_s - wait_s) * draw.cpus / core_s
        clock.now_s = end_s
        return {
            name: Finished(units, draw.true_core_s({name: units}) * slow) for name, units in loads.items()
        }

    earned, scored = 0.0, 0
    rungs: list[int] = []
    total = int(draw.rows.sum())
    for file, rows in enumerate(draw.rows.tolist()):
        pacer.opened(file)
        work({"open": 1.0}, float(draw.disk_s[file]))
        for first in range(0, rows, BATCH_ROWS):
            batch = min(BATCH_ROWS, rows - first)
            for _ in range(batch):
                pacer.seen(file)
            if pacer.over():
                break
            pacer.prepared(work({"decode": float(batch)}))
            while batch and (piece := pacer.next_piece(batch)) is not None:
                rung = ladder[piece.rung]
                done = work(
                    {name: load * piece.rows for name, load in rung.loads.items() if name != "decode"}
                )
                if pacer.over():
                    break
                pacer.finished(done)
                batch -= piece.rows
                earned += piece.rows * rung.score
                scored += piece.rows
                rungs.append(piece.rung)
        pacer.closed(file)
        if pacer.over():
            break
    # What was under way when the time was over does not keep the output waiting.
    stopped_s = min(clock.now_s, pacer.stop_s)
    error = 1 + WRITE_ERROR * math.sin(1e3 * draw.write_s)
    written_s = draw.end_s(stopped_s, draw.write_s * error)
    return Outcome((earned + (total - scored) * PRIOR_SCORE) / total, written_s, total - scored, rungs)


def clairvoyant_score(draw: Draw) -> float:
    """Return a score that no schedule exceeds.

    It knows the machine's speed at every moment, every true cost and every file's length, chooses any subset
    of the members with any overlap for every row, keeps no reserve but the true time of writing, opens files
    and reads them from slow disks for nothing, and may cut rows into fractions. That is a linear program
    whose optimum is the upper hull of (cost, score) over all ways to compute a row, at the cost that there is
    time for.
    """
    error = 1 + WRITE_ERROR * math.sin(1e3 * draw.write_s)
    done_by_deadline = float(np.interp(draw.allowed_s, draw.edges_s, draw.done_s))
    core_s = (done_by_deadline - draw.write_s * error) * draw.cpus
    ways = [(0.0, PRIOR_SCORE)]
    for count in range(1, len(draw.members) + 1):
        for some in itertools.combinations(draw.members, count):
            for overlap in OVERLAPS:
                loads = row_loads(some, overlap, draw.sheet)
                score = draw.score(frozenset(member.name for member in some), overlap.name)
                ways.append((draw.true_core_s(loads), score))
    return hull_at(ways, core_s / float(draw.rows.sum()))


def hull_at(points: Sequence[tuple[float, float]], budget: float) -> float:
    """Return the highest mean score of a mixture of points whose mean cost is at most `budget`."""
    hull: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if hull and score <= hull[-1][1]:
            continue
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (cost - hull[-1][0]) <= (
            score - hull[-1][1]
        ) * (hull[-1][0] - hull[-2][0]):
            hull.pop()
        hull.append((cost, score))
    costs, scores = zip(*hull, strict=True)
    return float(np.interp(budget, costs, scores))
