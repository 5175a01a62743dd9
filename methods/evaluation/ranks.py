"""Metrics over all thresholds, of many weightings of subjects at once: what a bootstrap asks for, in one pass over the sorted scores.

Every function takes counts of S subjects and weights (R, S) at least 0; row r stands for data in which subject s occurs w[r, s] times. The
formulas are those of `methods.evaluation.metrics`; here they are loops, compiled, over scores in descending order, with a few replicates
side by side. Products of counts and whole weights are exact in float64 up to 2⁵³.
"""

from typing import Any, NamedTuple

import numpy as np

from methods.curation.hashing import compiled
from methods.evaluation.histograms import SubjectCounts
from methods.evaluation.metrics import UndefinedMetricError

_TOGETHER = 16  # replicates: two lines of cache a subject
_ROWS = 256
_ROUNDING = 1e-12  # 1 − 0.9 of ten normal items is one of them, which float64 does not quite say


class Ranks(NamedTuple):
    """Of R replicates.

    Attributes:
        auroc: (R,) P(abnormal > normal) + ½ P(equal).
        average_precision: (R,) as scikit-learn's `average_precision_score`.
        sensitivities: (C, R) the highest sensitivity of a threshold with at least each of C specificities; 0 where there is none.
    """

    auroc: np.ndarray
    average_precision: np.ndarray
    sensitivities: np.ndarray


def rank(counts: SubjectCounts, weights: np.ndarray, *, specificities: tuple[float, ...] = ()) -> Ranks:
    """AUROC, average precision and sensitivities at fixed specificities, of every replicate.

    Args:
        counts: of S subjects.
        weights: (R, S).
        specificities: C, in [0, 1].

    Raises:
        ValueError: the weights are of another number of subjects.
        UndefinedMetricError: a replicate lacks a class.
    """
    _check(counts, weights)
    out = np.zeros((2 + len(specificities), len(weights)))
    shares = 1 - np.asarray(specificities, float)[:, None]
    tables = [*_columns(counts.normal), *_columns(counts.abnormal)]
    sums = np.stack([table.sum(1).astype(float) for table in (counts.normal, counts.abnormal)], 1)
    for start in range(0, len(weights), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        some, normal, abnormal = _pad(weights[part], sums)
        _rank(*tables, some, normal, abnormal, shares * normal * (1 + _ROUNDING), out[:, part])
    return Ranks(out[0], out[1], out[2:])


def overlap_area(counts: SubjectCounts, weights: np.ndarray, *, limit: float = 0.3) -> np.ndarray:
    """AUPRO (R,) in [0, 1]: the area under the per-region overlap against the false positive rate, up to a limit, divided by it.

    Bergmann et al. 2021, "The MVTec Anomaly Detection Dataset", section 5: PRO(t) is the mean over all connected abnormal regions of the
    share of a region's pixels that are called; the curve is linear between thresholds. From their public code: 8 neighbours, all
    normal pixels of all images in the rate, interpolation at the limit. A region that tiling cuts in two counts as two.

    Args:
        counts: of S subjects, with regions.
        weights: (R, S).
        limit: false positive rate, in (0, 1].

    Raises:
        ValueError: the weights are of another number of subjects.
        UndefinedMetricError: a replicate lacks a class.
    """
    _check(counts, weights)
    out = np.zeros(len(weights))
    tables = [*_columns(counts.normal), *_columns(counts.regions)]
    sums = np.stack([counts.normal.sum(1).astype(float), np.rint(counts.regions.sum(1))], 1)
    for start in range(0, len(weights), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        _overlap(*tables, *_pad(weights[part], sums), limit, out[part])
    return out / limit


def sum_sides(counts: SubjectCounts, threshold: float, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight (R, 2) float64 of normal and of abnormal items below a threshold, and at or above it: values 0 and 1, threshold 1.

    Raises:
        ValueError: the weights are of another number of subjects.
    """
    _check(counts, weights)
    first = int(np.searchsorted(counts.values, threshold, side="left"))
    sides = [part.sum(1) for table in (counts.normal, counts.abnormal) for part in (table[:, :first], table[:, first:])]
    sums = np.stack(sides, 1).astype(float)
    parts = [weights[start : start + _ROWS] @ sums for start in range(0, len(weights), _ROWS)]  # whole weights are copied to be multiplied
    totals = np.concatenate(parts)
    return totals[:, :2], totals[:, 2:]


def _columns(table: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return table.indptr, table.indices, table.data


def _pad(weights: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (S, K) of as many replicates as a kernel takes, and both classes' totals (K,); the last ones may be repeated.

    Raises:
        UndefinedMetricError: a replicate lacks a class.
    """
    some = np.ascontiguousarray(weights[np.minimum(np.arange(_TOGETHER), len(weights) - 1)].T, dtype=float)
    totals = sums.T @ some
    for name, total, of_all in zip(("normal", "abnormal"), totals, sums.sum(0), strict=True):
        if not (total > 0).all():
            found = f"normal items {sums[:, 0].sum():g}, abnormal items or regions {sums[:, 1].sum():g}"
            where = "" if not of_all else " in at least one replicate"
            raise UndefinedMetricError(f"the metric is undefined without {name} items{where} ({found})")
    return some, totals[0], totals[1]


def _check(counts: SubjectCounts, weights: np.ndarray) -> None:
    if weights.ndim != 2 or weights.shape[1] != len(counts.subjects):
        raise ValueError(f"expected weights (replicates, {len(counts.subjects)}), one for each subject, got {weights.shape}")


@compiled
def _gather(starts: Any, subjects: Any, counts: Any, u: Any, weights: Any, into: Any) -> None:  # pragma: no cover - compiled
    for k in range(_TOGETHER):
        into[k] = 0.0
    for e in range(starts[u], starts[u + 1]):
        subject, count = subjects[e], np.float64(counts[e])
        for k in range(_TOGETHER):
            into[k] += count * weights[subject, k]


@compiled
def _rank(
    n_starts: Any, n_subjects: Any, n_counts: Any, a_starts: Any, a_subjects: Any, a_counts: Any,
    weights: Any, n_total: Any, a_total: Any, allowed: Any, out: Any,
) -> None:  # fmt: skip  # pragma: no cover - compiled
    n, a, fp, tp, lost = np.zeros(_TOGETHER), np.zeros(_TOGETHER), np.zeros(_TOGETHER), np.zeros(_TOGETHER), np.zeros(_TOGETHER)
    precision, sensitivity = np.zeros(_TOGETHER), np.zeros((allowed.shape[0], _TOGETHER))
    for u in range(n_starts.shape[0] - 2, -1, -1):
        if a_starts[u] == a_starts[u + 1]:  # normal items alone: no metric has a term here
            for e in range(n_starts[u], n_starts[u + 1]):
                subject, count = n_subjects[e], np.float64(n_counts[e])
                for k in range(_TOGETHER):
                    fp[k] += count * weights[subject, k]
            continue
        _gather(n_starts, n_subjects, n_counts, u, weights, n)
        _gather(a_starts, a_subjects, a_counts, u, weights, a)
        for k in range(_TOGETHER):
            lost[k] += a[k] * (fp[k] + 0.5 * n[k])
            fp[k] += n[k]
            tp[k] += a[k]
            precision[k] += a[k] * (tp[k] / (tp[k] + fp[k] + 1e-300))
        for c in range(allowed.shape[0]):
            for k in range(_TOGETHER):
                sensitivity[c, k] = tp[k] if fp[k] <= allowed[c, k] else sensitivity[c, k]
    for k in range(out.shape[1]):
        out[0, k] = 1 - lost[k] / (n_total[k] * a_total[k])
        out[1, k] = precision[k] / a_total[k]
        for c in range(allowed.shape[0]):
            out[2 + c, k] = sensitivity[c, k] / a_total[k]


@compiled
def _overlap(
    n_starts: Any, n_subjects: Any, n_counts: Any, r_starts: Any, r_subjects: Any, r_shares: Any,
    weights: Any, n_total: Any, r_total: Any, limit: Any, out: Any,
) -> None:  # fmt: skip  # pragma: no cover - compiled
    n, r, fp, covered = np.zeros(_TOGETHER), np.zeros(_TOGETHER), np.zeros(_TOGETHER), np.zeros(_TOGETHER)
    for u in range(n_starts.shape[0] - 2, -1, -1):
        _gather(n_starts, n_subjects, n_counts, u, weights, n)
        _gather(r_starts, r_subjects, r_shares, u, weights, r)
        for k in range(out.shape[0]):
            left, right = fp[k] / n_total[k], (fp[k] + n[k]) / n_total[k]
            low, high = covered[k] / r_total[k], (covered[k] + r[k]) / r_total[k]
            if left < limit and right > left:
                end = min(right, limit)
                at_end = low + (high - low) * (end - left) / (right - left)
                out[k] += (end - left) * (low + at_end) / 2
            fp[k] += n[k]
            covered[k] += r[k]
