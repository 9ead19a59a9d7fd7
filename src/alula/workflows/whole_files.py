"""Whole recordings through a network at once, where that was measured to keep its scores.

A network with a context of ten seconds every five does all of its work twice. The part of it that looks only
so far can run once over the whole spectrogram, and the rest pools its columns window by window. The scores
differ: frames at a window's ends see the sound beside them instead of padding, starts are rounded to columns,
and gates are those of a longer stretch. So the way is compared with the network run window by window, and
what came of it is always said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from alula.accuracy import Metric, accept, compare
from alula.core import Accuracy, AudioInput, Recipe, Settings, Signature
from alula.data import open_audio
from alula.engines import Arrays, Session, engine_named
from alula.errors import AlulaError, ModelError, UsageError
from alula.export import SplitModel, split_for_whole_files
from alula.features import AudioFeatures, LongSpectrogram
from alula.pipeline import ColumnWalk, columns_of, windows_of

__all__ = ["WholeFileVerdict", "WholeFiles", "open_whole_files"]

# Of model inputs (c, f, t) with their batch axis.
_TIME_AXIS = 3
_BLOCK_S = 60.0
_HEAD_BATCH = 32
_RECIPE = Recipe("onnxruntime", "fp32")


class WholeFileVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether recordings may be run at once, and why.

    Attributes:
        allowed: whether the scores stayed within the limit.
        reason: one sentence; of the measurement, or of what makes it impossible.
        accuracy: the comparison with window by window; None where it was impossible.
        gated: whether the network has gates over the whole time, which see a longer stretch.
        computed_once: share of the frames of overlapping windows that are computed, below 1 where the way
            saves work; its inverse bounds the gain.
    """

    allowed: bool
    reason: str
    accuracy: Accuracy | None = None
    gated: bool = False
    computed_once: float | None = None


class WholeFiles:
    """Scores of recordings, each run once from end to end. Made by `open_whole_files`.

    One recording at a time. Memory is bounded whatever its length.

    Attributes:
        gated: whether the network has gates over the whole time, which see a longer stretch here.
        computed_once: see `WholeFileVerdict`.
    """

    def __init__(self, split: SplitModel, description: AudioInput, *, threads: int, block_s: float) -> None:
        mel = description.mel
        assert mel is not None
        part = split.part
        settings = Settings(threads=threads)
        engine = engine_named(_RECIPE.engine)

        def load(folder: Path, signature: Signature, batch_size: int) -> Session:
            sized = msgspec.structs.replace(settings, batch_size=batch_size)
            return engine.load(folder, recipe=_RECIPE, signature=signature, settings=sized)

        self._long = LongSpectrogram(description)
        self._backbone = load(split.backbone, split.backbone_signature, 1)
        self._head = load(split.head, split.head_signature, _HEAD_BATCH)
        self._part = part
        self._walk = ColumnWalk(
            stride=part.stride,
            before=part.before,
            after=part.after,
            axis=_TIME_AXIS - 1,
            column_axes=part.cut_axes,
            block_frames=max(1, round(block_s * description.sample_rate_hz / mel.hop)),
        )
        hop_frames = description.hop_samples / mel.hop
        self.gated = part.gated
        self.computed_once = self._walk.repeated * hop_frames / part.frames

    def scores(self, blocks: Iterable[NDArray[Any]], rate_hz: int) -> Iterator[NDArray[Any]]:
        """Yield the network's outputs for the windows of a recording, in order, each of shape (n, c).

        Args:
            blocks: consecutive pieces of the recording, each float32 of shape (t, c), any t.
            rate_hz: samples per second of the blocks.

        Raises:
            DataError: a block has another shape or type.
            EngineError: the engine failed.
        """
        counted: list[int] = []
        stride = self._part.stride
        windows = windows_of(
            columns_of(
                self._long.chunks(blocks, rate_hz, ended=counted.append),
                lambda stretch: self._backbone.run((stretch,)),
                walk=self._walk,
            ),
            column_axes=self._part.cut_axes,
            width=self._part.columns,
            first_column=lambda window: round(self._long.first_frame(window) / stride),
            count=lambda: counted[0],
        )
        while batch := list(islice(windows, _HEAD_BATCH)):
            yield self._head.run(_stacked(batch))[0]

    def close(self) -> None:
        """Free the engine's memory."""
        self._backbone.close()
        self._head.close()


def open_whole_files(
    model: Path,
    folder: Path,
    *,
    description: AudioInput,
    recordings: Sequence[Path],
    window_scores: Callable[[NDArray[np.float32]], NDArray[Any]],
    metric: Metric,
    max_drop: float,
    targets: NDArray[Any] | None = None,
    threads: int = 1,
    block_s: float = _BLOCK_S,
) -> tuple[WholeFiles | None, WholeFileVerdict]:
    """Return what runs recordings at once, if it keeps the scores of window by window; and the verdict.

    Args:
        model: ONNX file of the network, exported for one window.
        folder: existing folder for the two halves of the network.
        description: of its input, with a spectrogram.
        recordings: to compare on; whole ones, since the difference is at the windows' ends.
        window_scores: the network window by window: (n, c, f, t) to (n, classes).
        metric: to compare by.
        max_drop: the largest drop that is allowed.
        targets: labels of all windows of the recordings in order; None for a metric that needs none.
        threads: for one recording.
        block_s: seconds of a recording in memory at a time.

    Raises:
        DataError: a recording cannot be read.
        AccuracyError: the metric cannot be computed.
    """
    try:
        way = WholeFiles(
            split_for_whole_files(model, folder, axis=_TIME_AXIS),
            description,
            threads=threads,
            block_s=block_s,
        )
    except (ModelError, UsageError) as error:
        return None, WholeFileVerdict(allowed=False, reason=str(error))
    try:
        verdict = _judged(
            way,
            description=description,
            recordings=recordings,
            window_scores=window_scores,
            metric=metric,
            max_drop=max_drop,
            targets=targets,
        )
    except AlulaError:
        way.close()
        raise
    if not verdict.allowed:
        way.close()
        return None, verdict
    return way, verdict


def _judged(
    way: WholeFiles,
    *,
    description: AudioInput,
    recordings: Sequence[Path],
    window_scores: Callable[[NDArray[np.float32]], NDArray[Any]],
    metric: Metric,
    max_drop: float,
    targets: NDArray[Any] | None,
) -> WholeFileVerdict:
    features = AudioFeatures(description)
    baseline: list[NDArray[Any]] = []
    candidate: list[NDArray[Any]] = []
    for path in recordings:
        with open_audio(path) as audio:
            windows = (window.samples for window in features.windows(audio.blocks(), audio.rate_hz))
            while batch := list(islice(windows, _HEAD_BATCH)):
                baseline.append(window_scores(np.stack(batch)))
        with open_audio(path) as audio:
            candidate += way.scores(audio.blocks(), audio.rate_hz)
    accuracy = compare(
        metric,
        targets=targets,
        baseline=np.concatenate(baseline),
        candidate=np.concatenate(candidate),
        max_drop=max_drop,
    )
    refused = accept(accuracy)
    reason = refused or (
        f"`{accuracy.metric}` dropped by {accuracy.drop:.4g} on {accuracy.n} windows, "
        f"at most {accuracy.limit:g} allowed"
    )
    return WholeFileVerdict(
        allowed=refused is None,
        reason=reason,
        accuracy=accuracy,
        gated=way.gated,
        computed_once=way.computed_once,
    )


def _stacked(windows: list[Arrays]) -> Arrays:
    return tuple(np.ascontiguousarray(np.stack(column)) for column in zip(*windows, strict=True))
