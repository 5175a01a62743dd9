"""Rows of metrics, constant answers and differences on counts whose answer is known."""

import numpy as np
import pytest
import sklearn.metrics

from methods.evaluation.bootstrap import BootstrapConfig
from methods.evaluation.histograms import count_pixels, count_scores
from methods.evaluation.metrics import UndefinedMetricError
from methods.evaluation.thresholds import Threshold
from tasks.measures import measure, measure_constant, measure_difference, measure_point

BOOTSTRAP = BootstrapConfig(replicates=60)
RARE = np.repeat([0, 1], [95, 5])


def counts_of(scores: np.ndarray, labels: np.ndarray = RARE):  # type: ignore[no-untyped-def]
    return count_scores(scores, labels, np.arange(len(labels)))


def test_rows_equal_scikit_learn_and_every_interval_has_its_method_and_deviation() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(RARE * 1.5)
    found = measure(counts_of(scores), None, thresholds={"image": Threshold(1.0, "r", "d")}, bootstrap=BOOTSTRAP)
    rows = {row["name"]: row for row in found.rows}
    called = scores >= 1.0
    assert {name: rows[name]["value"] for name in ("AUROC", "average precision", "accuracy", "balanced accuracy", "F1")} == pytest.approx(
        {
            "AUROC": sklearn.metrics.roc_auc_score(RARE, scores),
            "average precision": sklearn.metrics.average_precision_score(RARE, scores),
            "accuracy": sklearn.metrics.accuracy_score(RARE, called),
            "balanced accuracy": sklearn.metrics.balanced_accuracy_score(RARE, called),
            "F1": sklearn.metrics.f1_score(RARE, called),
        },
        abs=1e-12,
    )
    assert {row["method"] for row in found.rows} <= {"BCa", "percentile", "DeLong"}
    assert rows["AUROC, DeLong"]["method"] == "DeLong"
    assert all(row["low"] <= row["value"] <= row["high"] and row["sd"] >= 0 for row in found.rows)
    assert set(found.values) == {f"image/{name}" for name in rows if name != "AUROC, DeLong"}


def test_the_constant_answer_shows_what_accuracy_hides() -> None:
    normal, abnormal = ({row["name"]: row["value"] for row in measure_constant(counts_of(np.arange(100.0)), None, answer)}
                        for answer in ("everything normal", "everything abnormal"))  # fmt: skip
    assert normal["accuracy"] == 0.95
    assert normal["balanced accuracy"] == abnormal["balanced accuracy"] == 0.5
    assert (normal["F1"], normal["sensitivity"], normal["specificity"]) == (0, 0, 1)
    assert abnormal["F1"] == pytest.approx(2 * 5 / (2 * 5 + 95))
    assert (normal["AUROC"], normal["average precision"]) == (0.5, 0.05)
    assert normal["sensitivity at 90% specificity"] == 0


def test_the_constant_answer_for_pixels_and_probabilities() -> None:
    masks = np.zeros((4, 4, 4), bool)
    masks[:2, 0] = True
    pixel = count_pixels(np.ones(masks.shape, np.float16), masks, np.arange(4))
    rows = {(row["level"], row["name"]): row["value"] for row in
            measure_constant(counts_of(np.linspace(0, 1, 100)), pixel, "everything normal", probabilities=True)}  # fmt: skip
    assert rows["pixel", "AUPRO"] == pytest.approx(0.15)
    assert rows["pixel", "average precision"] == 8 / 64
    assert rows["image", "Brier score"] == 0.05


def test_one_subject_of_a_class_has_values_but_no_intervals_and_the_note_says_why() -> None:
    labels = np.array([0, 0, 0, 1])
    found = measure(counts_of(np.array([0, 1, 2, 1.5]), labels), None, thresholds={}, bootstrap=BOOTSTRAP)
    assert {row["name"] for row in found.rows} >= {"AUROC", "average precision"}
    assert all(row["low"] is None and "3 without anomaly, 1 with anomaly" in row["note"] for row in found.rows)
    assert found.values == {}


def test_where_resamples_lack_a_class_there_are_values_without_intervals() -> None:
    labels, free = np.array([0] * 9 + [1, 1]), {str(i): "all" for i in range(11)}
    found = measure(counts_of(np.arange(11.0), labels), None, thresholds={}, bootstrap=BOOTSTRAP, strata=free)
    assert found.rows[0]["value"] == 1
    assert all("resamples of subjects lack a class" in row["note"] for row in found.rows if row["name"] != "AUROC, DeLong")
    assert (found.values, found.resamples) == ({}, {})


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(UndefinedMetricError, match="without abnormal items"):
        measure(counts_of(np.arange(3.0), np.zeros(3, int)), None, thresholds={}, bootstrap=BOOTSTRAP)


def test_the_difference_of_a_detector_with_itself_is_nothing_and_with_a_worse_one_is_paired() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 50)
    good, bad = labels + rng.normal(size=100), rng.normal(size=100)
    one, other = (measure(counts_of(scores, labels), None, thresholds={}, bootstrap=BOOTSTRAP) for scores in (good, bad))
    groups = one.resamples["image"].groups
    same = measure_difference("image", "AUROC", one.values["image/AUROC"], one.values["image/AUROC"], groups, coverage=0.95)
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)
    worse = measure_difference("image", "AUROC", one.values["image/AUROC"], other.values["image/AUROC"], groups, coverage=0.95)
    assert worse["value"] == pytest.approx(sklearn.metrics.roc_auc_score(labels, good) - sklearn.metrics.roc_auc_score(labels, bad))
    assert worse["low"] > 0


def test_strata_hold_in_every_resample() -> None:
    """All scores of a stratum are one: with strata kept the AUROC cannot vary, without it does."""
    labels, scores = np.tile([0, 1], 10), np.tile([0.0, 1.0], 10)
    scores[:4] = scores[:4][::-1]
    strata = {str(i): f"{i < 4}{i % 2}" for i in range(20)}
    kept = measure(counts_of(scores, labels), None, thresholds={}, bootstrap=BOOTSTRAP, strata=strata)
    free = measure(counts_of(scores, labels), None, thresholds={}, bootstrap=BOOTSTRAP)
    assert kept.rows[0]["sd"] == pytest.approx(0, abs=1e-12)
    assert free.rows[0]["sd"] > 0.01


def test_a_point_of_a_level_without_counts_has_no_rows() -> None:
    assert measure_point("pixel", 0.5, counts_of(np.arange(100.0)), None, BOOTSTRAP) == []
