"""Images from disk."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from alula.errors import DataError, EngineUnavailableError

__all__ = ["MAX_PIXELS", "read_image"]

MAX_PIXELS = 89_478_485
"""Largest image that is decoded: Pillow's own bound, 256 MiB of RGB. A file of a few kilobytes can
claim gigabytes, so larger ones are refused before they are decoded."""

# The formats that are tried. Others that Pillow knows start programs (EPS) or are no photographs.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

# What Pillow's decoders raise on damaged files; Warning is here for callers that turn warnings into errors.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    MemoryError,
    RuntimeError,
    Warning,
    struct.error,
    zlib.error,
)

_EXIF_ORIENTATION = 0x0112  # Exif 2.32, table 4


def read_image(path: str | Path) -> npt.NDArray[np.uint8]:
    """Return an image as RGB: uint8 of shape (h, w, 3), values 0 to 255.

    The first frame of an animation is taken; the EXIF orientation is applied; an alpha channel is
    dropped, as training pipelines do; grey is repeated; of 16-bit grey the upper 8 bits are kept.
    May be called from several threads.

    Raises:
        DataError: the file is missing, empty, no image, damaged, cut short, too large to decode
            (`MAX_PIXELS`) or holds floating-point pixels.
        EngineUnavailableError: Pillow is not installed.
    """
    pil = _pillow()
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise DataError(path, "The file is empty (0 bytes). Expected an image.")
    except OSError as error:
        raise DataError(path, f"The image cannot be read: {error.strerror}.") from error
    try:
        with pil.open(path, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(path, _too_large(f"{width} x {height} pixels"))
            image.load()
            return _to_rgb(_upright(image, pil), path)
    except (pil.DecompressionBombError, pil.DecompressionBombWarning) as error:
        raise DataError(path, _too_large("more")) from error
    except pil.UnidentifiedImageError as error:
        raise DataError(path, f"The file is not an image. Expected one of {', '.join(_FORMATS)}.") from error
    except _DAMAGED as error:
        raise DataError(path, f"The image is damaged or cut short: {error}.") from error


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise EngineUnavailableError("pillow", install="pip install 'alula[image]'") from error
    module: ModuleType = Image
    return module


def _too_large(got: str) -> str:
    return (
        f"The image is too large to decode: got {got}, expected at most {MAX_PIXELS} pixels. Make it smaller."
    )


def _upright(image: Any, pil: Any) -> Any:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DAMAGED:
        # Damaged metadata around good pixels: every viewer shows such a picture as it lies.
        return image
    turn = pil.Transpose
    method = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }.get(orientation)
    return image if method is None else image.transpose(method)


def _to_rgb(image: Any, path: Path) -> npt.NDArray[np.uint8]:
    mode: str = image.mode
    if mode == "F":
        raise DataError(
            path, "The image has floating-point pixels, whose range is unknown. Save it with 8 or 16 bits."
        )
    if mode.startswith("I"):
        wide = np.array(image)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise DataError(
                path,
                f"The image has pixels from {wide.min()} to {wide.max()}. Expected 0 to 65535. "
                "Save it with 8 or 16 bits.",
            )
        grey = (wide.astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if mode != "RGB":
        # Through RGBA: Pillow warns when a palette with transparency goes straight to RGB.
        keep_alpha = mode in ("P", "PA", "LA", "La", "RGBa") or "transparency" in image.info
        image = (image.convert("RGBA") if keep_alpha else image).convert("RGB")
    return np.array(image)
