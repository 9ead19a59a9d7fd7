"""What a run is told of its deadline, and what becomes of rows that there was no time for."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, assert_never, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from alula.core import CutOff, OverlapMean, Smoothing, Step, TopScaling
from alula.data import Kind, open_audio
from alula.errors import AlulaError, DataError, JobError, UsageError, closest
from alula.pipeline import FileKey, FileTask, StepTaken, Stretch, UnfinishedList, complete
from alula.postprocess import Track, apply_steps
from alula.workflows.deadlines import Way
from alula.workflows.ensembling import Ensemble
from alula.workflows.running import Key, Scorer, bounds_s

__all__ = [
    "PRIOR",
    "Deadline",
    "DeadlineReport",
    "Late",
    "duration_s",
    "filled_rows",
    "guess_by_size",
    "prior_of",
    "read_headers",
]

PRIOR = "prior"

# A recording so short that it has one window.
_MOMENT_S = 1e-3

# Reading headers may take this share of the time, and some even if there is none left: without them nobody
# knows how many rows the output has.
_HEADERS_SHARE = 0.05
_HEADERS_LEAST_S = 1.0
_HEADERS_WAKE_S = 0.05

# Times are sums of binary fractions: 12 windows of 0.1 s end at 1.2000000000000002 s.
_LEAST_OVERLAP_S = 1e-6


@final
class Deadline:
    """What a run is told of its deadline.

    Args:
        at_s: the clock's time at which the output must be there.
        allowed_s: seconds from the start to then.
        kind: of the inputs.
        prior: a row that was not computed.
        asked_s: where the rows end that a sample submission asks for, by stem of the recording.
        threads: for reading headers.
        clock: seconds, never going back; thread-safe.
    """

    def __init__(
        self,
        *,
        at_s: float,
        allowed_s: float,
        kind: Kind,
        prior: NDArray[np.float32],
        asked_s: Mapping[str, Sequence[float]],
        threads: int,
        clock: Callable[[], float],
    ) -> None:
        self.at_s = at_s
        self.allowed_s = allowed_s
        self.prior = prior
        self.asked_s = asked_s
        self.clock = clock
        self._kind = kind
        self._threads = threads

    def over_for_headers(self, *, share: float) -> Callable[[], bool]:
        """Return what tells whether the time to read headers is over; thread-safe.

        Args:
            share: of the time that is left.
        """
        until_s = self.clock() + max(_HEADERS_LEAST_S, share * (self.at_s - self.clock()))
        # An injected clock may stand still while a disk hangs.
        stop_s = time.monotonic() + max(_HEADERS_LEAST_S, self.allowed_s)
        return lambda: self.clock() >= until_s or time.monotonic() >= stop_s

    def lengths_of(
        self, tasks: Sequence[FileTask], *, known_s: Mapping[Path, float | None]
    ) -> dict[FileKey, float | None]:
        """Return how long recordings are by their headers; None for those that do not tell in time.

        Args:
            tasks: the files.
            known_s: of files whose headers were read before; those are not read again.
        """
        lengths_s = {task.key: known_s.get(task.path) for task in tasks}
        if self._kind != "audio":
            return lengths_s
        unread = [task for task in tasks if task.path not in known_s]
        found = read_headers(
            [task.path for task in unread],
            threads=self._threads,
            over=self.over_for_headers(share=_HEADERS_SHARE),
        )
        return lengths_s | {unread[place].key: length_s for place, length_s in found.items()}


def read_headers(paths: Sequence[Path], *, threads: int, over: Callable[[], bool]) -> dict[int, float | None]:
    """Return how long recordings are by their headers, by place in `paths`; None where none is told.

    Left out are those for which there was no time, and those that cannot be read for want of a library.

    Args:
        paths: of the recordings.
        threads: that read.
        over: whether the time is over; thread-safe.
    """
    lengths_s: dict[int, float | None] = {}
    # Not a pool: its threads are waited for at the end, and one may hang in a disk.
    source = enumerate(paths)
    turn = threading.Lock()
    left = threading.Semaphore(0)

    def read() -> None:
        try:
            while not over():
                with turn:
                    place, path = next(source, (-1, None))
                if path is None:
                    return
                # What is wrong, such as a missing library, is told when the file's turn comes.
                with contextlib.suppress(AlulaError):
                    lengths_s[place] = duration_s(path)
        finally:
            left.release()

    for number in range(threads):
        threading.Thread(target=read, name=f"alula-header-{number}", daemon=True).start()
    waiting = threads
    while waiting and not over():
        waiting -= left.acquire(timeout=_HEADERS_WAKE_S)
    return dict(lengths_s)


def duration_s(path: str | Path) -> float | None:
    """Return how long a recording is by its header; None where it does not tell, or cannot be read."""
    try:
        return open_audio(path).duration_s
    except (DataError, OSError):
        return None


def guess_by_size(lengths_s: Mapping[FileKey, float | None]) -> Callable[[FileTask], float]:
    """Return what guesses how long a recording is from its size, as others of the job tell."""
    known = [(key.size_bytes, length_s) for key, length_s in lengths_s.items() if length_s]
    per_byte = sum(length_s for _, length_s in known) / max(1, sum(size for size, _ in known))
    return lambda task: max(1e-3, per_byte * max(0, task.key.size_bytes))


class DeadlineReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a deadline did to a job.

    Attributes:
        allowed_s: seconds from the start of the command to the deadline.
        left_s: of them, left when the output was there; below 0 if the deadline was missed.
        rows: rows of the output by rung, the first one first; `prior` for those that were filled.
        prior: what these hold: the score, or where it differs by label, its least and its highest.
        steps: changes of rung, in order; `at_s` counts from the start of the command.
        unfinished: list of the rows that were not computed on the first rung; None where all were.
        guessed_files: files that were not opened and whose header does not tell their length, so that how
            many rows they have is a guess.
    """

    allowed_s: float
    left_s: float
    rows: dict[str, int]
    prior: tuple[float, ...]
    steps: tuple[StepTaken, ...]
    unfinished: str | None
    guessed_files: int

    @property
    def filled(self) -> int:
        """Rows that hold the prior."""
        return self.rows.get(PRIOR, 0)


@final
class Late:
    """What becomes of rows that there was no time for. Belongs to one thread.

    Args:
        scorer: what runs.
        ladder: the ways to compute a row, the first one first; it may still be declared.
        prior: a row that was not computed.
        durations_s: of recordings, by key of the file; None where it is a guess.
        guess_s: gives the guess for a file.
        listed: gets the rows that were not computed on the first rung.
        asked_s: where the rows of recordings end that the table must have, by stem.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        ladder: Sequence[Way],
        prior: NDArray[np.float32],
        durations_s: Mapping[FileKey, float | None],
        guess_s: Callable[[FileTask], float],
        listed: UnfinishedList,
        asked_s: Mapping[str, Sequence[float]],
    ) -> None:
        self.prior = prior
        self.guessed_files = 0
        self.rows: dict[str, int] = {}
        self._scorer = scorer
        self._ladder = ladder
        self._durations_s = durations_s
        self._guess_s = guess_s
        self._listed = listed
        self._asked_s = asked_s

    @property
    def names(self) -> list[str]:
        """Of the rungs."""
        return [way.name for way in self._ladder]

    def expected(self, task: FileTask) -> list[Key]:
        """Return where the rows of a file lie: as was asked for, as its header tells, or as its size hints.

        A sample submission refuses rows that it does not have, and who gives one knows better than a header.
        """
        if task.path.stem in self._asked_s:
            ((start_s, end_s),) = self._scorer.spans(_MOMENT_S) or [(None, None)]
            if start_s is not None and end_s is not None:
                return [
                    # A window that is longer than the rows that are asked for would begin before the file.
                    (max(0.0, asked_s - (end_s - start_s)), asked_s)
                    for asked_s in self._asked_s[task.path.stem]
                ]
        spans = self._scorer.spans(self._durations_s.get(task.key))
        if spans is None:
            self.guessed_files += 1
            spans = self._scorer.spans(self._guess_s(task))
        return spans or []

    def note(self, path: str, stretch: Stretch) -> None:
        """Take note of rows that were not computed on the first rung."""
        self._listed.add(path, stretch)
        self.rows[stretch.rung] = self.rows.get(stretch.rung, 0) + stretch.rows

    def count(self, rows: int) -> None:
        """Take note of rows that were computed on the first rung."""
        name = self._ladder[0].name
        self.rows[name] = self.rows.get(name, 0) + rows

    def rows_by_rung(self) -> dict[str, int]:
        """Return how many rows were written on which rung, the first one first, the prior last."""
        order = [*self.names, PRIOR]
        return {name: self.rows[name] for name in order if self.rows.get(name)}


def prior_of(
    given: float | Mapping[str, float] | None,
    *,
    labels: Sequence[str] | None,
    shape: tuple[int, ...] | None,
    declared: Sequence[float] | None = None,
) -> NDArray[np.float32]:
    """Return what a row holds that there was no time for.

    Args:
        given: one score for all, or one by label, those that are not named get 0; None is what is declared.
        labels: of the columns.
        shape: of a row of scores; None where it is not known.
        declared: by column, by the ensemble's manifest; None is 0.

    Raises:
        UsageError: there is no such label, or a score is no number.
    """
    if given is None and declared is not None:
        prior = np.array(declared, np.float32)
    elif isinstance(given, Mapping):
        if labels is None:
            raise UsageError(
                "A prior by label was given, and the bundle has no labels; expected one number. Make the "
                "bundle with `--labels`."
            )
        for label in given:
            if label not in labels:
                raise UsageError(f"The prior names `{label}`, which is no label.{closest(label, labels)}")
        prior = np.array([given.get(label, 0.0) for label in labels], np.float32)
    else:
        size = shape if labels is None else (len(labels),)
        if size is None:
            raise UsageError(
                "How many scores a row has cannot be told before it is computed, so a deadline cannot "
                "promise whole rows. Make the bundle with `--labels`."
            )
        prior = np.full(size, 0.0 if given is None else given, np.float32)
    if not np.isfinite(prior).all():
        raise UsageError("The prior holds what is no number; expected a finite score for every label.")
    return prior


def filled_rows(
    scorer: Scorer,
    expected: Sequence[Key],
    *,
    computed: tuple[list[Key], NDArray[Any], NDArray[np.int16]] | None,
    names: Sequence[str],
    prior: NDArray[np.float32],
) -> tuple[list[Key], NDArray[Any], list[Stretch]]:
    """Return all rows of a file as they are delivered, and what was not computed on the first rung.

    Rows that follow from computed ones are theirs, after the scorer's steps; all others hold the prior.

    Args:
        scorer: what runs.
        expected: where the rows of the file lie, as far as is known.
        computed: keys, scores (n, ...) and rungs (n,) of rows, n at least 1; None for none.
        names: of the rungs.
        prior: a row of scores as they are delivered.

    Returns:
        Keys, scores and stretches of rows.

    Raises:
        JobError: a computed row has another shape than the prior.
    """
    keys: list[Key] = []
    scores: NDArray[Any] = np.zeros((0, *prior.shape), np.float32)
    rungs = np.zeros(0, np.int16)
    spans: list[Key] = []
    if computed is not None:
        spans, given, rungs = computed
        keys, (scores,) = scorer.finished(spans, (given,))
        if scores.shape[1:] != prior.shape:
            raise JobError(
                f"{scorer.path.name} gave scores of shape {scores.shape[1:]} per row; expected "
                f"{prior.shape}, as its labels say."
            )
    together = sorted(set(expected) | set(spans), key=lambda key: (key[0] or 0.0, key[1] or 0.0))
    if together and scorer.needs_whole_files:
        # The steps say where the rows lie that come out; what they do with scores of 0 does not matter.
        together, _ = scorer.finished(together, (np.zeros((len(together), *prior.shape), np.float32),))
        together = sorted(set(together) | set(keys), key=lambda key: (key[0] or 0.0, key[1] or 0.0))
    done = complete(together, dict(zip(keys, scores, strict=True)), prior)
    missing = set(done.filled)
    below = _rungs_of(scorer, keys, spans, rungs)
    found = [names[below[key]] if key not in missing else PRIOR for key in together]
    return together, done.outputs, _stretches(together, found, first=names[0])


def _rungs_of(
    scorer: Scorer, keys: Sequence[Key], spans: Sequence[Key], rungs: NDArray[np.int16]
) -> dict[Key, int]:
    """Return the lowest rung of the computed rows that each delivered row follows from.

    Args:
        scorer: whose steps say which those are.
        keys: of the delivered rows.
        spans: of the computed rows, in order.
        rungs: of these, shape (n,).
    """
    if not spans:
        return {}
    lowest = rungs
    if isinstance(scorer, Ensemble):
        track = Track(*bounds_s(spans), np.zeros((len(spans), 1), np.float32))
        for step in scorer.manifest.steps:
            after = apply_steps([step], track)
            lowest = _lowest_after(step, lowest, track, after)
            track = after
    return dict(zip(keys, lowest.tolist(), strict=True))


def _lowest_after(step: Step, rungs: NDArray[np.int16], before: Track, after: Track) -> NDArray[np.int16]:
    """Return the lowest rung of the rows that a step makes each of its rows from."""
    match step:
        case Smoothing(kernel=kernel):
            padded = np.pad(rungs, len(kernel) // 2)
            around = np.lib.stride_tricks.sliding_window_view(padded, len(kernel))
            return np.asarray(around[:, np.flatnonzero(kernel)].max(axis=1))
        case OverlapMean():
            assert before.start_s is not None
            assert before.end_s is not None
            assert after.start_s is not None
            assert after.end_s is not None
            # Rows are in order of time and equally long, so those of a segment are neighbours.
            first = np.searchsorted(before.end_s, after.start_s + _LEAST_OVERLAP_S)
            last = np.searchsorted(before.start_s, after.end_s - _LEAST_OVERLAP_S)
            return np.array([rungs[a:b].max(initial=0) for a, b in zip(first, last, strict=True)], np.int16)
        case TopScaling() | CutOff():
            return np.full_like(rungs, rungs.max())
        case _:
            assert_never(step)


def _stretches(keys: Sequence[Key], rungs: Sequence[str], *, first: str) -> list[Stretch]:
    """Return neighbouring rows of one rung together, those on the first rung left out."""
    found: list[Stretch] = []
    before = first
    for (start_s, end_s), rung in zip(keys, rungs, strict=True):
        if rung == before and found and rung != first:
            last = found[-1]
            found[-1] = last._replace(end_s=end_s, rows=last.rows + 1)
        elif rung != first:
            found.append(Stretch(start_s, end_s, 1, rung))
        before = rung
    return found
