"""The compiled pass against curves that are made whole and read point by point."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.evaluation.bands import RATES, RECALLS, find_bands, trace_curves
from methods.evaluation.bootstrap import BootstrapConfig, draw_resamples
from methods.evaluation.histograms import SubjectCounts, count_pixels, count_scores
from methods.evaluation.metrics import UndefinedMetricError, precision_recall_curve, roc_curve


def slow_trace(counts: SubjectCounts, weight: np.ndarray, rates: np.ndarray, recalls: np.ndarray) -> tuple[list[float], list[float]]:
    """One replicate: the whole curves, then one point of the grid after the other."""
    normal, abnormal = weight @ counts.normal.toarray(), weight @ counts.abnormal.toarray()
    false_positive_rate, true_positive_rate = roc_curve(normal, abnormal)
    sensitivity = []
    for rate in rates:
        last = int(np.flatnonzero(false_positive_rate <= rate + 1e-12)[-1])
        following = min(last + 1, len(false_positive_rate) - 1)
        run = false_positive_rate[following] - false_positive_rate[last]
        along = max(0.0, rate - false_positive_rate[last]) / run if run > 0 else 0.0
        sensitivity.append(true_positive_rate[last] + along * (true_positive_rate[following] - true_positive_rate[last]))
    recall, precision = precision_recall_curve(normal, abnormal)
    reached = [int(np.flatnonzero((recall >= wanted - 1e-12) & (recall > 0))[0]) for wanted in recalls]
    return sensitivity, precision[reached].tolist()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 9, 200]), st.booleans())
def test_every_replicates_curves_equal_those_made_whole(seed: int, values: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 60))
    labels, subjects = rng.permutation(np.arange(n) % 2), rng.integers(0, 7, n)
    counts = count_scores(rng.integers(0, values, n) / 4, labels, subjects)
    size = (int(rng.integers(1, 20)), len(counts.subjects))
    weights = rng.integers(1, 4, size) if whole else rng.uniform(0.01, 3, size)
    rates = np.unique([0.0, 0.29, 1.0, *rng.random(5)])
    found = trace_curves(counts, weights, rates=rates, recalls=RECALLS)
    for row, weight in enumerate(weights):
        sensitivity, precision = slow_trace(counts, weight, rates, RECALLS)
        np.testing.assert_allclose(found.sensitivity[row], sensitivity, rtol=0, atol=1e-9)
        np.testing.assert_allclose(found.precision[row], precision, rtol=0, atol=1e-9)


def test_a_band_holds_the_percentiles_of_the_replicates_at_each_point_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    counts = count_scores(rng.normal(labels), labels, np.arange(80) // 2)
    resamples = draw_resamples(np.zeros(40), BootstrapConfig(replicates=50))
    roc, pr = find_bands(counts, resamples, level=0.8)
    replicates = trace_curves(counts, resamples.weights[1:51])  # neither everyone once nor the jackknife
    np.testing.assert_allclose(roc.low, np.quantile(replicates.sensitivity, 0.1, axis=0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(pr.high, np.quantile(replicates.precision, 0.9, axis=0), rtol=0, atol=1e-12)
    assert (roc.at is RATES, pr.at is RECALLS) == (True, True)
    assert (roc.low <= roc.high).all()
    assert (roc.low[-1], roc.high[-1], pr.low[-1] < 1) == (1, 1, True)


def test_a_detector_that_errs_nowhere_has_a_band_of_no_width() -> None:
    counts = count_scores(np.arange(20.0), np.arange(20) // 10, np.arange(20))
    roc, pr = find_bands(counts, draw_resamples(np.arange(20) // 10, BootstrapConfig(replicates=30)))
    for band in (roc, pr):
        np.testing.assert_allclose([band.low, band.high], 1, rtol=0, atol=1e-9)


def test_more_subjects_make_a_narrower_band() -> None:
    rng = np.random.default_rng(0)

    def width(n: int) -> float:
        labels = np.arange(n) % 2
        counts = count_scores(rng.normal(labels), labels, np.arange(n))
        band = find_bands(counts, draw_resamples(counts.carries_anomaly.astype(int), BootstrapConfig(replicates=200))).roc
        return float((band.high - band.low).mean())

    assert width(1600) < 0.7 * width(100)


def test_pixels_have_bands_from_their_counts_alone() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((6, 8, 8)) < 0.3
    maps = (rng.integers(0, 20, masks.shape) + 6 * masks).astype(np.float16)
    counts = count_pixels(maps, masks, np.arange(6))
    found = trace_curves(counts, np.ones((1, 6)))
    sensitivity, precision = slow_trace(counts, np.ones(6), RATES, RECALLS)
    np.testing.assert_allclose(found.sensitivity[0], sensitivity, atol=1e-9)
    np.testing.assert_allclose(found.precision[0], precision, atol=1e-9)


def test_a_replicate_without_a_class_and_weights_of_other_subjects_are_refused() -> None:
    counts = count_scores(np.arange(4.0), np.array([0, 0, 1, 1]), np.arange(4))
    with pytest.raises(UndefinedMetricError, match="without normal or without abnormal items"):
        trace_curves(counts, np.array([[1, 1, 1, 1], [2, 2, 0, 0]]))
    with pytest.raises(ValueError, match=r"expected weights \(replicates, 4\)"):
        trace_curves(counts, np.ones((1, 3)))
