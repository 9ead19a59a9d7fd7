"""The commands: parse, call one workflow, draw its result."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from alula._version import __version__
from alula.cli.options import AlulaGroup, Screen, command_options, csv_of
from alula.core import Scenario, TableFormat
from alula.errors import UsageError

if TYPE_CHECKING:
    from alula.pipeline import Selection

__all__ = ["cli"]

SCENARIOS = get_args(Scenario)
BLENDS = ("mean", "logits", "geometric", "power", "rank", "min", "max")
FORMATS = get_args(TableFormat)
EXIT_SOME_INPUTS_FAILED = 3
FOLDER = click.Path(path_type=Path)


@click.group(
    cls=AlulaGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, "--version", prog_name="alula")
def cli() -> None:
    """Find the fastest accurate way to run a trained PyTorch model on this CPU, and run it.

    Start with `alula demo`, or with `alula doctor` to see what this machine can do.
    """


@cli.command()
@click.option("--roofline", is_flag=True, help="Measure peaks of products and memory too; half a minute.")
@command_options
def doctor(screen: Screen, roofline: bool) -> None:
    """Say what this machine can do: CPU, thread budget, engines."""
    from alula.cli.render import draw_diagnosis
    from alula.workflows import diagnose

    diagnosis = diagnose(roofline=roofline, report=screen.note)
    screen.result(diagnosis, lambda console: draw_diagnosis(console, diagnosis))


@cli.command()
@click.argument("model")
@click.option("--data", required=True, help="Folder of class folders, CSV or Parquet manifest, or .npz.")
@click.option("-o", "--output", type=FOLDER, required=True, help="The bundle to make, NAME.alula.")
@click.option("--weights", type=FOLDER, help="State dict: .safetensors, .pth, .pt or .th.")
@click.option("--input", "description", help="Input description: a preset's name or a TOML file.")
@click.option("--labels", help="Class names in the model's order: a,b,c or a file with one per line.")
@click.option(
    "--metric", help="top1, balanced_accuracy, macro_auc, padded_cmap, mse, agreement, cosine or file.py:fn."
)
@click.option("--max-drop", type=float, default=0.005, show_default=True, help="Largest drop of the metric.")
@click.option("--scenario", type=click.Choice(SCENARIOS), default="offline", show_default=True)
@click.option("--latency-limit", help="Of p99 in the server scenario, such as 50ms.")
@click.option("--budget", default="10m", show_default=True, help="Time for everything.")
@click.option("--engines", help="Only these engines, comma-separated.")
@click.option("--precisions", help="Only these precisions, comma-separated: fp32, bf16, int8.")
@click.option("--threads", type=int, help="Thread budget; default min(affinity, CPU quota).")
@click.option(
    "--activation",
    type=click.Choice(["none", "sigmoid", "softmax"]),
    default="none",
    show_default=True,
    help="What `predict` applies to the model's output.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split and the bootstrap.")
@click.option("--replace", is_flag=True, help="Replace a bundle of that name.")
@click.option("--keep", type=FOLDER, help="New folder for exports, logs and how to repeat failures.")
@click.option("--fresh", is_flag=True, help="Start over rather than continue an interrupted search.")
@command_options
def optimize(screen: Screen, model: str, data: str, **options: Any) -> None:
    """Find the fastest way to run MODEL within an accuracy limit, and write it as a bundle.

    MODEL is file.py:factory, package.module:factory, timm:NAME?option=value, torchvision:NAME, or a
    .onnx, .pt2 or TorchScript file.
    """
    from alula.cli.progress import search_progress
    from alula.cli.render import draw_search
    from alula.workflows import optimize as run

    with search_progress(screen, budget=options["budget"]) as progress:
        bundle = run(
            model,
            _existing(data),
            scenario=options["scenario"],
            latency_limit=options["latency_limit"],
            keep=options["keep"],
            fresh=options["fresh"],
            report=progress.report,
            on_outcome=progress.outcome,
            **_of_a_search(options),
        )
    with bundle:
        manifest = bundle.manifest
    screen.result(manifest, lambda console: draw_search(console, options["output"], manifest))


def _of_a_search(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all commands with a search ask, as arguments of their workflows."""
    taken = ("output", "weights", "metric", "max_drop", "budget", "threads", "activation", "seed", "replace")
    return {
        **{name: options[name] for name in taken},
        "input": options["description"],
        "labels": _labels(options["labels"]),
        "engines": csv_of(options["engines"]),
        "precisions": _precisions(options["precisions"]),
    }


def _existing(data: str) -> Path:
    if not os.path.exists(data):  # noqa: PTH110 - no error for a name that is too long
        raise UsageError(f"--data {data} does not exist. Expected a folder, a manifest or an .npz file.")
    return Path(data)


def _labels(given: str | None) -> tuple[str, ...] | None:
    # Of a long list `Path.is_file` says that the name is too long.
    if given is None or not os.path.isfile(given):  # noqa: PTH113
        return csv_of(given)
    try:
        lines = Path(given).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"--labels {given} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--labels {given} is not UTF-8 text; expected a file with one label per line."
        ) from error
    return tuple(line.strip() for line in lines if line.strip())


def _precisions(given: str | None) -> Any:
    known = ("fp32", "bf16", "int8")
    chosen = csv_of(given)
    for name in chosen or ():
        if name not in known:
            raise UsageError(f"There is no precision `{name}`; known are {', '.join(known)}.")
    return chosen


@cli.command()
@click.argument("bundle", type=FOLDER)
@click.argument("inputs", nargs=-1, required=True)
@click.option("-o", "--output", type=FOLDER, required=True, help="The table, or a folder of tables.")
@click.option(
    "--format",
    "table_format",
    type=click.Choice(FORMATS),
    help="Default: from the suffix of the output, .csv or .parquet.",
)
@click.option("--sample", type=FOLDER, help="sample_submission.csv, for its columns and rows (birdclef).")
@click.option(
    "--threshold", help="Smallest score of a detection: a number, or a CSV file with label,threshold."
)
@click.option("--min-confidence", type=float, help="Smallest score of any detection.")
@click.option("--top-k", type=int, help="Detections in a window at most.")
@click.option("--errors", type=FOLDER, help="Error report; default errors.csv beside the output.")
@click.option(
    "--deadline", help="Time from the start of the command in which the whole output is there, such as 110m."
)
@click.option(
    "--prior", help="Score of rows that there is no time for: a number, or a CSV file with label,score."
)
@click.option("--shard", help="Only this part of the files, such as 3/10.")
@click.option("--fresh", is_flag=True, help="Start over rather than continue an interrupted run.")
@click.option("--trust-code", is_flag=True, help="Load recipes that are code (TorchScript, .pt2).")
@click.option("--threads", type=int, help="Thread budget; default min(affinity, CPU quota).")
@command_options
def predict(
    screen: Screen,
    bundle: Path,
    inputs: tuple[str, ...],
    **options: Any,
) -> None:
    """Run BUNDLE over INPUTS (folders, files or globs) and write one table.

    Inputs that fail are listed in the error report; the others finish, and the exit code is 3. So it is where
    there was no time for some rows.

    A run that was killed or interrupted, or found the disk full, is continued by the same command.

    With --deadline every row is there in time. An ensemble that gets short of time computes rows with fewer
    members; what there is no time for holds the prior, by default 0. unfinished.csv beside the output lists
    these rows. The same command with more time computes them again.

    Formats birdnet, raven, audacity and kaleidoscope hold detections, by default of scores from 0.25 up.
    Raven and audacity give one table if the output ends in .txt, .tsv or .csv, else a folder with one per
    recording.
    """
    from alula.cli.progress import job_progress
    from alula.cli.render import draw_prediction
    from alula.hardware import process_age_s
    from alula.pipeline import parse_shard
    from alula.workflows import load, parse_duration_s
    from alula.workflows import predict as run

    since_s = time.monotonic() - process_age_s()
    selection = _selection(options["threshold"], options["min_confidence"], options["top_k"])
    deadline_s = None if options["deadline"] is None else parse_duration_s(options["deadline"])
    prior = _prior(options["prior"])
    shard = None if options["shard"] is None else parse_shard(options["shard"])
    with (
        load(bundle, trust_code=options["trust_code"], threads=options["threads"]) as loaded,
        job_progress(screen) as progress,
    ):
        report = run(
            loaded,
            inputs,
            output=options["output"],
            format=options["table_format"],
            errors=options["errors"],
            sample=options["sample"],
            selection=selection,
            shard=shard,
            fresh=options["fresh"],
            deadline_s=deadline_s,
            prior=prior,
            progress=progress,
            since_s=since_s,
        )
    screen.result(report, lambda console: draw_prediction(console, report))
    if report.errors is not None or (report.deadline is not None and report.deadline.filled):
        sys.exit(EXIT_SOME_INPUTS_FAILED)


def _prior(text: str | None) -> float | dict[str, float] | None:
    from alula.pipeline import read_prior

    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return read_prior(text)


def _selection(threshold: str | None, min_confidence: float | None, top_k: int | None) -> Selection | None:
    from alula.pipeline import Selection, read_thresholds

    if threshold is None and min_confidence is None and top_k is None:
        return None
    limit: float | dict[str, float] | None = None
    if threshold is not None:
        try:
            limit = float(threshold)
        except ValueError:
            limit = read_thresholds(threshold)
    return Selection(threshold=limit, min_confidence=min_confidence, top_k=top_k)


@cli.command()
@click.argument("bundles", nargs=-1, required=True, type=FOLDER)
@click.option("-o", "--output", type=FOLDER, required=True, help="The ensemble to make, NAME.alula.")
@click.option(
    "--blend",
    type=click.Choice(BLENDS),
    default="mean",
    show_default=True,
    help="How scores become one; `logits` is their mean before the activation.",
)
@click.option("--weights", help="One per bundle, such as 2,1; default all alike.")
@click.option("--class-weights", type=FOLDER, help="TOML file of label = [weight of each bundle].")
@click.option("--exponent", type=float, help="Of `--blend power`; default 2.")
@click.option("--labels", help="Classes of the result: a,b,c or a file with one per line; default all.")
@click.option("--post", type=FOLDER, help="TOML file of post-processing: views of bundles and steps.")
@click.option("--ladder", type=FOLDER, help="TOML file of what to compute when a deadline gets close.")
@click.option("--replace", is_flag=True, help="Replace a bundle of that name.")
@command_options
def ensemble(screen: Screen, bundles: tuple[Path, ...], **options: Any) -> None:
    """Make one bundle of BUNDLES whose scores are blended; `alula predict` runs it like any other."""
    from alula.cli.blends import blend_of, ladder_of
    from alula.cli.render import draw_ensemble
    from alula.postprocess import read_postprocessing
    from alula.workflows import make_ensemble

    manifest = make_ensemble(
        bundles,
        options["output"],
        blend=blend_of(
            options["blend"],
            weights=options["weights"],
            class_weights=options["class_weights"],
            exponent=options["exponent"],
        ),
        post=None if options["post"] is None else read_postprocessing(options["post"]),
        labels=_labels(options["labels"]),
        ladder=ladder_of(options["ladder"]),
        replace=options["replace"],
    )
    screen.result(manifest, lambda console: draw_ensemble(console, options["output"], manifest))


@cli.command("whole-files")
@click.argument("model")
@click.option("--data", required=True, help="Whole recordings: a folder or a manifest.")
@click.option("-o", "--output", type=FOLDER, required=True, help="The ensemble of one to make, NAME.alula.")
@click.option("--input", "description", required=True, help="TOML file: the model's windows, overlapping.")
@click.option("--windows", type=int, default=12, show_default=True, help="Windows that are run at once.")
@click.option("--keep", type=float, help="Central seconds of a window that its row is about; default all.")
@click.option("--weights", type=FOLDER, help="State dict: .safetensors, .pth, .pt or .th.")
@click.option("--labels", help="Class names in the model's order: a,b,c or a file with one per line.")
@click.option("--metric", help="As for `optimize`, against the model window by window.")
@click.option("--max-drop", type=float, default=0.005, show_default=True, help="Largest drop of the metric.")
@click.option("--budget", default="10m", show_default=True, help="Time for the search.")
@click.option("--engines", help="Only these engines, comma-separated.")
@click.option("--precisions", help="Only these precisions, comma-separated: fp32, bf16, int8.")
@click.option("--threads", type=int, help="Thread budget; default min(affinity, CPU quota).")
@click.option(
    "--activation",
    type=click.Choice(["none", "sigmoid", "softmax"]),
    default="none",
    show_default=True,
    help="What `predict` applies to the model's output.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split.")
@click.option("--replace", is_flag=True, help="Replace a bundle of that name.")
@command_options
def whole_files(screen: Screen, model: str, data: str, **options: Any) -> None:
    """Like `optimize`, but run MODEL over stretches of many overlapping windows, if its scores allow it.

    A network that sees 10 s every 5 s does all of its work twice. Here its convolutions run once over a
    longer stretch, and each window is pooled from their columns. That changes the scores a little: they are
    compared with those of window by window, and where they differ by more than --max-drop nothing is written.
    """
    from alula.cli.progress import search_progress
    from alula.cli.render import draw_ensemble
    from alula.workflows import optimize_whole_files

    with search_progress(screen, budget=options["budget"]) as progress:
        made = optimize_whole_files(
            model,
            _existing(data),
            windows=options["windows"],
            keep_s=options["keep"],
            report=progress.report,
            on_outcome=progress.outcome,
            **_of_a_search(options),
        )
    with made:
        manifest = made.manifest
    screen.result(manifest, lambda console: draw_ensemble(console, options["output"], manifest))


@cli.command()
@click.argument("bundles", nargs=-1, required=True, type=FOLDER)
@click.option("--workload", required=True, help="200x10m, a folder, or a count of images or arrays.")
@click.option("--deadline", required=True, help="Time for the whole job, such as 110m.")
@click.option(
    "--scores",
    multiple=True,
    type=FOLDER,
    help="Table of scores of rows whose truth is known, one per bundle, or one with a column `member`.",
)
@click.option("--truth", type=FOLDER, help="Table of the same rows: 0 or 1 per class, or a column `label`.")
@click.option("--data", help="Labelled data in place of --scores and --truth; the bundles are run over it.")
@click.option("--metric", help="top1, balanced_accuracy, macro_auc, padded_cmap, mse or file.py:fn.")
@click.option(
    "--blend",
    type=click.Choice([name for name in BLENDS if name not in ("min", "max")]),
    default="mean",
    show_default=True,
    help="How scores become one; the weights are found.",
)
@click.option("--exponent", type=float, help="Of `--blend power`; default 2.")
@click.option("--post", type=FOLDER, help="TOML file of post-processing: views of bundles and steps.")
@click.option("--overlaps", default="1", show_default=True, help="Windows per row to compare: 1,2.")
@click.option("--labels", help="The classes: a,b,c or a file with one per line; default the bundles'.")
@click.option("--cpus", type=float, help="Of the machine of the job, if it is another: an estimate.")
@click.option("--speed", type=float, help="Of one of its CPUs, as a multiple of one here.")
@click.option("--margin", type=float, default=0.05, show_default=True, help="Share of the time kept free.")
@click.option("--max-drop", type=float, default=0.005, show_default=True, help="Of a cascade's score.")
@click.option("--cascade", is_flag=True, help="Make the ensemble a cascade, where one is offered.")
@click.option("--rounds", type=int, default=6, show_default=True, help="How often each stage is timed.")
@click.option("--seconds", type=float, default=1.0, show_default=True, help="Length of a round.")
@click.option("--threads", type=int, help="Thread budget; default min(affinity, CPU quota).")
@click.option("--trust-code", is_flag=True, help="Load recipes that are code (TorchScript, .pt2).")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split it is judged on.")
@click.option("-o", "--output", type=FOLDER, help="The ensemble to make, NAME.alula.")
@click.option("--replace", is_flag=True, help="Replace a bundle of that name.")
@click.option("--save", type=FOLDER, help="File for the plan as JSON.")
@command_options
def plan(screen: Screen, bundles: tuple[Path, ...], **options: Any) -> None:
    """Find which of BUNDLES, with which weights, score best in a time, and make the ensemble of them.

    Measures every stage of the job here: decoding, features, each bundle, writing, loading.
    """
    from alula.cli.blends import blend_of
    from alula.cli.progress import SearchProgress
    from alula.cli.render import draw_plan
    from alula.postprocess import read_postprocessing
    from alula.workflows import plan as run

    found = run(
        bundles,
        workload=options["workload"],
        deadline=options["deadline"],
        scores=options["scores"],
        truth=options["truth"],
        data=None if options["data"] is None else _existing(options["data"]),
        metric=options["metric"],
        blend=blend_of(options["blend"], weights=None, class_weights=None, exponent=options["exponent"]),
        post=None if options["post"] is None else read_postprocessing(options["post"]),
        overlaps=_counts(options["overlaps"]),
        labels=_labels(options["labels"]),
        cpus=options["cpus"],
        speed=options["speed"],
        margin=options["margin"],
        max_drop=options["max_drop"],
        cascade=options["cascade"],
        rounds=options["rounds"],
        round_s=options["seconds"],
        threads=options["threads"],
        trust_code=options["trust_code"],
        seed=options["seed"],
        output=options["output"],
        replace=options["replace"],
        save=options["save"],
        report=SearchProgress(screen).report,
    )
    screen.result(found, lambda console: draw_plan(console, found))


def _counts(text: str) -> tuple[int, ...]:
    parts = csv_of(text) or ()
    if not parts or not all(part.isdigit() for part in parts):
        raise UsageError(f"--overlaps {text} is no list of whole numbers; expected such as 1,2.")
    return tuple(map(int, parts))


@cli.command()
@click.argument("what", nargs=-1, required=True)
@click.option("--compare", multiple=True, help="Another bundle or model, measured in turn. Repeatable.")
@click.option("--scenario", type=click.Choice(SCENARIOS), default="offline", show_default=True)
@click.option("--latency-limit", help="Of p99 in the server scenario, such as 50ms.")
@click.option("--shape", help="Of one sample where there is no bundle, such as 3x224x224.")
@click.option("--weights", type=FOLDER, help="State dict for the models.")
@click.option("--trust-code", is_flag=True, help="Load recipes that are code (TorchScript, .pt2).")
@click.option("--threads", type=int, help="Thread budget; default min(affinity, CPU quota).")
@click.option("--rounds", type=int, default=9, show_default=True, help="How often each is timed.")
@click.option("--seconds", type=float, default=1.0, show_default=True, help="Length of a round.")
@command_options
def bench(screen: Screen, what: tuple[str, ...], compare: tuple[str, ...], **options: Any) -> None:
    """Measure WHAT here, in turn: bundles, or models in eager PyTorch; ratios are over the first."""
    from alula.cli.render import draw_bench
    from alula.workflows import bench as run

    report = run(
        (*what, *compare),
        scenario=options["scenario"],
        latency_limit=options["latency_limit"],
        shape=_shape(options["shape"]),
        weights=options["weights"],
        trust_code=options["trust_code"],
        threads=options["threads"],
        rounds=options["rounds"],
        round_s=options["seconds"],
        report=screen.note,
    )
    screen.result(report, lambda console: draw_bench(console, report))


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    sizes = text.split("x")
    if not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise UsageError(f"--shape {text} is no shape; expected sizes such as 3x224x224.")
    return tuple(map(int, sizes))


@cli.command()
@click.argument("names", nargs=-1)
@click.option("--input", "given", required=True, help="Of one sample: 1x128x313, a preset, a TOML file.")
@click.option("--scores", type=FOLDER, help="CSV file with the columns model and score, higher is better.")
@click.option(
    "--against",
    type=click.Choice(["score", "macs", "parameters"]),
    help="What speed is weighed against; default score if given, else macs.",
)
@click.option("--budget", default="60s", show_default=True, help="Time for each model.")
@click.option("--engines", help="Only these engines, comma-separated.")
@click.option("--precisions", help="Only these precisions, comma-separated: fp32, bf16, int8.")
@click.option("--threads", type=int, help="Thread budget; default min(affinity, CPU quota).")
@click.option("--roofline", is_flag=True, help="Measure the machine's peaks anew and longer first.")
@click.option("--csv", "output", type=FOLDER, help="CSV file to write, a line for each model.")
@click.option("--plot", type=FOLDER, help="SVG file to write: speed against score or size, and the front.")
@command_options
def survey(screen: Screen, names: tuple[str, ...], **options: Any) -> None:
    """Put backbones side by side: parameters, work, and the speed of the best recipe of a short race each.

    NAMES are architectures of timm, or models as `alula optimize` takes them; a dozen well-known ones by
    default. Weights are random: nothing is said of accuracy.
    """
    from alula.cli.progress import SearchProgress
    from alula.cli.render import draw_survey
    from alula.workflows import survey as run

    found = run(
        names,
        input=options["given"],
        scores_csv=options["scores"],
        against=options["against"],
        budget_per_model=options["budget"],
        engines=csv_of(options["engines"]),
        precisions=_precisions(options["precisions"]),
        threads=options["threads"],
        roofline=options["roofline"],
        output=options["output"],
        plot=options["plot"],
        report=SearchProgress(screen).report,
    )
    screen.result(found, lambda console: draw_survey(console, found))
    if found.interrupted or any(row.error is not None for row in found.rows):
        measured = any(row.error is None for row in found.rows)
        sys.exit(EXIT_SOME_INPUTS_FAILED if measured else 1)


@cli.command()
@click.argument("bundle", type=FOLDER)
@click.option("-o", "--output", type=FOLDER, help="The page to write; default NAME.html here.")
@command_options
def report(screen: Screen, bundle: Path, output: Path | None) -> None:
    """Write what was measured for BUNDLE as one HTML page that needs no network."""
    from alula.workflows import write_report

    page = write_report(bundle, output)
    screen.result({"page": str(page)}, lambda console: console.print(f"report  {page}", soft_wrap=True))


@cli.command()
@click.argument("bundle", type=FOLDER)
@command_options
def inspect(screen: Screen, bundle: Path) -> None:
    """Say what is inside BUNDLE, what was measured and why it was chosen; checks every byte."""
    from alula.bundle import is_ensemble, read_ensemble, read_manifest, verify, verify_members
    from alula.cli.render import draw_ensemble, draw_search

    if is_ensemble(bundle):
        whole = read_ensemble(bundle)
        verify(bundle, whole)
        verify_members(bundle, whole)
        screen.result(whole, lambda console: draw_ensemble(console, bundle, whole))
        return
    manifest = read_manifest(bundle)
    verify(bundle, manifest)
    screen.result(manifest, lambda console: draw_search(console, bundle, manifest))


@cli.command()
@click.option(
    "-o", "--output", type=FOLDER, default=Path("demo-output"), show_default=True, help="Where files go."
)
@click.option("--budget", default="3m", show_default=True, help="Time for the search.")
@command_options
def demo(screen: Screen, output: Path, budget: str) -> None:
    """Go the whole way on a built-in example: synthesised birds, nothing to download."""
    from alula.cli.progress import search_progress
    from alula.cli.render import draw_demo
    from alula.demo.run import run_demo

    with search_progress(screen) as progress:
        result = run_demo(output, budget=budget, report=progress.report, on_outcome=progress.outcome)
    screen.result(result, lambda console: draw_demo(console, result))
