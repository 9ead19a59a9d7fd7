"""Everything once and in the first order, whatever the order in which it was done."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from alula.pipeline import Backlog, FileKey, FileTask, JobKey, Journal

KEY = JobKey(bundle="b", checksum="0", recipe="r")
TASKS = [FileTask(Path(f"{n}.wav"), FileKey(b"/%d.wav" % n, n, n)) for n in range(12)]


def do(journal: Journal, task: FileTask) -> None:
    journal.keep(task.key, start_s=None, end_s=None, scores=np.zeros((1, 2), np.float32))


@hypothesis_settings(deadline=None, max_examples=60)
@given(known=st.sets(st.sampled_from(TASKS)), seed=st.integers(0, 2**32), limit=st.integers(0, 3) | st.none())
def test_order_and_completeness(known: set[FileTask], seed: int, limit: int | None) -> None:
    shuffle = random.Random(seed)
    with tempfile.TemporaryDirectory() as name, Journal(Path(name) / "j", KEY) as journal:
        for task in known:
            do(journal, task)
        backlog = Backlog(iter(TASKS), journal)
        given_out: list[FileTask] = []
        told: list[FileTask] = []
        open_: list[FileTask] = []
        for task in backlog.missing():
            given_out.append(task)
            open_.append(task)
            while open_ and (len(open_) > 3 or shuffle.random() < 0.3):
                do(journal, open_.pop(shuffle.randrange(len(open_))))
                now = [one for one, _ in backlog.ready(limit)]
                assert limit is None or len(now) <= limit
                told.extend(now)
        for task in open_:
            do(journal, task)
        told.extend(one for one, _ in backlog.ready())
        assert told == TASKS
        assert given_out == [task for task in TASKS if task not in known]
        assert list(backlog.ready()) == []


@pytest.mark.parametrize("tasks", [TASKS, iter(TASKS)])
def test_the_rest_is_everything_that_was_not_told(tasks: Iterable[FileTask]) -> None:
    with tempfile.TemporaryDirectory() as name, Journal(Path(name) / "j", KEY) as journal:
        backlog = Backlog(tasks, journal)
        missing = backlog.missing()
        do(journal, next(missing))
        assert [task for task, _ in backlog.ready()] == TASKS[:1]
        assert [next(missing), next(missing)] == TASKS[1:3]
        do(journal, TASKS[2])
        rest = list(backlog.rest())
        assert [task for task, _ in rest] == TASKS[1:]
        assert [task for task, kept in rest if kept is not None] == [TASKS[2]]
        assert list(backlog.rest()) == []


def test_tasks_are_read_as_they_are_asked_for() -> None:
    with tempfile.TemporaryDirectory() as name, Journal(Path(name) / "j", KEY) as journal:
        read: list[int] = []
        backlog = Backlog((read.append(n) or TASKS[n] for n in range(12)), journal)  # type: ignore[func-returns-value]
        missing = backlog.missing()
        assert next(missing) is TASKS[0]
        assert next(missing) is TASKS[1]
        assert read == [0, 1]
        assert str(TASKS[1]) == "1.wav"
