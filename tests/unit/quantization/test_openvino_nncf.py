"""NNCF: which layers each scope and variant quantizes, read from the files that it writes."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import write_linear_onnx
from torch import nn

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Settings, Signature, TensorSpec
from alula.engines import engine_named
from alula.errors import EngineError
from alula.export import export_module
from alula.quantization import Material, quantizer_for
from alula.quantization.openvino_nncf import OpenVinoNncf

ov = pytest.importorskip("openvino")
pytest.importorskip("nncf")

PLAIN = "openvino/int8-nncf"


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, 4, 1)
        self.expand = nn.Conv2d(4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.expand(nn.functional.silu(self.reduce(x.mean(dim=(2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Mobile(nn.Module):
    """(b, 3, 16, 16) to (b, 5): stem, an inverted residual with squeeze-excite, head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.wide = nn.Conv2d(16, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.gate = SqueezeExcite(32)
        self.narrow = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.silu(self.stem_norm(self.stem(x)))
        y = nn.functional.silu(self.depthwise(nn.functional.silu(self.wide(x))))
        x = x + self.narrow(self.gate(y))
        return self.head(x.mean(dim=(2, 3)))


class Attending(nn.Module):
    """(b, 12, 16) to (b, 5): one block of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.queries, self.keys, self.values = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        y = self.norm(x)
        weights = torch.softmax(self.queries(y) @ self.keys(y).transpose(1, 2) / 4.0, dim=-1)
        return self.head((x + self.out(weights @ self.values(y))).mean(dim=1))


def images(batch: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, 3, 16, 16)).astype(np.float32)


def tokens(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, 12, 16)).astype(np.float32)


def settled(module: nn.Module) -> nn.Module:
    module.train()
    with torch.no_grad():
        for seed in range(10):
            module(torch.from_numpy(images(32, seed)))
    return module.eval()


Exports = dict[ExportFormat, Path]
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def mobile() -> nn.Module:
    torch.manual_seed(1)
    return settled(Mobile())


@pytest.fixture(scope="module")
def exports(mobile: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    folder = tmp_path_factory.mktemp("mobile")
    targets: tuple[ExportFormat, ...] = ("onnx", "openvino")
    for target in targets:
        (folder / target).mkdir()
        export_module(mobile, (images(2),), target=target, folder=folder / target)
    return {target: folder / target for target in targets}


@pytest.fixture(scope="module")
def attending(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("attending")
    export_module(Attending().eval(), (tokens(2),), target="onnx", folder=folder)
    return {"onnx": folder}


@pytest.fixture(scope="module")
def made(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Gives the artifact of a recipe on the mobile network, made once."""
    folders: dict[str, Path] = {}

    def artifact(name: str) -> Path:
        if name not in folders:
            folder = tmp_path_factory.mktemp("artifact")
            quantize(exports, name, folder)
            folders[name] = folder
        return folders[name]

    return artifact


def signature(shape: tuple[int | str, ...] = ("b", 3, 16, 16)) -> Signature:
    return Signature((TensorSpec("x", "float32", shape),), (TensorSpec("output", "float32", (shape[0], 5)),))


def quantize(
    exports: Exports,
    name: str,
    folder: Path,
    *,
    example: Callable[[int, int], np.ndarray] = images,
    saturating: bool = False,
) -> None:
    recipe = Recipe.parse(name)
    material = Material(
        export=exports[OpenVinoNncf().export_format(recipe)],
        module=Mobile,
        batches=lambda: ((example(4, seed),) for seed in range(3)),
        signature=signature(("b", *example(1, 0).shape[1:])),
        saturating=saturating,
    )
    quantizer_for(recipe).quantize(material, folder, recipe=recipe)


def read(folder: Path) -> Any:
    return ov.Core().read_model(folder / ARTIFACT_FILES["openvino"])


def said(folder: Path) -> tuple[str, str, str]:
    """Return what NNCF wrote into the file about itself: preset, fast bias correction, type of model."""
    info = read(folder).get_rt_info(["nncf", "quantization"]).value
    return info["preset"], info["fast_bias_correction"], info["model_type"]


def int8_products(model: Any) -> list[tuple[int, ...]]:
    """Return the shapes of the INT8 weights, without ones, in the order of the network."""
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Convolution", "GroupConvolution", "MatMul"):
            source = node.input_value(1).get_node()
            while source.get_type_name() in ("Multiply", "Subtract", "Convert", "Reshape"):
                source = source.input_value(0).get_node()
            if source.get_element_type().get_type_name() == "i8":
                found.append(tuple(size for size in source.get_output_shape(0) if size > 1))
    return found


STEM, WIDE, DEPTHWISE = (16, 3, 3, 3), (32, 16), (32, 3, 3)
REDUCE, EXPAND, NARROW, HEAD = (4, 32), (32, 4), (16, 32), (5, 16)


@pytest.mark.parametrize(
    ("name", "in_int8", "in_float"),
    [
        (PLAIN, [STEM, WIDE, DEPTHWISE, NARROW, HEAD], []),
        (f"{PLAIN}-direct", [STEM, WIDE, DEPTHWISE, NARROW, HEAD], []),
        (f"{PLAIN}-dense", [STEM, WIDE, NARROW, HEAD], [DEPTHWISE, REDUCE, EXPAND]),
        (f"{PLAIN}-full-bias-dense", [STEM, WIDE, NARROW, HEAD], [DEPTHWISE, REDUCE, EXPAND]),
        (f"{PLAIN}-no-depthwise", [STEM, WIDE, NARROW, HEAD], [DEPTHWISE]),
        (f"{PLAIN}-no-edges", [WIDE, DEPTHWISE, NARROW], [STEM, REDUCE, EXPAND, HEAD]),
    ],
)
def test_a_scope_quantizes_the_layers_that_it_names(
    name: str, in_int8: list[tuple[int, ...]], in_float: list[tuple[int, ...]], made: Made
) -> None:
    # Of squeeze-excite NNCF decides itself where the scope says nothing.
    found = int8_products(read(made(name)))
    assert set(in_int8) <= set(found)
    assert not set(in_float) & set(found)


def test_dense_leaves_elementwise_work_in_float(made: Made) -> None:
    left = ("GroupConvolution", "Swish", "Sigmoid", "ReduceMean")
    seen = set()
    for node in read(made(f"{PLAIN}-dense")).get_ops():
        if node.get_type_name() in left:
            seen.add(node.get_type_name())
            source = node.input_value(0).get_node().get_type_name()
            assert source != "FakeQuantize", f"{node.get_friendly_name()} reads quantized values"
    assert seen == set(left)


def test_offered_recipes() -> None:
    quantizer = OpenVinoNncf()
    recipes = quantizer.recipes(("avx512_vnni",))
    assert recipes[0].name == PLAIN
    assert len(set(recipes)) == len(recipes) <= 9
    assert not any(recipe.rest_in_bf16 for recipe in recipes)
    with_bf16 = quantizer.recipes(("avx512_vnni", "avx512_bf16"))
    assert {one.name for one in set(with_bf16) - set(recipes)} == {
        *(f"{PLAIN}-bf16", f"{PLAIN}-bf16-dense", f"{PLAIN}-mixed-bf16-dense"),
    }
    for recipe in with_bf16:
        assert Recipe.parse(recipe.name) == recipe
        assert quantizer.export_format(recipe) == ("openvino" if recipe.variant == "direct" else "onnx")


def test_the_onnx_way_quantizes_as_few_activations_as_the_direct_one(made: Made) -> None:
    counts = []
    for name in (PLAIN, f"{PLAIN}-direct"):
        kinds = [node.get_type_name() for node in read(made(name)).get_ops()]
        counts.append(kinds.count("FakeQuantize"))
        assert "Swish" in kinds
    assert counts[0] == counts[1]


def outputs(folder: Path, name: str, x: np.ndarray) -> np.ndarray:
    session = engine_named("openvino").load(
        folder, recipe=Recipe.parse(name), signature=signature(), settings=Settings(batch_size=len(x))
    )
    try:
        return np.asarray(session.run((x,))[0])
    finally:
        session.close()


def cosine(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.vdot(got, expected) / (np.linalg.norm(got) * np.linalg.norm(expected)))


def test_variants_say_in_the_file_what_they_did(made: Made) -> None:
    assert said(made(PLAIN)) == ("performance", "True", "None")
    assert said(made(f"{PLAIN}-full-bias")) == ("performance", "False", "None")
    assert said(made(f"{PLAIN}-mixed")) == ("mixed", "True", "None")


def test_variants_stay_near_the_module_and_differ(mobile: nn.Module, made: Made) -> None:
    x = images(16, 9)
    with torch.no_grad():
        expected = mobile(torch.from_numpy(x)).numpy()
    plain, corrected = (outputs(made(name), name, x) for name in (PLAIN, f"{PLAIN}-full-bias"))
    assert cosine(plain, expected) > 0.99
    assert cosine(corrected, expected) > 0.99
    assert np.abs(plain - corrected).max() > 0


def test_attention_makes_it_a_transformer(attending: Exports, tmp_path: Path) -> None:
    quantize(attending, PLAIN, tmp_path, example=tokens)
    assert said(tmp_path) == ("mixed", "True", "transformer")
    assert len(int8_products(read(tmp_path))) == 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{PLAIN}-mixed", "same as the one without `mixed`"),
        (f"{PLAIN}-no-depthwise", "leaves nothing of this model in FP32"),
    ],
)
def test_what_changes_nothing_is_an_error(
    name: str, message: str, attending: Exports, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        quantize(attending, name, tmp_path, example=tokens)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_quantize_is_an_error(tmp_path: Path) -> None:
    from openvino import opset13 as op

    x = op.parameter([-1, 3, 16, 16], np.float32, name="x")
    export, artifact = tmp_path / "export", tmp_path / "artifact"
    export.mkdir()
    artifact.mkdir()
    ov.save_model(ov.Model([op.relu(x)], [x], "m"), export / ARTIFACT_FILES["openvino"])
    with pytest.raises(EngineError, match=r"nothing to quantize in this model .*use `openvino/fp32`"):
        quantize({"openvino": export}, f"{PLAIN}-direct", artifact)
    assert list(artifact.iterdir()) == []


def test_an_unknown_variant() -> None:
    with pytest.raises(EngineError, match=r"no variant `fullbias`; known are full-bias, mixed, direct, bf16"):
        OpenVinoNncf().export_format(Recipe.parse(f"{PLAIN}-fullbias"))


def test_weights_leave_a_bit_where_products_saturate(exports: Exports, made: Made, tmp_path: Path) -> None:
    quantize(exports, PLAIN, tmp_path, saturating=True)
    # Depthwise products are summed in 32 bits everywhere, and NNCF leaves them all eight.
    largest = [
        max(
            np.abs(node.get_data().astype(int)).max()
            for node in read(folder).get_ops()
            if node.get_type_name() == "Constant"
            and node.get_element_type().get_type_name() == "i8"
            and tuple(size for size in node.get_output_shape(0) if size > 1) in (STEM, WIDE, NARROW, HEAD)
        )
        for folder in (made(PLAIN), tmp_path)
    ]
    assert largest == [127, 64]


def test_calibration_batches_are_dropped_as_they_are_used(exports: Exports, tmp_path: Path) -> None:
    alive, most = 0, 0

    def dropped() -> None:
        nonlocal alive
        alive -= 1

    def batches() -> Iterator[tuple[np.ndarray]]:
        nonlocal alive, most
        for seed in range(40):
            batch = images(2, seed)
            weakref.finalize(batch, dropped)
            alive += 1
            most = max(most, alive)
            yield (batch,)

    recipe = Recipe.parse(PLAIN)
    given = Material(
        export=exports["onnx"], module=Mobile, batches=batches, signature=signature(), saturating=False
    )
    OpenVinoNncf().quantize(given, tmp_path, recipe=recipe)
    assert 1 <= most <= 4


def test_a_model_that_fixes_its_batch(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(48, 5)).astype(np.float32)
    export, artifact = tmp_path / "export", tmp_path / "artifact"
    export.mkdir()
    artifact.mkdir()
    write_linear_onnx(export / ARTIFACT_FILES["onnx"], weights, shape=(4, 3, 4, 4))
    rng = np.random.default_rng(1)
    data = [rng.normal(size=(4, 3, 4, 4)).astype(np.float32) for _ in range(3)]
    given = Material(
        export=export,
        module=Mobile,
        batches=lambda: ((batch,) for batch in data),
        signature=signature((4, 3, 4, 4)),
        saturating=False,
    )
    recipe = Recipe.parse(PLAIN)
    OpenVinoNncf().quantize(given, artifact, recipe=recipe)
    session = engine_named("openvino").load(
        artifact, recipe=recipe, signature=given.signature, settings=Settings(batch_size=4)
    )
    (got,) = session.run((data[0],))
    assert cosine(got, data[0].reshape(4, -1) @ weights) > 0.99


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [(f"{PLAIN}-bf16-dense", f"{PLAIN}-dense"), (f"{PLAIN}-mixed-bf16-dense", f"{PLAIN}-mixed-dense")],
)
def test_what_is_not_int8_runs_in_bf16(narrow: str, wide: str, made: Made) -> None:
    x = images(4, 5)
    try:
        got = outputs(made(narrow), narrow, x)
    except EngineError as error:
        pytest.skip(f"NOT COVERED HERE: {error}")
    expected = outputs(made(wide), wide, x)
    assert 0 < np.abs(got - expected).max() / np.abs(expected).max() < 0.05


@pytest.mark.parametrize("name", [PLAIN, f"{PLAIN}-direct"])
def test_garbage(name: str, tmp_path: Path) -> None:
    target = OpenVinoNncf().export_format(Recipe.parse(name))
    (tmp_path / ARTIFACT_FILES[target]).write_bytes(b"no model at all\n" * 20)
    root = logging.getLogger()
    before = root.level, list(root.filters), list(root.handlers)
    with pytest.raises(EngineError, match=r"NNCF cannot quantize this model: \w+: .+") as caught:
        quantize({target: tmp_path}, name, tmp_path / "artifact")
    assert len(str(caught.value).splitlines()) == 1
    assert (root.level, root.filters, root.handlers) == before


def test_nothing_is_printed_and_the_thread_keeps_its_denormals(
    exports: Exports, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quantize(exports, f"{PLAIN}-full-bias-dense", tmp_path)
    assert capfd.readouterr() == ("", "")
    assert np.float64(5e-324) * np.float64(1.0) > 0.0
