"""One timed round: several threads that call a function until the time is over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar, final

from alula.errors import MeasurementError
from alula.measure.clock import Clock, SystemClock

__all__ = ["Concurrency", "Round", "WarmUp", "offline_round", "warm_up"]

Result = TypeVar("Result")

# A call this close to the fastest one so far is as fast as it gets: later ones differ by noise.
_WARM = 1.2


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round did and how long it took.

    Attributes:
        samples: samples finished by all instances.
        wall_s: from the common start until the last call ended.
        calls: seconds of each call, grouped by instance.
        instances: how many ran at once.
        stolen: share of the CPU time wanted meanwhile that the hypervisor gave to others.
    """

    samples: int
    wall_s: float
    calls: tuple[float, ...]
    instances: int = 1
    stolen: float = 0.0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise MeasurementError(
                f"A round finished {self.samples} samples; expected at least 1. "
                "The timed function must return how many samples it did."
            )
        if not self.wall_s > 0:
            raise MeasurementError(
                f"A round of {len(self.calls)} calls took {self.wall_s} s by the clock; expected more than "
                "0. Give each call more work than the clock can resolve."
            )

    @property
    def per_s(self) -> float:
        """Samples per second."""
        return self.samples / self.wall_s


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """How a warm-up went.

    Attributes:
        calls: seconds of each call, in order.
        stable: whether it ended because the times had settled, not because the time was over.
    """

    calls: tuple[float, ...]
    stable: bool


@final
class Concurrency:
    """Threads that stay the same over warm-up and rounds; use it in a `with` block.

    Instance `i` always runs in the same thread (the only one in the caller's), so that what engines
    keep per thread (OpenMP pools, buffers) is made once, in the warm-up, and not in a timed round.

    Args:
        instances: calls in flight at once.
        clock: tells the time.

    Not safe to share: one thread at a time may start rounds.
    """

    def __init__(self, instances: int, *, clock: Clock | None = None) -> None:
        if instances < 1:
            raise MeasurementError(f"A measurement needs at least 1 instance; got {instances}.")
        self._instances = instances
        self._clock: Clock = SystemClock() if clock is None else clock
        self._threads: list[ThreadPoolExecutor] = []
        self._entered = False
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        # One single-thread executor per instance: a pool of many hands work to whichever is free. The
        # only instance stays in the caller's thread: OpenMP keeps a team per calling thread, and two
        # teams on the same cores make it give up spinning, which slows small batches down.
        if self._instances > 1:
            self._threads = [
                self._stack.enter_context(
                    ThreadPoolExecutor(1, thread_name_prefix=f"alula-instance-{instance}")
                )
                for instance in range(self._instances)
            ]
        self._entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads = []
        self._entered = False
        self._stack.close()

    def warm_up(self, run: Callable[[int], int], *, max_s: float) -> tuple[WarmUp, ...]:
        """Call `run` in every instance at once until its times settle.

        Args:
            run: takes the instance, returns how many samples it did.
            max_s: no call starts later than this, except the first two.

        Returns:
            One result per instance.

        Raises:
            Exception: the first one that `run` raised; the other instances stop after their call.
        """
        stop = threading.Event()

        def warm(instance: int, start_s: float) -> WarmUp:
            def call() -> None:
                run(instance)

            return _warm_up(call, max_s=max_s, clock=self._clock, start_s=start_s, stop=stop)

        results, _ = self._together(warm, stop)
        return tuple(results)

    def round(self, run: Callable[[int], int], *, seconds: float) -> Round:
        """Call `run` in every instance at once, again and again, until `seconds` are over.

        Every instance makes at least one call. No call starts after `seconds`; those under way are
        finished and counted, and the round lasts until the last of them ends, so that no part of
        their work is lost or given away. The idle tail of the other instances then counts too:
        choose `seconds` to hold several calls.

        Args:
            run: takes the instance, returns how many samples it did.
            seconds: how long calls are started.

        Raises:
            Exception: the first one that `run` raised; the other instances stop after their call.
            MeasurementError: no sample was done, or the clock did not move.
        """
        stop = threading.Event()

        def repeat(instance: int, start_s: float) -> tuple[int, list[float], float]:
            samples, calls, now_s = 0, list[float](), start_s
            while not calls or not (stop.is_set() or now_s - start_s >= seconds):
                samples += run(instance)
                before_s, now_s = now_s, self._clock.monotonic()
                calls.append(now_s - before_s)
            return samples, calls, now_s

        results, start_s = self._together(repeat, stop)
        return Round(
            samples=sum(samples for samples, _, _ in results),
            wall_s=max(end_s for _, _, end_s in results) - start_s,
            calls=tuple(call for _, calls, _ in results for call in calls),
            instances=self._instances,
        )

    def each(self, work: Callable[[int], Result]) -> list[Result]:
        """Call `work` once in every instance, all at the same time, and return what it gives, in order.

        Args:
            work: takes the instance.

        Raises:
            Exception: the first one that `work` raised, when the other instances have ended too.
        """
        return self._together(lambda instance, _: work(instance), threading.Event())[0]

    def _together(
        self, work: Callable[[int, float], Result], stop: threading.Event
    ) -> tuple[list[Result], float]:
        """Run `work(instance, start_s)` in all threads from one common start; return results and start.

        The start is read once, when every thread has arrived and none has begun.
        """
        if not self._entered:
            raise MeasurementError("The threads of a measurement exist only inside its `with` block.")
        if self._instances == 1:
            start_s = self._clock.monotonic()
            return [work(0, start_s)], start_s
        start_s = 0.0
        failures: list[BaseException] = []

        def mark() -> None:
            nonlocal start_s
            start_s = self._clock.monotonic()

        barrier = threading.Barrier(self._instances, action=mark)

        def begin(instance: int) -> Result:
            barrier.wait()
            try:
                return work(instance, start_s)
            except BaseException as error:
                error.add_note(f"in instance {instance} of {self._instances}")
                failures.append(error)
                stop.set()
                raise

        futures: list[Future[Result]] = []
        try:
            for instance, thread in enumerate(self._threads):
                futures.append(thread.submit(begin, instance))
            wait(futures)
        except BaseException:
            # An interrupt arrives here, in the waiting thread, as does a thread that could not be
            # started: leaving the `with` block would hang on instances that wait for it or go on.
            stop.set()
            barrier.abort()
            raise
        if failures:
            raise failures[0]
        return [future.result() for future in futures], start_s


def offline_round(
    run: Callable[[int], int], *, instances: int, seconds: float, clock: Clock | None = None
) -> Round:
    """Return one round with threads of its own; see `Concurrency.round`.

    Args:
        run: takes the instance, returns how many samples it did.
        instances: calls in flight at once.
        seconds: how long calls are started.
        clock: tells the time.

    >>> from alula.measure.fake import ScriptedClock
    >>> clock = ScriptedClock()
    >>> def run(instance: int) -> int:
    ...     clock.advance(0.25)
    ...     return 8
    >>> offline_round(run, instances=1, seconds=1.0, clock=clock).per_s
    32.0
    """
    with Concurrency(instances, clock=clock) as threads:
        return threads.round(run, seconds=seconds)


def warm_up(call: Callable[[], object], *, max_s: float, clock: Clock | None = None) -> WarmUp:
    """Call `call` in this thread until its time settles, and return how that went.

    It has settled when, after at least two calls, the last took at most 20 % longer than the fastest
    before it, and was not itself faster than that by as much.

    Args:
        call: what to warm up.
        max_s: no call starts later than this, except the first two.
        clock: tells the time.
    """
    used: Clock = SystemClock() if clock is None else clock
    return _warm_up(call, max_s=max_s, clock=used, start_s=used.monotonic(), stop=threading.Event())


def _warm_up(
    call: Callable[[], object], *, max_s: float, clock: Clock, start_s: float, stop: threading.Event
) -> WarmUp:
    calls: list[float] = []
    now_s = start_s
    while len(calls) < 2 or not (stop.is_set() or now_s - start_s >= max_s):
        call()
        before_s, now_s = now_s, clock.monotonic()
        calls.append(now_s - before_s)
        if len(calls) >= 2:
            fastest_s = min(calls[:-1])
            if fastest_s / _WARM <= calls[-1] <= fastest_s * _WARM:
                return WarmUp(calls=tuple(calls), stable=True)
        if stop.is_set():
            break
    return WarmUp(calls=tuple(calls), stable=False)
