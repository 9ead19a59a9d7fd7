"""Images against PIL and, where it is installed, torchvision."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from alula.core import ImageInput
from alula.errors import DataError, EngineUnavailableError
from alula.features import PRESETS, ImageFeatures


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(300, 400), (401, 301), (256, 256), (256, 999), (100, 57), (1, 700)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_resize_and_crop_equal_torchvision(size: tuple[int, int], interpolation: str) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    description = ImageInput(height=64, width=75, resize=77, interpolation=interpolation, mean=mean, std=std)
    reference = transforms.Compose(
        [
            transforms.Resize(77, interpolation=transforms.InterpolationMode[interpolation.upper()]),
            transforms.CenterCrop((64, 75)),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    image = picture(*size)
    got = ImageFeatures(description).transform(image)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, reference(Image.fromarray(image)).numpy())


def test_without_resize_the_right_size_is_left_alone() -> None:
    image = picture(32, 32)
    got = ImageFeatures(PRESETS["cifar10"]).transform(image)
    expected = (image / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(got, expected.transpose(2, 0, 1), atol=1e-6)


def test_without_resize_other_sizes_are_resized_straight() -> None:
    image = picture(50, 80)
    got = ImageFeatures(ImageInput(height=20, width=30)).transform(image)
    expected = np.asarray(Image.fromarray(image).resize((30, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(got, expected.transpose(2, 0, 1).astype(np.float32) / np.float32(255))


def test_grey_is_the_l_of_pil() -> None:
    image = picture(40, 40)
    description = ImageInput(height=40, width=40, channels=1, mean=(0.5,), std=(0.25,))
    got = ImageFeatures(description).transform(image)
    assert got.shape == ImageFeatures(description).sample_shape == (1, 40, 40)
    luma = image @ np.array([0.299, 0.587, 0.114])
    # `L` is rounded to a whole step of 1/255.
    np.testing.assert_allclose(got[0], (luma / 255 - 0.5) / 0.25, atol=0.75 / 255 / 0.25)


def test_the_image_is_not_changed() -> None:
    image = picture(40, 40)
    before = image.copy()
    ImageFeatures(ImageInput(height=40, width=40, mean=(0.5,))).transform(image)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=["grey", "four channels", "floats", "no rows"],
)
def test_other_arrays_are_data_errors(image: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected uint8 of shape \(h, w, 3\)"):
        ImageFeatures(ImageInput()).transform(image)


def test_an_image_that_would_become_huge_is_refused() -> None:
    features = ImageFeatures(ImageInput(height=224, width=224, resize=256))
    thin = np.zeros((100_000, 1, 3), np.uint8)
    with pytest.raises(DataError, match=r"1 x 100000 pixels, and 256 x 25600000 when it is resized"):
        features.transform(thin)


def test_missing_pillow_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(EngineUnavailableError, match=r"pip install 'alula\[image\]'"):
        ImageFeatures(ImageInput()).transform(picture(4, 4))
