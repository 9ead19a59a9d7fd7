"""Interleaved rounds of candidates, each living in its own process, only one computing at a time."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from alula.hardware import describe_disturbance, take_snapshot
from alula.measure import (
    MIN_QUERIES,
    Latency,
    Round,
    ServerRate,
    ServerRound,
    highest_rate,
    interleave,
)
from alula.tuning.messages import (
    Loaded,
    LoadModelRequest,
    LoadRequest,
    Measured,
    MeasureRequest,
    Served,
    ServeRequest,
    Streamed,
    StreamRequest,
)
from alula.tuning.process import Child, ChildError

__all__ = [
    "Comparison",
    "Loss",
    "compare_speeds",
    "measure_latency",
    "measure_round",
    "measure_server",
    "patience_s",
    "stream_s",
]

# A round that takes so many times what it should, or at least so long, hangs.
PATIENCE = 20
LEAST_PATIENCE_S = 30.0
_WARM_UP_S = 2.0  # with two calls, whatever they take
_CALLS = 3  # two to warm up, and one that is under way when the round's time is over
STREAM_S = 10.0
LONGEST_STREAM_S = 3 * STREAM_S


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Why a contender took no part: one readable line, and the command that repeats it."""

    error: str
    reproduce: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came of a comparison.

    Attributes:
        rounds: by contender; round i of one and round i of another are neighbours in time.
        losses: contenders that failed.
        warnings: what disturbed the measurement, in words.
    """

    rounds: dict[str, list[Round]]
    losses: dict[str, Loss]
    warnings: tuple[str, ...]


def compare_speeds(
    contenders: Mapping[str, LoadRequest | LoadModelRequest],
    *,
    inputs: tuple[str, ...],
    folder: Path,
    threads: int,
    memory_limit_bytes: int,
    rounds: int,
    round_s: float,
    timeout_s: float,
    seed: int = 0,
) -> Comparison:
    """Return the rounds of all contenders that could be loaded and run.

    Args:
        contenders: by name, how each is loaded.
        inputs: one `.npy` (n, ...) per model input, real samples.
        folder: for the children's requests and logs.
        threads: thread budget of each.
        memory_limit_bytes: of each child process.
        rounds: how often each is timed.
        round_s: length of a round.
        timeout_s: of each step of a child.
        seed: of the order.
    """
    losses: dict[str, Loss] = {}
    used_cpu_s = 0.0
    with contextlib.ExitStack() as stack:
        children: dict[str, Child] = {}

        def measurer(name: str) -> Callable[[float], Round]:
            call_s: float | None = None

            def measure(seconds: float) -> Round:
                nonlocal used_cpu_s, call_s
                allowed_s = timeout_s if call_s is None else min(timeout_s, patience_s(seconds, call_s))
                try:
                    measured, cpu_s = measure_round(children[name], inputs, seconds, timeout_s=allowed_s)
                except ChildError as error:
                    losses[name] = Loss(error=str(error), reproduce=children[name].reproduce)
                    raise
                used_cpu_s += cpu_s
                call_s = max(measured.calls)
                return measured

            return measure

        calls: dict[str, Callable[[float], Round]] = {}
        for index, (name, request) in enumerate(contenders.items()):
            child = stack.enter_context(
                Child(folder, f"compare-{index}", threads=threads, memory_limit_bytes=memory_limit_bytes)
            )
            children[name] = child
            try:
                child.ask(request, Loaded, timeout_s=timeout_s)
                measurer(name)(0.0)  # warms up
            except ChildError as error:
                losses[name] = Loss(error=str(error), reproduce=child.reproduce)
            else:
                calls[name] = measurer(name)
        if not calls:
            return Comparison(rounds={}, losses=losses, warnings=())
        used_cpu_s = 0.0
        before, started = take_snapshot(), time.monotonic()
        try:
            done = interleave(calls, rounds=rounds, seconds=round_s, seed=seed).rounds
        except ChildError:  # of the last one left
            done = {}
        warnings = describe_disturbance(
            before, take_snapshot(), own_cpu_s=used_cpu_s, wall_s=time.monotonic() - started
        )
    return Comparison(rounds=done, losses=losses, warnings=warnings)


def measure_round(
    child: Child, inputs: tuple[str, ...], seconds: float, *, timeout_s: float
) -> tuple[Round, float]:
    """Return one round of what a child has loaded, and the CPU seconds that it took.

    Raises:
        ChildError: the child failed.
    """
    reply = child.ask(MeasureRequest(inputs=inputs, seconds=seconds), Measured, timeout_s=timeout_s)
    taken = Round(
        samples=reply.samples,
        wall_s=reply.wall_s,
        calls=reply.calls_s,
        instances=reply.instances,
        stolen=reply.stolen,
    )
    return taken, reply.cpu_s


def patience_s(seconds: float, call_s: float) -> float:
    """Return after how long a round that was asked for hangs, and is not merely slow.

    Args:
        seconds: length of the round.
        call_s: about how long one call takes.

    >>> patience_s(0.4, 0.02), patience_s(0.6, 2.0)
    (49.2, 172.0)
    """
    return max(LEAST_PATIENCE_S, PATIENCE * (_WARM_UP_S + seconds + _CALLS * call_s))


def measure_latency(child: Child, inputs: tuple[str, ...], *, timeout_s: float, parts: int = 1) -> Latency:
    """Return how long single samples take with what a child has loaded.

    Args:
        child: has loaded it.
        inputs: one `.npy` (n, ...) per model input.
        timeout_s: of the answer.
        parts: it is one of so many measurements that will be joined, and as many times shorter.

    Raises:
        ChildError: the child failed.
    """
    request = StreamRequest(
        inputs=inputs,
        seconds=STREAM_S / parts,
        max_s=LONGEST_STREAM_S / parts,
        min_queries=math.ceil(MIN_QUERIES / parts),
    )
    return child.ask(request, Streamed, timeout_s=timeout_s).latency


def stream_s(call_s: float) -> float:
    """Return about how long `measure_latency` takes where one sample takes `call_s`.

    >>> stream_s(0.001), stream_s(0.05), stream_s(1.0)
    (10.0, 18.400000000000002, 30.0)
    """
    return min(LONGEST_STREAM_S, max(STREAM_S, MIN_QUERIES * call_s))


def measure_server(
    child: Child,
    inputs: tuple[str, ...],
    *,
    limit_s: float,
    offline_per_s: float,
    timeout_s: float,
    budget_s: float | None = None,
    seed: int = 0,
) -> ServerRate:
    """Return the highest rate of random arrivals that what a child has loaded serves within a limit of p99.

    Args:
        child: has loaded what serves.
        inputs: one `.npy` (n, ...) per model input, real samples.
        limit_s: of the 99th percentile of latency.
        offline_per_s: its throughput, which no rate exceeds.
        timeout_s: of a step, beside the length of a trial.
        budget_s: for all trials; None: as long as they take.
        seed: of the arrivals.

    Raises:
        ChildError: the child failed.
        MeasurementError: not even a fiftieth of the throughput is served within the limit.
    """

    def trial(*, rate_per_s: float, seconds: float, limit_s: float, seed: int) -> ServerRound:
        request = ServeRequest(
            inputs=inputs, rate_per_s=rate_per_s, seconds=seconds, limit_s=limit_s, seed=seed
        )
        return child.ask(request, Served, timeout_s=timeout_s + seconds).found

    return highest_rate(
        trial,
        p99_limit_s=limit_s,
        low_per_s=offline_per_s / 50,
        high_per_s=offline_per_s,
        budget_s=budget_s,
        seed=seed,
    )
