"""Members in turn: batches of their own sizes, as many at once as they want, never two members at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alula.core import Mean, Rank, Settings
from alula.ensemble import Blender, EnsembleSession, Member, align_labels, shared_batch_size
from alula.errors import EngineError


class Recorder:
    """A member that multiplies by `factor`, and says who was at work beside it."""

    def __init__(self, factor: float, busy: dict[int, int], lock: threading.Lock) -> None:
        self.factor = factor
        self.sizes: list[int] = []
        self.most_at_once = 0
        self.others_at_work = False
        self.closed = 0
        self._busy = busy
        self._lock = lock

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        with self._lock:
            self._busy[id(self)] = self._busy.get(id(self), 0) + 1
            self.most_at_once = max(self.most_at_once, self._busy[id(self)])
            self.others_at_work |= any(n for key, n in self._busy.items() if key != id(self))
            self.sizes.append(len(rows))
        result = rows * np.float32(self.factor)
        with self._lock:
            self._busy[id(self)] -= 1
        return result

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def recorders() -> list[Recorder]:
    busy: dict[int, int] = {}
    lock = threading.Lock()
    return [Recorder(2.0, busy, lock), Recorder(4.0, busy, lock)]


def session_of(
    recorders: list[Recorder], blend: Mean | Rank, takes: tuple[int, int] = (0, 1)
) -> EnsembleSession:
    layouts = (Settings(instances=2, batch_size=3), Settings(threads=2, batch_size=4))
    members = [
        Member(name=f"m{k}", settings=layout, takes=take, score=recorder, close=recorder.close)
        for k, (layout, take, recorder) in enumerate(zip(layouts, takes, recorders, strict=True))
    ]
    return EnsembleSession(
        members, blender=Blender(blend, align_labels([None, None], widths=[2, 2])), activate=lambda x: x + 1
    )


def test_each_member_gets_its_array_in_its_own_batches(
    recorders: list[Recorder], rng: np.random.Generator
) -> None:
    x, y = rng.random((2, 11, 2)).astype(np.float32)
    session = session_of(recorders, Mean(weights=(3, 1)))
    np.testing.assert_allclose(session.run((x, y)), 0.75 * 2 * x + 0.25 * 4 * y + 1, rtol=1e-6)
    assert sorted(recorders[0].sizes) == [2, 3, 3, 3]
    assert recorders[1].sizes == [4, 4, 3]
    assert recorders[1].most_at_once == 1
    session.close()
    assert [recorder.closed for recorder in recorders] == [1, 1]


def test_callers_wait_for_each_other(recorders: list[Recorder], rng: np.random.Generator) -> None:
    x = rng.random((8, 30, 2)).astype(np.float32)
    session = session_of(recorders, Mean(), (0, 0))
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda rows: session.run((rows,)), x))
    np.testing.assert_allclose(np.stack(got), 3 * x + 1, rtol=1e-6)
    assert not any(recorder.others_at_work for recorder in recorders)
    assert recorders[0].most_at_once <= 2
    session.close()


def test_a_rank_blend_joins_first_and_blends_last(
    recorders: list[Recorder], rng: np.random.Generator
) -> None:
    x = rng.random((7, 2)).astype(np.float32)
    session = session_of(recorders, Rank(), (0, 0))
    joined = [session.run((part,)) for part in (x[:3], x[3:])]
    assert [part.shape for part in joined] == [(3, 4), (4, 4)]
    np.testing.assert_array_equal(np.concatenate(joined), np.hstack([2 * x, 4 * x]))
    session.close()


def test_full_batches_have_one_size_each_and_give_the_same_rows(
    recorders: list[Recorder], rng: np.random.Generator
) -> None:
    x = rng.random((7, 2)).astype(np.float32)
    session = session_of(recorders, Mean(), (0, 0))
    full = session.run((x,), full_batches=True)
    assert [recorder.sizes for recorder in recorders] == [[3, 3, 3], [4, 4]]
    np.testing.assert_array_equal(full, session.run((x,)))
    session.close()


def test_a_member_that_fails_or_gives_frames(recorders: list[Recorder]) -> None:
    def fails(rows: np.ndarray) -> np.ndarray:
        raise EngineError("broken")

    blender = Blender(Mean(), align_labels([None], widths=[2]))
    for score, says in (
        (fails, "broken"),
        (lambda rows: rows[:, :, None], "Member `m` gave scores of shape"),
    ):
        member = Member(name="m", settings=Settings(), takes=0, score=score, close=recorders[0].close)
        session = EnsembleSession([member], blender=blender, activate=lambda x: x)
        with pytest.raises(EngineError, match=says):
            session.run((np.zeros((2, 2), np.float32),))
        session.close()


@given(
    st.lists(st.builds(Settings, instances=st.integers(1, 4), batch_size=st.integers(1, 64)), min_size=1),
    st.integers(1, 2**24),
)
def test_a_call_has_a_whole_round_of_every_member(settings: list[Settings], row_bytes: int) -> None:
    size = shared_batch_size(settings, row_bytes=row_bytes)
    largest = max(each.instances * each.batch_size for each in settings)
    assert size >= largest
    assert size * row_bytes <= 64 * 2**20 or size == largest
    assert size <= max(8 * largest, 32 + 4 * largest)


@dataclass(frozen=True)
class Joined:
    """A session of a member that takes three windows one by one, and one that takes them as a stretch."""

    session: EnsembleSession
    inputs: tuple[np.ndarray, np.ndarray]
    sizes: list[tuple[int, ...]]


@pytest.fixture
def joined(rng: np.random.Generator) -> Iterator[Joined]:
    windows = rng.standard_normal((5, 3, 2)).astype(np.float32)
    stretches = rng.standard_normal((5, 6)).astype(np.float32)
    sizes: list[tuple[int, ...]] = []

    def each(rows: np.ndarray) -> np.ndarray:
        sizes.append(rows.shape)
        return rows

    members = [
        Member(
            name="each",
            settings=Settings(batch_size=4),
            takes=0,
            inputs=3,
            score=each,
            close=lambda: None,
        ),
        Member(
            name="whole",
            settings=Settings(batch_size=2),
            takes=1,
            rows=3,
            score=lambda rows: rows.reshape(-1, 3, 2),
            close=lambda: None,
        ),
    ]
    blender = Blender(Mean(), align_labels([None, None], widths=[2, 2], wanted=None))
    session = EnsembleSession(members, blender=blender, activate=lambda scores: scores)
    yield Joined(session, (windows, stretches), sizes)
    session.close()


def test_members_with_one_input_for_several_rows_and_members_with_one_for_each(joined: Joined) -> None:
    windows, stretches = joined.inputs
    got = joined.session.run(joined.inputs)
    np.testing.assert_allclose(got, (windows.reshape(15, 2) + stretches.reshape(15, 2)) / 2, rtol=1e-6)
    assert joined.sizes == [(4, 2), (4, 2), (4, 2), (3, 2)]


def test_full_batches_of_members_with_several_rows(joined: Joined) -> None:
    full = joined.session.run(joined.inputs, full_batches=True)
    assert joined.sizes == [(4, 2)] * 4
    np.testing.assert_array_equal(full, joined.session.run(joined.inputs))
    (windows, stretches), alone = joined.inputs, Blender(Mean(), align_labels([None], widths=[2]))
    for place, expected in ((0, windows), (1, stretches)):
        some, _ = joined.session.run_some(joined.inputs, [place], blender=alone, full_batches=True)
        np.testing.assert_array_equal(some, expected.reshape(15, 2))
    # A round of four windows is two rows of three each; one of two stretches is two.
    assert joined.session.round_rows == 2


def test_rounds_that_have_a_small_multiple_fit() -> None:
    assert (
        shared_batch_size([Settings(instances=2, batch_size=8), Settings(batch_size=12)], row_bytes=1) == 48
    )
    assert shared_batch_size([Settings(batch_size=1)], row_bytes=1) == 32
    assert shared_batch_size([Settings(batch_size=16)], row_bytes=4 * 2**20) == 16
    # A row of twelve windows: three of them fill two rounds of one, and one a round of the other.
    joined = [Settings(instances=2, batch_size=8), Settings(batch_size=1)]
    assert shared_batch_size(joined, row_bytes=1, inputs=[12, 1]) == 4
    assert shared_batch_size(joined, row_bytes=1, inputs=[12, 1], share=0.25) == 16
