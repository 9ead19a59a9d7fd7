"""One optimized bundle of tiny images, made once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tiny import write_factory

from alula.core import ImageInput, Outcome
from alula.workflows import Bundle, optimize

LABELS = ("blue", "green", "red")
DESCRIPTION = ImageInput(height=16, width=16, mean=(0.5,), std=(0.25,))


@dataclass(frozen=True)
class Optimized:
    """The bundle, what it was made from, and what was told on the way."""

    bundle: Bundle
    images: Path
    model: str
    outcomes: tuple[Outcome, ...]
    reports: tuple[str, ...]


def write_images(folder: Path, *, per_class: int, seed: int = 0) -> Path:
    """Write noisy PNG files of 16x16 in a folder per colour; return the folder."""
    from PIL import Image

    random = np.random.default_rng(seed)
    for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = random.integers(0, 120, (16, 16, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(folder / name / f"{index:03}.png")
    return folder


@pytest.fixture(scope="session")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Optimized]:
    """A bundle from a factory file and class folders, over two engines."""
    folder = tmp_path_factory.mktemp("optimized")
    images = write_images(folder / "images", per_class=20)
    model = f"{write_factory(folder)}:tiny"
    outcomes: list[Outcome] = []
    reports: list[str] = []
    with optimize(
        model,
        images,
        output=folder / "colours.alula",
        input=DESCRIPTION,
        labels=[*LABELS, "none"],
        metric="agreement",
        engines=["onnxruntime", "openvino"],
        precisions=["fp32"],
        activation="softmax",
        threads=1,
        report=reports.append,
        on_outcome=outcomes.append,
    ) as bundle:
        yield Optimized(bundle, images, model, tuple(outcomes), tuple(reports))
