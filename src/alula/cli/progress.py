"""Live progress on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from alula.cli.options import Screen
from alula.core import Accepted, Failed, Outcome
from alula.pipeline import Progress

__all__ = ["SearchProgress", "job_progress"]

PLAIN_EVERY_S = 5.0


class SearchProgress:
    """Shows what a search does and finds, line by line, with the time that it takes."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._started = time.monotonic()
        self._leader: Accepted | None = None

    def report(self, text: str) -> None:
        """Show what is being done."""
        self._screen.note(f"[{time.monotonic() - self._started:6.1f} s] {text}")

    def outcome(self, outcome: Outcome) -> None:
        """Show what was found: new leaders and losses always, the rest when verbose.

        What there was no time for stands at the end, in one line.
        """
        if isinstance(outcome, Accepted):
            leads = self._leader is None or (outcome.relative or 0) > (self._leader.relative or 0)
            if leads:
                self._leader = outcome
            if leads or self._screen.verbose:
                mark = "leads" if leads else "     "
                self._screen.note(f"           {mark} {outcome.throughput.per_s:9.1f}/s  {outcome.candidate}")
        elif isinstance(outcome, Failed):
            self._screen.note(f"           failed: {outcome.recipe}: {outcome.error}")
            if self._screen.verbose and outcome.reproduce:
                self._screen.note(f"                   again (with --keep): {outcome.reproduce}")
        elif outcome.tried:
            self._screen.note(f"           rejected: {outcome.recipe}: {outcome.reason}")
        elif self._screen.verbose:
            self._screen.note(f"           not tried: {outcome.recipe}: {outcome.reason}")


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
