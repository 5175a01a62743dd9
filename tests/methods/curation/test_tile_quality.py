import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage import data

from methods.curation.ink import ink_mask
from methods.curation.quality import sharpness
from methods.curation.tile_quality import _mean_in_spans, _sum_columns, measure_tiles

SIDE_PX = 128
SPANS = np.array([[0, 128], [128, 256], [256, 384]])


def tissue() -> np.ndarray:
    """A strip (128, 384, 3) of stained tissue."""
    return np.ascontiguousarray(data.immunohistochemistry()[:SIDE_PX, : 3 * SIDE_PX])


def test_a_sharp_tile_is_told_from_its_blurred_neighbours() -> None:
    strip = tissue()
    strip[:, 120:] = gaussian_filter(strip[:, 120:].astype(float), (6, 6, 0)).round()
    values, _ = measure_tiles(strip, SPANS)
    assert values[0] > 0.5
    assert values[1:].max() < 0.06


@pytest.mark.parametrize("sigma_px", [6, 12, 24])
def test_more_blur_never_counts_as_sharper_because_of_rounding(sigma_px: float) -> None:
    strip = gaussian_filter(tissue().astype(float), (sigma_px, sigma_px, 0)).round().astype(np.uint8)
    values, _ = measure_tiles(strip, SPANS)
    assert values.max() < 0.06


def test_a_tile_of_the_cells_size_has_the_sharpness_of_the_same_picture_alone() -> None:
    strip = tissue()
    values, _ = measure_tiles(strip, SPANS)
    for value, (first, last) in zip(values, SPANS, strict=True):
        assert value == pytest.approx(sharpness(strip[:, first:last]), rel=0.1)


def test_a_tile_does_not_depend_on_the_other_tiles_of_its_strip() -> None:
    strip, other = tissue(), tissue()
    other[:, 160:] = 255  # beyond the first tile, further away than the Laplacian reaches
    np.testing.assert_allclose(measure_tiles(strip, SPANS[:1]), measure_tiles(other, SPANS[:1]))


def test_the_share_of_ink_is_that_of_the_painted_area() -> None:
    strip = tissue()
    strip[:32, 128:256] = (25, 60, 160)  # a quarter of the second tile
    assert ink_mask(np.array([[[25, 60, 160]]], np.uint8)).all()
    _, ink = measure_tiles(strip, SPANS)
    np.testing.assert_allclose(ink, [0, 0.25, 0], atol=0.01)


def test_overlapping_tiles_share_what_lies_in_both() -> None:
    strip = tissue()
    strip[:, 64:128] = (25, 60, 160)
    _, ink = measure_tiles(strip, np.array([[0, 128], [64, 192], [128, 256]]))
    np.testing.assert_allclose(ink, [0.5, 0.5, 0], atol=0.01)


def test_a_tile_of_one_colour_is_not_sharp_and_not_undefined() -> None:
    values, ink = measure_tiles(np.full((64, 64, 3), 243, np.uint8), np.array([[0, 64]]))
    assert (values[0], ink[0]) == (0, 0)


def test_spans_between_pixels_and_beyond_the_rim_are_measured() -> None:
    values, ink = measure_tiles(tissue(), np.array([[0.4, 100.6], [300.2, 400.0], [383.9, 384.2]]))
    assert np.isfinite(values).all()
    assert np.isfinite(ink).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 16), (33, 47), (64, 200)])
def test_sums_of_columns_are_those_of_numpy(height: int, width: int) -> None:
    strip = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    grey = (strip @ np.array([0.299, 0.587, 0.114], np.float32)).astype(float)
    laplacian = np.zeros_like(grey)
    laplacian[1:-1, 1:-1] = grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1] - 4 * grey[1:-1, 1:-1]
    from_mean = grey.copy()
    for y in range(0, height, 16):
        for x in range(0, width, 16):
            from_mean[y : y + 16, x : x + 16] -= grey[y : y + 16, x : x + 16].mean()
    wanted = [laplacian.sum(0), (laplacian**2).sum(0), (from_mean**2).sum(0)]
    np.testing.assert_allclose(_sum_columns(strip), wanted, rtol=1e-4, atol=1e-2)


def test_means_in_spans_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    sums, first = rng.normal(size=(3, 40)), rng.integers(0, 39, 20)
    spans = np.stack([first, [rng.integers(start + 1, 41) for start in first]], axis=1)
    wanted = [[row[start:end].sum() / ((end - start) * 7) for start, end in spans] for row in sums]
    np.testing.assert_allclose(_mean_in_spans(sums, spans, 7), wanted)
