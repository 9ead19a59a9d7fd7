"""Does a promised rate hold? A search for the server scenario, then an independent replay of its rate.

For each network `alula.optimize` looks for the highest rate of random arrivals with p99 under a limit. Then
`replay.py`, a process of its own with another load generator, sends queries at that rate for a minute.

    python benchmarks/server.py [--models resnet18,mobilenetv3_large_100] [--latency-limit 100ms]
        [--budget 10m] [--seconds 60] [--markdown FILE]

The weights are random and only speed counts, so every recipe that runs is accepted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import alula
import output
import zoo
from alula.bundle import read_measurements
from alula.measure import ServerRate

HERE = Path(__file__).resolve().parent
SAMPLES = 96


def searched(model: str, bundle: Path, *, budget: str, limit: str) -> tuple[str, ServerRate]:
    """Write a bundle for the server scenario; return what was chosen, and its rate."""
    with alula.optimize(
        f"{HERE / 'zoo.py'}:{model}",
        zoo.noise(model, SAMPLES),
        output=bundle,
        max_drop=1.0,
        scenario="server",
        latency_limit=limit,
        budget=budget,
        calibration=32,
        report=lambda text: output.say(f"{model}: {text}"),
    ) as found:
        chosen = f"{found.manifest.chosen.recipe} ({found.manifest.chosen.settings})"
    server = read_measurements(bundle).server
    assert server is not None
    return chosen, server


def replayed(bundle: Path, *, seconds: float) -> dict[str, Any]:
    """Return what `replay.py` found in a process of its own."""
    command = [sys.executable, str(HERE / "replay.py"), str(bundle), "--seconds", str(seconds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=output.names, default=("resnet18", "mobilenetv3_large_100"))
    parser.add_argument("--latency-limit", default="100ms", help="of p99 (default 100ms)")
    parser.add_argument("--budget", default="10m", help="of each search (default 10m)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the replay (default 60)")
    output.add_markdown_option(parser)
    options = parser.parse_args()
    zoo.let_children_import_timm()
    rows = []
    for model in options.models:
        with tempfile.TemporaryDirectory(prefix="alula-benchmark-") as scratch:
            bundle = Path(scratch) / f"{model}.alula"
            chosen, server = searched(model, bundle, budget=options.budget, limit=options.latency_limit)
            output.say(f"{model}: replaying {server.per_s:.4g} queries/s for {options.seconds:g} s")
            again = replayed(bundle, seconds=options.seconds)
        kept = again["p99_s"] <= server.p99_limit_s
        output.say(
            f"{model}: promised {server.per_s:.4g}/s with p99 under {1e3 * server.p99_limit_s:g} ms; "
            f"replayed p99 {1e3 * again['p99_s']:.4g} ms: {'kept' if kept else 'NOT KEPT'}"
        )
        rows.append(
            (
                model,
                chosen,
                f"{server.per_s:.4g}",
                f"{server.confirmation.seconds:.0f} s",
                f"{1e3 * server.confirmation.p99.value_s:.4g} ms",
                f"{1e3 * server.p99_limit_s:g} ms",
                f"{1e3 * again['p99_s']:.4g} ms",
                f"{again['queries']:,}",
                "yes" if kept else "NO",
            )
        )
    header = ("model", "chosen", "promised queries/s", "held for", "p99 there", "limit", "p99 replayed")
    output.publish(
        f"Budget {options.budget} for each search, replay of {options.seconds:g} s by an independent load "
        f"generator.\n\n{output.table((*header, 'queries', 'kept'), rows, left=2)}",
        markdown=options.markdown,
    )


if __name__ == "__main__":
    main()
