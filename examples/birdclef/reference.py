"""A pipeline as plainly as it can be: librosa window by window, PyTorch as it is, NumPy for the blend.

Slow, and nothing of it is Alula's but the reading of the TOML files: what an ensemble is held against.
`python reference.py b ENSEMBLE RECORDING [--weights FOLDER]` does that for a recording, and fails where a
score is farther away than the tolerance.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from birdclef_layers import zoo
from by_librosa import read_wave, windows
from numpy.typing import NDArray
from pipelines import HERE, Member, Pipeline, read_pipeline

import alula
from alula.bundle import read_ensemble, read_manifest
from alula.core import Recipe
from alula.sources import load_model, parse_source

BATCH = 8

# Largest difference of a probability, by the precision of the ensemble's lowest member. In FP32: sums in
# other orders, and window functions that are rounded in other places.
TOLERANCES = {"fp32": 5e-3, "bf16": 0.1, "int8": 0.35}
# And what is left of the mean cosine of the rows.
COSINES = {"fp32": 0.9999, "bf16": 0.99, "int8": 0.995}


class Difference(NamedTuple):
    """How far scores are from those of the reference.

    Attributes:
        largest: of any score.
        mean: of all scores.
        cosine: of a row with that of the reference, mean over the rows.
        same_top1: share of rows whose highest score is that of the same class.
        rows: how many were compared.
    """

    largest: float
    mean: float
    cosine: float
    same_top1: float
    rows: int


def eager(member: Member, x: NDArray[np.float32], weights: Path | None) -> NDArray[np.float32]:
    """Return a network's outputs in eager PyTorch, (rows, classes).

    Args:
        member: of a pipeline.
        x: its inputs, (rows, 1, f, t).
        weights: folder of `NAME.safetensors`; None for the random ones.
    """
    import torch

    file = None if weights is None else weights / f"{member.name}.safetensors"
    module = load_model(parse_source(str(HERE / member.model), weights=file)).module
    if module is None:
        raise SystemExit(f"{member.model} is no factory of a module.")
    with torch.inference_mode():
        parts = [module(torch.from_numpy(x[k : k + BATCH])) for k in range(0, len(x), BATCH)]
    found: NDArray[np.float32] = torch.cat(parts).numpy()
    return found


def scores(pipeline: Pipeline, recording: Path, weights: Path | None) -> NDArray[np.float32]:
    """Return the probabilities of a recording's rows, (rows, classes).

    Args:
        pipeline: with the members that take part.
        recording: a sound file.
        weights: folder of `NAME.safetensors`; None for the random ones.
    """
    outputs = {}
    for member in pipeline.members:
        wave = read_wave(recording, member.description().sample_rate_hz)
        outputs[member.name] = eager(member, windows(wave, member, pipeline.lead_s(member)), weights)
    return pipeline.joined(outputs)


def difference(expected: NDArray[np.float32], got: NDArray[np.float32]) -> Difference:
    """Return how far scores (rows, classes) are from those of the reference.

    Raises:
        SystemExit: the shapes differ.
    """
    if expected.shape != got.shape:
        raise SystemExit(f"The reference has scores of shape {expected.shape}, the ensemble of {got.shape}.")
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(got, axis=1)
    return Difference(
        largest=float(np.abs(expected - got).max()),
        mean=float(np.abs(expected - got).mean()),
        cosine=float(np.mean((expected * got).sum(axis=1) / np.maximum(lengths, 1e-12))),
        same_top1=float(np.mean(expected.argmax(axis=1) == got.argmax(axis=1))),
        rows=len(expected),
    )


def lowest_precision(ensemble: Path) -> str:
    """Return `int8`, `bf16` or `fp32`: the lowest among an ensemble's members."""
    found = {
        Recipe.parse(read_manifest(ensemble / member.folder).chosen.recipe).precision
        for member in read_ensemble(ensemble).members
    }
    return next(precision for precision in ("int8", "bf16", "fp32") if precision in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pipeline", choices=["a", "b", "c", "d"])
    parser.add_argument("ensemble", type=Path, help="made by make.py of all members, or of --only")
    parser.add_argument("recording", type=Path)
    parser.add_argument("--weights", type=Path, help="folder of NAME.safetensors, as given to make.py")
    parser.add_argument("--only", help="names of members, comma-separated (default all)")
    options = parser.parse_args()
    zoo().import_timm()
    only = None if options.only is None else options.only.split(",")
    pipeline = read_pipeline(options.pipeline, only)
    with alula.load(options.ensemble, trust_code=True) as ensemble:
        [prediction] = ensemble.map([options.recording])
    if prediction.scores is None:
        raise SystemExit(f"{options.recording} failed: {prediction.error}")
    found = difference(scores(pipeline, options.recording, options.weights), prediction.scores)
    precision = lowest_precision(options.ensemble)
    print(
        f"{options.ensemble.name}, {precision}: {found.rows} rows differ by at most {found.largest:.2g}, on "
        f"average {found.mean:.2g}; cosine {found.cosine:.5f}; same top-1 in {100 * found.same_top1:.0f} %."
    )
    if found.largest > TOLERANCES[precision] or found.cosine < COSINES[precision]:
        raise SystemExit(
            f"Expected at most {TOLERANCES[precision]:g} and a cosine of at least {COSINES[precision]:g}."
        )


if __name__ == "__main__":
    main()
