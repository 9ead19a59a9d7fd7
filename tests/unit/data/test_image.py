"""Images: modes, orientation, and every way for a file to be bad."""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from alula.data import MAX_PIXELS, read_image
from alula.errors import DataError, EngineUnavailableError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 17, 3), np.uint8)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def encoded(form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, form, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a.png", "a.BMP", "a.tiff", "a.ppm", "a.PNG"])
def test_lossless_formats_come_back_as_they_are(tmp_path: Path, name: str) -> None:
    image = read_image(saved(Image.fromarray(RGB), tmp_path / name))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, RGB)
    image[0, 0] = 0  # writable, as torch and others expect


def test_webp_lossless_and_jpeg(tmp_path: Path) -> None:
    exact = read_image(saved(Image.fromarray(RGB), tmp_path / "a.webp", lossless=True))
    np.testing.assert_array_equal(exact, RGB)
    smooth = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    lossy = read_image(saved(Image.fromarray(smooth), tmp_path / "a.jpg", quality=95))
    assert lossy.shape == (16, 24, 3)
    # A flat colour survives JPEG up to the rounding of YCbCr.
    assert np.abs(lossy.astype(int) - smooth).max() <= 2


def test_the_extension_does_not_decide(tmp_path: Path) -> None:
    path = tmp_path / "really_png.jpg"
    path.write_bytes(encoded("PNG"))
    np.testing.assert_array_equal(read_image(path), RGB)


def test_grey_is_repeated(tmp_path: Path) -> None:
    image = read_image(saved(Image.fromarray(RGB[:, :, 0]), tmp_path / "a.png"))
    np.testing.assert_array_equal(image, np.repeat(RGB[:, :, :1], 3, axis=2))


def test_one_bit(tmp_path: Path) -> None:
    bits = RGB[:, :, 0] > 127
    image = read_image(saved(Image.fromarray(bits), tmp_path / "a.png"))
    np.testing.assert_array_equal(image[:, :, 1], bits * np.uint8(255))


def test_alpha_is_dropped(tmp_path: Path) -> None:
    rgba = np.concatenate([RGB, RNG.integers(0, 256, (12, 17, 1), np.uint8)], axis=2)
    np.testing.assert_array_equal(read_image(saved(Image.fromarray(rgba), tmp_path / "a.png")), RGB)
    grey = Image.fromarray(RGB[:, :, 0]).convert("LA")
    np.testing.assert_array_equal(read_image(saved(grey, tmp_path / "b.png"))[:, :, 2], RGB[:, :, 0])


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 100, 255])])
def test_palettes_with_and_without_transparency(tmp_path: Path, transparency: object) -> None:
    indices = (RGB[:, :, 0] % 3).astype(np.uint8)
    colours = np.array([[10, 20, 30], [200, 0, 0], [0, 0, 250]], np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(colours.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    read = read_image(saved(image, tmp_path / "a.png", **options))
    np.testing.assert_array_equal(read, colours[indices])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_keeps_the_upper_eight(tmp_path: Path, name: str) -> None:
    wide = RNG.integers(0, 65536, (9, 8)).astype(np.uint16)
    image = read_image(saved(Image.fromarray(wide), tmp_path / name))
    np.testing.assert_array_equal(image[:, :, 0], wide >> 8)
    np.testing.assert_array_equal(image[:, :, 0], image[:, :, 2])


def test_cmyk_jpeg(tmp_path: Path) -> None:
    smooth = Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK")
    image = read_image(saved(smooth, tmp_path / "a.jpg", quality=95))
    assert image.shape == (16, 16, 3)
    assert np.abs(image.reshape(-1, 3).mean(axis=0) - (200, 100, 50)).max() < 4


def test_floating_point_and_wide_integer_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="floating-point pixels"):
        read_image(saved(Image.fromarray(RGB[:, :, 0].astype(np.float32)), tmp_path / "a.tif"))
    wide = np.full((4, 4), 70_000, np.int32)
    with pytest.raises(DataError, match="70000"):
        read_image(saved(Image.fromarray(wide), tmp_path / "b.tif"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    # Exif 2.32 table 4: which side of the picture the stored row 0 and column 0 are.
    upright = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(RGB), tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(path), upright)


def test_damaged_exif_does_not_lose_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    np.testing.assert_array_equal(read_image(path), RGB)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif")[0, 0], (255, 0, 0))


def png_claiming(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_file_that_claims_too_many_pixels_is_refused(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(side, side))
    with pytest.raises(DataError, match=f"too large to decode.*{MAX_PIXELS}"):
        read_image(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_it_is_refused_where_warnings_are_only_warnings(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(10_000, 10_000))
    with pytest.raises(DataError, match="too large to decode: got 10000 x 10000 pixels"):
        read_image(path)


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Image.fromarray(RGB), tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(EngineUnavailableError, match=r"pip install 'alula\[image\]'"):
        read_image(path)


JPEG = encoded("JPEG", quality=90)
PNG = encoded("PNG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not an image, just text\n", "not an image"),
        (b"\0" * 500, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "not an image"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not an image"),
        (JPEG[: len(JPEG) // 2], "damaged or cut short"),
        (JPEG[:20], "not an image|damaged"),
        (PNG[: len(PNG) // 2], "damaged or cut short"),
        (PNG[:40], "not an image|damaged"),
        (PNG[:60] + bytes(20) + PNG[80:], "damaged or cut short"),
        (encoded("WEBP")[:60], "not an image|damaged"),
        (encoded("TIFF")[:200], "not an image|damaged"),
        (encoded("BMP")[:100], "damaged or cut short"),
        (encoded("GIF")[:-100], "damaged or cut short"),
        (png_claiming(50, 50), "damaged or cut short"),
    ],
)
def test_bad_files_name_the_path_and_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as error:
        read_image(path)
    assert error.value.path == str(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(DataError, match=r"directory"):
        read_image(tmp_path)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "gone.png")


@settings(max_examples=300, deadline=None)
@given(
    form=st.sampled_from(["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"]),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    keep=st.floats(0, 1),
)
def test_damage_anywhere_gives_an_image_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, form: str, edits: list[tuple[float, int]], keep: float
) -> None:
    content = bytearray(encoded(form))
    for place, value in edits:
        content[int(place * len(content))] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(bytes(content[: 1 + int(keep * len(content))]))
    try:
        image = read_image(path)
    except DataError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
