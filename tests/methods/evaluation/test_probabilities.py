"""Brier score and reliability against scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from methods.evaluation.histograms import count_scores
from methods.evaluation.probabilities import bin_probabilities, brier_score


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_brier_score_equals_scikit_learns_with_weights(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, y, subjects = rng.integers(0, 9, 40) / 8, rng.integers(0, 2, 40), rng.integers(0, 5, 40)
    counts = count_scores(p, y, subjects)
    weights = rng.random((3, len(counts.subjects))) + 0.1
    of_items = weights[:, np.unique(subjects, return_inverse=True)[1]]
    expected = [sklearn.metrics.brier_score_loss(y, p, sample_weight=weight, pos_label=1) for weight in of_items]
    np.testing.assert_allclose(brier_score(counts, weights), expected, rtol=0, atol=1e-12)


def test_reliability_equals_scikit_learns_calibration_curve() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(300) ** 2
    y = (rng.random(300) < p).astype(int)
    expected, mean = calibration_curve(y, p, n_bins=10)
    found = bin_probabilities(count_scores(p, y, np.arange(300)))
    np.testing.assert_allclose([one.mean_probability for one in found], mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose([one.abnormal / one.items for one in found], expected, rtol=0, atol=1e-12)
    assert sum(one.items for one in found) == 300


def test_scores_that_are_no_probabilities_are_refused() -> None:
    counts = count_scores(np.array([0.5, 1.5]), np.array([0, 1]), np.arange(2))
    for measure in (lambda: brier_score(counts, np.ones((1, 2))), lambda: bin_probabilities(counts)):
        with pytest.raises(ValueError, match=r"expected probabilities in \[0, 1\], got scores from 0.5 to 1.5"):
            measure()
