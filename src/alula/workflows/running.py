"""A bundle that runs: called with arrays, mapped over files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from alula.bundle import Deployed, Manifest, Running, read_manifest, start, verify
from alula.core import Settings
from alula.engines import Arrays, filled
from alula.errors import AlulaError, DataError, EngineError
from alula.hardware import thread_budget
from alula.pipeline import (
    READY_PER_RESULT,
    Backlog,
    FileTask,
    JobKey,
    Journal,
    Kept,
    file_key,
    iter_job,
)
from alula.workflows.samples import FileReader

__all__ = ["Bundle", "Prediction", "job_key", "keep", "load"]

Span = tuple[float | None, float | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """The result of one file of `Bundle.map`.

    Attributes:
        path: the file.
        start_s: where each row's window starts, float64 of shape (n,); None for images and arrays.
        end_s: where it ends, likewise.
        scores: first output with the bundle's activation, shape (n, c); None when the file failed.
        error: why the file failed, or None.
    """

    path: Path
    start_s: NDArray[np.float64] | None
    end_s: NDArray[np.float64] | None
    scores: NDArray[Any] | None
    error: AlulaError | None


class Bundle:
    """A verified bundle, running here. Made by `alula.load` and `alula.optimize`.

    Thread-safe: `bundle(x)` may be called from several threads; up to `settings.instances` batches are
    computed at once. Use it in a `with` block, or call `close`, to free the engine.
    """

    def __init__(self, path: Path, manifest: Manifest, running: Running, *, threads: int) -> None:
        self.path = path
        self.manifest = manifest
        self._running = running
        self._threads = threads

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names in the order of the output columns, if known."""
        return self.manifest.labels

    @property
    def recipe(self) -> str:
        """The recipe that runs here: the chosen one, or a fallback."""
        return self._running.deployed.recipe

    @property
    def deployed(self) -> Deployed:
        """What the manifest says about the recipe that runs here."""
        return self._running.deployed

    @property
    def settings(self) -> Settings:
        """The settings that it runs with here."""
        return self._running.settings

    @property
    def threads(self) -> int:
        """The thread budget, shared by everything that the bundle does."""
        return self._threads

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[Any] | Arrays:
        """Return the model's outputs for a batch of any size.

        Args:
            inputs: one array (n, ...) per model input; float64 is cast to the input's dtype.

        Returns:
            The output (n, ...), or a tuple of them when the model has several. The activation is not
            applied: these are the model's own numbers.

        Raises:
            EngineError: the arrays do not fit the model's inputs.
        """
        specs = self.manifest.signature.inputs
        arrays = tuple(
            np.ascontiguousarray(array, dtype=spec.dtype if np.asarray(array).dtype == np.float64 else None)
            for spec, array in zip(specs, inputs, strict=False)
        )
        if len(inputs) != len(specs) or not arrays[0].ndim or not len(arrays[0]):
            shapes = ", ".join(str(np.shape(array)) for array in inputs)
            raise EngineError(
                f"The bundle got {len(inputs)} inputs of shapes {shapes}; expected "
                f"{', '.join(map(str, specs))} with at least one sample."
            )
        parts = [
            self.infer(tuple(array[begin : begin + self._batch] for array in arrays))
            for begin in range(0, len(arrays[0]), self._batch)
        ]
        outputs = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
        return outputs[0] if len(outputs) == 1 else outputs

    @property
    def _batch(self) -> int:
        return self._running.settings.batch_size

    def infer(self, batch: Arrays) -> Arrays:
        """Return all outputs of one batch of at most `settings.batch_size` samples, unchecked shapes apart.

        A model with a fixed batch axis gets its last batch filled up.
        """
        whole = filled(self.manifest.signature.inputs, batch)
        outputs = self._running.session.run(whole)
        return outputs if whole is batch else tuple(output[: len(batch[0])] for output in outputs)

    def scores(self, batch: Arrays) -> Arrays:
        """Return the first output of a batch with the bundle's activation applied, as a 1-tuple."""
        return (_activated(self.infer(batch)[0], self.manifest.activation),)

    def full_batch_scores(self, batch: Arrays) -> Arrays:
        """Return `scores` of a batch, computed at the full batch size whatever its own.

        Kernels may sum in another order for another batch size. So a sample's scores do not depend on how
        many others there were beside it, unless the recipe itself makes them (dynamic quantization).
        """
        count = len(batch[0])
        missing = self._batch - count
        if missing <= 0:
            return self.scores(batch)
        whole = tuple(np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for array in batch)
        return tuple(output[:count] for output in self.scores(whole))

    def map(
        self, paths: Iterable[str | Path], *, journal: str | Path | None = None, fresh: bool = False
    ) -> Iterator[Prediction]:
        """Yield one `Prediction` per file, in order, as they are done; files are read ahead.

        A file that cannot be read gives a prediction with its `error`; the others go on. Memory does
        not grow with the number of files.

        Args:
            paths: the files; read lazily.
            journal: folder to keep results in, so that the same call goes on after a kill: a file that is
                in it, and has not changed since, is not computed again. It stays until you remove it.
            fresh: forget what is in the journal.

        Raises:
            EngineError: the engine failed; that is no file's fault.
            JobError: the journal is in use by another run, or cannot be written.
            UsageError: the journal belongs to another bundle.
            DiskFullError: there is no space for the journal.
        """
        if journal is not None:
            yield from self._map_kept(paths, Journal(Path(journal), job_key(self), fresh=fresh))
            return
        reader = FileReader(self.manifest.input)

        def prepare(path: Path) -> Iterator[tuple[tuple[float | None, float | None], Arrays]]:
            for piece in reader.pieces(path):
                yield (piece.start_s, piece.end_s), piece.arrays

        results = iter_job(
            (Path(path) for path in paths),
            prepare=prepare,
            infer=self.scores,
            settings=self.settings,
            cpu_budget=self._threads,
        )
        for result in results:
            if result.error is not None:
                yield Prediction(path=result.task, start_s=None, end_s=None, scores=None, error=result.error)
                continue
            start_s, end_s = _bounds_s(result.keys)
            yield Prediction(
                path=result.task, start_s=start_s, end_s=end_s, scores=result.outputs[0], error=None
            )

    def _map_kept(self, paths: Iterable[str | Path], journal: Journal) -> Iterator[Prediction]:
        reader = FileReader(self.manifest.input)

        def prepare(task: FileTask) -> Iterator[tuple[Span, Arrays]]:
            for piece in reader.pieces(task.path):
                yield (piece.start_s, piece.end_s), piece.arrays

        with journal:
            backlog = Backlog((FileTask(Path(path), file_key(path)) for path in paths), journal)
            results = iter_job(
                backlog.missing(),
                prepare=prepare,
                infer=self.full_batch_scores,
                settings=self.settings,
                cpu_budget=self._threads,
                ordered=False,
            )
            with closing(results):
                for result in results:
                    if result.error is None:
                        keep(journal, result.task, result.keys, result.outputs)
                    else:
                        journal.keep_failure(result.task.key, str(result.task), result.error)
                    for task, kept in backlog.ready(READY_PER_RESULT):
                        yield _prediction(task.path, kept, journal)
            for task, kept in backlog.ready():
                yield _prediction(task.path, kept, journal)

    def close(self) -> None:
        """Free the engine's memory."""
        self._running.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Bundle {self.path.name}: {self.recipe}, {self.settings}>"


def job_key(bundle: Bundle, *, options: dict[str, str] | None = None) -> JobKey:
    """Return what the scores of a bundle's jobs depend on besides the files.

    Thread budget and batch size are not part of it: they change scores by rounding at most, and a run may
    have to go on where there are fewer CPUs.

    Args:
        bundle: what runs.
        options: other choices that change scores, by name.
    """
    return JobKey(
        bundle=bundle.path.name,
        checksum=bundle.manifest.checksum,
        recipe=bundle.recipe,
        options={} if options is None else options,
    )


def keep(journal: Journal, task: FileTask, keys: list[Span], outputs: Arrays) -> None:
    """Put the scores of a file into a journal; see `Journal.keep` for what is raised."""
    start_s, end_s = _bounds_s(keys)
    journal.keep(task.key, start_s=start_s, end_s=end_s, scores=outputs[0])


def _bounds_s(keys: list[Span]) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    starts, ends = zip(*keys, strict=True)
    if starts[0] is None:
        return None, None
    return np.array(starts, np.float64), np.array(ends, np.float64)


def _prediction(path: Path, kept: Kept, journal: Journal) -> Prediction:
    if kept.reason is not None:
        error = DataError(path, kept.reason)
        return Prediction(path=path, start_s=None, end_s=None, scores=None, error=error)
    blocks = list(journal.blocks(kept))
    return Prediction(
        path=path,
        start_s=_joined([block.start_s for block in blocks]),
        end_s=_joined([block.end_s for block in blocks]),
        scores=_joined([block.scores for block in blocks]),
        error=None,
    )


def _joined(parts: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    return None if parts[0] is None else np.concatenate([part for part in parts if part is not None])


def _activated(scores: NDArray[Any], activation: str) -> NDArray[Any]:
    if activation == "sigmoid":
        # The usual form overflows for large negative scores; tanh does not.
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * scores)), scores.dtype)
    if activation == "softmax":
        shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), scores.dtype)
    return scores


def load(path: str | Path, *, trust_code: bool = False, threads: int | None = None) -> Bundle:
    """Return a verified bundle, loaded and checked on this machine.

    Neither PyTorch nor any other engine than the bundle's own is needed.

    Args:
        path: the bundle folder, `NAME.alula`.
        trust_code: whether artifacts that are code (TorchScript, `.pt2`) may be loaded. Say so only for
            bundles that you made or whose maker you trust like the author of a program.
        threads: thread budget; None takes min(affinity, CPU quota).

    Raises:
        BundleError: the bundle is damaged, changed, too new, or nothing in it is right here.
        UsageError: the thread budget is impossible.
    """
    folder = Path(path)
    budget = thread_budget(threads)
    manifest = read_manifest(folder)
    verify(folder, manifest)
    running = start(folder, manifest, trust_code=trust_code, threads=budget)
    return Bundle(folder, manifest, running, threads=budget)
