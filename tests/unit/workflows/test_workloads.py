"""Workloads: what a folder holds, and what a few words stand for."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from bundles import write_wav

from alula.core import ArrayInput, AudioInput
from alula.errors import DataError, UsageError
from alula.features import Demand
from alula.workflows.workloads import SoundKind, inputs_of

AUDIO = [Demand(AudioInput(sample_rate_hz=8_000))]
ARRAYS = [Demand(ArrayInput(shape=(3,)))]


def test_a_folder_is_looked_through(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_wav(folder / "short.wav", np.zeros(2 * 8_000), rate_hz=8_000)
    for k in range(20):
        write_wav(folder / f"long{k}.WAV", np.zeros(int(16_000 * 0.3)), rate_hz=16_000)
    (folder / "broken.wav").write_bytes(b"no sound")
    (folder / "notes.txt").write_text("not a recording")
    found = inputs_of(folder, demands=AUDIO, row_s=0.5, examples=[], scratch=tmp_path)
    slow, fast = (
        SoundKind(suffix=".wav", rate_hz=8_000, channels=1),
        SoundKind(suffix=".wav", rate_hz=16_000, channels=1),
    )
    assert (found.workload.files, found.workload.rows, found.workload.longest_rows) == (21, 4 + 20, 4)
    assert found.shares == {slow: pytest.approx(0.25), fast: pytest.approx(0.75)}
    assert found.main == fast
    assert str(fast) == ".wav 16 kHz"
    assert found.samples[slow] == (folder / "short.wav",)
    assert 1 < len(found.samples[fast]) <= 8
    assert len(found.notes) == 1
    assert "1 files cannot be read and are left out" in found.notes[0]


def test_a_folder_of_nothing_that_can_be_read(tmp_path: Path) -> None:
    for k in range(2):
        (tmp_path / f"{k}").mkdir()
        (tmp_path / f"{k}" / "broken.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match=rf"^{tmp_path}: None of its 2 files can be planned for"):
        inputs_of(tmp_path, demands=AUDIO, row_s=5.0, examples=[], scratch=tmp_path)


def test_count_and_length(tmp_path: Path) -> None:
    example = write_wav(tmp_path / "example.wav", np.zeros(8_000), rate_hz=8_000)
    found = inputs_of("3x12s", demands=AUDIO, row_s=5.0, examples=[example], scratch=tmp_path)
    assert (found.workload.files, found.workload.rows, found.workload.longest_rows) == (3, 9, 3)
    assert found.samples[found.main] == (example,)
    made = inputs_of("3x12s", demands=AUDIO, row_s=5.0, examples=[], scratch=tmp_path)
    assert made.main == SoundKind(suffix=".ogg", rate_hz=8_000, channels=1)
    assert made.samples[made.main][0].parent == tmp_path
    np.save(tmp_path / "array.npy", np.zeros(3))
    array = tmp_path / "array.npy"
    arrays = inputs_of("7", demands=ARRAYS, row_s=None, examples=[array], scratch=tmp_path)
    assert (arrays.workload.rows, arrays.main) == (7, None)
    with pytest.raises(UsageError, match="no array files to measure with"):
        inputs_of("7", demands=ARRAYS, row_s=None, examples=[], scratch=tmp_path)
    with pytest.raises(UsageError, match="a count such as 5000"):
        inputs_of("7x5m", demands=ARRAYS, row_s=None, examples=[array], scratch=tmp_path)


def test_a_recording_with_a_good_header_and_a_damaged_body_is_left_out(tmp_path: Path) -> None:
    """It is the only one of its kind, so that this kind is no part of the workload."""
    import soundfile

    for k in range(3):
        write_wav(tmp_path / f"{k}.wav", np.zeros(2 * 8_000), rate_hz=8_000)
    damaged = np.zeros(3 * 16_000, np.float32)
    damaged[40_000] = np.nan
    soundfile.write(tmp_path / "damaged.wav", damaged, 16_000, subtype="FLOAT")
    found = inputs_of(tmp_path, demands=AUDIO, row_s=0.5, examples=[], scratch=tmp_path)
    kind = SoundKind(suffix=".wav", rate_hz=8_000, channels=1)
    assert (found.workload.files, found.workload.rows) == (3, 12)
    assert found.shares == {kind: 1.0}
    assert list(found.samples) == [kind]
    (note,) = found.notes
    assert note.startswith("1 files cannot be read and are left out") and "damaged.wav" in note


def test_a_disk_that_fails_under_an_open_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import soundfile

    write_wav(tmp_path / "good.wav", np.zeros(8_000), rate_hz=8_000)
    soundfile.write(tmp_path / "a.ogg", np.zeros(8_000), 8_000)

    def fails(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("alula.data.audio.os.pread", fails)  # of what is read here, only Ogg needs it
    found = inputs_of(tmp_path, demands=AUDIO, row_s=0.5, examples=[], scratch=tmp_path)
    assert found.workload.files == 1
    assert "a.ogg: cannot be read: Input/output error." in found.notes[0]


def test_other_files_take_the_place_of_samples_that_cannot_be_read(tmp_path: Path) -> None:
    for k in range(20):
        np.save(tmp_path / f"{k:02}.npy", np.zeros(3))
    for k in (*range(0, 20, 2), 1):  # every sample that is spread over the folder, and one more
        (tmp_path / f"{k:02}.npy").write_bytes(b"no array")
    np.save(tmp_path / "03.npy", np.zeros(4))  # of another shape than the model takes
    found = inputs_of(tmp_path, demands=ARRAYS, row_s=None, examples=[], scratch=tmp_path)
    good = tuple(tmp_path / f"{k:02}.npy" for k in range(5, 20, 2))
    assert found.samples == {None: good}
    assert found.workload.rows == len(good)
    assert found.notes[0].startswith("12 files cannot be read and are left out")
    for path in good:
        path.write_bytes(b"no array")
    with pytest.raises(DataError, match="None of its 20 files can be planned for: The file is not a whole"):
        inputs_of(tmp_path, demands=ARRAYS, row_s=None, examples=[], scratch=tmp_path)
