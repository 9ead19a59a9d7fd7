"""Arrays from .npy files, good and bad."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alula.data import read_array
from alula.errors import DataError


def npy(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "uint8", "int64", "bool", ">f4"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 3)])
def test_round_trip(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2, dtype)
    path = tmp_path / "a.NPY"
    path.write_bytes(npy(array))
    read = read_array(path)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)
    assert not isinstance(read, np.memmap)
    assert read.flags.writeable


def test_fortran_order(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    (tmp_path / "a.npy").write_bytes(npy(array))
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy"), array)


def huge_header() -> bytes:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"text", "not a whole .npy"),
        (b"\x93NUMPY", "not a whole .npy"),
        (npy(np.arange(100.0))[:-1], "not a whole .npy"),
        (npy(np.arange(100.0))[:50], "not a whole .npy"),
        (npy(np.array([{}], object), allow_pickle=True), "not a whole .npy"),
        (huge_header(), "not a whole .npy"),
        (npy(np.array(["a", "b"])), "dtype <U1"),
        (npy(np.array([1j])), "dtype complex128"),
        (npy(np.zeros(2, [("a", "f4"), ("b", "i4")])), "Expected booleans, integers or floats"),
        (b"PK\x03\x04" + bytes(60), "not a whole .npy"),
        (b"\x80\x04\x95cos\nsystem\n", "not a whole .npy"),
    ],
)
def test_bad_files_name_the_path_and_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.npy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as error:
        read_array(path)
    assert error.value.path == str(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_array(tmp_path / "missing.npy")
    with pytest.raises(DataError, match="directory"):
        read_array(tmp_path)


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 159), st.integers(0, 255)), max_size=6),
    keep=st.integers(1, 160),
)
def test_damage_anywhere_gives_an_array_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], keep: int
) -> None:
    content = bytearray(npy(np.arange(8, dtype=np.float32)))
    assert len(content) == 160
    for place, value in edits:
        content[place] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.npy"
    path.write_bytes(bytes(content[:keep]))
    try:
        assert read_array(path).dtype.kind in "biuf"
    except DataError:
        return
