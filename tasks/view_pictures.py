"""What the page draws: samples, maps, and the deep-zoom tiles of slides and of their heatmaps. Pixels and bytes, no addresses."""

import math
from functools import lru_cache

import numpy as np
from PIL import Image

from storage.images import encode_jpeg
from storage.slides import SlideReader, look_over, open_slide
from storage.tiff_levels import UnreadableSlideError

PICTURE_COLUMNS = ["uri", "frame", "sha256", "level", "x_px", "y_px", "width_px", "height_px", "transform"]  # what `read_sample` looks at
TILE_PX = 512
_OVERVIEW_PX = 2048
_COARSEST_READ = 8  # a tile is reduced at most this much from the next finer level; below that from the overview
_UNREADABLE = 200  # grey of tiles that cannot be decoded


class DeepSlide:
    """A slide as square tiles at every power of two: level 0 is the coarsest, on which the slide is one tile at most."""

    def __init__(self, reader: SlideReader) -> None:
        self.reader = reader
        self.levels = 1 + max(0, math.ceil(math.log2(max(reader.width_px, reader.height_px) / TILE_PX)))
        self._overview: np.ndarray | None = None

    def tile(self, level: int, column: int, row: int) -> np.ndarray:
        """One tile, (h, w, 3) uint8, smaller than `TILE_PX` at the right and lower edge; grey where the slide is damaged.

        Raises:
            IndexError: no such tile.
        """
        downsample = 2 ** (self.levels - 1 - level)
        width, height = (math.ceil(side / downsample) for side in (self.reader.width_px, self.reader.height_px))
        x, y = column * TILE_PX, row * TILE_PX
        if not (0 <= level < self.levels and 0 <= x < width and 0 <= y < height):
            raise IndexError(f"no tile in column {column} and row {row} of level {level}")
        size = min(TILE_PX, width - x), min(TILE_PX, height - y)
        fine = [index for index, factor in enumerate(self.reader.level_downsamples) if factor <= downsample * 1.01]
        source = fine[-1]
        factor = downsample / self.reader.level_downsamples[source]
        try:
            if factor > _COARSEST_READ:
                return self._cut_overview(x * downsample, y * downsample, downsample, size)
            left, top, right, bottom = (round(side * factor) for side in (x, y, x + size[0], y + size[1]))
            region = self.reader.read_region(left, top, max(1, right - left), max(1, bottom - top), level=source)
        except UnreadableSlideError:
            return np.full((size[1], size[0], 3), _UNREADABLE, np.uint8)
        return np.asarray(Image.fromarray(region).resize(size, Image.Resampling.BOX))

    def _cut_overview(self, x_px: float, y_px: float, downsample: float, size: tuple[int, int]) -> np.ndarray:
        """From a picture of the whole slide, for slides without coarse levels."""
        if self._overview is None:
            self._overview = look_over(self.reader, _OVERVIEW_PX)[0]
        scale = self._overview.shape[1] / self.reader.width_px
        ends = min(x_px + size[0] * downsample, self.reader.width_px), min(y_px + size[1] * downsample, self.reader.height_px)
        box = (x_px * scale, y_px * scale, min(ends[0] * scale, self._overview.shape[1]), min(ends[1] * scale, self._overview.shape[0]))
        return np.asarray(Image.fromarray(self._overview).resize(size, Image.Resampling.BOX, box=box))


@lru_cache(maxsize=4)
def deep_slide(uri: str, _sha256: str) -> DeepSlide:
    """A slide, kept open; the digest is part of the key, so that a file that was replaced is opened again."""
    return DeepSlide(open_slide(uri))


def as_jpeg(pixels: np.ndarray) -> bytes:
    """The bytes of a JPEG file."""
    return encode_jpeg(pixels, quality=85)


def as_halves(values: np.ndarray, *, size_px: int | None = None) -> bytes:
    """Scores as little-endian float16, row by row; NaN stays NaN.

    Args:
        values: (H, W) float.
        size_px: reduce to this many rows and columns, by the mean of what each covers; None or more than there are leaves them.
    """
    if size_px is not None and size_px < values.shape[0]:
        values = np.asarray(Image.fromarray(values.astype(np.float32)).resize((size_px, size_px), Image.Resampling.BOX))
    return values.astype("<f2").tobytes()
