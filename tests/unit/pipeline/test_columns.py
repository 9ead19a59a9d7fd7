"""Numbers on disk that are written by rows and read by columns."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from alula.errors import JobError
from alula.pipeline import ColumnFile
from alula.pipeline.atomic import is_draft


def test_rows_come_back_as_columns_and_nothing_stays(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.random((7, 3)).astype(np.float32)
    with ColumnFile(tmp_path, columns=3, rows=7) as table:
        for first in (0, 4):
            part = rows[first : first + 4]
            table.values[:, first : first + len(part)] = part.T
        np.testing.assert_array_equal(table.values, rows.T)
        assert [is_draft(path) for path in tmp_path.iterdir()] == [True]
    assert list(tmp_path.iterdir()) == []


def test_a_system_without_a_call_for_it_gets_its_room_by_writing(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    real, written = os.pwrite, []

    def pwrite(handle: int, data: bytes, at: int) -> int:
        written.append(real(handle, data[:300_000], at))  # the system may take less than it is given
        return written[-1]

    monkeypatch.setattr(os, "pwrite", pwrite)
    values = rng.random((5, 70_000)).astype(np.float32)
    with ColumnFile(tmp_path, columns=5, rows=70_000) as table:
        (path,) = tmp_path.iterdir()
        assert sum(written) == path.stat().st_size == values.nbytes
        assert not table.values.any()
        table.values[:] = values
        np.testing.assert_array_equal(np.fromfile(path, np.float32).reshape(5, -1), values)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_cannot_be_mapped_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(np, "memmap", refuse)
    with pytest.raises(JobError, match="Cannot allocate"), ColumnFile(tmp_path, columns=3, rows=7):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(JobError, match="the disk is full"), ColumnFile(tmp_path, columns=3, rows=7):
        pass
    assert list(tmp_path.iterdir()) == []
