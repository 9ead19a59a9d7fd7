"""From bundles, scores and a deadline to the ensemble that fits."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from alula.accuracy import Metric, default_metric, metric_named
from alula.bundle import DeclaredCascade, DeclaredRung, check_target
from alula.core import Blend, Mean, Rank, View
from alula.data import Samples
from alula.errors import AccuracyError, UsageError
from alula.hardware import thread_budget
from alula.measure import Clock
from alula.pipeline import AtomicFile
from alula.planning import (
    EXHAUSTIVE_UP_TO,
    NARROWED_CLASSES,
    CascadeOffer,
    Machine,
    Overlap,
    Plan,
    Validation,
    Workload,
    duration,
    in_words,
    make_plan,
    row_loads,
)
from alula.postprocess import PostProcessing
from alula.workflows.durations import parse_duration_s
from alula.workflows.ensembling import make_ensemble, member_names
from alula.workflows.opened_members import OpenedMembers
from alula.workflows.stage_costs import Measured, measure_stages
from alula.workflows.validated_scores import (
    RowGrid,
    ValidatedScores,
    check_weights_can_be_found,
    from_data,
    from_tables,
    labelled_data,
    row_grid,
    some_of,
    validation_of,
)
from alula.workflows.workloads import Inputs, inputs_of

__all__ = ["MeasuredStage", "PlanReport", "plan"]

Report = Callable[[str], None]

_NO_VIEW = View()
# Weights and bands are found in thousands of tries; one of them may take so long.
_MOST_SCORE_S = 0.05
# Time that trying all subsets may take; beyond it members are picked greedily.
_CHOOSING_S = 60.0


class MeasuredStage(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage costs, and how much of the planned job it is.

    Attributes:
        name: of the stage.
        per: what a unit is: `job`, `file`, `row` of the output or `window`.
        core_s: core-seconds per unit.
        spread: relative standard deviation of that.
        job_core_s: core-seconds in the planned job; 0 where it is not needed.
    """

    name: str
    per: str
    core_s: float
    spread: float
    job_core_s: float


class PlanReport(msgspec.Struct, frozen=True, kw_only=True):
    """A plan, and what it was made from.

    Attributes:
        plan: what the job should do.
        bundles: folder of each member, by name.
        metric: that scores are of.
        judged_on: in words.
        rows: that scores were taken on.
        recordings: that these are of.
        workload: of the job.
        deadline_s: time allowed.
        margin: share of it that is kept free.
        machine: where the job runs.
        stages: what was measured.
        overhead: time of a small job over the sum of its stages, at least 1.
        spread: relative standard deviation of what the machine did to all stages at once.
        output: the ensemble, or None where none was asked for.
        notes: what a reader must know of the figures.
    """

    plan: Plan
    bundles: dict[str, str]
    metric: str
    judged_on: str
    rows: int
    recordings: int
    workload: Workload
    deadline_s: float
    margin: float
    machine: Machine
    stages: tuple[MeasuredStage, ...]
    overhead: float
    spread: float
    output: str | None
    notes: tuple[str, ...]


def plan(
    bundles: Sequence[str | Path],
    *,
    workload: str | Path,
    deadline: str | float,
    scores: Sequence[str | Path] = (),
    truth: str | Path | None = None,
    data: Any = None,
    metric: str | None = None,
    blend: Blend | None = None,
    post: PostProcessing | None = None,
    overlaps: Sequence[int] = (1,),
    labels: Sequence[str] | None = None,
    cpus: float | None = None,
    speed: float | None = None,
    margin: float = 0.05,
    max_drop: float | None = 0.005,
    cascade: bool = False,
    rounds: int = 6,
    round_s: float = 1.0,
    threads: int | None = None,
    trust_code: bool = False,
    seed: int = 0,
    output: str | Path | None = None,
    replace: bool = False,
    save: str | Path | None = None,
    report: Report = lambda text: None,
    clock: Clock | None = None,
) -> PlanReport:
    """Return which bundles, overlap and weights score best in a time, as measured on this machine.

    Every stage of a job is measured in short interleaved rounds: decoding, resampling, features, each bundle
    in the layout that it was tuned for, writing, loading. The job's time is predicted from their sum. Bundles
    that are one model in several precisions rule each other out.

    Args:
        bundles: of one model each, with the same classes.
        workload: `200x10m`, a folder that is looked through, or a count of images or arrays.
        deadline: such as `110m`, or seconds as a number.
        scores: tables as `alula predict` writes them, of rows whose truth is known: one for each bundle in
            their order, or one for all with a column `member`. Best out of fold.
        truth: for `scores`: a table of the same rows with 0 or 1 for each class, or with a column `label`.
        data: in place of `scores` and `truth`: labelled data as `optimize` takes it, which the bundles are
            run over here.
        metric: as `optimize` takes it; None chooses by the truth.
        blend: how scores become one, without weights: these are found. None takes the mean of scores.
        post: views of members by name, and steps after the blend.
        overlaps: windows per row that are compared; needs `data`.
        labels: the classes; None takes the bundles'.
        cpus: of the machine that the job will run on, if it is another; None takes the thread budget.
        speed: of one of its CPUs, as a multiple of one here; None takes 1.
        margin: share of the deadline that is kept free.
        max_drop: loss of score that a cascade may bring; None looks for none.
        cascade: whether `output` is the cascade, where one is offered.
        rounds: how often each stage is timed, at least twice.
        round_s: length of a round.
        threads: thread budget; None takes min(affinity, CPU quota).
        trust_code: see `alula.load`.
        seed: of the split that a plan is judged on.
        output: the ensemble to make, `NAME.alula`, with the weights, the overlap and the ladder of the plan.
        replace: whether a bundle of that name may be replaced.
        save: file for the report as JSON.
        report: gets lines of text about what is being done.
        clock: tells the time of rounds.

    Raises:
        UsageError: an option is wrong, bundles do not go together, or the deadline is too short for any.
        DataError: a table or the data cannot be used, or tables are of other rows or classes.
        BundleError: a bundle is refused, or the output exists.
        AccuracyError: the metric is not defined.
        EngineError: a bundle failed.
        JobError: `save` cannot be written.
    """
    deadline_s = parse_duration_s(deadline)
    _check_sources(scores, truth, data)
    if not 0 <= margin < 1:
        raise UsageError(f"The margin is {margin}; expected a share of the deadline from 0 to below 1.")
    if rounds < 2 or not round_s > 0:
        raise UsageError(f"Got {rounds} rounds of {round_s} s; expected at least 2, longer than 0 s.")
    if cascade and output is None:
        raise UsageError("A cascade is for the ensemble that is made, and none is: give -o as well.")
    named = None if metric is None else _judge(metric)
    blend = Mean() if blend is None else blend
    check_weights_can_be_found(blend)
    post = PostProcessing() if post is None else post
    # Minutes are a long time to learn that something cannot be written.
    if output is not None:
        check_target(Path(output), replace=replace)
    if save is not None:
        AtomicFile(Path(save)).discard()
    budget = thread_budget(threads)
    machine = _machine(budget, cpus, speed)
    with (
        tempfile.TemporaryDirectory(prefix="alula-plan-") as scratch,
        OpenedMembers(
            bundles,
            blend=blend,
            post=post,
            labels=labels,
            trust_code=trust_code,
            threads=budget,
            report=report,
        ) as opened,
    ):
        grid = row_grid(opened, post.step, overlaps)
        classes = opened.lineup.blender.alignment.labels
        samples = None if data is None else labelled_data(opened, data)
        inputs = inputs_of(
            workload,
            demands=opened.lineup.demands,
            row_s=grid.row_s,
            examples=_examples(samples),
            scratch=Path(scratch),
        )
        if samples is None:
            assert truth is not None
            known = from_tables(opened, scores, truth, grid=grid)
        else:
            known = from_data(
                opened, samples, grid=grid, blend=blend, post=post, labels=labels, report=report
            )
        validation, score_s = _validation(
            known, opened, grid=grid, metric=named, blend=blend, post=post, seed=seed
        )
        measured = measure_stages(
            opened,
            inputs,
            row_s=grid.row_s,
            windows_per_row=grid.own_windows_per_row,
            labels=classes,
            scratch=Path(scratch),
            rounds=rounds,
            round_s=round_s,
            report=report,
            clock=clock,
        )
    by = f"{validation.metric.name} of {len(validation.y_true)} rows"
    report(f"choosing among {len(bundles)} bundles by {by}")
    no_cascade = _why_no_cascade(validation, blend, max_drop)
    made = make_plan(
        measured.members,
        grid.overlaps,
        sheet=measured.sheet,
        validation=validation,
        workload=inputs.workload,
        machine=machine,
        deadline_s=deadline_s,
        margin=margin,
        max_drop=None if no_cascade else max_drop,
        seed=seed,
        exhaustive_up_to=_exhaustive_up_to(score_s, len(grid.overlaps), cascade=not no_cascade),
        narrowed=_narrowed(score_s),
    )
    if not made.fits:
        raise UsageError(
            _too_short(made, measured, grid, inputs, machine, deadline_s=deadline_s, margin=margin)
        )
    folders = dict(zip(opened.names, opened.folders, strict=True))
    if output is not None:
        report(f"writing {output}")
        _write(
            made,
            folders,
            output,
            validation,
            grid,
            blend=blend,
            post=post,
            labels=labels,
            offer=made.cascade if cascade else None,
            replace=replace,
        )
    result = PlanReport(
        plan=made,
        bundles={name: str(folder) for name, folder in folders.items()},
        metric=validation.metric.name,
        judged_on=known.source,
        rows=len(validation.y_true),
        recordings=validation.recordings,
        workload=inputs.workload,
        deadline_s=deadline_s,
        margin=margin,
        machine=machine,
        stages=_stages(made, measured, grid, inputs.workload),
        overhead=measured.sheet.overhead,
        spread=measured.sheet.spread,
        output=None if output is None else str(output),
        notes=(
            *made.notes,
            *measured.notes,
            *_doubts(known, validation, data),
            *([_cascade_note(made, no_cascade)] if cascade else []),
        ),
    )
    if save is not None:
        _save(Path(save), result)
    return result


def _check_sources(scores: Sequence[str | Path], truth: str | Path | None, data: Any) -> None:
    if (data is None) == (not scores):
        raise UsageError(
            "A plan needs scores of rows whose truth is known: give either tables (--scores and --truth) or "
            "labelled data (--data)."
        )
    if bool(scores) != (truth is not None):
        raise UsageError("Tables of scores and their truth belong together: give both --scores and --truth.")


def _machine(budget: int, cpus: float | None, speed: float | None) -> Machine:
    for name, value in (("--cpus", cpus), ("--speed", speed)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{name} is {value}; expected a number above 0.")
    return Machine(
        cpus=budget if cpus is None else cpus,
        speed=1.0 if speed is None else speed,
        measured=cpus is None and speed is None,
    )


def _judge(name: str) -> Metric:
    """Return the metric of a name, if it can judge a plan."""
    found = metric_named(name)
    if not found.needs_labels:
        raise UsageError(f"The metric `{name}` knows no truth; expected one that judges by it.")
    return found


def _examples(samples: Samples | None) -> list[Path]:
    """Return the files of labelled data, from which decoding can be measured."""
    found = [] if samples is None else [item.path for item in samples.items]
    return list(dict.fromkeys(path for path in found if path is not None))


def _why_no_cascade(validation: Validation, blend: Blend, max_drop: float | None) -> str:
    """Return why no cascade is looked for, empty where one is."""
    if max_drop is None:
        return "`max_drop` is None"
    if isinstance(blend, Rank):
        return "a blend by rank needs all members for all rows"
    if validation.finish is not None:
        return "there are steps after the blend, or windows overlap"
    return ""


def _validation(
    known: ValidatedScores,
    opened: OpenedMembers,
    *,
    grid: RowGrid,
    metric: Metric | None,
    blend: Blend,
    post: PostProcessing,
    seed: int,
) -> tuple[Validation, float]:
    """Return what a plan is judged by, and the seconds that one score of all members takes.

    Where that is long, only some of the recordings are kept.
    """
    by = metric_named(default_metric(known.y_true)) if metric is None else metric

    def validated(some: ValidatedScores) -> Validation:
        return validation_of(
            some,
            grid=grid,
            metric=by,
            blend=blend,
            post=post,
            activation=opened.lineup.activation,
            classes=opened.lineup.blender.alignment.classes,
        )

    whole = validated(known)
    score_s = _score_s(whole, opened.names)
    if score_s <= _MOST_SCORE_S:
        return whole, score_s
    some = validated(some_of(known, share=_MOST_SCORE_S / score_s, seed=seed))
    return some, _score_s(some, opened.names)


def _score_s(validation: Validation, names: Sequence[str]) -> float:
    """Return seconds that one score of all members takes.

    Raises:
        AccuracyError: the metric is not defined.
    """
    before_s = time.perf_counter()
    overlap = next(iter(validation.predictions))
    value = validation.score(overlap, dict.fromkeys(names, 1))
    if not math.isfinite(value):
        raise AccuracyError(f"The metric `{validation.metric.name}` is {value} on the rows of known truth.")
    return time.perf_counter() - before_s


def _exhaustive_up_to(score_s: float, overlaps: int, *, cascade: bool) -> int:
    """Return how many members may have all their subsets tried in the time for choosing.

    >>> _exhaustive_up_to(0.001, 1, cascade=False), _exhaustive_up_to(1.5, 1, cascade=False)
    (12, 4)
    >>> _exhaustive_up_to(1.5, 1, cascade=True)
    3
    """
    # All rows, then both halves; a score of half of the rows takes half of the time. And all rows once more
    # for what a cascade may end in.
    tries = _CHOOSING_S / ((2 * overlaps + cascade) * score_s)
    return max(1, min(EXHAUSTIVE_UP_TO, int(math.log2(max(2.0, tries)))))


def _narrowed(score_s: float) -> int:
    """Return how many classes of a cascade may get bands of their own in the time for choosing.

    >>> _narrowed(0.001), _narrowed(0.05)
    (48, 2)
    """
    # Up to ten tries for a class; of two ensembles, four first members and two limits, on all rows and on
    # both halves.
    return min(NARROWED_CLASSES, int(_CHOOSING_S / (10 * 2 * 4 * 2 * 3 * score_s)))


def _too_short(
    made: Plan,
    measured: Measured,
    grid: RowGrid,
    inputs: Inputs,
    machine: Machine,
    *,
    deadline_s: float,
    margin: float,
) -> str:
    """Return by how much the deadline is missed and what would fit, as a message."""
    members = [member for member in measured.members if member.name in made.counts]
    overlap = next(one for one in grid.overlaps if one.name == made.overlap)

    def high_s(files: int) -> float:
        part = files / inputs.workload.files
        rows = max(files, math.ceil(inputs.workload.rows * part))
        some = Workload(files=files, rows=rows, longest_rows=min(rows, inputs.workload.longest_rows))
        return duration(members, overlap, sheet=measured.sheet, workload=some, machine=machine).high_s

    fitting, too_many = 0, inputs.workload.files
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        fitting, too_many = (middle, too_many) if high_s(middle) <= made.limit_s else (fitting, middle)
    needed_s = made.time.high_s / (1 - margin)
    others = f", or {fitting} of the {inputs.workload.files} files" if fitting else ""
    return (
        f"The deadline of {in_words(deadline_s)} is too short for any bundle: less the margin it leaves "
        f"{in_words(made.limit_s)}, and the cheapest, `{members[0].name}`, takes "
        f"{in_words(made.time.expected_s)} and up to {in_words(made.time.high_s)}: "
        f"{in_words(made.time.high_s - made.limit_s)} too long. A deadline of {in_words(needed_s)} would "
        f"fit{others}."
    )


def _write(
    made: Plan,
    folders: dict[str, Path],
    output: str | Path,
    validation: Validation,
    grid: RowGrid,
    *,
    blend: Blend,
    post: PostProcessing,
    labels: Sequence[str] | None,
    offer: CascadeOffer | None,
    replace: bool,
) -> None:
    """Write the ensemble of a plan, or of the cascade that it offers."""
    counts = made.counts if offer is None else {offer.judged.cascade.cheap: 0} | offer.counts
    overlap = made.overlap if offer is None else offer.overlap
    names = [name for name in folders if name in counts]
    chosen = [folders[name] for name in names]
    # Fewer bundles may need fewer numbers to be called differently.
    called = dict(zip(names, member_names(chosen), strict=True))
    own_views = [post.view.get(name, _NO_VIEW) for name in names]
    views = dict(zip(names, grid.views(own_views, overlap), strict=True))
    make_ensemble(
        chosen,
        output,
        blend=msgspec.structs.replace(blend, weights=tuple(float(counts[name]) for name in names)),
        post=PostProcessing(
            step=grid.steps(post.step, overlap),
            view={called[name]: view for name, view in views.items() if view != _NO_VIEW},
        ),
        labels=labels,
        ladder=_ladder(made, grid.overlaps, called)
        if offer is None
        else _cascade_ladder(offer, validation, called),
        cascade=None if offer is None else _declared(offer, called),
        prior=_prior(validation, overlap, counts),
        replace=replace,
    )


def _ladder(made: Plan, overlaps: Sequence[Overlap], called: Mapping[str, str]) -> tuple[DeclaredRung, ...]:
    """Return the ladder of a plan as an ensemble holds it.

    Args:
        made: the plan.
        overlaps: it was chosen from.
        called: by member, its name in the ensemble.
    """
    per_row = {overlap.name: overlap.windows_per_row for overlap in overlaps}
    return tuple(
        DeclaredRung(
            members=tuple(called[name] for name in rung.members),
            every=round(per_row[made.overlap] / per_row[rung.overlap]),
            score=rung.score,
        )
        for rung in made.ladder
    )


def _declared(offer: CascadeOffer, called: Mapping[str, str]) -> DeclaredCascade:
    found = offer.judged.cascade
    return DeclaredCascade(
        member=called[found.cheap], lower=found.lower, upper=found.upper, share=offer.judged.share
    )


def _cascade_ladder(
    offer: CascadeOffer, validation: Validation, called: Mapping[str, str]
) -> tuple[DeclaredRung, ...]:
    """Return the cascade and its first member alone, if that is worse."""
    cascade = offer.judged.cascade
    first = validation.blended(offer.overlap, {cascade.cheap: 1})
    full = validation.blended(offer.overlap, offer.counts)
    mixed = np.where(cascade.uncertain(first)[:, None], full, first)
    whole = DeclaredRung(members=tuple(called.values()), score=validation.judged(mixed))
    alone = DeclaredRung(members=(called[cascade.cheap],), score=validation.judged(first))
    return (whole, alone) if alone.score < whole.score else (whole,)


def _prior(validation: Validation, overlap: str, counts: Mapping[str, int]) -> list[float]:
    """Return the mean score of each class, which is what is known of a row that was not looked at."""
    scores = validation.blended(overlap, {name: count for name, count in counts.items() if count})
    means: list[float] = scores.mean(axis=0, dtype=np.float64).tolist()
    return means


def _stages(made: Plan, measured: Measured, grid: RowGrid, workload: Workload) -> tuple[MeasuredStage, ...]:
    """Return every stage and its part of the planned job, the largest first."""
    sheet = measured.sheet
    members = [member for member in measured.members if member.name in made.counts]
    overlap = next(one for one in grid.overlaps if one.name == made.overlap)
    loads = row_loads(members, overlap, sheet)
    used = {*sheet.common, *(name for member in members for name in (*member.features, member.model))}
    times = {"job": 1.0, "file": float(workload.files)}
    found = [
        MeasuredStage(
            name=name,
            per=stage.per,
            core_s=stage.cost.core_s,
            spread=stage.cost.spread,
            job_core_s=stage.cost.core_s
            * (loads.get(name, 0.0) * workload.rows if stage.per not in times else times[stage.per])
            if name in used
            else 0.0,
        )
        for name, stage in sheet.stages.items()
    ]
    return tuple(sorted(found, key=lambda stage: -stage.job_core_s))


def _doubts(known: ValidatedScores, validation: Validation, data: Any) -> list[str]:
    notes = list(known.notes)
    if data is not None:
        notes.append(
            "scores are of data that the bundles were run over here; what a model was trained on flatters it"
        )
    judged, told = len(validation.y_true), len(known.truth_keys)
    if judged < told:
        notes.append(
            f"judged on {judged} of {told} rows: recordings drawn so that it takes minutes, or rows that "
            "come out of the steps at every overlap"
        )
    return notes


def _cascade_note(made: Plan, not_looked_for: str) -> str:
    """Return what became of a cascade that was asked for."""
    offer = made.cascade
    if offer is not None:
        return (
            f"the ensemble is the cascade: `{offer.judged.cascade.cheap}` scores every window, all members "
            f"the {offer.judged.share:.0%} where it is uncertain; score {offer.judged.score:.4f}, "
            f"{in_words(offer.time.expected_s)}"
        )
    if not_looked_for:
        return f"no cascade was looked for, so there is none: {not_looked_for}"
    if made.judged_score is None:
        return "the recordings are too few to judge a cascade, so there is none"
    return "no cascade is better than the plan, so there is none"


def _save(path: Path, report: PlanReport) -> None:
    file = AtomicFile(path)
    try:
        file.write(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        file.commit()
    finally:
        file.discard()
