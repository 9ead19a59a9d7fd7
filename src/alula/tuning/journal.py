"""The record of a search: one JSON line per outcome, appended as it happens."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from alula.core import Accepted, Candidate, Failed, Outcome
from alula.errors import BundleError
from alula.hardware import writing

__all__ = ["Journal", "read_journal", "standing"]


class Journal:
    """Appends outcomes to `search.jsonl`; each line is on disk before the next trial starts.

    Args:
        path: of a new journal, or of one that an interrupted search left, which is continued.

    Raises:
        BundleError: a line of it is no outcome.
        DiskFullError: there is no space for a new one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._encoder = msgspec.json.Encoder()
        with writing("the journal of the search", path):
            path.touch()
        self.earlier: tuple[Outcome, ...] = tuple(read_journal(path))
        # A half-written last line goes, and with it nothing that was known. Shortening takes no space: what
        # is written anew would be lost on a full disk.
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)

    def append(self, outcome: Outcome) -> None:
        """Write one outcome.

        Raises:
            DiskFullError: there is no space for it.
        """
        with writing("the journal of the search", self.path), self.path.open("ab") as file:
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


def standing(outcomes: Iterable[Outcome]) -> tuple[Accepted, ...]:
    """Return the last outcome of every candidate that was accepted and not lost later, in order.

    A recipe that was rejected or failed as a whole takes all its candidates with it, one that failed at some
    settings those.

    Args:
        outcomes: of a search, in the order found.
    """
    found: dict[Candidate, Accepted] = {}
    for outcome in outcomes:
        if isinstance(outcome, Accepted):
            found[outcome.candidate] = outcome
        elif isinstance(outcome, Failed) and outcome.settings is not None:
            found.pop(Candidate(outcome.recipe, outcome.settings), None)
        else:
            found = {one: kept for one, kept in found.items() if one.recipe != outcome.recipe}
    return tuple(found.values())
