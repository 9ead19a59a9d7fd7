"""`run_job` and `iter_job`: every row once, in order, inside the budget, whatever goes wrong."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import itertools
import math
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from alula.core import Settings
from alula.errors import AlulaError, DataError, EngineError, JobError, UsageError
from alula.pipeline import JobSummary, Progress, TaskResult, iter_job, jobs, row_limit, run_job

RENDEZVOUS_S = 30


@pytest.fixture(autouse=True)
def _no_hang_and_no_thread_left() -> Iterator[None]:
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    assert threads_left() == []


@pytest.fixture
def _often_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def threads_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("alula-")]


@dataclass(frozen=True)
class Task:
    index: int
    rows: int
    fault: str | None = None
    fault_at: int = 0

    def __str__(self) -> str:
        return f"task-{self.index}"

    @property
    def fails(self) -> bool:
        return self.fault is not None or self.rows == 0


class Gauge:
    """Counts what is held at the same time."""

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0
        self._lock = threading.Lock()

    def add(self, amount: int) -> None:
        with self._lock:
            self.now += amount
            self.peak = max(self.peak, self.now)

    @contextlib.contextmanager
    def holding(self, amount: int) -> Iterator[None]:
        self.add(amount)
        try:
            yield
        finally:
            self.add(-amount)


class Bench:
    """Instrumented prepare and infer, and a record of what was delivered."""

    def __init__(self, settings: Settings, cpu_budget: int) -> None:
        self.settings = settings
        self.cpu_budget = cpu_budget
        self.tokens = Gauge()
        self.rows = Gauge()
        self.batches: list[int] = []
        self.delivered: list[tuple[int, bool]] = []
        self.outputs: dict[int, tuple[list[tuple[int, int]], tuple[np.ndarray, ...]]] = {}
        self.errors: dict[int, AlulaError] = {}

    def prepare(self, task: Task) -> Iterator[tuple[tuple[int, int], tuple[np.ndarray, ...]]]:
        for k in range(task.rows + 1):
            with self.tokens.holding(1):
                if task.fault is not None and k == min(task.fault_at, task.rows):
                    match task.fault:
                        case "alula":
                            raise DataError(str(task), "is broken.")
                        case "os":
                            raise OSError(errno.EIO, "Input/output error")
                        case "memory":
                            raise MemoryError
                        case "shape":
                            yield (task.index, k), (np.zeros(3, np.float32), np.array(0))
                        case "dtype":
                            yield (task.index, k), (np.zeros(2, np.float64), np.array(0))
                if k == task.rows:
                    return
                row = np.array([task.index, k], np.float32), np.array(1000 * task.index + k)
            self.rows.add(1)
            yield (task.index, k), row

    def infer(self, batch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        with self.tokens.holding(min(self.settings.threads, self.cpu_budget)):
            assert all(len(array) == len(batch[0]) for array in batch)
            self.batches.append(len(batch[0]))
            outputs = batch[0] * 2, batch[1].reshape(-1, 1, 1) + np.zeros((1, 2, 1), np.int64)
        self.rows.add(-len(batch[0]))
        return outputs

    def emit(self, task: Task, keys: list[tuple[int, int]], outputs: tuple[np.ndarray, ...]) -> None:
        self.delivered.append((task.index, True))
        self.outputs[task.index] = keys, outputs

    def fail(self, task: Task, error: AlulaError) -> None:
        self.delivered.append((task.index, False))
        self.errors[task.index] = error

    def run(self, tasks: list[Task], **options: object) -> JobSummary:
        return run_job(
            iter(tasks),
            prepare=self.prepare,
            infer=options.pop("infer", self.infer),
            emit=options.pop("emit", self.emit),
            fail=options.pop("fail", self.fail),
            settings=self.settings,
            cpu_budget=self.cpu_budget,
            **options,
        )

    def check(self, tasks: list[Task], summary: JobSummary, *, ordered: bool = True) -> None:
        delivered = self.delivered if ordered else sorted(self.delivered)
        assert delivered == [(task.index, not task.fails) for task in tasks]
        for task in tasks:
            if task.fails:
                continue
            keys, (doubled, numbered) = self.outputs[task.index]
            assert keys == [(task.index, k) for k in range(task.rows)]
            np.testing.assert_array_equal(doubled, [(2 * task.index, 2 * k) for k in range(task.rows)])
            numbers = 1000 * task.index + np.arange(task.rows)
            np.testing.assert_array_equal(numbered, np.tile(numbers.reshape(-1, 1, 1), (1, 2, 1)))
            assert doubled.dtype == np.float32
        assert summary.tasks_done == sum(not task.fails for task in tasks)
        assert summary.tasks_failed == sum(task.fails for task in tasks)
        assert summary.samples == sum(task.rows for task in tasks if not task.fails)
        assert self.tokens.peak <= self.cpu_budget
        assert max(self.batches, default=0) <= self.settings.batch_size
        assert summary.peak_rows <= row_limit(self.settings, self.cpu_budget)


def simple(lengths: list[int]) -> list[Task]:
    return [Task(index, rows) for index, rows in enumerate(lengths)]


FAULTS = st.sampled_from([None, None, None, "alula", "os", "memory", "shape", "dtype"])


@st.composite
def task_lists(draw: st.DrawFn) -> list[Task]:
    drawn = draw(st.lists(st.tuples(st.integers(0, 40), FAULTS, st.integers(0, 40)), max_size=30))
    # The first task is sound: it says what shape is right.
    return [Task(0, 1)] + [
        Task(index, rows, fault, min(at, rows)) for index, (rows, fault, at) in enumerate(drawn, 1)
    ]


@pytest.mark.usefixtures("_often_switching")
@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tasks=task_lists(),
    threads=st.integers(1, 5),
    instances=st.integers(1, 4),
    batch_size=st.integers(1, 16),
    cpu_budget=st.integers(1, 6),
    ordered=st.booleans(),
)
def test_every_row_once_in_order_inside_the_budget(
    tasks: list[Task], threads: int, instances: int, batch_size: int, cpu_budget: int, ordered: bool
) -> None:
    settings = Settings(threads=threads, instances=instances, batch_size=batch_size)
    bench = Bench(settings, cpu_budget)
    bench.check(tasks, bench.run(tasks, ordered=ordered), ordered=ordered)
    assert threads_left() == []


@pytest.mark.usefixtures("_often_switching")
@pytest.mark.parametrize("threads", [1, 3, 16])
def test_many_threads_and_tasks(threads: int) -> None:
    rng = random.Random(threads)
    tasks = simple([rng.choice([1, 1, 2, 7, 60]) for _ in range(600)])
    bench = Bench(Settings(threads=threads, instances=8, batch_size=8), 16)
    summary = bench.run(tasks)
    bench.check(tasks, summary)
    # Nothing fails here, so each row is computed once.
    assert sum(bench.batches) == summary.samples
    assert bench.rows.peak <= row_limit(bench.settings, 16)


def test_without_an_order_a_slow_task_holds_none_back() -> None:
    # Far more than may be open at a time, whole batches without the first, which ends behind all others.
    tasks = simple([1] * 301)
    bench = Bench(Settings(batch_size=4), 2)
    others = threading.Event()

    def prepare(task: Task) -> Iterator[tuple[tuple[int, int], tuple[np.ndarray, ...]]]:
        if task.index == 0:
            assert others.wait(RENDEZVOUS_S)
        yield from bench.prepare(task)

    def emit(task: Task, keys: list[tuple[int, int]], outputs: tuple[np.ndarray, ...]) -> None:
        bench.emit(task, keys, outputs)
        if len(bench.delivered) == 300:
            others.set()

    spec = (((2,), np.dtype(np.float32)), ((), np.dtype(np.int64)))
    summary = run_job(
        iter(tasks),
        prepare=prepare,
        infer=bench.infer,
        emit=emit,
        fail=bench.fail,
        settings=bench.settings,
        cpu_budget=2,
        ordered=False,
        row_spec=spec,
    )
    assert bench.delivered[-1] == (0, True)
    bench.check(tasks, summary, ordered=False)


def test_without_an_order_a_batch_that_no_row_can_fill_is_computed() -> None:
    tasks = simple([1] + [0] * 500 + [20])
    bench = Bench(Settings(batch_size=16), 2)
    bench.check(tasks, bench.run(tasks, ordered=False), ordered=False)


def test_a_shape_that_is_known_before_is_that_of_every_row() -> None:
    bench = Bench(Settings(batch_size=4), 2)
    tasks = [Task(0, 2, "shape", 0), Task(1, 2), Task(2, 2, "dtype", 1)]
    spec = (((2,), np.dtype(np.float32)), ((), np.dtype(np.int64)))
    bench.check(tasks, bench.run(tasks, row_spec=spec))
    assert "row 0 got float32 of shape (3,)" in str(bench.errors[0])
    assert "expected float32 of shape (2,)" in str(bench.errors[0])


class Limit:
    """A pace whose time is over when told so."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.skipped_rows = 0

    def skipped(self, rows: int = 1) -> None:
        self.skipped_rows += rows

    def over(self) -> bool:
        return self.event.is_set()

    def eta_s(self) -> float | None:
        return 7.0

    def rung(self) -> str | None:
        return "one"


def test_when_the_time_is_over_tasks_are_left_with_the_rows_that_they_have() -> None:
    """Six rows each in batches of four: after two calls the second task has two rows."""
    limit, stalled = Limit(), threading.Event()
    calls: list[int] = []

    def prepare(task: int) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        if task == 3:
            stalled.wait(RENDEZVOUS_S)
        for row in range(6):
            yield row, (np.array([task, row], np.float32),)

    def infer(batch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...] | None:
        calls.append(len(batch[0]))
        if limit.over():
            return None
        if len(calls) == 2:
            limit.event.set()
        return (batch[0] * 2,)

    left: list[tuple[int, list[int], np.ndarray]] = []
    done: list[int] = []
    progress: list[Progress] = []
    summary = run_job(
        range(5),
        prepare=prepare,
        infer=infer,
        emit=lambda task, keys, outputs: done.append(task),
        fail=lambda task, error: None,
        leave=lambda task, keys, outputs: left.append((task, keys, outputs[0])),
        settings=Settings(batch_size=4),
        cpu_budget=1,
        ordered=False,
        pace=limit,
        progress=progress.append,
    )
    stalled.set()
    assert (summary.stopped, summary.samples, done) == (True, 8, [0])
    ((task, keys, outputs),) = left
    assert (task, keys) == (1, [0, 1])
    np.testing.assert_array_equal(outputs, [[2, 0], [2, 2]])
    assert (progress[-1].eta_s, progress[-1].rung) == (7.0, "one")
    for thread in threading.enumerate():
        if thread.name.startswith("alula-"):
            thread.join(RENDEZVOUS_S)


@pytest.mark.parametrize("breaks", ["reading", "memory", "shape"])
def test_a_pace_is_told_of_rows_that_reach_no_batch(breaks: str) -> None:
    limit = Limit()
    computed: list[int] = []
    yielded: list[int] = []

    def prepare(task: int) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        for row in range(5):
            yielded.append(row)
            yield row, (np.zeros(2 if breaks == "shape" and (task, row) == (1, 4) else 1, np.float32),)
        if task == 1 and breaks == "reading":
            raise DataError("1", "breaks off.")
        if task == 1 and breaks == "memory":
            raise MemoryError

    def infer(batch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        computed.append(len(batch[0]))
        return batch

    failed: list[int] = []
    run_job(
        range(3),
        prepare=prepare,
        infer=infer,
        emit=lambda task, keys, outputs: None,
        fail=lambda task, error: failed.append(task),
        settings=Settings(batch_size=4),
        cpu_budget=1,
        row_spec=(((1,), np.dtype(np.float32)),),
        pace=limit,
    )
    assert failed == [1]
    assert sum(computed) + limit.skipped_rows == len(yielded)


def test_a_task_that_waits_for_a_disk_holds_none_of_the_others_back() -> None:
    limit, stalled = Limit(), threading.Event()
    now_s = [0.0]

    def prepare(task: int) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        if task == 1:
            now_s[0] += jobs.STALL_S + 1
            stalled.wait(RENDEZVOUS_S)
        yield 0, (np.float32(task),)

    done: list[int] = []

    def emit(task: int, *_: object) -> None:
        done.append(task)
        if len(done) == 5:
            limit.event.set()

    summary = run_job(
        range(6),
        prepare=prepare,
        infer=lambda batch: (batch[0],),
        emit=emit,
        fail=lambda *args: None,
        settings=Settings(),
        cpu_budget=1,
        ordered=False,
        pace=limit,
        clock=lambda: now_s[0],
    )
    stalled.set()
    assert summary.stopped
    assert sorted(done) == [0, 2, 3, 4, 5]
    for thread in threading.enumerate():
        if thread.name.startswith("alula-"):
            thread.join(RENDEZVOUS_S)


def test_a_model_that_leaves_its_batch_because_the_time_is_over() -> None:
    limit = Limit()

    def infer(batch: tuple[np.ndarray, ...]) -> None:
        limit.event.set()

    left: list[object] = []
    summary = run_job(
        [3, 4],
        prepare=lambda task: iter([(0, (np.float32(task),))]),
        infer=infer,
        emit=lambda *args: left.append(args),
        fail=lambda *args: left.append(args),
        leave=lambda *args: left.append(args),
        settings=Settings(batch_size=2),
        cpu_budget=1,
        pace=limit,
    )
    assert (summary.stopped, summary.samples, left) == (True, 0, [])
    for thread in threading.enumerate():
        if thread.name.startswith("alula-"):
            thread.join(RENDEZVOUS_S)


def test_batches_cross_tasks() -> None:
    bench = Bench(Settings(instances=2, batch_size=32), 2)
    bench.check(tasks := simple([1] * 1000), bench.run(tasks))
    assert sorted(bench.batches) == [8] + [32] * 31


def test_batches_fill_although_tasks_come_one_by_one() -> None:
    bench = Bench(Settings(batch_size=8), 1)
    prepared = threading.Semaphore(1)

    def source() -> Iterator[Task]:
        for task in simple([1] * 83):
            assert prepared.acquire(timeout=RENDEZVOUS_S)
            yield task

    def prepare(task: Task) -> Iterator[tuple[tuple[int, int], tuple[np.ndarray, ...]]]:
        yield from bench.prepare(task)
        prepared.release()

    run_job(
        source(),
        prepare=prepare,
        infer=bench.infer,
        emit=bench.emit,
        fail=bench.fail,
        settings=bench.settings,
        cpu_budget=1,
    )
    assert bench.batches == [8] * 10 + [3]


def test_a_batch_that_waits_for_rows_behind_its_own_task_is_computed() -> None:
    # The first row shares its batch with none of the next 500 tasks, and more do not start before its
    # task is delivered.
    bench = Bench(Settings(batch_size=16), 2)
    bench.check(tasks := simple([1] + [0] * 500 + [20]), bench.run(tasks))
    assert bench.batches[0] == 1


def test_memory_is_bounded_for_one_long_task() -> None:
    settings = Settings(batch_size=4)
    bench = Bench(settings, 2)
    enough = threading.Event()

    def prepare(task: Task) -> Iterator[tuple[tuple[int, int], tuple[np.ndarray, ...]]]:
        for key, row in bench.prepare(task):
            # Two batches beside the one in work: the model is blocked, so they were prepared ahead.
            if bench.rows.now > 8:
                enough.set()
            yield key, row

    def infer(batch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        assert enough.wait(RENDEZVOUS_S)
        return bench.infer(batch)

    summary = run_job(
        (tasks := simple([5000])),
        prepare=prepare,
        infer=infer,
        emit=bench.emit,
        fail=bench.fail,
        settings=settings,
        cpu_budget=2,
    )
    bench.check(tasks, summary)
    assert 8 < bench.rows.peak <= row_limit(settings, 2) == 16


def test_tasks_ahead_of_a_slow_one_are_bounded() -> None:
    ahead = Gauge()
    release = threading.Event()

    def source() -> Iterator[Task]:
        for task in simple([1] * 500):
            ahead.add(1)
            yield task

    bench = Bench(Settings(), 2)

    def prepare(task: Task) -> Iterator[tuple[tuple[int, int], tuple[np.ndarray, ...]]]:
        if task.index == 63:
            release.set()
        for key, row in bench.prepare(task):
            yield key, row
            if task.index == 0:
                assert release.wait(RENDEZVOUS_S)

    run_job(
        source(),
        prepare=prepare,
        infer=bench.infer,
        emit=lambda task, keys, outputs: ahead.add(-1),
        fail=bench.fail,
        settings=bench.settings,
        cpu_budget=2,
    )
    assert ahead.now == 0
    assert ahead.peak == 64


def test_a_full_batch_goes_before_prepare_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    # Steps of one row and batches of one row: each row makes a model call wait. A call of the whole
    # budget must get in after each, or rows would pile up to `row_limit`.
    monkeypatch.setattr(jobs, "MAX_STEP_S", -1.0)
    bench = Bench(Settings(threads=4), 4)
    bench.check(tasks := simple([50] * 20), bench.run(tasks))
    assert bench.rows.peak <= 4 < row_limit(bench.settings, 4)


def test_all_ready_batches_go_before_the_next_prepare_step() -> None:
    log: list[int] = []
    bench = Bench(Settings(batch_size=2), 1)

    def prepare(task: Task) -> Iterator[tuple[tuple[int, int], tuple[np.ndarray, ...]]]:
        for key, row in bench.prepare(task):
            log.append(1)
            yield key, row

    def infer(batch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        log.append(-len(batch[0]))
        return bench.infer(batch)

    run_job(
        simple([101]),
        prepare=prepare,
        infer=infer,
        emit=bench.emit,
        fail=bench.fail,
        settings=bench.settings,
        cpu_budget=1,
    )
    waiting = list(itertools.accumulate(log))
    assert all(waiting[k] < 2 for k in range(len(log) - 1) if log[k] < 0 and log[k + 1] > 0)
    assert waiting[-1] == 0


def test_prepare_goes_on_beside_a_model_call_that_leaves_a_core() -> None:
    later = threading.Event()
    bench = Bench(Settings(batch_size=2), 2)

    def prepare(task: Task) -> Iterator[tuple[tuple[int, int], tuple[np.ndarray, ...]]]:
        for key, row in bench.prepare(task):
            if key[1] == 8:
                later.set()
            yield key, row

    def infer(batch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        assert later.wait(RENDEZVOUS_S)
        return bench.infer(batch)

    summary = run_job(
        simple([20]),
        prepare=prepare,
        infer=infer,
        emit=bench.emit,
        fail=bench.fail,
        settings=bench.settings,
        cpu_budget=2,
    )
    assert summary.samples == 20


def test_all_cores_prepare_while_no_batch_is_ready_and_all_instances_compute() -> None:
    preparing = threading.Barrier(3)
    computing = threading.Barrier(3)
    bench = Bench(Settings(instances=3), 3)

    def prepare(task: Task) -> Iterator[tuple[tuple[int, int], tuple[np.ndarray, ...]]]:
        preparing.wait(RENDEZVOUS_S)
        yield from bench.prepare(task)

    def infer(batch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        computing.wait(RENDEZVOUS_S)
        return bench.infer(batch)

    run_job(
        simple([1, 1, 1]),
        prepare=prepare,
        infer=infer,
        emit=bench.emit,
        fail=bench.fail,
        settings=bench.settings,
        cpu_budget=3,
    )
    assert [index for index, _ in bench.delivered] == [0, 1, 2]


def test_a_call_wider_than_the_budget_takes_all_of_it() -> None:
    bench = Bench(Settings(threads=8, instances=4, batch_size=2), 2)
    bench.check(tasks := simple([5, 5]), bench.run(tasks))


def test_rows_are_copied_before_the_generator_goes_on() -> None:
    def prepare(task: int) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        for k in range(5):
            yield k, (np.full(2, task * 10 + k, np.float32),)

    seen: list[np.ndarray] = []

    def infer(batch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        assert batch[0].flags.c_contiguous
        # Handing the input back is allowed: outputs are copied before the buffer is filled again.
        return batch

    results = list(
        iter_job([0, 1, 2], prepare=prepare, infer=infer, settings=Settings(batch_size=2), cpu_budget=2)
    )
    seen.extend(result.outputs[0][:, 0] for result in results)
    np.testing.assert_array_equal(
        np.concatenate(seen), [10 * task + k for task in range(3) for k in range(5)]
    )


def test_failures_carry_their_reason_and_cause() -> None:
    tasks = [
        Task(0, 2),
        Task(1, 3, "os", 1),
        Task(2, 3, "memory", 2),
        Task(3, 3, "shape", 1),
        Task(4, 0),
        Task(5, 2),
        Task(6, 4, "alula", 0),
    ]
    bench = Bench(Settings(batch_size=2), 1)
    bench.check(tasks, bench.run(tasks))
    assert "task-1: could not be read: Input/output error." in str(bench.errors[1])
    assert isinstance(bench.errors[1].__cause__, OSError)
    assert "task-2: needs more memory" in str(bench.errors[2])
    assert isinstance(bench.errors[2].__cause__, MemoryError)
    assert str(bench.errors[3]) == (
        "task-3: row 1 got float32 of shape (3,) and int64 of shape (); expected float32 of shape (2,) and "
        "int64 of shape (), as in the first row of the job. Give inputs that the description turns into one "
        "shape."
    )
    assert str(bench.errors[4]).startswith("task-4: holds no samples.")
    assert str(bench.errors[6]) == "task-6: is broken."


@pytest.mark.usefixtures("_often_switching")
def test_the_first_task_with_rows_says_what_shape_is_right() -> None:
    release = threading.Event()

    def prepare(task: int) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        if task == 1:
            assert release.wait(RENDEZVOUS_S)
        if task == 2:
            release.set()
        if task > 0:
            yield 0, (np.zeros(task, np.float32),)

    errors = [
        result.error is None
        for result in iter_job(
            range(4), prepare=prepare, infer=lambda batch: batch, settings=Settings(), cpu_budget=4
        )
    ]
    assert errors == [False, True, False, False]


def test_generators_of_rows_are_closed_when_a_row_does_not_fit_and_when_the_job_stops() -> None:
    closed: list[int] = []
    alive: list[object] = []

    def rows(task: int) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        try:
            for k in itertools.count():
                yield k, (np.zeros(2 if task == 1 else 1, np.float32),)
                if task == 0:
                    return
        finally:
            closed.append(task)

    def prepare(task: int) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        alive.append(rows(task))
        return alive[-1]

    results = iter_job(
        [0, 1, 2], prepare=prepare, infer=lambda batch: batch, settings=Settings(), cpu_budget=1
    )
    assert next(results).error is None
    assert next(results).error is not None
    results.close()
    assert closed[:2] == [0, 1]
    assert len(closed) == len(alive)


def raising(error: BaseException) -> Callable[..., None]:
    def call(*args: object) -> None:
        raise error

    return call


@pytest.mark.parametrize("where", ["emit", "fail", "infer", "progress"])
@pytest.mark.parametrize("error", [EngineError("no"), TypeError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("cpu_budget", [1, 3])
def test_other_errors_stop_the_job(where: str, error: BaseException, cpu_budget: int) -> None:
    bench = Bench(Settings(instances=2, batch_size=4), cpu_budget)
    tasks = [Task(0, 1), Task(1, 2, "alula"), *simple([30] * 100)]
    with pytest.raises(type(error)) as caught:
        bench.run(tasks, **{where: raising(error)})
    assert caught.value is error


def test_a_mistake_in_prepare_stops_the_job_and_names_the_task() -> None:
    def prepare(task: int) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        yield 0, (np.zeros(1),)
        if task == 3:
            raise TypeError("a mistake")

    with pytest.raises(TypeError, match="a mistake") as caught:
        list(
            iter_job(
                range(100), prepare=prepare, infer=lambda batch: batch, settings=Settings(), cpu_budget=2
            )
        )
    assert caught.value.__notes__ == ["while preparing 3"]


def test_an_error_in_the_source_of_tasks_stops_the_job() -> None:
    def source() -> Iterator[Task]:
        yield from simple([3] * 20)
        raise ValueError("no more")

    bench = Bench(Settings(batch_size=2), 2)
    with pytest.raises(ValueError, match="no more"):
        run_job(
            source(),
            prepare=bench.prepare,
            infer=bench.infer,
            emit=bench.emit,
            fail=bench.fail,
            settings=bench.settings,
            cpu_budget=2,
        )


_INTERRUPTED = """
import signal, threading
import numpy as np
from alula.core import Settings
from alula.pipeline import run_job

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits deafness
first = [None]

def infer(batch):
    if first:
        first.pop()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    return batch

try:
    run_job(
        range(100_000),
        prepare=lambda task: iter([(task, (np.float32(task),))]),
        infer=infer,
        emit=lambda *_: None,
        fail=lambda *_: None,
        settings=Settings(),
        cpu_budget=2,
    )
except KeyboardInterrupt:
    alive = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    print("interrupted", alive)
"""


def test_a_real_interrupt_ends_the_wait() -> None:
    # In a process of its own: a signal is for the whole process, native libraries of other tests included.
    ended = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.stdout == "interrupted []\n", ended.stderr


@pytest.mark.parametrize(
    "outputs",
    [
        pytest.param(lambda n: (np.zeros(n + 1),), id="longer"),
        pytest.param(lambda n: (np.array(1.0),), id="scalar"),
        pytest.param(lambda n: (np.zeros((n, n)),), id="shape that follows the batch"),
    ],
)
def test_a_model_that_breaks_its_contract_is_named(
    outputs: Callable[[int], tuple[np.ndarray, ...]],
) -> None:
    bench = Bench(Settings(batch_size=4), 1)
    with pytest.raises(EngineError, match=r"expected (the batch axis|outputs of one)"):
        bench.run(simple([7]), infer=lambda batch: outputs(len(batch[0])))


@pytest.mark.parametrize(
    ("max_failures", "failing", "total", "stops_after"),
    [
        (None, 40, None, None),
        (2, 2, None, None),
        (2, 3, None, 3),
        (0, 1, None, 1),
        (0.25, 10, 40, None),
        (0.25, 11, 40, 11),
        (0.25, 10, None, None),
        (0.25, 11, None, 11),
    ],
)
def test_failure_budget(
    max_failures: int | float | None, failing: int, total: int | None, stops_after: int | None
) -> None:
    tasks = [Task(index, 2, "alula" if index < failing else None, 1) for index in range(40)]
    bench = Bench(Settings(batch_size=2), 2)
    if stops_after is None:
        bench.check(tasks, bench.run(tasks, max_failures=max_failures, total_tasks=total))
        return
    with pytest.raises(JobError, match=f"{stops_after} of .* inputs failed; at most"):
        bench.run(tasks, max_failures=max_failures, total_tasks=total)
    assert len(bench.errors) == stops_after


@pytest.mark.parametrize(
    "options", [{"max_failures": -1}, {"max_failures": 1.5}, {"max_failures": 0.0}, {"cpu_budget": 0}]
)
def test_wrong_arguments_are_refused_at_the_call(options: dict[str, float]) -> None:
    given_ = {"cpu_budget": 1, **options}
    with pytest.raises(UsageError, match="got"):
        iter_job([], prepare=lambda task: iter(()), infer=lambda b: b, settings=Settings(), **given_)


def ticking() -> Callable[[], float]:
    """Return a clock that goes on by 10 ms per reading."""
    ticks = itertools.count()
    return lambda: next(ticks) * 0.01


def test_progress_is_rare_and_ends_complete() -> None:
    seen: list[Progress] = []
    bench = Bench(Settings(batch_size=2), 1)
    tasks = [Task(0, 3), Task(1, 3, "alula", 1), *(Task(k, 2) for k in range(2, 200))]
    summary = bench.run(tasks, progress=seen.append, total_tasks=200, clock=ticking())
    times = [progress.elapsed_s for progress in seen]
    assert len(seen) > 3
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(times[:-1]))
    assert seen[0].eta_s is None
    assert seen[-1] == Progress(
        tasks_done=199,
        tasks_failed=1,
        total_tasks=200,
        samples=seen[-1].samples,
        elapsed_s=times[-1],
        eta_s=0.0,
    )
    assert seen[-1].samples >= summary.samples == 3 + 2 * 198
    for progress in seen[1:-1]:
        finished = progress.tasks_done + progress.tasks_failed
        if finished:
            assert progress.eta_s == pytest.approx(progress.elapsed_s / finished * (200 - finished))


def test_progress_without_a_total_has_no_eta() -> None:
    seen: list[Progress] = []
    Bench(Settings(), 1).run(simple([2] * 20), progress=seen.append, clock=ticking())
    assert {progress.eta_s for progress in seen} == {None}
    assert seen[-1].total_tasks is None


def test_summary_counts_busy_seconds() -> None:
    bench = Bench(Settings(batch_size=2), 1)
    summary = bench.run(simple([4, 4]), clock=ticking())
    # Each of the 4 calls reads the clock before and after, 10 ms apart.
    assert summary.model_s == pytest.approx(0.04)
    assert summary.prepare_cpu_s > 0
    assert summary.samples_per_s == pytest.approx(summary.samples / summary.wall_s)
    assert math.isfinite(summary.samples_per_s)


def test_no_tasks_is_an_empty_job() -> None:
    bench = Bench(Settings(), 2)
    seen: list[Progress] = []
    summary = bench.run([], progress=seen.append)
    assert (summary.tasks_done, summary.samples, len(seen)) == (0, 0, 1)


def endless(bench: Bench) -> Iterator[TaskResult[Task, tuple[int, int]]]:
    tasks = (Task(index, 3) for index in itertools.count())
    return iter_job(
        tasks, prepare=bench.prepare, infer=bench.infer, settings=bench.settings, cpu_budget=bench.cpu_budget
    )


def test_closing_the_iterator_stops_all_threads() -> None:
    results = endless(Bench(Settings(instances=2, batch_size=4), 2))
    assert threads_left() == []
    first = list(itertools.islice(results, 100))
    assert [result.task.index for result in first] == list(range(100))
    assert len(threads_left()) == 4
    results.close()
    assert threads_left() == []


def test_dropping_the_iterator_stops_all_threads() -> None:
    for _ in endless(Bench(Settings(), 2)):
        break
    gc.collect()
    assert threads_left() == []


def test_an_iterator_alive_at_exit_does_not_hang_python() -> None:
    code = """
import atexit, itertools, threading, numpy as np
atexit.register(lambda: print([thread.name for thread in threading.enumerate()]))
from alula.core import Settings
from alula.pipeline import iter_job
results = iter_job(itertools.count(), prepare=lambda task: iter([(0, (np.zeros(1),))]),
                   infer=lambda batch: batch, settings=Settings(), cpu_budget=2)
print(next(results).task)
"""
    # Hooks run last in, first out: this one sees what is left after the job's own.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n['MainThread']\n", "")


def test_a_slow_consumer_is_waited_for() -> None:
    bench = Bench(Settings(batch_size=4), 2)
    pulled = itertools.count()
    tasks = (Task(next(pulled), 1) for _ in range(10_000))
    results = iter_job(tasks, prepare=bench.prepare, infer=bench.infer, settings=bench.settings, cpu_budget=2)
    next(results)
    results.close()
    assert next(pulled) <= 66
