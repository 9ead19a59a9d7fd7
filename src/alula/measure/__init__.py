"""How fast something runs: timed rounds, interleaved contenders, medians, ratios, and doubts.

The scenarios have MLPerf's names: `offline` (`Concurrency.round`), `single-stream` (`single_stream`) and
`server` (`serve`, `highest_rate`).

Knows nothing of engines: it times callables with a clock that a test can replace
(`alula.measure.fake.ScriptedClock`). Raw times are kept, and statistics are pure functions of them.
"""

from alula.measure.clock import Clock, SystemClock
from alula.measure.interleaving import Interleaved, interleave
from alula.measure.latency import (
    MIN_QUERIES,
    Latency,
    Percentile,
    joined_latency,
    percentile_with_interval,
    queries_needed,
    single_stream,
)
from alula.measure.rounds import Concurrency, Round, WarmUp, offline_round, warm_up
from alula.measure.server import (
    ServerRate,
    ServerRound,
    ServerTrial,
    highest_rate,
    serve,
    server_round,
    simulated_round,
)
from alula.measure.statistics import ratio, stability_warnings, throughput

__all__ = [
    "MIN_QUERIES",
    "Clock",
    "Concurrency",
    "Interleaved",
    "Latency",
    "Percentile",
    "Round",
    "ServerRate",
    "ServerRound",
    "ServerTrial",
    "SystemClock",
    "WarmUp",
    "highest_rate",
    "interleave",
    "joined_latency",
    "offline_round",
    "percentile_with_interval",
    "queries_needed",
    "ratio",
    "serve",
    "server_round",
    "simulated_round",
    "single_stream",
    "stability_warnings",
    "throughput",
    "warm_up",
]
