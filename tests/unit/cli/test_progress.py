"""What a search tells while it runs: one line for what leads and what is out, in the words of the verdict."""

from __future__ import annotations

import io
import re

from rich.console import Console

from alula.cli.options import Screen
from alula.cli.progress import SearchProgress, job_progress, search_progress
from alula.core import Accepted, Accuracy, Candidate, Failed, Outcome, Recipe, Rejected, Settings, Throughput
from alula.pipeline import Progress

RECIPE = Recipe("openvino", "int8", "nncf")


def told(*outcomes: Outcome, verbose: bool = False) -> list[str]:
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


def looked_at(recipe: Recipe, relative: float) -> Accepted:
    accuracy = Accuracy(
        metric="top1", n=9, baseline=1.0, chosen=1.0, drop=0.0, drop_low=0.0, drop_high=0.0, limit=0.1
    )
    speed = Throughput(per_s=100 * relative, rounds_per_s=(100 * relative,))
    return Accepted(
        candidate=Candidate(recipe, Settings()), accuracy=accuracy, throughput=speed, relative=relative
    )


def test_the_next_one_leads_when_the_leader_turns_out_to_be_wrong() -> None:
    plain = Recipe("openvino", "fp32")
    assert told(
        looked_at(plain, 1.0),
        looked_at(RECIPE, 3.0),
        looked_at(plain, 1.1),
        Rejected(recipe=RECIPE, reason="`top1` fell by 0.1"),
    ) == [
        "leads     100.0/s  openvino/fp32 (1x1 threads, batch 1)",
        "leads     300.0/s  openvino/int8-nncf (1x1 threads, batch 1)",
        "rejected: openvino/int8-nncf: `top1` fell by 0.1",
        "leads     110.0/s  openvino/fp32 (1x1 threads, batch 1)",
    ]


def test_a_search_tells_the_time_that_is_left() -> None:
    text = io.StringIO()
    console = Console(file=text, width=200)
    with search_progress(
        Screen(json=False, quiet=False, verbose=False, out=console, err=console), budget="10m"
    ) as progress:
        progress.report("trying openvino/fp32")
    assert re.fullmatch(r"\[ +\d+\.\d s, (10:00|9:5\d) left\] trying openvino/fp32\n", text.getvalue())


def test_on_a_terminal_what_is_done_is_one_living_line() -> None:
    text = io.StringIO()
    console = Console(file=text, width=200, force_terminal=True)
    with search_progress(
        Screen(json=False, quiet=False, verbose=False, out=console, err=console), budget="10m"
    ) as progress:
        progress.report("trying [openvino/fp32]")
        progress.outcome(Failed(recipe=RECIPE, error="It crashed.", reproduce="again"))
        before = len(text.getvalue())
    shown = text.getvalue()
    assert "trying [openvino/fp32]" in shown
    assert "left" in shown
    assert "failed: openvino/int8-nncf: It crashed." in shown
    assert "\x1b[2K" in shown[before:], "the living line is wiped at the end"
