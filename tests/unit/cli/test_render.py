"""Results as people see them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from bundles import write_audio_bundle
from rich.console import Console

from alula.bundle import read_manifest
from alula.cli import render
from alula.core import Outcome, Recipe, Rejected


def drawn(bundle: Path, outcomes: list[Outcome], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines of the page that `alula optimize` ends with."""
    monkeypatch.setattr(render, "read_journal", lambda path: iter(outcomes))
    text = io.StringIO()
    render.draw_search(Console(file=text, width=200), bundle, read_manifest(bundle))
    return text.getvalue().splitlines()


def test_what_was_not_tried_takes_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_audio_bundle(tmp_path / "b.alula", scratch=tmp_path)
    recipes = [Recipe("openvino", "int8", f"q{index}") for index in range(8)]
    late: list[Outcome] = [
        Rejected(recipe=recipe, reason="the budget is used up", tried=False) for recipe in recipes
    ]
    wrong = Rejected(recipe=Recipe("torch", "bf16"), reason="`top1` fell by 0.1")
    lines = drawn(bundle, [wrong, *late], monkeypatch)
    (line,) = [line for line in lines if "not tried" in line]
    names = ", ".join(f"openvino/int8-q{index}" for index in range(6))
    assert line == f"not tried (the budget is used up): 8: {names}, …"
    assert any(line.startswith("torch/bf16") and "rejected: `top1` fell by 0.1" in line for line in lines)
    assert len(drawn(bundle, [wrong], monkeypatch)) == len(lines) - 1
