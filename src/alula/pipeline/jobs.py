"""Runs of many tasks through prepare, batches and a model: memory bounded, results in order or as they come.

`iter_job` yields results as they come; `run_job` hands them to callables and returns a summary.
Threads: as many prepare workers as the CPU budget, and one model thread per instance; which of them
computes is decided by `alula.pipeline.schedule`. The caller's thread reads the tasks and delivers the
results, so `emit`, `fail` and `progress` need no locks.
"""

from __future__ import annotations

import atexit
import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec
import numpy.typing as npt

from alula.core import Settings
from alula.errors import AlulaError, DataError, EngineError, JobError, UsageError
from alula.pipeline.pacing import Pace
from alula.pipeline.schedule import OpenTask, PrepareSeat, RowSpec, Schedule

__all__ = ["JobSummary", "Progress", "TaskResult", "iter_job", "run_job"]

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = tuple[Array, ...]

T = TypeVar("T")
K = TypeVar("K")
Prepare: TypeAlias = Callable[[T], Iterator[tuple[K, Arrays]]]

PROGRESS_INTERVAL_S = 0.1
# How often a waiting caller looks up to report progress inside a long task.
PROGRESS_WAKE_S = 0.2
# A prepare step of this length waits for a disk. In a job with a deadline others get its token then, and
# another thread its place; so many times at most.
STALL_S = 5.0
MAX_STALLED = 16
# What a model call that is under way when the time is over may still take to be counted. It leaves by itself
# after the batch at hand; a thread that is stuck in a read is not waited for.
LAST_CALL_S = 0.5
# A prepare step gives its token back after this time, so that slow rows reach their batch early.
MAX_STEP_S = 0.01


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a job is.

    Attributes:
        tasks_done: tasks whose result was delivered.
        tasks_failed: tasks whose failure was delivered.
        total_tasks: tasks in all, where the caller knows it.
        samples: rows computed so far, those of unfinished tasks included.
        elapsed_s: seconds since the start.
        eta_s: seconds left at the rate so far, or by the forecast of a job with a deadline; None while it
            cannot be told.
        rung: what rows are computed on now, where a job with a deadline has several ways.
    """

    tasks_done: int
    tasks_failed: int
    total_tasks: int | None
    samples: int
    elapsed_s: float
    eta_s: float | None
    rung: str | None = None


class JobSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a job did.

    Attributes:
        tasks_done: tasks whose result was delivered.
        tasks_failed: tasks whose failure was delivered.
        samples: rows delivered.
        wall_s: seconds from start to end.
        prepare_cpu_s: CPU seconds of the prepare workers, summed over threads.
        model_s: seconds spent inside `infer`, summed over calls.
        samples_per_s: `samples / wall_s`.
        peak_rows: largest number of rows that were in batches at the same time, full, filling or in work.
        stopped: whether the time was over before everything was done.
    """

    tasks_done: int
    tasks_failed: int
    samples: int
    wall_s: float
    prepare_cpu_s: float
    model_s: float
    samples_per_s: float
    peak_rows: int
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class TaskResult(Generic[T, K]):
    """What came of one task.

    Attributes:
        task: the task.
        keys: the key of each of its n rows, in order; empty if it failed.
        outputs: one array per model output, shape (n, ...); empty if it failed.
        error: why it failed, or None.
        partial: whether the time was over before all of its rows were computed; the others are left out.
    """

    task: T
    keys: list[K]
    outputs: Arrays
    error: AlulaError | None = None
    partial: bool = False


def run_job(
    tasks: Iterable[T],
    *,
    prepare: Prepare[T, K],
    infer: Callable[[Arrays], Arrays | None],
    emit: Callable[[T, list[K], Arrays], None],
    fail: Callable[[T, AlulaError], None],
    settings: Settings,
    cpu_budget: int,
    progress: Callable[[Progress], None] | None = None,
    total_tasks: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    max_failures: int | float | None = None,
    ordered: bool = True,
    row_spec: RowSpec | None = None,
    pace: Pace | None = None,
    leave: Callable[[T, list[K], Arrays], None] | None = None,
) -> JobSummary:
    """Run every task, deliver each result, and return what was done.

    A task fails alone when its `prepare` raises an `AlulaError`, `OSError` or `MemoryError`, when it has
    no rows, or when a row differs in shape or type from the first row of the job: `fail` is called in
    its place, and none of its rows is emitted. Any other exception, and every exception from `infer`,
    `emit`, `fail` or `progress`, stops the job.

    Args:
        tasks: what to run; read lazily, in the caller's thread, a bounded number ahead.
        prepare: yields a task's rows in order: a key and one array per model input, without batch axis.
            Called in several threads at once, one per task. It should yield often: a token is held
            while it computes a row, and a model call may be waiting for it.
        infer: batch in, arrays of shape (b, ...), batch out, likewise. Called in `instances` threads at
            once. It must not keep its inputs: they are filled again after it returns. With `pace` it may
            return None for a batch of which it has computed nothing when the time was over.
        emit: takes the task, its keys and its outputs, each of shape (n, ...). Never called
            concurrently, nor is `fail`.
        fail: takes a task that failed and the reason.
        settings: threads per model call, calls at once, rows per batch.
        cpu_budget: threads that may compute at once, model calls and prepare steps together. A model
            call counts as `settings.threads` of them, or as the whole budget if that is less.
        progress: called at most every 0.1 s and once at the end.
        total_tasks: how many tasks there are, for the remaining time and a rate in `max_failures`.
        clock: seconds, never going back; thread-safe.
        max_failures: how many tasks may fail: a count, or a rate between 0 and 1; None for no limit. A
            rate of an unknown number of tasks is judged at the end.
        ordered: whether results are delivered in the order of the tasks; otherwise each comes as soon as it
            is complete, and a long task holds none back.
        row_spec: shape and type of each array of a row, where the caller knows them; None takes those of the
            first row of the first task that has one.
        pace: says when the time is over. Then tasks that were begun are given to `leave` with the rows that
            they have, others are left, and threads that are at work are not waited for: a stalled disk must
            not cost the deadline. They end after the row or the batch at hand.
        leave: takes a task that was begun, the keys of its rows that were computed, at least one, and their
            outputs. As `emit`.

    Raises:
        UsageError: for a budget below 1 or a failure limit out of range.
        JobError: when more tasks failed than allowed.
        BaseException: whatever stopped the job, once all its threads have ended.

    Example:
        >>> import numpy as np
        >>> summary = run_job(
        ...     ["ab", "c"],
        ...     prepare=lambda task: iter([(letter, (np.float32(ord(letter)),)) for letter in task]),
        ...     infer=lambda batch: (batch[0] - 96,),
        ...     emit=lambda task, keys, outputs: print(task, keys, outputs[0].tolist()),
        ...     fail=lambda task, error: print(error),
        ...     settings=Settings(batch_size=2),
        ...     cpu_budget=1,
        ... )
        ab ['a', 'b'] [1.0, 2.0]
        c ['c'] [3.0]
        >>> summary.samples
        3
    """
    run = _Run(
        tasks,
        prepare=prepare,
        infer=infer,
        settings=settings,
        cpu_budget=cpu_budget,
        progress=progress,
        total_tasks=total_tasks,
        clock=clock,
        max_failures=max_failures,
        ordered=ordered,
        row_spec=row_spec,
        pace=pace,
    )
    with closing(run.results()) as results:
        for result in results:
            if result.partial:
                if leave is not None:
                    leave(result.task, result.keys, result.outputs)
            elif result.error is None:
                emit(result.task, result.keys, result.outputs)
            else:
                fail(result.task, result.error)
    return run.summary()


def iter_job(
    tasks: Iterable[T],
    *,
    prepare: Prepare[T, K],
    infer: Callable[[Arrays], Arrays | None],
    settings: Settings,
    cpu_budget: int,
    progress: Callable[[Progress], None] | None = None,
    total_tasks: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    max_failures: int | float | None = None,
    ordered: bool = True,
    row_spec: RowSpec | None = None,
    pace: Pace | None = None,
) -> Generator[TaskResult[T, K]]:
    """Yield the result of each task as they come; arguments and rules of `run_job`.

    Threads start with the first result asked for. Closing the generator, or dropping it, stops and
    joins them. While the caller works on a result the job goes on, a bounded number of tasks ahead.

    Raises:
        UsageError: for a budget below 1 or a failure limit out of range.
    """
    return _Run(
        tasks,
        prepare=prepare,
        infer=infer,
        settings=settings,
        cpu_budget=cpu_budget,
        progress=progress,
        total_tasks=total_tasks,
        clock=clock,
        max_failures=max_failures,
        ordered=ordered,
        row_spec=row_spec,
        pace=pace,
    ).results()


class _Step(Generic[K]):
    """What one prepare step gave: rows, and whether they were the last."""

    __slots__ = ("ended", "keys", "rows")

    def __init__(self) -> None:
        self.keys: list[K] = []
        self.rows: list[Arrays] = []
        self.ended = False


class _Run(Generic[T, K]):
    def __init__(
        self,
        tasks: Iterable[T],
        *,
        prepare: Prepare[T, K],
        infer: Callable[[Arrays], Arrays | None],
        settings: Settings,
        cpu_budget: int,
        progress: Callable[[Progress], None] | None,
        total_tasks: int | None,
        clock: Callable[[], float],
        max_failures: int | float | None,
        ordered: bool,
        row_spec: RowSpec | None,
        pace: Pace | None,
    ) -> None:
        if cpu_budget < 1:
            raise UsageError(f"`cpu_budget` got {cpu_budget}; expected at least 1 thread.")
        if max_failures is not None and (
            max_failures < 0 or (isinstance(max_failures, float) and not 0 < max_failures < 1)
        ):
            raise UsageError(
                f"`max_failures` got {max_failures}; expected a count from 0 or a rate between 0 and 1."
            )
        self._tasks = tasks
        self._prepare = prepare
        self._infer = infer
        self._progress = progress
        self._total_tasks = total_tasks
        self._clock = clock
        self._pace = pace
        self._stopped = False
        self._stalled = 0
        self._max_failures = max_failures
        self._schedule: Schedule[T, K] = Schedule(settings, cpu_budget, ordered=ordered, spec=row_spec)
        self._threads: list[threading.Thread] = []
        self._tally = threading.Lock()
        self._prepare_cpu_s = 0.0
        self._model_s = 0.0
        self._done = 0
        self._failed = 0
        self._samples = 0
        self._started_s = 0.0
        self._wall_s = 0.0
        self._reported_s = -math.inf
        self._output_spec: RowSpec | None = None

    def results(self) -> Generator[TaskResult[T, K]]:
        schedule = self._schedule
        self._started_s = self._clock()
        # A generator that is still suspended when Python ends must not leave threads in native code.
        atexit.register(self._halt)
        try:
            self._launch()
            source = iter(self._tasks)
            wake_s = None if self._progress is None and self._pace is None else PROGRESS_WAKE_S
            while not schedule.finished:
                if self._pace is not None:
                    if self._pace.over():
                        yield from self._leave()
                        break
                    self._replace_stalled()
                opened = schedule.take()
                if opened is not None:
                    yield self._deliver(opened)
                    self._check_failures(opened)
                    del opened  # its outputs may go while this thread waits for the next ones
                if schedule.may_admit:
                    self._admit_one(source)
                elif not schedule.finished:
                    schedule.wait(wake_s)
                self._report(final=schedule.finished)
        finally:
            if self._stopped:
                self._schedule.stop()
            else:
                self._halt()
            atexit.unregister(self._halt)
            self._wall_s = self._clock() - self._started_s
        self._check_failure_rate()

    def summary(self) -> JobSummary:
        return JobSummary(
            tasks_done=self._done,
            tasks_failed=self._failed,
            samples=self._samples,
            wall_s=self._wall_s,
            prepare_cpu_s=self._prepare_cpu_s,
            model_s=self._model_s,
            samples_per_s=self._samples / self._wall_s if self._wall_s > 0 else 0.0,
            peak_rows=self._schedule.peak_rows,
            stopped=self._stopped,
        )

    # The caller's thread.

    def _launch(self) -> None:
        for k in range(self._schedule.prepare_seats):
            self._start_thread(self._prepare_tasks, f"alula-prepare-{k}")
        for k in range(self._schedule.model_seats):
            self._start_thread(self._compute_batches, f"alula-model-{k}")

    def _start_thread(self, body: Callable[[], None], name: str) -> None:
        def carry() -> None:
            try:
                body()
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                self._schedule.stop(error)

        # Daemons, because Python waits for other threads before it runs the exit hook that stops them.
        thread = threading.Thread(target=carry, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _halt(self) -> None:
        self._schedule.stop()
        for thread in self._threads:
            thread.join()

    def _admit_one(self, source: Iterator[T]) -> None:
        for task in source:
            self._schedule.admit(task)
            return
        self._schedule.exhaust()

    def _replace_stalled(self) -> None:
        if self._stalled < MAX_STALLED:
            for _ in range(self._schedule.lend(self._clock() - STALL_S)):
                self._stalled += 1
                self._start_thread(self._prepare_tasks, f"alula-prepare-more-{self._stalled}")

    def _leave(self) -> Iterator[TaskResult[T, K]]:
        """End with the time: yield what there is of tasks that were begun."""
        schedule = self._schedule
        if schedule.error is not None:
            raise schedule.error
        self._stopped = True
        schedule.stop()
        until_s = time.monotonic() + LAST_CALL_S
        first = schedule.prepare_seats
        for thread in self._threads[first : first + schedule.model_seats]:
            thread.join(max(0.0, until_s - time.monotonic()))
        for opened in schedule.leave():
            if opened.complete:
                yield self._deliver(opened)
                continue
            keys, outputs = opened.computed_rows()
            if keys:
                self._samples += len(keys)
                yield TaskResult(opened.task, keys, outputs, partial=True)
        self._report(final=True)

    def _deliver(self, opened: OpenTask[T, K]) -> TaskResult[T, K]:
        if opened.error is not None:
            self._failed += 1
            return TaskResult(opened.task, [], (), opened.error)
        self._done += 1
        self._samples += opened.rows
        return TaskResult(opened.task, opened.keys, opened.outputs())

    def _check_failures(self, opened: OpenTask[T, K]) -> None:
        if opened.error is None or self._max_failures is None:
            return
        allowed: float = self._max_failures
        if isinstance(self._max_failures, float):
            allowed = math.inf if self._total_tasks is None else self._max_failures * self._total_tasks
        if self._failed > allowed:
            raise JobError(
                f"{self._failed} of the first {self._done + self._failed} inputs failed; "
                f"at most {math.floor(allowed)} may. The last one: {opened.error}"
            ) from opened.error

    def _check_failure_rate(self) -> None:
        seen = self._done + self._failed
        if isinstance(self._max_failures, float) and self._failed > self._max_failures * seen:
            raise JobError(
                f"{self._failed} of {seen} inputs failed; at most {self._max_failures:.1%} of them may."
            )

    def _report(self, *, final: bool) -> None:
        if self._progress is None:
            return
        now_s = self._clock()
        if not final and now_s - self._reported_s < PROGRESS_INTERVAL_S:
            return
        self._reported_s = now_s
        elapsed_s = now_s - self._started_s
        seen = self._done + self._failed
        eta_s = None
        if self._pace is not None:
            eta_s = self._pace.eta_s()
        elif self._total_tasks is not None and seen:
            eta_s = elapsed_s / seen * max(0, self._total_tasks - seen)
        self._progress(
            Progress(
                tasks_done=self._done,
                tasks_failed=self._failed,
                total_tasks=self._total_tasks,
                samples=self._schedule.rows_computed,
                elapsed_s=elapsed_s,
                eta_s=eta_s,
                rung=None if self._pace is None else self._pace.rung(),
            )
        )

    # Prepare workers.

    def _prepare_tasks(self) -> None:
        schedule = self._schedule
        seat = schedule.prepare_seat()
        try:
            while (opened := schedule.start(seat)) is not None:
                try:
                    error = self._prepare_task(opened, seat)
                except BaseException as fault:
                    fault.add_note(f"while preparing {opened.task}")
                    raise
                if schedule.stopped:
                    return
                schedule.close(seat, error)
        finally:
            with self._tally:
                self._prepare_cpu_s += time.thread_time()

    def _prepare_task(self, opened: OpenTask[T, K], seat: PrepareSeat[T, K]) -> AlulaError | None:
        rows: Iterator[tuple[K, Arrays]] | None = None
        try:
            while True:
                step: _Step[K] = _Step()
                seat.since_s = self._clock()
                try:
                    if rows is None:
                        rows = iter(self._prepare(opened.task))
                    self._advance(rows, step, seat.rows)
                except AlulaError as error:
                    return self._given_up(step, error)
                except (OSError, MemoryError) as error:
                    return self._given_up(step, _data_error(opened.task, error))
                finally:
                    seat.since_s = None
                if step.rows and (unfit := self._place(opened, step, seat)) is not None:
                    return self._given_up(step, unfit)
                if step.ended and not opened.rows and not self._schedule.stopped:
                    return DataError(str(opened.task), "holds no samples. Remove it or record it again.")
                if step.ended or not self._schedule.resume(seat):
                    return None
        finally:
            if isinstance(rows, Generator):
                rows.close()

    def _given_up(self, step: _Step[K], error: AlulaError) -> AlulaError:
        """Return why a task has failed; the rows of its last step reach no batch."""
        if self._pace is not None and step.rows:
            self._pace.skipped(len(step.rows))
        return error

    def _advance(self, rows: Iterator[tuple[K, Arrays]], step: _Step[K], max_rows: int) -> None:
        schedule = self._schedule
        until_s = time.perf_counter() + MAX_STEP_S
        for key, arrays in rows:
            step.keys.append(key)
            step.rows.append(arrays)
            if (
                len(step.rows) == max_rows
                or schedule.model_waits
                or schedule.stopped
                or schedule.spec is None  # other workers wait for the first row
                or time.perf_counter() > until_s
            ):
                return
        step.ended = True

    def _place(self, opened: OpenTask[T, K], step: _Step[K], seat: PrepareSeat[T, K]) -> AlulaError | None:
        schedule = self._schedule
        expected = schedule.spec or schedule.expect(seat, _spec(step.rows[0]))
        if expected is None:
            return None
        for k, row in enumerate(step.rows):
            if (got := _spec(row)) != expected:
                return DataError(
                    str(opened.task),
                    f"row {opened.rows + k} got {_words(got)}; expected {_words(expected)}, as in the first "
                    "row of the job. Give inputs that the description turns into one shape.",
                )
        opened.keys.extend(step.keys)
        source = iter(step.rows)
        for batch, span in schedule.reserve(seat, len(step.rows)):
            for slot in range(span.slot, span.slot + span.count):
                for held, array in zip(batch.arrays, next(source), strict=True):
                    held[slot] = array
        return None

    # Model threads.

    def _compute_batches(self) -> None:
        schedule = self._schedule
        seat = schedule.model_seat()
        grown_bytes: list[int] = []
        while (batch := schedule.next_batch(seat, grown_bytes)) is not None:
            start_s = self._clock()
            outputs = self._infer(tuple(array[: batch.size] for array in batch.arrays))
            if outputs is None:
                return
            busy_s = self._clock() - start_s
            self._check_outputs(outputs, batch.size)
            grown_bytes = [
                span.opened.store(outputs, slot=span.slot, start=span.start, count=span.count)
                for span in batch.spans
            ]
            with self._tally:
                self._model_s += busy_s

    def _check_outputs(self, outputs: Arrays, size: int) -> None:
        for k, output in enumerate(outputs):
            if output.ndim == 0 or len(output) != size:
                raise EngineError(
                    f"Output {k} of the model got shape {output.shape} for a batch of {size}; "
                    "expected the batch axis first. Export the model with a dynamic batch axis."
                )
        spec = tuple((output.shape[1:], output.dtype) for output in outputs)
        with self._tally:
            if self._output_spec is None:
                self._output_spec = spec
        if spec != self._output_spec:
            raise EngineError(
                f"The model gave {_words(spec)} after {_words(self._output_spec)}; expected outputs of one "
                "shape and type per sample. Give the model a fixed output."
            )


def _spec(row: Arrays) -> RowSpec:
    return tuple((array.shape, array.dtype) for array in row)


def _words(spec: RowSpec) -> str:
    return " and ".join(f"{dtype} of shape {shape}" for shape, dtype in spec) or "no arrays"


def _data_error(task: object, error: OSError | MemoryError) -> DataError:
    if isinstance(error, OSError):
        reason = f"could not be read: {error.strerror or error}. Check that it exists and is readable."
    else:
        reason = "needs more memory than is free. Cut it into shorter pieces or free some memory."
    wrapped = DataError(str(task), reason)
    wrapped.__cause__ = error
    return wrapped
