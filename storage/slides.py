"""Whole-slide images: regions of a pyramid as arrays, behind one interface with two readers.

`TiffSlide` decodes exactly the tiles that a region touches, for plain tiled TIFF and Aperio SVS, local or in an object store.
OpenSlide, which composites every read, reads every other format and is the oracle in the tests.
"""

import math
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageColor

from storage import filesystems
from storage.dicom_slides import slide_header_of
from storage.pictures import is_dicom
from storage.tiff_levels import TIFF_ERRORS, NotPlainTiffError, UnreadableSlideError, parse_tiff, plausible_spacing, spacing_of_resolution

_SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".svslide")
_TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
_SMALLEST_SLIDE_PX = 2048
_BLOCK_PX = 64  # of a damaged level, how much is given up or read from a finer one at once
_AHEAD_BYTES = 1 << 18  # a directory and its lists of tiles, not the tiles between them
_KEPT_BYTES = 32 << 20  # as much as OpenSlide's own cache


class SlideReader(Protocol):
    """A slide open for reading; safe to share among threads."""

    width_px: int
    height_px: int
    spacing_um: float | None  # µm per pixel of level 0; None where the file does not say
    level_dimensions: tuple[tuple[int, int], ...]  # (width_px, height_px), level 0 first
    level_downsamples: tuple[float, ...]

    def read_region(self, x_px: int, y_px: int, width_px: int, height_px: int, *, level: int = 0) -> NDArray[np.uint8]:
        """Read a rectangle.

        `x_px` and `y_px` count pixels **of that level** (OpenSlide's own functions take level-0 coordinates). What lies outside the slide
        is white.

        Returns:
            (height_px, width_px, 3) uint8, RGB.

        Raises:
            UnreadableSlideError: A tile cannot be decoded.
            ValueError: No such level, or an empty rectangle.
        """

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """Shrink the slide; the picture of `look_over`."""

    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...


def open_slide(uri: str | os.PathLike[str]) -> SlideReader:
    """Open a slide with the fastest reader that reads it faithfully.

    Args:
        uri: A local path, or anything fsspec opens (s3://…); away from the local disk only plain tiled TIFF and SVS can be read.

    Raises:
        UnreadableSlideError: Truncated, corrupt, or not a slide.
        OSError: The file could not be opened.
    """
    uri = os.fspath(uri)
    try:
        return TiffSlide(uri)
    except NotPlainTiffError as error:
        local = filesystems.local_path(uri)
        if local is None:
            raise UnreadableSlideError(f"{uri}: {error}; only OpenSlide may read it, from a local disk: copy it there") from error
        try:
            return OpenSlideReader(local)
        except UnreadableSlideError as refusal:
            raise UnreadableSlideError(f"{refusal}; for the reader of plain TIFF: {error}") from error


def is_slide(uri: str | os.PathLike[str]) -> bool:
    """Tell slides from pictures: a suffix that only scanners write, a tiled TIFF of 2,048 px or more, DICOM of the class for whole slides.

    Reads at the most a header. A DICOM slide's label and overview count as the slide, which is what `open_slide` opens for them.

    Raises:
        OSError: A TIFF or DICOM file could not be opened.
    """
    uri = os.fspath(uri)
    suffix = f".{uri.rpartition('.')[2].lower()}"  # not pathlib's: asked of every file of an archive
    if suffix in _SLIDE_SUFFIXES:
        return True
    if is_dicom(uri):
        return slide_header_of(uri) is not None
    if suffix not in _TIFF_SUFFIXES:
        return False
    try:
        with filesystems.open_for_reading(uri, ahead_bytes=_AHEAD_BYTES) as file, tifffile.TiffFile(file, name=uri) as tif:
            first = tif.pages.first
            return bool(first.is_tiled) and max(first.imagewidth, first.imagelength) >= _SMALLEST_SLIDE_PX
    except TIFF_ERRORS:
        return False


def write_pyramid(
    path: str | os.PathLike[str], level0: NDArray[np.uint8], *, spacing_um: float, tile_px: int = 256, quality: int = 90
) -> None:
    """Write a pyramidal tiled JPEG TIFF that both readers open; the file appears whole or not at all.

    Args:
        path: A local path; a file that stands there is replaced.
        level0: (H, W, 3) uint8, RGB. Every further level is the 2×2 box average of the one before, down to less than 1,024 px.
        spacing_um: µm per pixel of level 0.
        tile_px: Side of a tile, a multiple of 16.
        quality: JPEG quality, 1 to 100.

    Raises:
        ValueError: An array of another type or shape, or a spacing that is not positive.
    """
    if level0.dtype != np.uint8 or level0.ndim != 3 or level0.shape[2] != 3:
        raise ValueError(f"expected uint8 of shape (H, W, 3), got {level0.dtype} of shape {level0.shape}")
    if not spacing_um > 0:
        raise ValueError(f"expected a spacing_um above 0, got {spacing_um}")
    partial = Path(f"{os.fspath(path)}.{os.getpid()}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tifffile.TiffWriter(partial, bigtiff=level0.nbytes > 2**32) as tif:
            for reduction, level in enumerate(_halve_until(level0, 1024)):
                pixels_per_cm = 10_000.0 / spacing_um / 2**reduction
                tif.write(
                    level,
                    tile=(tile_px, tile_px),
                    photometric="rgb",
                    compression="jpeg",
                    compressionargs={"level": quality},
                    subfiletype=int(reduction > 0),  # without it OpenSlide passes over a reduced level
                    resolution=(pixels_per_cm, pixels_per_cm),
                    resolutionunit="CENTIMETER",
                    metadata=None,
                    software="normascope",
                )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class TiffSlide:
    """A plain tiled TIFF or Aperio SVS (8-bit RGB; JPEG, LZW or uncompressed), its tiles decoded one by one.

    The pixels are those of OpenSlide's whole level, at every position. (OpenSlide itself interpolates where an unaligned downsample such as
    2.0015 puts a region between pixels.)
    """

    def __init__(self, uri: str):
        self._uri = uri
        local = filesystems.local_path(uri)
        self._file = local.open("rb") if local is not None else filesystems.open_for_reading(uri, ahead_bytes=_AHEAD_BYTES)
        try:
            self._levels, self.spacing_um = parse_tiff(self._file, uri)
        except BaseException:
            self._file.close()
            raise
        self._is_local = local is not None
        self.level_dimensions = tuple((level.width_px, level.height_px) for level in self._levels)
        self.level_downsamples = _downsamples(self.level_dimensions)
        self.width_px, self.height_px = self.level_dimensions[0]
        self._kept: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._tiles_kept = max(4, _KEPT_BYTES // max(level.tile_width_px * level.tile_height_px * 3 for level in self._levels))
        self._lock = threading.Lock()

    def read_region(self, x_px: int, y_px: int, width_px: int, height_px: int, *, level: int = 0) -> NDArray[np.uint8]:
        """Read a rectangle; see `SlideReader`."""
        if (index := self._exact_tile(x_px, y_px, width_px, height_px, level)) is not None:
            return self._read_tile(level, index)
        region, (x0, y0, x1, y1) = _clip(self, x_px, y_px, width_px, height_px, level)
        if x0 >= x1 or y0 >= y1:
            return region
        side_x, side_y = self._levels[level].tile_width_px, self._levels[level].tile_height_px
        touched = [
            (row, column) for row in range(y0 // side_y, (y1 - 1) // side_y + 1) for column in range(x0 // side_x, (x1 - 1) // side_x + 1)
        ]
        for (row, column), tile in zip(touched, self._read_tiles(level, touched), strict=True):
            top, left = row * side_y, column * side_x
            bottom, right = min(top + side_y, y1), min(left + side_x, x1)
            part = tile[max(y0 - top, 0) : bottom - top, max(x0 - left, 0) : right - left]
            region[max(top, y0) - y_px : bottom - y_px, max(left, x0) - x_px : right - x_px] = part
        return region

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """Shrink the slide; see `SlideReader`."""
        return look_over(self, max_px)[0]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _exact_tile(self, x_px: int, y_px: int, width_px: int, height_px: int, level: int) -> int | None:
        """The index of the one tile that a region is, or None."""
        if not 0 <= level < len(self._levels):
            return None
        tiles = self._levels[level]
        if width_px != tiles.tile_width_px or height_px != tiles.tile_height_px or x_px % width_px or y_px % height_px:
            return None
        inside = 0 <= x_px <= tiles.width_px - width_px and 0 <= y_px <= tiles.height_px - height_px
        return y_px // height_px * tiles.tiles_across + x_px // width_px if inside else None

    def _read_tile(self, level: int, index: int) -> NDArray[np.uint8]:
        """A whole tile, which no neighbour shares: it is not kept, so that its memory is free for the next."""
        if (kept := self._kept.get((level, index))) is not None:  # one step to the interpreter: no lock is needed
            return kept.copy()
        tiles = self._levels[level]
        offset, count = tiles.offsets[index], tiles.byte_counts[index]
        data = os.pread(self._file.fileno(), count, offset) if self._is_local else self._read_bytes([(offset, count)])[0]
        return self._decode(level, index, data)

    def _read_tiles(self, level: int, positions: Sequence[tuple[int, int]]) -> list[NDArray[np.uint8]]:
        """Give tiles by (row, column). The last ones stay decoded, because unaligned neighbours share them."""
        tiles = self._levels[level]
        indices = [row * tiles.tiles_across + column for row, column in positions]
        with self._lock:
            found = {index: self._kept[level, index] for index in indices if (level, index) in self._kept}
        missing = [index for index in indices if index not in found]
        for index, data in zip(missing, self._read_bytes([(tiles.offsets[i], tiles.byte_counts[i]) for i in missing]), strict=True):
            found[index] = self._decode(level, index, data)
        with self._lock:
            for index in indices:
                self._kept[level, index] = found[index]
                self._kept.move_to_end((level, index))
            while len(self._kept) > self._tiles_kept:
                self._kept.popitem(last=False)
        return [found[index] for index in indices]

    def _read_bytes(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read (offset, count) ranges without a file position, which threads would have to share."""
        if self._is_local:
            return [os.pread(self._file.fileno(), count, offset) for offset, count in ranges]
        return filesystems.read_ranges(self._uri, ranges)

    def _decode(self, level: int, index: int, data: bytes) -> NDArray[np.uint8]:
        tiles = self._levels[level]
        try:
            if len(data) != tiles.byte_counts[index]:
                raise ValueError(f"the file ends after {len(data)} of its {tiles.byte_counts[index]} bytes")
            return tiles.decode(data, index)
        except (ValueError, RuntimeError, TypeError, struct.error) as error:
            row, column = divmod(index, tiles.tiles_across)
            raise UnreadableSlideError(
                f"{self._uri}: level {level}, tile in row {row}, column {column} cannot be decoded: {error}"
            ) from error


class OpenSlideReader:
    """Any local slide that OpenSlide knows, laid on the slide's background colour (white where it names none).

    Where a level's downsample is not a whole number, OpenSlide interpolates: pixels lie up to half a level-0 pixel off.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = os.fspath(path)
        self._slide = self._open()
        self._lock = threading.Lock()
        properties = self._slide.properties
        self.level_dimensions = tuple(self._slide.level_dimensions)
        self.level_downsamples = tuple(self._slide.level_downsamples)
        self.width_px, self.height_px = self.level_dimensions[0]
        self.spacing_um = _spacing_of_properties(properties)
        self._background = ImageColor.getrgb(f"#{properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, 'FFFFFF')}")

    def read_region(self, x_px: int, y_px: int, width_px: int, height_px: int, *, level: int = 0) -> NDArray[np.uint8]:
        """Read a rectangle; see `SlideReader`."""
        region, (x0, y0, x1, y1) = _clip(self, x_px, y_px, width_px, height_px, level)
        if x0 >= x1 or y0 >= y1:
            return region
        downsample = self.level_downsamples[level]
        composited = self._read((round(x0 * downsample), round(y0 * downsample)), level, (x1 - x0, y1 - y0))
        opaque = Image.new("RGB", composited.size, self._background)
        opaque.paste(composited, mask=composited)
        region[y0 - y_px : y1 - y_px, x0 - x_px : x1 - x_px] = np.asarray(opaque)
        return region

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """Shrink the slide; see `SlideReader`."""
        return look_over(self, max_px)[0]

    def close(self) -> None:
        """Close the file."""
        self._slide.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self._path)
        except openslide.OpenSlideError as error:
            raise UnreadableSlideError(f"{self._path}: not a slide that OpenSlide reads ({error})") from error

    def _read(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        try:
            return self._slide.read_region(location, level, size)
        except openslide.OpenSlideError:
            pass
        # One bad tile spoils an OpenSlide handle for good, for every thread: try once more alone, and leave a fresh handle behind
        with self._lock:
            fresh, self._slide = self._open(), self._open()
        with fresh:
            try:
                return fresh.read_region(location, level, size)
            except openslide.OpenSlideError as error:
                at = f"level {level}, region of {size[0]}x{size[1]} px at level-0 position {location}"
                raise UnreadableSlideError(f"{self._path}: {at} cannot be decoded: {error}") from error


def _spacing_of_properties(properties: Mapping[str, str]) -> float | None:
    if openslide.PROPERTY_NAME_MPP_X in properties:
        return plausible_spacing(float(properties[openslide.PROPERTY_NAME_MPP_X]))
    unit = {"inch": 2, "centimeter": 3}.get(properties.get("tiff.ResolutionUnit", ""), 1)
    return spacing_of_resolution(float(properties.get("tiff.XResolution", 0)), unit)


def _downsamples(dimensions: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """Average the ratios of widths and of heights, as OpenSlide does."""
    width_px, height_px = dimensions[0]
    return tuple((width_px / w + height_px / h) / 2 for w, h in dimensions)


def _clip(
    slide: SlideReader, x_px: int, y_px: int, width_px: int, height_px: int, level: int
) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
    """Check a rectangle; give a canvas for it, white where no slide is, and the part (x0, y0, x1, y1) of it that lies on the slide."""
    if not 0 <= level < len(slide.level_dimensions):
        raise ValueError(f"expected a level from 0 to {len(slide.level_dimensions) - 1}, got {level}")
    if width_px < 1 or height_px < 1:
        raise ValueError(f"expected a region of at least 1x1 px, got {width_px}x{height_px}")
    level_width_px, level_height_px = slide.level_dimensions[level]
    inside = (max(x_px, 0), max(y_px, 0), min(x_px + width_px, level_width_px), min(y_px + height_px, level_height_px))
    if inside == (x_px, y_px, x_px + width_px, y_px + height_px):
        return np.empty((height_px, width_px, 3), np.uint8), inside  # nothing of it will be seen
    return np.full((height_px, width_px, 3), 255, np.uint8), inside


def look_over(slide: SlideReader, max_px: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Shrink a slide, antialiased, past damaged tiles: what a level has lost is read from a finer one.

    The smallest level that is large enough is read band by band, so that a slide of one level never lies in memory whole.

    Args:
        slide: open for reading.
        max_px: the longer side, or the slide's own, if that is less.

    Returns:
        (H, W, 3) uint8 RGB, and (H, W) bool: where no level can be decoded down to level 0; white there.

    Raises:
        UnreadableSlideError: nothing of the slide can be decoded.
    """
    if max_px < 1:
        raise ValueError(f"expected max_px of at least 1, got {max_px}")
    level = max((index for index, size in enumerate(slide.level_dimensions) if max(size) >= max_px), default=0)
    width_px, height_px = slide.level_dimensions[level]
    scale = min(1.0, max_px / max(slide.width_px, slide.height_px))
    size = max(1, round(slide.width_px * scale)), max(1, round(slide.height_px * scale))
    factor = max(1, max(width_px, height_px) // (2 * max(size)))  # box averages to twice the size at the least, then an antialiased resize
    rows = factor * math.ceil(256 / factor)
    bands, holes = [], np.zeros(size[::-1], bool)
    for y in range(0, height_px, rows):
        height = min(rows, height_px - y)
        try:
            band = slide.read_region(0, y, width_px, height, level=level)
        except UnreadableSlideError as error:
            band, lost = _read_past_damage(slide, y, height, level)
            for left, top, right, bottom in lost * (scale * slide.level_downsamples[level]):
                holes[int(top) : math.ceil(bottom), int(left) : math.ceil(right)] = True
            if holes.all():
                raise UnreadableSlideError(f"nothing of the slide can be decoded: {error}") from error
        bands.append(band if factor == 1 else np.asarray(Image.fromarray(band).reduce(factor)))
    reduced, box = np.concatenate(bands), (0, 0, width_px / factor, height_px / factor)
    if box[2:] == size:
        return reduced, holes
    return np.asarray(Image.fromarray(reduced).resize(size, Image.Resampling.LANCZOS, box=box)), holes


def _read_past_damage(slide: SlideReader, y_px: int, height_px: int, level: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A band of a level, block by block, each from the next finer level that has it; and (n, 4) x0, y0, x1, y1 of what none has."""
    width_px = slide.level_dimensions[level][0]
    band, lost = np.full((height_px, width_px, 3), 255, np.uint8), []
    for y in range(0, height_px, _BLOCK_PX):
        for x in range(0, width_px, _BLOCK_PX):
            size = min(_BLOCK_PX, width_px - x), min(_BLOCK_PX, height_px - y)
            place = np.s_[y : y + size[1], x : x + size[0]]
            for finer in range(level, -1, -1):
                ratio = slide.level_downsamples[level] / slide.level_downsamples[finer]
                left, top, width, height = (round(length * ratio) for length in (x, y_px + y, *size))
                try:
                    block = Image.fromarray(slide.read_region(left, top, max(1, width), max(1, height), level=finer))
                except UnreadableSlideError:
                    continue
                band[place] = np.asarray(block.resize(size, Image.Resampling.BOX))
                break
            else:
                lost.append((x, y_px + y, x + size[0], y_px + y + size[1]))
    return band, np.array(lost, np.int64).reshape(-1, 4)


def _halve_until(level: NDArray[np.uint8], below_px: int) -> Iterator[NDArray[np.uint8]]:
    """Give a level and its successive halves, the last one less than `below_px` in both directions."""
    yield level
    while max(level.shape[:2]) >= below_px and min(level.shape[:2]) >= 2:
        height_px, width_px = level.shape[0] // 2 * 2, level.shape[1] // 2 * 2
        level = np.asarray(Image.fromarray(level[:height_px, :width_px]).reduce(2))
        yield level
