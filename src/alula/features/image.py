"""Images as the arrays that a model takes: resized, centre-cropped, normalised."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from alula.core import ImageInput
from alula.errors import DataError, EngineUnavailableError

__all__ = ["ImageFeatures"]

_MOST_PIXELS = 2**27  # of an image that is resized by its shorter side: a thin one becomes very long


class ImageFeatures:
    """Turns decoded images into the arrays that a model takes.

    The sizes and roundings are those of torchvision's `Resize`, `CenterCrop`, `ToTensor` and `Normalize`
    on PIL images, in this order; grey is PIL's `L` (ITU-R 601-2), taken before the resize.

    Thread-safe: an object holds its description and nothing else.

    Args:
        description: sizes, channels and normalisation.

    >>> features = ImageFeatures(ImageInput(height=1, width=2))
    >>> features.transform(np.full((1, 2, 3), 255, np.uint8)).tolist()
    [[[1.0, 1.0]], [[1.0, 1.0]], [[1.0, 1.0]]]
    """

    def __init__(self, description: ImageInput) -> None:
        self._description = description
        self._mean = np.asarray(description.mean, dtype=np.float32)[:, None, None]
        self._std = np.asarray(description.std, dtype=np.float32)[:, None, None]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape (c, h, w) of one image."""
        return (self._description.channels, self._description.height, self._description.width)

    def transform(self, image: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return one image as the model takes it.

        Args:
            image: RGB, shape (h, w, 3), uint8.

        Returns:
            A new array of shape (c, h', w'), float32.

        Raises:
            DataError: the shape or type is another, or the image has no pixels.
            EngineUnavailableError: Pillow is missing.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise DataError(
                "image", f"it is {image.dtype} of shape {image.shape}; expected uint8 of shape (h, w, 3)."
            )
        pixels = self._sized(image)
        result = np.empty(self.sample_shape, dtype=np.float32)
        np.divide(np.moveaxis(pixels, 2, 0), np.float32(255.0), out=result)
        result -= self._mean
        result /= self._std
        return result

    def _sized(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return the pixels of the result, shape (h', w', c), uint8."""
        try:
            from PIL import Image
        except ImportError as error:
            raise EngineUnavailableError("pillow", install="pip install 'alula[image]'") from error
        wanted = self._description
        picture = Image.fromarray(np.ascontiguousarray(image))
        if wanted.channels == 1:
            picture = picture.convert("L")
        width, height = picture.size
        if wanted.resize is None:
            size = (wanted.width, wanted.height)
        elif width <= height:
            size = (wanted.resize, int(wanted.resize * height / width))
        else:
            size = (int(wanted.resize * width / height), wanted.resize)
        if size[0] * size[1] > _MOST_PIXELS:
            raise DataError(
                "image",
                f"it is {width} x {height} pixels, and {size[0]} x {size[1]} when it is resized; expected at "
                f"most {_MOST_PIXELS} then. Cut the image.",
            )
        if size != (width, height):
            picture = picture.resize(size, Image.Resampling[wanted.interpolation.upper()])
        top = round((size[1] - wanted.height) / 2.0)
        left = round((size[0] - wanted.width) / 2.0)
        pixels = np.asarray(picture, dtype=np.uint8).reshape(size[1], size[0], wanted.channels)
        return pixels[top : top + wanted.height, left : left + wanted.width]
