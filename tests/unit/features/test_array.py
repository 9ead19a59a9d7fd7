"""Arrays: what is cast, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from alula.core import ArrayInput
from alula.errors import DataError, UsageError
from alula.features import ArrayFeatures


def cast(array: np.ndarray, dtype: str = "float32", shape: tuple[int, ...] | None = None) -> np.ndarray:
    return ArrayFeatures(ArrayInput(shape=shape, dtype=dtype)).transform(array)


@pytest.mark.parametrize("given", ["bool", "uint8", "int16", "int64", "float16", "float64", "float32"])
def test_numbers_become_float32(given: str) -> None:
    got = cast(np.array([[0, 1], [1, 0]], dtype=given), shape=(2, 2))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [[0, 1], [1, 0]])


def test_the_result_is_contiguous_and_uncopied_where_possible() -> None:
    array = np.zeros((3, 4), np.float32)
    assert cast(array) is array
    assert cast(array.T).flags.c_contiguous
    assert cast(np.float32(1.0).reshape(())).shape == ()


def test_whole_floats_become_integers() -> None:
    np.testing.assert_array_equal(cast(np.array([1.0, -2.0]), "int64"), [1, -2])


def test_nan_stays_nan() -> None:
    assert np.isnan(cast(np.array([np.nan]))).all()


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([1.5]), "int64"),
        (np.array([np.nan]), "int32"),
        (np.array([1e30]), "int32"),
        (np.array([300]), "uint8"),
        (np.array([-1]), "uint64"),
        (np.array([2]), "bool"),
        (np.array([1e300]), "float32"),
        (np.array([1e6], np.float32), "float16"),
    ],
)
def test_values_that_would_change_are_refused(array: np.ndarray, dtype: str) -> None:
    with pytest.raises(DataError, match=f"values that {dtype} cannot hold"):
        cast(array, dtype)


def test_imaginary_parts_are_not_lost() -> None:
    with pytest.raises(DataError, match="imaginary"):
        cast(np.array([1 + 2j]))
    assert cast(np.array([1 + 2j]), "complex64").dtype == np.complex64


@pytest.mark.parametrize("array", [np.array([None]), np.array(["a"]), np.zeros(1, [("a", "f4")])])
def test_what_is_no_number_is_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match="holds no plain numbers"):
        cast(array)


def test_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match=r"its shape is \(2, 3\); expected \(3, 2\)"):
        cast(np.zeros((2, 3)), shape=(3, 2))


@pytest.mark.parametrize("dtype", ["flaot32", "object", "str", "datetime64[s]"])
def test_a_type_without_numbers_is_a_usage_error(dtype: str) -> None:
    with pytest.raises(UsageError, match="`dtype` is"):
        ArrayFeatures(ArrayInput(dtype=dtype))


def test_sample_shape_is_that_of_the_description() -> None:
    assert ArrayFeatures(ArrayInput(shape=(3, 2))).sample_shape == (3, 2)
    assert ArrayFeatures(ArrayInput()).sample_shape is None
