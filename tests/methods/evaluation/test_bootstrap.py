"""The bootstrap by weights against one that concatenates the resampled subjects, and its intervals against SciPy's."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from pydantic import ValidationError

from methods.evaluation.bootstrap import BootstrapConfig, Resamples, draw_resamples, estimate, leave_out, resample_subjects
from methods.evaluation.histograms import SubjectCounts, count_scores
from methods.evaluation.metrics import UndefinedMetricError, dice
from methods.evaluation.ranks import rank, sum_sides

Cohort = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture
def cohort() -> Cohort:
    """Scores, labels and subjects of 7 subjects with unequal numbers of images, the first 3 with anomalies."""
    rng = np.random.default_rng(3)
    subjects = np.repeat(np.arange(7), [12, 5, 30, 8, 20, 3, 9])
    labels = ((subjects < 3) & (rng.random(len(subjects)) < 0.5)).astype(int)
    scores = np.round(rng.normal(labels + 0.1 * subjects), 1).astype(np.float32)  # rounded: ties
    return scores, labels, subjects


def dice_at(counts: SubjectCounts, weights: np.ndarray, threshold: float) -> np.ndarray:
    return dice(*sum_sides(counts, threshold, weights), np.array([0.0, 1.0]), 1.0)


def test_the_percentile_interval_is_that_of_concatenated_resamples(cohort: Cohort) -> None:
    scores, labels, subjects = cohort
    counts = count_scores(scores, labels, subjects)
    resamples = draw_resamples(counts.carries_anomaly, BootstrapConfig(replicates=80, seed=5, interval="percentile"))
    metrics: dict[Callable[..., np.ndarray], Callable[..., float]] = {
        lambda counts, weights: rank(counts, weights).auroc: sklearn.metrics.roc_auc_score,
        lambda counts, weights: rank(counts, weights).average_precision: sklearn.metrics.average_precision_score,
        partial(dice_at, threshold=0.8): lambda y_true, y_score: sklearn.metrics.f1_score(y_true, y_score >= 0.8),
    }
    for fast, slow in metrics.items():
        replicates = []
        for weight in resamples.weights[1:]:
            items = np.concatenate(
                [np.flatnonzero(subjects == int(name)) for name, n in zip(counts.subjects, weight, strict=True) for _ in range(n)]
            )
            replicates.append(slow(labels[items], scores[items].astype(float)))
        found = estimate(fast(counts, resamples.weights), resamples, level=0.9)
        assert found.value == pytest.approx(slow(labels, scores.astype(float)), abs=1e-12)
        assert (found.low, found.high) == pytest.approx(tuple(np.percentile(replicates, [5, 95])), abs=1e-12)
        assert found.standard_deviation == pytest.approx(np.std(replicates, ddof=1), abs=1e-12)
        assert found.method == "percentile"


@dataclass
class Bootstrapped:
    """What SciPy takes replicates from that were made elsewhere."""

    bootstrap_distribution: np.ndarray


@pytest.mark.parametrize("strata", [np.zeros(12, int), np.repeat([0, 1], [7, 5])])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_bca_interval_is_scipys_on_the_same_replicates_with_one_stratum_and_with_two(strata: np.ndarray, level: float) -> None:
    rng = np.random.default_rng(6)
    totals, sizes = rng.gamma(2, size=12), rng.integers(1, 9, 12).astype(float)
    resamples = draw_resamples(strata, BootstrapConfig(replicates=700, level=level))
    values = (resamples.weights @ totals) / (resamples.weights @ sizes)
    kinds = np.unique(strata)

    def ratio(*subjects: np.ndarray, axis: int = -1) -> np.ndarray:
        chosen = np.concatenate(np.broadcast_arrays(*subjects) if len({part.shape for part in subjects}) == 1 else subjects, axis=axis)
        return np.asarray(totals[chosen].sum(axis) / sizes[chosen].sum(axis))

    expected = scipy.stats.bootstrap(
        [np.flatnonzero(strata == kind) for kind in kinds],
        lambda *subjects: ratio(*subjects),
        n_resamples=0,
        vectorized=False,
        method="BCa",
        confidence_level=level,
        bootstrap_result=Bootstrapped(values[1:701]),  # type: ignore[arg-type]
    ).confidence_interval
    found = estimate(values, resamples, level=level)
    assert found.method == "BCa"
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_jackknife_is_the_metric_on_data_without_each_subject(cohort: Cohort) -> None:
    scores, labels, subjects = cohort
    counts = count_scores(scores, labels, subjects)
    resamples = draw_resamples(counts.carries_anomaly, BootstrapConfig(replicates=10))
    left_out = rank(counts, resamples.weights).auroc[11:]
    assert len(left_out) == 7
    for weight, value in zip(resamples.weights[11:], left_out, strict=True):
        (gone,) = np.flatnonzero(weight == 0)
        kept = subjects != int(counts.subjects[gone])
        assert value == pytest.approx(sklearn.metrics.roc_auc_score(labels[kept], scores[kept].astype(float)), abs=1e-12)


def test_many_subjects_are_left_out_in_groups_within_their_strata() -> None:
    strata = np.repeat(["a", "b"], [900, 100])
    weights, groups = leave_out(strata, rng=np.random.default_rng(0), groups=50)
    assert (groups == "a").sum() == 45
    assert (groups == "b").sum() == 5
    assert ((weights == 0).sum(0) == 1).all()  # each subject is left out once
    for weight, kind in zip(weights, groups, strict=True):
        assert set(strata[weight == 0]) == {kind}


def test_values_that_no_resample_changes_have_a_percentile_interval_of_no_width() -> None:
    resamples = draw_resamples(np.zeros(5, int), BootstrapConfig(replicates=50))
    found = estimate(np.ones(len(resamples.weights)), resamples)
    assert (found.low, found.high, found.standard_deviation, found.method) == (1, 1, 0, "percentile")


def test_bootstrap_resamples_subjects_not_images() -> None:
    # every subject's images lie at a value of its own, so a replicate's count there tells how often the subject was drawn
    images = np.array([2, 3, 5, 7])
    counts = SubjectCounts(tuple("abcd"), np.arange(4.0), np.diag(images), np.eye(4, dtype=np.int64))
    resamples = draw_resamples(np.ones(4, int), BootstrapConfig(replicates=200))
    drawn = resamples.weights[1:201]
    np.testing.assert_array_equal(drawn.sum(1), 4)
    assert len(np.unique(drawn, axis=0)) > 20
    for threshold in range(4):
        normal, _ = sum_sides(counts, threshold, drawn)
        np.testing.assert_array_equal(normal[:, 1], (drawn * images)[:, threshold:].sum(1))


def test_each_stratum_keeps_its_number_of_subjects() -> None:
    strata = np.array([1, 0, 0, 1, 0, 1, 0, 0])
    weights = resample_subjects(strata, replicates=300, rng=np.random.default_rng(0))
    assert weights.shape == (300, 8)
    assert (weights[:, strata == 1].sum(1) == 3).all()
    assert (weights[:, strata == 0].sum(1) == 5).all()
    assert weights.max(0).min() >= 2, "with replacement: every subject is drawn twice in some replicate"
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.2)


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    first, again, other = (draw_resamples(np.zeros(6, int), BootstrapConfig(replicates=20, seed=seed)).weights for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("interval", ["bca", "percentile"])
def test_the_interval_of_a_difference_on_the_same_resamples_is_narrower_than_of_independent_ones(interval: str) -> None:
    """Two detectors that fail on the same subjects: their difference varies less than either of them."""
    rng = np.random.default_rng(7)
    labels, hard = np.repeat([0, 1], 60), rng.normal(size=120)
    counts = [count_scores(labels + hard + 0.2 * rng.normal(size=120), labels, np.arange(120)) for _ in range(2)]
    resamples = draw_resamples(counts[0].carries_anomaly, BootstrapConfig(replicates=400, interval=interval))  # type: ignore[arg-type]
    one, other = (rank(each, resamples.weights).auroc for each in counts)
    paired, alone = estimate(one - other, resamples), estimate(one, resamples)
    assert paired.value == pytest.approx(one[0] - other[0])
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)
    assert paired.low < paired.value < paired.high


def test_a_stratum_of_one_subject_is_refused_with_the_numbers() -> None:
    with pytest.raises(UndefinedMetricError, match="at least two subjects of each kind; there are 3 without anomaly, 1 with anomaly"):
        resample_subjects(np.array([0, 0, 1, 0]), replicates=10, rng=np.random.default_rng(0))
    with pytest.raises(UndefinedMetricError, match="1 in stratum hand"):
        resample_subjects(np.array(["foot", "foot", "hand"]), replicates=10, rng=np.random.default_rng(0))


def test_one_subject_alone_has_no_interval() -> None:
    with pytest.raises(UndefinedMetricError, match="there are 1 with anomaly"):
        draw_resamples(np.array([1]), BootstrapConfig())


def test_without_a_jackknife_the_interval_is_of_percentiles() -> None:
    resamples = Resamples(np.ones((4, 3), int), 3, np.zeros(0))
    found = estimate(np.array([1.0, 0.0, 2.0, 4.0]), resamples, level=0.5)
    assert (found.low, found.high, found.method) == (1, 3, "percentile")


def test_a_misspelt_key_of_the_configuration_is_named() -> None:
    with pytest.raises(ValidationError, match="replicate\n"):
        BootstrapConfig(replicate=10)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="level"):
        BootstrapConfig(level=95)


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["bca", "percentile"])
def test_intervals_cover_the_truth_as_often_as_they_say(interval: str) -> None:
    """Clustered binormal scores of which the AUROC is known; 90 % intervals over 600 draws of 60 subjects with 1 to 6 images each."""
    rng = np.random.default_rng(11)
    between, within, shift = 0.6, 0.8, 1.2
    truth = float(scipy.stats.norm.cdf(shift / np.sqrt(2 * (between**2 + within**2))))
    covered = []
    for draw in range(600):
        sizes = rng.integers(1, 7, 60)
        subjects = np.repeat(np.arange(60), sizes)
        labels = (subjects < 24).astype(int)  # subjects are independent and of one class, so that pairs of images are too
        scores = rng.normal(size=60)[subjects] * between + rng.normal(size=len(subjects)) * within + shift * labels
        counts = count_scores(scores, labels, subjects)
        resamples = draw_resamples(counts.carries_anomaly, BootstrapConfig(replicates=500, seed=draw, interval=interval))  # type: ignore[arg-type]
        found = estimate(rank(counts, resamples.weights).auroc, resamples, level=0.9)
        covered.append(found.low <= truth <= found.high)
    assert np.mean(covered) == pytest.approx(0.9, abs=0.04)  # standard error 0.012; small samples cover a little less
