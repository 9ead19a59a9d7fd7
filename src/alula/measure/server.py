"""The server scenario: queries that come when they like, and the highest rate that is served in time."""

from __future__ import annotations

import heapq
import math
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, final

import msgspec
import numpy as np
import numpy.typing as npt

from alula.errors import MeasurementError
from alula.measure.clock import Clock, SystemClock
from alula.measure.latency import (
    BLOCKS,
    MAX_QUERIES,
    Percentile,
    drift_of,
    effective_count,
    percentile_with_interval,
    percentiles_of,
    queries_needed,
)
from alula.measure.rounds import Concurrency

__all__ = [
    "ServerRate",
    "ServerRound",
    "ServerTrial",
    "Trial",
    "highest_rate",
    "poisson_arrivals",
    "serve",
    "server_round",
    "simulated_round",
]

# Waiting that grew from nothing in proportion to the time has a change of twice its median; a quarter of
# that leaves room for the time of service.
_GROWING = 0.5
# Of the latency: a wake-up that takes longer is a property of the machine rather than of the model.
_LATE = 0.10
# Shorter than any clock resolves: a clock of large numbers may not move by so little.
_INSTANT_S = 1e-9
_TRIES = 3
# Times as long as asked; queues so long that even this does not suffice belong to rates too high to promise.
_LONGEST = 5.0
# A queue that grows by 5 % of the time reaches the limit within a trial of so many limits.
_LIMITS_PER_TRIAL = 20
# How a budget is divided: a confirmation gets half of it, the search so many equal trials of another part;
# what is left is for a confirmation that has to be repeated lower.
_CONFIRMED_SHARE = 0.5
_SEARCHED_SHARE = 0.4
_TRIALS_IN_BUDGET = 10
# No trial of a budget lasts longer than this share of it, however few queries come in that time.
_LONGEST_SHARE = 0.25
# But so many are waited for in any case: of fewer, the slowest says nothing.
_FEWEST_QUERIES = 50
# From the highest rate down by this, its square, its fourth power and so on: a budget has no time to begin
# low, where queries are few and trials long. What is too high ends early.
_STEP_DOWN = 0.8


class ServerRound(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long queries took that arrived at random at a given rate, from the raw times kept beside it.

    Attributes:
        rate_per_s: of the Poisson arrivals.
        seconds: during which queries arrived.
        instances: served at the same time, each a batch.
        batch_size: the most queries in a batch.
        seed: of the arrivals.
        queries: that were to arrive.
        latencies_s: from scheduled arrival to completion, of each query served, in order of arrival.
        waiting_s: how long each query had waited that was there but never served; empty unless `stopped`.
        calls: batches computed.
        ended_s: when the last query was served (or the round was stopped), from its start.
        achieved_per_s: queries served, over the time until the last of them was.
        backlog: queries there but not finished when the last one arrived (or the round was stopped).
        p50: of the latencies; those still waiting count with their wait so far.
        p90: the same.
        p99: the same.
        growing: whether latency kept growing over the round and no instance was idle near its end, as it
            is when the rate is too high.
        woken_late_s: how long after its scheduled arrival an idle instance took a query, at the 99th
            percentile; it is part of the latency.
        stopped: why the round ended before every query was served; None when it did not.
        warnings: what makes the result doubtful, in words.
    """

    rate_per_s: float
    seconds: float
    instances: int
    batch_size: int
    seed: int
    queries: int
    latencies_s: tuple[float, ...]
    waiting_s: tuple[float, ...]
    calls: int
    ended_s: float
    achieved_per_s: float
    backlog: int
    p50: Percentile
    p90: Percentile
    p99: Percentile
    growing: bool
    woken_late_s: float
    stopped: str | None
    warnings: tuple[str, ...] = ()

    def meets(self, p99_limit_s: float) -> bool:
        """Return whether p99 as measured is inside the limit, every query served and no queue growing."""
        return self.stopped is None and not self.growing and self.p99.value_s <= p99_limit_s

    def surely_meets(self, p99_limit_s: float) -> bool:
        """Return whether it meets the limit with the upper end of a 95 % interval of p99.

        The interval is not that of `p99`, but one for this question: it allows for clusters of queries
        above the limit, and not for those of queries that are only slower than most.
        """
        if not self.meets(p99_limit_s):
            return False
        counted = effective_count(self.latencies_s, p99_limit_s)
        high_s = percentile_with_interval(self.latencies_s, 0.99, effective_n=counted).high_s
        return high_s is not None and high_s <= p99_limit_s


class ServerTrial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One round of the search for the highest rate, without its raw times.

    Attributes:
        purpose: to find the rate, or to confirm it.
        rate_per_s: of the Poisson arrivals.
        seconds: that it took, from the start until the last query was served or it was stopped.
        queries: served.
        p99: latency.
        met: whether p99 met the limit as measured.
        sure: whether the upper end of an interval did too (`ServerRound.surely_meets`).
        stopped: why it was stopped early; None when it was not.
    """

    purpose: Literal["search", "confirmation"]
    rate_per_s: float
    seconds: float
    queries: int
    p99: Percentile
    met: bool
    sure: bool
    stopped: str | None


class ServerRate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The highest rate of random arrivals whose p99 latency stays under a limit.

    Attributes:
        per_s: the rate to rely on: `margin` below the one that was confirmed.
        p99_limit_s: the limit.
        margin: safety margin, a share of the confirmed rate.
        confirmation: the long round at the confirmed rate, `per_s / (1 - margin)`.
        trials: every round, in order.
        seconds: that all rounds took.
        queries: served in all rounds.
        warnings: what makes the result doubtful, in words.
    """

    per_s: float
    p99_limit_s: float
    margin: float
    confirmation: ServerRound
    trials: tuple[ServerTrial, ...]
    seconds: float
    queries: int
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.per_s:.4g} queries/s with p99 under {1e3 * self.p99_limit_s:.3g} ms, {self.margin:.0%} "
            f"less than what was confirmed for {self.confirmation.seconds:.0f} s; {self.queries:,} queries, "
            f"{self.seconds:.0f} s in all"
        )


class Trial(Protocol):
    """Serves queries at a rate: `serve` or `server_round`, with all else filled in."""

    def __call__(self, *, rate_per_s: float, seconds: float, limit_s: float, seed: int) -> ServerRound:
        """Return what happened; may stop early when p99 above `limit_s` is certain."""


def poisson_arrivals(*, rate_per_s: float, seconds: float, seed: int) -> npt.NDArray[np.float64]:
    """Return the times in [0, seconds) at which queries arrive, ascending; shape (n,), dtype float64.

    The gaps are exponential and independent (a Poisson process). One seed gives one pattern, stretched
    to the rate: at twice the rate the same queries arrive in half the time.

    Raises:
        MeasurementError: rate or time is not above 0, no query arrives, or more than `MAX_QUERIES` would.

    >>> poisson_arrivals(rate_per_s=2.0, seconds=2.0, seed=0).round(3)
    array([0.34 , 0.85 , 0.86 , 0.861, 1.136, 1.951])
    """
    expected = rate_per_s * seconds
    if not (rate_per_s > 0 and seconds > 0 and expected <= MAX_QUERIES):
        raise MeasurementError(
            f"Got {rate_per_s} queries per second for {seconds} s; expected both above 0 and at most "
            f"{MAX_QUERIES} queries in all. Use a lower rate or a shorter time."
        )
    generator = np.random.default_rng(seed)
    # Ten standard deviations beyond the mean: one draw practically always suffices.
    chunk = int(expected + 10 * math.sqrt(expected)) + 10
    times = np.cumsum(generator.exponential(size=chunk))
    while times[-1] < expected:
        times = np.concatenate((times, times[-1] + np.cumsum(generator.exponential(size=chunk))))
    arrivals: npt.NDArray[np.float64] = times[times < expected] / rate_per_s
    if not len(arrivals):
        raise MeasurementError(
            f"No query arrives within {seconds} s at {rate_per_s} per second; expected at least one. "
            "Use a longer time."
        )
    return arrivals


@final
class _Line:
    """Queries that arrive on a schedule and are served first come, first served.

    All times are seconds since the start of the schedule. One thread at a time may call `take` and
    `is_lost`; `finish` may be called by any at any time.
    """

    def __init__(
        self, *, rate_per_s: float, seconds: float, batch_size: int, limit_s: float | None, seed: int
    ) -> None:
        if batch_size < 1:
            raise MeasurementError(f"A batch holds at least 1 query; got batch size {batch_size}.")
        self._rate_per_s = rate_per_s
        self._seconds = seconds
        self._batch_size = batch_size
        self._limit_s = limit_s
        self._seed = seed
        # A list, in which bisection is several times faster than in an array.
        self._arrivals_s = poisson_arrivals(rate_per_s=rate_per_s, seconds=seconds, seed=seed).tolist()
        self._done_s = [0.0] * len(self._arrivals_s)
        self._next = 0
        self._met_idle = 0
        self._calls = 0
        self._slow = 0
        n = len(self._arrivals_s)
        self._most_slow = n - math.ceil(n * 0.99 - 1e-9)
        self._stopped: tuple[float, str] | None = None
        self._lock = threading.Lock()

    @property
    def upcoming_s(self) -> float | None:
        """When the first query arrives, or arrived, that nobody took; None when all are taken."""
        return self._arrivals_s[self._next] if self._next < len(self._arrivals_s) else None

    def take(self, now_s: float, *, idle: bool) -> range:
        """Return the queries that one instance computes next: those there by now, up to the batch size.

        Args:
            now_s: not before the first of them arrived.
            idle: whether the instance waited for it.
        """
        if idle:
            self._met_idle = self._next
        here = bisect_right(self._arrivals_s, now_s, self._next)
        taken = range(self._next, min(here, self._next + self._batch_size))
        self._next = taken.stop
        self._calls += 1
        return taken

    def finish(self, taken: range, now_s: float) -> None:
        """Note that queries were served."""
        slow = 0
        for query in taken:
            self._done_s[query] = now_s
            slow += self._limit_s is not None and now_s - self._arrivals_s[query] > self._limit_s
        with self._lock:
            self._slow += slow

    def is_lost(self, now_s: float) -> bool:
        """Return whether it is no use to go on, and remember why."""
        if not self._next:
            return False
        if self._limit_s is not None:
            waiting = bisect_left(self._arrivals_s, now_s - self._limit_s, self._next) - self._next
            if self._slow + waiting > self._most_slow:
                self._stopped = (
                    now_s,
                    f"after {now_s:.3g} s more than 1 % of all {len(self._arrivals_s)} queries had taken "
                    f"longer than {self._limit_s:g} s",
                )
        if self._stopped is None and now_s > 2 * self._seconds:
            self._stopped = (now_s, f"the backlog was not done {self._seconds:g} s after the last arrivals")
        return self._stopped is not None

    def record(self, *, instances: int, woken_late_s: list[float]) -> ServerRound:
        """Return what happened, once every query taken is finished."""
        arrivals, done = np.array(self._arrivals_s), np.array(self._done_s[: self._next])
        latencies = done - arrivals[: self._next]
        end_s = max(float(done.max()), 0.0 if self._stopped is None else self._stopped[0])
        there = bisect_right(self._arrivals_s, end_s)
        waiting = end_s - arrivals[self._next : there]
        # Once all have arrived, the backlog can only shrink: it is counted when the last one came.
        counted_s = min(end_s, float(arrivals[-1]))
        backlog = int((arrivals <= counted_s).sum() - (done <= counted_s).sum())
        times = np.concatenate((latencies, waiting))
        (p50, p90, p99), doubts = percentiles_of(times)
        # A queue that cannot keep up has no idle instances after its beginning.
        growing = drift_of(times) > _GROWING and self._met_idle < (1 - 1 / BLOCKS) * self._next
        late_s = float(np.quantile(woken_late_s, 0.99)) if woken_late_s else 0.0
        if self._stopped is not None:
            doubts.append(f"stopped early, so the percentiles are low estimates: {self._stopped[1]}")
        if growing:
            doubts.append(
                f"latency kept growing: {self._rate_per_s:.4g} per second may be more than can be served"
            )
        if late_s > _LATE * p99.value_s:
            doubts.append(
                f"idle threads woke up to {late_s * 1e3:.2g} ms late (99th percentile), which counts as "
                "latency: the machine does something else, or waking takes long beside so fast a model"
            )
        return ServerRound(
            rate_per_s=self._rate_per_s,
            seconds=self._seconds,
            instances=instances,
            batch_size=self._batch_size,
            seed=self._seed,
            queries=len(self._arrivals_s),
            latencies_s=tuple(latencies.tolist()),
            waiting_s=tuple(waiting.tolist()),
            calls=self._calls,
            ended_s=end_s,
            achieved_per_s=self._next / float(done.max()),
            backlog=backlog,
            p50=p50,
            p90=p90,
            p99=p99,
            growing=growing,
            woken_late_s=late_s,
            stopped=None if self._stopped is None else self._stopped[1],
            warnings=tuple(doubts),
        )


def serve(
    run: Callable[[int, int], object],
    *,
    threads: Concurrency,
    rate_per_s: float,
    seconds: float,
    batch_size: int = 1,
    limit_s: float | None = None,
    seed: int = 0,
    clock: Clock | None = None,
    pause: Callable[[float], object] | None = None,
) -> ServerRound:
    """Serve queries that arrive at random, in threads that are warm, and return how long they took.

    The rules are those of MLPerf's loadgen for its scenario `server` (Reddi et al. 2020, MLPerf Inference
    Benchmark), with shorter runs. A query is one sample. Latency counts from the scheduled arrival,
    whatever the server was doing then, so that a stall strikes every query that came during it (no
    coordinated omission). An instance that is free takes the queries that wait, the oldest first, up to
    `batch_size`, and never waits for a batch to fill.

    No thread generates the queries. The schedule is made before the start, and of the free instances one
    sleeps until the next arrival while the others stand behind it (leader and followers, Schmidt et al.
    2000, Pattern-Oriented Software Architecture 2). So an arrival takes no CPU time from the model, none
    is generated late, and the queue is only a position in the schedule. Sleeping threads do not spin; how
    late the system wakes them counts as latency, as it would in a server that waits for the network.

    Args:
        run: takes the instance and the number of samples, and computes them as one batch. It has been
            warmed up in `threads`, for every number up to `batch_size` if the engine cares.
        threads: the instances, as for offline rounds.
        rate_per_s: mean arrivals per second.
        seconds: during which queries arrive; those still waiting then are served too, for at most as
            long again.
        batch_size: the most queries in one call.
        limit_s: stop early once p99 above this is certain, whatever the remaining queries do.
        seed: of the arrivals.
        clock: tells the time.
        pause: sleeps at most so many seconds; by default also wakes when the round is stopped.

    Raises:
        Exception: the first one that `run` raised; the other instances stop after their call.
        MeasurementError: as `poisson_arrivals`; or the batch size is below 1.
    """
    used: Clock = SystemClock() if clock is None else clock
    line = _Line(rate_per_s=rate_per_s, seconds=seconds, batch_size=batch_size, limit_s=limit_s, seed=seed)
    stop = threading.Event()
    sleep = stop.wait if pause is None else pause
    first_in_line = threading.Lock()
    woken_late_s: list[float] = []
    start_s: float | None = None

    def take() -> tuple[range, float]:
        nonlocal start_s
        with first_in_line:
            if start_s is None:
                start_s = used.monotonic()
            upcoming_s = line.upcoming_s
            if upcoming_s is None:
                return range(0), start_s
            now_s = used.monotonic() - start_s
            idle = now_s < upcoming_s
            while upcoming_s - now_s > _INSTANT_S and not stop.is_set():
                sleep(upcoming_s - now_s)
                now_s = used.monotonic() - start_s
            now_s = max(now_s, upcoming_s)
            if stop.is_set() or line.is_lost(now_s):
                return range(0), start_s
            if idle:
                woken_late_s.append(now_s - upcoming_s)
            return line.take(now_s, idle=idle), start_s

    def work(instance: int) -> int:
        served = 0
        try:
            while True:
                taken, zero_s = take()
                if not taken:
                    return served
                run(instance, len(taken))
                line.finish(taken, used.monotonic() - zero_s)
                served += len(taken)
        except BaseException:
            stop.set()
            raise

    try:
        # One call of `work` per instance lasts the whole round.
        instances = threads.round(work, seconds=0.0).instances
    finally:
        stop.set()
    return line.record(instances=instances, woken_late_s=woken_late_s)


def server_round(
    run: Callable[[int, int], object],
    *,
    rate_per_s: float,
    seconds: float,
    instances: int = 1,
    batch_size: int = 1,
    limit_s: float | None = None,
    seed: int = 0,
    clock: Clock | None = None,
    pause: Callable[[float], object] | None = None,
) -> ServerRound:
    """Return one round of `serve` with threads of its own.

    Args:
        run: takes the instance and the number of samples, and computes them as one batch.
        rate_per_s: mean arrivals per second.
        seconds: during which queries arrive.
        instances: batches computed at the same time.
        batch_size: the most queries in one call.
        limit_s: stop early once p99 above this is certain.
        seed: of the arrivals.
        clock: tells the time.
        pause: sleeps at most so many seconds.

    Raises:
        Exception: as `serve`.
        MeasurementError: as `serve`; or there is no instance.

    >>> from alula.measure.fake import ScriptedClock
    >>> clock = ScriptedClock()
    >>> found = server_round(
    ...     lambda instance, samples: clock.advance(0.01),
    ...     rate_per_s=10.0, seconds=50.0, clock=clock, pause=clock.advance,
    ... )
    >>> found.queries, str(found.p50)
    (454, 'p50 10 ms [10, 10]')
    """
    with Concurrency(instances, clock=clock) as threads:
        return serve(
            run,
            threads=threads,
            rate_per_s=rate_per_s,
            seconds=seconds,
            batch_size=batch_size,
            limit_s=limit_s,
            seed=seed,
            clock=clock,
            pause=pause,
        )


def simulated_round(
    service_s: Callable[[int], float],
    *,
    rate_per_s: float,
    seconds: float,
    instances: int = 1,
    batch_size: int = 1,
    limit_s: float | None = None,
    seed: int = 0,
) -> ServerRound:
    """Return the round that a server would have whose batches take known times, without running anything.

    The queue is the one that `serve` uses; time jumps from event to event.

    Args:
        service_s: seconds that a batch of so many samples takes; called once per batch, in the order in
            which they start.
        rate_per_s: mean arrivals per second.
        seconds: during which queries arrive.
        instances: batches computed at the same time.
        batch_size: the most queries in a batch.
        limit_s: stop early once p99 above this is certain.
        seed: of the arrivals.

    Raises:
        MeasurementError: as `server_round`.

    >>> found = simulated_round(lambda samples: 0.01, rate_per_s=50.0, seconds=100.0)
    >>> len(found.latencies_s) == found.queries, found.growing, round(found.achieved_per_s)
    (True, False, 49)
    """
    if instances < 1:
        raise MeasurementError(f"A measurement needs at least 1 instance; got {instances}.")
    line = _Line(rate_per_s=rate_per_s, seconds=seconds, batch_size=batch_size, limit_s=limit_s, seed=seed)
    free_s = [0.0] * instances
    while (upcoming_s := line.upcoming_s) is not None:
        earliest_s = heapq.heappop(free_s)
        now_s = max(earliest_s, upcoming_s)
        if line.is_lost(now_s):
            break
        taken = line.take(now_s, idle=earliest_s < upcoming_s)
        done_s = now_s + service_s(len(taken))
        line.finish(taken, done_s)
        heapq.heappush(free_s, done_s)
    return line.record(instances=instances, woken_late_s=[])


def highest_rate(
    trial: Trial,
    *,
    p99_limit_s: float,
    low_per_s: float,
    high_per_s: float,
    tolerance: float = 0.05,
    margin: float = 0.10,
    seconds: float = 10.0,
    confirm_s: float = 60.0,
    min_queries: int = 500,
    budget_s: float | None = None,
    seed: int = 0,
    on_trial: Callable[[ServerTrial], None] | None = None,
) -> ServerRate:
    """Return the highest rate at which p99 stays under a limit, found by bisection and confirmed.

    A rate passes the search when the upper end of an interval of p99 is under the limit
    (`ServerRound.surely_meets`); when it is not, the trial is repeated with other arrivals, and two of
    three must have met the limit as measured. The range is halved on a logarithmic scale from `high_per_s`
    down, since trials above the limit stop early and cost little; `low_per_s` is tried only when nothing
    above it passed. At the end the lowest rate that failed is tried once more, and if it passes, the search
    goes on above it.

    The rate found is then held for `confirm_s`. There the upper end of the interval must be under the
    limit, in this round or in one more, which lasts up to five times as long where slow queries were so
    clustered that the first round said too little. Otherwise the rate is lowered by `margin`, and so on.
    The result is another `margin` below the rate confirmed: latency rises so steeply near the limit that a
    machine a few per cent slower than it was would miss it.

    It takes about log2(log(high_per_s / low_per_s) / tolerance) rates of the search, for `seconds` to three
    times that, and mostly two to four rounds of confirmation.

    With a budget, trials and confirmation are shortened to fit, and the search ends when its part is used up,
    with the best rate that passed. What the result then lacks in certainty is said in its warnings.

    Args:
        trial: serves at a rate.
        p99_limit_s: the limit of the 99th percentile of latency.
        low_per_s: the lowest rate of interest.
        high_per_s: the highest; nothing exceeds the offline throughput.
        tolerance: the search ends when the rates that pass and fail differ by this share.
        margin: how much lower to go where a rate was not confirmed, and below the rate confirmed; a share.
        seconds: of a trial; at least 20 limits and `min_queries` are waited for, and at most 900,000 queries.
        confirm_s: of the confirmation; the same holds.
        min_queries: expected in any round; p99 has no interval below 368.
        budget_s: time for all rounds, kept as long as there is a rate that passes; None: as long as it takes.
        seed: of the first trial; each takes the next.
        on_trial: called after each.

    Raises:
        Exception: as `trial`.
        MeasurementError: not even `low_per_s` passes or is confirmed, or an argument makes no sense.

    >>> from functools import partial
    >>> server = partial(simulated_round, lambda samples: 0.01)
    >>> found = highest_rate(server, p99_limit_s=0.05, low_per_s=10.0, high_per_s=100.0)
    >>> found.confirmation.surely_meets(0.05)
    True
    """
    if not (0 < low_per_s < high_per_s and p99_limit_s > 0 and tolerance > 0 and 0 <= margin < 1):
        raise MeasurementError(
            f"Got rates from {low_per_s} to {high_per_s} per second, a limit of {p99_limit_s} s, tolerance "
            f"{tolerance} and margin {margin}; expected rates that ascend from above 0, limit and tolerance "
            "above 0, and a margin of at least 0 and below 1."
        )
    trials: list[ServerTrial] = []
    wanted_s = confirm_s
    if budget_s is not None:
        confirm_s = min(confirm_s, _CONFIRMED_SHARE * budget_s)
        seconds = min(seconds, _SEARCHED_SHARE * budget_s / _TRIALS_IN_BUDGET)

    def left_s() -> float:
        return math.inf if budget_s is None else budget_s - sum(one.seconds for one in trials)

    def attempt(
        rate_per_s: float, shortest_s: float, purpose: Literal["search", "confirmation"]
    ) -> ServerRound:
        lasting_s = max(shortest_s, min_queries / rate_per_s, _LIMITS_PER_TRIAL * p99_limit_s)
        if budget_s is not None:
            lasting_s = min(lasting_s, max(shortest_s, _LONGEST_SHARE * budget_s))
            lasting_s = max(lasting_s, _FEWEST_QUERIES / rate_per_s)
        found = trial(
            rate_per_s=rate_per_s,
            seconds=min(lasting_s, 0.9 * MAX_QUERIES / rate_per_s),
            limit_s=p99_limit_s,
            seed=seed + len(trials),
        )
        trials.append(
            ServerTrial(
                purpose=purpose,
                rate_per_s=found.rate_per_s,
                seconds=found.ended_s,
                queries=len(found.latencies_s),
                p99=found.p99,
                met=found.meets(p99_limit_s),
                sure=found.surely_meets(p99_limit_s),
                stopped=found.stopped,
            )
        )
        if on_trial is not None:
            on_trial(trials[-1])
        return found

    def passes(rate_per_s: float) -> bool:
        met = 0
        for tried in range(1, _TRIES + 1):
            found = attempt(rate_per_s, seconds, "search")
            if found.surely_meets(p99_limit_s):
                return True
            met += found.meets(p99_limit_s)
            majority = _TRIES // 2 + 1
            if met == majority or tried - met == majority:
                break
            if not may_go_on():
                return 2 * met > tried
        return met > _TRIES // 2

    def may_go_on() -> bool:
        longest_s = max((one.seconds for one in trials), default=seconds)
        return left_s() >= confirm_s + longest_s

    rate_per_s = _bisected(
        passes,
        low=low_per_s,
        high=high_per_s,
        tolerance=tolerance,
        first=() if budget_s is None else tuple(_steps_down(low_per_s, high_per_s)),
        may_go_on=may_go_on,
    )
    if rate_per_s is None:
        raise MeasurementError(
            f"Even at a rate of {low_per_s:g} per second the 99th percentile of latency is "
            f"{_milliseconds(trials[-1].p99)}; expected at most {p99_limit_s * 1e3:g} ms. Allow more "
            "latency, or try a lower rate if single queries are fast enough."
        )
    while True:
        confirmation = attempt(rate_per_s, _fitting(confirm_s, left_s()), "confirmation")
        if not confirmation.surely_meets(p99_limit_s):
            again_s = confirm_s * _longer(confirmation, p99_limit_s)
            if left_s() >= again_s:
                confirmation = attempt(rate_per_s, again_s, "confirmation")
        if confirmation.surely_meets(p99_limit_s):
            break
        if confirmation.meets(p99_limit_s) and left_s() < confirm_s:
            break  # no time to be surer, as its interval says
        if rate_per_s <= low_per_s or not margin:
            raise MeasurementError(
                f"{rate_per_s:g} queries per second passed a short trial, but in a round of "
                f"{confirmation.ended_s:.3g} s the 99th percentile of latency was "
                f"{_milliseconds(confirmation.p99)}; expected the upper end to be at most "
                f"{p99_limit_s * 1e3:g} ms. Allow more latency, try a lower rate, or leave the machine alone."
            )
        rate_per_s = max(low_per_s, rate_per_s * (1 - margin))
    return ServerRate(
        per_s=rate_per_s * (1 - margin),
        p99_limit_s=p99_limit_s,
        margin=margin,
        confirmation=confirmation,
        trials=tuple(trials),
        seconds=sum(one.seconds for one in trials),
        queries=sum(one.queries for one in trials),
        warnings=_doubts(confirmation, p99_limit_s, wanted_s=wanted_s, high_per_s=high_per_s),
    )


def _doubts(
    confirmation: ServerRound, p99_limit_s: float, *, wanted_s: float, high_per_s: float
) -> tuple[str, ...]:
    """Return what makes a confirmation doubtful, in words."""
    doubts = list(confirmation.warnings)
    if confirmation.seconds < wanted_s:
        doubts.append(
            f"for lack of time the rate was held for {confirmation.seconds:.3g} s, not for {wanted_s:g} s"
        )
    if not confirmation.surely_meets(p99_limit_s):
        doubts.append(
            f"p99 met the limit as measured, but its interval does not show that it does: {confirmation.p99}"
        )
    if confirmation.rate_per_s >= high_per_s:
        doubts.append(
            f"the limit was not reached at the highest rate tried, {high_per_s:g} per second: "
            "higher ones may be possible"
        )
    return tuple(doubts)


def _fitting(confirm_s: float, left_s: float) -> float:
    """Return how long a confirmation lasts: as long as it should, or what is left, but a quarter at least."""
    return min(confirm_s, max(left_s, confirm_s / 4))


def _longer(found: ServerRound, p99_limit_s: float) -> float:
    """Return how many times as long a round must be for an interval of p99, at least 1."""
    if found.stopped is not None:
        return 1.0
    counted = effective_count(found.latencies_s, p99_limit_s)
    # Half as many again, since the count is an estimate.
    return min(max(1.5 * queries_needed(0.99) / counted, 1.0), _LONGEST)


def _steps_down(low: float, high: float) -> Iterator[float]:
    """Yield rates between two, downwards, in steps that grow.

    >>> [round(rate) for rate in _steps_down(2.0, 100.0)]
    [80, 64, 41, 17, 3]
    """
    rate, power = high * _STEP_DOWN, 1
    while rate > low:
        yield rate
        power *= 2
        rate = high * _STEP_DOWN**power


def _bisected(
    passes: Callable[[float], bool],
    *,
    low: float,
    high: float,
    tolerance: float,
    first: Sequence[float],
    may_go_on: Callable[[], bool],
) -> float | None:
    """Return a rate that passes, with one that failed twice at most `tolerance` above it; None if all fail.

    A disturbance that fails a rate would keep the search below it for good. So the lowest rate that failed
    is asked once more at the end, and if it passes, the search goes on between it and the next higher one.
    When it may not go on, the best rate that passed is returned; it goes on until one does.

    Args:
        passes: asks for a rate.
        low: is asked for only when all others failed.
        high: is asked for first.
        tolerance: a share.
        first: rates between the two, downwards, to be asked for until one passes; then the range is halved.
        may_go_on: whether there is time for another rate.
    """
    if passes(high):
        return high
    bottom, failed = low, [high]

    def goes_on() -> bool:
        return low <= bottom or may_go_on()

    for rate in first:
        if passes(rate):
            low = rate
            break
        failed.append(rate)
    while failed and goes_on():
        while failed[-1] > low * (1 + tolerance) and goes_on():
            middle = math.sqrt(low * failed[-1])
            if passes(middle):
                low = middle
            else:
                failed.append(middle)
        if not may_go_on():
            break
        again = failed.pop()
        if not passes(again):
            break
        low = again
    return low if low > bottom or passes(low) else None


def _milliseconds(found: Percentile) -> str:
    high = "unknown" if found.high_s is None else f"{found.high_s * 1e3:.4g} ms"
    return f"{found.value_s * 1e3:.4g} ms (upper end of its interval: {high})"
