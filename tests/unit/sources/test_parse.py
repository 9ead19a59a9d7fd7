"""What a user writes as MODEL becomes a source, or an error that says what to write."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

from alula.errors import AlulaError, ModelError, UsageError
from alula.sources import Source, load_model, parse_source


def message(error: pytest.ExceptionInfo[AlulaError]) -> str:
    text = str(error.value)
    assert text.endswith((".", "`."))
    assert "\n" not in text
    return text


def test_sources_go_to_json_and_back(factory: Path) -> None:
    source = parse_source(f"{factory}:build")
    assert msgspec.json.decode(msgspec.json.encode(source), type=Source) == source
    assert source == Source(kind="factory", spec=f"{factory}:build", search_path=(str(factory.parent),))


def test_relative_paths_become_absolute(
    factory: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(net.state_dict(), factory.parent / "w.pth")
    monkeypatch.chdir(factory.parent)
    source = parse_source("net.py:build", weights="w.pth")
    assert source.spec == f"{factory}:build"
    assert source.weights == str(factory.parent / "w.pth")
    monkeypatch.chdir("/")
    assert load_model(source).name == "build"


@pytest.mark.parametrize("text", ["timm:resnet18", "torchvision:resnet18?num_classes=10"])
def test_named_architectures(text: str) -> None:
    source = parse_source(text)
    assert source == Source(kind=text.partition(":")[0], spec=text)  # type: ignore[arg-type]


def test_module_factories_find_the_modules_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = parse_source("some.package:build")
    assert source.kind == "factory"
    assert source.search_path[0] == str(Path.cwd())
    assert str(tmp_path) in source.search_path
    assert not any("site-packages" in folder for folder in source.search_path)


def test_only_module_sources_carry_a_hash() -> None:
    with pytest.raises(ValueError, match="`sha256` belongs to sources of kind `module`"):
        Source(kind="module", spec="/x/module.pkl")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("resnet50", ["`resnet50` is neither a file", "`timm:resnet50`"]),
        ("timm:", ["names no model"]),
        ("timm:resnet18?in_chans", ["`in_chans`", "is not an option", "option=value"]),
        ("timm:resnet18?in_chans=1&in_chans=3", ["`in_chans` is given twice"]),
        ("net.py:not a name", ["`not a name` is not a Python name"]),
        ("some-thing:build", ["`some-thing` is not the name of a Python module"]),
        ("folder/net.txt:build", ["`folder/net.txt` is not a Python file", "`file.py:NAME`"]),
    ],
)
def test_wrong_forms_say_what_is_expected(text: str, expected: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        parse_source(text)
    for part in expected:
        assert part in message(error)


def test_python_file_without_a_factory_lists_its_names(factory: Path) -> None:
    with pytest.raises(UsageError) as error:
        parse_source(factory)
    assert "It defines `build`. Write `net.py:build`." in message(error)


def test_values_that_are_no_models() -> None:
    with pytest.raises(UsageError) as error:
        parse_source([1, 2])  # type: ignore[arg-type]
    assert "type list. Expected a torch.nn.Module" in message(error)
    with pytest.raises(UsageError, match="needs a `workdir`"):
        parse_source(nn.Identity())


def test_missing_files_name_the_closest(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"x")
    with pytest.raises(ModelError) as error:
        parse_source(tmp_path / "modle.pt2")
    assert "does not exist. Did you mean `model.pt2`?" in message(error)
    with pytest.raises(ModelError) as error:
        parse_source("timm:resnet18", weights=tmp_path / "model.pt3")
    assert "Weights file" in message(error)
    assert "Did you mean `model.pt2`?" in message(error)
    with pytest.raises(ModelError, match="does not exist"):
        parse_source(tmp_path / "no" / "folder" / "model.pt2")


def test_folders_empty_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        parse_source(tmp_path)
    assert "is a folder" in message(error)
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(ModelError) as error:
        parse_source(tmp_path)
    assert "It is a bundle already." in message(error)
    (tmp_path / "empty.pt2").touch()
    with pytest.raises(ModelError) as error:
        parse_source(tmp_path / "empty.pt2")
    assert "is empty (0 bytes)" in message(error)
    (tmp_path / "notes.pt2").write_text("not a model")
    with pytest.raises(ModelError) as error:
        parse_source(tmp_path / "notes.pt2")
    assert "is in no known model format. Expected a .pt2" in message(error)


def test_weights_do_not_go_with_models_that_hold_their_own(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(UsageError) as error:
        parse_source(tmp_path / "m.onnx", weights=tmp_path / "w.pth")
    assert "holds its weights itself" in message(error)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_state_dicts_as_model(tmp_path: Path, net: nn.Module, nested: bool, zipped: bool) -> None:
    state = net.state_dict()
    path = tmp_path / "w.pt"
    value = {"state_dict": state, "epoch": 3} if nested else state
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError) as error:
        parse_source(path)
    assert "is a state dict (weights), not a model. Give the architecture as MODEL" in message(error)


def test_safetensors_as_model(tmp_path: Path, net: nn.Module) -> None:
    from safetensors.torch import save_file

    save_file(net.state_dict(), tmp_path / "w.bin")
    with pytest.raises(ModelError, match="is a state dict"):
        parse_source(tmp_path / "w.bin")


def test_whole_pickled_module_as_model(tmp_path: Path, net: nn.Module) -> None:
    torch.save(net, tmp_path / "whole.pt")
    with pytest.raises(ModelError) as error:
        parse_source(tmp_path / "whole.pt")
    text = message(error)
    assert "is a pickled object of class `torch.nn.modules.container.Sequential`" in text
    assert "torch.save(model.state_dict(), 'weights.pth')" in text
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="is a pickle, which only runs where its code is"):
        parse_source(tmp_path / "list.pt")
