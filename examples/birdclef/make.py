"""Make an ensemble of one of the pipelines: `python make.py b CLIPS -o b.alula [--budget 5m]`.

Each network is optimised on the clips (a folder of recordings; no labels are needed) into a bundle
beside the output, and the bundles become one with the pipeline's blend and post-processing. A bundle that is
there already is kept. Then `alula predict b.alula RECORDINGS -o submission.csv` runs it.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

import msgspec
from birdclef_layers import zoo
from pipelines import HERE, read_pipeline

import alula
from alula.core import Blend, Precision


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
    """
    from alula.postprocess import PostProcessing, read_postprocessing
    from alula.workflows import make_ensemble

    pipeline = read_pipeline(letter)
    members = [member for member in pipeline.members if only is None or member.name in only]
    folder = output.with_name(f"{output.name}.members")
    folder.mkdir(parents=True, exist_ok=True)
    labels = [f"species_{index:03d}" for index in range(pipeline.classes)]
    bundles = []
    for member in members:
        bundle = folder / f"{member.name}.alula"
        bundles.append(bundle)
        if bundle.exists():
            continue
        trained = None if weights is None else weights / f"{member.name}.safetensors"
        alula.optimize(
            str(HERE / member.model),
            clips,
            weights=trained if trained is not None and trained.is_file() else None,
            input=HERE / member.input,
            metric="agreement",
            activation=member.activation,
            labels=labels,
            output=bundle,
            budget=budget,
            precisions=precisions,
            engines=engines,
            report=print,
        ).close()
    said = tomllib.loads((HERE / f"pipeline_{letter}.toml").read_text("utf-8"))["blend"]
    post = PostProcessing() if pipeline.post is None else read_postprocessing(HERE / pipeline.post)
    names = {member.name for member in members}
    views = {name: view for name, view in post.view.items() if name in names}
    make_ensemble(
        bundles,
        output,
        blend=msgspec.convert(said, type=Blend),
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
    options = parser.parse_args()
    zoo().let_children_import_timm()
    make_pipeline(
        options.pipeline, options.clips, options.output, weights=options.weights, budget=options.budget
    )


if __name__ == "__main__":
    main()
