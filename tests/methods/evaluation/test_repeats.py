"""One figure out of many experiments."""

import numpy as np
import pytest

from methods.evaluation.bootstrap import Resamples, estimate
from methods.evaluation.histograms import count_scores
from methods.evaluation.metrics import UndefinedMetricError, roc_auc
from methods.evaluation.ranks import rank
from methods.evaluation.repeats import Weights, draw_weights, rank_detectors, replicate, summarise


def strata(count: int = 40) -> dict[str, str]:
    return {f"s{number:02d}": "ab"[number % 2] for number in range(count)}


def counts_of(rng: np.random.Generator, subjects: list[str]):  # type: ignore[no-untyped-def]
    labels = np.array([int(subject[1:]) % 2 for subject in subjects])
    return count_scores(rng.normal(labels), labels, np.array(subjects))


def test_with_one_experiment_the_interval_is_that_of_the_bootstrap_over_subjects() -> None:
    rng = np.random.default_rng(0)
    counts = counts_of(rng, list(strata()))
    weights = draw_weights(strata(), seeds=1, replicates=500, rng=rng)
    found = summarise(replicate(counts, roc_auc, weights)[:, None, None], weights)
    once = np.ones((1, len(counts.subjects)), int)
    resamples = Resamples(np.concatenate([once, weights.of_subjects]), replicates=500, groups=np.zeros(0))
    expected = estimate(rank(counts, resamples.weights).auroc, resamples)
    assert (found.mean, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert found.deviation is None


def test_a_subject_has_one_weight_in_every_experiment() -> None:
    """Two experiments with the same scores are as good as one: the interval does not shrink, as it would with weights of their own."""
    rng = np.random.default_rng(1)
    counts = counts_of(rng, list(strata()))
    weights = draw_weights(strata(), seeds=1, replicates=500, rng=rng)
    values = replicate(counts, roc_auc, weights)
    once, twice = summarise(values[:, None, None], weights), summarise(np.stack([values, values], 1)[:, None], weights)
    assert (once.low, once.high) == pytest.approx((twice.low, twice.high))


def test_an_experiment_takes_the_weights_of_its_own_subjects() -> None:
    weights = Weights({"a": 0, "b": 1, "c": 2, "d": 3}, np.array([[5, 3, 0, 1]]), np.array([[1]]))
    counts = count_scores(np.array([1.0, 0.0, 2.0]), np.array([0, 1, 1]), np.array(["a", "d", "b"]))
    # d is below a, b is above: 1/2 as they are, 3/4 when b counts three times
    assert replicate(counts, roc_auc, weights).tolist() == [0.5, 0.75]


def test_seeds_are_resampled_among_themselves_and_their_deviation_is_of_the_means_over_classes() -> None:
    weights = Weights({}, np.zeros((3, 0), int), np.array([[2, 0], [0, 2], [1, 1]]))
    values = np.tile(np.array([[0.5, 0.7], [0.7, 0.9]]), (4, 1, 1))
    found = summarise(values, weights, level=0.999999)
    assert (found.mean, found.low, found.high) == pytest.approx((0.7, 0.6, 0.8), abs=1e-4)
    assert found.deviation == pytest.approx(np.std([0.6, 0.8], ddof=1))
    assert found.by_class == pytest.approx((0.6, 0.8))


def test_resampling_keeps_the_number_of_subjects_of_each_stratum_and_of_seeds() -> None:
    weights = draw_weights(strata(), seeds=3, replicates=50, rng=np.random.default_rng(2))
    assert (weights.of_subjects[:, ::2].sum(1) == 20).all()
    assert (weights.of_subjects[:, 1::2].sum(1) == 20).all()
    assert (weights.of_seeds.sum(1) == 3).all()


def test_a_stratum_of_one_subject_is_refused() -> None:
    with pytest.raises(UndefinedMetricError, match="at least two"):
        draw_weights({"a": "x", "b": "x", "c": "y"}, seeds=1, replicates=5, rng=np.random.default_rng(0))


def test_ranks_are_taken_within_each_experiment_and_equal_detectors_share_them() -> None:
    weights = Weights({}, np.zeros((2, 0), int), np.array([[1], [1]]))
    at_first = np.array([[[0.9, 0.5]], [[0.8, 0.5]], [[0.7, 0.6]]])  # three detectors, one seed, two classes
    turned = np.array([[[0.7, 0.5]], [[0.8, 0.5]], [[0.9, 0.4]]])
    first, second, third = rank_detectors(np.stack([at_first, at_first, turned], 1), weights, level=0.999999)
    assert (first.by_class, second.by_class, third.by_class) == ((1, 2.5), (2, 2.5), (3, 1))
    assert (first.mean, first.low, first.high) == pytest.approx((1.75, 1.75, 2.25), abs=1e-4)
    assert (third.mean, third.low, third.high) == pytest.approx((2, 2, 2), abs=1e-4)
