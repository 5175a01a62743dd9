"""Exact counts against a pixel-by-pixel twin."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from methods.evaluation.histograms import SubjectCounts, count_pixels, count_scores, gather_counts, merge_counts, order_key, take_subjects

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
        for table in [table.toarray()]
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


@settings(deadline=None)
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
    assert (counts.normal + counts.abnormal).toarray().any(0).all(), "only occupied values are kept"
    assert counts.normal.dtype == counts.abnormal.dtype == np.int64


@settings(deadline=None)
@given(labelled_maps(), st.integers(0, 5))
def test_counts_of_shards_add_up_to_the_count_of_the_whole(data: tuple[np.ndarray, np.ndarray, np.ndarray], cut: int) -> None:
    maps, masks, subjects = data
    whole = count_pixels(maps, masks, subjects)
    merged = merge_counts([count_pixels(maps[:cut], masks[:cut], subjects[:cut]), count_pixels(maps[cut:], masks[cut:], subjects[cut:])])
    assert merged.subjects == whole.subjects
    np.testing.assert_array_equal(merged.values, whole.values)
    for field in ("normal", "abnormal"):
        np.testing.assert_array_equal(getattr(merged, field).toarray(), getattr(whole, field).toarray())
    np.testing.assert_allclose(merged.regions.toarray(), whole.regions.toarray(), rtol=0, atol=1e-12)


def test_a_stream_of_parts_is_gathered_as_if_merged_at_once() -> None:
    rng = np.random.default_rng(0)
    maps, masks, subjects = rng.normal(size=(40, 3, 3)).astype(np.float16), rng.random((40, 3, 3)) < 0.3, rng.integers(0, 7, 40)
    parts = [None if i % 5 == 0 else count_pixels(maps[i : i + 1], masks[i : i + 1], subjects[i : i + 1]) for i in range(40)]
    kept = np.arange(40) % 5 != 0
    gathered, whole = gather_counts(iter(parts)), count_pixels(maps[kept], masks[kept], subjects[kept])
    assert gathered is not None
    assert _as_dictionary(gathered) == _as_dictionary(whole)
    np.testing.assert_allclose(gathered.regions.toarray(), whole.regions.toarray(), rtol=0, atol=1e-12)
    assert gather_counts([None, None]) is None


def test_every_region_shares_out_one_over_its_pixels_and_corners_touch() -> None:
    mask = np.array([[[1, 0, 0, 0], [0, 1, 0, 1]]], bool)  # two pixels that touch by a corner, and one alone
    counts = count_pixels(np.array([[[1, 0, 0, 0], [0, 2, 0, 2]]], np.float16), mask, np.array(["a"]))
    np.testing.assert_array_equal(counts.values, [0, 1, 2])
    np.testing.assert_array_equal(counts.regions.toarray(), [[0, 0.5, 1.5]])


def test_chosen_rows_of_one_name_add_up() -> None:
    counts = SubjectCounts(("x", "y", "z"), np.arange(2.0), np.array([[1, 2], [3, 4], [5, 6]]), np.eye(3, 2, dtype=int))
    taken = take_subjects(counts, np.array([2, 0]), ["p", "p"])
    assert taken.subjects == ("p",)
    np.testing.assert_array_equal(taken.normal.toarray(), [[6, 8]])
    np.testing.assert_array_equal(taken.abnormal.toarray(), [[1, 0]])
    np.testing.assert_array_equal(take_subjects(counts, np.array([1])).normal.toarray(), [[3, 4]])


def test_merge_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one part"):
        merge_counts([])


def test_image_scores_are_counted_by_subject_label_and_value() -> None:
    scores = np.array([0.1, 0.3, 0.1, 0.3, -0.0, 0.0], np.float32)
    counts = count_scores(scores, np.array([0, 1, 1, 0, 0, 0]), np.array(["b", "a", "b", "b", "a", "a"]))
    assert counts.subjects == ("a", "b")
    np.testing.assert_array_equal(counts.values, np.array([0, 0.1, 0.3], np.float32).astype(float))
    np.testing.assert_array_equal(counts.normal.toarray(), [[2, 0, 0], [0, 1, 1]])
    np.testing.assert_array_equal(counts.abnormal.toarray(), [[0, 0, 1], [0, 1, 0]])


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


def test_samples_without_a_subject_are_refused_and_counted() -> None:
    with pytest.raises(ValueError, match="1 of 2 samples have no subject"):
        count_scores(np.zeros(2, np.float32), np.array([0, 1]), np.array(["a", None], object))
    with pytest.raises(ValueError, match="2 of 2 samples have no subject"):
        count_pixels(np.zeros((2, 1, 1), np.float16), np.zeros((2, 1, 1), bool), np.array([np.nan, None], object))
