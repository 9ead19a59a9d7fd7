"""Accuracy and speed of each recipe on real weights and real images: ResNet-20 on CIFAR-10.

The whole of `alula.optimize` runs on the test images; its journal tells what each recipe did, and its last
comparison, in interleaved rounds, what the winner gains. Then the bundle is measured again as
`alula bench` does, to see whether what was reported is what one gets.

    python benchmarks/resnet20.py [--budget 10m] [--rounds 9] [--seconds 1] [--markdown FILE]

Weights and images are read from `cifar10/` in the folder that ALULA_TEST_DATA names, or in ../shared/data
beside the project.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import alula
import output
import zoo
from alula.core import Accepted, Accuracy, Failed, Outcome
from alula.tuning import read_journal
from alula.workflows import BenchReport, bench

PROJECT = Path(__file__).resolve().parent.parent


def data_root() -> Path:
    """Return the folder of real data.

    Raises:
        SystemExit: it is not there.
    """
    given = os.environ.get("ALULA_TEST_DATA")
    root = Path(given) if given else PROJECT.parent / "shared" / "data"
    if not (root / "cifar10" / "resnet20.th").is_file():
        raise SystemExit(
            f"{root / 'cifar10'} holds no resnet20.th; set ALULA_TEST_DATA to the folder of real data."
        )
    return root / "cifar10"


def rows_of(outcomes: Iterable[Outcome]) -> list[tuple[str, ...]]:
    """Return one line per recipe: accuracy, and the speed of its fastest settings as screened."""
    best: dict[str, Accepted] = {}
    lost: dict[str, tuple[str, ...]] = {}
    for outcome in outcomes:
        if isinstance(outcome, Accepted):
            name = outcome.candidate.recipe.name
            if name not in best or outcome.throughput.per_s > best[name].throughput.per_s:
                best[name] = outcome
        elif isinstance(outcome, Failed):
            lost.setdefault(outcome.recipe.name, ("", "", "", f"failed: {outcome.error}", ""))
        else:
            accuracy = outcome.accuracy
            measured = ("", "", "") if accuracy is None else _accuracy_cells(accuracy)
            lost[outcome.recipe.name] = (*measured, f"rejected: {outcome.reason}", "")
    found = [
        (
            name,
            *_accuracy_cells(accepted.accuracy),
            str(accepted.candidate.settings),
            f"{accepted.throughput.per_s:,.0f}",
        )
        for name, accepted in sorted(best.items(), key=lambda item: -item[1].throughput.per_s)
    ]
    return found + [(name, *cells) for name, cells in lost.items() if name not in best]


def _accuracy_cells(accuracy: Accuracy) -> tuple[str, str, str]:
    return (
        f"{100 * accuracy.chosen:.2f} %",
        f"{100 * accuracy.drop:+.2f} [{100 * accuracy.drop_low:+.2f}, {100 * accuracy.drop_high:+.2f}]",
        f"{accuracy.n:,}",
    )


def section(bundle: alula.Bundle, again: BenchReport, *, rounds: int, seconds: float) -> str:
    """Return the results as Markdown."""
    manifest = bundle.manifest
    accuracy, folder = manifest.accuracy, manifest.folder
    rows = rows_of(read_journal(bundle.path / "search.jsonl"))
    row = again.rows[0]
    assert row.change is not None  # it was asked for a bundle
    lines = [
        "### ResNet-20, real weights, CIFAR-10 test images",
        "",
        output.table(
            ("recipe", "top-1", "drop in points (95 %)", "n", "best settings", "samples/s, screened"), rows
        ),
        "",
        f"Eager PyTorch: top-1 {100 * accuracy.baseline:.2f} %, "
        f"{manifest.baseline.throughput_per_s:,.0f} samples/s ({manifest.baseline.settings}).",
        "",
        f"Last comparison, {len(manifest.baseline.rounds_per_s)} interleaved rounds: "
        f"**{manifest.chosen.recipe}** ({manifest.chosen.settings}), "
        f"{manifest.chosen.throughput_per_s:,.0f} samples/s, **{manifest.speedup}** of eager PyTorch; "
        f"drop {100 * accuracy.drop:+.2f} points [{100 * accuracy.drop_low:+.2f}, "
        f"{100 * accuracy.drop_high:+.2f}] on {accuracy.n:,} images.",
        "",
        f"Measured again by `alula bench` ({rounds} rounds of {seconds:g} s): {row.throughput.per_s:,.0f} "
        f"samples/s, {100 * row.change:+.1f} % from the bundle's own figure.",
    ]
    if folder is not None:
        lines += [
            "",
            f"Folder run (decode, normalise, model): {folder.samples_per_s:,.0f} samples/s "
            f"over {folder.files:,} files.",
        ]
    warnings = [*manifest.warnings, *again.warnings, *row.throughput.warnings]
    lines += ["", *(f"- {text}" for text in dict.fromkeys(warnings))] if warnings else []
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", default="10m", help="of the search (default 10m)")
    parser.add_argument("--engines", type=output.names, help="only these, separated by commas")
    parser.add_argument("--images", type=int, default=10_000, help="at most so many validation images")
    parser.add_argument("--rounds", type=int, default=9, help="of the second measurement (default 9)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one of its rounds (default 1)")
    output.add_markdown_option(parser)
    options = parser.parse_args()
    data = data_root()
    with tempfile.TemporaryDirectory(prefix="alula-benchmark-") as folder:
        bundle = alula.optimize(
            f"{zoo.SUPPORT / 'models.py'}:resnet20",
            data / "test",
            weights=data / "resnet20.th",
            input="cifar10",
            metric="top1",
            output=Path(folder) / "resnet20.alula",
            budget=options.budget,
            engines=options.engines,
            max_validation=options.images,
            report=output.say,
        )
        bundle.close()  # nothing of it may run beside the second measurement
        again = bench(
            [bundle.path], trust_code=True, rounds=options.rounds, round_s=options.seconds, report=output.say
        )
        text = section(bundle, again, rounds=options.rounds, seconds=options.seconds)
    output.publish(text, markdown=options.markdown)


if __name__ == "__main__":
    main()
