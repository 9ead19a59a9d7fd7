"""Networks run over long stretches of a recording at once, where that was measured to keep their scores.

A network with a context of ten seconds every five does all of its work twice. The part of it that looks only
so far can run once over a longer spectrogram, and the rest pools its columns window by window. Both together
are a network of their own, that takes a stretch and gives the scores of its windows: it is searched like any
other, in every engine and precision.

The scores differ: columns at a window's ends see the sound beside it instead of padding, windows are moved to
the nearest column, and gates and normalisations are those of the stretch. So what comes out is compared
with the network run window by window, and nothing is written where the difference is too large.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from alula.accuracy import Metric, accept, compare, default_metric, metric_named
from alula.bundle import Activation, WholeFileVerdict, check_target
from alula.core import ARTIFACT_FILES, Accuracy, AudioInput, Outcome, Precision, Recipe, Settings, View
from alula.data import Item, Samples, open_audio, open_samples, split
from alula.engines import Session, engine_named
from alula.errors import (
    AccuracyError,
    AlulaError,
    BundleError,
    DataError,
    DiskFullError,
    ModelError,
    UsageError,
)
from alula.export import StretchModel, copy_onnx, export_module, signature_of_onnx, write_stretch_model
from alula.features import AudioFeatures, Demand, SharedAudioFeatures, SharedRow, read_description
from alula.hardware import fingerprint, thread_budget
from alula.postprocess import PostProcessing
from alula.sources import load_model, parse_source
from alula.tuning import offered_recipes
from alula.workflows.durations import parse_duration_s
from alula.workflows.ensembling import Ensemble, load, make_ensemble, member_names
from alula.workflows.optimization import Report, optimize
from alula.workflows.running import load_bundle
from alula.workflows.search_folder import folder_beside, locked

__all__ = ["optimize_whole_files"]

# Of model inputs (b, c, f, t).
_TIME_AXIS = 3
_SAMPLE_WINDOWS = 3
# Enough for a verdict; a network of some GMAC takes half a minute for them.
_MOST_ROWS = 300
_PLAIN = Recipe("onnxruntime", "fp32")

Scores = Callable[[NDArray[Any]], NDArray[Any]]


def optimize_whole_files(
    model: Any,
    data: Any,
    *,
    output: str | Path,
    input: str | Path | AudioInput,  # noqa: A002 - the name of the option
    windows: int = 12,
    keep_s: float | None = None,
    weights: str | Path | None = None,
    labels: Sequence[str] | None = None,
    metric: str | None = None,
    max_drop: float = 0.005,
    budget: str | float = "10m",
    engines: Sequence[str] | None = None,
    precisions: Sequence[Precision] | None = None,
    threads: int | None = None,
    activation: Activation = "none",
    seed: int = 0,
    replace: bool = False,
    report: Report = lambda text: None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> Ensemble:
    """Find the fastest way to run a network over stretches of several windows, if its scores allow it.

    Args:
        model: as for `optimize`.
        data: whole recordings, labelled or not, some of them longer than a stretch.
        output: the ensemble of one member to make, `NAME.alula`; its rows are those of window by window.
        input: description of the network's own windows, with a spectrogram, or a TOML file of one.
        windows: of a stretch. More compute less twice, and need more memory; a recording's last stretch is
            computed whole, however much of it is silence.
        keep_s: see `alula.core.View`; None for whole windows.
        weights: as for `optimize`.
        labels: likewise.
        metric: as for `optimize`, between what comes out and the network in FP32, window by window; what a
            recording is labelled with counts for each of its windows. `cosine` where it needs no labels.
        max_drop: the largest drop of it allowed.
        budget: of the search, as for `optimize`.
        engines: only these.
        precisions: only these.
        threads: thread budget; None takes min(affinity, CPU quota).
        activation: what `predict` applies to the scores.
        seed: of the split.
        replace: whether a bundle at `output` may be replaced.
        report: gets lines of text about what is being done.
        on_outcome: gets every outcome of the search as it is known.

    Returns:
        The ensemble, loaded.

    Raises:
        AccuracyError: the scores differ by more than allowed; nothing is written.
        ModelError: the network has no part that looks only so far, or cannot be loaded.
        UsageError: an option is wrong.
        DataError: the data cannot be used.
        BundleError: the bundle cannot be written.
    """
    target = Path(output)
    check_target(target, replace=replace)
    parse_duration_s(budget)  # and what else the search would refuse, after minutes of other work
    offered_recipes(fingerprint().isa, engines=None if engines is None else tuple(engines))
    if keep_s is not None and not 0 < keep_s < math.inf:
        raise UsageError(f"`keep_s` got {keep_s:g}; expected seconds above 0.")
    description = _checked_description(input)
    stretch = _stretch_of(description, windows)
    demands = (Demand(description, keep_s), Demand(stretch, keep_s, windows))
    features = SharedAudioFeatures(demands)
    samples = open_samples(data, labels=labels)
    chosen = metric_named(metric or default_metric(samples.targets))
    parts = split(samples, calibration=300, max_validation=10_000, seed=seed)
    budget_threads = thread_budget(threads)
    # Beside the output, because an interrupted search is continued where the model lies as it did.
    folder = target.with_name(f"{target.name}.stretches")
    member_path = folder / target.name
    with _models_in(folder, target):
        report("exporting the network")
        window_file = _exported(model, weights, folder, _sample(samples, description))
        stretch_file = folder / "stretch" / ARTIFACT_FILES["onnx"]
        assert description.mel is not None
        written = write_stretch_model(
            window_file,
            stretch_file,
            axis=_TIME_AXIS,
            windows=windows,
            hop_frames=description.hop_samples / description.mel.hop,
            frames=AudioFeatures(stretch).sample_shape[-1],
        )
        report("running the network window by window")
        with closing(_session(window_file, budget_threads)) as by_window:
            comparison = _Comparison(
                samples, parts.validation, features, by_window=_only_output(by_window), report=report
            )
        report("comparing stretches with windows")
        with closing(_session(stretch_file, budget_threads)) as by_stretch:
            in_fp32 = comparison.of(_only_output(by_stretch), metric=chosen, max_drop=max_drop)
            _refuse(in_fp32, "over stretches, in FP32")
        optimize(
            str(stretch_file),
            data,
            output=member_path,
            input=stretch,
            labels=labels,
            metric="cosine",
            max_drop=max_drop,
            budget=budget,
            engines=engines,
            precisions=precisions,
            threads=threads,
            activation=activation,
            seed=seed,
            replace=True,
            report=report,
            on_outcome=on_outcome,
        ).close()
        report("comparing the bundle with windows")
        with load_bundle(member_path, threads=threads) as bundle:
            accuracy = comparison.of(lambda x: np.asarray(bundle(x)), metric=chosen, max_drop=max_drop)
            _refuse(accuracy, f"over stretches, as {bundle.recipe}")
    _write(target, member_path, View(rows=windows, keep_s=keep_s), written, accuracy, replace=replace)
    shutil.rmtree(folder)
    loaded = load(target, threads=threads)
    assert isinstance(loaded, Ensemble)
    return loaded


@contextmanager
def _models_in(folder: Path, target: Path) -> Iterator[None]:
    """Keep a folder for the networks of a search, for this process only.

    It goes with an error, with which the same call would end again. It stays with what is left of a search
    that was interrupted, whatever this call was told.

    Raises:
        UsageError: another call works there.
        BundleError: it cannot be made.
    """
    try:
        for name in ("window", "stretch"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(target, f"It cannot be written: {error.strerror}.") from error
    with locked(folder):
        try:
            yield
        except DiskFullError:
            raise
        except AlulaError:
            if not folder_beside(folder / target.name).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _write(
    target: Path,
    member: Path,
    view: View,
    written: StretchModel,
    accuracy: Accuracy,
    *,
    replace: bool,
) -> None:
    (name,) = member_names([member])
    verdict = WholeFileVerdict(
        accuracy=accuracy, gated=written.part.gated, computed_share=written.computed_share
    )
    make_ensemble(
        [member],
        target,
        post=PostProcessing(view={name: view}),
        verdicts={name: verdict},
        replace=replace,
    )


def _checked_description(given: str | Path | AudioInput) -> AudioInput:
    description = given if isinstance(given, AudioInput) else read_description(given)
    if not isinstance(description, AudioInput) or description.mel is None:
        raise UsageError(
            "The input is no spectrogram of recordings, so there are no stretches to run it over."
        )
    if description.hop_samples >= description.window_samples:
        raise UsageError(
            f"The windows of {description.window_s:g} s do not overlap, so nothing would be computed once "
            "that is computed twice now. Give the input a shorter `hop_s`, or use `alula optimize`."
        )
    return description


def _stretch_of(description: AudioInput, windows: int) -> AudioInput:
    """Return the description of a stretch: so many windows of the description."""
    if windows < 2:
        raise UsageError(f"A stretch got {windows} windows; expected at least 2.")
    hop_s = description.window_s if description.hop_s is None else description.hop_s
    return msgspec.structs.replace(
        description, window_s=description.window_s + (windows - 1) * hop_s, hop_s=windows * hop_s
    )


def _sample(samples: Samples, description: AudioInput) -> NDArray[np.float32]:
    """Return a few windows of the first recording that can be read."""
    if samples.kind != "audio":
        raise UsageError(f"{samples.source} holds no recordings; expected some.")
    features = AudioFeatures(description)
    for item in samples.items:
        assert item.path is not None
        try:
            with open_audio(item.path) as audio:
                found = features.windows(audio.blocks(), audio.rate_hz)
                windows = [window.samples for window in islice(found, _SAMPLE_WINDOWS)]
        except DataError as error:
            problem = error
            continue
        # An export is checked on at least two samples.
        return np.stack([*windows, windows[-1]])
    raise DataError(samples.source, f"None of its recordings can be read, for example: {problem}")


def _exported(model: Any, weights: str | Path | None, folder: Path, sample: NDArray[np.float32]) -> Path:
    loaded = load_model(parse_source(model, weights=weights, workdir=folder))
    path = folder / "window" / ARTIFACT_FILES["onnx"]
    if loaded.onnx_path is not None:
        copy_onnx(loaded.onnx_path, path)
    else:
        assert loaded.module is not None
        export_module(loaded.module, [sample], target="onnx", folder=path.parent)
    return path


def _session(file: Path, threads: int) -> Session:
    signature = signature_of_onnx(file)
    if len(signature.inputs) != 1 or len(signature.outputs) != 1:
        raise ModelError(
            f"The network has {len(signature.inputs)} inputs and {len(signature.outputs)} outputs; expected "
            "one spectrogram and the scores."
        )
    return engine_named(_PLAIN.engine).load(
        file.parent, recipe=_PLAIN, signature=signature, settings=Settings(threads=threads)
    )


def _only_output(session: Session) -> Scores:
    return lambda x: session.run((x,))[0]


class _Comparison:
    """The first of some recordings, up to a number of windows, and the scores of these window by window.

    Args:
        samples: the recordings.
        indices: which of them.
        features: first of windows, then of stretches.
        by_window: scores windows.
        report: gets a line for each recording that cannot be read and is left out.

    Raises:
        DataError: more than half of the recordings cannot be read.
    """

    def __init__(
        self,
        samples: Samples,
        indices: Sequence[int],
        features: SharedAudioFeatures,
        *,
        by_window: Scores,
        report: Report,
    ) -> None:
        self._taken: list[tuple[Item, int]] = []  # recordings, and of how many stretches the rows of each
        self._features = features
        baseline: list[NDArray[Any]] = []
        owners: list[int] = []  # the recording of each window
        problems: list[DataError] = []
        for index in indices:
            left = _MOST_ROWS - len(owners)
            if left <= 0:
                break
            item = samples.items[index]
            scored: list[NDArray[Any]] = []
            try:
                with closing(self._rows(item)) as rows:
                    for row in rows:
                        scored.append(by_window(row.arrays[0][: row.rows]))
                        left -= row.rows
                        if left <= 0:
                            break
            except DataError as error:
                report(f"left out: {error}")
                problems.append(error)
                continue
            self._taken.append((item, len(scored)))
            baseline += scored
            owners += [index] * sum(map(len, scored))
        if not baseline or len(problems) > len(indices) / 2:
            raise DataError(
                samples.source,
                f"{len(problems)} of {len(indices)} recordings to compare cannot be read, for example: "
                + " ".join(map(str, problems[:3])),
            )
        self._baseline = np.concatenate(baseline)
        self._targets = None if samples.targets is None else samples.targets[owners]

    def of(self, by_stretch: Scores, *, metric: Metric, max_drop: float) -> Accuracy:
        """Return the comparison with the scores of stretches."""
        candidate = [
            by_stretch(row.arrays[1][None])[0, : row.rows]
            for item, stretches in self._taken
            for row in self._rows(item, stretches)
        ]
        return compare(
            metric,
            targets=self._targets,
            baseline=self._baseline,
            candidate=np.concatenate(candidate),
            max_drop=max_drop,
        )

    def _rows(self, item: Item, most: int | None = None) -> Generator[SharedRow]:
        assert item.path is not None
        with open_audio(item.path, start_s=item.start_s, end_s=item.end_s) as audio:
            yield from islice(self._features.rows(audio.blocks(), audio.rate_hz), most)


def _refuse(accuracy: Accuracy, how: str) -> None:
    if (refused := accept(accuracy)) is not None:
        raise AccuracyError(
            f"Run {how}, the network is not what it is window by window: {refused}. Use `alula optimize`, "
            "or allow more with `--max-drop`."
        )
