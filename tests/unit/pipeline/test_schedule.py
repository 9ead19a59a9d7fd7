"""The decisions of `Schedule` that a whole job cannot show for sure."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from alula.core import Settings
from alula.errors import DataError
from alula.pipeline.schedule import OpenTask, Schedule


def test_outputs_that_wait_for_an_earlier_task_hold_back_new_tasks() -> None:
    schedule: Schedule[str, int] = Schedule(Settings(), 2, max_held_bytes=1000)
    for task in ("slow", "large", "next"):
        schedule.admit(task)
    slow, large = schedule.prepare_seat(), schedule.prepare_seat()
    model = schedule.model_seat()
    assert schedule.start(slow).task == "slow"
    assert schedule.start(large).task == "large"
    spec = (((1,), np.dtype(np.float32)),)
    assert schedule.expect(slow, spec) == spec

    schedule.reserve(large, 1)
    schedule.close(large, None)
    batch = schedule.next_batch(model)
    grown = batch.spans[0].opened.store((np.zeros((1, 500), np.float32),), slot=0, start=0, count=1)
    assert grown == 2000
    schedule._end_call(batch, [grown])
    model.batch = None
    assert not schedule._may_start()

    schedule.reserve(slow, 0)
    schedule.close(slow, None)
    assert schedule.take().task == "slow"
    # What the first task holds itself does not count: nothing waits for anything but it.
    assert schedule._may_start()
    assert schedule.take().task == "large"
    assert schedule.start(large).task == "next"


def test_outputs_of_a_long_task_grow_in_place_and_keep_their_values() -> None:
    opened: OpenTask[str, int] = OpenTask("long", 0)
    values = np.arange(1000, dtype=np.float32).reshape(-1, 1)
    grown = 0
    # Batches may end out of order.
    for start in (30, 0, 10, 20, *range(40, 1000, 10)):
        grown += opened.store((values[start : start + 10],), slot=0, start=start, count=10)
    opened.rows, opened.computed, opened.prepared = 1000, 1000, True
    assert opened.complete
    np.testing.assert_array_equal(opened.outputs()[0], values)
    assert values.nbytes <= grown <= 1.5 * values.nbytes


def test_a_short_task_takes_no_more_than_its_outputs() -> None:
    opened: OpenTask[str, int] = OpenTask("short", 0)
    opened.rows, opened.prepared = 7, True
    assert opened.store((np.zeros((4, 3), np.int8),), slot=1, start=0, count=3) == 21


def test_a_task_that_fails_during_its_model_call_holds_nothing_back() -> None:
    schedule: Schedule[str, int] = Schedule(Settings(), 2)
    schedule.admit("fails")
    seat, model = schedule.prepare_seat(), schedule.model_seat()
    schedule.start(seat)
    schedule.expect(seat, (((1,), np.dtype(np.float32)),))
    schedule.reserve(seat, 1)
    assert schedule.resume(seat)
    batch = schedule.next_batch(model)
    outputs = (np.zeros((1, 500)),)
    grown = batch.spans[0].opened.store(outputs, slot=0, start=0, count=1)
    schedule.close(seat, DataError("fails", "is broken."))
    assert schedule.take().task == "fails"
    schedule._end_call(batch, [grown])
    assert schedule._held_bytes == 0
    assert batch.spans[0].opened.store(outputs, slot=0, start=1, count=1) == 0


def test_no_batch_is_closed_before_the_rows_of_a_step_that_had_waited_for_a_disk_are_written() -> None:
    schedule: Schedule[str, int] = Schedule(Settings(batch_size=8), 2)
    schedule.admit("stalls")
    schedule.exhaust()
    seat = schedule.prepare_seat()
    assert schedule.start(seat) is not None
    seat.since_s = 0.0
    assert schedule.lend(before_s=1.0) == 1
    schedule.expect(seat, (((1,), np.dtype(np.float32)),))
    schedule.reserve(seat, 1)  # it is awake, and about to write
    with schedule._lock:
        schedule._dispatch()
    assert not schedule._ready
    schedule.close(seat, None)
    assert len(schedule._ready) == 1


def test_a_first_task_that_waits_for_a_disk_does_not_keep_others_from_the_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schedule: Schedule[str, int] = Schedule(Settings(), 2)
    for task in ("hangs", "next"):
        schedule.admit(task)
    hangs, other = schedule.prepare_seat(), schedule.prepare_seat()
    assert schedule.start(hangs).task == "hangs"
    assert schedule.start(other).task == "next"
    hangs.since_s = 0.0
    waits = threading.Event()
    real = schedule._spec_settled.wait

    def wait(timeout: float | None = None) -> bool:
        waits.set()  # the lock is held until it sleeps
        return real(timeout)

    monkeypatch.setattr(schedule._spec_settled, "wait", wait)
    spec = (((1,), np.dtype(np.float32)),)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(schedule.expect(other, spec)), daemon=True)
    thread.start()
    assert waits.wait(30)
    assert schedule.lend(before_s=1.0) == 1
    thread.join(30)
    assert found == [spec]
    schedule.stop()
