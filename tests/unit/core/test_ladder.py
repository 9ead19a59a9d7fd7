"""Ladders: what a window takes on each rung, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from alula.core import Ladder, LadderRung, LadderStage

STAGES = (
    LadderStage(name="decode", core_s=0.1, spread=0.1, per="row"),
    LadderStage(name="mel", core_s=0.2, spread=0.1, per="window", members=("a", "b")),
    LadderStage(name="model a", core_s=1.0, spread=0.1, per="window", members=("a",)),
    LadderStage(name="model b", core_s=3.0, spread=0.1, per="window", members=("b",)),
)
RUNGS = (
    LadderRung(members=("a", "b"), score=0.9),
    LadderRung(members=("a", "b"), every=2, score=0.85),
    LadderRung(members=("a",), every=2, score=0.8),
)


def test_what_a_window_takes() -> None:
    ladder = Ladder(rungs=RUNGS, stages=STAGES, prior=(0.1, 0.2))
    assert [ladder.loads(rung) for rung in ladder.rungs] == [
        {"decode": 1.0, "mel": 1.0, "model a": 1.0, "model b": 1.0},
        {"decode": 1.0, "mel": 0.5, "model a": 0.5, "model b": 0.5},
        {"decode": 1.0, "mel": 0.5, "model a": 0.5},
    ]
    assert ladder.members == ("a", "b")
    assert msgspec.json.decode(msgspec.json.encode(ladder), type=Ladder) == ladder


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"rungs": ()}, "length >= 1"),
        ({"rungs": RUNGS[::-1]}, "cheaper than the one before"),
        ({"prior": (float("nan"),)}, "finite"),
        ({"stages": STAGES[:1] * 2}, "name of its own"),
    ],
)
def test_what_is_no_ladder(changed: dict[str, Any], match: str) -> None:
    fields = {"rungs": RUNGS, "stages": STAGES, "prior": (0.1,)} | changed
    with pytest.raises((ValueError, msgspec.ValidationError), match=match):
        msgspec.convert(fields, type=Ladder, from_attributes=True)
