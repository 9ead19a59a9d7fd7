"""Files and arrays become model inputs on disk."""

from __future__ import annotations

import time
import wave
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alula.core import ArrayInput, AudioInput, ImageInput, InputDescription
from alula.data import open_samples
from alula.errors import DataError
from alula.workflows.samples import FileReader, Materialized, _map_ahead, default_description, materialize

AUDIO = AudioInput(sample_rate_hz=8000, window_s=1.0)


def write_wav(path: Path, seconds: float, *, value: int = 1000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.full(round(seconds * 8000), value, "<i2").tobytes())
    return path


def made(
    source: object, description: InputDescription, folder: Path, *, max_rows: int = 100, **options: Any
) -> Materialized:
    samples = open_samples(source)
    return materialize(
        samples,
        range(len(samples)),
        description=description,
        folder=folder,
        name="part",
        threads=2,
        max_rows=max_rows,
        **options,
    )


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "recordings"
    folder.mkdir()
    for index, seconds in enumerate((1.0, 2.5, 1.0)):
        write_wav(folder / f"{index}.wav", seconds, value=1000 * (index + 1))
    return folder


def test_a_recording_gives_a_row_per_window(recordings: Path, tmp_path: Path) -> None:
    part = made(recordings, AUDIO, tmp_path)
    assert part.rows == (0, 1, 1, 1, 2)
    assert part.problems == ()
    (path,) = part.paths
    values = np.load(path)
    assert (values.shape, values.dtype) == ((5, 8000), np.float32)
    np.testing.assert_allclose(values[:, 0], np.array([1, 2, 2, 2, 3]) * 1000 / 32768)
    assert not values[3, 4000:].any()  # the half second after the end


def test_rows_end_at_the_limit(recordings: Path, tmp_path: Path) -> None:
    part = made(recordings, AUDIO, tmp_path, max_rows=3)
    assert part.rows == (0, 1, 1)
    assert len(np.load(part.paths[0])) == 3


def test_no_more_samples_are_taken_when_it_is_late_but_some_are(recordings: Path, tmp_path: Path) -> None:
    part = made(recordings, AUDIO, tmp_path, until_s=0.0, least_rows=2)
    assert (part.rows, part.read, part.samples) == ((0, 1, 1, 1), (0, 1), 2)  # a recording is taken whole
    assert len(np.load(part.paths[0])) == 4
    in_time = made(recordings, AUDIO, tmp_path, until_s=time.monotonic() + 600)
    assert in_time.samples == 3


def test_images(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.new("RGB", (9, 7), (index * 50, 0, 255)).save(tmp_path / "images" / f"{index}.png")
    part = made(tmp_path / "images", ImageInput(height=8, width=8), tmp_path)
    values = np.load(part.paths[0])
    assert (values.shape, values.dtype) == ((3, 3, 8, 8), np.float32)
    np.testing.assert_allclose(values[:, 0].mean(axis=(1, 2)), np.array([0, 50, 100]) / 255, atol=1e-6)


def test_arrays_are_cast_and_kept_in_order(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(50, 3, 2))
    part = made(x, ArrayInput(dtype="float32"), tmp_path)
    np.testing.assert_array_equal(np.load(part.paths[0]), x.astype(np.float32))
    assert part.rows == tuple(range(50))


def test_several_inputs_are_written_side_by_side(tmp_path: Path, rng: np.random.Generator) -> None:
    pairs = [((rng.normal(size=4), np.array([index, 7])), 0) for index in range(5)]
    part = made(pairs, ArrayInput(), tmp_path)
    floats, codes = map(np.load, part.paths)
    assert (floats.shape, floats.dtype) == ((5, 4), np.float32)
    assert (codes.shape, codes.dtype) == ((5, 2), np.int64)
    assert codes[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_corrupt_samples_are_left_out_and_reported(recordings: Path, tmp_path: Path) -> None:
    (recordings / "1.wav").write_bytes(b"")
    part = made(recordings, AUDIO, tmp_path)
    assert part.rows == (0, 2)
    (problem,) = part.problems
    assert problem == f"{recordings / '1.wav'}: the file is empty (0 bytes)."


def test_more_than_half_corrupt_is_an_error(recordings: Path, tmp_path: Path) -> None:
    for name in ("0.wav", "1.wav"):
        (recordings / name).write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"2 of 3 samples cannot be read, for example: .*0\.wav"):
        made(recordings, AUDIO, tmp_path)


def test_samples_of_different_shapes_are_named(tmp_path: Path) -> None:
    x = [np.zeros((3, 4), np.float32)] * 3 + [np.zeros((3, 5), np.float32)]
    with pytest.raises(
        DataError, match=r"\[3\]: It gives float32 of shape \(3, 5\); .* shape \(3, 4\)\. .* one shape"
    ):
        made(x, ArrayInput(), tmp_path)


def test_the_wrong_description_is_named(recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data are audio files, but the input description is for image"):
        made(recordings, ImageInput(), tmp_path)


def test_files_need_a_description_and_arrays_do_not(recordings: Path) -> None:
    with pytest.raises(DataError, match="how the model sees them was not said"):
        default_description(open_samples(recordings))
    assert default_description(open_samples(np.zeros((4, 2)))) == ArrayInput(dtype="float32")
    assert default_description(open_samples(np.zeros((4, 2), np.int64))) == ArrayInput(dtype="int64")


def test_a_part_of_a_recording_keeps_its_place(recordings: Path) -> None:
    pieces = list(FileReader(AUDIO).pieces(recordings / "1.wav", start_s=0.5, end_s=2.5))
    assert [(piece.start_s, piece.end_s) for piece in pieces] == [(0.5, 1.5), (1.5, 2.5)]


def test_an_array_of_a_wrong_shape_is_named_by_its_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    with pytest.raises(DataError) as raised:
        list(FileReader(ArrayInput(shape=(2, 4))).pieces(tmp_path / "x.npy"))
    assert raised.value.path == str(tmp_path / "x.npy")


def test_what_was_used_is_not_kept_in_memory() -> None:
    class Big:
        """Stands for the rows of a sample."""

    alive: weakref.WeakSet[Big] = weakref.WeakSet()
    most = 0

    def read(index: int) -> Any:
        one = Big()
        alive.add(one)
        return one

    seen = []
    for index, one in _map_ahead(read, range(200), 2):
        seen.append(index)
        del one
        most = max(most, len(alive))
    assert seen == list(range(200))
    assert most <= 4 * 2 + 2
