"""Plans made of bundles: what is written scores what the plan says, and costs are what the clock says."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from bundles import write_images, write_scripted_bundle, write_wav

from alula.accuracy import metric_named
from alula.bundle import read_ensemble
from alula.core import (
    ArrayInput,
    AudioInput,
    Blend,
    Geometric,
    ImageInput,
    LogMel,
    Maximum,
    Mean,
    OverlapMean,
    Rank,
    Settings,
    Smoothing,
    TensorSpec,
    View,
)
from alula.errors import BundleError, DataError, EngineError, UsageError
from alula.measure.fake import ScriptedClock
from alula.planning import make_plan
from alula.postprocess import PostProcessing
from alula.workflows import PlanReport, load, parse_duration_s, plan, planning, stage_costs

RATE_HZ = 1_000
WAVE = AudioInput(sample_rate_hz=RATE_HZ, window_s=1.0)
LABELS = ("a", "b")
TICK_S = 0.001


@pytest.fixture(autouse=True)
def started_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a process takes half a second, and is not measured."""
    monkeypatch.setattr(stage_costs, "_start_s", lambda: 0.5)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Writes a bundle of a scripted member: it gives the first values of its input times a scale."""

    def write(name: str, description: AudioInput | ArrayInput | ImageInput = WAVE, **fields: Any) -> Path:
        match description:
            case AudioInput(mel=None):
                shape: tuple[int, ...] = (description.window_samples,)
            case AudioInput():
                shape = fields.pop("shape")
            case ArrayInput():
                shape = (4,)
            case ImageInput():
                shape = (3, description.height, description.width)
        labels = fields.pop("labels", LABELS)
        return write_scripted_bundle(
            tmp_path / f"{name}.alula",
            scratch=tmp_path / "scratch",
            description=description,
            outputs=(TensorSpec("scores", "float32", ("b", len(labels))),),
            shape=shape,
            labels=labels,
            **fields,
        )

    return write


@pytest.fixture
def soundscapes(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Six recordings of 8 s and a manifest of their seconds: classes whose first samples are loud."""
    lines = ["path,label,start_s,end_s"]
    for k in range(6):
        truth = rng.random((8, 2)) < 0.4
        wave = rng.uniform(0.05, 0.5, (8, RATE_HZ))
        wave[:, :2] += 0.25 * truth
        write_wav(tmp_path / f"{k}.wav", wave.ravel(), rate_hz=RATE_HZ)
        for second, row in enumerate(truth):
            names = ";".join(name for name, there in zip(LABELS, row, strict=True) if there)
            lines.append(f"{k}.wav,{names or ';'},{second},{second + 1}")
    (tmp_path / "truth.csv").write_text("\n".join(lines))
    return tmp_path / "truth.csv"


class Tables:
    """Writes tables of scores and their truth."""

    def __init__(self, folder: Path, rng: np.random.Generator, rows: int = 120) -> None:
        self.folder = folder
        self.rng = rng
        self.truth = (rng.random((rows, 2)) < 0.3).astype(float)
        self.keys = [(f"{k // 10}.ogg", float(k % 10), k % 10 + 1.0) for k in range(rows)]
        self.scores: dict[str, np.ndarray] = {}
        self.truth_path = self.write("truth", self.truth)

    def write(self, name: str, values: np.ndarray, labels: Sequence[str] = LABELS) -> Path:
        path = self.folder / f"{name}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "start_s", "end_s", *labels])
            writer.writerows([*key, *row] for key, row in zip(self.keys, values.tolist(), strict=True))
        return path

    def member(self, name: str, quality: float) -> Path:
        noise = self.rng.normal(0, 1, self.truth.shape)
        self.scores[name] = 1 / (1 + np.exp(-(quality * self.truth + noise - 1)))
        return self.write(f"scores-{name}", self.scores[name])


@pytest.fixture
def tables(tmp_path: Path, rng: np.random.Generator) -> Tables:
    return Tables(tmp_path, rng)


def planned(bundles: Sequence[Path], **options: Any) -> PlanReport:
    """A plan on one thread, on a clock that moves by a thousandth of a second whenever it is read."""
    given = {
        "clock": ScriptedClock(steps_s=itertools.repeat(TICK_S)),
        "workload": "20x60s",
        "deadline": "10h",
        "rounds": 2,
        "round_s": 2 * TICK_S,
        "threads": 1,
        **options,
    }
    return plan(bundles, **given)


def auc(truth: np.ndarray, scores: np.ndarray) -> float:
    return metric_named("macro_auc").value(truth, scores)


def test_a_plan_from_tables(make: Any, tables: Tables, tmp_path: Path) -> None:
    qualities = {"poor": 0.2, "good": 1.2, "other": 1.1}
    bundles = [make(name, scale=k + 1.0) for k, name in enumerate(qualities)]
    scores = [tables.member(name, quality) for name, quality in qualities.items()]
    found = planned(
        bundles, scores=scores, truth=tables.truth_path, output=tmp_path / "e.alula", save=tmp_path / "p.json"
    )
    counts = found.plan.counts
    assert set(counts) >= {"good", "other"}
    total = sum(counts.values())
    blended = sum(tables.scores[name] * count / total for name, count in counts.items())
    assert found.plan.score == pytest.approx(auc(tables.truth, blended), abs=1e-6)
    for size in (1, 2, 3):
        for some in itertools.combinations(qualities, size):
            one = np.mean([tables.scores[name] for name in some], axis=0)
            assert found.plan.score >= auc(tables.truth, one) - 1e-6
    assert (found.metric, found.rows, found.recordings) == ("macro_auc", 120, 12)
    assert (found.workload.files, found.workload.rows) == (20, 1200)
    saved = msgspec.json.decode((tmp_path / "p.json").read_bytes(), type=PlanReport)
    assert saved == found
    manifest = read_ensemble(tmp_path / "e.alula")
    assert [member.name for member in manifest.members] == [name for name in qualities if name in counts]
    assert manifest.blend == Mean(weights=tuple(float(counts[member.name]) for member in manifest.members))
    ladder = manifest.ladder
    assert set(ladder[0].members) == set(counts)
    assert ladder[0].score == pytest.approx(found.plan.score)
    assert len(ladder[-1].members) == 1
    assert manifest.prior == pytest.approx(blended.mean(axis=0), abs=1e-6)


def test_one_table_for_all_with_labels_by_name(make: Any, tables: Tables, tmp_path: Path) -> None:
    """Columns and rows in another order, rows told by ids, labels as text: all the same plan."""
    bundles = [make("one"), make("two", scale=2.0)]
    each = [tables.member("one", 1.0), tables.member("two", 0.8)]
    plain = planned(bundles, scores=each, truth=tables.truth_path)
    with (tmp_path / "all.csv").open("w") as file:
        file.write("row_id,member,b,a\n")
        for name, k in itertools.product(("two", "one"), range(119, -1, -1)):
            path, _, end = tables.keys[k]
            row_id = f"{path.removesuffix('.ogg')}_{end:g}"
            file.write(f"{row_id},{name},{tables.scores[name][k, 1]:.17g},{tables.scores[name][k, 0]:.17g}\n")
    with (tmp_path / "names.csv").open("w") as file:
        file.write("path,start_s,end_s,label\n")
        for (path, start, end), row in zip(tables.keys, tables.truth, strict=True):
            names = ";".join(name for name, there in zip(LABELS, row, strict=True) if there)
            file.write(f"{path},{start},{end},{names}\n")
    with (tmp_path / "ids.csv").open("w") as file:
        file.write("row_id,label\n")
        for (path, _, end), row in zip(tables.keys, tables.truth, strict=True):
            names = ";".join(name for name, there in zip(LABELS, row, strict=True) if there)
            file.write(f"{path.removesuffix('.ogg')}_{end:g},{names}\n")
    for truth in ("names.csv", "ids.csv"):
        found = planned(bundles, scores=[tmp_path / "all.csv"], truth=tmp_path / truth)
        assert found.plan.counts == plain.plan.counts
        assert found.plan.score == pytest.approx(plain.plan.score)


@pytest.mark.parametrize(
    "blend", [Mean(of="logits"), Geometric(), Rank()], ids=["logits", "geometric", "rank"]
)
def test_blends_of_tables(make: Any, tables: Tables, blend: Blend) -> None:
    import scipy.stats

    bundles = [make(name, scale=k + 1.0, activation="sigmoid") for k, name in enumerate(("one", "two"))]
    scores = [tables.member("one", 1.0), tables.member("two", 1.0)]
    found = planned(bundles, scores=scores, truth=tables.truth_path, blend=blend)
    one, two = (tables.scores[name] for name in ("one", "two"))
    total = sum(found.plan.counts.values())
    w, v = (found.plan.counts.get(name, 0) / total for name in ("one", "two"))
    blended = {
        "Mean": w * np.log(one / (1 - one)) + v * np.log(two / (1 - two)),
        "Geometric": w * np.log(one) + v * np.log(two),
        "Rank": w * scipy.stats.rankdata(one, axis=0) + v * scipy.stats.rankdata(two, axis=0),
    }[type(blend).__name__]
    assert found.plan.score == pytest.approx(auc(tables.truth, blended), abs=1e-4)


def test_no_plan_of_several_rows_of_a_window(make: Callable[..., Path], soundscapes: Path) -> None:
    post = PostProcessing(view={"p": View(rows=2)})
    with pytest.raises(UsageError, match="judges bundles window by window"):
        planned([make("p")], data=soundscapes, post=post)


@pytest.mark.parametrize(
    ("overlaps", "steps"),
    [((1,), ()), ((2,), ()), ((1, 2), (Smoothing(kernel=(0.1, 0.8, 0.1)),))],
    ids=["none", "overlap", "overlap and smoothing"],
)
def test_the_ensemble_that_is_written_scores_what_the_plan_says(
    make: Any, soundscapes: Path, tmp_path: Path, overlaps: tuple[int, ...], steps: Any
) -> None:
    wide = AudioInput(sample_rate_hz=RATE_HZ, window_s=2.0, hop_s=1.0)
    bundles = [make("plain"), make("turned", scale=-0.5), make("wide", wide, scale=0.7)]
    post = PostProcessing(view={"wide": View(keep_s=1.0)}, step=steps)
    found = planned(
        bundles,
        data=soundscapes,
        overlaps=overlaps,
        post=post,
        workload=tmp_path,
        output=tmp_path / "e.alula",
    )
    assert (found.rows, found.recordings, found.workload.rows) == (48, 6, 48)
    if overlaps == (1, 2):
        assert [one.what for one in found.plan.left_out if "overlap" in one.what]
    with load(tmp_path / "e.alula", threads=1) as ensemble, soundscapes.open() as file:
        told = list(csv.DictReader(file))
        truth = np.array([[name in row["label"].split(";") for name in LABELS] for row in told], float)
        scores = []
        for result in ensemble.map(sorted({tmp_path / row["path"] for row in told})):
            assert result.scores is not None
            assert result.start_s is not None
            np.testing.assert_allclose(result.start_s, np.arange(8))
            scores.append(result.scores)
    assert found.plan.score == pytest.approx(auc(truth, np.concatenate(scores)), abs=1e-6)


def test_a_ladder_of_overlaps(make: Any, soundscapes: Path, tmp_path: Path) -> None:
    """Where the plan is the denser overlap, its ladder can go back to every second window."""
    bundles = [make("plain")]
    found = planned(bundles, data=soundscapes, overlaps=(1, 2), output=tmp_path / "e.alula")
    manifest = read_ensemble(tmp_path / "e.alula")
    for rung, stored in zip(found.plan.ladder, manifest.ladder, strict=True):
        dense = found.plan.overlap != "none"
        assert stored.every == (2 if dense and rung.overlap == "none" else 1)
    expected = {"plain": View(hop_s=0.5)} if found.plan.overlap != "none" else {"plain": View()}
    assert {member.name: member.view for member in manifest.members} == expected


def test_what_stages_cost_and_how_long_the_job_takes(make: Any, tables: Tables) -> None:
    """A call takes a tick whatever it does, so a unit costs a tick over the units of a call."""
    bundles = [make("small"), make("large", scale=2.0, settings=Settings(batch_size=64))]
    scores = [tables.member("small", 1.0), tables.member("large", 1.0)]
    found = planned(bundles, scores=scores, truth=tables.truth_path)
    stages = {stage.name: stage for stage in found.stages}
    assert stages["model small"].core_s == pytest.approx(TICK_S / 32)
    assert stages["model large"].core_s == pytest.approx(TICK_S / 128)
    assert stages["decode"].core_s == pytest.approx(TICK_S / 60)  # a minute of noise, rows of a second
    assert stages["features 1"].core_s == pytest.approx(TICK_S / 60)
    assert stages["write"].core_s == pytest.approx(TICK_S / 256)
    assert stages["start"].per == "job"
    once_s = sum(stage.core_s for stage in found.stages if stage.per == "job" and stage.job_core_s)
    rows_s = sum(
        stage.core_s for stage in found.stages if stage.per in ("row", "window") and stage.job_core_s
    )
    # The small job of 128 rows takes a tick as well, which is less than the sum of its stages.
    assert found.plan.time.expected_s == pytest.approx(once_s + 1200 * rows_s)
    assert sum(stage.job_core_s for stage in found.stages) == pytest.approx(once_s + 1200 * rows_s)
    assert any("measured on noise" in note for note in found.notes)


def test_what_a_job_takes_more_than_its_stages(
    make: Any, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small job that takes as long as its stages and half as much again, on a machine that slows down."""
    clock = ScriptedClock(steps_s=itertools.repeat(TICK_S))
    bundle, scores = make("m"), [tables.member("m", 1.0)]
    plain = planned([bundle], scores=scores, truth=tables.truth_path, clock=clock)
    stages_s = sum(s.core_s for s in plain.stages if s.per in ("row", "window") and s.name != "write")

    def small_job(opened: object, files: object) -> Callable[[int], int]:
        def run(instance: int) -> int:
            clock.advance(1000 * 1.5 * stages_s - TICK_S)
            return 1000

        return run

    monkeypatch.setattr(stage_costs, "_small_job", small_job)
    found = planned([bundle], scores=scores, truth=tables.truth_path, clock=clock, round_s=TICK_S)
    assert (plain.overhead, found.overhead) == (1.0, pytest.approx(1.5))
    assert plain.spread == found.spread == 0.05
    once_s = sum(stage.core_s for stage in found.stages if stage.per == "job")
    rows_s = sum(stage.job_core_s for stage in found.stages) - once_s
    assert found.plan.time.expected_s == pytest.approx(once_s + 1.5 * rows_s)


def test_what_the_machine_does_to_all_is_nobodys_own() -> None:
    """Rounds in which everything takes twice as long widen the job's interval, not that of a stage."""
    slow = np.array([1.0, 2.0, 1.0, 2.0])
    measured = {"a": 0.1 * slow, "b": 0.3 * slow * np.array([1.0, 1.0, 1.1, 1.1])}
    costs, spread = stage_costs._costs(measured, alone=list(0.4 * slow), together=list(0.5 * slow))
    assert costs["a"].core_s == pytest.approx(0.15)
    assert costs["a"].spread == 0.02
    assert costs["b"].spread == pytest.approx(np.log([1, 1, 1.1, 1.1]).std(ddof=1) / 2)
    assert spread == pytest.approx(np.log(slow).std(ddof=1))


def test_features_that_share_an_fft(make: Any, tables: Tables, tmp_path: Path) -> None:
    """Alone each takes a tick per call, and so do both together: all of it is shared, as far as may be."""
    mels = [LogMel(n_fft=128, hop=64, n_mels=n, f_max_hz=500.0) for n in (4, 8)]
    described = [msgspec.structs.replace(WAVE, mel=mel) for mel in mels]
    bundles = [
        make(f"m{k}", one, shape=(1, 4 * (k + 1), 16), scale=k + 1.0) for k, one in enumerate(described)
    ]
    write_wav(tmp_path / "long.wav", np.zeros(10 * 2 * RATE_HZ), rate_hz=2 * RATE_HZ)
    found = planned(
        bundles,
        scores=[tables.member("m0", 1.0), tables.member("m1", 1.0)],
        truth=tables.truth_path,
        workload=tmp_path / "long.wav",
    )
    stages = {stage.name: stage.core_s for stage in found.stages}
    assert stages["spectrum 1"] == pytest.approx(0.98 * TICK_S / 10)
    assert stages["features 1"] == stages["features 2"] == pytest.approx(0.02 * TICK_S / 10)
    assert stages["resample to 1 kHz"] == pytest.approx(TICK_S / 10)


def test_variants_of_one_model_rule_each_other_out(make: Any, tables: Tables) -> None:
    bundles = [make("fp32"), make("int8", settings=Settings(batch_size=64)), make("fold", scale=2.0)]
    scores = [tables.member(name, 1.0) for name in ("fp32", "int8", "fold")]
    found = planned(bundles, scores=scores, truth=tables.truth_path)
    assert not {"fp32", "int8"} <= set(found.plan.counts)
    both = auc(tables.truth, sum(tables.scores.values()))
    assert both > found.plan.score  # the three together would have been better


def test_another_machine_is_an_estimate(make: Any, tables: Tables) -> None:
    options = {"scores": [tables.member("m", 1.0)], "truth": tables.truth_path, "workload": "200x10m"}
    bundle = make("m")
    here = planned([bundle], **options)
    there = planned([bundle], cpus=4, speed=0.5, **options)
    assert not there.machine.measured
    assert any("estimate" in note for note in there.notes)
    assert there.plan.time.expected_s < here.plan.time.expected_s / 4 / 0.5 + 2


def test_a_cascade_that_is_written_is_what_was_offered(
    make: Any, rng: np.random.Generator, tmp_path: Path
) -> None:
    """A cheap member that is sure of most windows, and a slow one that is always right."""
    tables = Tables(tmp_path, rng, rows=1000)
    truth = tables.truth
    roughly = tables.write("roughly", truth + rng.normal(0, 0.35, truth.shape))
    well = tables.write("well", truth + rng.normal(0, 0.02, truth.shape))
    bundles = [make("rough", settings=Settings(batch_size=128)), make("good", scale=2.0)]
    write_wav(tmp_path / "one.wav", rng.uniform(0.05, 0.9, 5 * RATE_HZ), rate_hz=RATE_HZ)
    found = planned(
        bundles,
        scores=[roughly, well],
        truth=tables.truth_path,
        workload="200x10m",
        max_drop=0.01,
        cascade=True,
        output=tmp_path / "e.alula",
    )
    offer = found.plan.cascade
    assert offer is not None
    assert offer.judged.cascade.cheap == "rough"
    assert offer.time.expected_s < 0.8 * found.plan.time.expected_s
    assert any("the ensemble is the cascade" in note for note in found.notes)
    manifest = read_ensemble(tmp_path / "e.alula")
    cascade = manifest.cascade
    assert cascade is not None
    assert (cascade.member, cascade.lower, cascade.upper) == (
        "rough",
        offer.judged.cascade.lower,
        offer.judged.cascade.upper,
    )
    assert isinstance(manifest.blend, Mean)
    counts = {"rough": 0, **offer.counts}
    assert manifest.blend.weights == (counts["rough"], counts["good"])
    assert [rung.members for rung in manifest.ladder] == [("rough", "good"), ("rough",)]
    with load(tmp_path / "e.alula", threads=1) as ensemble:
        (result,) = ensemble.map([tmp_path / "one.wav"])
    assert result.scores is not None
    assert len(result.scores) == 5
    none = planned(
        bundles,
        scores=[well, well],
        truth=tables.truth_path,
        cascade=True,
        output=tmp_path / "e.alula",
        replace=True,
    )
    assert any("no cascade is better" in note for note in none.notes)


def test_many_rows_are_judged_by_some_of_their_recordings(
    make: Any, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_score_s", lambda validation, names: 4 * planning._MOST_SCORE_S)
    found = planned([make("m")], scores=[tables.member("m", 1.0)], truth=tables.truth_path)
    assert (found.rows, found.recordings) == (30, 3)
    assert any("judged on 30 of 120 rows" in note for note in found.notes)
    assert found.plan.score != pytest.approx(auc(tables.truth, tables.scores["m"]))


def test_the_time_of_a_score_is_that_of_the_rows_that_are_kept(
    make: Any, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    took_s = iter([4 * planning._MOST_SCORE_S, 1.0])
    tried: list[int] = []

    def spied(*args: Any, **options: Any) -> Any:
        tried.append(options["exhaustive_up_to"])
        return make_plan(*args, **options)

    monkeypatch.setattr(planning, "_score_s", lambda validation, names: next(took_s))
    monkeypatch.setattr(planning, "make_plan", spied)
    planned([make("m")], scores=[tables.member("m", 1.0)], truth=tables.truth_path)
    # A minute for the search on all rows, those on two halves, and the one for a cascade.
    assert tried == [int(np.log2(60 / 3))]


def test_images_from_a_folder(make: Any, tmp_path: Path) -> None:
    description = ImageInput(height=16, width=16, mean=(0.5,), std=(0.25,))
    images = write_images(tmp_path / "images", per_class=4)
    bundle = make("m", description, labels=("blue", "green", "red"))
    found = planned([bundle], data=images, workload=images)
    assert (found.workload.rows, found.rows, found.metric) == (12, 12, "top1")
    assert {"decode", "features 1", "model m"} <= {stage.name for stage in found.stages}
    counted = planned([bundle], data=images, workload="5000")
    assert counted.workload.rows == 5000


def test_arrays_in_memory(make: Any, rng: np.random.Generator, tmp_path: Path) -> None:
    x = rng.random((40, 4)).astype(np.float32)
    np.save(tmp_path / "one.npy", x[0])
    found = planned(
        [make("m", ArrayInput(shape=(4,)))],
        data=(x, (x[:, :2] > 0.5).astype(np.int64)),
        workload=tmp_path / "one.npy",
    )
    assert (found.plan.score, found.rows) == (1.0, 40)


def test_a_deadline_that_is_too_short_says_what_would_fit(make: Any, tables: Tables) -> None:
    bundle, scores = make("m"), [tables.member("m", 1.0)]
    options = {"scores": scores, "truth": tables.truth_path, "workload": "2000x10m"}
    with pytest.raises(UsageError, match="too short for any bundle") as caught:
        planned([bundle], deadline="20s", **options)
    found = re.search(r"A deadline of (.*) would fit, or (\d+) of the 2000 files", str(caught.value))
    assert found is not None
    fitting = int(found[2])
    assert 0 < fitting < 2000
    enough = parse_duration_s(found[1].replace(" min", "m"))
    planned([bundle], deadline=1.01 * enough, **options)
    planned([bundle], deadline="20s", **{**options, "workload": f"{fitting - 1}x10m"})


def test_what_is_wrong_with_options_is_said_before_bundles_are_loaded(make: Any, tables: Tables) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("has none. Choose another", {"blend": Maximum()}),
        ("a blend without any", {"blend": Mean(weights=(1.0,))}),
        ("knows no truth", {"metric": "agreement"}),
        ("There is no metric `absent`", {"metric": "absent"}),
        ("Got 1 rounds of", {"rounds": 1}),
        ("rounds of 0 s", {"round_s": 0}),
    ]
    bundle, scores = make("m"), [tables.member("m", 1.0)]
    said: list[str] = []
    for match, options in cases:
        with pytest.raises(UsageError, match=match):
            planned([bundle], scores=scores, truth=tables.truth_path, report=said.append, **options)
    assert said == []


def test_files_that_cannot_be_read_are_left_out_and_said(make: Any, tmp_path: Path) -> None:
    description = ImageInput(height=16, width=16, mean=(0.5,), std=(0.25,))
    images = write_images(tmp_path / "images", per_class=4)
    (images / "blue" / "000.png").write_bytes(b"no picture")
    found = planned([make("m", description, labels=("blue", "green", "red"))], data=images, workload=images)
    assert (found.workload.rows, found.rows) == (11, 11)
    assert any(note.startswith("1 files cannot be read and are left out") for note in found.notes)
    assert any(note.startswith("1 of 12 files of the data cannot be read") for note in found.notes)


def test_a_recording_that_is_damaged_behind_what_is_tried_of_it(
    make: Any, tables: Tables, tmp_path: Path
) -> None:
    import soundfile

    wave = np.zeros(120 * RATE_HZ, np.float32)
    wave[110 * RATE_HZ] = np.nan
    soundfile.write(tmp_path / "long.wav", wave, RATE_HZ, subtype="FLOAT")
    found = planned(
        [make("m", settings=Settings(batch_size=64))],
        scores=[tables.member("m", 1.0)],
        truth=tables.truth_path,
        workload=tmp_path / "long.wav",
    )
    assert found.workload.rows == 120


def test_scores_that_are_no_numbers_are_said_with_the_bundle(
    make: Any, rng: np.random.Generator, tmp_path: Path
) -> None:
    x = rng.random((40, 4)).astype(np.float32)
    y = (x[:, :2] > 0.5).astype(np.int64)
    np.save(tmp_path / "one.npy", x[0])
    x[7, 1] = np.nan
    with pytest.raises(EngineError, match="`m` gave NaN or infinite scores for 1 of 40 rows, the first in 7"):
        planned([make("m", ArrayInput(shape=(4,)))], data=(x, y), workload=tmp_path / "one.npy")


def test_data_are_opened_once_with_the_classes_of_the_bundles(make: Any, tmp_path: Path) -> None:
    """A class that has no files yet is one that the bundles know."""
    description = ImageInput(height=16, width=16, mean=(0.5,), std=(0.25,))
    images = write_images(tmp_path / "images", per_class=4)
    (images / "violet").mkdir()
    bundle = make("m", description, labels=("blue", "green", "red", "violet"))
    assert planned([bundle], data=images, workload="5000").rows == 12


def test_no_cascade_is_called_worse_that_was_not_looked_for(
    make: Any, tables: Tables, rng: np.random.Generator, tmp_path: Path
) -> None:
    bundle = make("m")
    options = {"cascade": True, "output": tmp_path / "e.alula", "replace": True}
    scores = [tables.member("m", 1.0)]
    steps = PostProcessing(step=(Smoothing(kernel=(0.1, 0.8, 0.1)),))
    for more, why in (
        ({"blend": Rank()}, "by rank"),
        ({"post": steps}, "steps after the blend"),
        ({"max_drop": None}, "`max_drop`"),
    ):
        found = planned([bundle], scores=scores, truth=tables.truth_path, **options, **more)
        (note,) = (note for note in found.notes if "cascade" in note)
        assert note.startswith("no cascade was looked for") and why in note
    one = Tables(tmp_path, rng, rows=10)
    found = planned([bundle], scores=[one.member("m", 1.0)], truth=one.truth_path, **options)
    assert found.recordings == 1
    assert any("too few to judge a cascade" in note for note in found.notes)


def test_wrong_sources(make: Any, tables: Tables, tmp_path: Path) -> None:
    bundles = [make("m"), make("n", scale=2.0)]
    m, n = tables.member("m", 1.0), tables.member("n", 1.0)
    short = tmp_path / "short.csv"
    short.write_text("\n".join(m.read_text().splitlines()[:-1]))
    other = tables.write("other", tables.scores["m"], labels=("a", "c"))
    moved = tmp_path / "moved.csv"
    moved.write_text(m.read_text().replace("11.ogg", "99.ogg"))
    occupied = tmp_path / "file"
    occupied.touch()
    truth = tables.truth_path
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (UsageError, "give either tables", {}),
        (UsageError, "give either tables", {"scores": [m, n], "truth": truth, "data": tmp_path}),
        (UsageError, "give both --scores and --truth", {"scores": [m, n]}),
        (UsageError, "Got 1 tables of scores for 2 bundles", {"scores": [m], "truth": truth}),
        (DataError, "119 rows for `n`, and .* has 120", {"scores": [m, short], "truth": truth}),
        (DataError, "no row for `11.ogg`", {"scores": [m, moved], "truth": truth}),
        (DataError, "no column `b` of the 2 classes", {"scores": [m, other], "truth": truth}),
        (UsageError, "at one overlap", {"scores": [m, n], "truth": truth, "overlaps": (1, 2)}),
        (UsageError, "at one overlap", {"scores": [m, n], "truth": truth, "overlaps": (2,)}),
        (UsageError, "each a multiple", {"scores": [m, n], "truth": truth, "overlaps": (2, 3, 6)}),
        (UsageError, "Possible are 1, 2, 4, 5,", {"scores": [m, n], "truth": truth, "overlaps": (1, 3)}),
        (UsageError, "no workload", {"scores": [m, n], "truth": truth, "workload": "10x"}),
        (UsageError, "no folder that exists", {"scores": [m, n], "truth": truth, "workload": "absent"}),
        (UsageError, "--cpus is 0", {"scores": [m, n], "truth": truth, "cpus": 0}),
        (UsageError, "The margin is 1", {"scores": [m, n], "truth": truth, "margin": 1.0}),
        (UsageError, "give -o as well", {"scores": [m, n], "truth": truth, "cascade": True}),
        (UsageError, "not a regular file", {"scores": [m, n], "truth": truth, "save": tmp_path}),
        (BundleError, "exists already", {"scores": [m, n], "truth": truth, "output": bundles[0]}),
        (BundleError, "be written", {"scores": [m, n], "truth": truth, "output": occupied / "e.alula"}),
    ]
    for error, match, options in cases:
        with pytest.raises(error, match=match):
            planned(bundles, **options)
    with pytest.raises(UsageError, match="has no class `c`"):
        planned([bundles[0], make("c", labels=("a", "c"))], scores=[m, n], truth=truth)
    with pytest.raises(BundleError, match="does not exist"):
        planned([tmp_path / "absent.alula"], scores=[m], truth=truth)


def test_tables_that_cannot_judge(make: Any, tables: Tables, tmp_path: Path) -> None:
    bundle = make("m", activation="sigmoid")
    m = tables.member("m", 1.0)
    lines = m.read_text().splitlines()
    of_others = tmp_path / "of-others.csv"
    of_others.write_text("\n".join([f"{lines[0]},member", *(f"{line},x" for line in lines[1:])]))
    names = tmp_path / "names.csv"
    names.write_text("\n".join(["path,start_s,end_s,label", *(f"{p},{s},{e},c" for p, s, e in tables.keys)]))
    above = tables.write("above", tables.scores["m"] + 1)
    elsewhere = tmp_path / "elsewhere.csv"
    elsewhere.write_text(tables.truth_path.read_text().replace("0.ogg", "zero.ogg"))
    logits = Mean(of="logits")
    truth = tables.truth_path
    cases: list[tuple[str, dict[str, Any]]] = [
        ("has no `m`, but x", {"scores": [of_others], "truth": truth}),
        ("label `c` is none of the 2 classes", {"scores": [m], "truth": names}),
        ("no row for `zero.ogg`", {"scores": [m], "truth": elsewhere}),
        ("expected 0 to 1 for logits", {"scores": [above], "truth": truth, "blend": logits}),
    ]
    for match, options in cases:
        with pytest.raises(DataError, match=match):
            planned([bundle], **options)


def test_data_that_cannot_judge(make: Any, soundscapes: Path, tmp_path: Path) -> None:
    bundle = make("m")
    later = tmp_path / "later.csv"
    later.write_text("path,label,start_s,end_s\n" + "".join(f"{k}.wav,a;b,0.6,0.9\n" for k in range(6)))
    images = write_images(tmp_path / "images", per_class=4)
    given = {"workload": "20x60s"}
    with pytest.raises(DataError, match="None of its rows lies in a labelled sample"):
        planned([bundle], data=later, **given)
    with pytest.raises(DataError, match="are image files, and the bundles read audio"):
        planned([make("c", labels=("blue", "green", "red"))], data=images, **given)
    for k in range(4):
        (tmp_path / f"{k}.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"4 of 6 files cannot be read, for example: .*0\.wav"):
        planned([bundle], data=soundscapes, **given)


def test_what_has_no_windows_to_lay_more_densely(make: Any, soundscapes: Path, tmp_path: Path) -> None:
    overlapping = msgspec.structs.replace(WAVE, hop_s=0.5)
    steps = PostProcessing(step=(OverlapMean(segment_s=2.0),))
    for bundle, post in ((make("overlapping", overlapping), PostProcessing()), (make("m"), steps)):
        with pytest.raises(UsageError, match="windows overlap already"):
            planned([bundle], data=soundscapes, post=post, overlaps=(1, 2))
    images = write_images(tmp_path / "images", per_class=4)
    reads_images = make(
        "i", ImageInput(height=16, width=16, mean=(0.5,), std=(0.25,)), labels=("blue", "green", "red")
    )
    with pytest.raises(UsageError, match="read files as a whole"):
        planned([reads_images], data=images, overlaps=(1, 2))
