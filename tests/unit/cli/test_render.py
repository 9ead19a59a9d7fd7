"""Results as people see them."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from bundles import write_audio_bundle
from rich.console import Console

from alula.bundle import read_manifest
from alula.cli import render
from alula.core import Accepted, Accuracy, Candidate, Failed, Outcome, Recipe, Rejected, Settings, Throughput
from alula.tuning import NO_TIME


def drawn(bundle: Path, outcomes: list[Outcome], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines of the page that `alula optimize` ends with."""
    monkeypatch.setattr(render, "read_journal", lambda path: iter(outcomes))
    text = io.StringIO()
    render.draw_search(Console(file=text, width=200), bundle, read_manifest(bundle))
    return text.getvalue().splitlines()


def test_what_was_not_tried_takes_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_audio_bundle(tmp_path / "b.alula", scratch=tmp_path)
    recipes = [Recipe("openvino", "int8", f"q{index}") for index in range(8)]
    late: list[Outcome] = [Rejected(recipe=recipe, reason=NO_TIME, tried=False) for recipe in recipes]
    wrong = Rejected(recipe=Recipe("torch", "bf16"), reason="`top1` fell by 0.1")
    late.append(
        Rejected(recipe=Recipe("onnxruntime", "int8", "static"), reason=f"{NO_TIME}, before", tried=False)
    )
    slow: list[Outcome] = [
        Rejected(recipe=Recipe(engine, "fp32"), reason=f"slower than {engine}", tried=False)
        for engine in ("torch", "inductor")
    ]
    lines = drawn(bundle, [wrong, *late, *slow], monkeypatch)
    tired, outdone = [line for line in lines if "not tried" in line]
    names = ", ".join(f"openvino/int8-q{index}" for index in range(6))
    assert tired == f"not tried ({NO_TIME}): 9: {names}, …"
    assert outdone.startswith("not tried (they cannot win")
    assert outdone.endswith("): 2: torch/fp32, inductor/fp32")
    assert any(line.startswith("torch/bf16") and "rejected: `top1` fell by 0.1" in line for line in lines)
    assert len(drawn(bundle, [wrong], monkeypatch)) == len(lines) - 2


def test_a_recipe_that_is_rejected_later_is_not_shown_as_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_audio_bundle(tmp_path / "b.alula", scratch=tmp_path)
    manifest = read_manifest(bundle)
    recipe = Recipe("torch", "int8", "fx")
    accepted = Accepted(
        candidate=Candidate(recipe, Settings()),
        accuracy=manifest.accuracy,
        throughput=Throughput(per_s=90.0, rounds_per_s=(90.0,)),
    )
    wrong = Rejected(recipe=recipe, reason="`top1` fell by 0.1")
    (line,) = [one for one in drawn(bundle, [accepted, wrong], monkeypatch) if one.startswith(str(recipe))]
    assert "rejected: `top1` fell" in line
    (line,) = [one for one in drawn(bundle, [accepted], monkeypatch) if one.startswith(str(recipe))]
    assert line.endswith("accepted")


def test_a_rough_check_is_not_shown_as_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict of a recipe is that on the most samples, whichever of its settings it was taken at."""
    bundle = write_audio_bundle(tmp_path / "b.alula", scratch=tmp_path)
    checked = read_manifest(bundle).accuracy
    recipe = Recipe("torch", "int8", "fx")

    def measured(batch_size: int, per_s: float, accuracy: Accuracy) -> Accepted:
        return Accepted(
            candidate=Candidate(recipe, Settings(batch_size=batch_size)),
            accuracy=accuracy,
            throughput=Throughput(per_s=per_s, rounds_per_s=(per_s,)),
        )

    rough = msgspec.structs.replace(checked, n=checked.n - 3, drop=0.0045)
    fast = measured(8, 90.0, rough)
    lines = drawn(bundle, [fast], monkeypatch)
    (line,) = [one for one in lines if one.startswith(str(recipe))]
    assert line.split()[-3:] == ["+0.0045", "passed", f"{checked.n - 3}"]
    assert any("rough check" in one and f"of {checked.n};" in one for one in lines)
    lines = drawn(bundle, [fast, measured(1, 80.0, checked)], monkeypatch)
    (line,) = [one for one in lines if one.startswith(str(recipe))]
    assert line.split()[-2:] == ["+0.0000", "accepted"]
    assert "90.0" in line
    assert not any("rough check" in one for one in lines)


def test_why_a_recipe_was_lost_stands_below_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_audio_bundle(tmp_path / "b.alula", scratch=tmp_path)
    nothing = drawn(bundle, [], monkeypatch)
    long = "It cannot be made. " * 15
    lines = drawn(
        bundle, [Failed(recipe=Recipe("torch", "int8", "fx"), error=long, reproduce="")], monkeypatch
    )
    assert lines[:2] == nothing[:2], "one long reason does not change the table"
    first = next(line for line in lines if line.startswith("torch/int8-fx"))
    assert first.split()[1] == "failed:"
    assert len(lines) == len(nothing) + 4, "two lines of reason, an empty one before and one after"
