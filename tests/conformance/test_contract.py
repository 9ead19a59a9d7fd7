"""The contract of engines and quantizers, for each one in the registries.

A new engine or quantizer is tested by being registered, and by one line in `RUNTIMES` or
`QUANTIZER_RUNTIMES`. An FP32 recipe must agree with the module, an INT8 recipe must resemble it, and the
scripted engine must do what its script says.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from alula.core import ARTIFACT_FILES, ExportFormat, Recipe, Settings, Signature, TensorSpec
from alula.engines import Arrays, Engine, Session, engine_named, engine_names
from alula.engines.torch_eager import TorchSession
from alula.errors import EngineError, EngineUnavailableError, UsageError
from alula.export import export_module
from alula.hardware import fingerprint
from alula.quantization import Material, Quantizer, quantizer_for, quantizer_named, quantizer_names

ISA = fingerprint().isa
ENGINE_RECIPES = tuple(recipe for name in engine_names() for recipe in engine_named(name).recipes(ISA))
INT8_RECIPES = tuple(recipe for name in quantizer_names() for recipe in quantizer_named(name).recipes(ISA))
RECIPES = (*ENGINE_RECIPES, *INT8_RECIPES)
# What each needs importable; none for the scripted engine.
RUNTIMES = {
    "torch": "torch",
    "torchscript": "torch",
    "inductor": "torch",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "fake": None,
}
QUANTIZER_RUNTIMES = {
    "onnxruntime/int8-static": "onnx",
    "onnxruntime/int8-dynamic": "onnx",
    "torch/int8-fx": "torch",
    "torchscript/int8-fx": "torch",
    "torch/int8-eager": "torch",
    "torch/int8-dynamic": "torch",
    "torchscript/int8-eager": "torch",
    "torchscript/int8-dynamic": "torch",
    "openvino/int8-nncf": "nncf",
    "inductor/int8-pt2e": "torchao",
}

# Exporters and engines reorder float32 sums; 1e-4 of the output scale is what the product promises.
FP32_LIMIT = 1e-4
HALF_WEIGHTS_LIMIT = 2e-3  # weights have 11 bits
INT8_COSINE = 0.98
BF16_ROUNDING = 2.0**-8

BATCH_SIZE = 3
LAYOUTS = tuple(
    Settings(threads=threads, instances=instances, batch_size=BATCH_SIZE)
    for threads, instances in ((1, 1), (1, 2), (2, 1))
)
# Inductor compiles for a quarter of a minute per layout; what it does with them is the same in each variant.
INDUCTOR_IN_EACH_LAYOUT = ("inductor/fp32", "inductor/int8-pt2e")
Spoil = Callable[[Path], None]
FORMATS: tuple[ExportFormat, ...] = ("onnx", "exported", "torchscript", "openvino")


class ConvNet(nn.Module):
    """(b, 3, 16, 16) to logits (b, 5): dense and depthwise convolutions, BatchNorm, SiLU, a linear head.

    Its softmax is what every quantizer leaves in float.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.SiLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.body(x).mean(dim=(2, 3))
        return self.head(pooled + pooled.softmax(dim=1))


class TwoInTwoOut(ConvNet):
    """An image and integer codes to logits, and the codes as they came: an output that is an input."""

    def forward(self, x: torch.Tensor, codes: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": super().forward(x) + 0.1 * codes.sum(dim=1, keepdim=True), "echo": codes}


class MatrixNet(nn.Module):
    """(b, 3, 16, 16) to logits (b, 5) by matrix products alone, with stubs for eager-mode quantization."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(768, 64), nn.ReLU(), nn.Linear(64, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dequant(self.body(self.quant(x)))


def images(rng: np.random.Generator, batch: int) -> np.ndarray:
    """Return blobs of colour with noise, float32 (b, 3, 16, 16), around zero."""
    grid = np.linspace(-1, 1, 16, dtype=np.float32)
    centre = rng.uniform(-1, 1, (batch, 3, 2)).astype(np.float32)
    rows = (grid[None, None, :, None] - centre[..., :1, None]) ** 2
    columns = (grid[None, None, None, :] - centre[..., 1:, None]) ** 2
    noise = rng.normal(0, 0.3, (batch, 3, 16, 16)).astype(np.float32)
    return np.asarray(2 * np.exp(-3 * (rows + columns)) - 0.5 + noise, np.float32)


def calibrated(module: ConvNet, rng: np.random.Generator) -> ConvNet:
    """Return the module in eval mode, its BatchNorm statistics those of images."""
    module.train()
    with torch.no_grad():
        for _ in range(20):
            module.body(torch.from_numpy(images(rng, 32)))
    return module.eval()


@dataclass(frozen=True)
class Subject:
    """A module, what goes into it, and its exports."""

    module: nn.Module
    signature: Signature
    exports: dict[ExportFormat, Path]
    example: Callable[[np.random.Generator, int], Arrays]

    def reference(self, inputs: Arrays) -> Arrays:
        """Return what the module itself makes of the inputs."""
        with torch.no_grad():
            outputs = self.module(*(torch.from_numpy(np.array(array)) for array in inputs))
        leaves = outputs.values() if isinstance(outputs, dict) else (outputs,)
        return tuple(leaf.numpy().copy() for leaf in leaves)


def exported(
    module: nn.Module, example: Callable[[np.random.Generator, int], Arrays], folder: Path
) -> Subject:
    rng = np.random.default_rng(5)
    if isinstance(module, ConvNet):
        calibrated(module, rng)
    module.eval()
    signature = None
    exports = {}
    for target in FORMATS:
        exports[target] = folder / target
        exports[target].mkdir()
        signature = export_module(module, example(rng, 3), target=target, folder=exports[target]).signature
    assert signature is not None
    return Subject(module, signature, exports, example)


@pytest.fixture(scope="module")
def simple(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """One input, one output."""
    torch.manual_seed(3)
    return exported(ConvNet(), lambda rng, b: (images(rng, b),), tmp_path_factory.mktemp("simple"))


@pytest.fixture(scope="module")
def matrices(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """One input, one output, nothing but matrix products."""
    torch.manual_seed(5)
    return exported(MatrixNet(), lambda rng, b: (images(rng, b),), tmp_path_factory.mktemp("matrices"))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Two inputs, two outputs, two dtypes."""
    torch.manual_seed(4)
    return exported(
        TwoInTwoOut(),
        lambda rng, b: (images(rng, b), rng.integers(0, 5, (b, 2))),
        tmp_path_factory.mktemp("several"),
    )


@dataclass(frozen=True)
class Loadable:
    """A recipe's artifact and the engine that loads it."""

    recipe: Recipe
    engine: Engine
    artifact: Path
    subject: Subject

    def load(self, settings: Settings) -> Session:
        return self.engine.load(
            self.artifact, recipe=self.recipe, signature=self.subject.signature, settings=settings
        )


# Recipes for models of another kind, which say so.
UNFIT = (("onnxruntime/int8-dynamic", "of this model's work"), ("int8-eager", "has no QuantStub"))


def parts_of(recipe: Recipe) -> tuple[Engine, Quantizer | None]:
    """Return the engine of a recipe, and its quantizer if it has one; skip where one is not installed."""
    quantizer = quantizer_for(recipe) if recipe.precision == "int8" else None
    engine = engine_named(recipe.engine)
    for part in (engine, quantizer):
        if part is not None:
            try:
                part.version()
            except EngineUnavailableError as error:
                pytest.skip(f"NOT COVERED HERE: {recipe}: {error}")
    return engine, quantizer


def material_of(subject: Subject, export: Path, *, saturating: bool = False) -> Material:
    """Return what a quantizer makes an artifact from."""

    def batches() -> Iterator[Arrays]:
        rng = np.random.default_rng(6)
        return (subject.example(rng, 8) for _ in range(4))

    return Material(
        export=export,
        module=lambda: copy.deepcopy(subject.module),
        batches=batches,
        signature=subject.signature,
        saturating=saturating,
    )


def built(recipe: Recipe, subject: Subject, artifact: Path, *, saturating: bool = False) -> Loadable:
    """Return a recipe's artifact, made from the subject's export; skip those known not to fit any subject."""
    engine, quantizer = parts_of(recipe)
    if quantizer is None:
        engine.build(subject.exports[engine.export_format(recipe)], artifact, recipe=recipe)
    else:
        export = subject.exports.get(quantizer.export_format(recipe), Path())
        try:
            quantizer.quantize(material_of(subject, export, saturating=saturating), artifact, recipe=recipe)
        except EngineError as error:
            if not any(name in recipe.name and why in str(error) for name, why in UNFIT):
                raise
            pytest.skip(f"NOT COVERED HERE: {recipe}: {error}")
    return Loadable(recipe, engine, artifact, subject)


@pytest.fixture(scope="module", params=RECIPES, ids=str)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """Each recipe that is offered on this CPU in turn."""
    assert isinstance(request.param, Recipe)
    return request.param


@pytest.fixture(scope="module")
def loadable(
    recipe: Recipe, simple: Subject, matrices: Subject, tmp_path_factory: pytest.TempPathFactory
) -> Loadable:
    """The recipe on the simple model, or on one of the kind that it is for."""
    subject = matrices if recipe.quantizer in {"dynamic", "eager"} else simple
    return built(recipe, subject, tmp_path_factory.mktemp("artifact"))


@pytest.fixture(scope="module")
def loadable_several(recipe: Recipe, several: Subject, tmp_path_factory: pytest.TempPathFactory) -> Loadable:
    """The recipe on the model with several inputs and outputs."""
    if recipe.engine == "inductor" and recipe.name not in INDUCTOR_IN_EACH_LAYOUT:
        pytest.skip(f"{recipe}: inputs and outputs go as in the plain recipes, and compiling takes long")
    return built(recipe, several, tmp_path_factory.mktemp("artifact"))


@pytest.fixture(scope="module")
def sessions(loadable: Loadable) -> Iterator[Callable[[Settings], Session]]:
    """Gives the session of the recipe with given settings, loaded once."""
    loaded: dict[str, Session] = {}

    def session(settings: Settings) -> Session:
        if str(settings) not in loaded:
            loaded[str(settings)] = loadable.load(settings)
        return loaded[str(settings)]

    yield session
    for each in loaded.values():
        each.close()


def layouts_of(recipe: Recipe) -> tuple[Settings, ...]:
    """Return the layouts that a recipe is loaded in: all, or the first alone where that takes too long."""
    alone = recipe.engine == "inductor" and recipe.name not in INDUCTOR_IN_EACH_LAYOUT
    return LAYOUTS[:1] if alone else LAYOUTS


def fp32_limit(recipe: Recipe) -> float:
    """Return what the outputs of an FP32 recipe may differ by, as a share of their scale."""
    return HALF_WEIGHTS_LIMIT if recipe.variant == "fp16-weights" else FP32_LIMIT


def agrees(loadable: Loadable, inputs: Arrays, outputs: Arrays) -> None:
    """Fail unless the outputs are what this recipe owes for these inputs."""
    expected = loadable.subject.reference(inputs)
    specs = loadable.subject.signature.outputs
    assert len(outputs) == len(specs)
    for spec, want, got in zip(specs, expected, outputs, strict=True):
        assert isinstance(got, np.ndarray)
        assert (str(got.dtype), got.shape) == (spec.dtype, want.shape)
        if loadable.engine.name == "fake":
            flat = np.resize(inputs[0].reshape(len(want), -1)[:, : want[0].size], want.shape)
            np.testing.assert_array_equal(got, flat.astype(spec.dtype))
        elif not np.issubdtype(want.dtype, np.floating):
            np.testing.assert_array_equal(got, want)
        elif loadable.recipe.precision != "fp32":
            cosine = np.vdot(got, want) / (np.linalg.norm(got) * np.linalg.norm(want))
            assert cosine > INT8_COSINE
        else:
            assert np.abs(got - want).max() <= fp32_limit(loadable.recipe) * np.abs(want).max()


def test_every_registered_name_is_covered() -> None:
    assert set(RUNTIMES) == set(engine_names()), "add the engine to RUNTIMES"
    assert set(QUANTIZER_RUNTIMES) == set(quantizer_names()), "add the quantizer to QUANTIZER_RUNTIMES"


def test_declares_what_the_search_reads(recipe: Recipe) -> None:
    engine = engine_named(recipe.engine)
    assert engine.name == recipe.engine
    assert engine.install.startswith("pip install")
    for layout in LAYOUTS:
        for knobs in engine.knobs(recipe, layout):
            assert knobs, "the defaults are tried anyway"
    if recipe.precision != "int8":
        assert engine.export_format(recipe) in ARTIFACT_FILES
        return
    quantizer = quantizer_for(recipe)
    assert (quantizer.engine, quantizer.name) == (recipe.engine, recipe.quantizer)
    assert quantizer.install.startswith("pip install")
    assert quantizer.export_format(recipe) in {*ARTIFACT_FILES, "module"}


def test_names_are_unique_and_lead_back() -> None:
    names = [recipe.name for recipe in RECIPES]
    assert len(set(names)) == len(names)
    assert [Recipe.parse(name) for name in names] == list(RECIPES)


def test_what_the_cpu_lacks_is_not_offered() -> None:
    plain = [recipe for name in engine_names() for recipe in engine_named(name).recipes(())]
    assert {recipe.precision for recipe in plain} == {"fp32"}


def test_version_is_a_number(recipe: Recipe) -> None:
    for part in parts_of(recipe):
        if part is not None:
            assert part.version()[0].isdigit()


def test_the_artifact_holds_files_and_no_scratch(loadable: Loadable) -> None:
    assert sorted(path.name for path in loadable.artifact.iterdir()) in (
        ["fake.json"],
        ["model.onnx"],
        ["model.bin", "model.xml"],
        ["model.pt2"],
        ["model.torchscript"],
        ["made-for.json", "model.so"],
    )


def test_any_batch_up_to_one_more_than_declared_agrees_with_the_module(
    loadable: Loadable, sessions: Callable[[Settings], Session], rng: np.random.Generator
) -> None:
    for settings in layouts_of(loadable.recipe):
        session = sessions(settings)
        for batch in (BATCH_SIZE, *range(1, BATCH_SIZE + 2)):
            inputs = loadable.subject.example(rng, batch)
            agrees(loadable, inputs, session.run(inputs))


def test_a_sample_does_not_depend_on_its_batch(
    loadable: Loadable, sessions: Callable[[Settings], Session], rng: np.random.Generator
) -> None:
    session = sessions(LAYOUTS[0])
    (batch,) = loadable.subject.example(rng, BATCH_SIZE)
    (together,) = session.run((batch,))
    alone = np.concatenate([session.run((sample[None],))[0] for sample in batch])
    # Sums of another order; for INT8 a value may fall on the other side of a rounding step.
    limit = fp32_limit(loadable.recipe) if loadable.recipe.precision == "fp32" else 0.05
    np.testing.assert_allclose(alone, together, rtol=0, atol=limit * np.abs(together).max())


def test_outputs_belong_to_the_caller(
    loadable: Loadable, sessions: Callable[[Settings], Session], rng: np.random.Generator
) -> None:
    session = sessions(LAYOUTS[0])
    first_inputs, second_inputs = (loadable.subject.example(rng, BATCH_SIZE) for _ in range(2))
    (first,) = session.run(first_inputs)
    kept = first.copy()
    session.run(second_inputs)
    np.testing.assert_array_equal(first, kept)
    first[...] = 7.0
    np.testing.assert_array_equal(session.run(first_inputs)[0], kept)


def test_several_inputs_and_outputs(loadable_several: Loadable, rng: np.random.Generator) -> None:
    session = loadable_several.load(LAYOUTS[0])
    for batch in (BATCH_SIZE, 1):
        inputs = loadable_several.subject.example(rng, batch)
        given = [array.copy() for array in inputs]
        outputs = session.run(inputs)
        agrees(loadable_several, inputs, outputs)
        assert not any(np.shares_memory(output, array) for output in outputs for array in inputs)
        for output in outputs:
            output[...] = 0
        for array, before in zip(inputs, given, strict=True):
            np.testing.assert_array_equal(array, before)
    for wrong in (given[:1], [given[0], given[1][:0]], [given[0], np.array(1)], [given[0], given[1] * 1.0]):
        with pytest.raises(EngineError, match=r"got .*; expected "):
            session.run(tuple(wrong))
    session.close()


def test_read_only_and_scattered_inputs(
    loadable: Loadable, sessions: Callable[[Settings], Session], rng: np.random.Generator
) -> None:
    session = sessions(LAYOUTS[0])
    (x,) = loadable.subject.example(rng, BATCH_SIZE)
    (expected,) = session.run((x,))
    fixed = x.copy()
    fixed.flags.writeable = False
    backwards = x[:, :, :, ::-1].copy()[:, :, :, ::-1]
    channels_last = x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    every_second = np.repeat(x, 2, axis=0)[::2]
    for same in (fixed, backwards, channels_last, every_second):
        np.testing.assert_allclose(session.run((same,))[0], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(fixed, x)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda x: (), r"got 0 inputs; expected 1: x\. Pass", id="none"),
        pytest.param(lambda x: (x, x), r"got 2 inputs; expected 1: x\. Pass", id="two"),
        pytest.param(
            lambda x: (x.astype(np.float64),), r"`x` .* got float64 .*astype\(np\.float32\)", id="dtype"
        ),
        pytest.param(lambda x: (x[0],), r"\(3, 16, 16\); expected float32 \(b, 3, 16, 16\)", id="rank"),
        pytest.param(lambda x: (x[:, :2],), r"\(3, 2, 16, 16\); expected float32", id="size"),
        pytest.param(lambda x: (x[:0],), r"\(0, 3, 16, 16\); expected float32", id="empty"),
        pytest.param(lambda x: (np.float32(1) + x.sum(),), r"of shape \(\); expected float32", id="scalar"),
    ],
)
def test_inputs_that_do_not_fit(
    loadable: Loadable,
    sessions: Callable[[Settings], Session],
    rng: np.random.Generator,
    spoil: Callable[[np.ndarray], Arrays],
    message: str,
) -> None:
    (x,) = loadable.subject.example(rng, BATCH_SIZE)
    with pytest.raises(EngineError, match=message) as caught:
        sessions(LAYOUTS[0]).run(spoil(x))
    assert f"ngine `{loadable.engine.name}`" in str(caught.value)
    agrees(loadable, (x,), sessions(LAYOUTS[0]).run((x,)))


def test_threads_get_their_own_answers(
    loadable: Loadable, sessions: Callable[[Settings], Session], rng: np.random.Generator
) -> None:
    # Sums of other batch sizes may be rounded elsewhere; the example's outputs are about 1.
    in_bf16 = loadable.recipe.precision == "bf16" or loadable.recipe.rest_in_bf16
    limit = BF16_ROUNDING if in_bf16 else 1e-6
    for settings in layouts_of(loadable.recipe)[-2:]:
        session = sessions(settings)
        batches = [loadable.subject.example(rng, 1 + index % BATCH_SIZE) for index in range(4)]
        expected = [session.run(batch)[0] for batch in batches]
        for want, got in zip(expected, answered_at_once(session, batches), strict=True):
            assert len(got) == 5
            for answer in got:
                np.testing.assert_allclose(answer, want, rtol=limit, atol=limit)


def answered_at_once(session: Session, batches: Sequence[Arrays]) -> list[list[np.ndarray]]:
    """Return the answers to each batch, five times from a thread of its own, all threads at once."""
    answers: list[list[np.ndarray]] = [[] for _ in batches]
    together = threading.Barrier(len(batches))

    def work(index: int) -> None:
        together.wait(timeout=60)
        for _ in range(5):
            answers[index].append(session.run(batches[index])[0])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return answers


def test_closing_twice(loadable: Loadable, rng: np.random.Generator) -> None:
    session = loadable.load(LAYOUTS[0])
    other = loadable.load(LAYOUTS[0])
    session.close()
    session.close()
    inputs = loadable.subject.example(rng, 1)
    agrees(loadable, inputs, other.run(inputs))
    other.close()


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.write_bytes(b"no model at all\n" * 20), id="garbage"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), id="half"),
        pytest.param(Path.unlink, id="missing"),
    ],
)
def test_an_unreadable_artifact(loadable: Loadable, tmp_path: Path, spoil: Spoil) -> None:
    for file in loadable.artifact.iterdir():
        folder = tmp_path / file.name
        folder.mkdir()
        for each in loadable.artifact.iterdir():
            (folder / each.name).write_bytes(each.read_bytes())
        spoil(folder / file.name)
        with pytest.raises(EngineError) as caught:
            loadable.engine.load(
                folder, recipe=loadable.recipe, signature=loadable.subject.signature, settings=LAYOUTS[0]
            )
        assert str(folder) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", engine_names())
def test_a_missing_runtime(
    name: str, simple: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = RUNTIMES[name]
    if runtime is None:
        assert engine_named(name).version()
        return
    recipe = Recipe(name, "fp32")
    engine = built(recipe, simple, tmp_path).engine
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(EngineUnavailableError, match=r"is not installed here\. Install it with `pip install"):
        engine.version()
    with pytest.raises(EngineUnavailableError, match="pip install"):
        engine.load(tmp_path, recipe=recipe, signature=simple.signature, settings=LAYOUTS[0])


@pytest.mark.parametrize("name", [name for name in engine_names() if name != "fake"])
def test_an_unknown_knob(name: str, simple: Subject, tmp_path: Path) -> None:
    loadable = built(Recipe(name, "fp32"), simple, tmp_path)
    with pytest.raises(EngineError, match=f"Engine `{name}` has no knob `no_such`"):
        loadable.load(Settings(knobs={"no_such": True}))


def test_knobs_change_no_results(loadable: Loadable, rng: np.random.Generator) -> None:
    inputs = loadable.subject.example(rng, BATCH_SIZE)
    for layout in layouts_of(loadable.recipe):
        for knobs in loadable.engine.knobs(loadable.recipe, layout):
            session = loadable.load(msgspec.structs.replace(layout, knobs=knobs))
            agrees(loadable, inputs, session.run(inputs))
            session.close()


@pytest.mark.parametrize("name", quantizer_names())
def test_a_missing_quantizer(
    name: str, simple: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer = quantizer_named(name)
    monkeypatch.setitem(sys.modules, QUANTIZER_RUNTIMES[name], None)
    with pytest.raises(EngineUnavailableError, match=r"is not installed here\. Install it with `pip install"):
        quantizer.version()
    recipe = quantizer.recipes(ISA)[0]
    with pytest.raises(EngineUnavailableError):
        quantizer.quantize(material_of(simple, tmp_path), tmp_path, recipe=recipe)


@pytest.mark.parametrize("name", quantizer_names())
def test_quantized_for_a_saturating_cpu(
    name: str, simple: Subject, matrices: Subject, tmp_path: Path, rng: np.random.Generator
) -> None:
    recipe = quantizer_named(name).recipes(ISA)[0]
    subject = matrices if recipe.quantizer in {"dynamic", "eager"} else simple
    loadable = built(recipe, subject, tmp_path, saturating=True)
    session = loadable.load(LAYOUTS[0])
    inputs = subject.example(rng, 32)
    agrees(loadable, inputs, session.run(inputs))
    session.close()


@pytest.mark.parametrize("name", quantizer_names())
def test_quantizing_garbage(name: str, simple: Subject, tmp_path: Path) -> None:
    recipe = quantizer_named(name).recipes(ISA)[0]
    _, quantizer = parts_of(recipe)
    assert quantizer is not None
    target = quantizer.export_format(recipe)
    if target == "module":
        pytest.skip("it starts from the module, not from a file")
    export, artifact = tmp_path / "export", tmp_path / "artifact"
    export.mkdir()
    artifact.mkdir()
    (export / ARTIFACT_FILES[target]).write_bytes(b"no model at all\n" * 20)
    with pytest.raises(EngineError, match="cannot quantize this model: "):
        quantizer.quantize(material_of(simple, export), artifact, recipe=recipe)


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match=r"no engine `onnxruntim`; known are .*Did you mean `onnxruntime`\?"):
        engine_named("onnxruntim")
    with pytest.raises(
        UsageError, match=r"no quantizer `openvino/int8-ncf`.*Did you mean `openvino/int8-nncf`"
    ):
        quantizer_named("openvino/int8-ncf")
    with pytest.raises(UsageError, match="no quantizer `openvino/int8-ncf`"):
        quantizer_for(Recipe("openvino", "int8", "ncf", "full-bias", "dense"))


@pytest.mark.parametrize("name", [name for name, runtime in RUNTIMES.items() if runtime == "torch"])
def test_thread_settings_are_put_back(
    name: str, simple: Subject, tmp_path: Path, rng: np.random.Generator
) -> None:
    loadable = built(Recipe(name, "fp32"), simple, tmp_path)
    before = torch.get_num_threads()
    for threads in (1, 2):
        session = loadable.load(Settings(threads=threads, batch_size=BATCH_SIZE))
        session.run(simple.example(rng, 1))
        assert torch.get_num_threads() == before
        assert np.float64(5e-324) * np.float64(1.0) > 0.0
        session.close()


def test_sessions_of_one_thread_use_their_own_thread_counts(rng: np.random.Generator) -> None:
    spec = TensorSpec("x", "float32", ("b", 3))
    seen: list[tuple[int, bool]] = []

    def call(x: torch.Tensor) -> torch.Tensor:
        seen.append((torch.get_num_threads(), bool(np.float64(5e-324) * np.float64(1.0) == 0.0)))
        return x

    sessions = [
        TorchSession("torch", call, signature=Signature((spec,), (spec,)), settings=Settings(threads=threads))
        for threads in (1, 2)
    ]
    for index in (0, 1, 0):
        sessions[index].run((rng.standard_normal((2, 3), dtype=np.float32),))
    assert seen == [(1, True), (2, True), (1, True)]
