"""From the maps of overlapping tiles to one map of a slide, band by band, and its reduced levels.

Coordinates are pixels of the slide's map: pixel i covers [i, i + 1) and its centre lies at i + ½.
"""

from collections.abc import Iterator

import numpy as np
import torch

from methods.curation.hashing import compiled

_LEAST_WEIGHT = np.float32(2**-10)  # of a pixel whose centre lies on its tile's border: it counts where it is the only one
SLAB_ROWS = 64  # of a band, to be held in float32 at once


class Mosaic:
    """Blends tiles into a map that is never in memory whole.

    A tile of n × n pixels that begins at o says, of a pixel of the map whose centre lies u = i + ½ − o inside of it, what its own map says
    there, by linear interpolation between the centres of its pixels (none is needed where o is a whole number). Along each axis this
    weighs min(u, n − u), the two axes' weights are multiplied, and a pixel is the weighted mean of all tiles that cover its centre.

    So weights fall to nothing at a tile's border: in an overlap one tile fades linearly into the next, which leaves no seam, and a
    network's outermost pixels, which saw half of their surroundings, have the least say. A constant map stays constant, and where
    there is one tile only it is unchanged. nnU-Net (Isensee et al. 2021) and MONAI blend by a Gaussian instead, whose width is one more
    number to choose and which still jumps at the border.

    Tiles are added from the top down; a pixel's sum is made in the order in which they are added, whatever the bands are.
    """

    def __init__(self, *, width_px: int, band_px: int, tile_px: int, dtype: np.dtype) -> None:
        """Begin at the map's first row.

        Args:
            width_px: of the map.
            band_px: rows that are taken at once.
            tile_px: height and width of the tiles' maps.
            dtype: of the map, float16 or float32; sums are float32.
        """
        self._band = np.empty((band_px, width_px), dtype)
        self._top = 0
        self._sum = np.zeros((band_px + tile_px + 1, width_px), np.float32)
        self._weight = np.zeros_like(self._sum)

    def add(self, maps: np.ndarray, corners: np.ndarray) -> None:
        """Add tiles whose first row lies in the band that is taken next, or above it.

        Args:
            maps: (n, tile_px, tile_px) float16 or float32, finite.
            corners: (n, 2) float64, x and y of the upper left corner; parts beyond the map's left and right are left out.
        """
        first = np.ceil(corners - 0.5).astype(np.int64)  # pixels whose centre is inside
        shift = (first - corners).astype(np.float32)  # from a tile's own pixels to the map's, in [−½, ½)
        _add_tiles(self._sum, self._weight, cast(maps, np.dtype(np.float32)), first[:, 0], first[:, 1] - self._top, shift)

    def take(self) -> np.ndarray:
        """The next `band_px` rows, (band_px, width_px), NaN where no tile covers a pixel's centre; the next call writes over them."""
        band_px = len(self._band)
        with np.errstate(invalid="ignore"):  # nothing of no weight is NaN
            for start in range(0, band_px, SLAB_ROWS):
                rows = slice(start, min(start + SLAB_ROWS, band_px))
                np.divide(self._sum[rows], self._weight[rows], out=self._sum[rows])
                self._band[rows] = cast(self._sum[rows], self._band.dtype)
        for array in (self._sum, self._weight):
            for row in range(len(array) - band_px):  # one by one: at once NumPy would copy them first
                array[row] = array[row + band_px]
            array[-band_px:] = 0
        self._top += band_px
        return self._band


@compiled
def _add_tiles(total: np.ndarray, weight: np.ndarray, maps: np.ndarray, left: np.ndarray, top: np.ndarray, shift: np.ndarray) -> None:
    count, side = maps.shape[0], maps.shape[1]
    height, width = total.shape
    across = np.empty(side, np.float32)
    for tile in range(count):
        shift_x, shift_y = shift[tile]
        toward_x, toward_y = int(np.sign(shift_x)), int(np.sign(shift_y))
        share_x, share_y = abs(shift_x), abs(shift_y)  # of the neighbour
        for j in range(side):
            across[j] = max(min(j + np.float32(0.5) + shift_x, side - j - np.float32(0.5) - shift_x), _LEAST_WEIGHT)
        for i in range(max(0, -top[tile]), min(side, height - top[tile])):
            down = max(min(i + np.float32(0.5) + shift_y, side - i - np.float32(0.5) - shift_y), _LEAST_WEIGHT)
            row, beside = maps[tile, i], maps[tile, min(max(i + toward_y, 0), side - 1)]
            sums, weights = total[top[tile] + i], weight[top[tile] + i]
            first, stop = max(0, -left[tile]), min(side, width - left[tile])
            if toward_x == 0 and toward_y == 0:
                for j in range(first, stop):
                    sums[left[tile] + j] += down * across[j] * row[j]
                    weights[left[tile] + j] += down * across[j]
                continue
            for j in range(first, stop):
                k = min(max(j + toward_x, 0), side - 1)
                here = (1 - share_x) * row[j] + share_x * row[k]
                there = (1 - share_x) * beside[j] + share_x * beside[k]
                sums[left[tile] + j] += down * across[j] * ((1 - share_y) * here + share_y * there)
                weights[left[tile] + j] += down * across[j]


def cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """As `astype`; by torch, which uses the processor's instructions for float16 where NumPy takes ten times as long."""
    return torch.from_numpy(values).to(_TORCH[dtype]).numpy() if values.dtype != dtype else values


_TORCH = {np.dtype(np.float16): torch.float16, np.dtype(np.float32): torch.float32}


class Pyramid:
    """The bands of every level of a map, while those of the first go by."""

    def __init__(self, *, height_px: int, width_px: int, band_px: int, least_px: int) -> None:
        """Halve a map of this size until no side is longer than `least_px`; bands of `band_px` rows, an even number."""
        self.shapes = [(height_px, width_px)]
        while max(self.shapes[-1]) > least_px:
            height_px, width_px = -(-height_px // 2), -(-width_px // 2)
            self.shapes.append((height_px, width_px))
        self._band_px = band_px
        self._waiting: list[list[np.ndarray]] = [[] for _ in self.shapes]
        self._given = [0] * len(self.shapes)

    def add(self, band: np.ndarray, level: int = 0) -> Iterator[tuple[int, int, np.ndarray]]:
        """Take the next band, or the rest, of a level; give level, first row and rows of each band that it completes, the finest first."""
        waiting = self._waiting[level]
        waiting.append(band)
        rows, top = sum(map(len, waiting)), self._given[level]
        if rows < self._band_px and top + rows < self.shapes[level][0]:
            return
        band = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
        waiting.clear()
        self._given[level] += rows
        yield level, top, band
        if level + 1 < len(self.shapes):
            yield from self.add(halve(band), level + 1)


def halve(rows: np.ndarray) -> np.ndarray:
    """Reduce a map to half its size: each pixel is the mean of those of its 2 × 2 that are there.

    Args:
        rows: (h, w) float; an odd last row or column is reduced alone.

    Returns:
        (⌈h / 2⌉, ⌈w / 2⌉) of the same type; NaN where all four are.
    """
    halved = np.empty((-(-rows.shape[0] // 2), -(-rows.shape[1] // 2)), rows.dtype)
    for start in range(0, len(rows), SLAB_ROWS):
        slab = _halve(cast(rows[start : start + SLAB_ROWS], np.dtype(np.float32)))
        halved[start // 2 : start // 2 + len(slab)] = cast(slab, halved.dtype)
    return halved


@compiled
def _halve(rows: np.ndarray) -> np.ndarray:
    height, width = rows.shape
    halved = np.empty(((height + 1) // 2, (width + 1) // 2), np.float32)
    for i in range(halved.shape[0]):
        upper, lower = rows[2 * i], rows[min(2 * i + 1, height - 1)]
        twice = np.float32(2 * i + 1 < height)  # else the row below is the same one and does not count
        for j in range(halved.shape[1]):
            x, z = 2 * j, min(2 * j + 1, width - 1)
            wide = np.float32(z > x)
            total = count = np.float32(0)
            for value, weight in ((upper[x], np.float32(1)), (upper[z], wide), (lower[x], twice), (lower[z], wide * twice)):
                there = value == value  # not NaN
                total += weight * value if there else np.float32(0)
                count += weight if there else np.float32(0)
            halved[i, j] = total / count if count else np.float32(np.nan)
    return halved
