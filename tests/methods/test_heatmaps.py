"""Blending and reducing against slow twins and against what must come out."""

from itertools import pairwise

import numpy as np
import pytest

from methods.heatmaps import Mosaic, Pyramid, halve


def blend(maps: np.ndarray, corners: np.ndarray, *, height: int, width: int, band_px: int = 8, dtype: type = np.float16) -> np.ndarray:
    order = np.argsort(corners[:, 1], kind="stable")
    maps, corners = maps[order], corners[order]
    mosaic = Mosaic(width_px=width, band_px=band_px, tile_px=maps.shape[1], dtype=np.dtype(dtype))
    bands, first = [], np.ceil(corners[:, 1] - 0.5)
    for top in range(0, height, band_px):
        here = (first < top + band_px) & (first >= (top if top else -np.inf))
        mosaic.add(maps[here], corners[here])
        bands.append(mosaic.take().copy())
    return np.concatenate(bands)[:height]


def blend_slowly(maps: np.ndarray, corners: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Pixel by pixel, tile by tile, as the docstring says it."""
    side = maps.shape[1]
    blended = np.full((height, width), np.nan)
    for y in range(height):
        for x in range(width):
            total = weight = 0.0
            for tile, (left, top) in zip(maps.astype(float), corners, strict=True):
                u, v = x + 0.5 - left, y + 0.5 - top
                if not (0 <= u < side and 0 <= v < side):
                    continue
                column, row = np.clip([u - 0.5, v - 0.5], 0, side - 1)
                j, i = int(min(column, side - 2)), int(min(row, side - 2))
                a, b = column - j, row - i
                value = (1 - b) * ((1 - a) * tile[i, j] + a * tile[i, j + 1]) + b * ((1 - a) * tile[i + 1, j] + a * tile[i + 1, j + 1])
                w = max(min(u, side - u), 2**-10) * max(min(v, side - v), 2**-10)
                total, weight = total + w * value, weight + w
            if weight:
                blended[y, x] = total / weight
    return blended


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("step", [1.0, 0.25, 1 / 3])
def test_overlapping_tiles_are_blended_as_pixel_by_pixel(step: float, rng: np.random.Generator) -> None:
    corners = rng.integers(-3, 30, (12, 2)) * step
    maps = rng.random((12, 6, 6)).astype(np.float16)
    expected = blend_slowly(maps, corners, height=29, width=27)
    np.testing.assert_allclose(blend(maps, corners, height=29, width=27, dtype=np.float32), expected, atol=1e-4)
    assert 50 < np.isnan(expected).sum() < 29 * 27 - 50


@pytest.mark.parametrize("step", [1.0, 0.3])
def test_a_constant_map_stays_constant_exactly(step: float, rng: np.random.Generator) -> None:
    corners = rng.integers(0, 60, (200, 2)) * step
    for value in np.array([0.1, 7.7e-5, 61_000, -3.3], np.float16):
        blended = blend(np.full((200, 7, 7), value), corners, height=60, width=60)
        assert set(blended[~np.isnan(blended)].tolist()) == {float(value)}


def test_tiles_side_by_side_keep_every_value(rng: np.random.Generator) -> None:
    maps = rng.random((6, 8, 8)).astype(np.float16)
    corners = np.array([(x, y) for y in (0, 8) for x in (0, 8, 16)], float)
    blended = blend(maps, corners, height=16, width=24)
    np.testing.assert_array_equal(blended, np.block([[*maps[:3]], [*maps[3:]]]))


def test_one_tile_fades_into_the_next_without_a_seam() -> None:
    maps = np.stack([np.zeros((16, 16)), np.ones((16, 16))]).astype(np.float16)
    row = blend(maps, np.array([[0.0, 0.0], [8.0, 0.0]]), height=16, width=24, dtype=np.float32)[5]
    np.testing.assert_allclose(row, np.clip((np.arange(24) + 0.5 - 8) / 8, 0, 1), atol=1e-6)


def test_bands_of_any_height_give_the_same_bits(rng: np.random.Generator) -> None:
    corners, maps = rng.integers(0, 200, (60, 2)) / 4, rng.random((60, 9, 9)).astype(np.float16)
    expected = blend(maps, corners, height=60, width=50, band_px=60)
    for band_px in (1, 7, 64):
        np.testing.assert_array_equal(blend(maps, corners, height=60, width=50, band_px=band_px), expected)


@pytest.mark.parametrize("shape", [(6, 8), (5, 8), (6, 7), (1, 1), (131, 67)])
def test_halving_takes_the_mean_of_what_is_there(shape: tuple[int, int], rng: np.random.Generator) -> None:
    rows = np.where(rng.random(shape) < 0.4, np.nan, rng.random(shape)).astype(np.float32)
    padded = np.pad(rows, [(0, shape[0] % 2), (0, shape[1] % 2)], constant_values=np.nan)
    cells = padded.reshape(padded.shape[0] // 2, 2, -1, 2).swapaxes(1, 2).reshape(-1, 4)
    expected = [cell[~np.isnan(cell)].mean() if (~np.isnan(cell)).any() else np.nan for cell in cells]
    np.testing.assert_allclose(halve(rows).ravel(), expected, rtol=1e-6)


def test_a_pyramid_in_bands_is_that_of_the_whole_map(rng: np.random.Generator) -> None:
    whole = np.where(rng.random((77, 51)) < 0.3, np.nan, rng.random((77, 51))).astype(np.float16)
    pyramid = Pyramid(height_px=77, width_px=51, band_px=8, least_px=10)
    levels = [np.full(shape, 9, np.float16) for shape in pyramid.shapes]
    for top in range(0, 77, 8):
        for level, y, rows in pyramid.add(whole[top : top + 8]):
            assert y % 8 == 0
            assert len(rows) == 8 or y + len(rows) == len(levels[level])
            levels[level][y : y + len(rows)] = rows
    assert pyramid.shapes == [(77, 51), (39, 26), (20, 13), (10, 7)]
    np.testing.assert_array_equal(levels[0], whole)
    for finer, coarser in pairwise(levels):
        np.testing.assert_array_equal(coarser, halve(finer))
