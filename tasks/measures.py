"""Metrics with intervals as plain rows: what the card, the report and the files show."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from methods.evaluation.bootstrap import BootstrapConfig, Estimate, Resamples, draw_resamples, estimate
from methods.evaluation.delong import delong_interval
from methods.evaluation.histograms import SubjectCounts
from methods.evaluation.metrics import UndefinedMetricError, accuracy, balanced_accuracy, dice, iou, sensitivity, specificity
from methods.evaluation.probabilities import brier_score
from methods.evaluation.ranks import overlap_area, rank, sum_sides
from methods.evaluation.thresholds import Threshold

FIXED_SPECIFICITIES = (0.9, 0.95)
_SIDES = np.array([0.0, 1.0])  # values of `sum_sides`
_AT_THRESHOLD: dict[str, dict[str, Callable[..., np.ndarray]]] = {
    "image": {
        "accuracy": accuracy,
        "balanced accuracy": balanced_accuracy,
        "F1": dice,
        "sensitivity": sensitivity,
        "specificity": specificity,
    },
    "pixel": {"Dice": dice, "IoU": iou},
}
_AT_POINT: dict[str, dict[str, Callable[..., np.ndarray]]] = {
    "image": {"sensitivity": sensitivity, "specificity": specificity, "balanced accuracy": balanced_accuracy, "F1": dice},
    "pixel": {"sensitivity": sensitivity, "specificity": specificity, "Dice": dice},
}
CONSTANT_ANSWERS = {"everything normal": np.inf, "everything abnormal": -np.inf}  # and the threshold that gives them


@dataclass
class Measured:
    """Rows, and behind each that has an interval its values under the resamples, so that detectors can be compared on the same ones.

    Attributes:
        rows: level, name, value, low, high, sd, method, note; without an interval low, high and sd are None and the note says why.
        values: "level/name" -> (1 + R + G,).
        resamples: by level.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    resamples: dict[str, Resamples] = field(default_factory=dict)


def measure(
    image: SubjectCounts | None,
    pixel: SubjectCounts | None,
    *,
    thresholds: Mapping[str, Threshold],
    bootstrap: BootstrapConfig,
    strata: Mapping[str, str] | None = None,
    probabilities: bool = False,
) -> Measured:
    """Metrics over all thresholds and at the chosen ones, each with an interval from a bootstrap over subjects; DeLong's beside it.

    Args:
        image: counts of image scores; None where pixels alone are wanted.
        pixel: counts of pixels, where there are any.
        thresholds: by level.
        bootstrap: of the intervals.
        strata: subject -> stratum; whether it carries anomaly if None.
        probabilities: image scores are probabilities of the abnormal class, as a classifier's: their Brier score is measured too. Scores
            of other detectors have no scale, and p-values are no probabilities of being abnormal.

    Raises:
        UndefinedMetricError: a class is missing.
    """
    measured = Measured()
    for level, counts in (("image", image), ("pixel", pixel)):
        if counts is None:
            continue
        resamples, note = _try_resamples(counts, bootstrap, strata)
        values = _rank_values(counts, level, resamples.weights)
        if probabilities and level == "image":
            values["Brier score"] = brier_score(counts, resamples.weights)
        if level in thresholds:
            values |= _values_at(counts, thresholds[level].value, resamples.weights, _AT_THRESHOLD[level])
        for name, found in values.items():
            measured.rows.append(_row(level, name, found, resamples, bootstrap, note))
            if name == "AUROC" and level == "image":
                measured.rows += _delong_row(counts, bootstrap)
        if resamples.replicates:
            measured.values |= {f"{level}/{name}": found for name, found in values.items()}
            measured.resamples[level] = resamples
    return measured


def measure_point(
    level: str,
    threshold: float,
    image: SubjectCounts,
    pixel: SubjectCounts | None,
    bootstrap: BootstrapConfig,
    strata: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """What one threshold of a level comes to, as rows of `Measured`; none where the level has no counts."""
    counts = image if level == "image" else pixel
    if counts is None:
        return []
    resamples, note = _try_resamples(counts, bootstrap, strata)
    values = _values_at(counts, threshold, resamples.weights, _AT_POINT[level])
    return [_row(level, name, found, resamples, bootstrap, note) for name, found in values.items()]


def measure_difference(
    level: str, name: str, values: np.ndarray, others: np.ndarray, groups: np.ndarray, *, coverage: float
) -> dict[str, Any]:
    """A row of `Measured` for the difference of two detectors under the same resamples (1 + R + G,)."""
    resamples = Resamples(np.zeros((0, 0), np.int32), len(values) - 1 - len(groups), groups)
    return _as_row(level, name, estimate(values - others, resamples, level=coverage))


def measure_constant(
    image: SubjectCounts, pixel: SubjectCounts | None, answer: str, *, probabilities: bool = False
) -> list[dict[str, Any]]:
    """What a detector gets that gives everything one score and calls it by one of `CONSTANT_ANSWERS`: rows of level, name and value.

    By the same formulas as every other row, on the same items.
    """
    rows = []
    for level, counts in (("image", image), ("pixel", pixel)):
        if counts is None:
            continue
        tables = [None if table is None else table.sum(1)[:, None] for table in (counts.normal, counts.abnormal, counts.regions)]
        same = SubjectCounts(counts.subjects, np.array([float(CONSTANT_ANSWERS[answer] < 0)]), *tables)
        once = np.ones((1, len(same.subjects)))
        values = _rank_values(same, level, once) | _values_at(same, CONSTANT_ANSWERS[answer], once, _AT_THRESHOLD[level])
        if probabilities and level == "image":
            values["Brier score"] = brier_score(same, once)
        rows += [{"level": level, "name": name, "value": float(found[0])} for name, found in values.items()]
    return rows


def _try_resamples(counts: SubjectCounts, bootstrap: BootstrapConfig, strata: Mapping[str, str] | None) -> tuple[Resamples, str]:
    """The weights, or everyone once and why there are no more."""
    kinds = counts.carries_anomaly.astype(int).astype(str) if strata is None else np.array([strata[subject] for subject in counts.subjects])
    once = Resamples(np.ones((1, len(counts.subjects)), np.int32), 0, np.zeros(0))
    try:
        resamples = draw_resamples(kinds, bootstrap)
    except UndefinedMetricError as error:
        return once, f"no interval: {error}"
    totals = sum_sides(counts, -np.inf, resamples.weights)
    lacking = int((np.stack([of_class.sum(1) for of_class in totals]) == 0).any(0).sum())
    if lacking:  # only where strata do not keep the classes: the mean over the others would be another metric's
        return once, f"no interval: {lacking} of {len(resamples.weights)} resamples of subjects lack a class; stratify by anomaly"
    return resamples, ""


def _rank_values(counts: SubjectCounts, level: str, weights: np.ndarray) -> dict[str, np.ndarray]:
    fixed = FIXED_SPECIFICITIES if level == "image" else ()
    found = rank(counts, weights, specificities=fixed)
    values = {"AUROC": found.auroc, "average precision": found.average_precision}
    if counts.regions is not None:
        values["AUPRO"] = overlap_area(counts, weights)
    return values | {f"sensitivity at {at:.0%} specificity": each for at, each in zip(fixed, found.sensitivities, strict=True)}


def _values_at(
    counts: SubjectCounts, threshold: float, weights: np.ndarray, metrics: Mapping[str, Callable[..., np.ndarray]]
) -> dict[str, np.ndarray]:
    normal, abnormal = sum_sides(counts, threshold, weights)
    return {name: metric(normal, abnormal, _SIDES, 1.0) for name, metric in metrics.items()}


def _row(level: str, name: str, values: np.ndarray, resamples: Resamples, bootstrap: BootstrapConfig, note: str) -> dict[str, Any]:
    if not resamples.replicates:
        return _as_row(level, name, Estimate(float(values[0]), np.nan, np.nan, np.nan, "")) | {"note": note}
    return _as_row(level, name, estimate(values, resamples, level=bootstrap.level))


def _delong_row(counts: SubjectCounts, bootstrap: BootstrapConfig) -> list[dict[str, Any]]:
    try:
        return [_as_row("image", "AUROC, DeLong", delong_interval(counts, level=bootstrap.level))]
    except UndefinedMetricError:
        return []  # the row above says why there is no interval


def _as_row(level: str, name: str, found: Estimate) -> dict[str, Any]:
    ends = {"low": found.low, "high": found.high, "sd": found.standard_deviation}
    row = {key: None if np.isnan(end) else end for key, end in ends.items()}
    return {"level": level, "name": name, "value": found.value, **row, "method": found.method, "note": ""}
