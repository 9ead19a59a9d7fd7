"""A small bundle on the scripted engine, and its manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from alula.bundle import SCHEMA_VERSION, Baseline, Deployed, Manifest, write_bundle
from alula.core import Accuracy, ArrayInput, Ratio, Settings, Signature, TensorSpec
from alula.engines.fake import FakeScript
from alula.hardware import Fingerprint

X = np.arange(24, dtype=np.float32).reshape(3, 8) + 1
VNNI = Fingerprint(
    arch="x86_64",
    vendor="GenuineIntel",
    model_name="Some Xeon",
    isa=("avx2", "avx512f", "avx512_vnni"),
    physical_cores=2,
    logical_cores=4,
    thread_budget=2,
    memory_bytes=8 * 10**9,
    os="Linux-6.1",
    python="3.11.9",
)


def deployed(recipe: str, *, golden: str, runs_code: bool = False) -> Deployed:
    return Deployed(
        recipe=recipe,
        artifact=f"artifacts/{recipe}",
        settings=Settings(threads=1, instances=2, batch_size=4),
        throughput_per_s=20.0,
        rounds_per_s=(19.0, 20.0, 21.0),
        runs_code=runs_code,
        golden=(golden,),
    )


def manifest_of(chosen: Deployed, *fallbacks: Deployed) -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        alula_version="0.1.0",
        created="2024-02-29T12:00:00Z",
        model="a scripted model",
        signature=Signature(
            (TensorSpec("x", "float32", ("b", 8)),), (TensorSpec("output", "float32", ("b", 4)),)
        ),
        input=ArrayInput(shape=(8,)),
        labels=("a", "b", "c", "d"),
        activation="softmax",
        chosen=chosen,
        fallbacks=fallbacks,
        baseline=Baseline(
            recipe="torch/fp32", settings=Settings(threads=2), throughput_per_s=10.0, rounds_per_s=(9.0, 11.0)
        ),
        speedup=Ratio(2.0, 1.9, 2.1),
        accuracy=Accuracy(
            metric="top1",
            n=100,
            baseline=0.9,
            chosen=0.89,
            drop=0.01,
            drop_low=0.0,
            drop_high=0.02,
            limit=0.02,
        ),
        folder=None,
        calibration=(0, 2),
        validation=(1, 3),
        data="four arrays",
        seed=0,
        machine=VNNI,
        versions={"numpy": "2.0"},
        notes=(),
        warnings=("few samples",),
        golden_inputs=("input_0",),
        files={},
    )


@dataclass(frozen=True)
class Maker:
    """Writes bundles of scripted artifacts into one folder."""

    root: Path

    def artifacts(self, manifest: Manifest, scripts: dict[str, FakeScript]) -> dict[str, Path]:
        """Return the artifact folders of a manifest's recipes; scripts are by recipe."""
        made = {}
        for each in (manifest.chosen, *manifest.fallbacks):
            folder = self.root / "made" / each.recipe
            folder.mkdir(parents=True, exist_ok=True)
            script = scripts.get(each.recipe, FakeScript())
            (folder / "fake.json").write_bytes(msgspec.json.encode(script))
            made[each.artifact] = folder
        return made

    def write(
        self,
        manifest: Manifest,
        *,
        scripts: dict[str, FakeScript] | None = None,
        name: str = "birds.alula",
        replace: bool = False,
    ) -> Path:
        """Write a bundle and return its folder."""
        journal = self.root / "search.jsonl"
        journal.write_text('{"outcome": "accepted"}\n')
        target = self.root / "out" / name
        write_bundle(
            target,
            manifest,
            artifacts=self.artifacts(manifest, scripts or {}),
            golden={"input_0": X, "chosen": X[:, :4], "twice": 2 * X[:, :4], "off": X[:, :4] * 1.03},
            journal=journal,
            replace=replace,
        )
        return target


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """Writes bundles."""
    return Maker(tmp_path)


@pytest.fixture
def manifest() -> Manifest:
    """One INT8 recipe and an FP32 fallback, both on the scripted engine."""
    return manifest_of(deployed("fake/int8-static", golden="off"), deployed("fake/fp32", golden="chosen"))


@pytest.fixture
def describe() -> Callable[..., Manifest]:
    """Gives manifests of given recipes."""
    return manifest_of


@pytest.fixture
def recipe() -> Callable[..., Deployed]:
    """Gives deployed recipes."""
    return deployed


@pytest.fixture
def x() -> np.ndarray:
    """The golden inputs, float32 (3, 8)."""
    return X
