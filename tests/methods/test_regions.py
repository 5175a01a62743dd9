"""Regions traced in bands against labels of the whole map, and polygons rasterised back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from methods.regions import Region, RegionTracer


def trace(rows: np.ndarray, *, threshold: float = 0.5, least_px: float = 0, bands: int = 3) -> list[Region]:
    tracer = RegionTracer(width_px=rows.shape[1], threshold=threshold, least_px=least_px)
    for start in range(0, len(rows), bands):
        tracer.add(rows[start : start + bands].astype(np.float32))
    return tracer.finish()


def rasterise(rings: tuple[np.ndarray, ...], shape: tuple[int, int]) -> np.ndarray:
    """By the even-odd rule: each vertical edge toggles all that lies right of it."""
    mask = np.zeros(shape, bool)
    for ring in rings:
        for (x, y0), (x1, y1) in zip(ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True):
            if x == x1:
                mask[min(y0, y1) : max(y0, y1), x:] ^= True
    return mask


def signed_area(ring: np.ndarray) -> float:
    x, y = ring.T.astype(float)
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def check(rows: np.ndarray, *, threshold: float, bands: int) -> None:
    regions = trace(rows, threshold=threshold, bands=bands)
    labels, count = ndimage.label(rows >= threshold)
    assert len(regions) == count
    for region in regions:
        mask = rasterise(region.rings, rows.shape)
        [label] = np.unique(labels[mask])
        np.testing.assert_array_equal(mask, labels == label)
        assert region.area_px == mask.sum() == sum(map(signed_area, region.rings))
        assert region.mean == pytest.approx(rows[mask].mean(dtype=float))
        assert region.highest == rows[mask].max()
        for number, ring in enumerate(region.rings):
            assert (signed_area(ring) > 0) == (number == 0)  # right-hand rule
            assert len({*map(tuple, ring.tolist())}) == len(ring)  # none meets itself
            steps = np.abs(np.roll(ring, -1, axis=0) - ring) > 0
            assert (steps.sum(1) == 1).all()  # edges are not oblique
            assert (steps != np.roll(steps, -1, axis=0)).all()  # and turn at every corner


@settings(max_examples=100, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, np.nan])),
    st.integers(1, 13),
)
def test_polygons_rasterised_back_are_the_components_of_the_mask(rows: np.ndarray, bands: int) -> None:
    check(rows, threshold=0.5, bands=bands)


def test_a_large_map_of_blobs_and_holes_is_traced_exactly() -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random((300, 400)), 2.5).astype(np.float32)
    check(noise, threshold=float(np.median(noise)), bands=64)


def test_components_that_end_while_others_go_on_are_found_at_every_band(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.regions._CLEAN_FROM", 0)
    noise = ndimage.gaussian_filter(np.random.default_rng(1).random((120, 90)), 1.5).astype(np.float32)
    check(noise, threshold=float(np.quantile(noise, 0.55)), bands=5)


def test_two_arms_that_meet_bands_later_are_one_region() -> None:
    rows = np.zeros((40, 9), np.float32)
    rows[:, [1, 7]] = 1
    rows[39, 1:8] = 1
    [region] = trace(rows, bands=4)
    assert region.area_px == 2 * 40 + 5
    assert len(region.rings) == 1


def test_pixels_that_touch_at_a_corner_are_two_regions() -> None:
    assert [region.area_px for region in trace(np.array([[1.0, 0.0], [0.0, 1.0]]))] == [1, 1]


def test_a_hole_that_opens_at_a_corner_is_a_ring_of_its_own() -> None:
    rows = np.ones((4, 4))
    rows[1, 1] = rows[0, 0] = 0  # touch at (1, 1)
    [region] = trace(rows)
    assert [signed_area(ring) for ring in region.rings] == [15, -1]
    assert (region.rings[0] == (1, 1)).all(1).any()
    assert (region.rings[1] == (1, 1)).all(1).any()


def test_small_regions_are_left_out_wherever_they_end() -> None:
    rows = np.zeros((30, 12), np.float32)
    rows[2, 1:4] = rows[5:20, 6] = rows[29, 9:12] = 1
    assert [region.area_px for region in trace(rows, least_px=4)] == [15]
    assert [region.area_px for region in trace(rows, least_px=3)] == [3, 15, 3]


def test_a_map_without_scores_has_no_region() -> None:
    assert trace(np.full((10, 10), np.nan), threshold=-1) == []


def test_a_threshold_between_two_float32_is_kept() -> None:
    value = np.float32(0.1)
    assert trace(np.array([[value]]), threshold=float(value)) != []
    assert trace(np.array([[value]]), threshold=float(value) + 1e-12) == []
