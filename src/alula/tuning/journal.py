"""The record of a search: one JSON line per outcome, appended as it happens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from alula.core import Outcome
from alula.errors import BundleError

__all__ = ["Journal", "read_journal"]


class Journal:
    """Appends outcomes to `search.jsonl`; each line is on disk before the next trial starts.

    Args:
        path: of a new journal, or of one that an interrupted search left, which is continued.

    Raises:
        BundleError: a line of it is no outcome.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._encoder = msgspec.json.Encoder()
        self.earlier: tuple[Outcome, ...] = tuple(read_journal(path)) if path.exists() else ()
        # A half-written last line goes, and with it nothing that was known.
        path.write_bytes(b"".join(self._encoder.encode(outcome) + b"\n" for outcome in self.earlier))

    def append(self, outcome: Outcome) -> None:
        """Write one outcome."""
        with self.path.open("ab") as file:
            file.write(self._encoder.encode(outcome) + b"\n")
            file.flush()
            os.fsync(file.fileno())


def read_journal(path: Path) -> Iterator[Outcome]:
    """Yield the outcomes of a search in the order in which they were found.

    A half-written last line, as a killed search leaves it, is skipped.

    Raises:
        BundleError: a line is no outcome.
    """
    decoder = msgspec.json.Decoder(Outcome)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise BundleError(path, f"Line {number} is no outcome of a search: {error}") from error
