"""Who computes next: CPU tokens, batch slots and the order of tasks, behind one lock.

No user code runs here and no thread is started here; `alula.pipeline.jobs` does both. Every change of
state ends in `Schedule._dispatch`, the one place that decides, and it hands its decision to one
sleeping thread by name. So no thread can barge in, and none wakes in vain.

The rules, in order:

1. A model call that has a full batch gets its tokens first. While it waits for them no prepare step
   starts, and running ones stop after the row at hand; so features never starve the engine, and narrow
   steps never starve a call that needs the whole budget.
2. Otherwise prepare steps get the tokens, first come, first served; open tasks before new ones.
3. A prepare step needs room for its rows before it starts, so rows in flight are bounded.
4. A new task starts only while few tasks, and few bytes of their outputs, wait to be delivered.
5. A batch that no row can fill any more is computed as it is.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from alula.core import Settings
from alula.errors import AlulaError

__all__ = ["Batch", "ModelSeat", "OpenTask", "PrepareSeat", "RowSpec", "Schedule", "Span", "row_limit"]

Array: TypeAlias = npt.NDArray[Any]
RowSpec: TypeAlias = tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]

T = TypeVar("T")
K = TypeVar("K")

# A prepare step ends after this many rows, so that tokens go round; at 10 us a row its locks cost 1 %.
MAX_STEP_ROWS = 64
MIN_OPEN_TASKS = 64
# Outputs that wait for an earlier task; enough for 2,000 ten-minute files of 264 classes.
MAX_HELD_BYTES = 256 * 2**20


def row_limit(settings: Settings, cpu_budget: int) -> int:
    """Return the largest number of rows between prepare and the end of their model call.

    Each instance has a batch in work, one more is full, one more is being filled, and each prepare
    worker has a row at hand and one to come.

    >>> row_limit(Settings(threads=1, instances=2, batch_size=32), 2)
    132
    """
    return (settings.instances + 2) * settings.batch_size + 2 * cpu_budget


class OpenTask(Generic[T, K]):
    """A task between its admission and its delivery, with the outputs computed so far.

    Args:
        task: what the caller gave.
        index: its place in the order of tasks.
    """

    __slots__ = (
        "_lock",
        "_outputs",
        "_stored",
        "computed",
        "error",
        "held_bytes",
        "index",
        "keys",
        "prepared",
        "rows",
        "task",
    )

    def __init__(self, task: T, index: int) -> None:
        self.task = task
        self.index = index
        self.keys: list[K] = []
        self.rows = 0
        self.computed = 0
        self.prepared = False
        self.error: AlulaError | None = None
        self.held_bytes = 0
        self._outputs: list[Array] = []
        self._stored: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    @property
    def complete(self) -> bool:
        """Whether nothing is left to compute: it failed, or every row has its outputs."""
        return self.error is not None or (self.prepared and self.computed == self.rows)

    def store(self, outputs: Sequence[Array], *, slot: int, start: int, count: int) -> int:
        """Copy `count` rows of a batch's outputs to rows `start`... of this task; return the bytes grown.

        Two model threads may store at the same time.
        """
        if self.error is not None:
            return 0
        with self._lock:
            before = sum(array.nbytes for array in self._outputs)
            if not self._outputs:
                capacity = self._capacity(0, start + count)
                self._outputs = [np.empty((capacity, *out.shape[1:]), out.dtype) for out in outputs]
            elif len(self._outputs[0]) < start + count:
                self._grow(self._capacity(len(self._outputs[0]), start + count))
            for held, out in zip(self._outputs, outputs, strict=True):
                held[start : start + count] = out[slot : slot + count]
            self._stored.append((start, start + count))
            return sum(array.nbytes for array in self._outputs) - before

    def _capacity(self, have: int, need: int) -> int:
        return self.rows if self.prepared else max(need, have + have // 2)

    def _grow(self, capacity: int) -> None:
        for k, old in enumerate(self._outputs):
            grown = np.empty((capacity, *old.shape[1:]), old.dtype)
            grown[: len(old)] = old
            self._outputs[k] = grown

    def outputs(self) -> tuple[Array, ...]:
        """Return one array of shape (n, ...) per model output, n the rows of the task."""
        return tuple(array[: self.rows] for array in self._outputs)

    def computed_rows(self) -> tuple[list[K], tuple[Array, ...]]:
        """Return the keys and outputs of the rows that have any by now, in order; others may be under way."""
        with self._lock:
            spans = sorted(self._stored)
            keys = [key for first, last in spans for key in self.keys[first:last]]
            outputs = tuple(
                np.concatenate([array[first:last] for first, last in spans]) if spans else array[:0]
                for array in self._outputs
            )
        return keys, outputs


class Span(Generic[T, K]):
    """Consecutive rows of one task that lie in consecutive slots of one batch."""

    __slots__ = ("count", "opened", "slot", "start")

    def __init__(self, opened: OpenTask[T, K], *, start: int, slot: int, count: int) -> None:
        self.opened = opened
        self.start = start
        self.slot = slot
        self.count = count


class Batch(Generic[T, K]):
    """Model inputs of up to `batch_size` rows: one preallocated array (batch_size, ...) per input."""

    __slots__ = ("arrays", "closed", "filled", "size", "spans")

    def __init__(self, arrays: tuple[Array, ...]) -> None:
        self.arrays = arrays
        self.spans: list[Span[T, K]] = []
        self.size = 0
        self.filled = 0
        self.closed = False


class PrepareSeat(Generic[T, K]):
    """Where one prepare worker sleeps, and what it was given when it wakes."""

    __slots__ = ("condition", "has_lent", "opened", "places", "rows", "since_s")

    def __init__(self, lock: threading.Lock) -> None:
        self.condition = threading.Condition(lock)
        self.since_s: float | None = None  # when the step at hand began, by the job's clock
        self.has_lent = False
        self.opened: OpenTask[T, K] | None = None
        self.rows = 0
        self.places: list[tuple[Batch[T, K], Span[T, K]]] = []


class ModelSeat(Generic[T, K]):
    """Where one model thread sleeps, and the batch it was given when it wakes."""

    __slots__ = ("batch", "condition")

    def __init__(self, lock: threading.Lock) -> None:
        self.condition = threading.Condition(lock)
        self.batch: Batch[T, K] | None = None


class Schedule(Generic[T, K]):
    """The shared state of one job.

    Thread-safe. Tokens: a prepare step holds one, a model call `width`; together never more than
    `cpu_budget`. A call wider than the budget takes the whole budget.

    Args:
        settings: threads, instances and batch size of the model.
        cpu_budget: threads that may compute at the same time.
        ordered: whether tasks are delivered in their order, or each as soon as it is complete.
        spec: shapes and types that every row must have; None takes those of the first row.
        max_held_bytes: outputs that may wait for their delivery before no new task is started.
    """

    def __init__(
        self,
        settings: Settings,
        cpu_budget: int,
        *,
        ordered: bool = True,
        spec: RowSpec | None = None,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self.width = min(settings.threads, cpu_budget)
        self.model_seats = min(settings.instances, cpu_budget // self.width)
        self.prepare_seats = cpu_budget
        self.spec = spec
        self.stopped = False
        self.model_waits = False
        self.peak_rows = 0
        self.rows_computed = 0
        self.error: BaseException | None = None
        self._ordered = ordered
        self._batch_size = settings.batch_size
        self._max_held_bytes = max_held_bytes
        self._tokens = cpu_budget
        self._room = row_limit(settings, cpu_budget)
        # Twice the rows in flight, so that one-row tasks fill every batch while earlier ones are delivered.
        self._max_open = max(MIN_OPEN_TASKS, 2 * self._room)
        self._lock = threading.Lock()
        self._caller = threading.Condition(self._lock)
        self._spec_settled = threading.Condition(self._lock)
        self._open: deque[OpenTask[T, K]] = deque()
        self._queue: deque[OpenTask[T, K]] = deque()
        self._preparing: set[int] = set()
        self._seats: list[PrepareSeat[T, K]] = []
        self._admitted = 0
        self._exhausted = False
        self._held_bytes = 0
        self._rows = 0
        self._filling: Batch[T, K] | None = None
        self._ready: deque[Batch[T, K]] = deque()
        self._running = 0
        self._spare: list[tuple[Array, ...]] = []
        self._idle_models: deque[ModelSeat[T, K]] = deque()
        self._resuming: deque[PrepareSeat[T, K]] = deque()
        self._idle_workers: deque[PrepareSeat[T, K]] = deque()

    # What the caller's thread uses.

    @property
    def may_admit(self) -> bool:
        """Whether another task may be admitted now. Only the caller's thread changes the answer."""
        return not self._exhausted and len(self._open) < self._max_open

    @property
    def finished(self) -> bool:
        """Whether every task was delivered. Only the caller's thread changes the answer."""
        return self._exhausted and not self._open

    def admit(self, task: T) -> None:
        """Queue one more task."""
        with self._lock:
            opened: OpenTask[T, K] = OpenTask(task, self._admitted)
            self._admitted += 1
            self._open.append(opened)
            self._queue.append(opened)
            self._dispatch()

    def exhaust(self) -> None:
        """Say that no further task comes."""
        with self._lock:
            self._exhausted = True
            self._dispatch()

    def take(self) -> OpenTask[T, K] | None:
        """Return the next task to deliver and forget it, or None while none is complete.

        Raises:
            BaseException: what stopped the job, raised again.
        """
        with self._lock:
            if self.error is not None:
                raise self.error
            opened = self._next_complete()
            if opened is None:
                return None
            self._open.remove(opened)
            self._held_bytes -= opened.held_bytes
            self._dispatch()
            return opened

    def lend(self, before_s: float) -> int:
        """Let others have the tokens of prepare steps that began before a time; return how many.

        Such a step waits for a disk: it computes nothing. No batch waits for its rows any more, and others
        have their room; when they come after all, there are so many more than there should be.
        """
        count = 0
        with self._lock:
            for seat in self._seats:
                opened, since_s = seat.opened, seat.since_s
                if seat.has_lent or opened is None or since_s is None or since_s >= before_s:
                    continue
                seat.has_lent = True
                self._preparing.discard(opened.index)
                self._tokens += 1
                self._room += seat.rows
                seat.rows = 0
                count += 1
            if count:
                # Whoever waits for the shape of the first row may not have to wait for theirs any more.
                self._spec_settled.notify_all()
                self._dispatch()
        return count

    def leave(self) -> list[OpenTask[T, K]]:
        """Return the tasks that were not delivered, in order, and forget them."""
        with self._lock:
            left = list(self._open)
            self._open.clear()
            return left

    def wait(self, timeout_s: float | None) -> None:
        """Sleep until there is a task to deliver or the job has stopped."""
        with self._lock:
            self._caller.wait_for(lambda: self.stopped or self._next_complete() is not None, timeout_s)

    def stop(self, error: BaseException | None = None) -> None:
        """Wake every thread to leave; the first `error` is kept for `take` to raise."""
        with self._lock:
            if self.error is None:
                self.error = error
            self.stopped = True
            self._caller.notify_all()
            self._spec_settled.notify_all()
            for model in self._idle_models:
                model.condition.notify()
            for worker in (*self._resuming, *self._idle_workers):
                worker.condition.notify()

    # What prepare workers use.

    def prepare_seat(self) -> PrepareSeat[T, K]:
        """Return a seat for one prepare worker."""
        seat: PrepareSeat[T, K] = PrepareSeat(self._lock)
        with self._lock:
            self._seats.append(seat)
        return seat

    def start(self, seat: PrepareSeat[T, K]) -> OpenTask[T, K] | None:
        """Wait for a task, a token and room for `seat.rows` rows; None when the job has stopped."""
        with self._lock:
            self._idle_workers.append(seat)
            self._dispatch()
            while not seat.rows and not self.stopped:
                seat.condition.wait()
            return seat.opened if seat.rows else None

    def expect(self, seat: PrepareSeat[T, K], first: RowSpec) -> RowSpec | None:
        """Return the shapes and types that every row must have; None when the job has stopped.

        They are those of the first row of the first task that has one, whichever thread is faster, so
        that the same tasks fail in every run.
        """
        assert seat.opened is not None
        index = seat.opened.index
        with self._lock:
            self._spec_settled.wait_for(
                # Whoever waited for a disk is not among them.
                lambda: self.stopped or self.spec is not None or min(self._preparing, default=index) == index
            )
            if self.stopped:
                return None
            if self.spec is None:
                self.spec = first
                self._spec_settled.notify_all()
            return self.spec

    def reserve(self, seat: PrepareSeat[T, K], count: int) -> list[tuple[Batch[T, K], Span[T, K]]]:
        """Return the slots for the next `count` rows of the task; the room of missing rows is given back."""
        assert seat.opened is not None
        opened = seat.opened
        with self._lock:
            if seat.has_lent:  # it is awake again, and no batch may be closed before its rows are written
                self._preparing.add(opened.index)
            self._room += seat.rows - count
            seat.rows = 0
            self._rows += count
            self.peak_rows = max(self.peak_rows, self._rows)
            seat.places = []
            while count:
                batch = self._filling or self._new_batch()
                span = Span(
                    opened,
                    start=opened.rows,
                    slot=batch.size,
                    count=min(count, self._batch_size - batch.size),
                )
                batch.spans.append(span)
                seat.places.append((batch, span))
                batch.size += span.count
                opened.rows += span.count
                count -= span.count
                batch.closed = batch.size == self._batch_size
                self._filling = None if batch.closed else batch
            return seat.places

    def _new_batch(self) -> Batch[T, K]:
        if self._spare:
            return Batch(self._spare.pop())
        assert self.spec is not None
        return Batch(tuple(np.empty((self._batch_size, *shape), dtype) for shape, dtype in self.spec))

    def resume(self, seat: PrepareSeat[T, K]) -> bool:
        """End a step and wait for the next one; False when the job has stopped."""
        with self._lock:
            self._end_step(seat)
            self._resuming.append(seat)
            self._dispatch()
            while not seat.rows and not self.stopped:
                seat.condition.wait()
            return seat.rows > 0

    def close(self, seat: PrepareSeat[T, K], error: AlulaError | None) -> None:
        """End the last step of a task: all its rows are prepared, or it has failed."""
        assert seat.opened is not None
        opened = seat.opened
        with self._lock:
            self._end_step(seat)
            seat.opened = None
            opened.error = error
            opened.prepared = True
            self._preparing.discard(opened.index)
            self._spec_settled.notify_all()
            self._dispatch()
            self._notify_caller(opened)

    def _end_step(self, seat: PrepareSeat[T, K]) -> None:
        for batch, span in seat.places:
            batch.filled += span.count
            if batch.closed and batch.filled == batch.size:
                self._ready.append(batch)
        seat.places = []
        self._room += seat.rows
        seat.rows = 0
        if seat.has_lent:
            seat.has_lent = False
            if seat.opened is not None:
                self._preparing.add(seat.opened.index)
        else:
            self._tokens += 1

    # What model threads use.

    def model_seat(self) -> ModelSeat[T, K]:
        """Return a seat for one model thread."""
        return ModelSeat(self._lock)

    def next_batch(self, seat: ModelSeat[T, K], grown_bytes: Sequence[int] = ()) -> Batch[T, K] | None:
        """End the model call before, if any, and wait for a batch and its tokens; None to leave.

        Both at once, or the tokens of the call before would go to prepare steps although a batch waits.

        Args:
            seat: of the calling thread.
            grown_bytes: of the call before: what each of its spans added to its task's outputs.
        """
        with self._lock:
            if seat.batch is not None:
                self._end_call(seat.batch, grown_bytes)
                seat.batch = None
            self._idle_models.append(seat)
            self._dispatch()
            while seat.batch is None and not self.stopped:
                seat.condition.wait()
            return seat.batch

    def _end_call(self, batch: Batch[T, K], grown_bytes: Sequence[int]) -> None:
        self._tokens += self.width
        self._running -= 1
        self._room += batch.size
        self._rows -= batch.size
        self.rows_computed += batch.size
        self._spare.append(batch.arrays)
        for span, grown in zip(batch.spans, grown_bytes, strict=True):
            span.opened.computed += span.count
            # A task that failed may have been delivered by now, and what it held taken off again.
            if span.opened.error is None:
                span.opened.held_bytes += grown
                self._held_bytes += grown
            self._notify_caller(span.opened)

    # Decisions. The lock is held.

    def _next_complete(self) -> OpenTask[T, K] | None:
        if self._ordered:
            return self._open[0] if self._open and self._open[0].complete else None
        return next((opened for opened in self._open if opened.complete), None)

    def _notify_caller(self, opened: OpenTask[T, K]) -> None:
        if opened.complete and (not self._ordered or (self._open and opened is self._open[0])):
            self._caller.notify()

    def _dispatch(self) -> None:
        if self.stopped:
            return
        self._close_last_batch()
        while self._ready and self._idle_models and self._tokens >= self.width:
            self._tokens -= self.width
            self._running += 1
            model = self._idle_models.popleft()
            model.batch = self._ready.popleft()
            model.condition.notify()
        self.model_waits = bool(self._ready and self._idle_models)
        while not self.model_waits and self._tokens > 0 and self._room > 0:
            if self._resuming:
                seat = self._resuming.popleft()
            elif self._idle_workers and self._may_start():
                seat = self._idle_workers.popleft()
                seat.opened = self._queue.popleft()
                self._preparing.add(seat.opened.index)
            else:
                break
            self._tokens -= 1
            seat.rows = max(1, min(MAX_STEP_ROWS, self._room // self.prepare_seats))
            self._room -= seat.rows
            seat.condition.notify()

    def _may_start(self) -> bool:
        if not self._queue:
            return False
        first = self._open[0]
        # The first task is never held back, or everything that waits for it would wait for ever.
        return self._queue[0] is first or self._held_bytes - first.held_bytes <= self._max_held_bytes

    def _close_last_batch(self) -> None:
        if self._filling is None or self._preparing or self._may_start():
            return
        if not self._queue and self._exhausted:
            last = True
        elif not self._queue and len(self._open) < self._max_open:
            last = False  # the caller brings more
        else:
            # New rows come only after a task is delivered; the next one may lack just the rows in here.
            last = not self._ready and not self._running and self._next_complete() is None
        if last:
            batch, self._filling = self._filling, None
            batch.closed = True
            self._ready.append(batch)
