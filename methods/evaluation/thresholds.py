"""Operating points. They are chosen on validation counts and never on those they are reported for."""

from dataclasses import dataclass

import numpy as np

from methods.evaluation.histograms import SubjectCounts
from methods.evaluation.metrics import UndefinedMetricError, count_positives


@dataclass(frozen=True)
class Threshold:
    """From `value` on a score is called abnormal; `rule` says how it was chosen and `detail` what it reached there."""

    value: float
    rule: str
    detail: str


def best_dice_threshold(counts: SubjectCounts) -> Threshold:
    """The value with the highest Dice coefficient; of equal ones the highest value.

    Raises:
        UndefinedMetricError: a class is missing.
    """
    normal, abnormal = _require_both(counts)
    false_positives, true_positives = count_positives(normal, abnormal)
    dice = 2 * true_positives / (true_positives + false_positives + abnormal.sum())
    best = _last_maximum(dice)
    return Threshold(float(counts.values[best]), "highest Dice", f"Dice {dice[best]:.3f}")


def best_youden_threshold(counts: SubjectCounts) -> Threshold:
    """The value with the highest sensitivity + specificity − 1 (Youden 1950); of equal ones the highest value.

    Raises:
        UndefinedMetricError: a class is missing.
    """
    normal, abnormal = _require_both(counts)
    false_positives, true_positives = count_positives(normal, abnormal)
    # the index times both totals: whole numbers, so that rounding breaks no ties
    best = _last_maximum(true_positives * normal.sum() - false_positives * abnormal.sum())
    sensitivity, specificity = true_positives[best] / abnormal.sum(), 1 - false_positives[best] / normal.sum()
    return Threshold(float(counts.values[best]), "highest Youden index", f"sensitivity {sensitivity:.3f}, specificity {specificity:.3f}")


def quantile_threshold(counts: SubjectCounts, *, false_positive_rate: float) -> Threshold:
    """The lowest normal score that at most this share of the normal items reaches; abnormal items have no say.

    Where even the highest normal score is reached by more, the next float32 above it: it calls no normal item.

    Raises:
        ValueError: the rate is not in [0, 1].
        UndefinedMetricError: there are no normal items.
    """
    if not 0 <= false_positive_rate <= 1:
        raise ValueError(f"expected a false-positive rate in [0, 1], got {false_positive_rate}")
    normal = counts.normal.sum(0)
    if not normal.any():
        raise UndefinedMetricError(
            f"a quantile of normal scores needs normal items; there are 0 normal and {counts.abnormal.sum()} abnormal"
        )
    occurs = normal > 0
    values, reached = counts.values[occurs], np.cumsum(normal[occurs][::-1])[::-1] / normal.sum()
    allowed = int((reached > false_positive_rate).sum())  # the shares descend
    above_all = float(np.nextafter(np.float32(values[-1]), np.float32(np.inf)))
    value, rate = (float(values[allowed]), reached[allowed]) if allowed < len(values) else (above_all, 0.0)
    return Threshold(value, f"false-positive rate of at most {false_positive_rate:g} on normals", f"false-positive rate {rate:.4f}")


def deviation_threshold(counts: SubjectCounts, *, deviations: float) -> Threshold:
    """The mean of the normal scores and so many of their standard deviations; abnormal items have no say.

    It promises no rate: scores of another shape than a normal distribution's have other tails.

    Raises:
        UndefinedMetricError: there are no normal items.
    """
    normal = counts.normal.sum(0)
    if not normal.any():
        raise UndefinedMetricError(f"a standard deviation needs normal items; there are 0 normal and {counts.abnormal.sum()} abnormal")
    mean = np.average(counts.values, weights=normal)
    value = float(mean + deviations * np.sqrt(np.average((counts.values - mean) ** 2, weights=normal)))
    rate = normal[counts.values >= value].sum() / normal.sum()
    return Threshold(value, f"{deviations:g} standard deviations above the mean of normals", f"false-positive rate {rate:.4f}")


def _require_both(counts: SubjectCounts) -> tuple[np.ndarray, np.ndarray]:
    normal, abnormal = counts.normal.sum(0), counts.abnormal.sum(0)
    if not normal.any() or not abnormal.any():
        raise UndefinedMetricError(f"a threshold needs both classes; there are {normal.sum()} normal and {abnormal.sum()} abnormal items")
    return normal, abnormal


def _last_maximum(quality: np.ndarray) -> int:
    return len(quality) - 1 - int(quality[::-1].argmax())
