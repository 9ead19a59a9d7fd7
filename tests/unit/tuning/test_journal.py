"""The record of a search survives being cut off at any byte."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest

from alula.core import Accepted, Accuracy, Candidate, Failed, Outcome, Recipe, Rejected, Settings, Throughput
from alula.errors import BundleError, DiskFullError
from alula.tuning import Journal, read_journal, standing

ACCURACY = Accuracy(
    metric="top1", n=10, baseline=0.9, chosen=0.8, drop=0.1, drop_low=0.0, drop_high=0.2, limit=0.01
)
OUTCOMES: tuple[Outcome, ...] = (
    Accepted(
        candidate=Candidate(Recipe("onnxruntime", "fp32"), Settings(threads=2, batch_size=8)),
        accuracy=ACCURACY,
        throughput=Throughput(per_s=100.5, rounds_per_s=(100.0, 101.0)),
        seconds=1.5,
    ),
    Rejected(recipe=Recipe("openvino", "int8", "nncf"), reason="`top1` fell", accuracy=ACCURACY),
    Failed(
        recipe=Recipe("inductor", "fp32"),
        error="It »failed«,\nin two lines",
        reproduce="python -m x < y",
        settings=Settings(instances=2),
    ),
)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "search.jsonl")
    for outcome in OUTCOMES:
        journal.append(outcome)
    return journal


def test_what_was_appended_is_read_in_order(journal: Journal) -> None:
    assert tuple(read_journal(journal.path)) == OUTCOMES
    assert journal.path.read_bytes().count(b"\n") == len(OUTCOMES)


def test_each_outcome_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "search.jsonl")
    for count, outcome in enumerate(OUTCOMES, 1):
        journal.append(outcome)
        assert tuple(read_journal(journal.path)) == OUTCOMES[:count]


def test_a_new_journal_starts_empty(tmp_path: Path) -> None:
    assert Journal(tmp_path / "new.jsonl").earlier == ()
    assert (tmp_path / "new.jsonl").read_bytes() == b""


def test_a_journal_that_was_cut_is_continued_after_its_last_whole_line(journal: Journal) -> None:
    with journal.path.open("ab") as file:
        file.write(b'{"type":"acc')
    again = Journal(journal.path)
    assert again.earlier == OUTCOMES
    again.append(OUTCOMES[0])
    assert tuple(read_journal(journal.path)) == (*OUTCOMES, OUTCOMES[0])


def test_a_journal_cut_at_any_byte_gives_the_whole_lines_before(journal: Journal) -> None:
    content = journal.path.read_bytes()
    for end in range(len(content)):
        journal.path.write_bytes(content[:end])
        assert tuple(read_journal(journal.path)) == OUTCOMES[: content[:end].count(b"\n")]


def test_a_full_disk_is_said_and_loses_nothing_that_was_known(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(DiskFullError, match="the journal of the search"):
        patch.setattr(os, "fsync", no_space)
        journal.append(OUTCOMES[0])
    with journal.path.open("ab") as file:
        file.write(b'{"type":"acc')
    before = journal.path.read_bytes()
    # Nothing of what is known is written anew, for which there might be no space.
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", no_space)
        again = Journal(journal.path)
    assert before.startswith(journal.path.read_bytes())
    assert again.earlier[: len(OUTCOMES)] == OUTCOMES
    again.append(OUTCOMES[1])
    assert tuple(read_journal(journal.path)) == (*again.earlier, OUTCOMES[1])


@pytest.mark.parametrize("line", [b"nonsense\n", b'{"type":"won"}\n', b"\xff\xfe\n", b"\n"])
def test_a_damaged_line_is_named(journal: Journal, line: bytes) -> None:
    first, _, rest = journal.path.read_bytes().partition(b"\n")
    journal.path.write_bytes(first + b"\n" + line + rest)
    with pytest.raises(BundleError, match="Line 2 is no outcome") as raised:
        tuple(read_journal(journal.path))
    assert raised.value.path == str(journal.path)


def test_what_is_lost_later_does_not_stand() -> None:
    first = OUTCOMES[0]
    assert isinstance(first, Accepted)
    recipe, settings = first.candidate.recipe, first.candidate.settings
    again = msgspec.structs.replace(first, relative=2.0)
    other = msgspec.structs.replace(first, candidate=Candidate(recipe, Settings(batch_size=1)))
    at_these = Failed(recipe=recipe, settings=settings, error="crashed", reproduce="")
    assert standing([first, *OUTCOMES[1:], other, again]) == (again, other)
    assert standing([first, other, at_these]) == (other,)
    assert standing([first, at_these, again]) == (again,)
    for whole in (
        Rejected(recipe=recipe, reason="`top1` fell"),
        Failed(recipe=recipe, error="crashed", reproduce=""),
    ):
        assert standing([first, other, whole]) == ()
