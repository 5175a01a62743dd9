"""Metrics of weighted counts against scikit-learn on the scores themselves, with ties and weights."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.evaluation import metrics


class Sample(NamedTuple):
    y_true: np.ndarray
    y_score: np.ndarray
    weight: np.ndarray

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values, position = np.unique(self.y_score, return_inverse=True)
        normal, abnormal = (
            np.bincount(position[self.y_true == label], self.weight[self.y_true == label], minlength=len(values)) for label in (0, 1)
        )
        return normal, abnormal, values


@st.composite
def samples_with_ties(draw: st.DrawFn) -> Sample:
    item = st.tuples(st.integers(0, 1), st.integers(-4, 4), st.floats(0.01, 10))
    items = draw(st.lists(item, min_size=1, max_size=60))
    y_true, y_score, weight = map(
        np.array, zip((0, draw(st.integers(-4, 4)), 1.0), (1, draw(st.integers(-4, 4)), 1.0), *items, strict=True)
    )
    return Sample(y_true, y_score / 4, np.ones(len(y_true)) if draw(st.booleans()) else weight)


@given(samples_with_ties())
def test_areas_equal_those_of_scikit_learn_with_ties_and_weights(sample: Sample) -> None:
    normal, abnormal, _ = sample.counts()
    y_true, y_score, weight = sample
    assert metrics.roc_auc(normal, abnormal) == pytest.approx(
        sklearn.metrics.roc_auc_score(y_true, y_score, sample_weight=weight), abs=1e-12
    )
    expected = sklearn.metrics.average_precision_score(y_true, y_score, sample_weight=weight)
    assert metrics.average_precision(normal, abnormal) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=50)
@given(samples_with_ties())
def test_curves_equal_those_of_scikit_learn(sample: Sample) -> None:
    normal, abnormal, _ = sample.counts()
    y_true, y_score, weight = sample
    expected_fpr, expected_tpr, _ = sklearn.metrics.roc_curve(y_true, y_score, sample_weight=weight, drop_intermediate=False)
    np.testing.assert_allclose(metrics.roc_curve(normal, abnormal), (expected_fpr, expected_tpr), rtol=0, atol=1e-12)
    expected_precision, expected_recall, _ = sklearn.metrics.precision_recall_curve(y_true, y_score, sample_weight=weight)
    recall, precision = metrics.precision_recall_curve(normal, abnormal)
    np.testing.assert_allclose((recall[::-1], precision[::-1]), (expected_recall, expected_precision), rtol=0, atol=1e-12)


@settings(max_examples=50)
@given(samples_with_ties(), st.one_of(st.integers(-5, 5).map(lambda quarter: quarter / 4), st.floats(-1.2, 1.2)))
def test_metrics_at_a_threshold_equal_those_of_scikit_learn(sample: Sample, threshold: float) -> None:
    y_true, y_score, weight = sample
    called = (y_score >= threshold).astype(int)
    counted = (*sample.counts(), threshold)
    (tn, fp), (fn, tp) = sklearn.metrics.confusion_matrix(y_true, called, labels=[0, 1], sample_weight=weight)
    np.testing.assert_allclose(metrics.confusion_at(*counted), (tp, fp, fn, tn), atol=1e-12)
    pairs = {
        metrics.dice: sklearn.metrics.f1_score(y_true, called, sample_weight=weight),
        metrics.iou: sklearn.metrics.jaccard_score(y_true, called, sample_weight=weight),
        metrics.sensitivity: sklearn.metrics.recall_score(y_true, called, sample_weight=weight),
        metrics.specificity: sklearn.metrics.recall_score(y_true, called, pos_label=0, sample_weight=weight),
        metrics.accuracy: sklearn.metrics.accuracy_score(y_true, called, sample_weight=weight),
        metrics.balanced_accuracy: sklearn.metrics.balanced_accuracy_score(y_true, called, sample_weight=weight),
    }
    for metric, expected in pairs.items():
        assert metric(*counted) == pytest.approx(expected, abs=1e-12), metric.__name__


def test_leading_axes_are_replicates_measured_each_by_itself() -> None:
    rng = np.random.default_rng(1)
    normal, abnormal = rng.integers(0, 4, (2, 3, 5, 20))
    values = np.arange(20.0)
    for metric in (metrics.roc_auc, metrics.average_precision):
        together = metric(normal, abnormal)
        assert together.shape == (3, 5)
        assert together[2, 4] == metric(normal[2, 4], abnormal[2, 4])
    assert metrics.dice(normal, abnormal, values, 7)[1, 3] == metrics.dice(normal[1, 3], abnormal[1, 3], values, 7)
    assert metrics.roc_curve(normal, abnormal)[0].shape == (3, 5, 21)


def test_values_that_carry_no_weight_change_nothing() -> None:
    normal, abnormal = np.array([3, 1, 0, 2]), np.array([0, 1, 2, 2])
    padded = [np.zeros(9), np.zeros(9)]
    for target, counts in zip(padded, (normal, abnormal), strict=True):
        target[[1, 3, 4, 6]] = counts
    assert metrics.roc_auc(*padded) == metrics.roc_auc(normal, abnormal)
    assert metrics.average_precision(*padded) == metrics.average_precision(normal, abnormal)
    assert np.isfinite(metrics.precision_recall_curve(*padded)).all()


def test_billions_of_pixels_do_not_overflow() -> None:
    billions = np.array([3_000_000_000, 2_000_000_000])
    assert metrics.roc_auc(billions, billions) == pytest.approx(0.5, abs=1e-15)
    assert metrics.roc_auc(billions[::-1], billions) == pytest.approx(0.5 * 0.6 * 0.4 + 0.5 * 0.6 * 0.4 + 0.4 * 0.4, abs=1e-15)


@pytest.mark.parametrize(
    ("metric", "arguments"),
    [
        (metrics.roc_auc, ()),
        (metrics.average_precision, ()),
        (metrics.roc_curve, ()),
        (metrics.precision_recall_curve, ()),
        (metrics.dice, (np.arange(2.0), 1.0)),
        (metrics.iou, (np.arange(2.0), 1.0)),
        (metrics.sensitivity, (np.arange(2.0), 1.0)),
        (metrics.accuracy, (np.arange(2.0), 1.0)),
        (metrics.balanced_accuracy, (np.arange(2.0), 1.0)),
    ],
)
def test_a_missing_abnormal_class_raises_and_is_named(metric: Callable[..., object], arguments: tuple[object, ...]) -> None:
    with pytest.raises(metrics.UndefinedMetricError, match=r"without abnormal items \(normal weight 7, abnormal weight 0\)"):
        metric(np.array([3, 4]), np.array([0, 0]), *arguments)


def test_a_missing_normal_class_raises_where_the_metric_needs_it() -> None:
    normal, abnormal, values = np.array([0, 0]), np.array([3, 4]), np.arange(2.0)
    for metric, arguments in ((metrics.roc_auc, ()), (metrics.average_precision, ()), (metrics.specificity, (values, 1.0))):
        with pytest.raises(metrics.UndefinedMetricError, match="without normal items"):
            metric(normal, abnormal, *arguments)
    assert metrics.sensitivity(normal, abnormal, values, 1.0) == pytest.approx(4 / 7)


def test_one_undefined_replicate_among_many_raises() -> None:
    with pytest.raises(metrics.UndefinedMetricError, match="in at least one replicate"):
        metrics.roc_auc(np.array([[1, 2], [1, 2]]), np.array([[1, 0], [0, 0]]))


def test_no_items_at_all_are_undefined() -> None:
    with pytest.raises(metrics.UndefinedMetricError):
        metrics.roc_auc(np.zeros(0), np.zeros(0))
