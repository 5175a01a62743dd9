"""The compiled loops against scikit-learn on weighted items, and the overlap of regions against a loop over thresholds and regions."""

from typing import NamedTuple

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from methods.evaluation.histograms import SubjectCounts, count_pixels, count_scores
from methods.evaluation.metrics import UndefinedMetricError
from methods.evaluation.ranks import overlap_area, rank, sum_sides


class Cohort(NamedTuple):
    scores: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    weights: np.ndarray  # (R, S), subjects in sorted order

    def of_items(self, row: int) -> np.ndarray:
        """A replicate's weight of every item."""
        return np.asarray(self.weights[row][np.unique(self.subjects, return_inverse=True)[1]], float)


@st.composite
def cohorts_with_ties(draw: st.DrawFn) -> Cohort:
    item = st.tuples(st.integers(-4, 4), st.integers(0, 1), st.integers(0, 5))
    items = draw(st.lists(item, max_size=60))
    scores, labels, subjects = map(np.array, zip((draw(st.integers(-4, 4)), 0, 0), (draw(st.integers(-4, 4)), 1, 1), *items, strict=True))
    weight = st.integers(1, 4).map(float) if draw(st.booleans()) else st.floats(0.01, 10)
    size = len(np.unique(subjects))
    rows = draw(st.lists(st.lists(weight, min_size=size, max_size=size), min_size=1, max_size=20))
    return Cohort(scores / 4, labels, subjects, np.array(rows))


@settings(deadline=None)
@given(cohorts_with_ties())
def test_every_replicate_equals_scikit_learn_on_weighted_items(cohort: Cohort) -> None:
    found = rank(count_scores(cohort.scores, cohort.labels, cohort.subjects), cohort.weights, specificities=(0.9, 0.5, 0.0))
    assert found.sensitivities.shape == (3, len(cohort.weights))
    for row in range(len(cohort.weights)):
        weighted = cohort.labels, cohort.scores, cohort.of_items(row)
        y_true, y_score, weight = weighted
        auroc = sklearn.metrics.roc_auc_score(y_true, y_score, sample_weight=weight)
        assert found.auroc[row] == pytest.approx(auroc, abs=1e-12)
        precision = sklearn.metrics.average_precision_score(y_true, y_score, sample_weight=weight)
        assert found.average_precision[row] == pytest.approx(precision, abs=1e-12)
        fpr, tpr, _ = sklearn.metrics.roc_curve(y_true, y_score, sample_weight=weight, drop_intermediate=False)
        for place, specificity in enumerate((0.9, 0.5, 0.0)):
            best = tpr[fpr <= 1 - specificity + 1e-12].max()
            assert found.sensitivities[place, row] == pytest.approx(best, abs=1e-12)


def test_a_specificity_that_is_just_reached_counts() -> None:
    """One of ten normal items called is a specificity of 0.9, which 1 - 0.9 in floating point is not quite."""
    counts = count_scores(np.array([*range(10), 8.5]), np.array([0] * 10 + [1]), np.arange(11))
    assert rank(counts, np.ones((1, 11)), specificities=(0.9,)).sensitivities[0, 0] == 1
    for normal in range(1, 400):
        counts = count_scores(np.array([*range(normal), normal - 1.5]), np.array([0] * normal + [1]), np.arange(normal + 1))
        reached = (normal - 1) / normal >= 0.95
        assert rank(counts, np.ones((1, normal + 1)), specificities=(0.95,)).sensitivities[0, 0] == reached


@given(cohorts_with_ties(), st.floats(-1.2, 1.2))
def test_sides_of_a_threshold_are_sums_of_weights(cohort: Cohort, threshold: float) -> None:
    normal, abnormal = sum_sides(count_scores(cohort.scores, cohort.labels, cohort.subjects), threshold, cohort.weights)
    called = cohort.scores >= threshold
    for row in range(len(cohort.weights)):
        weight = cohort.of_items(row)
        for label, found in enumerate((normal, abnormal)):
            expected = [weight[(cohort.labels == label) & (called == side)].sum() for side in (False, True)]
            np.testing.assert_allclose(found[row], expected, rtol=0, atol=1e-9)


@st.composite
def maps_with_regions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, side = draw(st.integers(2, 6)), draw(st.integers(3, 8))
    maps = (rng.integers(0, draw(st.integers(2, 12)), (n, side, side)) / 4).astype(np.float16)
    masks = rng.random((n, side, side)) < draw(st.sampled_from([0.1, 0.3, 0.5]))
    masks[0, 0, :2], masks[1, 0, 0] = (True, False), True
    masks[1, -1, -1] = False
    subjects = np.concatenate([[0, 1], rng.integers(0, 3, n - 2)])
    return maps, masks, subjects, rng.integers(1, 4, (draw(st.integers(1, 18)), len(np.unique(subjects))))


def slow_overlap_area(maps: np.ndarray, masks: np.ndarray, weights: np.ndarray, limit: float) -> float:
    """Bergmann et al.'s definition, threshold by threshold and region by region, weights on maps."""
    rates, overlaps = [0.0], [0.0]
    total = sum(weight * (~mask).sum() for weight, mask in zip(weights, masks, strict=True))
    regions = []
    for one_map, mask, weight in zip(maps, masks, weights, strict=True):
        labelled, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(one_map[labelled == region], weight) for region in range(1, count + 1)]
    for threshold in np.unique(maps)[::-1]:
        wrong = sum(weight * ((one_map >= threshold) & ~mask).sum() for one_map, mask, weight in zip(maps, masks, weights, strict=True))
        rates.append(wrong / total)
        overlaps.append(sum(weight * (pixels >= threshold).mean() for pixels, weight in regions) / sum(weight for _, weight in regions))
    x, y = np.array(rates), np.array(overlaps)
    # at a jump of the overlap alone the later value holds: interpolate between the last point below and the first above
    after = int(np.searchsorted(x, limit, side="left"))
    end = y[after - 1] + (y[after] - y[after - 1]) * (limit - x[after - 1]) / (x[after] - x[after - 1])
    return float(np.trapezoid([*y[:after], end], [*x[:after], limit]) / limit)


@settings(deadline=None, max_examples=60)
@given(maps_with_regions(), st.sampled_from([0.3, 1.0, 0.05]))
def test_the_overlap_of_regions_equals_a_loop_over_thresholds_and_regions(
    data: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], limit: float
) -> None:
    maps, masks, subjects, weights = data
    found = overlap_area(count_pixels(maps, masks, subjects), weights, limit=limit)
    for row, weight in enumerate(weights):
        assert found[row] == pytest.approx(
            slow_overlap_area(maps, masks, weight[np.unique(subjects, return_inverse=True)[1]], limit), abs=1e-12
        )


def test_a_perfect_map_overlaps_wholly_and_a_constant_one_by_chance() -> None:
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 2:4, 2:5] = True
    perfect = overlap_area(count_pixels(masks.astype(np.float16), masks, np.arange(2)), np.ones((1, 2)))
    constant = overlap_area(count_pixels(np.ones(masks.shape, np.float16), masks, np.arange(2)), np.ones((1, 2)))
    assert perfect[0] == pytest.approx(1, abs=1e-12)
    assert constant[0] == pytest.approx(0.15, abs=1e-12)  # the diagonal up to 0.3, divided by 0.3


def test_small_regions_weigh_as_much_as_large_ones() -> None:
    """Half of the regions found is an overlap of a half, however many pixels they have."""
    mask = np.zeros((1, 20, 20), bool)
    mask[0, :10, :10], mask[0, 15, 15] = True, True
    found = np.zeros(mask.shape, np.float16)
    found[0, 15, 15] = 1
    counts = count_pixels(found, mask, np.zeros(1, int))
    assert overlap_area(counts, np.ones((1, 1)))[0] == pytest.approx(0.5 + 0.5 * 0.15, abs=1e-12)


def test_a_replicate_without_a_class_raises_instead_of_counting_as_chance() -> None:
    counts = SubjectCounts(tuple("ab"), np.arange(2.0), np.array([[3, 1], [0, 0]]), np.array([[1, 1], [1, 1]]))
    with pytest.raises(UndefinedMetricError, match="without normal items in at least one replicate"):
        rank(counts, np.array([[1, 1], [0, 2]]))
    with pytest.raises(UndefinedMetricError, match=r"without abnormal items \(normal items 2"):
        rank(count_scores(np.arange(2.0), np.zeros(2, int), np.arange(2)), np.ones((1, 2)))


def test_weights_for_other_subjects_are_refused() -> None:
    counts = SubjectCounts(tuple("abc"), np.arange(2.0), np.ones((3, 2), int), np.ones((3, 2), int))
    with pytest.raises(ValueError, match=r"expected weights \(replicates, 3\).*got \(10, 4\)"):
        rank(counts, np.ones((10, 4), int))
