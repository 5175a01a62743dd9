"""Slides for the demo: real stained tissue, grown to the size of a slide by image quilting, on glass.

Every pixel of tissue is a pixel of the source, slightly restained; what is generated is where it lies, the outline and the glass.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

_SHORTEST_SOURCE_PX = 64
_SMALLEST_SPECIMEN_PX = 256
_PATCH, _OVERLAP, _STEP = 32, 11, 21  # of a quilt, in its units
_LARGEST_UNIT_PX = 6  # patches of 192 px, about a gland: smaller ones cut every structure, larger ones repeat
_FREEDOM = 46  # a unit is this part of the shorter side of the source: a patch that fills it would come back at every place
_POOL = 512  # patches that one texture is made of
_CANDIDATES = 80  # of the pool, tried at each place
_TARGET_SIGMA = 8.0  # units: the width of a gland
_TARGET_WEIGHT = 1.0
_NEAR, _REPETITION = 8, 600.0  # units; squared grey levels
_TISSUE_SHARE = (0.40, 0.45)
_ROUGHNESS = ((4, 0.05), (9, 0.025), (22, 0.009), (60, 0.003), (170, 0.0015))  # of the outline: cells across the slide, amplitude
_GLASS = (240.0, 247.0)
_GRAIN_PX = 8  # outline and slow fields are drawn on this grid
_DENSITY_LEVELS = 64


class SpecimenError(ValueError):
    """A source or a size that no specimen can be made of."""


class _Quilt(NamedTuple):
    """Square patches on a grid, with overlaps; rows are shifted, so that their seams do not line up."""

    unit_px: int
    rows: int
    columns: int
    shifts_px: np.ndarray  # (rows,) int, multiples of unit_px


class _Pool(NamedTuple):
    """Random patches of the source in the eight orientations, and where they come from."""

    patches: np.ndarray  # (_POOL, patch_px, patch_px, 3) uint8
    corners: np.ndarray  # (_POOL, 2) int, y and x in the source


def assemble_specimen(source: np.ndarray, *, size_px: int, rng: np.random.Generator) -> np.ndarray:
    """Make a slide-like picture: one or two pieces of tissue, 40 to 45 % of the area together, on nearly white glass.

    Stain strength differs by a few per cent from specimen to specimen and slowly within one, in optical density.

    Args:
        source: (h, w, 3) uint8 RGB, both sides 64 px and more; tissue is made of its pixels alone.
        size_px: height and width of the result, 256 and more.
        rng: equal states give equal specimens.

    Returns:
        (size_px, size_px, 3) uint8 RGB.

    Raises:
        SpecimenError: the source or the size is not as above.
    """
    if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or min(source.shape[:2]) < _SHORTEST_SOURCE_PX:
        raise SpecimenError(
            f"expected a source (h, w, 3) uint8 of {_SHORTEST_SOURCE_PX} px and more a side, got {source.shape} {source.dtype}"
        )
    if size_px < _SMALLEST_SPECIMEN_PX:
        raise SpecimenError(f"expected size_px of {_SMALLEST_SPECIMEN_PX} and more, got {size_px}")
    opacity = _draw_outline(size_px, rng)  # (size_px, size_px)
    specimen = _draw_glass(size_px, rng)
    rows, columns = (np.flatnonzero((opacity > 0).any(axis=axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    tissue = grow_texture(_restain(source, rng), height_px=rows[-1] + 1 - rows[0], width_px=columns[-1] + 1 - columns[0], rng=rng)
    specimen[box] = _lay(_vary_density(tissue, rng), over=specimen[box], opacity=opacity[box])
    return specimen


def grow_texture(source: np.ndarray, *, height_px: int, width_px: int, rng: np.random.Generator) -> np.ndarray:
    """Quilt patches of `source` (h, w, 3) into a texture (height_px, width_px, 3), uint8, without blending: each pixel is the source's.

    Overlapping patches are joined along the cut with the least error and follow a target brightness (Efros and Freeman, Image quilting,
    SIGGRAPH 2001, sections 2 and 3); the target is noise with the brightnesses of the source, so that dark glands and pale stroma keep
    their shares. Deviations: a patch is the best of random candidates, turned and mirrored ones among them, and whole rows are joined to
    each other, so that all cuts are searched at once.
    """
    unit_px = min(_LARGEST_UNIT_PX, max(min(source.shape[:2]) // _FREEDOM, 1))
    step_px = _STEP * unit_px
    rows, columns = -(-height_px // step_px), -(-width_px // step_px) + 2  # one for the shifts, one whose left part is not used
    quilt = _Quilt(unit_px, rows, columns, unit_px * rng.integers(0, _STEP, rows))
    pool = _cut_pool(source, quilt, rng)
    chosen = _choose_patches(pool, quilt, rng)
    return _join_strips(_join_patches(pool.patches, chosen, quilt, width_px=width_px), quilt)[:height_px]


def find_cuts(error: np.ndarray) -> np.ndarray:
    """The path with the least summed error through each of n overlaps, by dynamic programming.

    Args:
        error: (length, n, breadth), not negative.

    Returns:
        (length, n) int: where the path crosses each cross-section; neighbours differ by 1 at the most.
    """
    length, n, breadth = error.shape
    cost = np.full((length, n, breadth + 2), np.inf, np.float32)  # a wall on both sides
    inner = cost[:, :, 1:-1]
    inner[0] = error[0]
    for t in range(1, length):
        before = cost[t - 1]
        np.minimum(before[:, :-2], before[:, 1:-1], out=inner[t])
        np.minimum(inner[t], before[:, 2:], out=inner[t])
        inner[t] += error[t]
    path = np.empty((length, n), np.intp)  # counted with the walls
    path[-1] = cost[-1].argmin(axis=1)
    each = np.arange(n)
    for t in range(length - 2, -1, -1):
        here = path[t + 1]
        before, same, after = (cost[t, each, here + shift] for shift in (-1, 0, 1))
        path[t] = here + np.where(before < np.minimum(same, after), -1, after < same)
    return path - 1


def _cut_pool(source: np.ndarray, quilt: _Quilt, rng: np.random.Generator) -> _Pool:
    height_px, width_px = source.shape[:2]
    patch_px = _PATCH * quilt.unit_px
    patches = np.empty((_POOL, patch_px, patch_px, 3), np.uint8)
    corners = rng.integers(0, (height_px - patch_px + 1, width_px - patch_px + 1), (_POOL, 2))
    for i, (y, x) in enumerate(corners):
        patch = np.rot90(source[y : y + patch_px, x : x + patch_px], i % 4)
        patches[i] = patch[:, ::-1] if i % 8 < 4 else patch
    return _Pool(patches, corners)


def _choose_patches(pool: _Pool, quilt: _Quilt, rng: np.random.Generator) -> np.ndarray:
    """(rows, columns) int: for each place the candidate that differs least from what lies to its left and above it, and from the target."""
    middles = slice(quilt.unit_px // 2, None, quilt.unit_px)
    small = pool.patches[:, middles, middles].astype(np.float32)  # (pool, 32, 32, 3)
    left, top = (part.reshape(_POOL, -1) for part in (small[:, :, :_OVERLAP], small[:, :_OVERLAP]))
    brightness = _mean_blocks(small.mean(axis=3))  # (pool, 4, 4)
    target = _draw_target(brightness, quilt, rng)
    laid = np.zeros((_STEP * quilt.rows + _OVERLAP, _STEP * quilt.columns + _PATCH, 3), np.float32)
    chosen = np.full((quilt.rows, quilt.columns), -1)
    for row in range(quilt.rows):
        shift = _STEP - quilt.shifts_px[row] // quilt.unit_px
        for column in range(quilt.columns):
            here = np.s_[_STEP * row : _STEP * row + _PATCH, shift + _STEP * column : shift + _STEP * column + _PATCH]
            candidates = rng.integers(0, _POOL, _CANDIDATES)
            error = _TARGET_WEIGHT * np.square(brightness[candidates] - _mean_blocks(target[here])).mean(axis=(1, 2))
            if column:
                error += _mean_squares(left[candidates], laid[here][:, :_OVERLAP])
            if row:
                error += _mean_squares(top[candidates], laid[here][:_OVERLAP])
            around = chosen[max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 2]
            error[_are_near(pool.corners[candidates], pool.corners[around[around >= 0]], quilt)] += _REPETITION
            chosen[row, column] = candidates[error.argmin()]
            laid[here] = small[chosen[row, column]]
    return chosen


def _mean_squares(candidates: np.ndarray, laid: np.ndarray) -> np.ndarray:
    """(n,) float32: how far the candidates (n, values), which are overwritten, are from what is laid there."""
    candidates -= laid.reshape(-1)
    np.square(candidates, out=candidates)
    return np.asarray(candidates.mean(axis=1))


def _are_near(corners: np.ndarray, others: np.ndarray, quilt: _Quilt) -> np.ndarray:
    """(n,) bool: the patch comes from nearly the same place as one of the others; beside its mirror image it would make a kaleidoscope."""
    apart = np.abs(corners[:, None] - others[None]).max(axis=2, initial=0)
    return (apart < _NEAR * quilt.unit_px).any(axis=1)


def _draw_target(brightness: np.ndarray, quilt: _Quilt, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise, one value a unit, with the distribution of `brightness`."""
    shape = _STEP * quilt.rows + _PATCH, _STEP * quilt.columns + _PATCH
    noise = ndimage.gaussian_filter(rng.normal(size=shape), _TARGET_SIGMA)
    values = np.sort(brightness, axis=None)
    target = np.empty(noise.size, np.float32)
    target[noise.argsort(axis=None)] = values[np.arange(noise.size) * len(values) // noise.size]
    return target.reshape(shape)


def _mean_blocks(values: np.ndarray) -> np.ndarray:
    """(..., 32, 32) to the means of its blocks (..., 4, 4)."""
    return values.reshape(*values.shape[:-2], 4, 8, 4, 8).mean(axis=(-3, -1))


def _join_patches(pool: np.ndarray, chosen: np.ndarray, quilt: _Quilt, *, width_px: int) -> np.ndarray:
    """Patches (pool, patch_px, patch_px, 3), chosen (rows, columns), joined to strips (rows, patch_px, width_px, 3)."""
    overlap_px, step_px, patch_px = (units * quilt.unit_px for units in (_OVERLAP, _STEP, _PATCH))
    joints = _join_overlaps([(pool[row[:-1], :, step_px:], pool[row[1:], :, :overlap_px]) for row in chosen])
    strips = np.empty((quilt.rows, patch_px, width_px, 3), np.uint8)
    for strip, row, joint, shift_px in zip(strips, chosen, joints, quilt.shifts_px, strict=True):
        whole = np.concatenate([joint, pool[row[1:], :, overlap_px:step_px]], axis=2)  # (columns - 1, patch_px, step_px, 3)
        strip[:] = whole.transpose(1, 0, 2, 3).reshape(patch_px, -1, 3)[:, shift_px : shift_px + width_px]
    return strips


def _join_strips(strips: np.ndarray, quilt: _Quilt) -> np.ndarray:
    """Strips (rows, patch_px, width_px, 3) joined from top to bottom."""
    overlap_px, step_px = _OVERLAP * quilt.unit_px, _STEP * quilt.unit_px
    turned = strips.transpose(0, 2, 1, 3)  # (rows, width_px, patch_px, 3)
    joints = _join_overlaps([(above[None, :, step_px:], below[None, :, :overlap_px]) for above, below in pairwise(turned)])
    texture = [strips[0, :step_px]]
    for strip, joint in zip(strips[1:], joints, strict=True):
        texture += [joint[0].transpose(1, 0, 2), strip[overlap_px:step_px]]
    return np.concatenate(texture)


def _join_overlaps(pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Of each pair of overlaps (m, length, breadth, 3) the first up to the cut, then the second; all cuts are found together."""
    if not pairs:
        return []
    error = np.concatenate([_squared_difference(*pair) for pair in pairs]).transpose(1, 0, 2)  # (length, pairs · m, breadth)
    cuts = find_cuts(error).T.reshape(len(pairs), len(pairs[0][0]), -1, 1)
    across = np.arange(error.shape[2])
    return [_select(across < cut, first, second) for (first, second), cut in zip(pairs, cuts, strict=True)]


def _select(where: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pixels of `first` (..., 3) where (...) is true, else of `second`; by channel, as NumPy broadcasts slowly along an axis of three."""
    chosen = second.copy()
    for channel in range(chosen.shape[-1]):
        np.copyto(chosen[..., channel], first[..., channel], where=where)
    return chosen


def _squared_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    difference = a.astype(np.int16)
    difference -= b
    return np.einsum("...c,...c->...", difference, difference, dtype=np.int32)


def _restain(source: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another laboratory's batch: all stains a little stronger or weaker, each channel slightly so."""
    gain = rng.uniform(0.96, 1.04) * rng.uniform(0.985, 1.015, 3)
    return _with_density(np.arange(256)[:, None], gain)[source, np.arange(3)]


def _vary_density(tissue: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sections are not equally thick everywhere: optical density times a slow field of 1 ± 0.04."""
    table = _with_density(np.arange(256), np.linspace(0.96, 1.04, _DENSITY_LEVELS)[:, None])  # (levels, 256)
    side = -(-max(tissue.shape[:2]) // _GRAIN_PX)
    level = np.clip(0.5 + 0.2 * _smooth_noise(side, rng, cells=5), 0, 1) * (_DENSITY_LEVELS - 1)
    height_px, width_px = tissue.shape[:2]
    index = _repeat((level.round().astype(np.uint16) << 8).repeat(3, axis=1), height_px, 3 * width_px).reshape(tissue.shape)
    index |= tissue
    return table.ravel()[index]


def _with_density(value: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return np.rint(255 * ((value + 0.5) / 255.5) ** gain).clip(0, 255).astype(np.uint8)  # 10^(-gain · density)


def _draw_outline(size_px: int, rng: np.random.Generator) -> np.ndarray:
    """(size_px, size_px) uint8, 0 to 255: opacity of one or two pieces with organic contours; the border is some 3 px wide."""
    side = size_px // _GRAIN_PX
    y, x = (np.mgrid[:side, :side] + 0.5) / side - 0.5
    turn, pieces = rng.uniform(0, np.pi), rng.integers(1, 3)
    field = np.max([_draw_piece(x, y, turn, 0.0 if pieces == 1 else side_of, rng) for side_of in (-0.23, 0.23)[:pieces]], axis=0)
    for cells, amplitude in _ROUGHNESS:
        field += amplitude * _smooth_noise(side, rng, cells=min(cells, side))
    field -= 12 * np.maximum(np.maximum(np.abs(x), np.abs(y)) - 0.36, 0) ** 2  # glass all around
    field -= np.quantile(field, 1 - rng.uniform(*_TISSUE_SHARE))
    parts, _ = ndimage.label(field > 0)
    small = (np.bincount(parts.ravel()) < 0.02 * field.size)[parts]
    crumbs = ndimage.binary_dilation(small & (parts > 0), iterations=3) & (small | (parts == 0))
    slope = np.median(np.hypot(*np.gradient(field))[np.abs(field) < 0.01]) / _GRAIN_PX  # the field's change over 1 px
    depth_px = np.where(crumbs, -16, field / slope).clip(-16, 15.9)
    deep = Image.fromarray((128 + 8 * depth_px).astype(np.uint8)).resize((size_px, size_px), Image.Resampling.BICUBIC)
    return (255 * np.clip(0.5 + (np.arange(256) - 128) / 24, 0, 1)).astype(np.uint8)[np.asarray(deep)]


def _draw_piece(x: np.ndarray, y: np.ndarray, turn: float, away: float, rng: np.random.Generator) -> np.ndarray:
    """A cone over an ellipse at `away` from the middle in the direction `turn`, longer across this direction when it is one of two."""
    dx, dy = x - away * np.cos(turn) - rng.uniform(-0.03, 0.03), y - away * np.sin(turn) - rng.uniform(-0.03, 0.03)
    lean = turn + np.pi / 2 + rng.uniform(-0.3, 0.3)
    stretch = np.sqrt(rng.uniform(1.1, 1.4) if away == 0 else rng.uniform(1.6, 2.2))
    along, across = dx * np.cos(lean) + dy * np.sin(lean), dy * np.cos(lean) - dx * np.sin(lean)
    return -np.hypot(along / stretch, across * stretch)


def _draw_glass(size_px: int, rng: np.random.Generator) -> np.ndarray:
    """(size_px, size_px, 3) uint8: a slow gradient of light and the sensor's noise, without colour."""
    darkest, brightest = _GLASS
    shade = 0.5 * (1 + np.tanh(_smooth_noise(-(-size_px // _GRAIN_PX), rng, cells=3)))
    light = (darkest + shade * (brightest - darkest)).round().astype(np.uint8) - np.uint8(2)
    glass = np.frombuffer(bytearray(rng.bytes(3 * size_px**2)), np.uint8).reshape(size_px, -1)  # channels side by side
    glass &= 15
    np.bitwise_count(glass, out=glass)  # four coins: mean 2, variance 1
    glass += _repeat(light.repeat(3, axis=1), size_px, 3 * size_px)
    return glass.reshape(size_px, size_px, 3)


def _lay(tissue: np.ndarray, *, over: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    laid = _select(opacity == 255, tissue, over)
    border = (opacity > 0) & (opacity < 255)
    share = opacity[border][:, None] / 255
    laid[border] = np.rint(share * tissue[border] + (1 - share) * over[border])
    return laid


def _repeat(values: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """Each value over a square of _GRAIN_PX; the fields are so slow that the steps are below the noise."""
    return values.repeat(_GRAIN_PX, axis=0)[:height_px].repeat(_GRAIN_PX, axis=1)[:, :width_px]


def _smooth_noise(side: int, rng: np.random.Generator, *, cells: int) -> np.ndarray:
    """(side, side) float64 noise of about unit variance, without structure below side / cells."""
    coarse = Image.fromarray((rng.normal(size=(cells, cells)) * 1.4).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.float64)
