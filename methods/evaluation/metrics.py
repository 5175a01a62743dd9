"""Metrics as functions of weighted counts per distinct score.

Every function takes `normal` and `abnormal`, arrays (..., U) of the weight of normal and abnormal items at each of U distinct scores
in ascending order. Image scores, the 65,536 values of float16 maps, one subject's share and bootstrap replicates (leading axes) are
therefore one and the same case. Ties are treated as scikit-learn does. An undefined metric raises; it is never 0.5 and never NaN.
"""

from typing import NamedTuple

import numpy as np


class UndefinedMetricError(ValueError):
    """A metric that does not exist for these data, such as an AUROC of one class."""


class Confusion(NamedTuple):
    """Weights (...,) of the four outcomes of a threshold."""

    true_positives: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray
    true_negatives: np.ndarray


def count_positives(normal: np.ndarray, abnormal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positives (..., U) float64, when each distinct score in turn is the threshold, ascending."""
    return _at_or_above(normal), _at_or_above(abnormal)


def roc_auc(normal: np.ndarray, abnormal: np.ndarray) -> np.ndarray:
    """Area under the ROC curve (...,): P(abnormal > normal) + ½ P(equal); in [0, 1].

    Raises:
        UndefinedMetricError: a class has no weight.
    """
    _require_both(normal, abnormal)
    below = np.cumsum(normal, -1, dtype=float) - normal  # normal weight strictly below each value
    wins = (abnormal * (below + 0.5 * normal)).sum(-1)
    return np.asarray(wins / (normal.sum(-1, dtype=float) * abnormal.sum(-1, dtype=float)))


def average_precision(normal: np.ndarray, abnormal: np.ndarray) -> np.ndarray:
    """Average precision (...,): Σ (R_n − R_{n−1}) P_n over descending thresholds, as scikit-learn's `average_precision_score`.

    Raises:
        UndefinedMetricError: a class has no weight.
    """
    _require_both(normal, abnormal)
    false_positives, true_positives = count_positives(normal, abnormal)
    called = true_positives + false_positives
    precision = np.divide(true_positives, called, out=np.zeros_like(called), where=called > 0)
    return np.asarray((abnormal * precision).sum(-1) / true_positives[..., 0])


def roc_curve(normal: np.ndarray, abnormal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates (..., U + 1), from (0, 0) to (1, 1), thresholds descending.

    Raises:
        UndefinedMetricError: a class has no weight.
    """
    _require_both(normal, abnormal)
    false_positives, true_positives = map(_from_zero, count_positives(normal, abnormal))
    return false_positives / false_positives[..., -1:], true_positives / true_positives[..., -1:]


def precision_recall_curve(normal: np.ndarray, abnormal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision (..., U + 1), recall ascending from 0, where precision is 1 by convention.

    Raises:
        UndefinedMetricError: a class has no weight.
    """
    _require_both(normal, abnormal)
    false_positives, true_positives = map(_from_zero, count_positives(normal, abnormal))
    called = true_positives + false_positives
    precision = np.divide(true_positives, called, out=np.ones_like(called), where=called > 0)
    return true_positives / true_positives[..., -1:], precision


def confusion_at(normal: np.ndarray, abnormal: np.ndarray, values: np.ndarray, threshold: float) -> Confusion:
    """The outcomes of a threshold; a score >= threshold is called abnormal.

    Args:
        normal: (..., U) weights.
        abnormal: (..., U) weights.
        values: (U,) the distinct scores, ascending.
        threshold: where to call.
    """
    first = int(np.searchsorted(values, threshold, side="left"))
    return Confusion(
        true_positives=abnormal[..., first:].sum(-1),
        false_positives=normal[..., first:].sum(-1),
        false_negatives=abnormal[..., :first].sum(-1),
        true_negatives=normal[..., :first].sum(-1),
    )


def dice(normal: np.ndarray, abnormal: np.ndarray, values: np.ndarray, threshold: float) -> np.ndarray:
    """Dice coefficient (F1) at a threshold: 2 TP / (2 TP + FP + FN).

    Raises:
        UndefinedMetricError: there is no abnormal weight.
    """
    _require("abnormal", normal, abnormal)
    tp, fp, fn, _ = confusion_at(normal, abnormal, values, threshold)
    return np.asarray(2 * tp / (2 * tp + fp + fn))


def iou(normal: np.ndarray, abnormal: np.ndarray, values: np.ndarray, threshold: float) -> np.ndarray:
    """Intersection over union (Jaccard index) at a threshold: TP / (TP + FP + FN).

    Raises:
        UndefinedMetricError: there is no abnormal weight.
    """
    _require("abnormal", normal, abnormal)
    tp, fp, fn, _ = confusion_at(normal, abnormal, values, threshold)
    return np.asarray(tp / (tp + fp + fn))


def sensitivity(normal: np.ndarray, abnormal: np.ndarray, values: np.ndarray, threshold: float) -> np.ndarray:
    """Share of abnormal weight that is called: TP / (TP + FN).

    Raises:
        UndefinedMetricError: there is no abnormal weight.
    """
    _require("abnormal", normal, abnormal)
    tp, _, fn, _ = confusion_at(normal, abnormal, values, threshold)
    return np.asarray(tp / (tp + fn))


def specificity(normal: np.ndarray, abnormal: np.ndarray, values: np.ndarray, threshold: float) -> np.ndarray:
    """Share of normal weight that is not called: TN / (TN + FP).

    Raises:
        UndefinedMetricError: there is no normal weight.
    """
    _require("normal", normal, abnormal)
    _, fp, _, tn = confusion_at(normal, abnormal, values, threshold)
    return np.asarray(tn / (tn + fp))


def accuracy(normal: np.ndarray, abnormal: np.ndarray, values: np.ndarray, threshold: float) -> np.ndarray:
    """Share of all weight that is called right. Where one class is rare, the constant answer has a high one: never show it alone.

    Raises:
        UndefinedMetricError: a class has no weight.
    """
    _require_both(normal, abnormal)
    tp, fp, fn, tn = confusion_at(normal, abnormal, values, threshold)
    return np.asarray((tp + tn) / (tp + fp + fn + tn))


def balanced_accuracy(normal: np.ndarray, abnormal: np.ndarray, values: np.ndarray, threshold: float) -> np.ndarray:
    """Mean of sensitivity and specificity at a threshold.

    Raises:
        UndefinedMetricError: a class has no weight.
    """
    return np.asarray((sensitivity(normal, abnormal, values, threshold) + specificity(normal, abnormal, values, threshold)) / 2)


def _at_or_above(weights: np.ndarray) -> np.ndarray:
    """Weight (..., U) at or above each score; float64 is exact up to 2⁵³ items."""
    return np.cumsum(weights[..., ::-1], -1, dtype=float)[..., ::-1]


def _from_zero(at_or_above: np.ndarray) -> np.ndarray:
    """Thresholds descending, before the first of which nothing is called."""
    return np.concatenate([np.zeros_like(at_or_above[..., :1]), at_or_above[..., ::-1]], -1)


def _require_both(normal: np.ndarray, abnormal: np.ndarray) -> None:
    _require("normal", normal, abnormal)
    _require("abnormal", normal, abnormal)


def _require(which: str, normal: np.ndarray, abnormal: np.ndarray) -> None:
    weight = {"normal": normal, "abnormal": abnormal}[which]
    if not (weight.sum(-1) > 0).all():
        totals = f"normal weight {normal.sum():g}, abnormal weight {abnormal.sum():g}" if weight.ndim == 1 else "in at least one replicate"
        raise UndefinedMetricError(f"the metric is undefined without {which} items ({totals})")
