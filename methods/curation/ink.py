"""The colours of ink: pen marks on slides and photographs, pixel by pixel. The kernels stand in one file, for Numba caches by file."""

import numpy as np

from methods.curation.hashing import compiled

_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)  # of a grey level, natural


def ink_mask(pixels: np.ndarray) -> np.ndarray:
    """Which of (..., 3) uint8 RGB pixels have the colour of ink, (...) bool; see `quality.pen_share`."""
    return np.asarray(_are_ink(np.ascontiguousarray(pixels).reshape(-1, 3), _DENSITY)).reshape(pixels.shape[:-1])


def count_ink(strip: np.ndarray, *, step_px: int) -> np.ndarray:
    """How many of the pixels that are looked at in a column are ink: every `step_px`-th of (h, w, 3) uint8 RGB; (w / step_px,) float32."""
    return np.asarray(_count_in_columns(strip, _DENSITY, step_px))


@compiled
def _are_ink(pixels: np.ndarray, density: np.ndarray) -> np.ndarray:
    """(n,) bool of (n, 3)."""
    ink = np.zeros(len(pixels), np.bool_)
    for i in range(len(pixels)):
        ink[i] = _is_ink(density[pixels[i, 0]], density[pixels[i, 1]], density[pixels[i, 2]])
    return ink


@compiled
def _count_in_columns(strip: np.ndarray, density: np.ndarray, step_px: int) -> np.ndarray:
    counts = np.zeros(-(-strip.shape[1] // step_px), np.float32)
    for y in range(0, strip.shape[0], step_px):
        for column in range(len(counts)):
            red, green, blue = strip[y, column * step_px]
            counts[column] += _is_ink(density[red], density[green], density[blue])
    return counts


@compiled
def _is_ink(red: float, green: float, blue: float) -> bool:
    """Whether a pixel has the colour of ink, by the densities of its channels. All in float32, as the densities are."""
    f = np.float32
    total = red + green + blue
    if total <= f(1):
        return False  # too pale, as most are
    red, green, blue = red / total, green / total, blue / total
    evenness = max(red, green, blue) - min(red, green, blue)
    blue_or_green_ink = red > f(1.2) * green or (red > green and total > f(2.5))  # tissue shines through: it adds green
    black_ink = (evenness < f(0.08) and total > f(3.2)) or (evenness < f(0.125) and total > f(4))
    red_ink = red < f(0.12) and blue > f(0.36) and total > f(1.8)
    return bool(blue_or_green_ink or black_ink or red_ink)
