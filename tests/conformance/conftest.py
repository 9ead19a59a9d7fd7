"""Every registered engine and quantizer as a loaded recipe: built from a real export, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from alula.core import ExportFormat, Settings, Signature
from alula.engines import Arrays, Engine, Session, engine_named, engine_names
from alula.errors import EngineUnavailableError
from alula.export import export_module
from alula.quantization import Quantizer, quantizer_for, quantizer_names

RECIPES = (*(f"{name}/fp32" for name in engine_names()), *quantizer_names())
FORMATS: tuple[ExportFormat, ...] = ("onnx", "exported", "torchscript")


class ConvNet(nn.Module):
    """(b, 3, 16, 16) to logits (b, 5): dense and depthwise convolutions, BatchNorm, SiLU, a linear head."""

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
        return self.head(self.body(x).mean(dim=(2, 3)))


class TwoInTwoOut(ConvNet):
    """An image and integer codes to logits, and the codes as they came: an output that is an input."""

    def forward(self, x: torch.Tensor, codes: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": super().forward(x) + 0.1 * codes.sum(dim=1, keepdim=True), "echo": codes}


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

    module: ConvNet
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
    module: ConvNet, example: Callable[[np.random.Generator, int], Arrays], folder: Path
) -> Subject:
    rng = np.random.default_rng(5)
    calibrated(module, rng)
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

    recipe: str
    engine: Engine
    artifact: Path
    subject: Subject

    def load(self, settings: Settings) -> Session:
        return self.engine.load(self.artifact, signature=self.subject.signature, settings=settings)


def parts_of(recipe: str) -> tuple[Engine, Quantizer | None]:
    """Return the engine of a recipe, and its quantizer if it has one; skip where one is not installed."""
    quantizer = quantizer_for(recipe) if recipe in quantizer_names() else None
    engine = engine_named(recipe.partition("/")[0])
    for part in (engine, quantizer):
        if part is not None:
            try:
                part.version()
            except EngineUnavailableError as error:
                pytest.skip(f"NOT COVERED HERE: {recipe}: {error}")
    return engine, quantizer


def built(recipe: str, subject: Subject, artifact: Path, *, saturating: bool = False) -> Loadable:
    """Return a recipe's artifact, made from the subject's export."""
    engine, quantizer = parts_of(recipe)
    if quantizer is None:
        engine.build(subject.exports[engine.export_format], artifact)
    else:

        def batches() -> Iterator[Arrays]:
            rng = np.random.default_rng(6)
            return (subject.example(rng, 8) for _ in range(4))

        quantizer.quantize(
            subject.exports[quantizer.export_format],
            artifact,
            batches=batches,
            signature=subject.signature,
            saturating=saturating,
        )
    return Loadable(recipe, engine, artifact, subject)


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> str:
    """Name of each registered recipe in turn."""
    return str(request.param)


@pytest.fixture(scope="module")
def loadable(recipe: str, simple: Subject, tmp_path_factory: pytest.TempPathFactory) -> Loadable:
    """The recipe on the simple model."""
    return built(recipe, simple, tmp_path_factory.mktemp("artifact"))


@pytest.fixture(scope="module")
def loadable_several(recipe: str, several: Subject, tmp_path_factory: pytest.TempPathFactory) -> Loadable:
    """The recipe on the model with several inputs and outputs."""
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
