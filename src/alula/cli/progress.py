"""Live progress on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from alula.cli.options import Screen
from alula.core import Accepted, Candidate, Failed, Outcome
from alula.pipeline import Progress
from alula.tuning import standing
from alula.workflows.durations import parse_duration_s

__all__ = ["SearchProgress", "job_progress", "search_progress"]

PLAIN_EVERY_S = 5.0


class SearchProgress:
    """Shows what a search does and finds, with the time that it takes and the time that is left.

    On a terminal what is being done stands in one living line at the bottom, elsewhere in a line of its own.

    Args:
        screen: where to.
        budget_s: time for all; None where there is none to tell.
        live: the living line, None without one.
    """

    def __init__(self, screen: Screen, *, budget_s: float | None = None, live: Bar | None = None) -> None:
        self._screen = screen
        self._budget_s = budget_s
        self._live = live
        self._task = None if live is None else live.add_task("beginning", total=None)
        self._started_s = time.monotonic()
        self._outcomes: list[Outcome] = []
        self._leader: Candidate | None = None

    def report(self, text: str) -> None:
        """Show what is being done."""
        if self._live is not None and self._task is not None:
            self._live.update(self._task, description=text)
        if self._live is None or self._screen.verbose:
            elapsed_s = time.monotonic() - self._started_s
            left = "" if self._budget_s is None else f", {_left(self._budget_s - elapsed_s)}"
            self._screen.note(f"[{elapsed_s:6.1f} s{left}] {text}")

    def outcome(self, outcome: Outcome) -> None:
        """Show what was found: new leaders and losses always, the rest when verbose.

        What there was no time for stands at the end, in one line.
        """
        self._outcomes.append(outcome)
        if isinstance(outcome, Accepted):
            if self._screen.verbose:
                self._screen.note(f"                 {_speed(outcome)}")
        elif isinstance(outcome, Failed):
            self._screen.note(f"           failed: {outcome.recipe}: {outcome.error}")
            if self._screen.verbose and outcome.reproduce:
                self._screen.note(f"                   again (with --keep): {outcome.reproduce}")
        elif outcome.tried:
            self._screen.note(f"           rejected: {outcome.recipe}: {outcome.reason}")
        elif self._screen.verbose:
            self._screen.note(f"           not tried: {outcome.recipe}: {outcome.reason}")
        leader = max(standing(self._outcomes), key=lambda one: one.relative or 0.0, default=None)
        if leader is not None and leader.candidate != self._leader:
            self._screen.note(f"           leads {_speed(leader)}")
        self._leader = None if leader is None else leader.candidate


def _speed(outcome: Accepted) -> str:
    return f"{outcome.throughput.per_s:9.1f}/s  {outcome.candidate}"


def _left(seconds: float) -> str:
    return f"{_clock(max(0.0, seconds))} left"


class _TimeLeft(ProgressColumn):
    def __init__(self, budget_s: float) -> None:
        super().__init__()
        self._budget_s = budget_s

    def render(self, task: Task) -> Text:
        """See `rich.progress.ProgressColumn.render`."""
        return Text(_left(self._budget_s - (task.elapsed or 0.0)))


@contextmanager
def search_progress(screen: Screen, *, budget: str | None = None) -> Iterator[SearchProgress]:
    """Give what shows a search of this budget, such as `10m`; None where other work comes with it.

    Raises:
        UsageError: the budget is no time.
    """
    budget_s = None if budget is None else parse_duration_s(budget)
    if screen.quiet or not screen.err.is_terminal:
        yield SearchProgress(screen, budget_s=budget_s)
        return
    text = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True))
    left = () if budget_s is None else (_TimeLeft(budget_s),)
    columns = (SpinnerColumn(), text, *left)
    with Bar(*columns, console=screen.err, transient=True, expand=True, refresh_per_second=1) as live:
        yield SearchProgress(screen, budget_s=budget_s, live=live)


class _JobProgress:
    def __init__(self, screen: Screen, bar: Bar | None) -> None:
        self._screen = screen
        self._bar = bar
        self._task = None if bar is None else bar.add_task("files", total=None, rate="", eta="")
        self._last_s = 0.0

    def __call__(self, progress: Progress) -> None:
        done = progress.tasks_done + progress.tasks_failed
        rate = f"{progress.samples / progress.elapsed_s:.0f} samples/s" if progress.elapsed_s > 0 else ""
        eta = "" if progress.eta_s is None else f"{_clock(progress.eta_s)} left"
        if progress.rung is not None:
            eta += f", with {progress.rung}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=progress.total_tasks, rate=rate, eta=eta)
        elif progress.elapsed_s - self._last_s >= PLAIN_EVERY_S:
            self._last_s = progress.elapsed_s
            self._screen.note(f"{done} of {progress.total_tasks} files, {rate}, {eta}")


@contextmanager
def job_progress(screen: Screen) -> Iterator[_JobProgress]:
    """Give a callable for `predict(progress=...)`."""
    if screen.quiet or not screen.err.is_terminal:
        yield _JobProgress(screen, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[eta]}"),
    )
    with Bar(*columns, console=screen.err, transient=True) as bar:
        yield _JobProgress(screen, bar)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
