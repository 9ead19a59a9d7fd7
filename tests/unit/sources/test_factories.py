"""Factories in files and modules build modules, and their mistakes are named in one line."""

from __future__ import annotations

import copy
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from alula.errors import ModelError
from alula.sources import load_model, parse_source


def write(folder: Path, text: str, name: str = "net.py") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def failure(spec: str) -> str:
    with pytest.raises(ModelError) as error:
        load_model(parse_source(spec))
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_a_factory_gives_a_module_ready_for_inference(factory: Path, x: torch.Tensor) -> None:
    model = load_model(parse_source(f"{factory}:build"))
    assert (model.kind, model.name, model.onnx_path) == ("module", "build", None)
    assert model.module is not None
    assert not any(part.training for part in model.module.modules())
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert model.module(x).shape == (5, 3)


@pytest.mark.parametrize(
    "definition", ["class Net(nn.Identity): pass", "Net = nn.Identity()", "Net = nn.Identity"]
)
def test_classes_and_instances_are_factories_too(tmp_path: Path, definition: str) -> None:
    path = write(tmp_path, f"from torch import nn\n{definition}\n")
    model = load_model(parse_source(f"{path}:Net"))
    assert isinstance(model.module, torch.nn.Identity)


def test_an_instance_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path, "from torch import nn\nnet = nn.Linear(2, 2)\n", "instance_holder.py")
    model = load_model(parse_source("instance_holder:net"))
    original = sys.modules["instance_holder"].net
    assert original.training
    assert original.weight.requires_grad
    assert model.module is not original


def test_models_without_weights_are_the_same_every_time(factory: Path) -> None:
    source = parse_source(f"{factory}:build")
    first, second = load_model(source).module, load_model(source).module
    assert first is not None
    assert second is not None
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_loading_leaves_random_states_and_import_path_as_they_were(tmp_path: Path) -> None:
    text = (
        "import random, numpy, torch\n"
        "def build():\n"
        "    random.random(); numpy.random.rand(); torch.rand(1)\n"
        "    return torch.nn.Identity()\n"
    )
    path = write(tmp_path, text)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), list(sys.path)
    load_model(parse_source(f"{path}:build"))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert sys.path == before[3]


def test_a_factory_file_imports_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "from torch import nn\nclass Head(nn.Identity): pass\n", "neighbour_head.py")
    path = write(tmp_path, "import neighbour_head\nbuild = neighbour_head.Head\n")
    assert type(load_model(parse_source(f"{path}:build")).module).__name__ == "Head"


def test_a_neighbour_of_another_folder_is_never_taken(tmp_path: Path) -> None:
    for run, size in (("run1", 1), ("run2", 2)):
        write(
            tmp_path / run, f"from torch import nn\ndef head(): return nn.Linear({size}, 1)\n", "twin_head.py"
        )
        write(tmp_path / run, "from twin_head import head\n")
    load_model(parse_source(f"{tmp_path / 'run1' / 'net.py'}:head"))
    text = failure(f"{tmp_path / 'run2' / 'net.py'}:head")
    assert f"`{tmp_path / 'run2' / 'twin_head.py'}` beside it" in text
    assert f"from `{tmp_path / 'run1' / 'twin_head.py'}` already" in text


def test_what_a_factory_prints_stays_out_of_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        tmp_path, "from torch import nn\nprint('top')\ndef build(): print('in'); return nn.Identity()\n"
    )
    load_model(parse_source(f"{path}:build"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "top\nin\n"


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    path = write(tmp_path, "from torch import nn\ndef build(): return nn.Linear(2, 2).bfloat16()\n")
    module = load_model(parse_source(f"{path}:build")).module
    assert module is not None
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_missing_file(factory: Path) -> None:
    text = failure(f"{factory.parent / 'ent.py'}:build")
    assert text.endswith("ent.py` does not exist. Did you mean `net.py`? Check the path.")


def test_missing_name(factory: Path) -> None:
    text = failure(f"{factory}:biuld")
    assert text.endswith("net.py` has no `biuld`. Did you mean `build`? It defines `build`.")
    empty = write(factory.parent, "", "empty.py")
    assert "It defines no function, class or module." in failure(f"{empty}:build")


def test_missing_module() -> None:
    text = failure("no_such_package.nets:build")
    assert text.startswith("There is no Python module `no_such_package.nets` to take a model from.")
    assert "Did you mean `timm`?" in failure("tim:resnet18")


def test_a_module_that_needs_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path, "\nimport no_such_dependency\n", "needy_nets.py")
    text = failure("needy_nets:build")
    assert "Importing `needy_nets` raised ModuleNotFoundError: No module named 'no_such_dependency'" in text
    assert f"({path}:2)" in text


def test_a_factory_that_raises_is_named_with_its_line(tmp_path: Path) -> None:
    text = "import torch\n\ndef build():\n    return torch.nn.Linear(2, 2).get_submodule('head')\n"
    path = write(tmp_path, text)
    said = failure(f"{path}:build")
    assert said.startswith(f"Factory `{path}:build` raised AttributeError: ")
    assert said.endswith(f" ({path}:4).")  # the user's own line, not the one inside torch


def test_a_file_that_raises_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write(tmp_path, "x = 1\nraise ValueError('first line\\nsecond line')\n")
    before = set(sys.modules)
    assert failure(f"{path}:build") == f"Factory file `{path}` raised ValueError: first line ({path}:2)."
    assert set(sys.modules) == before
    path.write_text("def build(:\n")
    assert "raised SyntaxError: invalid syntax (net.py, line 1)" in failure(f"{path}:build")


def test_a_script_that_parses_its_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, "import sys\nsys.exit(2)\n")
    text = failure(f"{path}:build")
    assert "ended the program: SystemExit: 2" in text
    assert "if __name__ == '__main__':" in text


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "def build(): return {'a': 1}",
            "returned a dict (weights are passed with --weights). Expected a torch.nn.Module.",
        ),
        ("def build(): return None", "returned None (NoneType). Expected a torch.nn.Module."),
        ("build = 3", "is a value of type int. Expected an nn.Module, or what makes one."),
        (
            "def build(size, *, depth, width=3): pass",
            "needs the arguments `size`, `depth`. Expected a factory without required arguments. "
            "Add one beside it: `def make_build(): return build(size=..., depth=...)`.",
        ),
    ],
)
def test_things_that_are_no_factories(tmp_path: Path, body: str, expected: str) -> None:
    path = write(tmp_path, body + "\n")
    assert failure(f"{path}:build").endswith(expected)


def test_meta_device_needs_weights(tmp_path: Path) -> None:
    path = write(tmp_path, "from torch import nn\ndef build(): return nn.Linear(2, 2, device='meta')\n")
    assert "meta device, which hold no values" in failure(f"{path}:build")


def test_weights_that_a_hook_computes_can_be_copied(tmp_path: Path) -> None:
    """The older `weight_norm` keeps what it computed last, with its gradients."""
    path = write(
        tmp_path,
        "import warnings\nfrom torch import nn\n"
        "def build():\n"
        "    with warnings.catch_warnings():\n"
        "        warnings.simplefilter('ignore')\n"
        "        return nn.Sequential(nn.utils.weight_norm(nn.Conv1d(2, 3, 3)))\n",
    )
    module = load_model(parse_source(f"{path}:build")).module
    assert module is not None
    x = torch.randn(2, 2, 8)
    torch.testing.assert_close(copy.deepcopy(module)(x), module(x))
