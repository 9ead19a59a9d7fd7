"""The command line: `alula` and `python -m alula`."""

from alula.cli.commands import cli

__all__ = ["cli", "main"]


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    cli(prog_name="alula")
