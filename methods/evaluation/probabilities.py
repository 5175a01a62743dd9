"""Whether scores that claim to be probabilities of the abnormal class are."""

from typing import NamedTuple

import numpy as np

from methods.evaluation.histograms import SubjectCounts


class ReliabilityBin(NamedTuple):
    """Items whose probability lies in one bin: how many, their mean probability, and how many of them are abnormal."""

    items: int
    mean_probability: float
    abnormal: int


def brier_score(counts: SubjectCounts, weights: np.ndarray) -> np.ndarray:
    """Mean squared difference (R,) between probability and outcome, 0 is perfect (Brier 1950, for two classes).

    Args:
        counts: of S subjects, values in [0, 1].
        weights: (R, S).

    Raises:
        ValueError: values outside [0, 1].
    """
    _require_probabilities(counts)
    lost = counts.normal @ counts.values**2 + counts.abnormal @ (1 - counts.values) ** 2
    items = (counts.normal.sum(1) + counts.abnormal.sum(1)).astype(float)
    return np.asarray((weights @ lost) / (weights @ items))


def bin_probabilities(counts: SubjectCounts, *, bins: int = 10) -> list[ReliabilityBin]:
    """The reliability diagram (Murphy and Winkler 1977): items by equal bins of probability; bins without items are left out.

    Raises:
        ValueError: values outside [0, 1].
    """
    _require_probabilities(counts)
    abnormal = counts.abnormal.sum(0)
    items = counts.normal.sum(0) + abnormal
    place = np.minimum((counts.values * bins).astype(int), bins - 1)
    n, positive = np.bincount(place, items, bins), np.bincount(place, abnormal, bins)
    total = np.bincount(place, items * counts.values, bins)
    return [ReliabilityBin(int(n[i]), float(total[i] / n[i]), int(positive[i])) for i in np.flatnonzero(n)]


def _require_probabilities(counts: SubjectCounts) -> None:
    if len(counts.values) and not (counts.values[0] >= 0 and counts.values[-1] <= 1):
        raise ValueError(f"expected probabilities in [0, 1], got scores from {counts.values[0]:g} to {counts.values[-1]:g}")
