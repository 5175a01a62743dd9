"""Metrics with intervals as plain rows: what the card, the report and the files show."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from methods.evaluation.bootstrap import BootstrapConfig, bootstrap_interval, resample_subjects
from methods.evaluation.histograms import SubjectCounts
from methods.evaluation.metrics import UndefinedMetricError, average_precision, dice, iou, roc_auc, sensitivity, specificity
from methods.evaluation.thresholds import Threshold

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def measure(
    image: SubjectCounts, pixel: SubjectCounts | None, *, thresholds: Mapping[str, Threshold], bootstrap: BootstrapConfig
) -> list[dict[str, Any]]:
    """AUROC, average precision and the metrics at the thresholds, each with an interval from a bootstrap over subjects.

    Returns:
        Rows of level, name, value, low, high, note; without an interval low and high are None and the note says why.

    Raises:
        UndefinedMetricError: a class is missing.
    """
    rows = []
    for level, counts in (("image", image), ("pixel", pixel)):
        if counts is None:
            continue
        rows += [_row(level, name, counts, statistic, bootstrap) for name, statistic in _statistics(level, counts, thresholds).items()]
    return rows


def measure_point(
    level: str, threshold: float, image: SubjectCounts, pixel: SubjectCounts | None, bootstrap: BootstrapConfig
) -> list[dict[str, Any]]:
    """What one threshold of a level comes to, as rows of `measure`; none where the level has no counts."""
    counts = image if level == "image" else pixel
    if counts is None:
        return []
    metrics = {"sensitivity": sensitivity, "specificity": specificity} | ({"Dice": dice} if level == "pixel" else {})
    return [_row(level, name, counts, _at_threshold(metric, counts.values, threshold), bootstrap) for name, metric in metrics.items()]


def _statistics(level: str, counts: SubjectCounts, thresholds: Mapping[str, Threshold]) -> dict[str, Statistic]:
    statistics: dict[str, Statistic] = {"AUROC": roc_auc, "average precision": average_precision}
    if level not in thresholds:
        return statistics
    at = thresholds[level].value
    metrics = (
        {"Dice": dice, "IoU": iou}
        if level == "pixel"
        else {"Dice": dice, "IoU": iou, "sensitivity": sensitivity, "specificity": specificity}
    )
    return statistics | {name: _at_threshold(metric, counts.values, at) for name, metric in metrics.items()}


def _at_threshold(metric: Callable[..., np.ndarray], values: np.ndarray, threshold: float) -> Statistic:
    return lambda normal, abnormal: metric(normal, abnormal, values, threshold)


def _row(level: str, name: str, counts: SubjectCounts, statistic: Statistic, bootstrap: BootstrapConfig) -> dict[str, Any]:
    value = float(statistic(counts.normal.sum(0), counts.abnormal.sum(0)))
    row: dict[str, Any] = {"level": level, "name": name, "value": value, "low": None, "high": None, "note": ""}
    strata = (counts.abnormal.sum(1) > 0).astype(int)
    try:
        weights = resample_subjects(strata, replicates=bootstrap.replicates, rng=np.random.default_rng(bootstrap.seed))
        estimate = bootstrap_interval(counts, statistic, weights=weights, level=bootstrap.level)
    except UndefinedMetricError as error:
        return row | {"note": f"no interval: {error}"}
    return row | {"low": estimate.low, "high": estimate.high}
