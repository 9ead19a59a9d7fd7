"""From a model and data to a bundle, in the forms that both may have."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bundles import COLOUR_IMAGES, COLOURS, write_images
from tiny import CLASSES, FEATURES, write_factory, write_linear_onnx, write_onnx

from alula.bundle import read_manifest, verify
from alula.core import Accepted, ArrayInput, Candidate, Ratio, Recipe, Rejected, Settings, Share
from alula.engines.fake import SCRIPT_VARIABLE
from alula.errors import (
    AccuracyError,
    AlulaError,
    BundleError,
    DataError,
    EngineError,
    ModelError,
    UsageError,
)
from alula.tuning import read_journal
from alula.workflows import Bundle, load, optimization, optimize
from alula.workflows.peaks import CACHE_VARIABLE

N = 30


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    """Return features, float32 (n, 8), that the ONNX file of `write_onnx` takes."""
    return rng.normal(size=(N, FEATURES)).astype(np.float32)


def small(model: Any, data: Any, output: Path, **options: Any) -> Bundle:
    """Optimize over one engine, and over as few settings as there are seconds for."""
    return optimize(model, data, output=output, threads=1, **{"engines": ["fake"], "budget": "6s", **options})


def test_the_bundle_says_what_was_found(optimized: SimpleNamespace) -> None:
    bundle, manifest = optimized.bundle, optimized.bundle.manifest
    verify(bundle.path, manifest)
    assert read_manifest(bundle.path) == manifest
    assert manifest.labels == bundle.labels == (*COLOURS, "none")
    assert manifest.model == optimized.model
    assert manifest.input == COLOUR_IMAGES
    assert [spec.shape for spec in manifest.signature.inputs] == [("b", 3, 16, 16)]
    assert manifest.accuracy.metric == "top1"
    assert manifest.accuracy.drop == 0
    assert manifest.accuracy.n == len(manifest.validation) == 40
    assert len(manifest.calibration) == 20
    assert not set(manifest.calibration) & set(manifest.validation)
    recipes = {manifest.chosen.recipe, *(fallback.recipe for fallback in manifest.fallbacks)}
    # Which of OpenVINO's FP32 recipes is the fastest is chance here.
    assert {recipe.partition("-")[0] for recipe in recipes} == {"onnxruntime/fp32", "openvino/fp32"}
    assert bundle.recipe == manifest.chosen.recipe
    assert manifest.folder is not None
    assert manifest.folder.samples_per_s > 0
    assert {"alula", "numpy", "onnxruntime"} <= set(manifest.versions)


def test_the_journal_in_the_bundle_holds_every_outcome(optimized: SimpleNamespace) -> None:
    kept = list(read_journal(optimized.bundle.path / "search.jsonl"))
    assert kept == optimized.outcomes
    accepted = [outcome for outcome in kept if isinstance(outcome, Accepted)]
    assert {outcome.candidate.settings.batch_size for outcome in accepted} >= {1, 8, 32}
    assert all(outcome.relative is not None for outcome in accepted)


def test_the_threads_that_were_allowed_are_what_the_bundle_was_tuned_for(
    optimized: SimpleNamespace,
) -> None:
    # Of as many as there are, one was allowed.
    assert optimized.bundle.manifest.machine.thread_budget == 1


def test_what_is_being_done_is_reported(optimized: SimpleNamespace) -> None:
    assert optimized.reports[:3] == [
        "reading the data",
        "preparing 20 calibration samples",
        "preparing 40 validation samples",
    ]
    assert "trying openvino/fp32; no candidate yet" in optimized.reports


def test_the_bundle_computes_what_the_model_does(
    optimized: SimpleNamespace, rng: np.random.Generator
) -> None:
    path, _, name = optimized.model.rpartition(":")
    scope: dict[str, Any] = {}
    exec(Path(path).read_text(), scope)
    module = scope[name]().eval()
    images = rng.normal(size=(19, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    # Engines differ from eager PyTorch by the order of sums.
    np.testing.assert_allclose(optimized.bundle(images), expected, rtol=1e-4, atol=1e-5)


def test_no_files_of_the_search_are_left(optimized: SimpleNamespace) -> None:
    names = {path.name for path in optimized.bundle.path.parent.iterdir()}
    assert names - {"__pycache__"} == {"colours.alula", "images", "net.py"}


def test_an_existing_output_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    output = tmp_path / "there.alula"
    output.mkdir()
    with pytest.raises(BundleError, match="exists already"):
        optimize("absent.py:model", tmp_path / "absent", output=output)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="cannot be written"):
        optimize("absent.py:model", tmp_path / "absent", output=tmp_path / "file" / "there.alula")


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path, x: np.ndarray) -> None:
    output = tmp_path / "photos"
    output.mkdir()
    (output / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(BundleError, match="exists already"):
        small(write_onnx(tmp_path / "model.onnx", batch=8), x, output, replace=True)
    assert (output / "holiday.jpg").read_bytes() == b"precious"


def test_a_bundle_is_replaced_when_asked(tmp_path: Path, x: np.ndarray) -> None:
    model, output = write_onnx(tmp_path / "model.onnx", batch=8), tmp_path / "b.alula"
    small(model, x, output, seed=1).close()
    (output / "note.txt").write_text("added by hand")
    small(model, x, output, seed=2, replace=True).close()
    assert load(output).manifest.seed == 2
    assert not (output / "note.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.alula", "model.onnx"]


@pytest.mark.parametrize("batch", ["b", 8, 1])
def test_an_onnx_file_is_its_own_baseline(tmp_path: Path, x: np.ndarray, batch: int | str) -> None:
    """Also one with a fixed batch axis, which no number of samples divides."""
    with small(
        write_onnx(tmp_path / "model.onnx", batch=batch),
        x,
        tmp_path / "b.alula",
        engines=["onnxruntime"],
        precisions=["fp32"],
    ) as bundle:
        assert bundle.manifest.baseline.recipe == "onnxruntime/fp32"
        assert bundle.manifest.accuracy.metric == "agreement"  # there are no labels
        assert bundle.labels is None
        np.testing.assert_allclose(bundle(x[:13]), x[:13, :CLASSES], rtol=1e-6)
    with load(tmp_path / "b.alula", threads=2) as again:
        np.testing.assert_allclose(again(x[:13]), x[:13, :CLASSES], rtol=1e-6)


def test_of_an_onnx_file_only_what_starts_from_one_is_tried(tmp_path: Path, x: np.ndarray) -> None:
    model = write_onnx(tmp_path / "model.onnx", batch=8)
    outcomes: list[Any] = []
    with small(
        model, x, tmp_path / "b.alula", engines=["torch", "onnxruntime"], on_outcome=outcomes.append
    ) as bundle:
        assert bundle.recipe.startswith("onnxruntime/")
    tried = {(one.candidate.recipe if isinstance(one, Accepted) else one.recipe).engine for one in outcomes}
    assert tried == {"onnxruntime"}
    with pytest.raises(UsageError, match="is an ONNX file, and torch starts from PyTorch modules only"):
        small(model, x, tmp_path / "c.alula", engines=["torch"])


def test_labels_choose_the_metric(tmp_path: Path, x: np.ndarray) -> None:
    y = x[:, :CLASSES].argmax(axis=1)
    model = write_onnx(tmp_path / "model.onnx", batch=8)
    with small(model, (x, y), tmp_path / "b.alula") as bundle:
        accuracy = bundle.manifest.accuracy
    assert (accuracy.metric, accuracy.baseline, accuracy.chosen) == ("top1", 1.0, 1.0)


def test_one_score_of_two_classes_is_that_of_the_second(tmp_path: Path, x: np.ndarray) -> None:
    model = write_linear_onnx(tmp_path / "m.onnx", np.eye(FEATURES, 1), shape=("b", FEATURES))
    data = tmp_path / "data.npz"
    np.savez(data, x=x, y=np.where(x[:, 0] > 0, "bird", "noise"))
    options: dict[str, Any] = {"engines": ["onnxruntime"], "precisions": ["fp32"], "metric": "macro_auc"}
    with small(model, data, tmp_path / "b.alula", labels=["noise", "bird"], **options) as bundle:
        assert bundle.labels == ("bird",)
        assert bundle(x).shape == (N, 1)


def test_a_module_and_a_data_loader(tmp_path: Path, x: np.ndarray) -> None:
    torch.manual_seed(3)
    module = torch.nn.Sequential(torch.nn.Linear(FEATURES, 16), torch.nn.ReLU(), torch.nn.Linear(16, CLASSES))
    y = np.arange(N) % CLASSES
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=7
    )
    with small(module, loader, tmp_path / "b.alula", engines=["onnxruntime"], precisions=["fp32"]) as bundle:
        assert bundle.manifest.model == "an nn.Module from Python"
        assert bundle.manifest.input == ArrayInput(dtype="float32")
        with torch.no_grad():
            expected = module(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(bundle(x), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(bundle(x.astype(np.float64)), expected, rtol=1e-4, atol=1e-5)
    assert module.training  # the user's own object is as it was


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript
@pytest.mark.parametrize("kind", ["script", "program"])
def test_models_that_are_files_by_nature_may_be_given_as_objects(
    tmp_path: Path, x: np.ndarray, kind: str
) -> None:
    module = torch.nn.Linear(FEATURES, CLASSES).eval()
    example = (torch.from_numpy(x[:2]),)
    model: Any = (
        torch.jit.script(module)
        if kind == "script"
        else torch.export.export(module, example, dynamic_shapes=({0: torch.export.Dim("b")},))
    )
    with small(model, x, tmp_path / "b.alula", engines=["onnxruntime"], precisions=["fp32"]) as bundle:
        np.testing.assert_allclose(bundle(x), module(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


def test_a_model_of_two_inputs(tmp_path: Path, rng: np.random.Generator) -> None:
    left = rng.normal(size=(N, 6)).astype(np.float32)
    right = rng.normal(size=(N, 2)).astype(np.float32)
    pairs = [((a, b), index % CLASSES) for index, (a, b) in enumerate(zip(left, right, strict=True))]
    model = f"{write_factory(tmp_path)}:two"
    with small(
        model, pairs, tmp_path / "b.alula", engines=["onnxruntime"], precisions=["fp32"], metric="agreement"
    ) as bundle:
        assert [spec.shape for spec in bundle.manifest.signature.inputs] == [("b", 6), ("b", 2)]
        outputs = bundle(left, right)
        assert isinstance(outputs, np.ndarray)
        assert outputs.shape == (N, CLASSES)
        np.testing.assert_allclose(bundle(left[:3], right[:3]), outputs[:3], rtol=1e-5)
        with pytest.raises(AlulaError, match="1 inputs"):
            bundle(left)
        with pytest.raises(EngineError, match="with at least one sample, as many in each"):
            bundle(left[:2], right[:3])


def test_a_budget_that_is_used_up_still_ends_with_a_bundle(
    tmp_path: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not spent on the machine's peaks, where they are not known yet."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    model, reports = write_onnx(tmp_path / "model.onnx", batch=8), list[str]()
    with small(model, x, tmp_path / "b.alula", budget=1e-3, report=reports.append) as bundle:
        assert bundle.recipe
        share = bundle.manifest.chosen.of_peak
    assert any("budget is too short to measure the machine's peaks" in line for line in reports)
    assert share == Share(reason="the machine's peaks were not measured")
    assert not (tmp_path / "cache").exists()


def test_samples_that_the_budget_leaves_no_time_for_are_not_read(
    tmp_path: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimization, "LEAST_PREPARED", 7)
    model, reports = write_onnx(tmp_path / "model.onnx", batch=8), list[str]()
    with small(model, x, tmp_path / "b.alula", budget=1e-3, report=reports.append) as bundle:
        manifest = bundle.manifest
    assert len(manifest.calibration) == len(manifest.validation) == manifest.accuracy.n == 7
    assert not set(manifest.calibration) & set(manifest.validation)
    for n, name in ((10, "calibration"), (20, "validation")):
        assert f"the budget leaves time to read 7 of the {n} {name} samples" in reports


def test_when_all_recipes_are_wrong_it_is_said_which_and_why(
    tmp_path: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SCRIPT_VARIABLE, '{"fake/fp32": {"scale": 2.0}}')
    outcomes: list[object] = []
    with pytest.raises(AccuracyError, match=r"nothing to put into a bundle\. fake/fp32: FP32 outputs differ"):
        small(
            write_onnx(tmp_path / "model.onnx", batch=8),
            x,
            tmp_path / "b.alula",
            on_outcome=outcomes.append,
        )
    assert [type(outcome) for outcome in outcomes] == [Rejected]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"engines": ["onnxruntim"]}, UsageError, "Did you mean `onnxruntime`"),
        ({"metric": "top2"}, UsageError, "Did you mean `top1`"),
        ({"metric": "top1"}, AlulaError, "label"),
        ({"max_drop": -0.1}, UsageError, "0 or more"),
        ({"max_drop": float("nan")}, UsageError, "0 or more"),
        ({"scenario": "serve"}, UsageError, "expected offline, single-stream, server"),
        ({"scenario": "server"}, UsageError, "latency limit belongs to the scenario `server`"),
        ({"budget": "soon"}, UsageError, "no duration"),
        ({"threads": 0}, UsageError, "thread"),
        ({"seed": -1}, UsageError, "seed"),
        ({"calibration": 0}, UsageError, "calibration"),
        ({"max_validation": 1}, UsageError, "max_validation"),
        ({"input": "imagenett"}, UsageError, "Did you mean `imagenet`"),
        ({"input": "imagenet"}, DataError, "input description is for image"),
        ({"weights": "absent.pth"}, ModelError, "does not exist"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_named(
    tmp_path: Path, x: np.ndarray, options: dict[str, Any], error: type[AlulaError], says: str
) -> None:
    model = write_onnx(tmp_path / "model.onnx", batch=8)
    with pytest.raises(error, match=says):
        optimize(model, x, output=tmp_path / "b.alula", **{"threads": 1, "engines": ["fake"], **options})
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


CERTAIN = Ratio(median=2.0, low=1.5, high=2.5)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({}, []),
        ({"disturbed": ("steal: 20 %",)}, ["is not to be trusted", "steal: 20 %"]),
        ({"rough": ("measured apart",)}, ["measured apart"]),
        ({"speedup": Ratio(median=1.1, low=0.9, high=1.3)}, ["no difference in speed"]),
        ({"speedup": Ratio(median=0.8, low=0.7, high=0.9)}, ["slower than the baseline"]),
        ({"scenario": "server"}, ["highest rate is not known: it broke"]),
        ({"scenario": "server", "server": SimpleNamespace(warnings=("few queries",))}, ["few queries"]),
        ({"scenario": "single-stream"}, ["latency is not known: it broke"]),
        ({"scenario": "single-stream", "latency": SimpleNamespace()}, []),
        ({"problems": ("a.jpg: It is empty.",)}, ["1 could not be read, for example: a.jpg"]),
        ({"of_accuracy": ("few samples",), "of_speed": ("noisy",)}, ["few samples", "noisy"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_a_user_is_warned_of(facts: dict[str, Any], says: list[str]) -> None:
    finalist = SimpleNamespace(
        throughput=SimpleNamespace(warnings=facts.get("of_speed", ())), speedup=facts.get("speedup", CERTAIN)
    )
    result: Any = SimpleNamespace(
        warnings=(*facts.get("disturbed", ()), *facts.get("rough", ())),
        disturbed="disturbed" in facts,
        unmeasured="it broke",
        finalists=(finalist,),
        server=facts.get("server"),
        latency=facts.get("latency"),
    )
    accepted: Any = SimpleNamespace(accuracy=SimpleNamespace(warnings=facts.get("of_accuracy", ())))
    prepared: Any = SimpleNamespace(
        calibration=SimpleNamespace(problems=()),
        validation=SimpleNamespace(problems=facts.get("problems", ())),
    )
    warned = optimization._warnings(result, accepted, prepared, facts.get("scenario", "offline"))
    assert len(warned) == len(says)
    for warning, text in zip(warned, says, strict=True):
        assert text in warning


def test_too_little_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Expected at least|expected at least"):
        small(
            write_onnx(tmp_path / "model.onnx", batch=8), np.zeros((3, FEATURES), np.float32), tmp_path / "b"
        )


def test_no_more_callers_compute_than_there_are_instances(
    tmp_path: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_onnx(tmp_path / "model.onnx", batch=8)
    with small(model, x, tmp_path / "b.alula", engines=["onnxruntime"], precisions=["fp32"]) as bundle:
        instances = bundle.settings.instances
        session, all_in, met = bundle._running.session, threading.Barrier(instances + 1), threading.Event()
        run = session.run

        def watched(inputs: Any) -> Any:
            try:
                all_in.wait(timeout=0.2)
                met.set()
            except threading.BrokenBarrierError:
                all_in.reset()
            return run(inputs)

        monkeypatch.setattr(session, "run", watched)
        with ThreadPoolExecutor(instances + 1) as pool:
            list(pool.map(bundle, [x[:8]] * (instances + 1)))
        assert not met.is_set()


def test_an_interrupt_of_the_folder_run_costs_only_its_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(optimization, "run_over_files", interrupted)
    images = write_images(tmp_path / "images", per_class=20)
    weights = np.eye(3, dtype=np.float32).repeat(256, axis=0)  # the sum of each colour
    model = write_linear_onnx(tmp_path / "model.onnx", weights, shape=("b", 3, 16, 16))
    reports: list[str] = []
    with small(
        model,
        images,
        tmp_path / "a.alula",
        input=COLOUR_IMAGES,
        engines=["onnxruntime"],
        precisions=["fp32"],
        report=reports.append,
    ) as bundle:
        assert bundle.manifest.folder is None
    verify(tmp_path / "a.alula", read_manifest(tmp_path / "a.alula"))
    assert reports[-1].startswith("interrupted: ")


def test_a_fallback_has_the_weights_as_they_are() -> None:
    """Golden samples tell that FP32 arithmetic is right; what rounding of weights costs they do not."""

    def accepted(name: str) -> Any:
        return SimpleNamespace(
            candidate=Candidate(Recipe.parse(name), Settings()),
            throughput=SimpleNamespace(rounds_per_s=(1.0,)),
        )

    names = ("openvino/int8-nncf", "openvino/fp32-fp16-weights", "torch/fp32", "onnxruntime/fp32")
    found = [accepted(name) for name in names]
    result: Any = SimpleNamespace(
        finalists=(SimpleNamespace(accepted=found[0], throughput=found[0].throughput),),
        accepted=found,
        golden_outputs=dict.fromkeys(names, ()),
        artifacts={name: Path(name) for name in names},
    )
    measurements: Any = SimpleNamespace(of_peak=lambda recipe, per_s: None)
    chosen, fallbacks, _ = optimization._deployments(result, measurements)
    assert (chosen.recipe, [one.recipe for one in fallbacks]) == (names[0], ["onnxruntime/fp32"])
