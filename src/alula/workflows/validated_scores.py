"""What a plan is judged by: scores of every member for rows of known truth, from tables or from data."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from alula.accuracy import Metric
from alula.core import AudioInput, Blend, Maximum, Minimum, OverlapMean, Step, View
from alula.data import RowKey, Samples, ScoreTable, open_samples, places_of, read_scores
from alula.engines import Arrays
from alula.ensemble import Alignment, Blender, Placement
from alula.errors import AlulaError, DataError, EngineError, UsageError
from alula.features import ArrayFeatures, Demand, make_features
from alula.pipeline import Progress, run_job
from alula.planning import Overlap, Validation
from alula.postprocess import PostProcessing, Track, apply_steps
from alula.workflows.opened_members import OpenedMembers
from alula.workflows.prediction import kind_of_input
from alula.workflows.running import activated

__all__ = [
    "RowGrid",
    "ValidatedScores",
    "check_weights_can_be_found",
    "from_data",
    "from_tables",
    "labelled_data",
    "row_grid",
    "some_of",
    "validation_of",
]

Array: TypeAlias = NDArray[Any]
Float32: TypeAlias = NDArray[np.float32]
Report: TypeAlias = Callable[[str], None]

# A score of exactly 0 or 1 has no logit.
_LEAST_SCORE = 1e-7
_SAY_EVERY_S = 10.0
_MEMBER = "member"
_LABEL = "label"
# Of a sample: how far from whole numbers a division of seconds may be that is meant to be whole.
_ROUNDING = 1e-6
# Windows per row that are named where others are impossible.
_NAMED_OVERLAPS = range(1, 13)


@dataclass(frozen=True, kw_only=True)
class RowGrid:
    """How rows of the output lie in a recording, and how densely windows may be laid.

    Attributes:
        row_s: seconds of a recording that one row of the output stands for; None for images and arrays.
        overlaps: that are compared, sparsest first.
        every_s: by overlap, seconds between its windows; None for the bundles' own.
    """

    row_s: float | None
    overlaps: tuple[Overlap, ...]
    every_s: dict[str, float | None]

    @property
    def own_windows_per_row(self) -> float:
        """Windows per row where they lie as the bundles say."""
        first = self.overlaps[0]
        # Denser ones divide a row that is one window of the bundles' own.
        return first.windows_per_row if self.every_s[first.name] is None else 1.0

    def views(self, views: Sequence[View], overlap: str) -> tuple[View, ...]:
        """Return how members look at a recording at an overlap."""
        hop_s = self.every_s[overlap]
        if hop_s is None:
            return tuple(views)
        return tuple(msgspec.structs.replace(view, hop_s=hop_s) for view in views)

    def steps(self, steps: tuple[Step, ...], overlap: str) -> tuple[Step, ...]:
        """Return the steps after the blend at an overlap."""
        if self.every_s[overlap] is None or self.row_s is None:
            return steps
        return (OverlapMean(segment_s=self.row_s), *steps)


def row_grid(opened: OpenedMembers, steps: Sequence[Step], windows_per_row: Sequence[int]) -> RowGrid:
    """Return the grid of the rows that these members and steps give.

    Args:
        opened: the members.
        steps: after the blend.
        windows_per_row: how many windows may be laid for each row.

    Raises:
        UsageError: windows cannot be laid like this.

    """
    counts = sorted(set(windows_per_row))
    if not counts or counts[0] < 1 or any(more % fewer for fewer, more in itertools.pairwise(counts)):
        raise UsageError(
            f"The overlaps are {', '.join(map(str, windows_per_row)) or 'none'}; expected numbers of windows "
            "per row such as 1,2,4, each a multiple of the one before."
        )
    audio = opened.lineup.demands[0].description
    own = Overlap(name="none")
    if not isinstance(audio, AudioInput):
        if counts != [1]:
            raise UsageError(
                "Only recordings have windows that overlap; these bundles read files as a whole."
            )
        return RowGrid(row_s=None, overlaps=(own,), every_s={own.name: None})
    hop_s = audio.window_s if audio.hop_s is None else audio.hop_s
    keep_s = opened.lineup.demands[0].keep_s or audio.window_s
    segment_s = next((step.segment_s for step in steps if isinstance(step, OverlapMean)), None)
    if counts == [1]:
        # Windows that overlap already are part of the bundles; a row of the output may hold several.
        row_s = segment_s or hop_s
        return RowGrid(
            row_s=row_s,
            overlaps=(msgspec.structs.replace(own, windows_per_row=max(1.0, row_s / hop_s)),),
            every_s={own.name: None},
        )
    if segment_s is not None or abs(hop_s - keep_s) > 1e-6:
        raise UsageError(
            f"The bundles' rows are about {keep_s:g} s every {hop_s:g} s, so their windows overlap already, "
            "or a step `overlap` says so; expected neither where overlaps are compared."
        )
    rates_hz = sorted({_rate_hz(demand) for demand in opened.lineup.demands})
    possible = [count for count in _NAMED_OVERLAPS if _are_samples(hop_s / count, rates_hz)]
    if not _are_samples(hop_s / counts[-1], rates_hz):
        raise UsageError(
            f"{counts[-1]} windows per row of {hop_s:g} s are no whole number of samples apart at "
            f"{' and '.join(map(str, rates_hz))} Hz, so they would drift away from the rows. Possible are "
            f"{', '.join(map(str, possible)) or 'none'}."
        )
    overlaps = tuple(
        own
        if count == 1
        else Overlap(name=f"every {round(hop_s / count, 6):g} s", windows_per_row=float(count))
        for count in counts
    )
    return RowGrid(
        row_s=hop_s,
        overlaps=overlaps,
        every_s={
            overlap.name: None if count == 1 else hop_s / count
            for overlap, count in zip(overlaps, counts, strict=True)
        },
    )


def _rate_hz(demand: Demand) -> int:
    assert isinstance(demand.description, AudioInput)
    return demand.description.sample_rate_hz


def _are_samples(seconds: float, rates_hz: Sequence[int]) -> bool:
    """Return whether a time is a whole number of samples at each of some rates."""
    return all(abs(seconds * rate_hz - round(seconds * rate_hz)) < _ROUNDING for rate_hz in rates_hz)


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidatedScores:
    """Scores of every member, and the truth of the rows that they are judged on.

    Attributes:
        source: in words.
        keys: by overlap, the rows that were computed, those of a recording together and in order.
        predictions: by overlap and member, float32 (rows, classes); logits for a blend of logits.
        truth_keys: rows whose truth is known, length n.
        y_true: their labels, shape (n,) or (n, c).
        notes: what a reader must know of them.
    """

    source: str
    keys: Mapping[str, tuple[RowKey, ...]]
    predictions: Mapping[str, Mapping[str, Float32]]
    truth_keys: tuple[RowKey, ...]
    y_true: Array
    notes: tuple[str, ...] = ()


def from_tables(
    opened: OpenedMembers, tables: Sequence[str | Path], truth: str | Path, *, grid: RowGrid
) -> ValidatedScores:
    """Return what tables of scores and a table of the truth say.

    Args:
        opened: the members.
        tables: one for each bundle in their order, or one for all with a column `member`.
        truth: a row for each, with 0 or 1 (or a value) for each class, or with their labels, joined by `;`,
            in a column `label`.
        grid: of the rows.

    Raises:
        DataError: a table cannot be used, has other classes, or other rows than the others.
        UsageError: there are more or fewer tables than bundles, or several overlaps to compare.
    """
    if any(every_s is not None for every_s in grid.every_s.values()):
        raise UsageError(
            "Tables hold scores at one overlap; where overlaps are compared, expected labelled data: --data."
        )
    read = [read_scores(path, told_apart_by=_MEMBER) for path in tables]
    if len(read) == 1 and _MEMBER in read[0].texts:
        read = [_part_of(read[0], name) for name in opened.names]
    if len(read) != len(opened.names):
        raise UsageError(
            f"Got {len(read)} tables of scores for {len(opened.names)} bundles; expected one for each in "
            "their order, or one for all with a column `member`."
        )
    classes = opened.lineup.blender.alignment.labels or read[0].classes
    told = read_scores(truth, texts=[_LABEL])
    y_true = _truth_of(told, classes)
    of_logits = opened.lineup.activation
    predictions = {}
    for name, table in zip(opened.names, read, strict=True):
        if len(table.keys) != len(told.keys):
            raise DataError(
                table.source,
                f"It has {len(table.keys)} rows for `{name}`, and {told.source} has {len(told.keys)}; "
                "expected the same rows in both.",
            )
        places = places_of(told.keys, table.keys, source=table.source, reference=told.source)
        scores = table.values[places][:, _columns(table, classes)]
        predictions[name] = _unactivated(scores, of_logits, table.source)
    overlap = grid.overlaps[0].name
    order = sorted(range(len(told.keys)), key=lambda row: _in_time(told.keys[row]))
    keys = tuple(told.keys[row] for row in order)
    return ValidatedScores(
        source=f"{len(keys)} rows of {told.source}",
        keys={overlap: keys},
        predictions={overlap: {name: scores[order] for name, scores in predictions.items()}},
        truth_keys=keys,
        y_true=y_true[order],
    )


def _in_time(key: RowKey) -> tuple[str, float]:
    return key.path, key.end_s or 0.0


def _part_of(table: ScoreTable, member: str) -> ScoreTable:
    rows = [row for row, name in enumerate(table.texts[_MEMBER]) if name == member]
    if not rows:
        known = ", ".join(sorted(set(table.texts[_MEMBER]))[:5])
        raise DataError(table.source, f"Its column `member` has no `{member}`, but {known}.")
    return ScoreTable(
        source=table.source,
        keys=tuple(table.keys[row] for row in rows),
        classes=table.classes,
        values=table.values[rows],
        texts={},
    )


def _columns(table: ScoreTable, classes: Sequence[str]) -> list[int]:
    missing = [name for name in classes if name not in table.classes]
    if missing:
        raise DataError(
            table.source,
            f"It has no column `{missing[0]}`"
            + (f" and {len(missing) - 1} others" if len(missing) > 1 else "")
            + f" of the {len(classes)} classes of the bundles. Labels that differ cannot be compared; say "
            "with --labels which classes are meant.",
        )
    return [table.classes.index(name) for name in classes]


def _truth_of(told: ScoreTable, classes: Sequence[str]) -> Array:
    if _LABEL not in told.texts:
        return told.values[:, _columns(told, classes)]
    index = {name: place for place, name in enumerate(classes)}
    rows = [tuple(filter(None, map(str.strip, text.split(";")))) for text in told.texts[_LABEL]]
    unknown = sorted({name for row in rows for name in row} - index.keys())
    if unknown:
        raise DataError(
            told.source, f"Its label `{unknown[0]}` is none of the {len(index)} classes of the bundles."
        )
    if all(len(row) == 1 for row in rows) and not any(";" in text for text in told.texts[_LABEL]):
        return np.array([index[row[0]] for row in rows], np.int64)
    values = np.zeros((len(rows), len(index)))
    for number, row in enumerate(rows):
        values[number, [index[name] for name in row]] = 1.0
    return values


def _unactivated(scores: Array, activation: str, source: Path) -> Float32:
    """Return scores as a blend takes them: as they are, or the logits that an activation was applied to."""
    if activation == "none":
        return np.asarray(scores, np.float32)
    if scores.min() < 0 or scores.max() > 1:
        raise DataError(
            source,
            f"It holds scores from {scores.min():g} to {scores.max():g}; expected 0 to 1 for logits.",
        )
    inside = np.clip(scores, _LEAST_SCORE, 1 - _LEAST_SCORE)
    logits = np.log(inside) - (np.log1p(-inside) if activation == "sigmoid" else 0.0)
    return np.asarray(logits, np.float32)


def labelled_data(opened: OpenedMembers, data: Any) -> Samples:
    """Return data that a plan can be judged by.

    Args:
        opened: the members.
        data: whatever `open_samples` takes.

    Raises:
        DataError: the data cannot be used, have no labels, or are none that the members read.
        UsageError: see `open_samples`.
    """
    samples = open_samples(data, labels=opened.lineup.blender.alignment.labels)
    if samples.targets is None:
        raise DataError(samples.source, "It has no labels, and a plan is judged by them. Give labelled data.")
    kind = kind_of_input(opened.lineup.demands[0].description)
    if samples.kind != kind:
        raise DataError(samples.source, f"The data are {samples.kind} files, and the bundles read {kind}.")
    return samples


def from_data(
    opened: OpenedMembers,
    samples: Samples,
    *,
    grid: RowGrid,
    blend: Blend,
    post: PostProcessing,
    labels: Sequence[str] | None,
    report: Report,
) -> ValidatedScores:
    """Return what the members say of labelled data, run over it here.

    A recording is run over as a whole. Its rows have the labels of the sample that their middle lies in; rows
    in none are not judged.

    Args:
        opened: the members.
        samples: see `labelled_data`.
        grid: of the rows.
        blend: how scores become one.
        post: views and steps.
        labels: the classes of the result; None takes the members'.
        report: gets lines of text about what is being done.

    Raises:
        DataError: they cannot be read.
        EngineError: a member failed, or gave scores that are no numbers.
    """
    densest = grid.overlaps[-1].name
    lineup = opened.lined_up(grid.views(opened.views, densest), blend=blend, post=post, labels=labels)
    report(f"running {len(opened.names)} bundles over {samples.source}")
    keys, joined, notes = _joined(opened, samples, opened.reader(lineup).rows, report)
    scores = opened.by_class(joined)
    for name, values in scores.items():
        _check_finite(name, values, keys)
    most = grid.overlaps[-1].windows_per_row
    found: dict[str, tuple[RowKey, ...]] = {}
    predictions: dict[str, dict[str, Float32]] = {}
    place_in_file = _places_in_files(keys)
    for overlap in grid.overlaps:
        step = round(most / overlap.windows_per_row)
        rows = np.flatnonzero(place_in_file % step == 0)
        found[overlap.name] = tuple(keys[row] for row in rows)
        predictions[overlap.name] = {name: values[rows] for name, values in scores.items()}
    own = found[grid.overlaps[0].name]
    base = _finished_keys(own, grid.steps(post.step, grid.overlaps[0].name))
    truth_keys, y_true = _labelled(samples, base)
    return ValidatedScores(
        source=samples.source,
        keys=found,
        predictions=predictions,
        truth_keys=truth_keys,
        y_true=y_true,
        notes=tuple(notes),
    )


def _check_finite(name: str, scores: Float32, keys: Sequence[RowKey]) -> None:
    wrong = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(wrong):
        raise EngineError(
            f"`{name}` gave NaN or infinite scores for {len(wrong)} of {len(keys)} rows, the first in "
            f"{keys[wrong[0]].path}; expected numbers. Leave the bundle or the file out."
        )


def _joined(
    opened: OpenedMembers,
    samples: Samples,
    rows_of: Callable[[Path], Iterator[tuple[Any, Arrays]]],
    report: Report,
) -> tuple[tuple[RowKey, ...], Float32, list[str]]:
    """Return every row of the data, the scores of all members for it, side by side, and what is left out."""
    files = list(dict.fromkeys(item.path for item in samples.items if item.path is not None))
    tasks: list[Path | int] = [*files] if files else [*range(len(samples))]
    loose = [make_features(demand.description) for demand in opened.lineup.demands]

    def prepare(task: Path | int) -> Iterator[tuple[Any, Arrays]]:
        if isinstance(task, Path):
            yield from rows_of(task)
            return
        array = samples.array(task)[0]
        yield (
            (None, None),
            tuple(features.transform(array) for features in loose if isinstance(features, ArrayFeatures)),
        )

    keys: list[RowKey] = []
    parts: list[Float32] = []
    problems: list[AlulaError] = []

    def emit(task: Path | int, found: list[Any], outputs: Arrays) -> None:
        keys.extend(RowKey(str(task), start_s, end_s) for start_s, end_s in found)
        parts.append(np.asarray(outputs[0], np.float32))

    def fail(task: Path | int, error: AlulaError) -> None:
        problems.append(error)

    said_s = 0.0

    def progress(now: Progress) -> None:
        nonlocal said_s
        if now.elapsed_s - said_s >= _SAY_EVERY_S:
            said_s = now.elapsed_s
            report(f"{now.tasks_done + now.tasks_failed} of {len(tasks)} files, {now.samples} rows")

    run_job(
        tasks,
        prepare=prepare,
        infer=opened.scores,
        emit=emit,
        fail=fail,
        progress=progress,
        settings=opened.settings,
        cpu_budget=opened.threads,
        total_tasks=len(tasks),
    )
    if not parts or len(problems) > len(tasks) / 2:
        raise DataError(
            samples.source,
            f"{len(problems)} of {len(tasks)} files cannot be read, for example: {problems[0]}",
        )
    notes = []
    if problems:
        notes.append(
            f"{len(problems)} of {len(tasks)} files of the data cannot be read and are not judged, for "
            f"example {problems[0]}"
        )
    return tuple(keys), np.concatenate(parts), notes


def _places_in_files(keys: Sequence[RowKey]) -> NDArray[np.intp]:
    counted: defaultdict[str, itertools.count[int]] = defaultdict(itertools.count)
    return np.array([next(counted[key.path]) for key in keys], np.intp)


def _labelled(samples: Samples, keys: Sequence[RowKey]) -> tuple[tuple[RowKey, ...], Array]:
    """Return the rows that lie in a sample, and the samples' targets for them."""
    assert samples.targets is not None
    items: defaultdict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(samples.items):
        items[str(index if item.path is None else item.path)].append(index)
    found, targets = [], []
    for key in keys:
        middle_s = 0.0 if key.start_s is None or key.end_s is None else (key.start_s + key.end_s) / 2
        for index in items[key.path]:
            item = samples.items[index]
            if item.start_s <= middle_s and (item.end_s is None or middle_s < item.end_s):
                found.append(key)
                targets.append(index)
                break
    if not found:
        raise DataError(
            samples.source, "None of its rows lies in a labelled sample. Check start_s and end_s."
        )
    return tuple(found), samples.targets[targets]


def _finished_keys(keys: Sequence[RowKey], steps: Sequence[Step]) -> list[RowKey]:
    """Return what the rows are about after the steps."""
    found: list[RowKey] = []
    nothing = np.zeros((len(keys), 1), np.float32)
    begin = 0
    for path, track in _tracks(keys, nothing):
        done = apply_steps(steps, track)
        mine = keys[begin : begin + len(track.scores)]
        begin += len(mine)
        if done.start_s is None or done.end_s is None:
            # Steps that make other rows need their times.
            found += mine
        else:
            found += [RowKey(path, float(a), float(b)) for a, b in zip(done.start_s, done.end_s, strict=True)]
    return found


def _tracks(keys: Sequence[RowKey], scores: Float32) -> Iterator[tuple[str, Track]]:
    """Yield the rows of each recording, of which each has its own together."""
    begin = 0
    for path, group in itertools.groupby(keys, key=lambda key: key.path):
        part = list(group)
        end = begin + len(part)
        ends = [key.end_s for key in part if key.end_s is not None]
        starts = [key.start_s for key in part if key.start_s is not None]
        timed = len(starts) == len(ends) == len(part)
        yield (
            path,
            Track(
                np.array(starts, np.float64) if timed else None,
                np.array(ends, np.float64) if timed else None,
                scores[begin:end],
            ),
        )
        begin = end


def some_of(scores: ValidatedScores, *, share: float, seed: int) -> ValidatedScores:
    """Return the scores of a share of the recordings, drawn at random; at least two."""
    paths = sorted({key.path for key in scores.truth_keys})
    drawn = np.random.default_rng(seed).permutation(len(paths))[: max(2, round(share * len(paths)))]
    kept = {paths[place] for place in drawn}
    rows = {
        overlap: [row for row, key in enumerate(keys) if key.path in kept]
        for overlap, keys in scores.keys.items()
    }
    judged = [row for row, key in enumerate(scores.truth_keys) if key.path in kept]
    return dataclasses.replace(
        scores,
        keys={overlap: tuple(scores.keys[overlap][row] for row in some) for overlap, some in rows.items()},
        predictions={
            overlap: {name: part[rows[overlap]] for name, part in members.items()}
            for overlap, members in scores.predictions.items()
        },
        truth_keys=tuple(scores.truth_keys[row] for row in judged),
        y_true=scores.y_true[judged],
    )


def validation_of(
    scores: ValidatedScores,
    *,
    grid: RowGrid,
    metric: Metric,
    blend: Blend,
    post: PostProcessing,
    activation: str,
    classes: int,
) -> Validation:
    """Return what a plan is judged by.

    Args:
        scores: of the members, and the truth.
        grid: of the rows.
        metric: judges.
        blend: how scores become one, see `check_weights_can_be_found`.
        post: steps after the blend.
        activation: applied to blended logits, or `none`.
        classes: how many there are.

    Raises:
        DataError: no row of known truth is left after the steps at every overlap.
    """
    blended = _blending(blend, activation, classes)
    steps = {overlap.name: grid.steps(post.step, overlap.name) for overlap in grid.overlaps}
    finished = {name: _finished_keys(scores.keys[name], made) for name, made in steps.items()}
    place_of = {name: {key.rounded(): k for k, key in enumerate(keys)} for name, keys in finished.items()}
    kept = [
        row
        for row, key in enumerate(scores.truth_keys)
        if all(key.rounded() in known for known in place_of.values())
    ]
    if not kept:
        raise DataError(
            scores.source,
            "No row of known truth is left after the steps. Give truth for the rows that come out.",
        )
    judged = [scores.truth_keys[row].rounded() for row in kept]
    places = {name: np.array([known[key] for key in judged], np.intp) for name, known in place_of.items()}
    groups = np.array([key.path for key in judged])
    if len(steps) == 1 and not any(steps.values()):
        (overlap,) = steps
        rows = places[overlap]
        return Validation(
            metric=metric,
            y_true=scores.y_true[kept],
            predictions={overlap: {name: part[rows] for name, part in scores.predictions[overlap].items()}},
            blend=blended,
            groups=groups,
        )

    def finish(overlap: str, values: Array) -> Array:
        tracks = _tracks(scores.keys[overlap], np.asarray(values, np.float32))
        done = np.concatenate([apply_steps(steps[overlap], track).scores for _, track in tracks])
        return np.asarray(done[places[overlap]])

    return Validation(
        metric=metric,
        y_true=scores.y_true[kept],
        predictions=scores.predictions,
        blend=blended,
        finish=finish,
        groups=groups,
    )


def check_weights_can_be_found(blend: Blend) -> None:
    """Raise where a blend leaves no weights to find.

    Raises:
        UsageError: it has none, or they are given.
    """
    if isinstance(blend, Minimum | Maximum):
        raise UsageError("A plan finds weights, and a blend by min or max has none. Choose another blend.")
    if blend.weights is not None or blend.class_weights:
        raise UsageError("A plan finds the weights of the members; expected a blend without any.")


def _blending(
    blend: Blend, activation: str, classes: int
) -> Callable[[Sequence[Array], Sequence[float]], Array]:
    def blended(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
        count = len(arrays)
        everywhere = Alignment(
            None, classes, (Placement(None, None),) * count, np.ones((count, classes), np.bool_)
        )
        weighed = msgspec.structs.replace(blend, weights=tuple(weights))
        return activated(Blender(weighed, everywhere).blend(arrays), activation)

    return blended
