"""What the benchmarks share: progress on stderr, Markdown on stdout and, if asked, at the end of a file."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_STARTED_S = time.monotonic()


def add_markdown_option(parser: argparse.ArgumentParser) -> None:
    """Add `--markdown FILE`."""
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="append what is printed to this file as well"
    )


def names(text: str) -> tuple[str, ...]:
    """Return the parts of a comma-separated option."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def sizes(text: str) -> tuple[int, ...]:
    """Return the positive numbers of a comma-separated option."""
    found = tuple(int(part) for part in names(text))
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"got `{text}`; expected numbers from 1 on, such as 1,8,32")
    return found


def say(text: str) -> None:
    """Print a line of progress to stderr."""
    print(f"[{time.monotonic() - _STARTED_S:7.1f} s] {text}", file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return a Markdown table; the first `left` columns are text, the others numbers."""
    rule = ["---" if index < left else "---:" for index in range(len(header))]
    # A bar inside a cell, as in an error message, would start a new cell.
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def publish(text: str, *, markdown: Path | None) -> None:
    """Print text to stdout, and append it to a file if one is named."""
    print(text, flush=True)
    if markdown is not None:
        with markdown.open("a", encoding="utf-8") as file:
            file.write(text.rstrip("\n") + "\n\n")
