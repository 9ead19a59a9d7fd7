"""A full disk is told from other failures, wherever in a chain of errors it stands."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from alula.errors import BundleError, DiskFullError
from alula.hardware import disk_full, free_bytes, is_full, writing

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="NOT COVERED HERE: there is no /dev/full")
def test_a_write_that_finds_no_space_is_one_line() -> None:
    with (
        pytest.raises(
            DiskFullError, match=r"^The disk is full: the table could not be written to a/b"
        ) as raised,
        writing("the table", Path("a/b")),
        FULL.open("wb") as file,
    ):
        file.write(b"x")
    assert raised.value.what == "the table"
    assert isinstance(raised.value.__cause__, OSError)


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing("the table", tmp_path):
        (tmp_path / "absent").read_bytes()
    with pytest.raises(BundleError), writing("the table", tmp_path):
        raise BundleError(tmp_path, "It is damaged.")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_it_is_found_behind_what_came_of_it(tmp_path: Path, number: int) -> None:
    try:
        try:
            raise OSError(number, "no", str(tmp_path / "there"))
        except OSError as error:
            raise BundleError("b", "It cannot be written.") from error
    except BundleError as error:
        found = disk_full(error, what="the bundle", path=tmp_path)
    assert found is not None
    assert found.path == str(tmp_path / "there")
    assert found.free_bytes > 0  # of the folder above
    assert disk_full(OSError(errno.EACCES, "no"), what="it", path=tmp_path) is None


def test_a_copy_names_the_file_that_was_to_be_made(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError) as raised, writing("the copy", tmp_path / "b"):
        raise OSError(errno.ENOSPC, "no", str(tmp_path / "a"), None, str(tmp_path / "b"))
    assert raised.value.path == str(tmp_path / "b")


def test_errors_that_name_each_other_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__context__ = second, first
    assert disk_full(first, what="it", path=Path()) is None


def test_room_is_tried_for(tmp_path: Path) -> None:
    assert not is_full(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not is_full(tmp_path / "absent")  # another problem, and not this one
    assert free_bytes(tmp_path / "absent" / "further") > 0
