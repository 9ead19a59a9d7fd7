"""How fast something runs: timed rounds, interleaved contenders, medians, ratios, and doubts.

Knows nothing of engines: it times callables with a clock that a test can replace
(`alula.measure.fake.ScriptedClock`). Raw times are kept, and statistics are pure functions of them.
"""

from alula.measure.clock import Clock, SystemClock
from alula.measure.interleaving import Interleaved, interleave
from alula.measure.rounds import Concurrency, Round, WarmUp, offline_round, warm_up
from alula.measure.statistics import ratio, stability_warnings, throughput

__all__ = [
    "Clock",
    "Concurrency",
    "Interleaved",
    "Round",
    "SystemClock",
    "WarmUp",
    "interleave",
    "offline_round",
    "ratio",
    "stability_warnings",
    "throughput",
    "warm_up",
]
