"""The levels of a plain tiled TIFF or Aperio SVS: where each tile's bytes stand, and how they are decoded as OpenSlide does it."""

import math
import operator
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

_PRINTING_DEFAULT_UM = 80.0  # 300 dpi and coarser (72, 96, 150 dpi): written by picture editors, measured by nobody
_UM_PER_UNIT = {2: 25_400.0, 3: 10_000.0}  # TIFF 6.0, ResolutionUnit: 2 inch, 3 centimetre; 1 is none
_LARGEST_TILE_PX = 1 << 26  # decoded at once, 0.2 GB; tiles have 65,536 px as a rule
_PLAIN_COMPRESSIONS = (1, 5, 7)  # none, LZW, JPEG
_JPEG = 7
_PREDICTORS = (1, 2)
# In a scan, 0xFF is followed by 0 (stuffing), 0xFF (filling) or a restart; any other marker ends it (ITU-T T.81, B.1.1)
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SCAN_START, _PICTURE_END = b"\xff\xda", b"\xff\xd9"
_NOT_PLAIN = re.compile(rb"\xff[\xc1-\xc3\xc5-\xcf\xdd]")  # frames that are not baseline, arithmetic coding, restarts
# The last blocks that are coded together: at most 10 of 64 coefficients of at most 26 bits, each byte stuffed (T.81, B.2.3 and F.1.2)
_LAST_BLOCKS_BYTES = 10 * 64 * 26 // 8 * 2
_ASIDE_BYTES = 8  # from where memory is allocated to where a tile begins; see `_tile_aside`
_FILLING = b"\x80\x80\x80"  # what libjpeg gives for blocks that it has no data of, in YCbCr and in RGB
# What tifffile and struct raise on bytes that are no sound TIFF; OSError is left to pass, it may be the network
TIFF_ERRORS = (ValueError, RuntimeError, TypeError, LookupError, ArithmeticError, struct.error)


class UnreadableSlideError(ValueError):
    """A slide that is truncated, corrupt or not a slide; the message names the file and the reason."""


class NotPlainTiffError(Exception):
    """What the fast reader leaves to OpenSlide, and why."""


@dataclass(frozen=True)
class TiffLevel:
    """One level and its tiles, row by row."""

    width_px: int
    height_px: int
    tile_width_px: int
    tile_height_px: int
    offsets: Sequence[int]
    byte_counts: Sequence[int]
    decode: Callable[[bytes, int], NDArray[np.uint8]]  # bytes and index of a tile -> (H, W, 3); raises what its codec raises

    @cached_property
    def tiles_across(self) -> int:
        """Tiles in a row."""
        return math.ceil(self.width_px / self.tile_width_px)


def parse_tiff(file: IO[bytes], uri: str) -> tuple[tuple[TiffLevel, ...], float | None]:
    """Find the levels and the spacing; raises `NotPlainTiffError`, or `UnreadableSlideError` when bytes are missing."""
    try:
        with tifffile.TiffFile(file, name=uri) as tif:
            first = tif.pages.first
            _check_maker_is_plain(first)
            pages = [page for page in tif.pages if isinstance(page, tifffile.TiffPage)]
            _check_page_chain_is_whole(tif, uri)
            # OpenSlide's rules: of an Aperio file every tiled page is a level, of another every one that says it is reduced
            levels = [first, *(page for page in pages[1:] if page.is_tiled and (first.is_svs or page.subfiletype & 1))]
            levels.sort(key=lambda page: -page.imagewidth)
            return tuple(_describe_level(page, tif.filehandle.size, uri) for page in levels), _spacing_of_page(first)
    except UnreadableSlideError:
        raise
    except TIFF_ERRORS as error:
        raise NotPlainTiffError(f"not a readable TIFF: {error}") from error


def _check_maker_is_plain(first: tifffile.TiffPage) -> None:
    """Leave to OpenSlide the TIFF of Leica, Philips, Ventana, Hamamatsu and Trestle, whose pages mean more than levels."""
    if first.description.lstrip("\ufeff \n").startswith("<") or first.is_ndpi or 700 in first.tags or first.software.startswith("MedScan"):
        raise NotPlainTiffError("a scanner's own TIFF dialect")


def _check_page_chain_is_whole(tif: tifffile.TiffFile, uri: str) -> None:
    """Refuse a file whose last directory points past its end: tifffile would drop the lost levels without an error."""
    handle, form = tif.filehandle, tif.tiff
    last = tif.pages[-1]
    handle.seek(last.offset)
    (tag_count,) = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))
    handle.seek(last.offset + form.tagnosize + tag_count * form.tagsize)
    (following,) = struct.unpack(form.offsetformat, handle.read(form.offsetsize))
    if following >= handle.size:
        raise UnreadableSlideError(f"{uri}: truncated: a directory should stand at byte {following}, the file has {handle.size}")


def _describe_level(page: tifffile.TiffPage, size_bytes: int, uri: str) -> TiffLevel:
    if page.is_tiled and page.tilewidth * page.tilelength > _LARGEST_TILE_PX:
        size = f"{page.tilewidth} × {page.tilelength} px"
        raise UnreadableSlideError(f"{uri}: refused as a possible decompression bomb (tiles of {size}); save it in tiles of 256 px")
    is_plain = (
        page.is_tiled
        and page.compression in _PLAIN_COMPRESSIONS
        and page.predictor in _PREDICTORS
        and page.photometric in ((2, 6) if page.compression == _JPEG else (2,))  # RGB, YCbCr
        and page.samplesperpixel == 3
        and page.bitspersample == 8
        and page.planarconfig == 1
        and page.tags.valueof(274, 1) == 1  # Orientation
        and page.tiledepth == 1
        and min(page.imagewidth, page.imagelength, page.tilewidth, page.tilelength) > 0
    )
    if not is_plain:
        raise NotPlainTiffError("not tiled 8-bit RGB with JPEG, LZW or no compression")
    offsets, byte_counts = tuple(page.dataoffsets), tuple(page.databytecounts)
    if 0 in byte_counts or 0 in offsets:
        raise NotPlainTiffError("some tiles are missing")
    tile_count = math.ceil(page.imagewidth / page.tilewidth) * math.ceil(page.imagelength / page.tilelength)
    if not len(offsets) == len(byte_counts) == tile_count:
        raise NotPlainTiffError(f"a level of {page.imagewidth}x{page.imagelength} px without its {tile_count} tiles")
    end = max(map(operator.add, offsets, byte_counts))
    if end > size_bytes:
        raise UnreadableSlideError(f"{uri}: truncated: its tiles reach to byte {end}, the file has {size_bytes}")
    return TiffLevel(
        width_px=page.imagewidth,
        height_px=page.imagelength,
        tile_width_px=page.tilewidth,
        tile_height_px=page.tilelength,
        offsets=offsets,
        byte_counts=byte_counts,
        decode=_jpeg_decoder(page) if page.compression == _JPEG else lambda data, index: np.asarray(page.decode(data, index)[0])[0],
    )


def _jpeg_decoder(page: tifffile.TiffPage) -> Callable[[bytes, int], NDArray[np.uint8]]:
    # As OpenSlide has it, and unlike page.decode, the TIFF tag decides the colour space, whatever markers the JPEG data carries
    colourspace = "YCBCR" if page.photometric == 6 else "RGB"
    tables, shape = page.jpegtables, (page.tilelength, page.tilewidth, 3)
    plain_header = b"\x00"  # of the last tile that was searched through, where `_shows_its_end` tells tiles with that header; else of none

    def decode(data: bytes, index: int) -> NDArray[np.uint8]:
        nonlocal plain_header
        tile = _tile_aside(shape)
        try:
            imagecodecs.jpeg8_decode(data, tables=tables, colorspace=colourspace, outcolorspace="RGB", out=tile)
        except RuntimeError:
            _check_jpeg_is_whole(data)  # says more
            raise
        except ValueError as error:
            raise ValueError(
                f"expected {shape[1]}x{shape[0]} px in three channels, its JPEG data holds another picture ({error})"
            ) from error
        if not (data.startswith(plain_header) and _shows_its_end(data, tile)):
            _check_jpeg_is_whole(data)
            plain_header = _plain_header(data, tables) or plain_header
        return tile

    return decode


def _tile_aside(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Memory for a tile that begins at no multiple of 32 bytes, in which libjpeg-turbo writes pixels a sixth to a third faster.

    Half of what is allocated begins at such a multiple. The times are measured (docs/results.md); that it then writes past the processor's
    cache is a guess.
    """
    return np.ndarray(shape, np.uint8, np.empty(math.prod(shape) + _ASIDE_BYTES, np.uint8), _ASIDE_BYTES)


def _plain_header(data: bytes, tables: bytes | None) -> bytes | None:
    """All before the scan of a JPEG picture that is one scan of three channels, baseline, without restarts; None of any other."""
    scan = data.find(_SCAN_START)
    header = data[: scan + 5]  # with the scan's length and number of channels
    is_plain = scan >= 0 and header[-1] == 3 and not _NOT_PLAIN.search(header) and not _NOT_PLAIN.search(tables or b"")
    return header if is_plain else None


def _shows_its_end(data: bytes, tile: NDArray[np.uint8]) -> bool:
    """Whether a tile with a plain header proves that its scan was decoded to the end; much faster than searching the whole scan.

    At a marker libjpeg gives up until the next restart: all blocks that follow are its filling grey. If the last pixel is of another
    colour, a marker can stand in the data of the last blocks alone.
    """
    end = _SCAN_END.search(data, len(data) - _LAST_BLOCKS_BYTES) if len(data) > _LAST_BLOCKS_BYTES else None
    return end is not None and end.group() == _PICTURE_END and end.end() == len(data) and tile[-1, -1].tobytes() != _FILLING


def _check_jpeg_is_whole(data: bytes) -> None:
    """Refuse JPEG data whose last scan does not run to its end marker: libjpeg would fill the rest with grey and only warn."""
    end = _SCAN_END.search(data, data.find(_SCAN_START) + 2)
    if end is not None and end.group() == _PICTURE_END and end.end() == len(data):
        return  # one scan, as nearly every tile has: to look for the last one from behind takes longer than the rest of the check
    end = _SCAN_END.search(data, data.rfind(_SCAN_START) + 2)
    if end is None or end.group() != _PICTURE_END:
        raise ValueError("JPEG data is cut off" if end is None else f"JPEG data is interrupted at byte {end.start()} of {len(data)}")


def _spacing_of_page(page: tifffile.TiffPage) -> float | None:
    aperio = re.search(r"\|\s*MPP\s*=\s*([0-9.]+)", page.description) if page.is_svs else None
    if aperio:
        return plausible_spacing(float(aperio.group(1)))
    numerator, denominator = page.tags.valueof(282, (0, 1))  # XResolution
    return spacing_of_resolution(numerator / denominator if denominator else 0.0, page.tags.valueof(296, 2))


def spacing_of_resolution(pixels_per_unit: float, unit: int) -> float | None:
    """µm per pixel of a TIFF's resolution tags; None where they say nothing that was measured."""
    return plausible_spacing(_UM_PER_UNIT[unit] / pixels_per_unit) if unit in _UM_PER_UNIT and pixels_per_unit > 0 else None


def plausible_spacing(spacing_um: float) -> float | None:
    """The spacing, or None where it is what picture editors write by default."""
    return spacing_um if 0 < spacing_um < _PRINTING_DEFAULT_UM else None
