"""Bands about ROC and precision-recall curves: how far another draw of subjects would move them.

Every replicate's curve is read at the same false-positive rates, or recalls, and percentiles are taken at each: vertical averaging
(Macskassy and Provost 2004, "Confidence bands for ROC curves: methods and an empirical study"; Fawcett 2006, "An introduction to ROC
analysis", algorithm 3). Such bands are pointwise: a whole curve leaves a band of 95 % more often than in 5 % of draws, and near the ends of
a curve even a point does (Macskassy, Provost and Rosset 2005, "Pointwise ROC confidence bounds: an empirical evaluation", who recommend
vertical averaging for large samples). Ours: subjects are drawn instead of items, and precision is read at fixed recalls in the same way, by
the steps that average precision sums.

One compiled pass over the sorted scores keeps, of a few replicates at once, where they are and what they were at the grid: no table of
replicates and scores is ever made.
"""

from typing import Any, NamedTuple

import numpy as np

from methods.curation.hashing import compiled
from methods.evaluation.bootstrap import Resamples
from methods.evaluation.histograms import SubjectCounts
from methods.evaluation.metrics import UndefinedMetricError

RATES = np.linspace(0, 1, 101) ** 2  # dense where good detectors rise: half of the points are below 0.25
RECALLS = np.linspace(0, 1, 101)
_TOGETHER = 16  # replicates: two lines of cache a subject
_ROUNDING = 1e-12  # 0.29 of a hundred items are 29 of them, which float64 does not quite say


class Traces(NamedTuple):
    """Curves of R replicates on a grid.

    Attributes:
        sensitivity: (R, G) true positive rate at each of G false-positive rates, linear between thresholds; on a vertical piece its top.
        precision: (R, H) at each of H recalls: that of the highest threshold that reaches it; at recall 0 of the first true positive.
    """

    sensitivity: np.ndarray
    precision: np.ndarray


class Band(NamedTuple):
    """Pointwise ends (n,) of a curve at n false-positive rates or recalls, all in [0, 1]."""

    at: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Bands(NamedTuple):
    """Of a ROC curve, and of a precision-recall curve."""

    roc: Band
    pr: Band


def find_bands(counts: SubjectCounts, resamples: Resamples, *, level: float = 0.95) -> Bands:
    """Pointwise percentile bands over subjects, from the resamples that the intervals are made of.

    Args:
        counts: of S subjects.
        resamples: with R replicates of S weights.
        level: coverage at each point.

    Raises:
        UndefinedMetricError: a replicate lacks a class.
    """
    found = trace_curves(counts, resamples.weights[1 : 1 + resamples.replicates])
    tails = (1 - level) / 2, (1 + level) / 2
    return Bands(
        roc=Band(RATES, *np.quantile(found.sensitivity, tails, axis=0)),
        pr=Band(RECALLS, *np.quantile(found.precision, tails, axis=0)),
    )


def trace_curves(counts: SubjectCounts, weights: np.ndarray, *, rates: np.ndarray = RATES, recalls: np.ndarray = RECALLS) -> Traces:
    """ROC and precision-recall curves of every replicate on a grid.

    Args:
        counts: of S subjects.
        weights: (R, S) at least 0.
        rates: (G,) false-positive rates in [0, 1], ascending.
        recalls: (H,) in [0, 1], ascending.

    Raises:
        ValueError: the weights are of another number of subjects.
        UndefinedMetricError: a replicate lacks a class.
    """
    if weights.ndim != 2 or weights.shape[1] != len(counts.subjects):
        raise ValueError(f"expected weights (replicates, {len(counts.subjects)}), one for each subject, got {weights.shape}")
    tables = [column for table in (counts.normal, counts.abnormal) for column in (table.indptr, table.indices, table.data)]
    sums = np.stack([counts.normal.sum(1).astype(float), counts.abnormal.sum(1).astype(float)])
    sensitivity, precision = np.zeros((len(weights), len(rates))), np.zeros((len(weights), len(recalls)))
    for start in range(0, len(weights), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        some = np.zeros((weights.shape[1], _TOGETHER))
        some[:, : len(weights[part])] = weights[part].T
        some[:, len(weights[part]) :] = some[:, :1]  # the kernel takes so many: the first one again
        normal, abnormal = totals = sums @ some
        if not (totals > 0).all():
            raise UndefinedMetricError("a curve is undefined without normal or without abnormal items in at least one replicate")
        steps = np.outer(rates, normal) * (1 + _ROUNDING), np.maximum(np.outer(recalls, abnormal) * (1 - _ROUNDING), 1e-300)
        tops, shares = np.zeros(steps[0].shape), np.zeros(steps[1].shape)
        _trace(*tables, some, *steps, tops, shares)
        sensitivity[part], precision[part] = ((tops / abnormal).T[: len(weights[part])], shares.T[: len(weights[part])])
    return Traces(sensitivity, precision)


@compiled
def _trace(
    n_starts: Any, n_subjects: Any, n_counts: Any, a_starts: Any, a_subjects: Any, a_counts: Any,
    weights: Any, rates: Any, recalls: Any, tops: Any, shares: Any,
) -> None:  # fmt: skip  # pragma: no cover - compiled
    """Fill true positives `tops` (G, K) at false positives `rates` (G, K), and precision `shares` (H, K) at true positives `recalls`."""
    fp, tp, fp_before, tp_before = np.zeros(_TOGETHER), np.zeros(_TOGETHER), np.zeros(_TOGETHER), np.zeros(_TOGETHER)
    g, h = np.zeros(_TOGETHER, np.int64), np.zeros(_TOGETHER, np.int64)
    next_fp, next_tp = rates[0].copy(), recalls[0].copy()
    for u in range(n_starts.shape[0] - 2, -1, -1):
        if a_starts[u] == a_starts[u + 1]:  # normal items alone: the curve is level, and what it passes is found at its next rise
            for e in range(n_starts[u], n_starts[u + 1]):
                subject, count = n_subjects[e], np.float64(n_counts[e])
                for k in range(_TOGETHER):
                    fp[k] += count * weights[subject, k]
            continue
        for k in range(_TOGETHER):
            fp_before[k], tp_before[k] = fp[k], tp[k]
        for e in range(n_starts[u], n_starts[u + 1]):
            subject, count = n_subjects[e], np.float64(n_counts[e])
            for k in range(_TOGETHER):
                fp[k] += count * weights[subject, k]
        for e in range(a_starts[u], a_starts[u + 1]):
            subject, count = a_subjects[e], np.float64(a_counts[e])
            for k in range(_TOGETHER):
                tp[k] += count * weights[subject, k]
        passed = False
        for k in range(_TOGETHER):
            passed |= (fp[k] > next_fp[k]) | (tp[k] >= next_tp[k])
        if not passed:
            continue
        for k in range(_TOGETHER):
            while g[k] < rates.shape[0] and fp[k] > rates[g[k], k]:
                along = max(0.0, rates[g[k], k] - fp_before[k]) / max(fp[k] - fp_before[k], 1e-300)
                tops[g[k], k] = tp_before[k] + (tp[k] - tp_before[k]) * along if rates[g[k], k] > fp_before[k] else tp_before[k]
                g[k] += 1
            while h[k] < recalls.shape[0] and tp[k] >= recalls[h[k], k]:
                shares[h[k], k] = tp[k] / (tp[k] + fp[k])
                h[k] += 1
            next_fp[k] = rates[g[k], k] if g[k] < rates.shape[0] else np.inf
            next_tp[k] = recalls[h[k], k] if h[k] < recalls.shape[0] else np.inf
    for k in range(_TOGETHER):
        for left in range(g[k], rates.shape[0]):
            tops[left, k] = tp[k]
