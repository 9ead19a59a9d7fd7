"""Make an ensemble of one of the pipelines: `python make.py b CLIPS -o b.alula [--budget 5m]`.

Each network is optimised on the clips (a folder of recordings; no labels are needed) into a bundle
beside the output, and the bundles become one with the pipeline's blend and post-processing. A bundle that is
there already is kept, so that the same command goes on where it was stopped. Then
`alula predict b.alula RECORDINGS -o submission.csv` runs it.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec
from birdclef_layers import zoo
from pipelines import HERE, read_pipeline

import alula
from alula.bundle import is_ensemble
from alula.core import Blend, Precision
from alula.postprocess import PostProcessing, read_postprocessing

WINDOWS = 12
"""Of a stretch that is run at once: a minute of rows of five seconds."""

MAX_DROP = 0.01
"""Of the cosine with the network itself."""


def blend_of(letter: str) -> Blend:
    """Return the blend of a pipeline, as `alula ensemble` takes it."""
    said = tomllib.loads((HERE / f"pipeline_{letter}.toml").read_text("utf-8"))["blend"]
    blend: Blend = msgspec.convert(said, type=Blend)
    return blend


def post_of(letter: str, members: Collection[str]) -> PostProcessing:
    """Return the post-processing of a pipeline with the views of some of its members."""
    pipeline = read_pipeline(letter)
    if pipeline.post is None:
        return PostProcessing()
    post = read_postprocessing(HERE / pipeline.post)
    views = {name: view for name, view in post.view.items() if name in members}
    return msgspec.structs.replace(post, view=views)


def make_pipeline(
    letter: str,
    clips: Path,
    output: Path,
    *,
    weights: Path | None = None,
    budget: str = "5m",
    precisions: tuple[Precision, ...] | None = None,
    engines: tuple[str, ...] | None = None,
    only: tuple[str, ...] | None = None,
    whole_files: Path | None = None,
    max_drop: float = MAX_DROP,
) -> Path:
    """Write an ensemble, and return its path.

    Args:
        letter: `a`, `b`, `c` or `d`.
        clips: folder of recordings to calibrate and compare on.
        output: the ensemble to make; the members' bundles go into the folder `OUTPUT.members`.
        weights: folder with `NAME.safetensors` for members that were trained, see `train.py`.
        budget: of each member's search.
        precisions: that are tried; None for all.
        engines: that are tried; None for all.
        only: names of members; None for all.
        whole_files: folder of recordings of minutes, to run networks with context over long stretches where
            that keeps their scores; None for window by window.
        max_drop: of the cosine with the network itself.
    """
    from alula.errors import AccuracyError
    from alula.workflows import make_ensemble, optimize_whole_files

    pipeline = read_pipeline(letter, only)
    folder = output.with_name(f"{output.name}.members")
    folder.mkdir(parents=True, exist_ok=True)
    labels = tuple(f"species_{index:03d}" for index in range(pipeline.classes))
    post = post_of(letter, [member.name for member in pipeline.members])
    bundles, views = [], {}
    for member in pipeline.members:
        bundle = folder / f"{member.name}.alula"
        trained = None if weights is None else weights / f"{member.name}.safetensors"
        if trained is not None and not trained.is_file():
            trained = None
        view = post.view.get(member.name)
        model = str(HERE / member.model)
        how: dict[str, Any] = {
            "weights": trained,
            "input": HERE / member.input,
            # Several species may sound at once, so the highest score alone is not the result.
            "metric": "cosine",
            "max_drop": max_drop,
            "activation": member.activation,
            "labels": labels,
            "output": bundle,
            "budget": budget,
            "precisions": precisions,
            "engines": engines,
            "report": print,
        }
        if whole_files is not None and view is not None and not bundle.exists():
            try:
                optimize_whole_files(model, whole_files, windows=WINDOWS, keep_s=view.keep_s, **how).close()
            except AccuracyError as error:
                print(f"{member.name}: {error}")
        if not bundle.exists():
            alula.optimize(model, clips, **how).close()
        bundles.append(bundle)
        # What runs over stretches brings its view along.
        if view is not None and not is_ensemble(bundle):
            views[member.name] = view
    make_ensemble(
        bundles,
        output,
        blend=blend_of(letter),
        post=msgspec.structs.replace(post, view=views),
        replace=True,
    )
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pipeline", choices=["a", "b", "c", "d"])
    parser.add_argument("clips", type=Path, help="folder of recordings to calibrate and compare on")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the ensemble, NAME.alula")
    parser.add_argument("--weights", type=Path, help="folder of NAME.safetensors, from train.py")
    parser.add_argument("--budget", default="5m", help="of each member's search (default 5m)")
    parser.add_argument("--only", type=names, help="names of members, comma-separated (default all)")
    parser.add_argument("--engines", type=names, help="that are tried, comma-separated (default all)")
    parser.add_argument("--precisions", type=names, help="of fp32,bf16,int8 (default all)")
    parser.add_argument(
        "--max-drop", type=float, default=MAX_DROP, help=f"of the cosine (default {MAX_DROP:g})"
    )
    parser.add_argument(
        "--whole-files",
        type=Path,
        metavar="RECORDINGS",
        help="try networks with context over long stretches, on recordings of minutes",
    )
    options = parser.parse_args()
    zoo().let_children_import_timm()
    make_pipeline(
        options.pipeline,
        options.clips,
        options.output,
        weights=options.weights,
        budget=options.budget,
        precisions=options.precisions,
        engines=options.engines,
        only=options.only,
        whole_files=options.whole_files,
        max_drop=options.max_drop,
    )


def names(text: str) -> tuple[str, ...]:
    """Return the comma-separated names in an option."""
    return tuple(part.strip() for part in text.split(","))


if __name__ == "__main__":
    main()
