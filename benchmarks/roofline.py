"""What this CPU can multiply at most, and what that allows ResNet-50: a bound for every speed-up.

python benchmarks/roofline.py [--rounds 7] [--seconds 1] [--markdown FILE]

The peaks are those of `alula doctor --roofline`: chains of wide convolutions and matrix products through the
installed engines, in FP32 and in INT8, one instance a thread. ResNet-50 at 224x224 has 4.09 GMAC, counted
in its graph, so peak / 4.09 bounds its samples/s; that bound over eager PyTorch, measured in the same
interleaved rounds, bounds its speed-up.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import output
import zoo
from alula.core import ARTIFACT_FILES
from alula.export import export_module
from alula.graphs import read_onnx, total_macs
from alula.hardware import thread_budget
from alula.measure import Concurrency, Round, interleave
from alula.tuning.roofline import open_peaks

if TYPE_CHECKING:
    from torch import nn

MODEL = "resnet50"
BATCHES = (1, 8, 32)


def macs(network: nn.Module) -> int:
    """Return the multiply-accumulates of the network for one sample."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        export_module(network, [zoo.noise(MODEL, 2)], target="onnx", folder=folder)
        return total_macs(read_onnx(folder / ARTIFACT_FILES["onnx"]))


def eager(network: nn.Module, batch: int) -> Callable[[float], Round]:
    """Return a timer of the network in eager PyTorch."""
    import torch

    x = torch.from_numpy(zoo.noise(MODEL, batch))

    def run(_instance: int) -> int:
        with torch.inference_mode():
            network(x)
        return batch

    def measure(seconds: float) -> Round:
        with Concurrency(1) as concurrency:
            return concurrency.round(run, seconds=seconds)

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    output.add_markdown_option(parser)
    options = parser.parse_args()
    threads = thread_budget()
    network = zoo.network(MODEL)
    import torch

    torch.set_num_threads(threads)
    resnet_macs = macs(network)
    with open_peaks(threads=threads, report=output.say) as peaks:
        timers = {f"eager, batch {batch}": eager(network, batch) for batch in BATCHES}
        for measure in timers.values():
            measure(0.5)
        output.say(f"{options.rounds} rounds of {options.seconds} s")
        done, dropped = interleave(
            {**peaks.contenders, **timers}, rounds=options.rounds, seconds=options.seconds
        )
        method = f"best of {options.rounds} interleaved rounds of {options.seconds:g} s, {threads} threads"
        roof = peaks.roofline(done, failures=dropped, method=method)
    best_eager = max(float(np.median([one.per_s for one in done[name]])) for name in timers)
    rows = []
    for precision in ("fp32", "bf16", "int8"):
        peak = roof.gmacs_per_s(precision)
        if peak is not None:
            bound = 1e9 * peak / resnet_macs
            figures = (f"{peak:.0f}", f"{bound:.1f}", f"{best_eager:.1f}", f"{bound / best_eager:.2f}")
            rows.append([precision, *figures])
    text = output.table(
        [
            "precision",
            "peak GMAC/s",
            "ResNet-50 at peak, images/s",
            "eager, images/s",
            "bound of the speed-up",
        ],
        rows,
    )
    output.publish(
        f"ResNet-50: {resnet_macs / 1e9:.2f} GMAC an image; memory {roof.bandwidth_gb_per_s:.1f} GB/s. "
        f"{roof.method}. {time.strftime('%Y-%m-%d')}.\n\n{text}",
        markdown=options.markdown,
    )


if __name__ == "__main__":
    main()
