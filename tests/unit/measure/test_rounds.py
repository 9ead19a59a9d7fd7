"""Rounds: threads that overlap, no work lost at the end, errors that come through."""

import threading

import pytest

from alula.errors import MeasurementError
from alula.measure import Concurrency, Round, SystemClock, offline_round, warm_up
from alula.measure.fake import ScriptedClock

# Only a deadlock waits this long; a passing test never does.
DEADLOCK_S = 20.0


def test_instances_run_at_the_same_time():
    meeting = threading.Barrier(3)

    def run(instance):
        meeting.wait(DEADLOCK_S)  # passes only when all three are inside a call
        clock.advance(1.0)
        return 1

    clock = ScriptedClock()
    finished = offline_round(run, instances=3, seconds=0.0, clock=clock)
    assert finished.samples == 3
    assert finished.wall_s == 3.0
    assert len(finished.calls) == finished.instances == 3


def test_each_instance_keeps_its_thread_over_warm_up_and_rounds():
    seen = {0: set(), 1: set()}
    clock = ScriptedClock()

    def run(instance):
        seen[instance].add(threading.get_ident())
        clock.advance(1.0)
        return 1

    with Concurrency(2, clock=clock) as threads:
        threads.warm_up(run, max_s=5.0)
        for _ in range(5):
            threads.round(run, seconds=3.0)
    assert len(seen[0]) == len(seen[1]) == 1
    assert seen[0] != seen[1]
    assert threading.get_ident() not in seen[0] | seen[1]


def test_a_call_that_straddles_the_end_counts_whole_with_its_time():
    clock = ScriptedClock(start_s=100.0)

    def run(instance):
        clock.advance(0.4)
        return 8

    finished = offline_round(run, instances=1, seconds=1.0, clock=clock)
    assert finished.samples == 24
    assert finished.calls == pytest.approx([0.4, 0.4, 0.4])
    assert finished.wall_s == pytest.approx(1.2)
    assert finished.per_s == pytest.approx(20.0)


def test_the_round_lasts_until_the_last_instance_is_done_and_starts_nothing_after_its_end():
    first_was_read = threading.Event()

    class WatchedClock:
        def __init__(self):
            self.inner = ScriptedClock()

        def monotonic(self):
            now_s = self.inner.monotonic()
            if now_s >= 2.0:
                first_was_read.set()
            return now_s

    clock = WatchedClock()
    calls = []

    def run(instance):
        calls.append(instance)
        if instance == 1:
            assert first_was_read.wait(DEADLOCK_S)
            clock.inner.advance(5.0)
            return 10
        clock.inner.advance(2.0)
        return 1

    finished = offline_round(run, instances=2, seconds=1.0, clock=clock)
    assert sorted(calls) == [0, 1]
    assert finished.samples == 11
    assert finished.wall_s == 7.0
    assert finished.calls == (2.0, 7.0)


def test_every_instance_makes_one_call_when_there_is_no_time():
    clock = ScriptedClock()
    calls = []

    def run(instance):
        calls.append(instance)
        clock.advance(1.0)
        return 1

    offline_round(run, instances=4, seconds=0.0, clock=clock)
    assert sorted(calls) == [0, 1, 2, 3]


def test_an_error_in_one_instance_stops_all_and_comes_through():
    def run(instance):
        if instance == 1:
            raise RuntimeError("out of memory")
        return 1

    with Concurrency(2, clock=ScriptedClock()) as threads:
        # Instance 0 would go on for ever: its clock stands still.
        with pytest.raises(RuntimeError, match="out of memory") as caught:
            threads.round(run, seconds=1.0)
        assert caught.value.__notes__ == ["in instance 1 of 2"]
        with pytest.raises(RuntimeError, match="out of memory"):
            threads.warm_up(run, max_s=1.0)


def test_the_first_of_two_errors_is_raised_and_the_threads_live_on():
    first_is_noted = threading.Event()
    clock = ScriptedClock()

    class FirstError(Exception):
        def __str__(self):
            return "first"

    def fails(instance):
        if instance == 0:
            # Wait until the other instance's stop signal shows that its error was recorded.
            assert first_is_noted.wait(DEADLOCK_S)
            raise ValueError("second")
        raise FirstError

    def works(instance):
        clock.advance(1.0)
        return 1

    class WatchedEvent(threading.Event):
        def set(self):
            super().set()
            first_is_noted.set()

    with Concurrency(2, clock=clock) as threads:
        threads.round(works, seconds=0.0)  # starts the threads, which use events of their own
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("alula.measure.rounds.threading.Event", WatchedEvent)
            with pytest.raises(FirstError):
                threads.round(fails, seconds=1.0)
        assert threads.round(works, seconds=0.0).samples == 2


def test_an_interrupt_while_waiting_stops_the_instances(monkeypatch):
    started = threading.Event()

    def run(instance):
        started.set()
        return 1

    def interrupted(futures):
        assert started.wait(DEADLOCK_S)
        raise KeyboardInterrupt

    monkeypatch.setattr("alula.measure.rounds.wait", interrupted)
    # The clock stands still, so only the interrupt can end the calls and let the `with` block close.
    with pytest.raises(KeyboardInterrupt), Concurrency(2, clock=ScriptedClock()) as threads:
        threads.round(run, seconds=1.0)


def test_a_thread_that_cannot_start_does_not_leave_the_others_waiting(monkeypatch):
    with Concurrency(2, clock=ScriptedClock()) as threads:

        def refuse(*_):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threads._threads[1], "submit", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            threads.round(lambda _: 1, seconds=1.0)


@pytest.mark.parametrize("instances", [0, -1])
def test_no_instances(instances):
    with pytest.raises(MeasurementError, match="at least 1 instance"):
        Concurrency(instances)


def test_threads_exist_only_inside_the_with_block():
    threads = Concurrency(1)
    with pytest.raises(MeasurementError, match="`with` block"):
        threads.round(lambda _: 1, seconds=0.0)
    with threads:
        pass
    with pytest.raises(MeasurementError, match="`with` block"):
        threads.round(lambda _: 1, seconds=0.0)


def test_a_clock_that_stands_still_and_a_run_without_samples_are_errors():
    with pytest.raises(MeasurementError, match="took 0"):
        offline_round(lambda _: 1, instances=1, seconds=0.0, clock=ScriptedClock())
    with pytest.raises(MeasurementError, match="finished 0 samples"):
        offline_round(lambda _: 0, instances=1, seconds=0.0, clock=ScriptedClock(steps_s=[1.0]))


def test_the_machines_own_clock_is_the_default():
    finished = offline_round(lambda _: sum(range(1000)), instances=1, seconds=0.0)
    assert finished.wall_s > 0
    clock = SystemClock()
    assert clock.monotonic() <= clock.monotonic()


@pytest.mark.parametrize(
    ("times", "max_s", "used", "stable"),
    [
        ([1.0, 1.0], 100.0, 2, True),
        ([9.0, 3.0, 1.0, 1.1], 100.0, 4, True),
        ([1.0, 5.0, 1.0], 100.0, 3, True),  # a spike is no reason to stop, nor to go on for long
        ([1.0, 1.21, 1.19], 100.0, 3, True),
        ([8.0, 4.0, 2.0, 1.0], 10.0, 2, False),
        ([50.0, 1.0], 10.0, 2, False),  # two calls even when the first uses up the time
    ],
)
def test_warm_up_ends_when_times_settle_or_time_is_over(times, max_s, used, stable):
    clock = ScriptedClock()
    script = iter(times)
    result = warm_up(lambda: clock.advance(next(script)), max_s=max_s, clock=clock)
    assert result.calls == pytest.approx(times[:used])
    assert result.stable is stable


def test_warm_up_of_instances_runs_them_at_the_same_time():
    meeting = threading.Barrier(2)

    def run(instance):
        meeting.wait(DEADLOCK_S)
        return 1

    with Concurrency(2, clock=ScriptedClock()) as threads:
        first, second = threads.warm_up(run, max_s=1.0)
    assert first.stable
    assert second.stable
    assert len(first.calls) == len(second.calls) == 2


def test_a_round_tells_its_rate():
    assert Round(samples=30, wall_s=1.5, calls=(1.5,)).per_s == 20.0


def test_the_scripted_clock_never_runs_backwards():
    with pytest.raises(ValueError, match="backwards"):
        ScriptedClock().advance(-1.0)
