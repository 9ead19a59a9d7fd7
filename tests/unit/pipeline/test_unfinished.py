"""The list of rows that a deadline left below the first rung."""

from __future__ import annotations

from pathlib import Path

import pytest

from alula.errors import UsageError
from alula.pipeline import Stretch, UnfinishedList, forget_unfinished


def test_a_line_per_stretch_and_no_file_without(tmp_path: Path) -> None:
    path = tmp_path / "unfinished.csv"
    with UnfinishedList(path) as listed:
        listed.add("a,b.wav", Stretch(0.0, 7.5, 3, "one"))
        listed.add("c.png", Stretch(None, None, 1, "prior"))
        assert not path.exists()
    assert listed.lines == 2
    assert path.read_text() == 'path,start_s,end_s,rows,rung\n"a,b.wav",0,7.5,3,one\nc.png,,,1,prior\n'
    with pytest.raises(KeyError), UnfinishedList(path) as listed:
        listed.add("d.wav", Stretch(0.0, 5.0, 1, "prior"))
        raise KeyError
    assert "c.png" in path.read_text()
    with UnfinishedList(path):
        pass
    assert "c.png" in path.read_text()
    forget_unfinished(path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_somebody_else_is_neither_replaced_nor_removed(tmp_path: Path) -> None:
    path = tmp_path / "unfinished.csv"
    path.write_text("buy,milk\n")
    with pytest.raises(UsageError, match="Move it"), UnfinishedList(path):
        pass
    forget_unfinished(path)
    assert path.read_text() == "buy,milk\n"
