"""The folder of a search under way: kept for the same command, emptied for another."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny import FEATURES, write_onnx

from alula.core import Outcome
from alula.data import open_samples
from alula.errors import AccuracyError, DataError, ModelError, UsageError
from alula.sources import parse_source
from alula.workflows import optimize
from alula.workflows.search_folder import SearchFolder, folder_beside, search_folder, search_key


def key(model: Path | str, x: Any, **options: Any) -> str:
    return search_key(parse_source(model), open_samples(x), **options)


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(30, FEATURES)).astype(np.float32)


def test_the_key_knows_the_model_the_data_and_the_options(tmp_path: Path, x: np.ndarray) -> None:
    model = write_onnx(tmp_path / "model.onnx")
    first = key(model, x, seed=0)
    assert key(model, x.copy(), seed=0) == first
    assert key(model, x, seed=1) != first
    assert key(model, x[:-1], seed=0) != first
    assert key(model, x + 1, seed=0) != first
    write_onnx(tmp_path / "model.onnx", batch=8)
    assert key(model, x, seed=0) != first


def test_files_of_data_count_by_their_size_and_time(tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "model.onnx")
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        (tmp_path / "data" / label / "1.wav").write_bytes(b"RIFF")
    first = key(model, tmp_path / "data")
    assert key(model, tmp_path / "data") == first
    (tmp_path / "data" / "b" / "1.wav").write_bytes(b"RIFF longer")
    assert key(model, tmp_path / "data") != first


def test_names_of_files_need_not_be_utf_8(tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "model.onnx")
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        (tmp_path / "data" / label / os.fsdecode(b"caf\xe9.wav")).write_bytes(b"RIFF")
    assert len(key(model, tmp_path / "data")) == 64


def test_a_folder_is_claimed_for_one_key(tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path)
    assert not folder.claim("one", fresh=False)
    (tmp_path / "exports").mkdir()
    (tmp_path / "search.jsonl").write_text("")
    assert folder.claim("one", fresh=False)
    assert (tmp_path / "exports").is_dir()
    assert not folder.claim("one", fresh=True)
    assert not (tmp_path / "exports").exists()
    assert not folder.claim("two", fresh=False)


def test_the_folder_goes_with_a_result_or_an_error_and_stays_otherwise(tmp_path: Path) -> None:
    output = tmp_path / "a.alula"
    folder = folder_beside(output)
    with search_folder(output, None) as found:
        assert found.path == folder == tmp_path / "a.alula.search"
    assert not folder.exists()
    with pytest.raises(DataError), search_folder(output, None):
        raise DataError("data", "It is wrong.")
    assert not folder.exists()
    for stays in (KeyboardInterrupt, OSError):
        with pytest.raises(stays), search_folder(output, None):
            raise stays
        assert folder.is_dir()


def test_a_mistyped_command_leaves_what_an_interrupted_one_has_found(tmp_path: Path) -> None:
    output = tmp_path / "a.alula"
    folder = folder_beside(output)
    with pytest.raises(KeyboardInterrupt), search_folder(output, None) as found:
        found.claim("one", fresh=False)
        raise KeyboardInterrupt
    with pytest.raises(ModelError), search_folder(output, None):
        raise ModelError("There are no such weights.")
    with pytest.raises(UsageError), search_folder(output, None) as found:
        assert found.claim("one", fresh=False)
        raise UsageError("There are two names for three classes.")
    assert folder.is_dir()
    with pytest.raises(AccuracyError), search_folder(output, None) as found:
        assert found.claim("one", fresh=False)
        raise AccuracyError("No recipe was accepted.")
    assert not folder.exists()


def test_a_folder_to_keep_is_new_or_an_earlier_search(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    with search_folder(tmp_path / "a.alula", keep) as found:
        found.claim("one", fresh=False)
    assert keep.is_dir()
    with search_folder(tmp_path / "a.alula", keep):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with (
        pytest.raises(UsageError, match="exists already; give a new one"),
        search_folder(tmp_path / "a.alula", tmp_path / "mine"),
    ):
        pass


def test_a_search_keeps_others_out_of_its_folder(tmp_path: Path) -> None:
    output = tmp_path / "a.alula"
    folder = folder_beside(output)
    with search_folder(output, None) as found:
        (folder / "export").touch()
        with (
            pytest.raises(UsageError, match=r"Another search works in .*a\.alula\.search now"),
            search_folder(output, None),
        ):
            pass
        assert (folder / "export").exists()
        assert not found.claim("one", fresh=False)  # which empties it, but not of its lock
        with pytest.raises(UsageError, match="Another search works"), search_folder(output, None):
            pass
    assert not folder.exists()


def test_a_removal_that_is_interrupted_leaves_nothing_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a.alula"

    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt), search_folder(output, None) as found:
            found.claim("one", fresh=False)
    assert found.path.is_dir()
    assert not SearchFolder(found.path).claim("one", fresh=False)


def test_the_key_knows_the_code_of_the_model_and_the_metric(
    tmp_path: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text("from parts import build\n")
    (tmp_path / "parts.py").write_text("def build(): ...\n")
    (tmp_path / "package" / "deep").mkdir(parents=True)
    (tmp_path / "package" / "deep" / "net.py").write_text("def build(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def keys() -> list[str]:
        return [
            key(f"{tmp_path}/net.py:build", x),
            key("package.deep:build", x),
            key(write_onnx(tmp_path / "model.onnx"), x, metric="parts:build"),
            key(write_onnx(tmp_path / "model.onnx"), x, metric="top1"),
        ]

    def changed(file: str) -> list[bool]:
        before = keys()
        with (tmp_path / file).open("a") as code:
            code.write("# changed\n")
        return [one != other for one, other in zip(before, keys(), strict=True)]

    assert keys() == keys()
    assert changed("parts.py") == [True, False, True, False]
    assert changed("package/deep/net.py") == [False, True, False, False]


def test_the_key_knows_the_weights_beside_an_onnx_file(tmp_path: Path, x: np.ndarray) -> None:
    path = write_onnx(tmp_path / "model.onnx")
    onnx.save_model(
        onnx.load(path), path, save_as_external_data=True, location="model.weights", size_threshold=0
    )
    weights = tmp_path / "model.weights"
    before = key(path, x)
    assert key(path, x) == before
    weights.write_bytes(weights.read_bytes() + b"1234")
    assert key(path, x) != before


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_killed_search_is_continued_by_the_same_command(tmp_path: Path, x: np.ndarray) -> None:
    model, output = write_onnx(tmp_path / "model.onnx", batch=8), tmp_path / "a.alula"
    options: dict[str, Any] = {"output": output, "threads": 1, "engines": ["onnxruntime"]}

    def kill(outcome: Outcome) -> None:
        raise Killed

    with pytest.raises(Killed):
        optimize(model, x, **options, precisions=["fp32"], on_outcome=kill)
    assert not output.exists()
    left = (tmp_path / "a.alula.search" / "search.jsonl").read_bytes()
    assert left.count(b"\n") == 1
    with pytest.raises(UsageError, match="starts from PyTorch modules only"):
        optimize(model, x, output=output, threads=1, engines=["torch"])
    reports: list[str] = []
    optimize(model, x, **options, precisions=["fp32"], report=reports.append).close()
    assert "continuing the earlier search of this command" in reports
    assert "measuring the baseline" not in reports
    assert not [text for text in reports if text.startswith("preparing")]
    assert not (tmp_path / "a.alula.search").exists()
    assert (output / "search.jsonl").read_bytes().startswith(left)


def test_another_command_starts_over(tmp_path: Path, x: np.ndarray) -> None:
    model, output = write_onnx(tmp_path / "model.onnx", batch=8), tmp_path / "a.alula"

    def kill(outcome: Outcome) -> None:
        raise Killed

    for seed, fresh in ((0, False), (1, False), (1, True)):
        reports: list[str] = []
        with pytest.raises(Killed):
            optimize(
                model,
                x,
                output=output,
                threads=1,
                engines=["onnxruntime"],
                precisions=["fp32"],
                seed=seed,
                fresh=fresh,
                report=reports.append,
                on_outcome=kill,
            )
        assert "measuring the baseline" in reports
