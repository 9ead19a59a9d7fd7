"""Exporters: each format agrees with the module on batches that it was not exported with."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from torch import nn

from alula.core import (
    ARTIFACT_FILES,
    ExportFormat,
    Recipe,
    Settings,
    Signature,
    TensorSpec,
    largest_difference,
    rms_difference,
)
from alula.engines import engine_named
from alula.errors import ModelError
from alula.export import export_module, exporters, signature_of_module, signature_of_onnx
from alula.export.exporters import ONNX_OPSET

FORMATS: tuple[ExportFormat, ...] = ("onnx", "exported", "torchscript")
READERS = {"onnx": "onnxruntime", "exported": "torch", "torchscript": "torchscript"}
# What the product promises: reordered float32 sums, as a share of the output's largest magnitude.
LIMIT = 1e-4


class Net(nn.Module):
    """(b, 3, 16, 16) to (b, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).mean(dim=(2, 3)))


class Parted(Net):
    """Nested outputs by name, one of them not a tensor."""

    def forward(self, image: torch.Tensor, code: torch.Tensor, weight: torch.Tensor):
        embedding = torch.relu(self.conv(image)).mean(dim=(2, 3))
        return {
            "logits": self.head(embedding) * weight,
            "parts": (embedding, code + 1),
            "image": image.mean(dim=(2, 3)),
            "comment": "not a tensor",
        }


def samples(batch: int = 2) -> tuple[np.ndarray, ...]:
    return (np.random.default_rng(batch).normal(size=(batch, 3, 16, 16)).astype(np.float32),)


def reloaded(
    target: ExportFormat,
    folder: Path,
    signature: Signature,
    arrays,
    engine: str | None = None,
    recipe: Recipe | None = None,
):
    """Return the outputs of the export by the engine that reads it."""
    runner = engine_named(engine or READERS[target])
    artifact = folder / "artifact"
    artifact.mkdir(exist_ok=True)
    recipe = recipe or Recipe(runner.name, "fp32")
    runner.build(folder, artifact, recipe=recipe)
    session = runner.load(artifact, recipe=recipe, signature=signature, settings=Settings())
    try:
        return session.run(arrays)
    finally:
        session.close()


def reference(module: nn.Module, arrays) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(module(*(torch.from_numpy(array) for array in arrays)).numpy())


@pytest.mark.parametrize("target", FORMATS)
def test_the_batch_axis_is_dynamic(target: ExportFormat, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Net().eval()
    exported = export_module(module, samples(), target=target, folder=tmp_path)
    assert exported.notes == ()
    assert exported.signature == Signature(
        (TensorSpec("x", "float32", ("b", 3, 16, 16)),), (TensorSpec("output", "float32", ("b", 5)),)
    )
    assert (tmp_path / ARTIFACT_FILES[target]).is_file()
    for batch in (1, 2, 7):
        got = reloaded(target, tmp_path, exported.signature, samples(batch))
        assert got[0].shape == (batch, 5)
        assert largest_difference([reference(module, samples(batch))], got) <= LIMIT


@pytest.mark.parametrize("target", FORMATS)
def test_several_inputs_and_named_outputs(target: ExportFormat, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Parted().eval()
    (image,) = samples()
    code = np.array([[1, 2], [3, 4]])
    weight = np.array([[2.0], [3.0]], np.float32)
    exported = export_module(module, (image, code, weight), target=target, folder=tmp_path)
    assert exported.signature == Signature(
        (
            TensorSpec("image", "float32", ("b", 3, 16, 16)),
            TensorSpec("code", "int64", ("b", 2)),
            TensorSpec("weight", "float32", ("b", 1)),
        ),
        (
            TensorSpec("logits", "float32", ("b", 5)),
            TensorSpec("output_1", "float32", ("b", 8)),
            TensorSpec("output_2", "int64", ("b", 2)),
            TensorSpec("image_3_out", "float32", ("b", 3)),
        ),
    )
    if target == "onnx":
        assert signature_of_onnx(tmp_path / "model.onnx") == exported.signature
    arrays = (
        np.concatenate([image, image[:1]]),
        np.concatenate([code, code[:1]]),
        np.ones((3, 1), np.float32),
    )
    with torch.no_grad():
        want = module(*(torch.from_numpy(array) for array in arrays))
    expected = [want["logits"], *want["parts"], want["image"]]
    got = reloaded(target, tmp_path, exported.signature, arrays)
    assert largest_difference([tensor.numpy() for tensor in expected], got) <= LIMIT
    np.testing.assert_array_equal(got[2], arrays[1] + 1)


def test_a_tuple_of_outputs_is_numbered() -> None:
    class Pair(Net):
        def forward(self, x: torch.Tensor):
            return super().forward(x), [x.flatten(1)]

    signature = signature_of_module(Pair().eval(), samples())
    assert [spec.name for spec in signature.outputs] == ["output_0", "output_1"]


def test_inputs_of_a_module_with_variable_arguments_are_numbered() -> None:
    class Any(Net):
        def forward(self, *given: torch.Tensor):
            return super().forward(given[0])

    assert [spec.name for spec in signature_of_module(Any().eval(), samples()).inputs] == ["input_0"]


class LeavesTensors(Net):
    """Takes numbers out of tensors, so that a trace of it is a constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = [float(value) for value in super().forward(x).sum(dim=1)]
        return torch.tensor([[value, value + 1] for value in kept])


class Branches(Net):
    """Takes one of two ways by the data; the samples take one, the same samples backwards the other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y * 2 if bool(x[0].sum() > x[1].sum()) else y - 1


class FixedBatch(Net):
    """Knows only the batch size that it was traced with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).reshape([len(x.tolist()), 5])


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("kind", [LeavesTensors, Branches, FixedBatch])
def test_control_flow_on_data_is_refused(
    kind: type[Net], target: ExportFormat, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError) as caught:
        export_module(kind().eval(), samples(), target=target, folder=tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert "export" in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match="cannot be exported as `module`; use onnx, exported, torchscript, openvino"
    ):
        export_module(Net().eval(), samples(), target="module", folder=tmp_path)


def test_a_model_that_fails_on_the_samples() -> None:
    with pytest.raises(ModelError, match=r"fails on real samples \(float32 \(2, 3, 16, 15\)\): .*shape"):
        signature_of_module(nn.Linear(16, 2), (samples()[0][..., 1:],))


def test_an_output_without_a_batch_axis() -> None:
    class Mean(Net):
        def forward(self, x: torch.Tensor):
            return super().forward(x).mean(dim=0)

    with pytest.raises(
        ModelError, match=r"Output 0 .*shape \(5,\) for a batch of 2; expected the batch as its"
    ):
        signature_of_module(Mean().eval(), samples())


def test_a_model_without_tensors() -> None:
    class Words(nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return "no"

    with pytest.raises(ModelError, match="returned no tensor; expected at least one"):
        signature_of_module(Words(), samples())


def test_an_export_that_disagrees_is_refused(tmp_path: Path) -> None:
    class Flips(Net):
        """Another function whenever it is called, so that no export can agree with it."""

        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Flips.calls += 1
            return super().forward(x) + Flips.calls

    with pytest.raises(
        ModelError, match=r"The torchscript export differs from the module by .*at most 0\.01"
    ):
        export_module(Flips().eval(), samples(), target="torchscript", folder=tmp_path)


class Cancels(Net):
    """Large numbers that cancel: its own float32 is off by some 5e-4."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (super().forward(x) + 1e4) - 1e4


@pytest.mark.parametrize(
    ("network", "off", "refused"),
    [(Net, 5e-5, None), (Net, 1e-3, "at most 0.0001"), (Cancels, 1e-3, None), (Cancels, 0.03, "at most 0.0")],
)
def test_an_export_may_differ_by_the_rounding_of_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: type[Net], off: float, refused: str | None
) -> None:
    run = exporters._run_onnx

    def shifted(*args: Any) -> list[np.ndarray]:
        return [output + off * np.abs(output).max() for output in run(*args)]

    monkeypatch.setattr(exporters, "_run_onnx", shifted)
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=refused) if refused else contextlib.nullcontext():
        export_module(network().eval(), samples(), target="onnx", folder=tmp_path)


def test_eca_nfnet_agrees_in_both_engines(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = timm.create_model("eca_nfnet_l0", in_chans=1, num_classes=10).eval()
    x = (np.random.default_rng(0).normal(size=(2, 1, 64, 64)).astype(np.float32),)
    expected = reference(module, x)
    exported = export_module(module, x, target="onnx", folder=tmp_path)
    assert exported.notes[0].startswith("folded computed weights of ")
    for engine in ("onnxruntime", "openvino"):
        got = reloaded("onnx", tmp_path, exported.signature, x, engine)
        assert largest_difference([expected], got) <= LIMIT


class Standardising(Net):
    """Changes its input in place before anything else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.sub_(0.5).div_(2.0))


class Masked(Net):
    """Has a class that is never the answer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).masked_fill(torch.tensor([False, True, False, False, False]), -torch.inf)


@pytest.mark.parametrize("net", [Standardising, Masked])
@pytest.mark.parametrize("target", [*FORMATS, "openvino"])
def test_modules_that_work_in_place_and_infinite_outputs_are_exported(
    tmp_path: Path, net: type[nn.Module], target: ExportFormat
) -> None:
    module = net().eval()
    (x,) = samples()
    before = x.copy()
    signature = export_module(module, [x], target=target, folder=tmp_path).signature
    np.testing.assert_array_equal(x, before)
    (other,) = samples(5)
    with torch.no_grad():
        expected = module(torch.from_numpy(other.copy())).numpy()
    engine = "openvino" if target == "openvino" else None
    recipe = Recipe("openvino", "fp32", None, "direct") if engine else None
    got = reloaded(target, tmp_path, signature, (other,), engine, recipe=recipe)
    assert largest_difference([expected], got) <= LIMIT


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # those who still have such a model know
def test_a_torchscript_file_is_a_model(tmp_path: Path) -> None:
    module = Net().eval()
    torch.jit.script(module).save(str(tmp_path / "net.pt"))
    loaded = torch.jit.load(str(tmp_path / "net.pt")).eval()
    assert signature_of_module(loaded, samples()).inputs[0].shape == ("b", 3, 16, 16)
    with pytest.raises(ModelError, match=r"torch\.export cannot export this model"):
        export_module(loaded, samples(), target="exported", folder=tmp_path)
    targets: tuple[ExportFormat, ...] = ("onnx", "torchscript")
    for target in targets:
        folder = tmp_path / target
        folder.mkdir()
        signature = export_module(loaded, samples(), target=target, folder=folder).signature
        got = reloaded(target, folder, signature, samples(5))
        assert largest_difference([module(torch.from_numpy(samples(5)[0])).detach().numpy()], got) <= LIMIT


def test_a_program_with_a_fixed_batch_is_told_how_to_be_exported(tmp_path: Path) -> None:
    example = (torch.from_numpy(samples(1)[0]),)
    torch.export.save(torch.export.export(Net().eval(), example), tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    with pytest.raises(ModelError, match=r"fails on real samples.*dynamic_shapes=\(\{0: torch\.export\.Dim"):
        signature_of_module(loaded, samples())


def test_weights_beside_an_onnx_file_go_with_it(tmp_path: Path) -> None:
    signature = export_module(Net().eval(), samples(), target="onnx", folder=tmp_path).signature
    path = tmp_path / ARTIFACT_FILES["onnx"]
    onnx.save_model(
        onnx.load(path), path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=100
    )
    expected = reloaded("onnx", tmp_path, signature, samples(3))
    (tmp_path / f"{path.name}.data").unlink()  # the artifact has its own
    got = engine_named("onnxruntime").load(
        tmp_path / "artifact", recipe=Recipe("onnxruntime", "fp32"), signature=signature, settings=Settings()
    )
    np.testing.assert_array_equal(got.run(samples(3))[0], expected[0])


def test_rms_difference() -> None:
    ones = np.ones((2, 3), np.float32)
    assert rms_difference(ones, ones) == 0
    assert rms_difference(2 * ones, ones) == 0.5
    assert rms_difference(ones, ones[:1]) == np.inf
    assert np.isnan(rms_difference(ones, ones * np.nan))
    masked = np.array([1.0, -np.inf])
    assert rms_difference(masked, masked) == 0
    assert rms_difference(masked, np.array([1.0, 2.0])) == np.inf


def test_largest_difference() -> None:
    ones = np.ones((2, 2), np.float32)
    assert largest_difference([ones], [ones]) == 0
    assert largest_difference([ones], [ones[:1]]) == np.inf
    assert np.isnan(largest_difference([ones, ones], [ones * np.nan, ones]))
    assert np.isnan(largest_difference([ones, ones], [ones, ones * np.nan]))
    assert largest_difference([ones], [ones, ones]) == np.inf
    masked = np.array([-np.inf, 2.0])
    assert largest_difference([masked], [masked + np.array([0.0, 0.5])]) == 0.25
    assert largest_difference([masked], [np.array([0.0, 2.0])]) == np.inf
    assert largest_difference([ones * 0], [ones * 0]) == 0
    assert largest_difference([ones, ones * 4], [ones, ones * 3]) == 0.25


def write_onnx(path: Path) -> None:
    """Write a graph with named, unnamed and fixed sizes, and an initializer among its inputs."""
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [
            tensor("x", onnx.TensorProto.DOUBLE, ["n", 3, "time", None]),
            tensor("w", onnx.TensorProto.DOUBLE, [1]),
        ],
        [tensor("y", onnx.TensorProto.DOUBLE, [1, 3, "time", None])],
        [onnx.helper.make_tensor("w", onnx.TensorProto.DOUBLE, [1], [2.0])],
    )
    opset = onnx.helper.make_opsetid("", ONNX_OPSET)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset]), path)


def test_signature_of_a_foreign_onnx_file(tmp_path: Path) -> None:
    write_onnx(tmp_path / "foreign.onnx")
    assert signature_of_onnx(tmp_path / "foreign.onnx") == Signature(
        (TensorSpec("x", "float64", ("b", 3, "time", "axis_3")),),
        (TensorSpec("y", "float64", (1, 3, "time", "axis_3")),),
    )


@pytest.mark.parametrize("content", [b"no model at all\n" * 20, None], ids=["garbage", "missing"])
def test_an_unreadable_onnx_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match="is no readable ONNX file: ") as caught:
        signature_of_onnx(path)
    assert str(path) in str(caught.value)


def test_an_onnx_file_with_an_input_that_is_no_tensor(tmp_path: Path) -> None:
    sequence = onnx.helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, None)
    out = onnx.helper.make_tensor_value_info("n", onnx.TensorProto.INT64, [])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("SequenceLength", ["s"], ["n"])], "g", [sequence], [out]
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="`s`"):
        signature_of_onnx(tmp_path / "m.onnx")


def test_what_torch_export_meets_in_a_model_leaves_tracing_its_chance(tmp_path: Path) -> None:
    class Asking(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if isinstance(x.shape[0], torch.SymInt):
                raise KeyError("a size that is a symbol")
            return super().forward(x)

    x = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
    module = Asking().eval()
    exported = export_module(module, [x], target="onnx", folder=tmp_path)
    session = engine_named("onnxruntime").load(
        tmp_path, recipe=Recipe("onnxruntime", "fp32"), signature=exported.signature, settings=Settings()
    )
    with torch.no_grad():
        expected = module(torch.from_numpy(x[:3])).numpy()
    assert largest_difference(session.run((x[:3],)), [expected]) < LIMIT
    with pytest.raises(ModelError, match="a size that is a symbol"):
        export_module(module, [x], target="exported", folder=tmp_path / "exported")
