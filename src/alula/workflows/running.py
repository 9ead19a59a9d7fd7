"""A bundle that runs: called with arrays, mapped over files."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore, Condition
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from alula.bundle import Deployed, Manifest, Running, read_manifest, start, verify
from alula.core import InputDescription, Settings
from alula.engines import Arrays, filled, filled_up
from alula.errors import AlulaError, DataError, EngineError
from alula.hardware import thread_budget
from alula.pipeline import (
    READY_PER_RESULT,
    Backlog,
    FileTask,
    JobKey,
    Journal,
    Kept,
    RowSpec,
    file_key,
    iter_job,
)
from alula.workflows.samples import Decoding, FileReader

__all__ = [
    "Bundle",
    "Key",
    "Prediction",
    "Scorer",
    "activated",
    "bounds_s",
    "job_key",
    "keep",
    "kept_rows",
    "keys_of",
    "load_bundle",
    "map_files",
]

Key = tuple[float | None, float | None]
"""Where a row begins and ends in its file, in seconds; None for images and arrays."""


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


class Scorer(Protocol):
    """What runs over files: a bundle of one model, or an ensemble."""

    @property
    def path(self) -> Path:
        """The folder that it was loaded from."""
        ...

    @property
    def checksum(self) -> str:
        """Of everything in the folder that its scores depend on."""
        ...

    @property
    def recipe(self) -> str:
        """What runs here."""
        ...

    @property
    def settings(self) -> Settings:
        """How `scores` is called: rows at once, calls at once, threads of a call."""
        ...

    @property
    def threads(self) -> int:
        """The thread budget, shared by everything that it does."""
        ...

    def rows(self, path: Path) -> Iterator[tuple[Key, Arrays]]:
        """Yield the model inputs of a file, in order, each with where it lies."""
        ...

    @property
    def joint_rows(self) -> int:
        """Rows of the result that one row of a batch stands for, at most."""
        ...

    def apart(self, keys: list[Key], outputs: Arrays) -> tuple[list[Key], Arrays]:
        """Return rows of a file each by itself, from those that were computed."""
        ...

    def spans(self, duration_s: float | None) -> list[Key] | None:
        """Return where the rows of a file lie, without reading it; None where that cannot be told.

        They are rows of the result, each by itself.
        """
        ...

    def scores(self, batch: Arrays) -> Arrays:
        """Return the scores of a batch, as a 1-tuple."""
        ...

    def full_batch_scores(self, batch: Arrays) -> Arrays:
        """Return the scores of a batch; those of a row do not depend on how many rows are beside it."""
        ...

    @property
    def needs_whole_files(self) -> bool:
        """Whether `finished` must be given all rows of a file; otherwise it returns what it is given."""
        ...

    def finished(self, keys: list[Key], outputs: Arrays) -> tuple[list[Key], Arrays]:
        """Return the rows of one file as they are delivered, from all that `apart` gave of it."""
        ...


class Bundle:
    """A verified bundle, running here. Made by `alula.load` and `alula.optimize`.

    Thread-safe: `bundle(x)` may be called from several threads; up to `settings.instances` batches are
    computed at once. Use it in a `with` block, or call `close`, to free the engine.
    """

    def __init__(self, path: Path, manifest: Manifest, running: Running, *, threads: int) -> None:
        self._path = path
        self.manifest = manifest
        self._running = running
        self._threads = threads
        # A job that ran out of time leaves calls behind, and no engine may be freed under one.
        self._calls = Condition()
        self._slots = BoundedSemaphore(running.settings.instances)
        self._under_way = 0
        self._closed = False

    @property
    def path(self) -> Path:
        """The folder that it was loaded from."""
        return self._path

    @property
    def checksum(self) -> str:
        """Of the manifest, which lists the hashes of all files."""
        return self.manifest.checksum

    @property
    def description(self) -> InputDescription:
        """How files become model inputs."""
        return self.manifest.input

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
        lengths = {len(array) if array.ndim else 0 for array in arrays}
        if len(inputs) != len(specs) or len(lengths) != 1 or 0 in lengths:
            shapes = ", ".join(str(np.shape(array)) for array in inputs)
            raise EngineError(
                f"The bundle got {len(inputs)} inputs of shapes {shapes}; expected "
                f"{', '.join(map(str, specs))} with at least one sample, as many in each."
            )
        parts = [
            self.infer(tuple(array[begin : begin + self._batch] for array in arrays))
            for begin in range(0, len(arrays[0]), self._batch)
        ]
        outputs = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
        return outputs[0] if len(outputs) == 1 else outputs

    @functools.cached_property
    def _reader(self) -> FileReader:
        # Not before it is needed: features want libraries that calls with arrays do without.
        return FileReader(self.manifest.input)

    @property
    def _batch(self) -> int:
        return self._running.settings.batch_size

    def infer(self, batch: Arrays) -> Arrays:
        """Return all outputs of one batch of at most `settings.batch_size` samples, unchecked shapes apart.

        A model with a fixed batch axis gets its last batch filled up.
        """
        whole = filled(self.manifest.signature.inputs, batch)
        with self._calls:
            if self._closed:
                raise EngineError(f"{self.path.name} is closed; load it again.")
            self._under_way += 1
        try:
            # Engines may take more callers, each with threads of its own.
            with self._slots:
                outputs = self._running.session.run(whole)
        finally:
            with self._calls:
                self._under_way -= 1
                self._calls.notify_all()
        return outputs if whole is batch else tuple(output[: len(batch[0])] for output in outputs)

    def scores(self, batch: Arrays) -> Arrays:
        """Return the first output of a batch with the bundle's activation applied, as a 1-tuple."""
        return (activated(self.infer(batch)[0], self.manifest.activation),)

    def full_batch_scores(self, batch: Arrays) -> Arrays:
        """Return `scores` of a batch, computed at the full batch size whatever its own.

        Kernels may sum in another order for another batch size. So a sample's scores do not depend on how
        many others there were beside it, unless the recipe itself makes them (dynamic quantization).
        """
        return tuple(output[: len(batch[0])] for output in self.scores(filled_up(batch, self._batch)))

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
            UsageError: the journal belongs to another bundle, or the folder holds what is no journal.
            DiskFullError: there is no space for the journal.
        """
        return map_files(self, paths, journal=journal, fresh=fresh)

    def rows(self, path: Path, *, decoding: Decoding = iter) -> Iterator[tuple[Key, Arrays]]:
        """Yield the model inputs of a file, in order, each with where it lies.

        Args:
            path: the file.
            decoding: is given what decodes, piece by piece, and returns it, watched.

        Raises:
            DataError: the file cannot be read, now or further on.
        """
        for piece in self._reader.pieces(path, decoding=decoding):
            yield (piece.start_s, piece.end_s), piece.arrays

    @property
    def row_spec(self) -> RowSpec | None:
        """Shape and type of the arrays of a row; None where the description leaves them open."""
        return self._reader.row_spec

    def spans(self, duration_s: float | None) -> list[Key] | None:
        """Return where the rows of a file lie, without reading it; None where that cannot be told.

        Args:
            duration_s: of a recording; None where it is not known.
        """
        return self._reader.spans(duration_s)

    @property
    def joint_rows(self) -> int:
        """Rows of the result that one row of a batch stands for: itself."""
        return 1

    def apart(self, keys: list[Key], outputs: Arrays) -> tuple[list[Key], Arrays]:
        """Return rows of a file each by itself: as they are."""
        return keys, outputs

    @property
    def row_shape(self) -> tuple[int, ...] | None:
        """Shape of the scores of one row, as far as the model says it."""
        shape = self.manifest.signature.outputs[0].shape[1:]
        sizes = tuple(size for size in shape if isinstance(size, int))
        return sizes if len(sizes) == len(shape) else None

    @property
    def needs_whole_files(self) -> bool:
        """Whether rows are changed by others of their file: they are not."""
        return False

    def finished(self, keys: list[Key], outputs: Arrays) -> tuple[list[Key], Arrays]:
        """Return the rows of one file as they are delivered: as they are."""
        return keys, outputs

    def close(self) -> None:
        """Free the engine's memory, once the calls that are under way have ended; later ones fail."""
        with self._calls:
            self._closed = True
            self._calls.wait_for(lambda: self._under_way == 0)
        self._running.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Bundle {self.path.name}: {self.recipe}, {self.settings}>"


def map_files(
    scorer: Scorer,
    paths: Iterable[str | Path],
    *,
    journal: str | Path | None = None,
    fresh: bool = False,
) -> Iterator[Prediction]:
    """Yield one `Prediction` per file, in order, as they are done; see `Bundle.map`."""
    if journal is not None:
        yield from _map_kept(scorer, paths, Journal(Path(journal), job_key(scorer), fresh=fresh))
        return
    results = iter_job(
        (Path(path) for path in paths),
        prepare=scorer.rows,
        infer=scorer.scores,
        settings=scorer.settings,
        cpu_budget=scorer.threads,
    )
    for result in results:
        if result.error is not None:
            yield Prediction(path=result.task, start_s=None, end_s=None, scores=None, error=result.error)
        else:
            yield _finished(scorer, result.task, *scorer.apart(result.keys, result.outputs))


def _map_kept(scorer: Scorer, paths: Iterable[str | Path], journal: Journal) -> Iterator[Prediction]:
    with journal:
        backlog = Backlog((FileTask(Path(path), file_key(path)) for path in paths), journal)
        results = iter_job(
            backlog.missing(),
            prepare=lambda task: scorer.rows(task.path),
            infer=scorer.full_batch_scores,
            settings=scorer.settings,
            cpu_budget=scorer.threads,
            ordered=False,
        )
        with closing(results):
            for result in results:
                if result.error is None:
                    keep(journal, result.task, *scorer.apart(result.keys, result.outputs))
                else:
                    journal.keep_failure(result.task.key, str(result.task), result.error)
                for task, kept in backlog.ready(READY_PER_RESULT):
                    yield _prediction(scorer, task.path, kept, journal)
        for task, kept in backlog.ready():
            yield _prediction(scorer, task.path, kept, journal)


def _prediction(scorer: Scorer, path: Path, kept: Kept, journal: Journal) -> Prediction:
    if kept.reason is not None:
        error = DataError(path, kept.reason)
        return Prediction(path=path, start_s=None, end_s=None, scores=None, error=error)
    keys, scores = kept_rows(journal, kept)
    return _finished(scorer, path, keys, (scores,))


def _finished(scorer: Scorer, path: Path, keys: list[Key], outputs: Arrays) -> Prediction:
    keys, outputs = scorer.finished(keys, outputs)
    start_s, end_s = bounds_s(keys)
    return Prediction(path=path, start_s=start_s, end_s=end_s, scores=outputs[0], error=None)


def job_key(scorer: Scorer, *, options: dict[str, str] | None = None) -> JobKey:
    """Return what the scores of a bundle's jobs depend on besides the files.

    Thread budget and batch size are not part of it: they change scores by rounding at most, and a run may
    have to go on where there are fewer CPUs. Members, blend and steps of an ensemble are in its checksum.

    Args:
        scorer: what runs.
        options: other choices that change scores, by name.
    """
    return JobKey(
        bundle=scorer.path.name,
        checksum=scorer.checksum,
        recipe=scorer.recipe,
        options={} if options is None else options,
    )


def keep(journal: Journal, task: FileTask, keys: list[Key], outputs: Arrays) -> None:
    """Put the scores of a file into a journal, row by row; see `Journal.keep` for what is raised.

    What follows them (the steps of an ensemble, its ranks) is done when they are read, so that there is one
    kind of record, and one way from it to the output whether or not a run was interrupted.
    """
    start_s, end_s = bounds_s(keys)
    journal.keep(task.key, start_s=start_s, end_s=end_s, scores=outputs[0])


def kept_rows(journal: Journal, kept: Kept) -> tuple[list[Key], NDArray[Any]]:
    """Return all rows of a file in a journal: where they lie, and their scores, shape (n, ...)."""
    keys: list[Key] = []
    parts = []
    for block in journal.blocks(kept):
        keys += keys_of(block.start_s, block.end_s, rows=len(block.scores))
        parts.append(block.scores)
    return keys, parts[0] if len(parts) == 1 else np.concatenate(parts)


def keys_of(
    start_s: NDArray[np.float64] | None, end_s: NDArray[np.float64] | None, *, rows: int
) -> list[Key]:
    """Return where each row lies, from times of shape (n,) or None; the other way round of `bounds_s`."""
    if start_s is None or end_s is None:
        return [(None, None)] * rows
    return list(zip(start_s.tolist(), end_s.tolist(), strict=True))


def bounds_s(keys: Sequence[Key]) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Return where rows begin and end, each float64 of shape (n,); None for images and arrays.

    >>> bounds_s([(0.0, 5.0), (5.0, 10.0)])[1].tolist()
    [5.0, 10.0]
    """
    starts, ends = zip(*keys, strict=True)
    if starts[0] is None:
        return None, None
    return np.array(starts, np.float64), np.array(ends, np.float64)


def activated(scores: NDArray[Any], activation: str, *, axis: int = -1) -> NDArray[Any]:
    """Return scores with an activation applied: `none`, `sigmoid`, or `softmax` along an axis."""
    if activation == "sigmoid":
        # The usual form overflows for large negative scores; tanh does not.
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * scores)), scores.dtype)
    if activation == "softmax":
        shifted = np.exp(scores - scores.max(axis=axis, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=axis, keepdims=True), scores.dtype)
    return scores


def load_bundle(path: str | Path, *, trust_code: bool = False, threads: int | None = None) -> Bundle:
    """Return a verified bundle of one model, loaded and checked on this machine; see `load`.

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
