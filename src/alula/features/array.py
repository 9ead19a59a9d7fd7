"""Arrays that a model takes as they are, checked and cast."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from alula.core import ArrayInput
from alula.errors import DataError, UsageError

__all__ = ["ArrayFeatures"]


class ArrayFeatures:
    """Checks arrays and casts them to the type that a model takes.

    Thread-safe: an object holds its description and nothing else.

    Args:
        description: shape and type of one sample.

    Raises:
        UsageError: the description's `dtype` is no numeric type of NumPy.

    >>> ArrayFeatures(ArrayInput(shape=(2,))).transform(np.array([1, 2]))
    array([1., 2.], dtype=float32)
    """

    def __init__(self, description: ArrayInput) -> None:
        try:
            self._dtype = np.dtype(description.dtype)
        except TypeError as error:
            raise UsageError(
                f"`dtype` is `{description.dtype}`, which NumPy does not know; expected a name such as "
                "`float32` or `int64`."
            ) from error
        if self._dtype.kind not in "biufc":
            raise UsageError(
                f"`dtype` is `{description.dtype}`, which holds no numbers; expected a name such as "
                "`float32` or `int64`."
            )
        self._shape = description.shape

    @property
    def sample_shape(self) -> tuple[int, ...] | None:
        """Shape of one sample; None where any shape is accepted."""
        return self._shape

    def transform(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return one sample in the model's type, contiguous; the array itself where nothing is to do.

        Rounding to a shorter float is accepted; a cast that would change what the numbers are (imaginary
        parts, fractions or values that do not fit) is not.

        Args:
            array: one sample without its batch axis, of a boolean, integer, float or complex type.

        Raises:
            DataError: the shape differs, the type holds no numbers, or values would not survive the cast.
        """
        if array.dtype.kind not in "biufc":
            raise DataError(
                "array", f"its type is {array.dtype}, which holds no plain numbers; expected {self._dtype}."
            )
        if self._shape is not None and array.shape != self._shape:
            raise DataError("array", f"its shape is {array.shape}; expected {self._shape}.")
        if array.dtype.kind == "c" and self._dtype.kind != "c":
            raise DataError(
                "array",
                f"it is {array.dtype}, and its imaginary parts would be lost as {self._dtype}. "
                "Store real and imaginary parts as channels.",
            )
        # Values outside the new type's range are found below and reported; NumPy would only warn.
        with np.errstate(over="ignore", invalid="ignore"):
            cast = np.asarray(array, dtype=self._dtype, order="C")
        if not np.can_cast(array.dtype, self._dtype, casting="safe") and not self._kept(array, cast):
            raise DataError("array", f"it is {array.dtype} and holds values that {self._dtype} cannot hold.")
        return cast

    def _kept(self, array: npt.NDArray[Any], cast: npt.NDArray[Any]) -> bool:
        """Whether the cast kept the values: exactly for integers, in range for floats."""
        if self._dtype.kind in "fc":
            return bool(np.array_equal(np.isfinite(array), np.isfinite(cast)))
        return bool(np.array_equal(array, cast))
