"""Ensembles: made from bundles, loaded, and run as one."""

from __future__ import annotations

import contextlib
import datetime
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from alula.core import AudioInput, Blend, InputDescription, Mean, Rank, Settings, Step, View
from alula.data import open_audio, read_array, read_image
from alula.engines import Arrays, filled
from alula.ensemble import Blender, EnsembleSession, Member, align_labels, shared_batch_size
from alula.errors import DataError, UsageError, closest
from alula.features import (
    ArrayFeatures,
    Demand,
    ImageFeatures,
    SharedAudioFeatures,
    distinct_demands,
    make_features,
    row_grid,
)
from alula.hardware import thread_budget
from alula.postprocess import PostProcessing, Track, apply_steps, central_maximum, needs_times
from alula.workflows.running import Bundle, Key, Prediction, activated, load_bundle, map_files

__all__ = ["Ensemble", "load", "make_ensemble"]

MEMBERS = "members"


def make_ensemble(
    bundles: Sequence[str | Path],
    output: str | Path,
    *,
    blend: Blend | None = None,
    post: PostProcessing | None = None,
    labels: Sequence[str] | None = None,
    verdicts: Mapping[str, WholeFileVerdict] | None = None,
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
        replace: whether a bundle of that name may be replaced.

    Raises:
        BundleError: a bundle is damaged, changed or an ensemble itself, or the output exists.
        UsageError: the bundles do not go together, or the weights, labels, views or steps do not fit them.
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
    plan = _planned(names, manifests, views, blend=blend, steps=post.step, labels=labels)
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
            files={},
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
    """Return a verified bundle of one model: a folder itself, or what is in one made for whole files."""
    if is_ensemble(folder):
        whole = read_ensemble(folder)
        if len(whole.members) == 1 and whole.members[0].whole_files is not None and not whole.steps:
            verify(folder, whole)
            (manifest,) = verify_members(folder, whole)
            record = whole.members[0]
            return _Given(folder / record.folder, manifest, record.view, record.whole_files)
    manifest = read_manifest(folder)
    verify(folder, manifest)
    return _Given(folder, manifest)


def member_names(folders: Sequence[Path]) -> list[str]:
    """Return what the members of an ensemble of some bundles are called, in their order."""
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
class _Plan:
    """What members have in common.

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
        """Rows that belong together in what the members are given; 1 where each stands for itself."""
        return max(demand.rows for demand in self.demands)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Return for each member how many inputs it has for the rows that belong together."""
        return tuple(self.rows // self.demands[place].rows for place in self.takes)


def _planned(
    names: Sequence[str],
    manifests: Sequence[Manifest],
    views: Sequence[View],
    *,
    blend: Blend,
    steps: Sequence[Step],
    labels: Sequence[str] | None,
) -> _Plan:
    """Return what the members have in common, or raise `UsageError` where they do not go together."""
    outputs, widths = [], []
    for name, manifest, view in zip(names, manifests, views, strict=True):
        _check_member(name, manifest, view)
        output = _output_named(name, manifest, view)
        outputs.append(output)
        widths.append(_width(name, manifest, view, output))
    if needs_times(steps) and not isinstance(manifests[0].input, AudioInput):
        raise UsageError("The steps `overlap` and `smoothing` need rows that follow each other: recordings.")
    demands, takes = distinct_demands(
        [
            Demand(manifest.input, view.keep_s, view.rows)
            for manifest, view in zip(manifests, views, strict=True)
        ]
    )
    if isinstance(blend, Rank) and any(view.rows > 1 for view in views):
        raise UsageError(
            "A blend by rank got a model that gives several rows of a window; rows behind the end of a "
            "recording would have ranks, too. Blend scores, or make its bundle window by window."
        )
    alignment = align_labels([manifest.labels for manifest in manifests], widths=widths, wanted=labels)
    return _Plan(
        demands=demands,
        takes=takes,
        outputs=tuple(outputs),
        widths=tuple(widths),
        blender=Blender(blend, alignment),
        activation=_activation_after(
            blend, manifests, same_classes=bool(alignment.known.all()) and set(widths) == {alignment.classes}
        ),
    )


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
        if view.frames is not None and view.rows > 1:
            raise UsageError(f"The view of `{name}` has `frames` and `rows`; expected one of them.")
    elif view.keep_s is not None or view.frames is not None or view.rows > 1:
        raise UsageError(
            f"The view of `{name}` has `keep_s`, `rows` or `frames`, but it reads no recordings."
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


class _SharedReader:
    """Turns files into rows for all members; each file is decoded once. Thread-safe, one call per file."""

    def __init__(self, demands: Sequence[Demand]) -> None:
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

    def rows(self, path: Path) -> Iterator[tuple[Key, Arrays]]:
        if self._audio is not None:
            with open_audio(path) as audio:
                for row in self._audio.rows(audio.blocks(), audio.rate_hz):
                    yield (row.start_s, row.end_s), row.arrays
        elif self._images:
            image = read_image(path)
            yield (None, None), tuple(features.transform(image) for features in self._images)
        else:
            array = read_array(path)
            try:
                arrays = tuple(features.transform(array) for features in self._arrays)
            except DataError as error:
                raise DataError(path, error.reason) from error
            yield (None, None), arrays


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
        self.path = path
        self.manifest = manifest
        self._threads = threads
        self._plan = _planned(
            [member.name for member in manifest.members],
            members,
            [member.view for member in manifest.members],
            blend=manifest.blend,
            steps=manifest.steps,
            labels=manifest.labels,
        )
        self._reader = _SharedReader(self._plan.demands)
        self._description = members[0].input
        with contextlib.ExitStack() as opened:
            running = []
            for record, member in zip(manifest.members, members, strict=True):
                beside = member if len(members) == 1 else _beside_others(member)
                one = start(path / record.folder, beside, trust_code=trust_code, threads=threads)
                opened.callback(one.session.close)
                running.append(one)
            self._session = EnsembleSession(
                [
                    Member(
                        name=record.name,
                        settings=one.settings,
                        takes=takes,
                        inputs=inputs,
                        rows=record.view.rows,
                        score=_Scores(
                            one, member, record.view, output=output, of_logits=self._plan.activation != "none"
                        ),
                        close=one.session.close,
                    )
                    for record, member, one, takes, output, inputs in zip(
                        manifest.members,
                        members,
                        running,
                        self._plan.takes,
                        self._plan.outputs,
                        self._plan.inputs,
                        strict=True,
                    )
                ],
                blender=self._plan.blender,
                activate=lambda scores: activated(scores, self._plan.activation),
            )
            opened.pop_all()
        self._recipes = [one.deployed.recipe for one in running]
        size = shared_batch_size(
            [one.settings for one in running],
            row_bytes=_row_bytes(members, self._plan.takes, self._plan.inputs),
            inputs=self._plan.inputs,
        )
        self._settings = Settings(threads=threads, instances=1, batch_size=size)

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

    def rows(self, path: Path) -> Iterator[tuple[Key, Arrays]]:
        """Yield the rows of a file, in order, each with where it lies: one array for each of `demands`.

        Raises:
            DataError: the file cannot be read, now or further on.
        """
        return self._reader.rows(path)

    def scores(self, batch: Arrays) -> Arrays:
        """Return the blended scores of a batch as a 1-tuple; for `whole_job` see `blend_all`.

        They have the shape (n, c), or (n, r, c) where r rows belong together.
        """
        scores = self._session.run(batch)
        if self._plan.rows > 1:
            scores = scores.reshape(-1, self._plan.rows, scores.shape[-1])
        return (scores,)

    def blend_all(self, scores: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Return the blended scores of all rows of a job, in the parts that `scores` gave, such as files."""
        return self._session.blend_all(scores, self._plan.widths)

    def finished(self, keys: list[Key], outputs: Arrays) -> tuple[list[Key], Arrays]:
        """Return the rows of one file after the ensemble's steps, each by itself."""
        scores = np.asarray(outputs[0], np.float32)
        if self._plan.rows > 1:
            keys, scores = self._apart(keys, scores)
        outputs = (scores,)
        if not self.manifest.steps:
            return keys, (scores,)
        begins, ends = zip(*keys, strict=True)
        timed = begins[0] is not None
        track = apply_steps(
            self.manifest.steps,
            Track(
                np.array(begins, np.float64) if timed else None,
                np.array(ends, np.float64) if timed else None,
                scores,
            ),
        )
        if track.start_s is not None and track.end_s is not None:
            keys = list(zip(track.start_s.tolist(), track.end_s.tolist(), strict=True))
        return keys, (track.scores,)

    def _apart(self, keys: list[Key], scores: NDArray[Any]) -> tuple[list[Key], NDArray[np.float32]]:
        """Return the rows of a file that belonged together in `rows`, without those behind its end."""
        hop_s, keep_s = row_grid(self._plan.demands[0])
        apart: list[Key] = []
        kept = []
        for (start_s, end_s), several in zip(keys, scores, strict=True):
            assert start_s is not None and end_s is not None
            known = 1 + round((end_s - start_s - keep_s) / hop_s)
            apart += [(start_s + k * hop_s, start_s + k * hop_s + keep_s) for k in range(known)]
            kept.append(several[:known])
        return apart, np.concatenate(kept)

    def map(self, paths: Iterable[str | Path]) -> Iterator[Prediction]:
        """Yield one `Prediction` per file, in order, as they are done; see `Bundle.map`.

        Raises:
            UsageError: the blend is by rank, which has no results before the last file.
            EngineError: an engine failed; that is no file's fault.
        """
        if self.whole_job:
            raise UsageError(
                "A blend by rank has no result for a file before all files are computed, so it cannot be "
                "mapped over them. Use `alula predict`, or another blend."
            )
        return map_files(self, paths)

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


def _beside_others(manifest: Manifest) -> Manifest:
    """Return a manifest whose recipes leave the CPU to the other members when it is not their turn."""

    def patient(deployed: Deployed) -> Deployed:
        if not deployed.recipe.startswith("onnxruntime/"):
            return deployed
        # Its idle threads wait in a loop for tens of milliseconds, on the cores of the next member.
        settings = deployed.settings
        knobs = {**settings.knobs, "spin": False}
        return msgspec.structs.replace(deployed, settings=msgspec.structs.replace(settings, knobs=knobs))

    return msgspec.structs.replace(
        manifest, chosen=patient(manifest.chosen), fallbacks=tuple(map(patient, manifest.fallbacks))
    )


def _row_bytes(members: Sequence[Manifest], takes: Sequence[int], inputs: Sequence[int]) -> int:
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
