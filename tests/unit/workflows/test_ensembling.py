"""Ensembles made, loaded and run over files, on scripted members whose outputs are known."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import scipy.stats
from bundles import write_images, write_scripted_bundle, write_wav

from alula.bundle import (
    MANIFEST_NAME,
    DeclaredCascade,
    DeclaredRung,
    WholeFileVerdict,
    encode_ensemble,
    read_ensemble,
    read_manifest,
)
from alula.core import (
    Accuracy,
    ArrayInput,
    AudioInput,
    Blend,
    CentralMaximum,
    CutOff,
    Geometric,
    ImageInput,
    Mean,
    OverlapMean,
    Power,
    Rank,
    Settings,
    Smoothing,
    TensorSpec,
    View,
)
from alula.engines.fake import FakeSession
from alula.ensemble import EnsembleSession, session
from alula.errors import BundleError, UsageError
from alula.features import MelSpectrograms
from alula.pipeline import Progress
from alula.postprocess import PostProcessing, Track, apply_steps
from alula.workflows import Ensemble, ensembling, load, make_ensemble, predict

RATE_HZ = 1_000
WAVE = AudioInput(sample_rate_hz=RATE_HZ, window_s=1.0)
CONTEXT = AudioInput(sample_rate_hz=RATE_HZ, window_s=2.0, hop_s=1.0)


def scores_spec(*shape: int) -> tuple[TensorSpec, ...]:
    return (TensorSpec("scores", "float32", ("b", *shape)),)


class Maker:
    """Writes bundles of scripted members: each gives the first values of its input times a scale."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def arrays(self, name: str, labels: Sequence[str] | None = ("a", "b"), **fields: object) -> Path:
        return self._write(name, ArrayInput(shape=(4,)), (4,), labels, **fields)

    def audio(self, name: str, description: AudioInput = WAVE, **fields: object) -> Path:
        return self._write(name, description, (description.window_samples,), ("a", "b"), **fields)

    def _write(
        self,
        name: str,
        description: AudioInput | ArrayInput,
        shape: tuple[int, ...],
        labels: Sequence[str] | None,
        **fields: object,
    ) -> Path:
        labels = None if labels is None else tuple(labels)
        outputs = fields.pop("outputs", scores_spec(2 if labels is None else len(labels)))
        return write_scripted_bundle(
            self.folder / f"{name}.alula",
            scratch=self.folder / "scratch",
            description=description,
            outputs=outputs,  # type: ignore[arg-type]
            shape=shape,
            labels=labels,
            **fields,  # type: ignore[arg-type]
        )


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


@pytest.fixture
def arrays(tmp_path: Path, rng: np.random.Generator) -> list[Path]:
    """Seven files of four values."""
    (tmp_path / "in").mkdir()
    paths = [tmp_path / "in" / f"{index}.npy" for index in range(7)]
    for path in paths:
        np.save(path, rng.uniform(0.1, 1, 4).astype(np.float32))
    return paths


@pytest.fixture
def recordings(tmp_path: Path, rng: np.random.Generator) -> list[Path]:
    """Recordings of 1, 2.5 and 6 s."""
    (tmp_path / "in").mkdir()
    return [
        write_wav(tmp_path / "in" / f"{k}.wav", rng.uniform(0.1, 0.9, round(RATE_HZ * s)), rate_hz=RATE_HZ)
        for k, s in enumerate((1.0, 2.5, 6.0))
    ]


def wave_of(path: Path) -> np.ndarray:
    import soundfile

    return np.asarray(soundfile.read(path, dtype="float32")[0])


def rows_of(path: Path, n: int) -> np.ndarray:
    """What a scripted member gives for the first n seconds, each by itself."""
    return np.stack([wave_of(path)[k * RATE_HZ :][:2] for k in range(n)])


def table(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


def values_of(path: Path, fixed: int) -> np.ndarray:
    return np.array([[float(value) for value in row[fixed:]] for row in table(path)[1]])


def opened(path: Path, threads: int = 2) -> Ensemble:
    loaded = load(path, threads=threads)
    assert isinstance(loaded, Ensemble)
    return loaded


def test_members_of_different_labels_blend_by_name(maker: Maker, arrays: list[Path], tmp_path: Path) -> None:
    first = maker.arrays("first", ("a", "b", "c"))
    second = maker.arrays("second", ("c", "a"), scale=2.0, settings=Settings(instances=2, batch_size=2))
    output = tmp_path / "both.alula"
    manifest = make_ensemble([first, second], output, blend=Mean(weights=(3.0, 1.0)))
    assert manifest == read_ensemble(output)
    assert manifest.labels == ("a", "b", "c")
    assert [member.name for member in manifest.members] == ["first", "second"]
    for bundle in (first, second):
        shutil.rmtree(bundle)  # the ensemble needs them no more
    with opened(output) as ensemble:
        report = predict(ensemble, arrays, output=tmp_path / "scores.csv")
        mapped = list(ensemble.map(arrays))
    x = np.stack([np.load(path) for path in arrays])
    expected = np.stack(
        [0.75 * x[:, 0] + 0.25 * 2 * x[:, 1], x[:, 1], 0.75 * x[:, 2] + 0.25 * 2 * x[:, 0]], axis=1
    )
    assert table(tmp_path / "scores.csv")[0] == ["path", "a", "b", "c"]
    np.testing.assert_allclose(values_of(tmp_path / "scores.csv", 1), expected, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([each.scores for each in mapped]), expected, rtol=1e-6)
    assert (report.job.tasks_done, report.recipe) == (7, "fake/fp32 + fake/fp32")
    assert report.promised_per_s is None


@pytest.mark.parametrize(
    ("blend", "formula"),
    [
        (Mean(), lambda x, y: (sigmoid(x) + sigmoid(y)) / 2),
        (Mean(of="logits"), lambda x, y: sigmoid((x + y) / 2)),
        (Geometric(), lambda x, y: np.sqrt(sigmoid(x) * sigmoid(y))),
        (Power(), lambda x, y: np.sqrt((sigmoid(x) ** 2 + sigmoid(y) ** 2) / 2)),
    ],
    ids=["scores", "logits", "geometric", "power"],
)
def test_where_the_activation_is_applied(
    maker: Maker, arrays: list[Path], tmp_path: Path, blend: Blend, formula: object
) -> None:
    bundles = [
        maker.arrays(name, activation="sigmoid", scale=scale) for name, scale in (("p", 3.0), ("q", -2.0))
    ]
    make_ensemble(bundles, tmp_path / "e.alula", blend=blend)
    x = np.stack([np.load(path) for path in arrays])[:, :2]
    with opened(tmp_path / "e.alula") as ensemble:
        got = np.concatenate([each.scores for each in ensemble.map(arrays)])
    np.testing.assert_allclose(got, formula(3.0 * x, -2.0 * x), rtol=1e-5)  # type: ignore[operator]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x.astype(np.float64))))


def test_a_rank_blend_over_a_job(maker: Maker, recordings: list[Path], tmp_path: Path) -> None:
    bundles = [maker.audio("p"), maker.audio("q", scale=-1.0)]
    steps = (CutOff(below=0.6, factor=0.0),)
    make_ensemble(bundles, tmp_path / "e.alula", blend=Rank(weights=(3, 1)), post=PostProcessing(step=steps))
    with opened(tmp_path / "e.alula") as ensemble:
        predict(ensemble, recordings, output=tmp_path / "scores.csv")
        with pytest.raises(UsageError, match="no result for a file before all files"):
            ensemble.map(recordings)
    windows = [
        [wave_of(p)[k * RATE_HZ :][:2] for k in range(n)] for p, n in zip(recordings, (1, 3, 6), strict=True)
    ]
    x = np.array([row for file in windows for row in file])
    ranks = [scipy.stats.rankdata(sign * x, axis=0) / len(x) for sign in (1, -1)]
    blended = 0.75 * ranks[0] + 0.25 * ranks[1]
    files = np.split(blended, [1, 4])
    expected = [apply_steps(steps, Track(None, None, part.astype(np.float32))).scores for part in files]
    np.testing.assert_allclose(values_of(tmp_path / "scores.csv", 3), np.concatenate(expected), rtol=1e-5)


def test_context_around_each_row(maker: Maker, recordings: list[Path], tmp_path: Path) -> None:
    """A member that sees 2 s every second, beside one that sees 1 s: rows are about the same seconds."""
    bundles = [maker.audio("plain"), maker.audio("wide", CONTEXT)]
    post = PostProcessing(view={"wide": View(keep_s=1.0)})
    make_ensemble(bundles, tmp_path / "e.alula", blend=Mean(weights=(1, 2)), post=post)
    with opened(tmp_path / "e.alula") as ensemble:
        assert len(ensemble.demands) == 2
        results = list(ensemble.map(recordings))
    for result, path, n in zip(results, recordings, (1, 3, 6), strict=True):
        wave = np.concatenate([wave_of(path), np.zeros(2 * RATE_HZ, np.float32)])
        led = np.concatenate([np.zeros(RATE_HZ // 2, np.float32), wave])
        assert result.start_s is not None
        assert result.end_s is not None
        np.testing.assert_array_equal(result.start_s, np.arange(n))
        np.testing.assert_array_equal(result.end_s, np.arange(n) + 1.0)
        expected = [(wave[k * RATE_HZ :][:2] + 2 * led[k * RATE_HZ :][:2]) / 3 for k in range(n)]
        np.testing.assert_allclose(result.scores, expected, rtol=1e-5)


def stretches(maker: Maker) -> list[Path]:
    """One that gives a row of 1 s, and one that gives three rows of 4 s every 3 s: each sees 2 s of them."""
    stretch = AudioInput(sample_rate_hz=RATE_HZ, window_s=4.0, hop_s=3.0)
    return [maker.audio("plain"), maker.audio("joint", stretch, outputs=scores_spec(3, 2))]


JOINT = {"joint": View(rows=3, keep_s=1.0)}


def plain_and_joint(path: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
    """What the members of `stretches` give for each of the first n seconds."""
    wave = np.concatenate([wave_of(path), np.zeros(RATE_HZ, np.float32)])
    led = np.concatenate([np.zeros(RATE_HZ // 2, np.float32), wave])
    plain = np.stack([wave[k * RATE_HZ :][:2] for k in range(n)])
    # The scripted member gives the first values of its window, two for each of its rows.
    return plain, np.stack([led[k // 3 * 3 * RATE_HZ + 2 * (k % 3) :][:2] for k in range(n)])


def test_three_rows_of_a_window_beside_one_of_each(
    maker: Maker, recordings: list[Path], tmp_path: Path
) -> None:
    post = PostProcessing(view=JOINT, step=(Smoothing(kernel=(0.25, 0.5, 0.25)),))
    make_ensemble(stretches(maker), tmp_path / "e.alula", blend=Mean(weights=(1, 2)), post=post)
    seen: list[Progress] = []
    with opened(tmp_path / "e.alula") as ensemble:
        results = list(ensemble.map(recordings))
        kept = [list(ensemble.map(recordings, journal=tmp_path / "journal")) for _ in range(2)]
        report = predict(ensemble, recordings, output=tmp_path / "scores.csv", progress=seen.append)
    for result, path, n in zip(results, recordings, (1, 3, 6), strict=True):
        plain, joint = plain_and_joint(path, n)
        track = Track(np.arange(n, dtype=float), np.arange(n) + 1.0, (plain + 2 * joint) / 3)
        np.testing.assert_array_equal(result.start_s, track.start_s)
        np.testing.assert_array_equal(result.end_s, track.end_s)
        np.testing.assert_allclose(result.scores, apply_steps(post.step, track).scores, rtol=1e-5)
    written = values_of(tmp_path / "scores.csv", 1)
    for again in kept:
        for result, other in zip(results, again, strict=True):
            np.testing.assert_array_equal(result.start_s, other.start_s)
            np.testing.assert_array_equal(result.scores, other.scores)
    np.testing.assert_allclose(written[:, 0], [0, 0, 1, 2, *range(6)])
    np.testing.assert_allclose(written[:, 2:], np.concatenate([one.scores for one in results]), rtol=1e-5)
    assert report.job.samples == 10
    # Each of the three windows of three rows counts as such while it is computed.
    assert seen[-1].samples == 12


def test_ranks_where_a_window_gives_several_rows(
    maker: Maker, recordings: list[Path], tmp_path: Path
) -> None:
    """Rows behind the end of a recording have no rank."""
    make_ensemble(stretches(maker), tmp_path / "e.alula", blend=Rank(), post=PostProcessing(view=JOINT))
    with opened(tmp_path / "e.alula") as ensemble:
        predict(ensemble, recordings, output=tmp_path / "scores.csv")
    files = [plain_and_joint(path, n) for path, n in zip(recordings, (1, 3, 6), strict=True)]
    members = [np.concatenate(column) for column in zip(*files, strict=True)]
    ranks = [scipy.stats.rankdata(x, axis=0) / len(x) for x in members]
    np.testing.assert_allclose(values_of(tmp_path / "scores.csv", 3), (ranks[0] + ranks[1]) / 2, rtol=1e-5)


def test_what_there_is_not_for_several_rows_of_a_window(maker: Maker, tmp_path: Path) -> None:
    # Rows of a second every half second, three of a window.
    dense = AudioInput(sample_rate_hz=RATE_HZ, window_s=2.5, hop_s=1.5)
    bundles = [maker.audio("plain"), maker.audio("joint", dense, outputs=scores_spec(3, 2))]
    cascade = DeclaredCascade(member="plain", lower=(0, 0), upper=(1, 1), share=0.5)
    sparse = [
        DeclaredRung(members=("plain", "joint"), score=2.0),
        DeclaredRung(members=("plain",), every=2, score=1.0),
    ]
    joint = View(rows=3, keep_s=1.0)
    cases: list[tuple[View, dict[str, object], str]] = [
        (joint, {"cascade": cascade}, "A cascade got a member that gives several rows"),
        (joint, {"ladder": sparse}, "no member gives several rows of a window"),
        (msgspec.structs.replace(joint, hop_s=0.5), {}, "expected `rows` without them"),
        (msgspec.structs.replace(joint, frames=CentralMaximum(central_s=1.0)), {}, "expected `rows` without"),
        (msgspec.structs.replace(joint, rows=2), {}, "its view says 2 rows"),
    ]
    for view, options, says in cases:
        post = PostProcessing(
            view={"plain": View(hop_s=0.5), "joint": view}, step=(OverlapMean(segment_s=1.0),)
        )
        with pytest.raises(UsageError, match=says):
            make_ensemble(bundles, tmp_path / "e.alula", post=post, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "e.alula").exists()


def test_a_cascade_is_checked_again_when_it_is_loaded(maker: Maker, tmp_path: Path) -> None:
    folder = tmp_path / "e.alula"
    manifest = make_ensemble(stretches(maker), folder, post=PostProcessing(view=JOINT))
    cascade = DeclaredCascade(member="plain", lower=(0, 0), upper=(1, 1), share=0.5)
    for changed, says in (
        (cascade, "a member that gives several rows of a window"),
        (msgspec.structs.replace(cascade, member="x"), "begins with `x`"),
        (msgspec.structs.replace(cascade, lower=(0,)), "1 and 2 bounds for 2"),
    ):
        forged = encode_ensemble(msgspec.structs.replace(manifest, cascade=changed))
        (folder / MANIFEST_NAME).write_bytes(forged)
        with pytest.raises(BundleError, match=says):
            load(folder, threads=1)


@pytest.mark.parametrize("layout", ["tc", "ct"])
def test_frames_of_a_second_output(maker: Maker, recordings: list[Path], tmp_path: Path, layout: str) -> None:
    frames = (4, 2) if layout == "tc" else (2, 4)
    outputs = (*scores_spec(2), TensorSpec("frames", "float32", ("b", *frames)))
    bundle = maker.audio("sed", outputs=outputs, activation="sigmoid")
    view = View(output="frames", frames=CentralMaximum(central_s=0.5, layout=layout))  # type: ignore[arg-type]
    make_ensemble([bundle], tmp_path / "e.alula", post=PostProcessing(view={"sed": view}))
    with opened(tmp_path / "e.alula") as ensemble:
        (result,) = ensemble.map(recordings[:1])
    first = wave_of(recordings[0])[:8].reshape(frames)
    central = (first if layout == "tc" else first.T)[1:3]
    np.testing.assert_allclose(result.scores, [sigmoid(central.max(axis=0))], rtol=1e-5)


def test_steps_see_one_file_at_a_time(maker: Maker, recordings: list[Path], tmp_path: Path) -> None:
    steps = (Smoothing(kernel=(0.25, 0.5, 0.25)), CutOff(below=0.7))
    make_ensemble([maker.audio("m")], tmp_path / "e.alula", post=PostProcessing(step=steps))
    with opened(tmp_path / "e.alula") as ensemble:
        results = list(ensemble.map(recordings))
    for result, path, n in zip(results, recordings, (1, 3, 6), strict=True):
        rows = np.stack([wave_of(path)[k * RATE_HZ :][:2] for k in range(n)])
        np.testing.assert_allclose(
            result.scores, apply_steps(steps, Track(None, None, rows)).scores, rtol=1e-5
        )


def test_equal_features_are_computed_once_and_each_file_is_read_once(
    maker: Maker, recordings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alula.core import LogMel

    computed: list[int] = []
    read: list[Path] = []
    real_transform, real_open = MelSpectrograms.transform_into, ensembling.open_audio

    def counted(self: MelSpectrograms, wave: np.ndarray, outs: Sequence[np.ndarray]) -> None:
        computed.append(len(outs))
        real_transform(self, wave, outs)

    def noted(path: Path) -> object:
        read.append(path)
        return real_open(path)

    def mel(n_mels: int, win: int | None = None) -> AudioInput:
        spectrogram = LogMel(n_fft=256, hop=100, win=win, n_mels=n_mels)
        return AudioInput(sample_rate_hz=RATE_HZ, window_s=1.0, mel=spectrogram)

    descriptions = [mel(8), mel(8, win=256), mel(5)]
    bundles = [
        write_scripted_bundle(
            tmp_path / f"m{k}.alula",
            scratch=tmp_path / "scratch",
            description=description,
            outputs=scores_spec(2),
            shape=(1, description.mel.n_mels if description.mel else 0, 11),
        )
        for k, description in enumerate(descriptions)
    ]
    make_ensemble(bundles, tmp_path / "e.alula")
    monkeypatch.setattr(MelSpectrograms, "transform_into", counted)
    monkeypatch.setattr(ensembling, "open_audio", noted)
    with opened(tmp_path / "e.alula") as ensemble:
        assert len(ensemble.demands) == 2
        list(ensemble.map(recordings))
    assert computed == [2] * 10
    assert sorted(read) == recordings


def test_images_are_decoded_once(maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = ensembling.read_image

    def noted(path: Path) -> np.ndarray:
        read.append(path)
        return real(path)

    images = write_images(tmp_path / "in", per_class=1)
    files = sorted(images.rglob("*.png"))
    descriptions = [
        ImageInput(height=16, width=16),
        ImageInput(height=16, width=16, mean=(0.5,), std=(0.25,)),
    ]
    bundles = [
        write_scripted_bundle(
            tmp_path / f"m{k}.alula",
            scratch=tmp_path / "scratch",
            description=description,
            outputs=scores_spec(2),
            shape=(3, 16, 16),
        )
        for k, description in enumerate(descriptions)
    ]
    make_ensemble(bundles, tmp_path / "e.alula")
    monkeypatch.setattr(ensembling, "read_image", noted)
    with opened(tmp_path / "e.alula") as ensemble:
        results = list(ensemble.map(files))
    assert sorted(read) == files
    for result, path in zip(results, files, strict=True):
        red = real(path)[0, :2, 0] / 255.0
        assert result.start_s is None
        np.testing.assert_allclose(result.scores, [(red + (red - 0.5) / 0.25) / 2], rtol=1e-5, atol=1e-6)


def test_a_file_that_does_not_fit_fails_alone(maker: Maker, arrays: list[Path], tmp_path: Path) -> None:
    make_ensemble([maker.arrays("p")], tmp_path / "e.alula")
    np.save(arrays[2], np.zeros(3, np.float32))
    with opened(tmp_path / "e.alula") as ensemble:
        errors = [result.error for result in ensemble.map(arrays)]
    assert [error is None for error in errors] == [True, True, False, True, True, True, True]
    assert str(errors[2]) == f"{arrays[2]}: its shape is (3,); expected (4,)."


def test_idle_threads_of_onnxruntime_do_not_spin_beside_others(maker: Maker) -> None:
    manifest = read_manifest(maker.arrays("p", settings=Settings(knobs={"arena": False})))
    assert ensembling._beside_others(manifest) == manifest
    deployed = msgspec.structs.replace(manifest.chosen, recipe="onnxruntime/fp32")
    patient = ensembling._beside_others(
        msgspec.structs.replace(manifest, chosen=deployed, fallbacks=(deployed,))
    )
    for each in (patient.chosen, *patient.fallbacks):
        assert each.settings.knobs == {"arena": False, "spin": False}


def test_members_never_exceed_the_budget(
    maker: Maker, arrays: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Settings] = []
    real = ensembling.start

    def noted(*args: object, **options: object) -> object:
        running = real(*args, **options)  # type: ignore[arg-type]
        loaded.append(running.settings)
        return running

    monkeypatch.setattr(ensembling, "start", noted)
    bundles = [
        maker.arrays(f"m{k}", settings=settings)
        for k, settings in enumerate((Settings(threads=4), Settings(instances=4, batch_size=2), Settings()))
    ]
    make_ensemble(bundles, tmp_path / "e.alula")
    with opened(tmp_path / "e.alula", threads=1) as ensemble:
        assert [each.total_threads for each in loaded] == [1, 1, 1]
        assert (ensemble.settings.total_threads, ensemble.threads) == (1, 1)
        list(ensemble.map(arrays))


def test_every_session_is_closed(maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[FakeSession] = []

    def close(session: FakeSession) -> None:
        closed.append(session)

    monkeypatch.setattr(FakeSession, "close", close)
    make_ensemble([maker.arrays("p"), maker.arrays("q")], tmp_path / "e.alula")
    opened(tmp_path / "e.alula").close()
    assert len(closed) == 2
    closed.clear()
    damaged = tmp_path / "e.alula" / "members" / "q"
    real = ensembling.start

    def fails_at_the_second(path: Path, *args: object, **options: object) -> object:
        if path == damaged:
            raise BundleError(path, "nothing is right here")
        return real(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ensembling, "start", fails_at_the_second)
    with pytest.raises(BundleError, match="nothing is right here"):
        load(tmp_path / "e.alula", threads=1)
    assert len(closed) == 1


def test_two_bundles_of_one_name_and_odd_names(maker: Maker, tmp_path: Path) -> None:
    first = maker.arrays("great tit (1)")
    manifest = make_ensemble([first, first, first], tmp_path / "e.alula")
    names = [member.name for member in manifest.members]
    assert names == ["great_tit__1_", "great_tit__1_-2", "great_tit__1_-3"]
    opened(tmp_path / "e.alula").close()


def test_changed_members_are_found_when_loading(maker: Maker, tmp_path: Path) -> None:
    make_ensemble([maker.arrays("p")], tmp_path / "e.alula")
    (tmp_path / "e.alula" / "members" / "p" / "search.jsonl").write_text("x")
    with pytest.raises(BundleError, match="expected 0"):
        load(tmp_path / "e.alula")


def test_what_does_not_go_together(maker: Maker, tmp_path: Path) -> None:
    plain = maker.arrays("plain")
    softmax = maker.arrays("softmax", ("a", "b", "c"), activation="softmax")
    other_softmax = maker.arrays("other", ("a", "b"), activation="softmax")
    audio = maker.audio("audio")
    frames = maker.audio("frames", outputs=(TensorSpec("f", "float32", ("b", 4, 2)),))
    long = maker.audio("long", CONTEXT)
    logits = Mean(of="logits")

    def view(**fields: object) -> PostProcessing:
        return PostProcessing(view={"audio": View(**fields)})  # type: ignore[arg-type]

    cases: list[tuple[list[Path], dict[str, object], str]] = [
        ([], {}, "got no bundles"),
        ([plain, audio], {}, "Model 2 reads audio and the first one array"),
        ([audio, long], {}, "a row for 2 s every 1 s"),
        ([plain, softmax], {"blend": logits}, "activations none and softmax"),
        ([softmax, other_softmax], {"blend": logits}, "no common zero"),
        ([softmax], {"blend": logits, "labels": ["a"]}, "no common zero"),
        ([plain], {"blend": Mean(weights=(1, 1))}, "got 2 values; expected 1"),
        ([plain], {"labels": ["z"]}, "No member knows the label `z`"),
        ([plain], {"post": PostProcessing(step=(Smoothing(kernel=(1,)),))}, "need rows that follow"),
        ([plain], {"post": PostProcessing(view={"plian": View()})}, "Did you mean `plain`"),
        ([plain], {"post": PostProcessing(view={"plain": View(keep_s=1)})}, "reads no recordings"),
        ([audio], {"post": view(output="score")}, "Did you mean `scores`"),
        ([audio], {"post": view(keep_s=2.0)}, "`keep_s` got 2"),
        ([audio], {"post": view(frames=CentralMaximum(central_s=2.0))}, "`central_s` 2; expected at most"),
        ([audio], {"post": view(frames=CentralMaximum(central_s=1.0))}, "expected 3 axes"),
        ([frames], {}, "expected 2 axes"),
    ]
    for bundles, options, says in cases:
        with pytest.raises(UsageError, match=says):
            make_ensemble(bundles, tmp_path / "e.alula", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "e.alula").exists()


def test_no_ensemble_of_ensembles(maker: Maker, tmp_path: Path) -> None:
    make_ensemble([maker.arrays("p")], tmp_path / "e.alula")
    with pytest.raises(BundleError, match="expected a bundle of one model"):
        make_ensemble([tmp_path / "e.alula"], tmp_path / "f.alula")


def test_what_was_made_for_whole_files_is_taken_apart_only_as_it_was_made(
    maker: Maker, tmp_path: Path
) -> None:
    accuracy = Accuracy(
        metric="cosine", n=9, baseline=1, chosen=1, drop=0, drop_low=0, drop_high=0, limit=0.01
    )
    verdict = WholeFileVerdict(accuracy=accuracy, gated=False, computed_share=0.6)
    view = View(output="scores")
    net, other = maker.audio("net"), maker.audio("other")
    made = {"post": PostProcessing(view={"net": view}), "verdicts": {"net": verdict}}
    make_ensemble([net], tmp_path / "plain.alula", **made)  # type: ignore[arg-type]
    manifest = make_ensemble([tmp_path / "plain.alula", other], tmp_path / "both.alula")
    assert [(each.view, each.whole_files) for each in manifest.members] == [(view, verdict), (View(), None)]
    steps = PostProcessing(view={"net": view}, step=(CutOff(below=0.1),))
    cases: dict[str, dict[str, object]] = {
        "labels": {"labels": ["b", "a"]},
        "blend": {"blend": Mean(class_weights={"a": (2,)})},
        "prior": {"prior": [0.1, 0.2]},
        "ladder": {"ladder": [DeclaredRung(members=("net",), score=1.0)]},
        "cascade": {"cascade": DeclaredCascade(member="net", lower=(0, 0), upper=(1, 1), share=1)},
        "steps": {"post": steps},
    }
    for what, options in cases.items():
        changed = tmp_path / f"{what}.alula"
        make_ensemble([net], changed, **{**made, **options})  # type: ignore[arg-type]
        with pytest.raises(BundleError, match=f"ensemble with its own {what}, which would be lost"):
            make_ensemble([changed, other], tmp_path / "again.alula")
    assert not (tmp_path / "again.alula").exists()


@pytest.mark.parametrize("blend", [Mean(weights=(0, 1, 3)), Mean(of="logits", weights=(2, 1, 1))])
def test_a_cascade(
    maker: Maker, arrays: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blend: Mean
) -> None:
    """The first member alone where it is sure, all of them where it is not; one without weight has no say."""
    scales = (3.0, -2.0, 1.0)
    bundles = [
        maker.arrays(name, activation="sigmoid", scale=scale)
        for name, scale in zip("pqr", scales, strict=True)
    ]
    cascade = DeclaredCascade(member="p", lower=(0.7, 0.9), upper=(0.85, 0.8), share=0.3)
    manifest = make_ensemble(bundles, tmp_path / "e.alula", blend=blend, cascade=cascade)
    assert manifest.cascade == read_ensemble(tmp_path / "e.alula").cascade == cascade
    x = np.stack([np.load(path) for path in arrays])[:, :2]
    first = sigmoid(3.0 * x)
    assert blend.weights is not None
    shares = np.array(blend.weights) / sum(blend.weights)
    if blend.of == "logits":
        whole = sigmoid(sum(share * scale * x for share, scale in zip(shares, scales, strict=True)))
    else:
        whole = sum(share * sigmoid(scale * x) for share, scale in zip(shares, scales, strict=True))
    uncertain = (first[:, 0] >= 0.7) & (first[:, 0] <= 0.85)
    assert 0 < uncertain.sum() < len(x)
    asked = [0, 0, 0]
    scores_of = EnsembleSession._scores_of

    def counted(self: EnsembleSession, place: int, inputs: Any, **options: Any) -> Any:
        asked[place] += len(inputs[0])
        return scores_of(self, place, inputs, **options)

    with opened(tmp_path / "e.alula") as ensemble:
        assert ensemble.settings.batch_size > 32
        monkeypatch.setattr(EnsembleSession, "_scores_of", counted)
        got = np.concatenate([each.scores for each in ensemble.map(arrays)])
    np.testing.assert_allclose(got, np.where(uncertain[:, None], whole, first), rtol=1e-5)
    # Nobody is asked twice.
    assert asked == [len(x), *(uncertain.sum() if weight else 0 for weight in blend.weights[1:])]


def test_batches_of_a_cascade_are_as_small_as_its_rows_are_few(
    maker: Maker, arrays: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a member that is asked of some rows only: with room for 64 rows, 8 of them are four batches of 2."""
    monkeypatch.setattr(session, "_MAX_BATCH_BYTES", 32 * 16)
    bundles = [maker.arrays(name, activation="sigmoid") for name in "pq"]
    cascade = DeclaredCascade(member="p", lower=(0.0, 0.0), upper=(1.0, 1.0), share=0.125)
    make_ensemble(bundles, tmp_path / "e.alula", cascade=cascade)
    sizes: list[int] = []
    call = FakeSession.run

    def noted(self: FakeSession, inputs: Any) -> Any:
        sizes.append(len(inputs[0]))
        return call(self, inputs)

    with opened(tmp_path / "e.alula") as ensemble:
        monkeypatch.setattr(FakeSession, "run", noted)
        got = np.concatenate([each.scores for each in ensemble.map(arrays)])
    assert sizes == [4, 3, 2, 2, 2, 1]
    x = np.stack([np.load(path) for path in arrays])[:, :2]
    np.testing.assert_allclose(got, sigmoid(x), rtol=1e-5)


def test_what_is_no_cascade_ladder_or_prior(maker: Maker, tmp_path: Path) -> None:
    bundles = [maker.arrays("p"), maker.arrays("q", ("a",))]
    bands = DeclaredCascade(member="p", lower=(0.1, 0.1), upper=(0.9, 0.9), share=0.5)
    cases: list[tuple[str, dict[str, object]]] = [
        ("begins with `x`", {"cascade": msgspec.structs.replace(bands, member="x")}),
        ("`q` does not know all classes", {"cascade": msgspec.structs.replace(bands, member="q")}),
        ("1 and 2 bounds for 2", {"cascade": msgspec.structs.replace(bands, lower=(0.1,))}),
        ("it has no cascade", {"cascade": bands, "blend": Rank()}),
        ("names the member `x`", {"ladder": [DeclaredRung(members=("p", "q", "x"), score=1.0)]}),
        ("expected all of them", {"ladder": [DeclaredRung(members=("p",), score=1.0)]}),
        ("expected one finite each", {"prior": [0.1]}),
        (
            "expected all members of the cascade, or the one",
            {
                "cascade": bands,
                "ladder": [
                    DeclaredRung(members=("p", "q"), score=2.0),
                    DeclaredRung(members=("q",), score=1.0),
                ],
            },
        ),
    ]
    for match, options in cases:
        with pytest.raises(UsageError, match=match):
            make_ensemble(bundles, tmp_path / "e.alula", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "e.alula").exists()


def test_a_hop_of_ones_own(maker: Maker, recordings: list[Path], tmp_path: Path) -> None:
    """Windows of a second every half second, one row of a second made of the three that reach into it."""
    post = PostProcessing(view={"p": View(hop_s=0.5)}, step=(OverlapMean(segment_s=1.0),))
    make_ensemble([maker.audio("p")], tmp_path / "e.alula", post=post)
    with opened(tmp_path / "e.alula") as ensemble:
        results = list(ensemble.map(recordings))
    for result, path, n in zip(results, recordings, (1, 3, 6), strict=True):
        wave = np.concatenate([wave_of(path), np.zeros(2 * RATE_HZ, np.float32)])
        windows = 2 * math.ceil(len(wave_of(path)) / RATE_HZ - 1 - 1e-9) + 1 if n != 3 else 4
        begins = [k * RATE_HZ // 2 for k in range(windows)]
        track = Track(
            np.array(begins) / RATE_HZ,
            np.array(begins) / RATE_HZ + 1.0,
            np.stack([wave[begin:][:2] for begin in begins]),
        )
        expected = apply_steps((OverlapMean(segment_s=1.0),), track)
        np.testing.assert_allclose(result.scores, expected.scores, rtol=1e-5)
        np.testing.assert_allclose(result.start_s, expected.start_s)
    for view, match in ((View(hop_s=1.5), "at most its window"), (View(hop_s=0.5), "reads no recordings")):
        bundle = maker.audio("w") if view.hop_s == 1.5 else maker.arrays("y")
        name = bundle.name.removesuffix(".alula")
        with pytest.raises(UsageError, match=match):
            make_ensemble([bundle], tmp_path / "f.alula", post=PostProcessing(view={name: view}))


def test_segments_end_with_the_recording_or_the_hop_is_refused(
    maker: Maker, recordings: list[Path], tmp_path: Path
) -> None:
    """Windows of a second every 0.4 s over 2.5 s end at 2.6 s, where another segment of 0.5 s has begun."""
    plain, wide, joint = (
        maker.audio("plain"),
        maker.audio("wide", CONTEXT),
        stretches(Maker(tmp_path / "s"))[1],
    )
    cases: list[tuple[Path, View, tuple[float, ...], str]] = [
        (plain, View(hop_s=0.4), (0.5,), r"rows of 1 s every 0\.4 s for segments of 0\.5 s.*hop of 0\.25 s"),
        (plain, View(hop_s=0.5), (0.75,), r"A hop of 0\.25 s would do"),
        (plain, View(hop_s=0.3), (0.9,), r"A hop of 0\.1 s would do"),
        (wide, View(keep_s=1.5), (1.0,), r"rows of 1\.5 s every 1 s .* hop of 0\.5 s"),
        (plain, View(hop_s=0.5), (1.0, 1.5), r"rows of 1 s every 1 s for segments of 1\.5 s"),
        (joint, JOINT["joint"], (1.5,), r"rows of 1 s every 1 s for segments of 1\.5 s"),
        (plain, View(), (1 / 3,), "expected whole numbers of samples"),
    ]
    for bundle, view, segments, says in cases:
        post = PostProcessing(
            view={bundle.stem: view}, step=tuple(OverlapMean(segment_s=each) for each in segments)
        )
        with pytest.raises(UsageError, match=says):
            make_ensemble([bundle], tmp_path / "e.alula", post=post)
    for number, (bundle, view, segments) in enumerate(
        [
            (plain, View(hop_s=0.25), (0.5,)),
            (plain, View(hop_s=0.1), (0.3, 0.9)),
            (wide, View(keep_s=1.5, hop_s=0.5), (1.5,)),
            (joint, JOINT["joint"], (2.0,)),
        ]
    ):
        post = PostProcessing(
            view={bundle.stem: view}, step=tuple(OverlapMean(segment_s=each) for each in segments)
        )
        make_ensemble([bundle], tmp_path / f"{number}.alula", post=post)
        with opened(tmp_path / f"{number}.alula") as ensemble:
            for result, duration_s in zip(ensemble.map(recordings), (1.0, 2.5, 6.0), strict=True):
                assert result.start_s is not None
                assert len(result.start_s) == math.ceil(duration_s / segments[-1] - 1e-9)
