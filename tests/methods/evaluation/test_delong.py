"""DeLong's interval against the formula over all pairs, and its coverage with subjects of several images."""

import numpy as np
import pytest
import scipy.stats

from methods.evaluation.bootstrap import BootstrapConfig, draw_resamples, estimate
from methods.evaluation.delong import delong_interval
from methods.evaluation.histograms import count_scores
from methods.evaluation.metrics import UndefinedMetricError
from methods.evaluation.ranks import rank


def test_with_one_image_a_subject_it_is_delong_et_als_formula() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [40, 25])
    scores = np.round(rng.normal(labels), 1)  # ties
    x, y = scores[labels == 1][:, None], scores[labels == 0][None]
    wins = (x > y) + 0.5 * (x == y)  # (25, 40)
    variance = wins.mean(1).var(ddof=1) / 25 + wins.mean(0).var(ddof=1) / 40
    found = delong_interval(count_scores(scores, labels, np.arange(65)), level=0.9)
    reach = scipy.stats.norm.ppf(0.95) * np.sqrt(variance)
    assert found.value == pytest.approx(wins.mean(), abs=1e-12)
    assert found.standard_deviation == pytest.approx(np.sqrt(variance), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((wins.mean() - reach, min(wins.mean() + reach, 1)), abs=1e-12)


def test_with_several_images_a_subject_it_is_as_wide_as_the_bootstrap_over_subjects_and_not_over_images() -> None:
    rng = np.random.default_rng(1)
    subjects = np.repeat(np.arange(80), 10)
    labels = (subjects % 2 == 0).astype(int)
    scores = rng.normal(size=80)[subjects] + 0.3 * rng.normal(size=800) + labels
    counts = count_scores(scores, labels, subjects)
    resamples = draw_resamples(counts.carries_anomaly, BootstrapConfig(replicates=1000))
    clustered = estimate(rank(counts, resamples.weights).auroc, resamples).standard_deviation
    assert delong_interval(counts).standard_deviation == pytest.approx(clustered, rel=0.1)
    assert delong_interval(count_scores(scores, labels, np.arange(800))).standard_deviation < 0.5 * clustered


def test_subjects_with_both_classes_are_taken_together() -> None:
    """A subject that is drawn twice brings both its normal and its abnormal images twice: their placements vary together."""
    rng = np.random.default_rng(2)
    subjects, labels = np.repeat(np.arange(60), 8), np.tile([0, 1], 240)
    scores = 1.5 * rng.normal(size=60)[subjects] + 0.5 * rng.normal(size=480) + labels
    counts = count_scores(scores, labels, subjects)
    resamples = draw_resamples(counts.carries_anomaly, BootstrapConfig(replicates=1000))
    expected = estimate(rank(counts, resamples.weights).auroc, resamples).standard_deviation
    assert delong_interval(counts).standard_deviation == pytest.approx(expected, rel=0.1)


def test_one_subject_of_a_class_has_no_interval() -> None:
    with pytest.raises(UndefinedMetricError, match="3 have normal and 1 abnormal"):
        delong_interval(count_scores(np.arange(4.0), np.array([0, 0, 0, 1]), np.arange(4)))
