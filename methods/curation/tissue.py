"""Tissue or glass: Otsu's threshold on a thumbnail, and the grid of tiles over it."""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from methods.curation.components import remove_small_parts
from methods.curation.hashing import compiled

_BLUR_PX = 2.0  # tissue is a texture: fibres, nuclei and what lies between them are one
_REACH = int(4 * _BLUR_PX)  # to four sigma
_BLUR_WEIGHTS = np.exp(-0.5 * (np.arange(_REACH + 1) / _BLUR_PX) ** 2)  # of the centre and one side
_BLUR_WEIGHTS = (_BLUR_WEIGHTS / (2 * _BLUR_WEIGHTS.sum() - _BLUR_WEIGHTS[0])).astype(np.float32)
_DENSITY = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)  # of a grey level
_GLASS_OD = 0.02  # about what empty glass absorbs; below it the logarithm only stretches noise
_LEVELS = 256  # of the histogram that thresholds are looked for in
_LEAST_SHADES = 0.0023  # natural logarithm of the range of densities below which there is one shade


class TissueConfig(BaseModel):
    """What counts as tissue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    smallest_object_um2: float = Field(default=20_000, ge=0, description="smaller pieces are debris")
    largest_hole_um2: float = Field(default=20_000, ge=0, description="smaller holes are lumens and belong to the tissue")
    least_contrast_od: float = Field(
        default=0.08, ge=0, description="optical density by which tissue and glass must differ to be two classes"
    )
    most_glass_od: float = Field(default=0.1, ge=0, description="mean optical density above which the clearest class is no glass")


def find_tissue(thumbnail: np.ndarray, *, spacing_um: float, config: TissueConfig) -> np.ndarray:
    """Which pixels of a slide's thumbnail are tissue.

    Otsu (1979) for three classes, glass, pale and strongly stained, of which the last two are tissue, on the logarithm of the blurred
    optical density (the mean over the channels of −log10(I / 255)). Density rather than saturation, because pale stroma absorbs but has
    hardly any hue; its logarithm and three classes, because else a strong chromogen pulls the threshold up and pale stroma is taken for
    glass. Where the clearest class is no glass, or differs from the rest by less than `least_contrast_od`, there is only one class:
    glass if even the rest is as clear as glass, else tissue.

    Args:
        thumbnail: (h, w, 3) uint8 RGB.
        spacing_um: µm per pixel of the thumbnail.
        config: sizes and contrast.

    Returns:
        (h, w) bool.
    """
    density = _blur(_mean_density(np.ascontiguousarray(thumbnail), _DENSITY), _BLUR_WEIGHTS)
    mask = density > _threshold(density)
    clear, rest = _class_means(density, mask)
    if clear > config.most_glass_od or rest - clear < config.least_contrast_od:
        return np.full(density.shape, bool(rest > config.most_glass_od))
    mask = _opened(mask)
    pixel_um2 = spacing_um**2
    mask = ~remove_small_parts(~mask, round(config.largest_hole_um2 / pixel_um2))
    return np.asarray(remove_small_parts(mask, round(config.smallest_object_um2 / pixel_um2)))


def _class_means(density: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """The mean outside of the mask and in it; where it is empty the mean of all twice."""
    total, inside, marked = _sum_inside(density, mask)
    if not marked:
        return total / density.size, total / density.size
    return (total - inside) / (density.size - marked), inside / marked


@compiled
def _sum_inside(density: np.ndarray, mask: np.ndarray) -> tuple[float, float, int]:
    """Sums of all and of what is in the mask, and how many are; column by column, which vector units add at once."""
    totals, insides, counts = np.zeros(mask.shape[1]), np.zeros(mask.shape[1]), np.zeros(mask.shape[1], np.int32)
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            totals[x] += density[y, x]
            insides[x] += density[y, x] if mask[y, x] else np.float32(0)
            counts[x] += mask[y, x]
    return totals.sum(), insides.sum(), counts.sum()


@compiled
def _mean_density(thumbnail: np.ndarray, density: np.ndarray) -> np.ndarray:
    """(h, w) float32: the mean over the channels of the density of their levels."""
    mean = np.empty(thumbnail.shape[:2], np.float32)
    for y in range(thumbnail.shape[0]):
        for x in range(thumbnail.shape[1]):
            mean[y, x] = (density[thumbnail[y, x, 0]] + density[thumbnail[y, x, 1]] + density[thumbnail[y, x, 2]]) / np.float32(3)
    return mean


def _blur(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Gaussian filter of (h, w) float32, mirrored at its rim; SciPy's to rounding, in a fifth of its time."""
    return np.asarray(_blur_padded(np.pad(values, _REACH, mode="symmetric"), weights))


@compiled
def _blur_padded(padded: np.ndarray, weights: np.ndarray) -> np.ndarray:
    height, width = padded.shape[0] - 2 * _REACH, padded.shape[1] - 2 * _REACH
    blurred = np.empty((height, width), np.float32)
    column = np.empty(padded.shape[1], np.float32)
    for y in range(height):  # down and across while the row is in the processor's nearest cache
        for x in range(len(column)):
            total = weights[0] * padded[y + _REACH, x]
            for k in range(1, _REACH + 1):  # a constant number of turns: no loop to the compiler, and the one around runs on vectors
                total += weights[k] * (padded[y + _REACH - k, x] + padded[y + _REACH + k, x])
            column[x] = total
        for x in range(width):
            total = weights[0] * column[x + _REACH]
            for k in range(1, _REACH + 1):
                total += weights[k] * (column[x + _REACH - k] + column[x + _REACH + k])
            blurred[y, x] = total
    return blurred


@compiled
def _opened(mask: np.ndarray) -> np.ndarray:
    """Binary opening by a square of 3 × 3, row by row as the rows are at hand; what lies outside is empty."""
    height, width = mask.shape
    eroded, opened = np.zeros((height + 2, width + 2), np.bool_), np.empty((height, width), np.bool_)
    column = np.empty(width + 2, np.bool_)
    for y in range(1, height - 1):
        for x in range(width):
            column[x] = mask[y - 1, x] & mask[y, x] & mask[y + 1, x]
        for x in range(1, width - 1):
            eroded[y + 1, x + 1] = column[x - 1] & column[x] & column[x + 1]
    for y in range(height):
        for x in range(width + 2):
            column[x] = eroded[y, x] | eroded[y + 1, x] | eroded[y + 2, x]
        for x in range(width):
            opened[y, x] = column[x] | column[x + 1] | column[x + 2]
    return opened


def _threshold(density: np.ndarray) -> float:
    """The lowest of the two thresholds; of a picture of hardly any shades the highest density, above which there is nothing."""
    logarithm = density + np.float32(_GLASS_OD)
    np.log(logarithm, out=logarithm)
    low, high = float(logarithm.min()), float(logarithm.max())
    if high - low < _LEAST_SHADES:
        return float(density.max())
    level = _lowest_of_two_thresholds(_histogram(logarithm, low, high, _LEVELS))
    return float(np.exp(low + (level + 0.5) * (high - low) / _LEVELS) - _GLASS_OD)


@compiled
def _histogram(values: np.ndarray, low: float, high: float, bins: int) -> np.ndarray:
    """(bins,) int64 counts in bins of equal width from `low` to `high`; counted fourfold, so that neighbours do not wait for each other."""
    counts, scale = np.zeros((4, bins + 1), np.int64), np.float32(bins / (high - low))
    lowest, flat, mask = np.float32(low), values.reshape(-1), np.uint64(3)
    for i in range(np.uint64(len(flat))):
        counts[i & mask, np.uint32((flat[i] - lowest) * scale)] += 1
    counts[:, bins - 1] += counts[:, bins]
    return counts.sum(axis=0)[:bins]


@compiled
def _lowest_of_two_thresholds(counts: np.ndarray) -> int:
    """The last bin of the lowest of three classes that differ most: Otsu's criterion for several classes, Liao et al. (2001), eq. 22."""
    P, S = np.zeros(len(counts) + 1), np.zeros(len(counts) + 1)  # up to each bin: how many, and the sum of their bins
    for i in range(len(counts)):
        P[i + 1], S[i + 1] = P[i] + counts[i], S[i] + counts[i] * i
    best, first = -1.0, 0
    for i in range(len(counts) - 2):
        for j in range(i + 1, len(counts) - 1):
            between = 0.0
            for start, end in ((0, i + 1), (i + 1, j + 1), (j + 1, len(counts))):
                if P[end] > P[start]:
                    between += (S[end] - S[start]) ** 2 / (P[end] - P[start])
            if between > best:
                best, first = between, i
    return first


def tissue_share(mask: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Share of a mask inside each box.

    Args:
        mask: (h, w) bool.
        boxes: (n, 4) x0, y0, x1, y1 in pixels of the mask; rounded, and at least one pixel is looked at.

    Returns:
        (n,) float64 in [0, 1].
    """
    height, width = mask.shape
    x0, y0, x1, y1 = np.asarray(boxes, float).reshape(-1, 4).round().astype(int).T
    x0, y0 = x0.clip(0, width - 1), y0.clip(0, height - 1)
    x1, y1 = np.maximum(x1.clip(0, width), x0 + 1), np.maximum(y1.clip(0, height), y0 + 1)
    return np.asarray(_count_in_boxes(mask, x0, y0, x1, y1) / ((x1 - x0) * (y1 - y0)))


@compiled
def _count_in_boxes(mask: np.ndarray, x0: np.ndarray, y0: np.ndarray, x1: np.ndarray, y1: np.ndarray) -> np.ndarray:
    """(n,) int64; box by box, because tiles overlap little, and an integral image of a slide's mask would be four times its size."""
    counts = np.zeros(len(x0), np.int64)
    for box in range(len(x0)):
        for y in range(y0[box], y1[box]):
            in_row = np.int32(0)
            for x in range(x0[box], x1[box]):
                in_row += np.int32(mask[y, x])
            counts[box] += in_row
    return counts


def tile_grid(width_px: int, height_px: int, *, tile_px: int, stride_px: int, to_border: bool = False) -> np.ndarray:
    """(n, 2) x, y of the upper left corners of all tiles that lie wholly inside, row by row.

    `to_border`: where the grid leaves a rest at the right or below, one more column or row of tiles ends at the border.
    """
    sides = []
    for side_px in (width_px, height_px):
        last = side_px - tile_px
        starts = np.arange(0, last + 1, stride_px)
        sides.append(np.append(starts, last) if to_border and last > 0 and last % stride_px else starts)
    return np.stack(np.meshgrid(*sides), -1).reshape(-1, 2)


def draw_evenly(candidates: np.ndarray, most: int, *, rng: np.random.Generator) -> np.ndarray:
    """At the most `most` of the candidates, (n,) of any type, drawn without replacement and in their own order."""
    if len(candidates) <= most:
        return candidates
    return candidates[np.sort(rng.permutation(len(candidates))[:most])]
