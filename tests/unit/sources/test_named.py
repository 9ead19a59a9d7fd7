"""The names of timm and torchvision build architectures without contacting a hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alula.errors import AlulaError, EngineUnavailableError, ModelError, UsageError
from alula.sources import load_model, parse_source
from alula.sources.factories import parse_options

pytest.importorskip("timm")


def failure(spec: str, kind: type[AlulaError] = ModelError) -> str:
    with pytest.raises(kind) as error:
        load_model(parse_source(spec))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_options_are_typed() -> None:
    assert parse_options("net") == ("net", {})
    name, options = parse_options("net?a=1&b=-0.5&c=True&d=false&e=avg&f=1e-3")
    assert name == "net"
    assert options == {"a": 1, "b": -0.5, "c": True, "d": False, "e": "avg", "f": 1e-3}
    assert [type(value) for value in options.values()] == [int, float, bool, bool, str, float]


def test_timm_takes_options() -> None:
    model = load_model(parse_source("timm:test_resnet?in_chans=1&num_classes=7"))
    assert model.name == "test_resnet"
    assert model.module is not None
    assert not model.module.training
    assert model.module(torch.zeros(2, 1, 64, 64)).shape == (2, 7)


def test_timm_takes_names_that_were_renamed() -> None:
    assert load_model(parse_source("timm:tf_efficientnet_b0_ns?num_classes=2")).module is not None


def test_timm_without_weights_is_the_same_every_time() -> None:
    source = parse_source("timm:test_resnet")
    first, second = load_model(source).module, load_model(source).module
    assert first is not None
    assert second is not None
    assert torch.equal(first.conv1[0].weight, second.conv1[0].weight)


def test_torchvision_takes_options() -> None:
    model = load_model(parse_source("torchvision:mobilenet_v3_small?num_classes=5"))
    assert model.module is not None
    assert model.module(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_torchvision_fetches_no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a hub was contacted")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    model = load_model(parse_source("torchvision:lraspp_mobilenet_v3_large?num_classes=2"))
    assert model.module is not None


def test_unknown_names_give_the_closest() -> None:
    text = failure("timm:resent18")
    assert "has no model `resent18`. Did you mean `resnet" in text
    assert failure("torchvision:resent18") == "torchvision has no model `resent18`. Did you mean `resnet18`?"


def test_unknown_options_are_named() -> None:
    text = failure("timm:test_resnet?in_channels=1")
    assert text.startswith("`timm:test_resnet?in_channels=1` raised TypeError: ")
    assert "in_channels" in text


@pytest.mark.parametrize(
    "spec",
    [
        "timm:resnet18?pretrained=true",
        "timm:resnet18?checkpoint_path=x.pth",
        "torchvision:resnet18?weights=DEFAULT",
    ],
)
def test_weights_of_hubs_are_refused(spec: str) -> None:
    text = failure(spec, UsageError)
    assert "Hubs are not contacted." in text
    assert "--weights" in text


@pytest.mark.parametrize("spec", ["timm:hf-hub:timm/resnet18.a1_in1k", "timm:local-dir:/tmp/x"])
def test_hub_names_are_refused(spec: str) -> None:
    assert "names a hub or a path" in failure(spec, UsageError)


def test_missing_libraries_come_with_their_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    real = importlib.import_module

    def without(name: str) -> object:
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without)
    text = failure("timm:resnet18", EngineUnavailableError)
    assert text == "`timm` is not installed here. Install it with `pip install timm`."
    text = failure("torchvision:resnet18")
    assert "`torchvision` cannot be imported: RuntimeError: operator torchvision::nms does not exist" in text
    assert "builds of torch and torchvision that belong together" in text

    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'alula[torch]'" in failure("timm:resnet18", EngineUnavailableError)


def test_the_import_hook_works_in_children_and_runs_the_sitecustomize_it_hides(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.hidden_one_ran = True\n")
    code = (
        "import sys\n"
        "assert sys.hidden_one_ran\n"
        "assert 'torch' not in sys.modules\n"
        "import torchvision.models\n"
        "print('imported')\n"
    )
    path = os.environ["PYTHONPATH"] + os.pathsep + str(tmp_path)
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("imported\n", 0), done.stderr
