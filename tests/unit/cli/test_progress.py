"""What a search tells while it runs: one line for what leads and what is out, in the words of the verdict."""

from __future__ import annotations

import io

from rich.console import Console

from alula.cli.options import Screen
from alula.cli.progress import SearchProgress, job_progress
from alula.core import Failed, Recipe, Rejected
from alula.pipeline import Progress

RECIPE = Recipe("openvino", "int8", "nncf")


def told(*outcomes: Failed | Rejected, verbose: bool = False) -> list[str]:
    text = io.StringIO()
    console = Console(file=text, width=200)
    progress = SearchProgress(Screen(json=False, quiet=False, verbose=verbose, out=console, err=console))
    for outcome in outcomes:
        progress.outcome(outcome)
    return [line.strip() for line in text.getvalue().splitlines()]


def test_a_job_tells_the_forecast_and_the_rung() -> None:
    text = io.StringIO()
    console = Console(file=text, width=200)
    progress = Progress(
        tasks_done=3, tasks_failed=1, total_tasks=9, samples=60, elapsed_s=30.0, eta_s=65.0, rung="a + b"
    )
    with job_progress(Screen(json=False, quiet=False, verbose=False, out=console, err=console)) as show:
        show(progress)
    assert text.getvalue().strip() == "4 of 9 files, 2 samples/s, 1:05 left, with a + b"


def test_a_recipe_is_out_for_one_of_three_reasons() -> None:
    outcomes = (
        Rejected(recipe=RECIPE, reason="`top1` fell by 0.1"),
        Failed(recipe=RECIPE, error="It crashed.", reproduce="again"),
        Rejected(recipe=RECIPE, reason="the budget is used up", tried=False),
    )
    short = ["rejected: openvino/int8-nncf: `top1` fell by 0.1", "failed: openvino/int8-nncf: It crashed."]
    assert told(*outcomes) == short
    assert told(*outcomes, verbose=True) == [
        *short,
        "again (with --keep): again",
        "not tried: openvino/int8-nncf: the budget is used up",
    ]
