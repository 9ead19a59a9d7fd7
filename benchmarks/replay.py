"""Send a bundle's promised rate of queries to it, and say what its p99 was: a load generator of its own.

A bundle that was made for the server scenario promises a rate of random arrivals at which p99 stays under a
limit. This script shares nothing with the code that found the rate: it reads the promise from the bundle's
JSON, loads the chosen artifact, sends queries from a thread of its own through a queue, and takes the times
itself.

    python benchmarks/replay.py BUNDLE [--seconds 60] [--seed 1]

It prints one JSON document. Latency counts from the time at which a query was to be sent.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np

from alula.core import Recipe, Settings, Signature
from alula.engines import Session, engine_named


def loaded(bundle: Path) -> tuple[Session, Settings, tuple[np.ndarray, ...]]:
    """Return the chosen candidate of a bundle, ready to run, its settings, and real inputs, (n, ...) each."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    chosen = manifest["chosen"]
    recipe = Recipe.parse(chosen["recipe"])
    settings = msgspec.convert(chosen["settings"], Settings)
    session = engine_named(recipe.engine).load(
        bundle / chosen["artifact"],
        recipe=recipe,
        signature=msgspec.convert(manifest["signature"], Signature),
        settings=settings,
    )
    with np.load(bundle / "golden.npz", allow_pickle=False) as golden:
        samples = tuple(golden[name] for name in manifest["golden_inputs"])
    return session, settings, samples


def replay(bundle: Path, *, rate_per_s: float, seconds: float, seed: int) -> np.ndarray:
    """Return the latency of each query in seconds, float64 (n,), in no order."""
    session, settings, samples = loaded(bundle)
    rows = np.arange(settings.batch_size) % len(samples[0])
    batches = [
        tuple(np.ascontiguousarray(array[rows[:size]]) for array in samples)
        for size in range(1, settings.batch_size + 1)
    ]
    gaps = np.random.default_rng(seed).exponential(1 / rate_per_s, int(1.2 * rate_per_s * seconds) + 100)
    arrivals = np.cumsum(gaps)
    arrivals = arrivals[arrivals < seconds]
    waiting: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    latencies: list[list[float]] = [[] for _ in range(settings.instances)]
    ready = threading.Barrier(settings.instances + 1)

    def serve(mine: list[float]) -> None:
        for batch in batches:
            session.run(batch)
            session.run(batch)
        ready.wait()
        while (first := waiting.get()) is not None:
            taken = [first]
            while len(taken) < settings.batch_size:
                try:
                    more = waiting.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    waiting.put(None)
                    break
                taken.append(more)
            session.run(batches[len(taken) - 1])
            done_s = time.perf_counter()
            mine += [done_s - sent_s for sent_s in taken]
        waiting.put(None)  # for the next thread

    threads = [threading.Thread(target=serve, args=(mine,)) for mine in latencies]
    for thread in threads:
        thread.start()
    ready.wait()
    start_s = time.perf_counter()
    for arrival in arrivals.tolist():
        while (left_s := start_s + arrival - time.perf_counter()) > 0:
            time.sleep(left_s)
        waiting.put(start_s + arrival)
    waiting.put(None)
    for thread in threads:
        thread.join()
    return np.array([latency for mine in latencies for latency in mine])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="default 60")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals (default 1)")
    options = parser.parse_args()
    promise = json.loads((options.bundle / "measurements.json").read_text())["server"]
    rate_per_s = promise["per_s"]
    latencies = replay(options.bundle, rate_per_s=rate_per_s, seconds=options.seconds, seed=options.seed)
    assert "alula.measure" not in sys.modules
    p50_s, p99_s = np.quantile(latencies, (0.5, 0.99), method="higher")
    found = {
        "promised_per_s": rate_per_s,
        "limit_s": promise["p99_limit_s"],
        "seconds": options.seconds,
        "queries": len(latencies),
        "p50_s": float(p50_s),
        "p99_s": float(p99_s),
        "slowest_s": float(latencies.max()),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
