"""The commands: parse, call one workflow, draw its result."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import click

from alula._version import __version__
from alula.cli.options import AlulaGroup, Screen, command_options, csv_of
from alula.core import Scenario
from alula.errors import UsageError

__all__ = ["cli"]

SCENARIOS = get_args(Scenario)
BLENDS = ("mean", "logits", "geometric", "power", "rank", "min", "max")
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
    "--metric", help="top1, balanced_accuracy, macro_auc, padded_cmap, mse, agreement or file.py:fn."
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
    from alula.cli.progress import SearchProgress
    from alula.cli.render import draw_search
    from alula.workflows import optimize as run

    progress = SearchProgress(screen)
    with run(
        model,
        _existing(data),
        output=options["output"],
        weights=options["weights"],
        input=options["description"],
        labels=_labels(options["labels"]),
        metric=options["metric"],
        max_drop=options["max_drop"],
        scenario=options["scenario"],
        latency_limit=options["latency_limit"],
        budget=options["budget"],
        engines=csv_of(options["engines"]),
        precisions=_precisions(options["precisions"]),
        threads=options["threads"],
        activation=options["activation"],
        seed=options["seed"],
        replace=options["replace"],
        keep=options["keep"],
        fresh=options["fresh"],
        report=progress.report,
        on_outcome=progress.outcome,
    ) as bundle:
        manifest = bundle.manifest
    screen.result(manifest, lambda console: draw_search(console, options["output"], manifest))


def _existing(data: str) -> Path:
    if not Path(data).exists():
        raise UsageError(f"--data {data} does not exist. Expected a folder, a manifest or an .npz file.")
    return Path(data)


def _labels(given: str | None) -> tuple[str, ...] | None:
    if given is not None and Path(given).is_file():
        lines = Path(given).read_text(encoding="utf-8").splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    return csv_of(given)


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
@click.option("-o", "--output", type=FOLDER, required=True, help="The table: .csv or .parquet.")
@click.option(
    "--format",
    "table_format",
    type=click.Choice(["csv", "parquet", "birdclef"]),
    help="Default: from the suffix of the output.",
)
@click.option("--errors", type=FOLDER, help="Error report; default errors.csv beside the output.")
@click.option("--trust-code", is_flag=True, help="Load recipes that are code (TorchScript, .pt2).")
@click.option("--threads", type=int, help="Thread budget; default min(affinity, CPU quota).")
@command_options
def predict(
    screen: Screen,
    bundle: Path,
    inputs: tuple[str, ...],
    output: Path,
    table_format: str | None,
    errors: Path | None,
    trust_code: bool,
    threads: int | None,
) -> None:
    """Run BUNDLE over INPUTS (folders, files or globs) and write one table.

    Inputs that fail are listed in the error report; the others finish, and the exit code is 3.
    """
    from alula.cli.progress import job_progress
    from alula.cli.render import draw_prediction
    from alula.workflows import load
    from alula.workflows import predict as run

    with load(bundle, trust_code=trust_code, threads=threads) as loaded, job_progress(screen) as progress:
        report = run(loaded, inputs, output=output, format=table_format, errors=errors, progress=progress)
    screen.result(report, lambda console: draw_prediction(console, report))
    if report.errors is not None:
        sys.exit(EXIT_SOME_INPUTS_FAILED)


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
@click.option("--replace", is_flag=True, help="Replace a bundle of that name.")
@command_options
def ensemble(screen: Screen, bundles: tuple[Path, ...], **options: Any) -> None:
    """Make one bundle of BUNDLES whose scores are blended; `alula predict` runs it like any other."""
    from alula.cli.blends import blend_of
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
@click.option("--metric", help="As for `optimize`, against the model window by window; also `cosine`.")
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
    from alula.cli.progress import SearchProgress
    from alula.cli.render import draw_ensemble
    from alula.workflows import optimize_whole_files

    progress = SearchProgress(screen)
    with optimize_whole_files(
        model,
        _existing(data),
        output=options["output"],
        input=options["description"],
        windows=options["windows"],
        keep_s=options["keep"],
        weights=options["weights"],
        labels=_labels(options["labels"]),
        metric=options["metric"],
        max_drop=options["max_drop"],
        budget=options["budget"],
        engines=csv_of(options["engines"]),
        precisions=_precisions(options["precisions"]),
        threads=options["threads"],
        activation=options["activation"],
        seed=options["seed"],
        replace=options["replace"],
        report=progress.report,
        on_outcome=progress.outcome,
    ) as made:
        manifest = made.manifest
    screen.result(manifest, lambda console: draw_ensemble(console, options["output"], manifest))


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
@click.option("--budget", default="3m", show_default=True, help="Time for everything.")
@command_options
def demo(screen: Screen, output: Path, budget: str) -> None:
    """Go the whole way on a built-in example: synthesised birds, nothing to download."""
    from alula.cli.progress import SearchProgress, job_progress
    from alula.cli.render import draw_demo
    from alula.demo.run import run_demo

    progress = SearchProgress(screen)
    with job_progress(screen) as job:
        result = run_demo(
            output, budget=budget, report=progress.report, on_outcome=progress.outcome, progress=job
        )
    screen.result(result, lambda console: draw_demo(console, result))
