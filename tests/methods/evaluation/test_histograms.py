"""Exact counts against a pixel-by-pixel twin."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from methods.evaluation.histograms import SubjectCounts, count_pixels, count_scores, merge_counts, order_key

FLOAT16 = st.one_of(
    st.floats(width=16, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 6e-8, -6e-8, 6.1e-5, 65504.0, -65504.0, 1.0, -1.0]).map(lambda value: float(np.float16(value))),
)


@st.composite
def labelled_maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)))
    maps = draw(hnp.arrays(np.float16, shape, elements=FLOAT16))
    masks = draw(hnp.arrays(bool, shape))
    return maps, masks, draw(hnp.arrays(int, shape[0], elements=st.integers(0, 11)))


def _as_dictionary(counts: SubjectCounts) -> dict[tuple[str, float, bool], int]:
    return {
        (subject, float(value), abnormal): int(table[row, column])
        for abnormal, table in ((False, counts.normal), (True, counts.abnormal))
        for row, subject in enumerate(counts.subjects)
        for column, value in enumerate(counts.values)
        if table[row, column]
    }


def test_order_key_is_strictly_monotone_over_every_float16() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = np.unique(every[np.isfinite(every)])
    keys = order_key(values)
    assert keys.dtype == np.uint16
    assert (np.diff(keys.astype(int)) > 0).all()
    assert len(values) == 63_487  # 65,536 less NaN, infinities and one of the two zeros


def test_order_key_gives_both_zeros_one_key() -> None:
    negative, positive = order_key(np.array([-0.0, 0.0], np.float16))
    assert negative == positive


def test_order_key_refuses_another_dtype() -> None:
    with pytest.raises(ValueError, match="expected float16 scores, got float32"):
        order_key(np.zeros(3, np.float32))


@given(labelled_maps())
def test_pixel_counts_equal_a_count_pixel_by_pixel(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    maps, masks, subjects = data
    counts = count_pixels(maps, masks, subjects)
    twin = Counter(
        (str(subject), float(score) + 0.0, bool(abnormal))
        for one_map, mask, subject in zip(maps, masks, subjects, strict=True)
        for score, abnormal in zip(one_map.ravel(), mask.ravel(), strict=True)
    )
    assert _as_dictionary(counts) == twin
    assert (np.diff(counts.values) > 0).all()
    assert (counts.normal + counts.abnormal).any(0).all(), "only occupied values are kept"
    assert counts.normal.dtype == counts.abnormal.dtype == np.int64


@given(labelled_maps(), st.integers(0, 5))
def test_counts_of_shards_add_up_to_the_count_of_the_whole(data: tuple[np.ndarray, np.ndarray, np.ndarray], cut: int) -> None:
    maps, masks, subjects = data
    whole = count_pixels(maps, masks, subjects)
    merged = merge_counts([count_pixels(maps[:cut], masks[:cut], subjects[:cut]), count_pixels(maps[cut:], masks[cut:], subjects[cut:])])
    assert merged.subjects == whole.subjects
    for field in ("values", "normal", "abnormal"):
        np.testing.assert_array_equal(getattr(merged, field), getattr(whole, field))


def test_merge_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one part"):
        merge_counts([])


def test_image_scores_are_counted_by_subject_label_and_value() -> None:
    scores = np.array([0.1, 0.3, 0.1, 0.3, -0.0, 0.0], np.float32)
    counts = count_scores(scores, np.array([0, 1, 1, 0, 0, 0]), np.array(["b", "a", "b", "b", "a", "a"]))
    assert counts.subjects == ("a", "b")
    np.testing.assert_array_equal(counts.values, np.array([0, 0.1, 0.3], np.float32).astype(float))
    np.testing.assert_array_equal(counts.normal, [[2, 0, 0], [0, 1, 1]])
    np.testing.assert_array_equal(counts.abnormal, [[0, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    maps = np.zeros((3, 2, 2), np.float16)
    maps[1, 0, 1] = bad
    with pytest.raises(ValueError, match="1 of 3 maps hold NaN or infinite"):
        count_pixels(maps, np.zeros(maps.shape, bool), np.arange(3))
    with pytest.raises(ValueError, match="1 scores are NaN or infinite"):
        count_scores(np.array([0.5, bad], np.float32), np.array([0, 1]), np.arange(2))


@pytest.mark.parametrize(
    ("maps", "masks", "subjects"),
    [
        (np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4), bool), np.arange(2)),
        (np.zeros((2, 4, 4), np.float16), np.zeros((2, 4, 4), np.uint8), np.arange(2)),
        (np.zeros((2, 4, 4), np.float16), np.zeros((2, 4, 5), bool), np.arange(2)),
        (np.zeros((2, 4, 4), np.float16), np.zeros((2, 4, 4), bool), np.arange(3)),
        (np.zeros((2, 4), np.float16), np.zeros((2, 4), bool), np.arange(2)),
    ],
)
def test_maps_and_masks_that_do_not_fit_are_refused(maps: np.ndarray, masks: np.ndarray, subjects: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected maps \(N, H, W\) float16"):
        count_pixels(maps, masks, subjects)


def test_labels_that_are_missing_or_of_a_third_kind_are_refused() -> None:
    for labels in (np.array([0, 2]), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="expected labels 0"):
            count_scores(np.zeros(2, np.float32), labels, np.arange(2))
    with pytest.raises(ValueError, match="as many scores as labels"):
        count_scores(np.zeros(2, np.float32), np.zeros(3), np.arange(2))
