"""Ensembles: made from bundles, loaded, and run as one."""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from alula._version import __version__
from alula.bundle import (
    SCHEMA_VERSION,
    DeclaredCascade,
    DeclaredRung,
    Deployed,
    EnsembleManifest,
    Manifest,
    MemberRecord,
    WholeFileVerdict,
    is_ensemble,
    read_ensemble,
    read_manifest,
    start,
    verify,
    verify_members,
    write_ensemble,
)
from alula.bundle import Running as RunningBundle
from alula.core import (
    AudioInput,
    Blend,
    InputDescription,
    Maximum,
    Mean,
    Minimum,
    OverlapMean,
    Settings,
    Step,
    View,
)
from alula.data import open_audio, read_array, read_image
from alula.engines import Arrays, filled
from alula.ensemble import (
    Bands,
    Blender,
    EnsembleSession,
    Member,
    align_labels,
    cascade_batch_size,
    cascaded,
    shared_batch_size,
)
from alula.errors import BundleError, DataError, UsageError, closest
from alula.features import (
    ArrayFeatures,
    Demand,
    ImageFeatures,
    SharedAudioFeatures,
    distinct_demands,
    make_features,
)
from alula.hardware import thread_budget
from alula.pipeline import RowSpec
from alula.postprocess import PostProcessing, Track, apply_steps, central_maximum, needs_times
from alula.workflows.running import (
    Bundle,
    Key,
    Prediction,
    activated,
    bounds_s,
    keys_of,
    load_bundle,
    map_files,
)
from alula.workflows.samples import Decoding, spec_of

__all__ = [
    "Ensemble",
    "Lineup",
    "SharedReader",
    "line_up",
    "load",
    "make_ensemble",
    "member_names",
    "most_sparse",
    "open_member",
    "row_bytes_of",
]

MEMBERS = "members"


def make_ensemble(
    bundles: Sequence[str | Path],
    output: str | Path,
    *,
    blend: Blend | None = None,
    post: PostProcessing | None = None,
    labels: Sequence[str] | None = None,
    verdicts: Mapping[str, WholeFileVerdict] | None = None,
    ladder: Sequence[DeclaredRung] = (),
    cascade: DeclaredCascade | None = None,
    prior: Sequence[float] | None = None,
    replace: bool = False,
) -> EnsembleManifest:
    """Write bundles and a blend as one bundle; return its manifest.

    The bundles are verified and copied, so that the ensemble can be moved and they can go. A member is called
    as its folder is, without the suffix, and with a number where another is called so too. What
    `optimize_whole_files` made counts as a bundle of one model, and brings its view along.

    Args:
        bundles: of one model each, in the order of the blend's weights.
        output: the folder to make, `NAME.alula`.
        blend: how scores become one; None takes their mean.
        post: steps after the blend, and views of members by name; None for neither.
        labels: the classes of the result in their order; None takes all that any member knows.
        verdicts: of members that run over long stretches of recordings, by name.
        ladder: what a job does that gets short of time, all members and windows first; empty for members from
            the last backwards, sparser windows, the cheapest member.
        cascade: which windows need all members, as `plan` finds it; None where all do.
        prior: by label, what a row holds that there was no time for; None where it is not known.
        replace: whether a bundle of that name may be replaced.

    Raises:
        BundleError: a bundle is damaged, changed or an ensemble itself, or the output exists.
        UsageError: the bundles do not go together, or the weights, labels, views, steps, ladder, cascade or
            prior do not fit them.
        DiskFullError: there is no space for it.
    """
    if not bundles:
        raise UsageError("An ensemble got no bundles; expected at least one.")
    blend = Mean() if blend is None else blend
    post = PostProcessing() if post is None else post
    verdicts = {} if verdicts is None else verdicts
    given = [_given(Path(bundle)) for bundle in bundles]
    manifests = [one.manifest for one in given]
    names = member_names([Path(bundle) for bundle in bundles])
    for name in post.view:
        if name not in names:
            raise UsageError(
                f"The post-processing has a view of `{name}`, but the members are {', '.join(names)}."
                f"{closest(name, names)}"
            )
    members = tuple(
        MemberRecord(
            name=name,
            folder=f"{MEMBERS}/{name}",
            checksum=one.manifest.checksum,
            view=post.view.get(name, one.view),
            whole_files=verdicts.get(name, one.verdict),
        )
        for name, one in zip(names, given, strict=True)
    )
    views = [member.view for member in members]
    plan = line_up(names, manifests, views, blend=blend, steps=post.step, labels=labels)
    _check_ladder(ladder, names, plan, blend=blend, steps=post.step, cascade=cascade)
    if cascade is not None:
        _check_cascade(cascade, names, plan)
    classes = plan.blender.alignment.classes
    if prior is not None and (len(prior) != classes or not all(map(math.isfinite, prior))):
        raise UsageError(
            f"The prior has {len(prior)} values for {classes} classes; expected one finite each."
        )
    target = Path(output)
    write_ensemble(
        target,
        EnsembleManifest(
            schema_version=SCHEMA_VERSION,
            alula_version=__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            members=members,
            blend=blend,
            labels=plan.blender.alignment.labels,
            steps=post.step,
            ladder=tuple(ladder),
            files={},
            cascade=cascade,
            prior=None if prior is None else tuple(prior),
        ),
        members={member.folder: one.folder for member, one in zip(members, given, strict=True)},
        replace=replace,
    )
    return read_ensemble(target)


class _Given(NamedTuple):
    """A bundle of one model, and how it looks at recordings where that is known."""

    folder: Path
    manifest: Manifest
    view: View = View()
    verdict: WholeFileVerdict | None = None


def _given(folder: Path) -> _Given:
    """Return a verified bundle of one model: a folder itself, or what is in one made for whole files.

    Raises:
        BundleError: it is damaged, changed, or an ensemble of more than a model and its view.
    """
    if is_ensemble(folder):
        whole = read_ensemble(folder)
        if len(whole.members) == 1 and whole.members[0].whole_files is not None:
            verify(folder, whole)
            (manifest,) = verify_members(folder, whole)
            record = whole.members[0]
            if own := _own_ways(whole, manifest):
                raise BundleError(
                    folder,
                    f"It is an ensemble with its own {' and '.join(own)}, which would be lost in another; "
                    "expected what `alula whole-files` made. Give that, and say these of the new ensemble.",
                )
            return _Given(folder / record.folder, manifest, record.view, record.whole_files)
    manifest = read_manifest(folder)
    verify(folder, manifest)
    return _Given(folder, manifest)


def _own_ways(whole: EnsembleManifest, member: Manifest) -> list[str]:
    """Return what an ensemble of one member adds to it and its view."""
    added = {
        "blend": whole.blend != Mean(),
        "labels": whole.labels != member.labels,
        "steps": bool(whole.steps),
        "ladder": bool(whole.ladder),
        "cascade": whole.cascade is not None,
        "prior": whole.prior is not None,
    }
    return [what for what, there in added.items() if there]


def _check_ladder(
    ladder: Sequence[DeclaredRung],
    names: Sequence[str],
    plan: Lineup,
    *,
    blend: Blend,
    steps: Sequence[Step],
    cascade: DeclaredCascade | None,
) -> None:
    for rung in ladder:
        if len(set(rung.members)) < len(rung.members):
            raise UsageError(
                f"The ladder has a rung of {', '.join(rung.members)}; expected each member at most once."
            )
        for name in rung.members:
            if name not in names:
                raise UsageError(
                    f"The ladder names the member `{name}`; there are {', '.join(names)}."
                    f"{closest(name, names)}"
                )
        if rung.every > most_sparse(plan.demands, steps):
            raise UsageError(
                f"The ladder computes one of {rung.every} windows; expected what still covers the recording, "
                "that the steps begin with `overlap`, and that no member gives several rows of a window."
            )
    if ladder and (set(ladder[0].members) != set(names) or ladder[0].every != 1):
        raise UsageError("The ladder begins with some members or windows; expected all of them there.")
    for above, rung in itertools.pairwise(ladder):
        if not rung.score < above.score:
            raise UsageError(
                f"The ladder has the score {rung.score:g} behind {above.score:g}; expected each rung to "
                "score less than the one before. Put the best first, and leave out what a cheaper one beats."
            )
    first = None if cascade is None else {cascade.member}
    for rung in ladder:
        if first is not None and set(rung.members) not in (first, set(names)):
            raise UsageError(
                f"The ladder has a rung of {' and '.join(rung.members)}; expected all members of the "
                "cascade, or the one that it begins with."
            )
        places = sorted(names.index(name) for name in rung.members)
        if first is None and not Blender(blend, plan.blender.alignment, members=places).heard.any():
            raise UsageError(
                f"The ladder has a rung of {' and '.join(rung.members)}, which the blend gives no weight; "
                "expected members that it hears."
            )


def most_sparse(demands: Sequence[Demand], steps: Sequence[Step]) -> int:
    """Return of how many windows one must be computed at least, so that those cover the recording.

    It is 1 but where the steps begin with the mean of overlapping windows: then rows of the output are about
    segments of time, whatever windows there are. It is 1, too, where a model gives several rows of a window,
    of which none can be left out.
    """
    demand = demands[0]
    audio = demand.description
    if not isinstance(audio, AudioInput) or not steps or not isinstance(steps[0], OverlapMean):
        return 1
    if any(each.rows > 1 for each in demands):
        return 1
    keep_s = audio.window_s if demand.keep_s is None else demand.keep_s
    return int(keep_s * audio.sample_rate_hz / audio.hop_samples + 1e-6)


def _check_cascade(cascade: DeclaredCascade, names: Sequence[str], plan: Lineup) -> None:
    if cascade.member not in names:
        raise UsageError(
            f"The cascade begins with `{cascade.member}`; there are {', '.join(names)}."
            f"{closest(cascade.member, names)}"
        )
    alignment = plan.blender.alignment
    if not alignment.known[names.index(cascade.member)].all():
        raise UsageError(f"`{cascade.member}` does not know all classes, so no cascade begins with it.")
    if {len(cascade.lower), len(cascade.upper)} != {alignment.classes}:
        raise UsageError(
            f"The cascade has {len(cascade.lower)} and {len(cascade.upper)} bounds for {alignment.classes} "
            "classes; expected two for each."
        )
    if plan.rows > 1:
        raise UsageError(
            "A cascade got a member that gives several rows of a window; expected one row, since each row by "
            "itself is uncertain or not. Make its bundle window by window, or leave the cascade out."
        )
    if plan.blender.whole_job:
        raise UsageError("A blend by rank needs the scores of all members for all rows: it has no cascade.")


def member_names(folders: Sequence[Path]) -> list[str]:
    """Return what the members from these bundles are called: as their folders, no two alike.

    >>> member_names([Path("a/sed.alula"), Path("b/sed.alula")])
    ['sed', 'sed-2']
    """
    names: list[str] = []
    for folder in folders:
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", folder.absolute().name.removesuffix(".alula")).lstrip("._-")
        name = plain = stem or "member"
        number = 1
        while name in names:
            number += 1
            name = f"{plain}-{number}"
        names.append(name)
    return names


@dataclass(frozen=True, kw_only=True, eq=False)
class Lineup:
    """What members have in common, and how they differ.

    Attributes:
        demands: the distinct features that they take.
        takes: for each member, which of these.
        outputs: for each member, which of its model's outputs holds the scores.
        widths: for each member, how many columns these have.
        blender: makes the scores one.
        activation: applied to the blended scores.
    """

    demands: tuple[Demand, ...]
    takes: tuple[int, ...]
    outputs: tuple[int, ...]
    widths: tuple[int, ...]
    blender: Blender
    activation: str

    @property
    def rows(self) -> int:
        """Rows of the result that one row of what the members are given stands for, at most."""
        return max(demand.rows for demand in self.demands)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Inputs that each member has in one row of what they are given."""
        return tuple(self.rows // self.demands[place].rows for place in self.takes)


def line_up(
    names: Sequence[str],
    manifests: Sequence[Manifest],
    views: Sequence[View],
    *,
    blend: Blend,
    steps: Sequence[Step],
    labels: Sequence[str] | None,
) -> Lineup:
    """Return what the members have in common.

    Args:
        names: of the members, for messages.
        manifests: of their bundles.
        views: how each looks at a recording.
        blend: how scores become one.
        steps: after the blend.
        labels: the classes of the result; None takes all that any member knows.

    Raises:
        UsageError: they do not go together.
    """
    outputs, widths = [], []
    for name, manifest, view in zip(names, manifests, views, strict=True):
        _check_member(name, manifest, view)
        output = _output_named(name, manifest, view)
        outputs.append(output)
        widths.append(_width(name, manifest, view, output))
    if needs_times(steps) and not isinstance(manifests[0].input, AudioInput):
        raise UsageError("The steps `overlap` and `smoothing` need rows that follow each other: recordings.")
    demands, takes = distinct_demands(
        [_demand(manifest.input, view) for manifest, view in zip(manifests, views, strict=True)]
    )
    # Of several, those with most rows of a window say where rows lie.
    _check_segments(max(demands, key=lambda demand: demand.rows), steps)
    alignment = align_labels([manifest.labels for manifest in manifests], widths=widths, wanted=labels)
    return Lineup(
        demands=demands,
        takes=takes,
        outputs=tuple(outputs),
        widths=tuple(widths),
        blender=Blender(blend, alignment),
        activation=_activation_after(
            blend, manifests, same_classes=bool(alignment.known.all()) and set(widths) == {alignment.classes}
        ),
    )


def _check_segments(demand: Demand, steps: Sequence[Step]) -> None:
    """Refuse rows of which the last one may reach into a segment of time that the recording does not."""
    audio = demand.description
    if not isinstance(audio, AudioInput):
        return
    rate_hz = audio.sample_rate_hz
    hop = audio.hop_samples // demand.rows
    row: float = audio.window_samples - (demand.rows - 1) * hop
    if demand.keep_s is not None:
        row = demand.keep_s * rate_hz
    for step in steps:
        if not isinstance(step, OverlapMean):
            continue
        segment = step.segment_s * rate_hz
        whole = [round(size) for size in (segment, row)]
        if not all(map(math.isclose, whole, (segment, row))):
            raise UsageError(
                f"The step `overlap` got segments of {step.segment_s:g} s and rows of {row / rate_hz:g} s; "
                f"expected whole numbers of samples of both, at {rate_hz} Hz."
            )
        common = math.gcd(*whole)
        if common % hop:
            shorter = next(size for size in range(hop, 0, -1) if common % size == 0)
            raise UsageError(
                f"The step `overlap` got rows of {row / rate_hz:g} s every {hop / rate_hz:g} s for segments "
                f"of {step.segment_s:g} s; expected a hop that divides both, or the last segment may lie "
                f"behind the end of a recording. A hop of {shorter / rate_hz:g} s would do."
            )
        hop, row = whole[0], segment


def _demand(description: InputDescription, view: View) -> Demand:
    if view.hop_s is not None and isinstance(description, AudioInput):
        description = msgspec.structs.replace(description, hop_s=view.hop_s)
    return Demand(description, view.keep_s, view.rows)


def _check_member(name: str, manifest: Manifest, view: View) -> None:
    if len(manifest.signature.inputs) > 1:
        raise UsageError(
            f"Member `{name}` takes {len(manifest.signature.inputs)} inputs, and a file gives one. "
            "Leave it out."
        )
    audio = manifest.input
    if isinstance(audio, AudioInput):
        if view.frames is not None and view.frames.central_s > audio.window_s:
            raise UsageError(
                f"The view of `{name}` has `central_s` {view.frames.central_s:g}; expected at most its "
                f"window of {audio.window_s:g} s."
            )
        if view.hop_s is not None and view.hop_s > audio.window_s:
            raise UsageError(
                f"The view of `{name}` has `hop_s` {view.hop_s:g}; expected at most its window of "
                f"{audio.window_s:g} s."
            )
        if view.rows > 1 and (view.frames is not None or view.hop_s is not None):
            raise UsageError(
                f"The view of `{name}` has `rows` beside `frames` or `hop_s`; expected `rows` without them. "
                "Where the rows of a window lie is part of its model."
            )
    elif view.keep_s is not None or view.hop_s is not None or view.frames is not None or view.rows > 1:
        raise UsageError(
            f"The view of `{name}` has `keep_s`, `hop_s`, `rows` or `frames`, but it reads no recordings."
        )


def _output_named(name: str, manifest: Manifest, view: View) -> int:
    if view.output is None:
        return 0
    known = [spec.name for spec in manifest.signature.outputs]
    if view.output not in known:
        raise UsageError(
            f"The view of `{name}` takes the output `{view.output}`; its model has {', '.join(known)}."
            f"{closest(view.output, known)}"
        )
    return known.index(view.output)


def _width(name: str, manifest: Manifest, view: View, output: int) -> int:
    spec = manifest.signature.outputs[output]
    axes = 2 if view.frames is None and view.rows == 1 else 3
    if len(spec.shape) != axes:
        raise UsageError(
            f"Member `{name}` gives {spec}; expected {axes} axes. Scores per frame need a view with "
            "`frames`, scores of several rows one with `rows`, others must have none."
        )
    if view.rows > 1 and spec.shape[1] not in (view.rows, *(x for x in spec.shape if isinstance(x, str))):
        raise UsageError(f"Member `{name}` gives {spec}, but its view says {view.rows} rows of a window.")
    size = spec.shape[1 if view.frames is not None and view.frames.layout == "ct" else -1]
    if isinstance(size, int):
        return size
    if manifest.labels is None:
        raise UsageError(f"Member `{name}` gives {spec}, and how many classes `{size}` is cannot be told.")
    return len(manifest.labels)


def _activation_after(blend: Blend, manifests: Sequence[Manifest], *, same_classes: bool) -> str:
    if not (isinstance(blend, Mean) and blend.of == "logits"):
        return "none"
    activations = sorted({manifest.activation for manifest in manifests})
    if len(activations) > 1:
        raise UsageError(
            f"A mean of logits got members with the activations {' and '.join(activations)}; expected one, "
            "to be applied to the mean. Blend scores instead."
        )
    if activations == ["softmax"] and not same_classes:
        raise UsageError(
            "A mean of logits got members with softmax and different labels. Such logits have no common "
            "zero. Blend scores instead."
        )
    return activations[0]


class SharedReader:
    """Turns files into rows for all members; each file is decoded once. Thread-safe, one call per file.

    Args:
        demands: distinct, of one kind of files.
    """

    def __init__(self, demands: Sequence[Demand]) -> None:
        self._demands = demands
        self._audio: SharedAudioFeatures | None = None
        self._images: list[ImageFeatures] = []
        self._arrays: list[ArrayFeatures] = []
        if isinstance(demands[0].description, AudioInput):
            self._audio = SharedAudioFeatures(demands)
            return
        for demand in demands:
            match make_features(demand.description):
                case ImageFeatures() as image:
                    self._images.append(image)
                case ArrayFeatures() as array:
                    self._arrays.append(array)

    def rows(
        self,
        path: Path,
        *,
        decoding: Decoding = iter,
        wanted: Callable[[int], Collection[int]] | None = None,
    ) -> Iterator[tuple[Key, Arrays]]:
        """Yield the rows of a file in order, each with where it lies: one array for each demand.

        Args:
            path: the file.
            decoding: sees what is read of it pass by.
            wanted: see `SharedAudioFeatures.rows`.

        Raises:
            DataError: the file cannot be read, now or further on.
        """
        if self._audio is not None:
            with open_audio(path) as audio:
                blocks = decoding(audio.blocks())
                for row in self._audio.rows(blocks, audio.rate_hz, wanted=wanted):
                    yield (row.start_s, row.end_s), row.arrays
        elif self._images:
            for image in decoding(map(read_image, [path])):
                yield (None, None), tuple(features.transform(image) for features in self._images)
        else:
            for array in decoding(map(read_array, [path])):
                try:
                    arrays = tuple(features.transform(array) for features in self._arrays)
                except DataError as error:
                    raise DataError(path, error.reason) from error
                yield (None, None), arrays

    @functools.cached_property
    def row_spec(self) -> RowSpec | None:
        if self._arrays:
            return None
        most = max(demand.rows for demand in self._demands)
        shapes = []
        for demand in self._demands:
            features = make_features(demand.description)
            assert not isinstance(features, ArrayFeatures)
            together = () if demand.rows == most else (most,)
            shapes.append((*together, *features.sample_shape))
        return spec_of(shapes)

    def spans(self, duration_s: float | None) -> list[Key] | None:
        if self._audio is None:
            return [(None, None)]
        return None if duration_s is None else list(self._audio.spans(duration_s))

    def spans_between(self, key: Key) -> list[Key]:
        """Return where each row lies that a row of `rows` stands for."""
        start_s, end_s = key
        if self._audio is None or start_s is None or end_s is None:
            return [key]
        return list(self._audio.spans_between(start_s, end_s))


class Ensemble:
    """A verified ensemble, running here. Made by `alula.load`.

    Thread-safe: calls wait for each other, because each uses the whole thread budget. Use it in a `with`
    block, or call `close`, to free the engines.
    """

    def __init__(
        self,
        path: Path,
        manifest: EnsembleManifest,
        members: Sequence[Manifest],
        *,
        trust_code: bool,
        threads: int,
    ) -> None:
        self._path = path
        self.manifest = manifest
        self._threads = threads
        self._plan = line_up(
            [member.name for member in manifest.members],
            members,
            [member.view for member in manifest.members],
            blend=manifest.blend,
            steps=manifest.steps,
            labels=manifest.labels,
        )
        if manifest.cascade is not None:
            try:
                _check_cascade(manifest.cascade, [member.name for member in manifest.members], self._plan)
            except UsageError as error:
                raise BundleError(path, f"{error} Make the ensemble again.") from error
        self._reader = SharedReader(self._plan.demands)
        self._description = members[0].input
        self._recipes: list[str] = []
        row_bytes = row_bytes_of(members, self._plan.takes, self._plan.inputs)
        cascade = manifest.cascade
        with contextlib.ExitStack() as opened:
            running = []
            for place, (record, member) in enumerate(zip(manifest.members, members, strict=True)):
                suited = member
                if cascade is not None and record.name != cascade.member:
                    suited = _for_few_rows(member, cascade, row_bytes=row_bytes)
                one, recipe = open_member(
                    path / record.folder,
                    suited,
                    self._plan,
                    place,
                    name=record.name,
                    view=record.view,
                    trust_code=trust_code,
                    threads=threads,
                )
                opened.callback(one.close)
                running.append(one)
                self._recipes.append(recipe)
            self._session = EnsembleSession(
                running, blender=self._plan.blender, activate=_activating(self._plan)
            )
            opened.pop_all()
        self._blenders: dict[tuple[int, ...], Blender] = {}
        self._cascade: _Cascade | None = None
        share = 1.0
        if cascade is not None:
            self._cascade = _Cascade(cascade, manifest, self._plan, self._session)
            share = cascade.share
        size = shared_batch_size(
            [one.settings for one in running],
            row_bytes=row_bytes,
            share=share,
            inputs=self._plan.inputs,
        )
        self._settings = Settings(threads=threads, instances=1, batch_size=size)

    @property
    def path(self) -> Path:
        """The folder that it was loaded from."""
        return self._path

    @property
    def checksum(self) -> str:
        """Of the manifest: members with all their files, blend, labels, views and steps."""
        return self.manifest.checksum

    @property
    def description(self) -> InputDescription:
        """How files become the input of the first member; those of the others are of the same kind."""
        return self._description

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names in the order of the output columns, if known."""
        return self.manifest.labels

    @property
    def recipe(self) -> str:
        """What runs here, one recipe per member."""
        return " + ".join(self._recipes)

    @property
    def settings(self) -> Settings:
        """How `scores` is called: one call at a time, with all threads, many rows."""
        return self._settings

    @property
    def threads(self) -> int:
        """The thread budget, shared by all members and everything else."""
        return self._threads

    @property
    def demands(self) -> tuple[Demand, ...]:
        """The features that the members take, without repetitions: one array of a row for each."""
        return self._plan.demands

    @property
    def whole_job(self) -> bool:
        """Whether a row's score depends on all rows of a job."""
        return self._plan.blender.whole_job

    def rows(
        self,
        path: Path,
        *,
        decoding: Decoding = iter,
        wanted: Callable[[int], Collection[int]] | None = None,
    ) -> Iterator[tuple[Key, Arrays]]:
        """Yield the rows of a file, in order, each with where it lies: one array for each of `demands`.

        Where a member gives several rows of a window, each stands for as many; see `joint_rows` and `apart`.

        Args:
            path: the file.
            decoding: is given what decodes, piece by piece, and returns it, watched.
            wanted: given the number of a row, says for which of `demands` an array is needed; others hold
                anything, where that saves work. None for all.

        Raises:
            DataError: the file cannot be read, now or further on.
        """
        return self._reader.rows(path, decoding=decoding, wanted=wanted)

    @property
    def row_spec(self) -> RowSpec | None:
        """Shape and type of the arrays of a row; None where the descriptions leave them open."""
        return self._reader.row_spec

    def spans(self, duration_s: float | None) -> list[Key] | None:
        """Return where the rows of a file lie, without reading it; None where that cannot be told.

        Args:
            duration_s: of a recording; None where it is not known.
        """
        return self._reader.spans(duration_s)

    @property
    def joint_rows(self) -> int:
        """Rows of the result that one row of a batch stands for, at most: r where a member gives r."""
        return self._plan.rows

    def apart(self, keys: list[Key], outputs: Arrays) -> tuple[list[Key], Arrays]:
        """Return the rows of a file each by itself, from those that were computed.

        Rows behind the end of a recording are left out.

        Args:
            keys: of n rows, as `rows` gives them.
            outputs: their scores (n, r, c); whatever else belongs to a row is given to each that it was for.

        Returns:
            Keys of m rows, their scores (m, c), and the rest.
        """
        if self._plan.rows == 1:
            return keys, outputs
        found = [self._reader.spans_between(key) for key in keys]
        known = np.array([len(spans) for spans in found])
        there = np.arange(self._plan.rows) < known[:, None]
        scores, *others = outputs
        return list(itertools.chain(*found)), (
            scores[there],
            *(np.repeat(other, known, axis=0) for other in others),
        )

    @property
    def row_shape(self) -> tuple[int, ...] | None:
        """Shape of the scores of one row."""
        return (self._plan.blender.alignment.classes,)

    @property
    def takes(self) -> tuple[int, ...]:
        """Which of `demands` each member takes."""
        return self._plan.takes

    @property
    def least_rows(self) -> int:
        """Rows of a batch that keep every member's instances busy: of one round of the largest."""
        return self._session.round_rows

    def some_scores(
        self,
        batch: Arrays,
        members: Sequence[int],
        *,
        unheard: NDArray[np.float32],
        stopped: Callable[[], bool],
        clock: Callable[[], float],
    ) -> tuple[NDArray[np.float32] | None, list[float]]:
        """Return `full_batch_scores` of some members, None when stopped, and the seconds that each took.

        Those of all members of a cascade are the cascade's.

        Args:
            batch: arrays of rows; those that these members do not take are not read.
            members: their places, ascending.
            unheard: what a class gets that none of them has a say in, shape (c,).
            stopped: asked before each batch of a member; once it says yes there are no scores.
            clock: seconds.
        """
        chosen = tuple(members)
        if self._cascade is not None and len(chosen) == len(self._recipes):
            scores, busy_s = self._cascade.run(batch, full_batches=True, stopped=stopped, clock=clock)
            return scores, [busy_s[place] for place in chosen]
        blender = self._blender_of(chosen)
        scores, took_s = self._session.run_some(
            batch, chosen, blender=blender, full_batches=True, stopped=stopped, clock=clock
        )
        if scores is None:
            return None, took_s
        if not blender.whole_job and not blender.heard.all():
            scores[:, ~blender.heard] = unheard[~blender.heard]
        return self._together(scores), took_s

    def hears(self, members: Sequence[int]) -> bool:
        """Return whether any class has a score from some members alone.

        Args:
            members: their places, ascending.
        """
        return bool(self._blender_of(tuple(members)).heard.any())

    def _blender_of(self, chosen: tuple[int, ...]) -> Blender:
        if chosen not in self._blenders:
            if self._cascade is not None and chosen == (self._cascade.first,):
                self._blenders[chosen] = self._cascade.first_blender
            else:
                self._blenders[chosen] = Blender(
                    self.manifest.blend, self._plan.blender.alignment, members=chosen
                )
        return self._blenders[chosen]

    def scores(self, batch: Arrays) -> Arrays:
        """Return the blended scores of a batch as a 1-tuple, shape (n, c); or (n, r, c), see `joint_rows`.

        For `whole_job` they are those of all members side by side, to be blended by `blend_job`.
        """
        return (self._scores_of_all(batch, full_batches=False),)

    def full_batch_scores(self, batch: Arrays) -> Arrays:
        """Return `scores` of a batch; those of a row do not depend on how many rows are beside it."""
        return (self._scores_of_all(batch, full_batches=True),)

    def _together(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return scores (n * r, c) of rows that belong together as (n, r, c), where r is above 1."""
        return scores if self._plan.rows == 1 else scores.reshape(-1, self._plan.rows, scores.shape[-1])

    def _scores_of_all(self, batch: Arrays, *, full_batches: bool) -> NDArray[np.float32]:
        if self._cascade is None:
            return self._together(self._session.run(batch, full_batches=full_batches))
        scores, _ = self._cascade.run(batch, full_batches=full_batches)
        assert scores is not None
        return scores

    @property
    def job_shape(self) -> tuple[int, int]:
        """Columns that `scores` gives for `whole_job`, and columns of the blend."""
        return sum(self._plan.widths), self._plan.blender.alignment.classes

    def blend_job(self, joined: NDArray[np.float32], blended: NDArray[np.float32]) -> None:
        """Blend the scores of all rows of a job, column by column.

        Args:
            joined: what `scores` gave for n rows, the other way round: shape (columns, n). Only read.
            blended: where the result goes, shape (c, n).
        """
        blender = self._plan.blender
        first = np.cumsum([0, *self._plan.widths])
        for place in range(len(blended)):
            columns = [
                None if column is None else joined[first[m] + column]
                for m, column in enumerate(blender.columns_of_class(place))
            ]
            blended[place] = blender.blend_class(place, columns)

    @property
    def sure_member(self) -> int | None:
        """Place of the member that a cascade asks of every row; None where all members are."""
        return None if self._cascade is None else self._cascade.first

    @property
    def needs_whole_files(self) -> bool:
        """Whether rows are changed by others of their file, so that `finished` must be given all of them."""
        return bool(self.manifest.steps)

    def finished(self, keys: list[Key], outputs: Arrays) -> tuple[list[Key], Arrays]:
        """Return the rows of one file after the ensemble's steps."""
        scores = np.asarray(outputs[0], np.float32)
        if not self.manifest.steps:
            return keys, (scores,)
        track = apply_steps(self.manifest.steps, Track(*bounds_s(keys), scores))
        return keys_of(track.start_s, track.end_s, rows=len(track.scores)), (track.scores,)

    def map(
        self, paths: Iterable[str | Path], *, journal: str | Path | None = None, fresh: bool = False
    ) -> Iterator[Prediction]:
        """Yield one `Prediction` per file, in order, as they are done; see `Bundle.map`.

        Raises:
            UsageError: the blend is by rank, which has no results before the last file; or see `Bundle.map`.
            EngineError: an engine failed; that is no file's fault.
        """
        if self.whole_job:
            raise UsageError(
                "A blend by rank has no result for a file before all files are computed, so it cannot be "
                "mapped over them. Use `alula predict`, or another blend."
            )
        return map_files(self, paths, journal=journal, fresh=fresh)

    def close(self) -> None:
        """Free the engines' memory."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Ensemble {self.path.name}: {self.recipe}>"


class _Cascade:
    """A member that scores every row, and all that have a weight for those where it is uncertain.

    As thread-safe as the session of the ensemble, which it uses.
    """

    def __init__(
        self,
        cascade: DeclaredCascade,
        manifest: EnsembleManifest,
        lineup: Lineup,
        session: EnsembleSession,
    ) -> None:
        self._session = session
        self._bands = Bands(
            lower=np.array(cascade.lower, np.float32), upper=np.array(cascade.upper, np.float32)
        )
        alignment = lineup.blender.alignment
        self.first = [member.name for member in manifest.members].index(cascade.member)
        self.first_blender = Blender(Mean(), alignment, members=[self.first])
        self._asked = _weighed(manifest.blend, len(manifest.members))
        self._blender = Blender(manifest.blend, alignment, members=self._asked)

    def run(
        self,
        batch: Arrays,
        *,
        full_batches: bool,
        stopped: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> tuple[NDArray[np.float32] | None, dict[int, float]]:
        """Return the scores of a batch, None when stopped, and the seconds that each member took by place."""
        busy_s: dict[int, float] = defaultdict(float)
        own, busy_s[self.first] = self._session.run_one(
            batch, self.first, full_batches=full_batches, stopped=stopped, clock=clock
        )
        if own is None:
            return None, busy_s

        def rest(rows: NDArray[np.intp]) -> NDArray[np.float32] | None:
            scores, took_s = self._session.run_some(
                [array[rows] for array in batch],
                self._asked,
                blender=self._blender,
                full_batches=full_batches,
                known={self.first: own[rows]},
                stopped=stopped,
                clock=clock,
            )
            for place, seconds in zip(self._asked, took_s, strict=False):
                busy_s[place] += seconds
            return scores

        first = self._session.blended([own], self.first_blender)
        return cascaded(first, bands=self._bands, rest=rest), busy_s


def _activating(lineup: Lineup) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    return lambda scores: activated(scores, lineup.activation)


def _weighed(blend: Blend, members: int) -> list[int]:
    """Return the places of those members that have a weight for any class."""
    everybody = list(range(members))
    if isinstance(blend, Minimum | Maximum) or blend.weights is None:
        return everybody
    rows = (blend.weights, *blend.class_weights.values())
    return [place for place in everybody if any(row[place] > 0 for row in rows)]


class _Scores:
    """Calls one member's session and makes its output scores per class. As thread-safe as the session."""

    def __init__(
        self, running: RunningBundle, manifest: Manifest, view: View, *, output: int, of_logits: bool
    ) -> None:
        self._session = running.session
        self._specs = manifest.signature.inputs
        self._activation = "none" if of_logits else manifest.activation
        self._output = output
        self._frames = view.frames
        self._window_s = manifest.input.window_s if isinstance(manifest.input, AudioInput) else 0.0

    def __call__(self, rows: NDArray[Any]) -> NDArray[Any]:
        outputs = self._session.run(filled(self._specs, (rows,)))
        scores: NDArray[Any] = outputs[self._output][: len(rows)]
        if self._frames is None:
            return activated(scores, self._activation)
        classes = 1 if self._frames.layout == "ct" else -1
        frames = activated(scores, self._activation, axis=classes)
        return central_maximum(frames, self._frames, window_s=self._window_s)


def open_member(
    bundle: Path,
    manifest: Manifest,
    lineup: Lineup,
    place: int,
    *,
    name: str,
    view: View,
    trust_code: bool,
    threads: int,
) -> tuple[Member, str]:
    """Return a member of an ensemble, loaded, and its recipe.

    Args:
        bundle: verified folder.
        manifest: its manifest.
        lineup: what it has in common with the others.
        place: its place among them.
        name: what it is called.
        view: how it looks at a recording.
        trust_code: see `load`.
        threads: that it shares with the others.

    Raises:
        BundleError: nothing in it is right here.
    """
    beside = manifest if len(lineup.takes) == 1 else _beside_others(manifest)
    one = start(bundle, beside, trust_code=trust_code, threads=threads)
    of_logits = lineup.activation != "none"
    member = Member(
        name=name,
        settings=one.settings,
        takes=lineup.takes[place],
        inputs=lineup.inputs[place],
        rows=view.rows,
        score=_Scores(one, manifest, view, output=lineup.outputs[place], of_logits=of_logits),
        close=one.session.close,
    )
    return member, one.deployed.recipe


def _beside_others(manifest: Manifest) -> Manifest:
    """Return a manifest whose recipes leave the CPU to the other members when it is not their turn."""

    def patient(deployed: Deployed) -> Settings:
        if not deployed.recipe.startswith("onnxruntime/"):
            return deployed.settings
        # Its idle threads wait in a loop for tens of milliseconds, on the cores of the next member.
        knobs = {**deployed.settings.knobs, "spin": False}
        return msgspec.structs.replace(deployed.settings, knobs=knobs)

    return _with_settings(manifest, patient)


def _for_few_rows(manifest: Manifest, cascade: DeclaredCascade, *, row_bytes: int) -> Manifest:
    """Return a manifest whose recipes take batches as small as the uncertain rows of a cascade are few."""
    if isinstance(manifest.signature.inputs[0].shape[0], int):
        return manifest  # made for one size only

    def small(deployed: Deployed) -> Settings:
        size = cascade_batch_size(deployed.settings, row_bytes=row_bytes, share=cascade.share)
        return msgspec.structs.replace(deployed.settings, batch_size=size)

    return _with_settings(manifest, small)


def _with_settings(manifest: Manifest, of: Callable[[Deployed], Settings]) -> Manifest:
    """Return a manifest with other settings of all recipes that may run."""
    chosen, *fallbacks = (
        msgspec.structs.replace(one, settings=of(one)) for one in (manifest.chosen, *manifest.fallbacks)
    )
    return msgspec.structs.replace(manifest, chosen=chosen, fallbacks=tuple(fallbacks))


def row_bytes_of(members: Sequence[Manifest], takes: Sequence[int], inputs: Sequence[int]) -> int:
    """Return the size of the arrays of one row.

    Args:
        members: of the ensemble.
        takes: which array each takes.
        inputs: that this array holds for each; see `Member`.
    """
    sizes = {}
    for member, place, count in zip(members, takes, inputs, strict=True):
        spec = member.signature.inputs[0]
        values = math.prod(size for size in spec.shape[1:] if isinstance(size, int))
        sizes[place] = count * values * np.dtype(spec.dtype).itemsize
    return sum(sizes.values())


def load(path: str | Path, *, trust_code: bool = False, threads: int | None = None) -> Bundle | Ensemble:
    """Return a verified bundle, of one model or an ensemble, loaded and checked on this machine.

    Neither PyTorch nor any other engine than the bundle's own is needed.

    Args:
        path: the bundle folder, `NAME.alula`.
        trust_code: whether artifacts that are code (TorchScript, `.pt2`) may be loaded. Say so only for
            bundles that you made or whose maker you trust like the author of a program.
        threads: thread budget; None takes min(affinity, CPU quota).

    Raises:
        BundleError: the bundle is damaged, changed, too new, or nothing in it is right here.
        UsageError: the thread budget is impossible, or the members of an ensemble do not go together.
    """
    folder = Path(path)
    if not is_ensemble(folder):
        return load_bundle(folder, trust_code=trust_code, threads=threads)
    budget = thread_budget(threads)
    manifest = read_ensemble(folder)
    verify(folder, manifest)
    members = verify_members(folder, manifest)
    return Ensemble(folder, manifest, members, trust_code=trust_code, threads=budget)
