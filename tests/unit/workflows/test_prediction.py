"""A bundle over arrays, files and folders."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from bundles import SONGS, write_wav

from alula.bundle import start
from alula.data import read_image
from alula.errors import BundleError, DataError, EngineError, UsageError
from alula.features import ImageFeatures, make_features
from alula.pipeline import Progress
from alula.workflows import Bundle, load, predict


def table(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores.astype(np.float64))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.fixture
def recordings(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Recordings of 1, 2.5 and 3 windows, and one that is none."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name, seconds in (("a", 1.0), ("b", 2.5), ("d", 3.0)):
        write_wav(folder / f"{name}.wav", rng.uniform(-0.9, 0.9, round(8000 * seconds)))
    (folder / "c.wav").write_bytes(b"RIFF")
    return folder


def test_any_number_of_samples(optimized: SimpleNamespace, rng: np.random.Generator) -> None:
    images = rng.normal(size=(70, 3, 16, 16)).astype(np.float32)
    whole = optimized.bundle(images)
    assert whole.shape == (70, 4)
    for n in (1, 7, 33):
        # Kernels may sum in another order for another batch size.
        np.testing.assert_allclose(optimized.bundle(images[:n]), whole[:n], rtol=1e-4, atol=1e-6)


def test_callers_in_threads_get_their_own_results(
    optimized: SimpleNamespace, rng: np.random.Generator
) -> None:
    parts = [rng.normal(size=(n, 3, 16, 16)).astype(np.float32) for n in (1, 9, 3, 20, 5, 8, 2, 11)]
    alone = [optimized.bundle(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(optimized.bundle, parts))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "shape", [(2, 3, 16, 15), (3, 16, 16), (2, 1, 16, 16), (0, 3, 16, 16), (), (2,)], ids=str
)
def test_arrays_that_do_not_fit(optimized: SimpleNamespace, shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match="expected"):
        optimized.bundle(np.zeros(shape, np.float32))


def test_no_and_too_many_arrays(optimized: SimpleNamespace) -> None:
    images = np.zeros((1, 3, 16, 16), np.float32)
    with pytest.raises(EngineError, match="0 inputs"):
        optimized.bundle()
    with pytest.raises(EngineError, match="2 inputs"):
        optimized.bundle(images, images)


def test_integers_are_refused_and_float64_is_cast(optimized: SimpleNamespace) -> None:
    with pytest.raises(EngineError, match="int64"):
        optimized.bundle(np.zeros((1, 3, 16, 16), np.int64))
    wide = np.full((2, 3, 16, 16), 0.3)
    np.testing.assert_array_equal(optimized.bundle(wide), optimized.bundle(wide.astype(np.float32)))


def test_map_gives_each_file_its_scores(optimized: SimpleNamespace) -> None:
    files = sorted(optimized.images.rglob("*.png"))[::7]
    features = make_features(optimized.bundle.manifest.input)
    assert isinstance(features, ImageFeatures)
    for path, prediction in zip(files, optimized.bundle.map(files), strict=True):
        assert prediction.path == path
        assert prediction.error is prediction.start_s is prediction.end_s is None
        expected = softmax(optimized.bundle(features.transform(read_image(path))[None]))
        np.testing.assert_allclose(prediction.scores, expected, rtol=1e-4, atol=1e-6)


def test_map_goes_on_after_a_file_that_cannot_be_read(audio_bundle: Bundle, recordings: Path) -> None:
    names = ["d.wav", "c.wav", "b.wav", "absent.wav"]
    found = list(audio_bundle.map(str(recordings / name) for name in names))
    assert [prediction.path.name for prediction in found] == names
    assert [prediction.error is None for prediction in found] == [True, False, True, False]
    assert found[1].scores is None
    assert isinstance(found[1].error, DataError)
    assert found[2].start_s is not None
    assert found[2].start_s.tolist() == [0.0, 1.0, 2.0]
    assert found[2].scores is not None
    assert found[2].scores.shape == (3, 3)
    assert ((found[2].scores > 0) & (found[2].scores < 1)).all()  # the activation is a sigmoid


def test_map_reads_lazily_and_can_be_left(audio_bundle: Bundle, recordings: Path) -> None:
    def endless() -> object:
        while True:
            yield recordings / "a.wav"

    predictions = audio_bundle.map(endless())  # type: ignore[arg-type]
    assert next(iter(predictions)).error is None
    predictions.close()  # type: ignore[attr-defined]


def test_predict_images_to_csv(optimized: SimpleNamespace, tmp_path: Path) -> None:
    seen: list[Progress] = []
    output = tmp_path / "scores.csv"
    report = predict(optimized.bundle, [optimized.images], output=output, progress=seen.append)
    header, rows = table(output)
    assert header == ["path", "blue", "green", "red", "none"]
    assert [Path(row[0]) for row in rows] == sorted(optimized.images.rglob("*.png"))
    scores = np.array([row[1:] for row in rows], float)
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, rtol=1e-5)  # softmax
    expected = [prediction.scores for prediction in optimized.bundle.map(Path(row[0]) for row in rows)]
    np.testing.assert_allclose(scores, np.concatenate(expected), rtol=1e-4, atol=1e-6)
    assert report.errors is None
    assert not (tmp_path / "errors.csv").exists()
    assert (report.job.tasks_done, report.job.tasks_failed, report.job.samples) == (60, 0, 60)
    assert report.recipe == optimized.bundle.recipe
    assert report.promised_per_s == optimized.bundle.manifest.folder.samples_per_s
    assert (seen[-1].tasks_done, seen[-1].total_tasks) == (60, 60)


def test_predict_audio_to_csv_with_an_error_report(
    audio_bundle: Bundle, recordings: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "scores.csv"
    report = predict(audio_bundle, [recordings], output=output)
    header, rows = table(output)
    assert header == ["path", "start_s", "end_s", *SONGS]
    assert [(Path(row[0]).stem, float(row[1]), float(row[2])) for row in rows] == [
        ("a", 0.0, 1.0),
        *[("b", start, start + 1.0) for start in (0.0, 1.0, 2.0)],
        *[("d", start, start + 1.0) for start in (0.0, 1.0, 2.0)],
    ]
    assert report.errors == str(output.with_name("errors.csv"))
    assert table(output.with_name("errors.csv"))[1][0][0] == str(recordings / "c.wav")
    assert (report.job.tasks_done, report.job.tasks_failed) == (3, 1)
    assert report.promised_per_s is None


def test_parquet_holds_the_same_numbers(audio_bundle: Bundle, recordings: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    for name in ("scores.csv", "scores.parquet"):
        predict(audio_bundle, [recordings], output=tmp_path / name)
    columns = pyarrow.parquet.read_table(tmp_path / "scores.parquet").to_pydict()
    header, rows = table(tmp_path / "scores.csv")
    assert list(columns) == header
    assert columns["path"] == [row[0] for row in rows]
    for column, name in enumerate(header[1:], 1):
        # The CSV has six significant digits.
        np.testing.assert_allclose(columns[name], [float(row[column]) for row in rows], rtol=5e-6)


def test_birdclef_names_rows_by_their_end(audio_bundle: Bundle, recordings: Path, tmp_path: Path) -> None:
    predict(audio_bundle, [recordings], output=tmp_path / "submission.csv", format="birdclef")
    header, rows = table(tmp_path / "submission.csv")
    assert header == ["row_id", *SONGS]
    assert [row[0] for row in rows] == ["a_1", "b_1", "b_2", "b_3", "d_1", "d_2", "d_3"]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"output": "scores.txt"}, UsageError, "cannot be told from its suffix"),
        ({"format": "cvs"}, UsageError, "Did you mean `csv`"),
        ({"format": "birdclef"}, UsageError, "birdclef"),
        ({"errors": "scores.csv"}, UsageError, "give them two names"),
    ],
    ids=str,
)
def test_a_wrong_option_is_named(
    optimized: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
    error: type[Exception],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says):
        predict(optimized.bundle, [optimized.images], **{"output": "scores.csv", **options})
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_read(optimized: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="found no files"):
        predict(optimized.bundle, [tmp_path / "in"], output=tmp_path / "scores.csv")
    with pytest.raises(DataError, match="does not exist"):
        predict(optimized.bundle, [tmp_path / "absent"], output=tmp_path / "scores.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_old_table_survives_a_run_that_cannot_start(optimized: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("old")
    with pytest.raises(DataError):
        predict(optimized.bundle, [tmp_path / "absent"], output=tmp_path / "scores.csv")
    assert (tmp_path / "scores.csv").read_text() == "old"


def test_the_fallback_computes_the_same(optimized: SimpleNamespace, rng: np.random.Generator) -> None:
    """Two engines beside each other, from one bundle."""
    manifest = optimized.bundle.manifest
    swapped = msgspec.structs.replace(manifest, chosen=manifest.fallbacks[0], fallbacks=())
    running = start(optimized.bundle.path, swapped, threads=1)
    assert running.deployed.recipe != optimized.bundle.recipe
    images = rng.normal(size=(running.settings.batch_size, 3, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(
        running.session.run((images,))[0], optimized.bundle(images), rtol=1e-4, atol=1e-5
    )
    running.session.close()


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_an_impossible_thread_budget(audio_bundle: Bundle, threads: int) -> None:
    with pytest.raises(UsageError, match="thread"):
        load(audio_bundle.path, threads=threads)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        load(tmp_path / "absent.alula")
    with pytest.raises(BundleError):
        load(tmp_path)
