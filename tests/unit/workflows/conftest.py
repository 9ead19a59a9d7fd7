"""Bundles made once for all tests of this folder."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from bundles import COLOUR_IMAGES, COLOURS, write_audio_bundle, write_images
from quick import take_looks_as_they_are
from tiny import write_factory

from alula.core import Outcome
from alula.tuning import SearchPlan
from alula.workflows import Bundle, load, optimization, optimize


@pytest.fixture(scope="session", autouse=True)
def short_rounds() -> Iterator[None]:
    """Times that are good for nothing but that there are some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimization, "SearchPlan", functools.partial(SearchPlan, round_s=0.02, final_rounds=6))
        patch.setattr(optimization, "FOLDER_SECONDS", 0.2)
        take_looks_as_they_are(patch)
        yield


@pytest.fixture(scope="session")
def optimized(tmp_path_factory: pytest.TempPathFactory, short_rounds: None) -> Iterator[SimpleNamespace]:
    """A `bundle` over two engines, the `images` and `model` it was made from, `outcomes` and `reports`."""
    folder = tmp_path_factory.mktemp("optimized")
    images = write_images(folder / "images", per_class=20)
    model = f"{write_factory(folder)}:tiny"
    outcomes: list[Outcome] = []
    reports: list[str] = []
    with optimize(
        model,
        images,
        output=folder / "colours.alula",
        input=COLOUR_IMAGES,
        labels=[*COLOURS, "none"],
        max_drop=0.01,
        engines=["onnxruntime", "openvino"],
        precisions=["fp32"],
        activation="softmax",
        threads=1,
        report=reports.append,
        on_outcome=outcomes.append,
    ) as bundle:
        yield SimpleNamespace(bundle=bundle, images=images, model=model, outcomes=outcomes, reports=reports)


@pytest.fixture(scope="session")
def audio_bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """A bundle of one linear layer over mel bands."""
    folder = tmp_path_factory.mktemp("audio")
    with load(write_audio_bundle(folder / "songs.alula", scratch=folder / "scratch"), threads=1) as bundle:
        yield bundle
