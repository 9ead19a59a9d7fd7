"""What every command shares: `--json`, `-q/-v`, `--config`, errors and exit codes."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from alula.errors import AlulaError, UsageError
from alula.toml import read_toml

PLAIN_WIDTH = 120

__all__ = ["AlulaGroup", "Screen", "command_options", "csv_of"]


@dataclass(frozen=True)
class Screen:
    """Where a command writes: results to standard output, everything else to standard error."""

    json: bool
    quiet: bool
    verbose: bool
    out: Console
    err: Console

    def result(self, document: object, draw: Callable[[Console], None]) -> None:
        """Write the result: one JSON document, or drawn for people."""
        if self.json:
            sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
            sys.stdout.buffer.flush()
        else:
            draw(self.out)

    def note(self, text: str) -> None:
        """Write a line of progress, unless quiet."""
        if not self.quiet:
            self.err.print(text, highlight=False, markup=False)

    def warn(self, text: str) -> None:
        """Write a warning, even when quiet."""
        self.err.print(f"warning: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)


class AlulaGroup(click.Group):
    """Suggests the closest command for a mistyped one, and ends with one line instead of a traceback."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See `click.Group.resolve_command`."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if not close or "Did you mean" in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean `{close[0]}`?", ctx) from error

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """See `click.Group.main`."""
        try:
            return super().main(*args, **kwargs)
        except AlulaError as error:
            _say_error(str(error))
            sys.exit(error.exit_code)
        except OSError as error:
            if error.filename is None:
                raise
            # Of a path that was given: a name that is too long, a folder that may not be entered or written.
            _say_error(f"{error.filename}: {error.strerror}.")
            sys.exit(1)


def _say_error(text: str) -> None:
    Console(stderr=True).print(f"error: {text}", highlight=False, markup=False, soft_wrap=True)


def command_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every command takes, and pass a `Screen` as the first argument."""

    @click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
    @click.option("-q", "--quiet", is_flag=True, help="No progress.")
    @click.option("-v", "--verbose", is_flag=True, help="More about what is done.")
    @click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        callback=_read_config,
        is_eager=True,
        expose_value=False,
        help="TOML file with a table per command; the command line wins.",
    )
    def wrapper(*args: Any, as_json: bool, quiet: bool, verbose: bool, **kwargs: Any) -> Any:
        screen = Screen(
            json=as_json,
            quiet=quiet,
            verbose=verbose,
            out=_console(),
            err=_console(stderr=True),
        )
        with _warnings_on(screen):
            return function(screen, *args, **kwargs)

    return update_wrapper(wrapper, function)


def _console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH  # files and pipes have no width; 80 would fold every table
    return console


@contextmanager
def _warnings_on(screen: Screen) -> Iterator[None]:
    """Show Alula's own warnings as lines of ours, and none of other libraries'."""
    from alula.bundle import BundleWarning

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, BundleWarning):
            screen.warn(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", BundleWarning)
        warnings.showwarning = show
        yield


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        tables = read_toml(path, what="The file")
    except UsageError as error:
        raise click.BadParameter(str(error), ctx=ctx, param=param) from error
    table = tables.get(ctx.info_name or "", {})
    if not isinstance(table, dict):
        raise click.BadParameter(f"{path}: `{ctx.info_name}` is no table", ctx=ctx, param=param)
    names = {p.name: p for p in ctx.command.params if p.name}
    several = {p.name for p in names.values() if p.multiple or p.nargs == -1}
    spelled = {option.lstrip("-"): p.name for p in names.values() for option in p.opts}
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        name = spelled.get(key) or (key if key in names else spelled.get(key.replace("_", "-")))
        if name is None:
            close = difflib.get_close_matches(key.replace("_", "-"), spelled, n=1)
            hint = f" Did you mean `{close[0]}`?" if close else ""
            raise click.BadParameter(
                f"{path}: `alula {ctx.info_name}` has no option `{key}`.{hint}", ctx=ctx, param=param
            )
        # Other lists are comma-separated text on the command line.
        joined = isinstance(value, list) and name not in several
        defaults[name] = ",".join(map(str, value)) if joined else value
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def csv_of(text: str | None) -> tuple[str, ...] | None:
    """Return the parts of comma-separated text, or None.

    >>> csv_of("a, b")
    ('a', 'b')
    """
    if text is None:
        return None
    return tuple(part.strip() for part in text.split(",") if part.strip())
