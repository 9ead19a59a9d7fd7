"""Workloads: what a folder holds, and what a few words stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundles import write_wav

from alula.core import ArrayInput, AudioInput
from alula.errors import DataError, UsageError
from alula.workflows.workloads import SoundKind, inputs_of

AUDIO = AudioInput(sample_rate_hz=8_000)


def test_a_folder_is_looked_through(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_wav(folder / "short.wav", np.zeros(2 * 8_000), rate_hz=8_000)
    for k in range(20):
        write_wav(folder / f"long{k}.WAV", np.zeros(int(16_000 * 0.3)), rate_hz=16_000)
    (folder / "broken.wav").write_bytes(b"no sound")
    (folder / "notes.txt").write_text("not a recording")
    found = inputs_of(folder, description=AUDIO, row_s=0.5, examples=[], scratch=tmp_path)
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
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match="None of its 1 files can be planned for"):
        inputs_of(tmp_path, description=AUDIO, row_s=5.0, examples=[], scratch=tmp_path)


def test_count_and_length(tmp_path: Path) -> None:
    example = write_wav(tmp_path / "example.wav", np.zeros(8_000), rate_hz=8_000)
    found = inputs_of("3x12s", description=AUDIO, row_s=5.0, examples=[example], scratch=tmp_path)
    assert (found.workload.files, found.workload.rows, found.workload.longest_rows) == (3, 9, 3)
    assert found.samples[found.main] == (example,)
    made = inputs_of("3x12s", description=AUDIO, row_s=5.0, examples=[], scratch=tmp_path)
    assert made.main == SoundKind(suffix=".ogg", rate_hz=8_000, channels=1)
    assert made.samples[made.main][0].parent == tmp_path
    arrays = inputs_of("7", description=ArrayInput(), row_s=None, examples=[example], scratch=tmp_path)
    assert (arrays.workload.rows, arrays.main) == (7, None)
    with pytest.raises(UsageError, match="no array files to measure with"):
        inputs_of("7", description=ArrayInput(), row_s=None, examples=[], scratch=tmp_path)
    with pytest.raises(UsageError, match="a count such as 5000"):
        inputs_of("7x5m", description=ArrayInput(), row_s=None, examples=[example], scratch=tmp_path)
