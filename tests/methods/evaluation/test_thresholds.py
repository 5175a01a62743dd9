"""Operating points against a search over every value."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.evaluation.histograms import SubjectCounts, count_scores
from methods.evaluation.metrics import UndefinedMetricError
from methods.evaluation.thresholds import Threshold, best_dice_threshold, best_youden_threshold, deviation_threshold, quantile_threshold

SCORES = st.lists(st.integers(0, 8).map(lambda eighths: eighths / 8), min_size=1, max_size=25)


def _counts(normal: list[float], abnormal: list[float]) -> SubjectCounts:
    scores = np.array([*normal, *abnormal], np.float32)
    return count_scores(scores, np.repeat([0, 1], [len(normal), len(abnormal)]), np.arange(len(scores)) % 3)


@settings(max_examples=50)
@given(SCORES, SCORES)
def test_best_dice_is_the_best_of_all_values_and_the_highest_of_equals(normal: list[float], abnormal: list[float]) -> None:
    y_score, y_true = np.array([*normal, *abnormal]), np.repeat([0, 1], [len(normal), len(abnormal)])
    every = [(sklearn.metrics.f1_score(y_true, y_score >= value), value) for value in np.unique(y_score)]
    best, value = max(every)  # equal Dice: the higher value
    found = best_dice_threshold(_counts(normal, abnormal))
    assert found == Threshold(value, "highest Dice", f"Dice {best:.3f}")


@given(SCORES, SCORES)
def test_best_youden_is_the_best_of_all_values_and_the_highest_of_equals(normal: list[float], abnormal: list[float]) -> None:
    def index(value: float) -> int:
        called_abnormal, called_normal = sum(score >= value for score in abnormal), sum(score >= value for score in normal)
        return called_abnormal * len(normal) - called_normal * len(abnormal)

    found = best_youden_threshold(_counts(normal, abnormal))
    assert found.value == max({*normal, *abnormal}, key=lambda value: (index(value), value))
    assert found.rule == "highest Youden index"


def test_youden_detail_says_what_was_reached() -> None:
    found = best_youden_threshold(_counts([0.1, 0.2, 0.6, 0.3], [0.5, 0.7, 0.8]))
    assert found == Threshold(0.5, "highest Youden index", "sensitivity 1.000, specificity 0.750")


@given(SCORES, SCORES, st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.5, 0.9, 1.0]))
def test_quantile_threshold_is_the_lowest_normal_score_that_keeps_the_rate(normal: list[float], abnormal: list[float], rate: float) -> None:
    found = quantile_threshold(_counts(normal, abnormal), false_positive_rate=rate)
    reached = {value: np.mean([score >= value for score in normal]) for value in {*normal}}
    allowed = [value for value, share in reached.items() if share <= rate]
    if allowed:
        assert found.value == min(allowed)
    else:
        assert found.value == np.nextafter(np.float32(max(normal)), np.float32(np.inf))
    assert np.mean([score >= found.value for score in normal]) <= rate


def test_abnormal_scores_have_no_say_in_the_quantile_of_normals() -> None:
    normal = [0.1, 0.2, 0.3, 0.4]
    without = quantile_threshold(_counts(normal, []), false_positive_rate=0.25)
    assert without == quantile_threshold(_counts(normal, [0.05, 0.35, 0.9]), false_positive_rate=0.25)
    assert without == Threshold(float(np.float32(0.4)), "false-positive rate of at most 0.25 on normals", "false-positive rate 0.2500")


def test_a_threshold_above_all_normals_calls_none_of_them_in_float32() -> None:
    normal = np.array([0.1, 0.7], np.float32)
    found = quantile_threshold(_counts(normal.tolist(), []), false_positive_rate=0.1)
    assert not (normal >= np.float32(found.value)).any()


def test_n_deviations_are_counted_from_the_mean_of_normals_alone() -> None:
    normal = [0.0, 0.0, 1.0, 1.0, 3.0]
    found = deviation_threshold(_counts(normal, [100.0]), deviations=1.5)
    assert found.value == pytest.approx(np.mean(normal) + 1.5 * np.std(normal))
    assert found == Threshold(found.value, "1.5 standard deviations above the mean of normals", "false-positive rate 0.2000")
    with pytest.raises(UndefinedMetricError, match="0 normal and 1 abnormal"):
        deviation_threshold(_counts([], [1.0]), deviations=3)


def test_a_missing_class_raises_with_the_numbers() -> None:
    for choose in (best_dice_threshold, best_youden_threshold):
        with pytest.raises(UndefinedMetricError, match="3 normal and 0 abnormal"):
            choose(_counts([0.1, 0.2, 0.3], []))
    with pytest.raises(UndefinedMetricError, match="0 normal and 2 abnormal"):
        quantile_threshold(_counts([], [0.1, 0.2]), false_positive_rate=0.1)


@pytest.mark.parametrize("rate", [-0.1, 1.5, 5, np.nan])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"expected a false-positive rate in \[0, 1\]"):
        quantile_threshold(_counts([0.1], [0.2]), false_positive_rate=rate)
