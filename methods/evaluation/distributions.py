"""Two distributions of scores compared, for many weightings of subjects at once: distance, quantiles, and items by bins.

Counts of S subjects hold the items of both sides: the "normal" ones are side 0, the reference, and the "abnormal" ones side 1, what is
compared with it. Weights (R, S) are whole numbers of at least 0: in row r subject s occurs w[r, s] times. F is a side's distribution
function, the share of its items at or below a score.
"""

from typing import Any, NamedTuple

import numpy as np

from methods.curation.hashing import compiled
from methods.evaluation.histograms import SubjectCounts
from methods.evaluation.metrics import UndefinedMetricError

TOGETHER = 16  # replicates: two lines of cache a subject
_ROUNDING = 1e-12  # 0.95 of twenty items are nineteen, which float64 does not quite say
_PSEUDO_ITEMS = 0.5
_SIDES = ("reference", "archive")


class Walk(NamedTuple):
    """What one pass over the ascending scores finds in R replicates, with L levels.

    Attributes:
        distance: (3, R) the highest |F − centre| of side 0, of side 1, and |F0 − F1 − their centres' difference|.
        reached: (2, L, R) int64, position of a side's quantile: the lowest score at which its F is at least the level.
        passed: (2, L, R) items of both sides up to where side 0 reaches the level.
        totals: (2, R) items.
    """

    distance: np.ndarray
    reached: np.ndarray
    passed: np.ndarray
    totals: np.ndarray


def walk(
    counts: SubjectCounts, weights: np.ndarray, *, levels: np.ndarray, centre: np.ndarray | None = None, exchanged: bool = False
) -> Walk:
    """Follow both distribution functions of every replicate over the scores; weight n is the same as the items n times.

    Args:
        counts: of both sides, U distinct scores.
        weights: (R, S); where `exchanged`, 1 for a subject whose items change sides and 0 for one that stays.
        levels: (L,) ascending, in (0, 1).
        centre: (2, U) what distances are taken from; 0 if None, so that distance[2] is the Kolmogorov–Smirnov distance.
        exchanged: whether weights say who changes sides.

    Raises:
        ValueError: the weights are of another number of subjects.
        UndefinedMetricError: a side of a replicate has no items.
    """
    if weights.ndim != 2 or weights.shape[1] != len(counts.subjects):
        raise ValueError(f"expected weights (replicates, {len(counts.subjects)}), one for each subject, got {weights.shape}")
    centre = np.zeros((2, len(counts.values))) if centre is None else centre
    found = Walk(
        np.zeros((3, len(weights))),
        np.zeros((2, len(levels), len(weights)), np.int64),
        np.zeros((2, len(levels), len(weights))),
        _count_items(counts, weights, exchanged=exchanged),
    )
    tables = [part for table in (counts.normal, counts.abnormal) for part in (table.indptr, table.indices, table.data)]
    for start in range(0, len(weights), TOGETHER):
        rows = np.minimum(np.arange(start, start + TOGETHER), len(weights) - 1)  # the last ones may be repeated
        totals = np.ascontiguousarray(found.totals[:, rows])
        due = np.ascontiguousarray(levels[:, None] * totals[:, None, :] * (1 - _ROUNDING))
        some = np.ascontiguousarray(weights[rows].T, dtype=float)
        for whole, part in zip(found, _walk(*tables, some, exchanged, totals, centre, due), strict=False):
            whole[..., start : start + TOGETHER] = part[..., : len(weights) - start]
    return found


def distribution_functions(counts: SubjectCounts) -> np.ndarray:
    """F of both sides (2, U) at the distinct scores.

    Raises:
        UndefinedMetricError: a side has no items.
    """
    items = np.stack([np.asarray(table.sum(0), float) for table in (counts.normal, counts.abnormal)])
    _require_items(items.sum(1)[:, None])
    return np.asarray(np.cumsum(items, 1) / items.sum(1, keepdims=True))


def ks_distance(counts: SubjectCounts, weights: np.ndarray) -> np.ndarray:
    """The two-sample Kolmogorov–Smirnov distance max |F0 − F1| (R,) in [0, 1], ties at one score being one step.

    Raises:
        ValueError, UndefinedMetricError: as `walk`.
    """
    return walk(counts, weights, levels=np.zeros(0)).distance[2]


def bin_levels(bins: int) -> np.ndarray:
    """The levels (bins − 1,) at which `bin_items` cuts."""
    return np.arange(1, bins) / bins


def bin_items(found: Walk) -> tuple[np.ndarray, np.ndarray]:
    """Items of the reference and of the archive (R, L + 1) between the reference's quantiles at the L levels of a walk.

    A bin ends with the quantile itself and begins above the one before; the first and the last are open. Equal scores are never cut: a
    score at which the reference reaches several levels ends one bin, and the others that would end there stay empty on both sides.
    """
    ends = np.concatenate([found.passed, found.totals[:, None, :]], 1)  # (2, L + 1, R)
    items = np.diff(ends, axis=1, prepend=0)
    return items[0].T, items[1].T


def stability_index(reference: np.ndarray, archive: np.ndarray) -> np.ndarray:
    """The population stability index (...,) of items by bin (..., B): Σ (a − r) ln (a / r), a the archive's shares, r the reference's.

    The divergence of Jeffreys 1946, "An invariant form for the prior probability in estimation problems", on bins, as scorecards use it
    (Siddiqi 2006, "Credit risk scorecards"; Yurdakul 2018). Ours: half an item is added to every bin of both sides, so that an empty one
    counts as half an item and not as infinity; bins that are empty on both sides do not exist. Public code mostly puts a fixed small
    share in place of 0, which weighs the more the larger the sides are.

    Raises:
        UndefinedMetricError: a side has no items.
    """
    _require_items(np.stack([reference.sum(-1).ravel(), archive.sum(-1).ravel()]))
    exists = reference + archive > 0
    bins = exists.sum(-1, keepdims=True)
    r, a = (
        np.where(exists, (items + _PSEUDO_ITEMS) / (items.sum(-1, keepdims=True) + _PSEUDO_ITEMS * bins), 1.0)
        for items in (reference, archive)
    )
    return np.asarray(((a - r) * np.log(a / r)).sum(-1))


def _count_items(counts: SubjectCounts, weights: np.ndarray, *, exchanged: bool) -> np.ndarray:
    """(2, R) float64: items of both sides in every replicate."""
    sums = np.stack([np.asarray(table.sum(1), float) for table in (counts.normal, counts.abnormal)], 1)
    weighted = np.concatenate([weights[start : start + TOGETHER] @ sums for start in range(0, len(weights), TOGETHER)]).T
    totals = sums.sum(0)[:, None] - weighted + weighted[::-1] if exchanged else weighted
    _require_items(totals)
    return np.ascontiguousarray(totals)


def _require_items(totals: np.ndarray) -> None:
    for name, total in zip(_SIDES, totals, strict=True):
        if not (total > 0).all():
            where = "" if len(total) == 1 else " in at least one replicate"
            raise UndefinedMetricError(f"two distributions are compared, and the {name} has no items{where}")


@compiled
def _walk(
    r_starts: Any, r_subjects: Any, r_counts: Any, a_starts: Any, a_subjects: Any, a_counts: Any,
    weights: Any, exchanged: Any, totals: Any, centre: Any, due: Any,
) -> Any:  # fmt: skip  # pragma: no cover - compiled
    """Distance, reached and passed of as many replicates as a kernel takes."""
    r, a, sums, levels = np.zeros(TOGETHER), np.zeros(TOGETHER), np.zeros((2, TOGETHER)), due.shape[1]
    distance, at = np.zeros((3, TOGETHER)), np.zeros((2, TOGETHER), np.int64)
    next_due = due[:, 0].copy() if levels else np.full((2, TOGETHER), np.inf)
    reached, passed = np.zeros((2, levels, TOGETHER), np.int64), np.zeros((2, levels, TOGETHER))
    for u in range(r_starts.shape[0] - 1):
        r_all = _gather(r_starts, r_subjects, r_counts, u, weights, r)
        a_all = _gather(a_starts, a_subjects, a_counts, u, weights, a)
        for k in range(TOGETHER):
            change = r_all - r[k] + a[k] if exchanged else r[k]
            sums[0, k] += change
            sums[1, k] += r_all + a_all - change if exchanged else a[k]
        for k in range(TOGETHER):
            x, y = sums[0, k] / totals[0, k] - centre[0, u], sums[1, k] / totals[1, k] - centre[1, u]
            distance[0, k] = max(distance[0, k], abs(x))
            distance[1, k] = max(distance[1, k], abs(y))
            distance[2, k] = max(distance[2, k], abs(x - y))
        reaches = False  # a loop of its own, in vectors
        for k in range(TOGETHER):
            reaches |= sums[0, k] >= next_due[0, k]
            reaches |= sums[1, k] >= next_due[1, k]
        if not reaches:
            continue
        for side in range(2):
            for k in range(TOGETHER):
                while sums[side, k] >= next_due[side, k]:
                    reached[side, at[side, k], k] = u
                    if side == 0:
                        passed[0, at[side, k], k], passed[1, at[side, k], k] = sums[0, k], sums[1, k]
                    at[side, k] += 1
                    next_due[side, k] = due[side, at[side, k], k] if at[side, k] < levels else np.inf
    return distance, reached, passed


@compiled
def _gather(starts: Any, subjects: Any, counts: Any, u: Any, weights: Any, into: Any) -> Any:  # pragma: no cover - compiled
    """Weighted counts of one score by replicate, and their sum without weights."""
    total = 0.0
    for k in range(TOGETHER):
        into[k] = 0.0
    for e in range(starts[u], starts[u + 1]):
        subject, count = subjects[e], np.float64(counts[e])
        total += count
        for k in range(TOGETHER):
            into[k] += count * weights[subject, k]
    return total
