"""How much memory does calibration take, and does it grow with the samples?

A static quantizer runs the network over calibration samples and watches every tensor between its layers. All
of these tensors of all samples are far more than fits into memory. Each recipe is built in a process as a
search does it, once with few samples and once with many; what is told is the peak of the resident memory of
that process, with its libraries. Of two recipes that need the same histograms the second finds those of the
first, so it is done in seconds.

    python benchmarks/calibration_memory.py [--model tf_efficientnet_b0_ns] [--samples 100,500]
        [--markdown FILE]

Needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

import output
import zoo
from alula.core import Recipe
from alula.hardware import fingerprint, int8_class, thread_budget
from alula.sources import parse_source
from alula.tuning import Workshop

RECIPES = (
    "onnxruntime/int8-static",
    "onnxruntime/int8-static-percentile",
    "onnxruntime/int8-static-entropy",
    "openvino/int8-nncf",
)
TIMEOUT_S = 3600.0
MEMORY_LIMIT_BYTES = 16 * 2**30
_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024  # of `ru_maxrss`


def workshop(model: str, folder: Path, samples: int) -> Workshop:
    """Return a workshop in a folder; what is there already is not made again."""
    folder.mkdir(exist_ok=True)
    path = folder / "noise.npy"
    if not path.exists():
        np.save(path, zoo.noise(model, samples))
    return Workshop(
        parse_source(f"{zoo.__file__}:{model}"),
        folder,
        calibration=(str(path),),
        validation=(str(path),),
        threads=thread_budget(),
        saturating=int8_class(fingerprint().isa) == "saturating",
        memory_limit_bytes=MEMORY_LIMIT_BYTES,
        timeout_s=lambda: TIMEOUT_S,
        report=output.say,
    )


def built(model: str, folder: Path, samples: int, recipe: Recipe) -> tuple[float, int]:
    """Return the seconds that a recipe takes to build, and the peak memory in bytes of what builds it.

    Call it in a new process, all of whose children it counts.
    """
    shop = workshop(model, folder, samples)
    started_s = time.monotonic()
    shop.artifact(recipe)
    took_s = time.monotonic() - started_s
    return took_s, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _UNIT_BYTES


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=list(zoo.INPUT_SHAPES), default="tf_efficientnet_b0_ns")
    parser.add_argument("--samples", type=output.sizes, default=(100, 500), help="default 100,500")
    output.add_markdown_option(parser)
    options = parser.parse_args()
    zoo.let_children_import_timm()
    cells: dict[str, list[str]] = {name: [name] for name in RECIPES}
    for samples in options.samples:
        with tempfile.TemporaryDirectory(prefix="alula-benchmark-") as scratch:
            folder = Path(scratch)
            workshop(options.model, folder, samples).export("onnx")
            for name in RECIPES:
                output.say(f"{name} with {samples} samples")
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                    took_s, peak_bytes = alone.submit(
                        built, options.model, folder, samples, Recipe.parse(name)
                    ).result()
                cells[name] += [f"{peak_bytes / 2**20:,.0f}", f"{took_s:.0f}"]
    header = ["recipe"]
    for samples in options.samples:
        header += [f"{samples} samples: peak, MiB", "seconds"]
    shape = "x".join(map(str, zoo.INPUT_SHAPES[options.model]))
    text = f"{options.model}, samples of {shape}.\n\n{output.table(header, list(cells.values()))}"
    output.publish(text, markdown=options.markdown)


if __name__ == "__main__":
    main()
