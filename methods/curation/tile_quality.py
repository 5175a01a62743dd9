"""Blur and ink of all tiles of a row of a slide's grid at once, so that marking them costs less than reading them."""

import numpy as np

from methods.curation.hashing import compiled
from methods.curation.ink import count_ink

_CELL_PX = 16  # contrast counts within cells, so that a change of stain from one side of the tile to the other is no sharpness
_RED, _GREEN, _BLUE = np.float32(0.299), np.float32(0.587), np.float32(0.114)
_ROUNDING = float(20 / 12 * (_RED**2 + _GREEN**2 + _BLUE**2))  # variance of the Laplacian of rounding each channel to whole levels
_INK_STEP = 4  # strokes are wide: one pixel of sixteen is looked at


def measure_tiles(strip: np.ndarray, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sharpness and share of ink of tiles that stand side by side or overlap in a strip.

    The measures are those of `methods.curation.quality`: variance of the Laplacian over the variance within cells of 16 px, and the share
    of pixels in the colours of ink; here the cells are the strip's, not each tile's.

    Args:
        strip: (h, w, 3) uint8 RGB, as high as a tile.
        spans: (n, 2) first column of each tile and the one after its last.

    Returns:
        sharpness (n,) and share of ink (n,) in [0, 1], float64.
    """
    strip, spans = np.ascontiguousarray(strip), np.asarray(spans, np.float64)
    sharpness = _sharpness_in_spans(_sum_columns(strip), spans, strip.shape[0])
    return sharpness, _share_in_spans(count_ink(strip, step_px=_INK_STEP), spans, strip.shape[0])


@compiled
def _sharpness_in_spans(sums: np.ndarray, spans: np.ndarray, height: int) -> np.ndarray:
    """(n,) float64, of the sums over columns that `_sum_columns` gives."""
    columns = np.rint(spans).astype(np.int64)
    laplacian, square, within_cells = _mean_in_spans(sums, columns, height)
    sharpness = np.zeros(len(spans))
    for n in range(len(spans)):
        if within_cells[n] > 1e-3:
            sharpness[n] = max(square[n] - laplacian[n] * laplacian[n] - _ROUNDING, 0.0) / within_cells[n]
    return sharpness


@compiled
def _share_in_spans(counts: np.ndarray, spans: np.ndarray, height: int) -> np.ndarray:
    """(n,) float64, of how many of the pixels that are looked at in a column are ink."""
    columns = np.rint(spans / _INK_STEP).astype(np.int64)
    return _mean_in_spans(counts.reshape(1, -1), columns, (height + _INK_STEP - 1) // _INK_STEP)[0]


@compiled
def _mean_in_spans(sums: np.ndarray, spans: np.ndarray, height: int) -> np.ndarray:
    """(k, n) means of k quantities in each span of columns, of their (k, w) sums over the `height` pixels of each column."""
    width = sums.shape[1]
    means, before = np.empty((len(sums), len(spans))), np.zeros(width + 1)
    for k in range(len(sums)):
        for x in range(width):
            before[x + 1] = before[x] + sums[k, x]
        for n in range(len(spans)):
            first, last = min(max(spans[n, 0], 0), width), min(max(spans[n, 1], 0), width)
            means[k, n] = (before[last] - before[first]) / (max(last - first, 1) * height)
    return means


@compiled
def _sum_columns(strip: np.ndarray) -> np.ndarray:
    """(3, w) float32 sums over each column: the Laplacian, its square, the squared difference from the mean of the cell.

    A row at a time, whatever it takes from memory then being in the nearest cache, because every tile of every slide comes by. The
    Laplacian of the rim is 0; cells at the far rim are smaller.
    """
    grey = _to_grey(strip)
    height, width = grey.shape
    sums = np.zeros((3, width), np.float32)
    laplacians, squares, differences = sums[0], sums[1], sums[2]
    for y in range(1, height - 1):
        above, row, below = grey[y - 1], grey[y], grey[y + 1]
        for x in range(1, width - 1):
            laplacian = row[x - 1] + row[x + 1] + above[x] + below[x] - np.float32(4) * row[x]
            laplacians[x] += laplacian
            squares[x] += laplacian * laplacian
    total, mean = np.empty(width, np.float32), np.empty(width, np.float32)
    for top in range(0, height, _CELL_PX):
        bottom = min(top + _CELL_PX, height)
        total[:] = 0
        for y in range(top, bottom):
            row = grey[y]
            for x in range(width):
                total[x] += row[x]
        for left in range(0, width, _CELL_PX):
            cell = total[left : left + _CELL_PX]
            mean[left : left + _CELL_PX] = cell.sum() / np.float32((bottom - top) * len(cell))
        for y in range(top, bottom):
            row = grey[y]
            for x in range(width):
                difference = row[x] - mean[x]
                differences[x] += difference * difference
    return sums


@compiled
def _to_grey(strip: np.ndarray) -> np.ndarray:
    """(h, w) float32 of (h, w, 3) uint8; unsigned indices, because only loops that check none for being negative run on vectors."""
    grey = np.empty(strip.shape[0] * strip.shape[1], np.float32)
    channels, one, two, three = strip.reshape(-1), np.uint64(1), np.uint64(2), np.uint64(3)
    for i in range(np.uint64(len(grey))):
        red, green, blue = channels[three * i], channels[three * i + one], channels[three * i + two]
        grey[i] = _RED * np.float32(red) + _GREEN * np.float32(green) + _BLUE * np.float32(blue)
    return grey.reshape(strip.shape[:2])
