"""The bootstrap by weights against one that concatenates the resampled subjects and asks scikit-learn."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import sklearn.metrics
from pydantic import ValidationError

from methods.evaluation import bootstrap
from methods.evaluation.bootstrap import BootstrapConfig, bootstrap_interval, resample_subjects
from methods.evaluation.histograms import SubjectCounts, count_scores
from methods.evaluation.metrics import UndefinedMetricError, average_precision, dice, roc_auc

Cohort = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture
def cohort() -> Cohort:
    """Scores, labels and subjects of 7 subjects with unequal numbers of images, the first 3 with anomalies."""
    rng = np.random.default_rng(3)
    subjects = np.repeat(np.arange(7), [12, 5, 30, 8, 20, 3, 9])
    labels = ((subjects < 3) & (rng.random(len(subjects)) < 0.5)).astype(int)
    scores = np.round(rng.normal(labels + 0.1 * subjects), 1).astype(np.float32)  # rounded: ties
    return scores, labels, subjects


def _strata(counts: SubjectCounts) -> np.ndarray:
    return (counts.abnormal.sum(1) > 0).astype(int)


@pytest.mark.parametrize("chunk_elements", [1, 500, 10**6])
def test_the_interval_is_that_of_concatenated_resamples(cohort: Cohort, chunk_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", chunk_elements)
    scores, labels, subjects = cohort
    counts = count_scores(scores, labels, subjects)
    weights = resample_subjects(_strata(counts), replicates=80, rng=np.random.default_rng(5))
    metrics: dict[Callable[..., np.ndarray], Callable[..., float]] = {
        roc_auc: sklearn.metrics.roc_auc_score,
        average_precision: sklearn.metrics.average_precision_score,
        partial(dice, values=counts.values, threshold=0.8): lambda y_true, y_score: sklearn.metrics.f1_score(y_true, y_score >= 0.8),
    }
    for fast, slow in metrics.items():
        replicates = []
        for weight in weights:
            items = np.concatenate(
                [np.flatnonzero(subjects == int(name)) for name, n in zip(counts.subjects, weight, strict=True) for _ in range(n)]
            )
            replicates.append(slow(labels[items], scores[items].astype(float)))
        estimate = bootstrap_interval(counts, fast, weights=weights, level=0.9)
        assert estimate.value == pytest.approx(slow(labels, scores.astype(float)), abs=1e-12)
        assert (estimate.low, estimate.high) == pytest.approx(tuple(np.percentile(replicates, [5, 95])), abs=1e-12)
        assert estimate.standard_deviation == pytest.approx(np.std(replicates, ddof=1), abs=1e-12)
        assert estimate.replicates == 80


def test_bootstrap_resamples_subjects_not_images() -> None:
    # every subject's images lie at a value of its own, so a replicate's count there tells how often the subject was drawn
    images = np.array([2, 3, 5, 7])
    counts = SubjectCounts(tuple("abcd"), np.arange(4.0), np.diag(images), np.eye(4, dtype=np.int64))
    seen = []

    def statistic(normal: np.ndarray, abnormal: np.ndarray) -> np.ndarray:
        seen.append(normal)
        return normal.sum(-1)

    weights = resample_subjects(np.ones(4, int), replicates=200, rng=np.random.default_rng(0))
    bootstrap_interval(counts, statistic, weights=weights)
    drawn = np.concatenate(seen[1:]) / images  # (200, 4), after the call on all the data
    np.testing.assert_array_equal(drawn, np.round(drawn))
    np.testing.assert_array_equal(drawn.sum(1), 4)
    assert len(np.unique(drawn, axis=0)) > 20


def test_each_stratum_keeps_its_number_of_subjects() -> None:
    strata = np.array([1, 0, 0, 1, 0, 1, 0, 0])
    weights = resample_subjects(strata, replicates=300, rng=np.random.default_rng(0))
    assert weights.shape == (300, 8)
    assert (weights[:, strata == 1].sum(1) == 3).all()
    assert (weights[:, strata == 0].sum(1) == 5).all()
    assert weights.max(0).min() >= 2, "with replacement: every subject is drawn twice in some replicate"
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.2)


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    first, again, other = (resample_subjects(np.zeros(6, int), replicates=20, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_subjects_that_all_carry_anomaly_are_one_stratum_and_have_an_interval() -> None:
    rng = np.random.default_rng(0)
    counts = SubjectCounts(tuple("abcd"), np.arange(50.0), rng.integers(1, 9, (4, 50)), rng.integers(1, 9, (4, 50)))
    weights = resample_subjects(_strata(counts), replicates=100, rng=rng)
    estimate = bootstrap_interval(counts, roc_auc, weights=weights)
    assert estimate.low < estimate.value < estimate.high


def test_identical_subjects_have_an_interval_of_no_width() -> None:
    counts = SubjectCounts(tuple("abc"), np.arange(4.0), np.tile([4, 3, 2, 1], (3, 1)), np.tile([0, 1, 1, 5], (3, 1)))
    estimate = bootstrap_interval(counts, roc_auc, weights=resample_subjects(np.ones(3, int), replicates=50, rng=np.random.default_rng(0)))
    assert (estimate.low, estimate.high) == pytest.approx((estimate.value, estimate.value), abs=1e-12)
    assert estimate.standard_deviation == pytest.approx(0, abs=1e-12)


def test_a_stratum_of_one_subject_is_refused_with_the_numbers() -> None:
    with pytest.raises(UndefinedMetricError, match="at least two subjects of each kind; there are 3 without anomaly, 1 with anomaly"):
        resample_subjects(np.array([0, 0, 1, 0]), replicates=10, rng=np.random.default_rng(0))


def test_a_replicate_without_a_class_raises_instead_of_counting_as_chance() -> None:
    # one stratum, but only one of its subjects has normal items: some replicates have none
    counts = SubjectCounts(tuple("ab"), np.arange(2.0), np.array([[3, 1], [0, 0]]), np.array([[1, 1], [1, 1]]))
    weights = resample_subjects(_strata(counts), replicates=50, rng=np.random.default_rng(0))
    with pytest.raises(UndefinedMetricError, match="without normal items"):
        bootstrap_interval(counts, roc_auc, weights=weights)


def test_weights_for_other_subjects_are_refused() -> None:
    counts = SubjectCounts(tuple("abc"), np.arange(2.0), np.ones((3, 2), int), np.ones((3, 2), int))
    with pytest.raises(ValueError, match=r"expected weights \(replicates, 3\).*got \(10, 4\)"):
        bootstrap_interval(counts, roc_auc, weights=np.ones((10, 4), int))


def test_a_misspelt_key_of_the_configuration_is_named() -> None:
    with pytest.raises(ValidationError, match="replicate\n"):
        BootstrapConfig(replicate=10)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="level"):
        BootstrapConfig(level=95)
