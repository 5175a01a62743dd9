import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storage.images import UnreadableImageError, picture_size, read_image, read_mask, write_image, write_mask


def encoded(image: Image.Image, format: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    file.seek(0)
    return file


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_a_written_picture_is_read_back_unchanged(tmp_path: Path, picture: np.ndarray, format: str) -> None:
    path = tmp_path / "picture"
    write_image(path, picture, format=format)
    read = read_image(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, picture)


# Where the stored picture's top left corner is seen, for each EXIF orientation: (row, column) of the upright picture
@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (0, -1)), (3, (-1, -1)), (4, (-1, 0)), (5, (0, 0)), (6, (0, -1)), (7, (-1, -1)), (8, (-1, 0))],
)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_turns_picture_and_size_alike(format: str, orientation: int, corner: tuple[int, int]) -> None:
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(Image.fromarray(stored), format, exif=exif)
    width_px, height_px = picture_size(file)
    file.seek(0)
    upright = read_image(file)
    assert upright.shape == (height_px, width_px, 3) == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    assert upright[corner].min() > 200
    assert (upright > 128).mean() == pytest.approx(256 / (32 * 48), abs=0.02)


def test_16_bit_grey_is_scaled_by_its_type_not_its_content() -> None:
    grey = np.array([[0, 128, 257, 0x7FFF], [129, 386, 0xFFFE, 0xFFFF]], np.uint16)
    expected = np.round(grey / 257.0)
    for format in ("PNG", "TIFF"):
        read = read_image(encoded(Image.fromarray(grey), format))
        assert read.shape == (2, 4, 3)
        for channel in range(3):
            np.testing.assert_array_equal(read[..., channel], expected)
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(np.full((2, 2), 1000, np.uint16)), "PNG")), 4)


def test_floating_point_pictures_are_refused_with_their_range() -> None:
    with pytest.raises(UnreadableImageError, match=r"float32 from 0\.0 to 2\.5"):
        read_image(encoded(Image.fromarray(np.array([[0.0, 2.5]], np.float32)), "TIFF"))


def test_transparency_is_laid_on_white() -> None:
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    np.testing.assert_allclose(
        read_image(encoded(Image.fromarray(rgba), "PNG"))[0], [[200, 0, 0], [255, 255, 255], [127, 127, 127]], atol=1
    )
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    np.testing.assert_array_equal(read_image(encoded(palette, "PNG", transparency=1))[0], [[10, 20, 30], [255, 255, 255]])


def test_palette_cmyk_and_bilevel_pictures_become_rgb() -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    np.testing.assert_array_equal(read_image(encoded(palette, "PNG"))[0], [[10, 20, 30], [40, 50, 60]])
    np.testing.assert_array_equal(read_image(encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"))[0, 0], [255, 0, 0])
    np.testing.assert_array_equal(read_image(encoded(Image.new("1", (1, 1), 1), "PNG"))[0, 0], [255, 255, 255])


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    file = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(file)[0, 0], [255, 0, 0])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_truncated_picture_is_refused_by_name(tmp_path: Path, picture: np.ndarray, format: str) -> None:
    path = tmp_path / "cut.bin"
    whole = encoded(Image.fromarray(picture), format).getvalue()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UnreadableImageError, match=r"cut\.bin"):
        read_image(path)
    with path.open("rb") as file, pytest.raises(UnreadableImageError, match=r"cut\.bin"):
        read_image(file)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\xff" * 50, b"II*\x00" + b"\xff" * 50])
def test_bytes_that_are_no_picture_are_refused(content: bytes) -> None:
    for read in (read_image, read_mask, picture_size):
        with pytest.raises(UnreadableImageError, match="picture in memory"):
            read(io.BytesIO(content))


@pytest.mark.filterwarnings("ignore")  # Pillow's, of broken tags
def test_random_damage_gives_an_array_or_the_one_error(picture: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    for format in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"):
        whole = encoded(Image.fromarray(picture), format).getvalue()
        for _ in range(60):
            damaged = bytearray(whole)
            for position in rng.integers(0, min(len(whole), 200), 4):
                damaged[position] = rng.integers(256)
            try:
                read = read_image(io.BytesIO(bytes(damaged)))
            except UnreadableImageError:
                continue
            assert read.dtype == np.uint8
            assert read.ndim == 3


def test_a_missing_file_stays_a_file_system_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "absent.png")


def test_a_decompression_bomb_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    file = encoded(Image.new("L", (100, 100)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        read_image(file)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 1), (3, 7)])
def test_the_higher_of_two_mask_values_is_the_finding(low: int, high: int) -> None:
    truth = np.random.default_rng(2).random((9, 11)) > 0.5
    np.testing.assert_array_equal(read_mask(encoded(Image.fromarray(np.where(truth, high, low).astype(np.uint8)), "PNG")), truth)


def test_masks_are_read_from_16_bit_colour_and_palette_files() -> None:
    truth = np.random.default_rng(3).random((9, 11)) > 0.5
    sixteen_bit = Image.fromarray(np.where(truth, 0xFFFF, 0).astype(np.uint16))
    red = Image.fromarray(np.where(truth[..., None], [255, 0, 0], 0).astype(np.uint8))
    palette = Image.fromarray((~truth).astype(np.uint8), mode="P")  # index 0 is the bright one
    palette.putpalette([255, 255, 255, 0, 0, 0])
    for mask in (sixteen_bit, red, palette):
        np.testing.assert_array_equal(read_mask(encoded(mask, "PNG")), truth)


def test_a_constant_mask_is_empty_at_zero_and_full_above() -> None:
    assert not read_mask(encoded(Image.new("L", (4, 4), 0), "PNG")).any()
    assert read_mask(encoded(Image.new("L", (4, 4), 255), "PNG")).all()
    assert read_mask(encoded(Image.new("1", (4, 4), 1), "PNG")).all()


def test_a_mask_of_three_values_is_refused_with_the_values() -> None:
    with pytest.raises(ValueError, match="has 3: 0, 128, 255"):
        read_mask(encoded(Image.fromarray(np.array([[0, 128, 255]], np.uint8)), "PNG"))


def test_a_written_mask_takes_one_bit_a_pixel(tmp_path: Path) -> None:
    mask = np.random.default_rng(4).random((37, 53)) > 0.5
    with (tmp_path / "mask.png").open("wb") as file:
        write_mask(file, mask)
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "1"
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), mask)


def test_writers_refuse_arrays_of_another_kind() -> None:
    with pytest.raises(ValueError, match="float64"):
        write_image(io.BytesIO(), np.zeros((4, 4, 3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="uint8"):
        write_mask(io.BytesIO(), np.zeros((4, 4), np.uint8))  # type: ignore[arg-type]
