"""Pictures and masks: files of the usual formats ↔ arrays, through Pillow."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeAlias

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

PictureFile: TypeAlias = str | os.PathLike[str] | BinaryIO

_TURNED_BY_A_QUARTER = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class UnreadableImageError(ValueError):
    """A picture that is truncated, corrupt, too large to be one, or in no format that is read here."""


def read_image(file: PictureFile) -> NDArray[np.uint8]:
    """Read a picture as it is meant to be seen, (H, W, 3) uint8 RGB; see `decode_image`."""
    return np.array(decode_image(file))


def decode_image(file: PictureFile) -> Image.Image:
    """Decode a picture as it is meant to be seen, and leave it in Pillow's hands, where cutting and resizing need no copy.

    EXIF orientation is applied; 16-bit greyscale is scaled by its type's range, never by its content; transparency is laid on white; of an
    animated picture comes the first frame.

    Args:
        file: A local path, or a binary file open for reading.

    Returns:
        of mode RGB, with all its pixels; the file may be closed.

    Raises:
        UnreadableImageError: The bytes are no whole picture, or one of more pixels than Pillow's limit against decompression bombs.
        OSError: The file itself could not be opened or read.
    """
    with _opened(file) as image:
        ImageOps.exif_transpose(image, in_place=True)  # nothing is copied that is not turned
        if image.mode == "F" or image.mode.startswith("I"):
            grey = _scale_to_8_bit(np.asarray(image))
            return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
        if image.has_transparency_data:
            picture = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")


def read_mask(file: PictureFile) -> NDArray[np.bool_]:
    """Read a two-valued mask; the brighter value is the finding, and a constant picture is empty if 0 and full otherwise.

    Args:
        file: A local path, or a binary file open for reading.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: More than two values occur.
        UnreadableImageError: As for `read_image`.
    """
    with _opened(file) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "1":
            return np.array(image)  # two values by its format: nothing to look for, which on a slide's mask takes a third of a second
        single_channel = image.mode in ("L", "F") or image.mode.startswith("I")
        values = np.asarray(image if single_channel else image.convert("L"))
    distinct = np.unique(values)
    if len(distinct) > 2:
        listed = ", ".join(str(value) for value in distinct[:8]) + (", …" if len(distinct) > 8 else "")
        raise ValueError(
            f"{_name_of(file)}: a mask has two values (0 and 255, 0 and 1); this one has {len(distinct)}: {listed}. "
            "Save it without lossy compression, and one file a finding."
        )
    return np.asarray(values > (distinct[0] if len(distinct) == 2 else 0))


def picture_size(file: PictureFile) -> tuple[int, int]:
    """Look up (width_px, height_px) of what `read_image` would give, without decoding pixels.

    Raises:
        UnreadableImageError: The header is not that of a picture.
    """
    with _opened(file) as image:
        width_px, height_px = image.size
        # Pillow reports a TIFF's size with the orientation already applied, every other format's without
        if image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in _TURNED_BY_A_QUARTER:
            return height_px, width_px
        return width_px, height_px


def is_turned(file: PictureFile) -> bool:
    """Whether EXIF has a picture turned by a quarter: its pixels are stored with width and height swapped.

    Raises:
        UnreadableImageError: The header is not that of a picture.
    """
    with _opened(file) as image:
        return image.getexif().get(ExifTags.Base.Orientation) in _TURNED_BY_A_QUARTER


def write_image(file: PictureFile, image: NDArray[np.uint8], *, format: str = "PNG", quality: int = 90) -> None:
    """Write a picture, (H, W, 3) RGB or (H, W) grey, uint8; `quality` counts for JPEG and WebP."""
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f"expected uint8 of shape (H, W, 3) or (H, W), got {image.dtype} of shape {image.shape}")
    Image.fromarray(image).save(file, format=format, quality=quality)


def encode_jpeg(image: NDArray[np.uint8], *, quality: int = 90) -> bytes:
    """A picture, (H, W, 3) uint8 RGB, as the bytes of a JPEG file."""
    return bytes(imagecodecs.jpeg8_encode(image, level=quality, colorspace="RGB", outcolorspace="YCBCR", subsampling="420"))


def write_mask(file: PictureFile, mask: NDArray[np.bool_]) -> None:
    """Write a mask, (H, W) bool, as a PNG of one bit a pixel."""
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise ValueError(f"expected bool of shape (H, W), got {mask.dtype} of shape {mask.shape}")
    Image.fromarray(mask).save(file, format="PNG")


@contextmanager
def _opened(file: PictureFile) -> Iterator[Image.Image]:
    """Open a picture and turn what Pillow's decoders raise, here or in the body, into `UnreadableImageError`."""
    try:
        with Image.open(file) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(
            f"{_name_of(file)}: refused as a possible decompression bomb ({error}); cut it or save it as a slide"
        ) from error
    except OSError as error:
        if error.errno is not None:  # the file system's own; Pillow's carry no number
            raise
        raise UnreadableImageError(f"{_name_of(file)}: unreadable picture ({error})") from error
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{_name_of(file)}: {error}") from error
    except (ValueError, SyntaxError, TypeError, LookupError, EOFError, ArithmeticError) as error:  # what broken headers set off
        raise UnreadableImageError(f"{_name_of(file)}: unreadable picture ({type(error).__name__}: {error})") from error


def _scale_to_8_bit(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scale (H, W) 16-bit grey to uint8, 65535 to 255, rounding to the nearest."""
    if not np.issubdtype(grey.dtype, np.integer) or grey.min() < 0 or grey.max() > 0xFFFF:
        raise UnreadableImageError(
            f"expected greyscale of 8 or 16 bits, got {grey.dtype} from {grey.min()} to {grey.max()}; rescale it first"
        )
    return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _name_of(file: PictureFile) -> str:
    if isinstance(file, str | os.PathLike):
        return os.fspath(file)
    return str(getattr(file, "full_name", None) or getattr(file, "name", None) or "<picture in memory>")
