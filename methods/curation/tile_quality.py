"""Blur and ink of all tiles of a row of a slide's grid at once, so that marking them costs less than reading them."""

import numpy as np

from methods.curation.quality import ink_mask

_CELL_PX = 16  # contrast counts within cells, so that a change of stain from one side of the tile to the other is no sharpness
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_ROUNDING = float(20 / 12 * (_GREY**2).sum())  # variance of the Laplacian of rounding each channel to whole levels
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
    grey = strip @ _GREY
    laplacian = np.zeros_like(grey)
    laplacian[1:-1, 1:-1] = grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1] - 4 * grey[1:-1, 1:-1]
    variance = _mean_in_spans(laplacian**2, spans) - _mean_in_spans(laplacian, spans) ** 2
    contrast = _mean_in_spans(_within_cells(grey) ** 2, spans)
    sharpness = np.divide(np.maximum(variance - _ROUNDING, 0), contrast, out=np.zeros_like(variance), where=contrast > 1e-3)
    return sharpness, _mean_in_spans(ink_mask(strip[::_INK_STEP, ::_INK_STEP]).astype(np.float32), np.asarray(spans) / _INK_STEP)


def _mean_in_spans(values: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Mean of (h, w) values in each span of columns."""
    sums = np.concatenate([[0.0], values.sum(axis=0, dtype=np.float64).cumsum()])
    first, last = np.asarray(spans).round().astype(int).clip(0, values.shape[1]).T
    return np.asarray((sums[last] - sums[first]) / (np.maximum(last - first, 1) * values.shape[0]))


def _within_cells(grey: np.ndarray) -> np.ndarray:
    """Differences of (h, w) grey values from their cell's mean; cells at the rim are smaller."""
    rows, columns = np.arange(0, grey.shape[0], _CELL_PX), np.arange(0, grey.shape[1], _CELL_PX)
    sums = np.add.reduceat(np.add.reduceat(grey, rows, axis=0), columns, axis=1)
    heights, widths = np.diff([*rows, grey.shape[0]]), np.diff([*columns, grey.shape[1]])
    means = sums / np.outer(heights, widths)
    return grey - means.repeat(heights, axis=0).repeat(widths, axis=1)
