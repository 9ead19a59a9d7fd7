"""The search against trying everything: how close does it come, at what part of the cost?

For each network the whole grid is measured: every recipe that can be made here, at every thread layout,
every batch size and every knob that its engine declares. This takes hours; each figure is appended to the
network's file in the folder of grids as it is known, and the same command goes on where it stopped. Then the
search runs with its default budget. The leaders of the grid are looked at in turns, the best of these race
for the title in interleaved rounds, and the search's winner meets the best of them in others. The search
leaves out what cannot win by what it knows of others; what of that does not hold in those looks is said too.

    python benchmarks/search.py [--models resnet18,...] [--budget SECONDS] [--grids FOLDER] [--markdown FILE]

A look at which the hypervisor gave the CPUs to others is taken again, and is no part of what the grid takes.

The first line of a grid tells the machine and the versions that it is of; on another machine, or with other
versions, name another folder.

The weights are random and only speed counts, so every recipe that runs is accepted.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

import output
import zoo
from alula.accuracy import metric_named
from alula.core import Candidate, Recipe, Settings
from alula.engines import engine_named
from alula.errors import EngineError
from alula.hardware import (
    fingerprint,
    int8_class,
    read_memory,
    stolen_share,
    take_snapshot,
    thread_budget,
)
from alula.measure import Round, ratio, throughput
from alula.sources import Source, parse_source
from alula.tuning import (
    Child,
    ChildError,
    Journal,
    Loaded,
    LoadRequest,
    SearchPlan,
    SearchResult,
    Workshop,
    compare_speeds,
    measure_round,
    offered_recipes,
    search,
    settings_grid,
)
from alula.tuning.kinship import is_no_faster, speed_bound
from lines import drop_torn_line, whole_lines
from machine import machine_line

GRIDS = Path(__file__).with_name("grids")
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
LOOKS = 2
LOOK_S = 0.5
STOLEN = 0.05  # of the CPU time wanted: a look in which the hypervisor gave more to others is disturbed
TRIES = 20  # looks one after the other of which one may be undisturbed
CALM_LOOKS = 3  # of the anchor, one after the other: then the disturbance is over
WAIT_S = 5.0  # until the next tries
PATIENCE_S = 1800.0  # then it goes on as it can: there are machines that are never calm
PROMISING = 0.5  # times the best so far: what is slower at first look needs no other
HOPELESS, LITTLE = 0.25, 0.2  # times the best so far: slower than that, though others had so little
# What every figure is divided by: machines drift, within hours by more than recipes differ.
ANCHOR = Candidate(Recipe.parse("torch/fp32"), Settings(threads=thread_budget(), batch_size=8))
ANCHORED_S = 20.0  # before the next look at the anchor
ANCHOR_LOOKS = 5  # of which the middle one counts: one may have been disturbed
# The best of many short looks may have been lucky, and those of another half hour unlucky. So some of each
# recipe are looked at in turns, and the best of these race for the title.
HEATED, HEATED_PER_RECIPE, HEATS = 40, 3, 3
LEADERS, LEADERS_ROUNDS, FINAL_ROUNDS = 16, 8, 25
TIMEOUT_S = 900.0
NEARLY = 1.05  # times as fast: what is believed to be equally fast may seem so in the best of short looks


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a grid's file behind the first, which tells the machine.

    Attributes:
        recipe: its name.
        settings: what was measured; None for a recipe that could not be made.
        per_s: the best of a few looks; None for a failure.
        relative: the same as times the anchor's speed at that time.
        error: why there is none.
        seconds: that it took, building included in a recipe's first. What is built again to go on where the
            grid stopped is not counted again.
    """

    recipe: str
    settings: Settings | None = None
    per_s: float | None = None
    relative: float | None = None
    error: str | None = None
    seconds: float

    @property
    def candidate(self) -> Candidate | None:
        """The recipe with its settings."""
        return None if self.settings is None else Candidate(Recipe.parse(self.recipe), self.settings)


def read_grid(path: Path) -> tuple[str | None, list[Entry]]:
    """Return the machine that a grid is of, None before anything was measured, and its whole lines."""
    first, *lines = whole_lines(path) or [b"null"]
    entries = [msgspec.json.decode(line, type=Entry) for line in lines]
    return msgspec.json.decode(first, type=str | None), entries


def checked_grid(path: Path) -> list[Entry]:
    """Return what is known of a grid of this very machine, and begin its file if there is none.

    Raises:
        SystemExit: if it is of another machine or of other versions.
    """
    here = machine_line()
    drop_torn_line(path)
    of, entries = read_grid(path)
    if of is None:
        path.write_bytes(msgspec.json.encode(here) + b"\n")
    elif of != here:
        raise SystemExit(f"{path} is of another machine:\n{of}\nThis one:\n{here}\nName other --grids.")
    return entries


def looked(child: Child, timed: tuple[str, ...]) -> tuple[float, float]:
    """Return how many samples a second a child takes at one look, and the share of the CPUs others had."""
    look, _ = measure_round(child, timed, LOOK_S, timeout_s=TIMEOUT_S)
    return look.per_s, look.stolen


def wait_for_others(so_far_s: float) -> None:
    """Leave the CPUs to others for a while."""
    output.say(f"  others have the CPUs; waiting for {so_far_s:.0f} s")
    time.sleep(WAIT_S)  # nothing tells when they leave, and only who computes sees what is stolen


class Looks:
    """Looks at what children have loaded, taken again until nothing disturbs one.

    Attributes:
        lost_s: what that took so far, in seconds.
    """

    def __init__(self, timed: tuple[str, ...]) -> None:
        self._timed = timed
        self.lost_s = 0.0

    def at(self, child: Child, *, hopeless_per_s: float = 0.0) -> float:
        """Return a child's speed.

        Args:
            child: has loaded a candidate.
            hopeless_per_s: a speed below which a look that is a little disturbed will do.
        """
        started_s = time.monotonic()
        for tried in itertools.count(1):
            lost_s = time.monotonic() - started_s
            per_s, stolen = looked(child, self._timed)
            enough = LITTLE if per_s < hopeless_per_s else STOLEN
            if stolen <= enough or lost_s > PATIENCE_S:
                break
            if tried % TRIES == 0:
                wait_for_others(lost_s)
        self.lost_s += lost_s
        return per_s


class Anchor:
    """One candidate that is looked at again and again, in a process of its own."""

    def __init__(self, workshop: Workshop, looks: Looks, candidate: Candidate) -> None:
        self._workshop, self._looks, self._candidate = workshop, looks, candidate
        self._child: Child | None = None
        self._speeds = deque[float](maxlen=ANCHOR_LOOKS)
        self._since_s = -math.inf

    def per_s(self) -> float:
        """Return its speed of the last minute or two."""
        if time.monotonic() - self._since_s > ANCHORED_S:
            self._speeds.append(self.look())
            self._since_s = time.monotonic()
        return float(np.median(self._speeds))

    def look(self) -> float:
        """Return its speed of now."""
        return self._looks.at(self.child())

    def child(self) -> Child:
        """Return its process."""
        if self._child is None:
            self._child = self._workshop.child("anchor")
            self._child.ask(load_request(self._workshop, self._candidate), Loaded, timeout_s=TIMEOUT_S)
        return self._child

    def close(self) -> None:
        """End its process."""
        if self._child is not None:
            self._child.close()


def load_request(workshop: Workshop, candidate: Candidate) -> LoadRequest:
    """Return what a child is asked to load."""
    return LoadRequest(
        recipe=candidate.recipe,
        artifact=str(workshop.artifact(candidate.recipe)),
        signature=workshop.signature,
        settings=candidate.settings,
    )


def wait_until_calm(workshop: Workshop, timed: tuple[str, ...]) -> float:
    """Return how long it took until nothing disturbed this machine, in seconds."""
    started_s = time.monotonic()
    with contextlib.closing(Anchor(workshop, Looks(timed), ANCHOR)) as anchor:
        while not all(looked(anchor.child(), timed)[1] <= STOLEN for _ in range(CALM_LOOKS)):
            if time.monotonic() - started_s > PATIENCE_S:
                break
            wait_for_others(time.monotonic() - started_s)
    return time.monotonic() - started_s


class Grid:
    """Measures what is missing of one model's grid. Use it once."""

    def __init__(self, path: Path, workshop: Workshop, timed: tuple[str, ...], threads: int) -> None:
        self._path, self._workshop = path, workshop
        self._threads, self._looks = threads, Looks(timed)
        self._anchor = Anchor(workshop, self._looks, ANCHOR)
        entries = checked_grid(path)
        self._done = {entry.candidate for entry in entries if entry.settings is not None}
        self._gone = {entry.recipe for entry in entries if entry.settings is None}
        self._begun = {entry.recipe for entry in entries}
        self._best = max((entry.relative or 0.0 for entry in entries), default=0.0)

    def close(self) -> None:
        """End the anchor's process."""
        self._anchor.close()

    def settings(self, recipe: Recipe) -> Iterator[Settings]:
        """Yield every layout, batch size and knob, the defaults first."""
        engine = engine_named(recipe.engine)
        layouts = {
            (one.threads, one.instances) for one in settings_grid(self._threads, self._workshop.signature)
        }
        for batch, (threads, instances) in itertools.product(BATCH_SIZES, sorted(layouts)):
            plain = Settings(threads=threads, instances=instances, batch_size=batch)
            for knobs in ({}, *engine.knobs(recipe, plain)):
                yield msgspec.structs.replace(plain, knobs=knobs)

    def measure(self, recipe: Recipe) -> None:
        """Append every missing figure of a recipe."""
        missing = [one for one in self.settings(recipe) if Candidate(recipe, one) not in self._done]
        if recipe.name in self._gone or not missing:
            return
        before, started_s = take_snapshot(), time.monotonic()
        try:
            self._workshop.artifact(recipe)
        except EngineError as error:
            self._append(Entry(recipe=recipe.name, error=str(error), seconds=time.monotonic() - started_s))
            return
        if recipe.name in self._begun:
            started_s = time.monotonic()
        else:
            after = take_snapshot()
            started_s += (after.stolen_s - before.stolen_s) / max(1, after.cpus)
        children = contextlib.ExitStack()
        with children:
            child: Child | None = None
            for settings in missing:
                best, relative, failure = None, None, None
                request = load_request(self._workshop, Candidate(recipe, settings))
                pause_s = time.monotonic()
                anchor_per_s = self._anchor.per_s()
                started_s += time.monotonic() - pause_s  # is no part of the grid
                lost_s = self._looks.lost_s
                try:
                    child = child or children.enter_context(self._workshop.child("grid"))
                    child.ask(request, Loaded, timeout_s=TIMEOUT_S)
                    best = self._look(child, anchor_per_s)
                    relative = best / anchor_per_s
                    self._best = max(self._best, relative)
                except ChildError as error:
                    failure, child = str(error), None
                    children.close()
                seconds = time.monotonic() - started_s - (self._looks.lost_s - lost_s)
                started_s = time.monotonic()
                self._append(
                    Entry(
                        recipe=recipe.name,
                        settings=settings,
                        per_s=best and round(best, 2),
                        relative=relative and round(relative, 3),
                        error=failure,
                        seconds=seconds,
                    )
                )

    def _look(self, child: Child, anchor_per_s: float) -> float:
        """Return the speed of what a child has loaded: the best of a few looks, or of one if far behind."""
        best_per_s = self._best * anchor_per_s
        best = 0.0
        for _ in range(LOOKS):
            best = max(best, self._looks.at(child, hopeless_per_s=HOPELESS * best_per_s))
            if best < PROMISING * best_per_s:
                break
        return best

    def _append(self, entry: Entry) -> None:
        entry = msgspec.structs.replace(entry, seconds=round(entry.seconds, 2))
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(entry) + b"\n")
        output.say(f"  {entry.candidate or entry.recipe}: {entry.per_s or entry.error}")


def beyond_their_bounds(scores: dict[Candidate, float]) -> list[str]:
    """Return the recipes that are faster than the search would believe of them, in words.

    Args:
        scores: of candidates that were looked at in turns; figures of other hours say nothing of it.
    """
    best: dict[Recipe, float] = {}
    for one, score in scores.items():
        best[one.recipe] = max(score, best.get(one.recipe, 0.0))
    found = []
    for recipe, speed in best.items():
        bound = speed_bound(recipe, {one: known for one, known in best.items() if one != recipe})
        if bound is not None and speed > bound.at_most:
            times = f"{speed / bound.speed:.2f} times as fast as {bound.kin}"
            found.append(f"{recipe} is {times}, and was believed to be at most {bound.limit:g} times")
    for slower, faster in itertools.permutations(best, 2):
        if is_no_faster(faster, slower) and best[faster] > NEARLY * best[slower]:
            times = f"{best[faster] / best[slower]:.2f} times as fast as {slower}"
            found.append(f"{faster} is {times}, and was believed to be no faster")
    return found


def searched(
    source: Source, workdir: Path, timed: tuple[str, ...], calibration: tuple[str, ...], budget_s: float
) -> tuple[SearchResult, float, float]:
    """Return what the search finds, the seconds that it takes, and the share of them that others had."""
    machine = fingerprint()
    workdir.mkdir()
    plan = SearchPlan(
        source=source,
        workdir=workdir,
        calibration=calibration,
        validation=timed,
        targets=None,
        metric=metric_named("agreement"),
        max_drop=1.0,
        recipes=offered_recipes(machine.isa),
        threads=thread_budget(),
        saturating=int8_class(machine.isa) == "saturating",
        budget_s=budget_s,
        closing_s=0.0,
        memory_limit_bytes=int(0.8 * read_memory().available_bytes),
    )
    before, started_s = take_snapshot(), time.monotonic()
    result = search(plan, journal=Journal(workdir / "search.jsonl"), report=output.say)
    return result, time.monotonic() - started_s, stolen_share(before, take_snapshot())


def contested(ranked: Iterable[Candidate]) -> list[Candidate]:
    """Return which of a grid may be the best: some of each recipe.

    Args:
        ranked: candidates, the fastest in the grid first.
    """
    chosen: list[Candidate] = []
    for one in ranked:
        if sum(other.recipe == one.recipe for other in chosen) < HEATED_PER_RECIPE:
            chosen.append(one)
    return chosen[:HEATED]


def heated(
    workshop: Workshop, chosen: Sequence[Candidate], timed: tuple[str, ...]
) -> tuple[dict[Candidate, float], float]:
    """Return the speeds of candidates by looks in turns, and the seconds that were lost to others."""
    scores: dict[Candidate, list[float]] = {one: [] for one in chosen}
    looks = Looks(timed)
    with contextlib.closing(Anchor(workshop, looks, chosen[0])) as anchor:
        for heat in range(HEATS):
            for one in chosen if heat % 2 == 0 else reversed(chosen):
                with contextlib.suppress(ChildError), workshop.child("heat") as child:
                    child.ask(load_request(workshop, one), Loaded, timeout_s=TIMEOUT_S)
                    before = anchor.look()
                    per_s = looks.at(child)
                    scores[one].append(2 * per_s / (before + anchor.look()))
            output.say(f"looked at {len(chosen)} of the grid in turns, {heat + 1} of {HEATS}")
    medians = {one: float(np.median(found)) for one, found in scores.items() if len(found) == HEATS}
    return medians, looks.lost_s


def raced(
    workshop: Workshop, candidates: Iterable[Candidate], timed: tuple[str, ...], *, rounds: int
) -> dict[str, list[Round]]:
    """Return interleaved rounds of candidates, each in a living process of its own."""
    return compare_speeds(
        {str(one): load_request(workshop, one) for one in candidates},
        inputs=timed,
        folder=workshop.folder / "logs",
        threads=thread_budget(),
        memory_limit_bytes=int(0.8 * read_memory().available_bytes),
        rounds=rounds,
        round_s=1.0,
        timeout_s=TIMEOUT_S,
    ).rounds


def measured(
    model: str, options: argparse.Namespace, folder: Path
) -> tuple[tuple[str, ...], list[str]] | None:
    """Return one row of the table and remarks; None where only the grid was asked for."""
    paths = {}
    for name, n, seed in (("calibration", 64, 100), ("timed", 64, 101)):
        paths[name] = (str(folder / f"{name}.npy"),)
        np.save(paths[name][0], zoo.noise(model, n, seed=seed))
    source, machine, threads = (
        parse_source(zoo.network(model), workdir=folder),
        fingerprint(),
        thread_budget(),
    )
    workshop = Workshop(
        source,
        folder / "grid",
        calibration=paths["calibration"],
        validation=paths["timed"],
        threads=threads,
        saturating=int8_class(machine.isa) == "saturating",
        memory_limit_bytes=int(0.8 * read_memory().available_bytes),
        timeout_s=lambda: TIMEOUT_S,
        report=output.say,
    )
    # What the one compiles, the other must not find.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled-for-the-grid")
    path = options.grids / f"{model}.jsonl"
    with contextlib.closing(Grid(path, workshop, paths["timed"], threads)) as grid:
        for recipe in offered_recipes(machine.isa):
            output.say(f"{model}: {recipe}")
            grid.measure(recipe)
    if options.grid_only:
        return None
    _, entries = read_grid(path)
    ranked = sorted(
        (one for one in entries if one.relative and one.candidate), key=lambda one: -(one.relative or 0)
    )
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled-by-the-search")
    wait_until_calm(workshop, paths["timed"])
    result, search_s, stolen = searched(
        source, folder / "search", paths["timed"], paths["calibration"], options.budget
    )
    winner = result.finalists[0].accepted.candidate
    chosen = contested(one.candidate for one in ranked if one.candidate)
    for one in chosen:
        workshop.artifact(one.recipe)  # made again where the grid was measured by an earlier run
    started_s = time.monotonic()
    scores, lost_s = heated(workshop, chosen, paths["timed"])
    contenders = sorted(scores, key=lambda one: -scores[one])[:LEADERS]
    lost_s += wait_until_calm(workshop, paths["timed"])
    title = raced(workshop, contenders, paths["timed"], rounds=LEADERS_ROUNDS)
    best = max(
        (one for one in contenders if str(one) in title), key=lambda one: throughput(title[str(one)]).per_s
    )
    heats_s = time.monotonic() - started_s - lost_s
    if best == winner:
        share = "1, the same"
    else:  # in rounds of their own: the best of many in one race was lucky there
        final = raced(workshop, [winner, best], paths["timed"], rounds=FINAL_ROUNDS)
        speeds = {name: throughput(several).rounds_per_s for name, several in final.items()}
        between = ratio(speeds[str(winner)], speeds[str(best)])
        share = f"{between.median:.3f}x [{between.low:.3f}, {between.high:.3f}]"
    # Without the heats it would not be known which of the grid is the best.
    grid_s = sum(entry.seconds for entry in entries) + heats_s
    failed = {entry.recipe for entry in entries} - {entry.recipe for entry in ranked}
    row = (
        model,
        f"{len(ranked)} ({len(failed)} recipes could not be made or run)",
        str(best),
        str(winner),
        share,
        f"{grid_s / 60:.0f}",
        f"{search_s / 60:.1f}",
        f"{search_s / grid_s:.1%}",
    )
    remarks = beyond_their_bounds(scores)
    if stolen > STOLEN:
        remarks.append(f"the hypervisor gave {stolen:.0%} of the CPUs' time to others during the search")
    return row, [f"- {model}: {line}." for line in remarks]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = "resnet18,mobilenetv3_large_100,tf_efficientnet_b0_ns,eca_nfnet_l0"
    parser.add_argument("--models", type=output.names, default=output.names(default), help="of zoo.py")
    parser.add_argument("--budget", type=float, default=600.0, help="of the search, seconds (default 600)")
    parser.add_argument("--grids", type=Path, default=GRIDS, help="folder of the grids' figures")
    parser.add_argument("--grid-only", action="store_true", help="end without the search")
    output.add_markdown_option(parser)
    options = parser.parse_args()
    zoo.let_children_import_timm()
    rows, remarks = [], list[str]()
    for model in options.models:
        with tempfile.TemporaryDirectory(prefix="alula-benchmark-") as folder:
            found = measured(model, options, Path(folder))
        if found:
            rows.append(found[0])
            remarks += found[1]
    if options.grid_only:
        return
    header = (
        *("model", "candidates", "best of the grid", "the search's winner", "winner / best (95 %)"),
        *("grid, minutes", "search, minutes", "share of the time"),
    )
    limits = (
        "\n".join(remarks) or "All that `alula.tuning.kinship` believes holds of those looked at in turns."
    )
    output.publish(f"{output.table(header, rows, left=5)}\n\n{limits}", markdown=options.markdown)


if __name__ == "__main__":
    main()
