"""The direct way from PyTorch to OpenVINO: same numbers, names and order, any batch size."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from alula.core import ARTIFACT_FILES, Recipe, Settings, Signature, TensorSpec
from alula.engines import engine_named
from alula.errors import EngineUnavailableError, ModelError
from alula.export import export_module

ov = pytest.importorskip("openvino")

# What the product promises: reordered float32 sums, as a share of the output's largest magnitude.
LIMIT = 1e-4


class Net(nn.Module):
    """(b, 3, 12, 12) to (b, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.silu(self.norm(self.conv(x))).mean(dim=(2, 3)))


class Parted(Net):
    """Inputs of two dtypes; nested outputs, one of them an input, one not a tensor."""

    def forward(self, image: torch.Tensor, codes: torch.Tensor):
        embedding = torch.relu(self.conv(image)).mean(dim=(2, 3))
        return {
            "logits": self.head(embedding) + codes.sum(dim=1, keepdim=True),
            "parts": (embedding, codes),
            "comment": "not a tensor",
        }


class Unused(Net):
    def forward(self, x: torch.Tensor, ignored: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class TakesTheSampleForAConstant(Net):
    """Tracing follows the way of the first samples."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + (1.0 if float(x[0, 0, 0, 0]) > 0 else -1.0)


class Unconvertible(Net):
    """No framework but PyTorch has this operation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.special.bessel_j0(x).mean()


def images(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).normal(size=(batch, 3, 12, 12)).astype(np.float32)


def codes(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 4, (batch, 2))


def made(module: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    net = module()
    with torch.no_grad():
        net.norm.running_mean.normal_()
        net.norm.running_var.uniform_(0.5, 2.0)
    return net.eval()


def run(folder: Path, signature: Signature, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    recipe = Recipe("openvino", "fp32", variant="direct")
    artifact = folder / "artifact"
    artifact.mkdir(exist_ok=True)
    engine = engine_named("openvino")
    engine.build(folder, artifact, recipe=recipe)
    session = engine.load(artifact, recipe=recipe, signature=signature, settings=Settings(batch_size=2))
    try:
        return session.run(inputs)
    finally:
        session.close()


def test_any_batch_agrees_with_the_module(tmp_path: Path) -> None:
    module = made(Net)
    exported = export_module(module, (images(2),), target="openvino", folder=tmp_path)
    assert exported.signature == Signature(
        (TensorSpec("x", "float32", ("b", 3, 12, 12)),), (TensorSpec("output", "float32", ("b", 5)),)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    for batch in (1, 2, 7):
        with torch.no_grad():
            expected = module(torch.from_numpy(images(batch))).numpy()
        (got,) = run(tmp_path, exported.signature, (images(batch),))
        assert np.abs(got - expected).max() <= LIMIT * np.abs(expected).max()


def test_only_the_batch_axis_is_free(tmp_path: Path) -> None:
    export_module(made(Net), (images(2),), target="openvino", folder=tmp_path)
    model = ov.Core().read_model(tmp_path / ARTIFACT_FILES["openvino"])
    assert [str(port.partial_shape) for port in (*model.inputs, *model.outputs)] == ["[?,3,12,12]", "[?,5]"]
    # In FP32: nothing was rounded to halve the file.
    stored = {node.get_element_type().get_type_name() for node in model.get_ops()}
    assert "f16" not in stored


def test_several_inputs_and_outputs_keep_names_and_order(tmp_path: Path) -> None:
    module = made(Parted)
    exported = export_module(module, (images(2), codes(2)), target="openvino", folder=tmp_path)
    model = ov.Core().read_model(tmp_path / ARTIFACT_FILES["openvino"])
    names = [port.get_names() for port in (*model.inputs, *model.outputs)]
    for found, spec in zip(names, (*exported.signature.inputs, *exported.signature.outputs), strict=True):
        # What is input and output has one name; the session goes by position.
        assert spec.name in found or spec.dtype == "int64"
    with torch.no_grad():
        outputs = module(torch.from_numpy(images(3)), torch.from_numpy(codes(3)))
    got = run(tmp_path, exported.signature, (images(3), codes(3)))
    expected = (outputs["logits"], *outputs["parts"])
    assert [array.dtype for array in got] == [np.float32, np.float32, np.int64]
    for array, want in zip(got, expected, strict=True):
        np.testing.assert_allclose(array, want.numpy(), rtol=1e-4, atol=1e-5)


def test_an_input_that_no_output_depends_on(tmp_path: Path) -> None:
    module = made(Unused)
    exported = export_module(module, (images(2), codes(2)), target="openvino", folder=tmp_path)
    with torch.no_grad():
        expected = module(torch.from_numpy(images(3)), torch.from_numpy(codes(3))).numpy()
    (got,) = run(tmp_path, exported.signature, (images(3), codes(3)))
    assert np.abs(got - expected).max() <= LIMIT * np.abs(expected).max()


@pytest.mark.parametrize(
    ("module", "inputs", "message"),
    [
        pytest.param(
            TakesTheSampleForAConstant,
            (np.stack([np.ones((3, 12, 12), np.float32), np.full((3, 12, 12), -1, np.float32)]),),
            r"openvino export differs from the module by .* of the output scale",
            id="constant",
        ),
        pytest.param(Unconvertible, (images(2),), r"OpenVINO cannot convert this model: .+", id="operation"),
    ],
)
def test_what_cannot_be_exported(
    module: type[nn.Module],
    inputs: tuple[np.ndarray, ...],
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    before = root.level, list(root.filters), list(root.handlers)
    with pytest.raises(ModelError, match=message) as caught:
        export_module(made(module), inputs, target="openvino", folder=tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert (root.level, root.filters, root.handlers) == before
    assert capfd.readouterr() == ("", "")


def test_the_module_is_not_changed_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module = made(Net)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    export_module(module, (images(2),), target="openvino", folder=tmp_path)
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert np.float64(5e-324) * np.float64(1.0) > 0.0


def test_without_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineUnavailableError, match=r"pip install 'alula\[openvino\]'"):
        export_module(made(Net), (images(2),), target="openvino", folder=tmp_path)
