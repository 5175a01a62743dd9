"""Drift: whether the scores of an archive are distributed as those of a reference, with intervals and p-values over subjects.

Counts (`histograms.SubjectCounts`) hold both sides: the "normal" items are the reference's, the "abnormal" ones the archive's; a subject
may be on both. Two figures compare whole distributions. They cannot be negative: chance alone makes them positive, and resampled ones lie
higher still, so that quantiles of replicates, and BCa, which chooses among those, lie above the truth where there is little drift. Hence:

* **KS distance** D = max |Δ|, Δ = F_reference − F_archive. Its interval is D ± q, q the `level` quantile of max |Δ* − Δ| over replicates:
  D moves by no more than Δ does, and the bootstrap of Δ* − Δ is right with and without drift (Giné and Zinn 1990, "Bootstrapping general
  empirical measures"), which that of D is not (Cárcamo, Cuevas and Rodríguez 2020, "Directional differentiability for supremum-type
  functionals"). It covers rather more than its level. It holds 0 where Δ = 0 lies within the band.
* **Population stability index** (`distributions.stability_index`). Bins are cut anew in every replicate. Without drift its mean is about
  (bins − 1)(1/N + 1/M) for N and M independent items (Yurdakul 2018, "Statistical properties of population stability index") and more for
  items of few subjects. Its interval is that of percentiles, moved down by twice the bias that the replicates show against the value, once
  for theirs and once for the value's own, and cut at 0 (ours). The basic interval turns their skewness the wrong way round. "Below
  0.1 little, above 0.25 much" is a convention that knows no n.

p-values are of permutations of subjects between the sides, which keep how many subjects each has. They are exact where subjects are
exchangeable, the number of their items included. Where all are on both sides, each has its halves exchanged or not, which is exact too;
where some are, their halves are permuted as if of two subjects, which finds less where halves are alike, but sees what only new
subjects show. Where one side has many more items a subject than the other, trust the intervals, which leave subjects on their sides.
`unchanged` is what the permutations exceed in 1 − level of them: what no drift looks like with these subjects.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.sparse import csc_array

from methods.evaluation.bootstrap import bca_levels
from methods.evaluation.distributions import TOGETHER, Walk, bin_items, bin_levels, distribution_functions, stability_index, walk
from methods.evaluation.histograms import SubjectCounts
from methods.evaluation.metrics import UndefinedMetricError

KS, PSI = "KS distance", "population stability index"
QUANTILES = {"median": 0.5, "95th percentile": 0.95, "99th percentile": 0.99}
_REFERENCE, _ARCHIVE, _BOTH = 1, 2, 3  # on which sides a subject is
_WEIGHTS_AT_ONCE = 1 << 24
_ROUNDING = 1e-12  # a permutation that changes nothing is no larger


class DriftConfig(BaseModel):
    """How two distributions are compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bins: int = Field(default=10, ge=2, description="of the population stability index, at the reference's quantiles")
    replicates: int = Field(default=1000, ge=2, description="of the bootstrap over subjects, within each side")
    permutations: int = Field(default=1000, ge=1, description="of subjects between the sides; p is at least 1 / (permutations + 1)")
    level: float = Field(default=0.95, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)
    interval: Literal["bca", "percentile"] = Field(default="bca", description="of the mean and of shares; the others have their own")


@dataclass(frozen=True)
class Figure:
    """One figure of a comparison.

    Attributes:
        name: what it is.
        reference, archive: what it is on each side; None for a distance between them.
        value: the distance, or archive minus reference.
        low, high: of its interval over subjects; None where there is none.
        method: how the interval was made, or why there is none.
        p: share of permutations as far from 0, the data counted as one of them.
        unchanged: absolute value that permutations exceed in 1 − level of them.
    """

    name: str
    reference: float | None
    archive: float | None
    value: float
    low: float | None
    high: float | None
    method: str
    p: float
    unchanged: float


@dataclass(frozen=True)
class Bin:
    """Scores above `low` and up to `high`, None where open, and how many items of each side have one."""

    low: float | None
    high: float | None
    reference: int
    archive: int


@dataclass(frozen=True)
class Drift:
    """A reference and an archive, compared.

    Attributes:
        items, subjects: of reference and archive.
        figures: KS distance, population stability index, shifts of mean and quantiles, of the shares from a threshold on.
        bins: of the stability index.
        bands: half widths of simultaneous bands round F of the reference and of the archive; None where there are no intervals.
    """

    items: tuple[int, int]
    subjects: tuple[int, int]
    figures: list[Figure]
    bins: list[Bin]
    bands: tuple[float, float] | None

    def figure(self, name: str) -> Figure:
        """The one of this name."""
        return next(figure for figure in self.figures if figure.name == name)


def compare_sides(counts: SubjectCounts, config: DriftConfig, *, thresholds: Mapping[str, float] | None = None) -> Drift:
    """Compare the scores of an archive with a reference.

    A quantile is the lowest score at which F is at least its level. Intervals of its shift are of percentiles, because the jackknife that
    BCa needs fails for quantiles; those of the mean and of shares are as configured.

    Args:
        counts: reference items as normal, archive items as abnormal.
        config: bins, replicates, permutations.
        thresholds: name -> score from which on an item is called; the share of such items is compared.

    Raises:
        UndefinedMetricError: a side has no items.
    """
    rng = np.random.default_rng(config.seed)
    comparison = _Comparison(counts, config.bins, thresholds or {})
    kinds = np.asarray(counts.normal.sum(1) > 0) * _REFERENCE + np.asarray(counts.abnormal.sum(1) > 0) * _ARCHIVE
    everyone = np.ones((1, len(kinds)))
    seen = comparison.measure(everyone)
    parted, sides = _part_pairs(counts, kinds)
    exchange = _Comparison(parted, config.bins, thresholds or {})
    permuted = _join([exchange.measure(block, exchanged=True) for block in _permute(sides, config.permutations, rng)])
    replicates, why_none = None, ""
    try:
        centre = distribution_functions(counts)
        replicates = _join([comparison.measure(block, centre=centre) for block in _resample(kinds, config.replicates, rng)])
    except UndefinedMetricError as error:
        why_none = f"no interval: {error}"
    figures = []
    for place, name in enumerate(comparison.names):
        value, far = float(seen.figures[place, 0]), np.abs(permuted.figures[place])
        low, high, method = None, None, why_none
        if replicates is not None:
            left_out = comparison.leave_out(place) if config.interval == "bca" else None
            low, high, method = _interval(name, value, replicates.figures[place], config, left_out, _strata(kinds))
        reference, archive = (None if np.isnan(side) else float(side) for side in seen.sides[:, place, 0])
        p = (1 + int((far >= abs(value) * (1 - _ROUNDING)).sum())) / (1 + len(far))
        figures.append(Figure(name, reference, archive, value, low, high, method, p, float(np.quantile(far, config.level))))
    return Drift(
        items=(int(counts.normal.sum()), int(counts.abnormal.sum())),
        subjects=(int((kinds != _ARCHIVE).sum()), int((kinds != _REFERENCE).sum())),
        figures=figures,
        bins=comparison.list_bins(),
        bands=None if replicates is None else tuple(np.quantile(replicates.distances, config.level, axis=1).tolist()),
    )


class _Values(NamedTuple):
    """Of R weightings: figures (F, R), what they are on each side (2, F, R) or NaN, distances (2, R) of each side's F from its centre."""

    figures: np.ndarray
    sides: np.ndarray
    distances: np.ndarray


class _Comparison:
    """What is compared, under any weights."""

    def __init__(self, counts: SubjectCounts, bins: int, thresholds: Mapping[str, float]) -> None:
        self.names = [KS, PSI, *QUANTILES, "mean", *thresholds]
        self._counts = counts
        self._cuts, quantiles = bin_levels(bins), np.array(list(QUANTILES.values()))
        self._levels = np.unique(np.concatenate([self._cuts, quantiles]))
        self._at_cuts, self._at_quantiles = (np.searchsorted(self._levels, some) for some in (self._cuts, quantiles))
        firsts = np.searchsorted(counts.values, list(thresholds.values()), side="left")
        tables = counts.normal, counts.abnormal
        columns = [[table.sum(1), table @ counts.values, *(table[:, first:].sum(1) for first in firsts)] for table in tables]
        # (S, 2, 1 + means): items, and what is divided by them
        self._sums = np.ascontiguousarray(np.array(columns, float).transpose(2, 0, 1))

    def measure(self, weights: np.ndarray, *, centre: np.ndarray | None = None, exchanged: bool = False) -> _Values:
        """All figures under weights (R, S), as `distributions.walk` takes them; with a centre, the KS distance is that of Δ from its Δ."""
        found = walk(self._counts, weights, levels=self._levels, centre=centre, exchanged=exchanged)
        sums = np.tensordot(weights, self._sums, 1)  # (R, 2, 1 + means)
        if exchanged:
            sums = self._sums.sum(0) - sums + sums[:, ::-1]
        sides = np.concatenate([self._counts.values[found.reached[:, self._at_quantiles]], _divide(sums).transpose(1, 2, 0)], 1)
        index = stability_index(*bin_items(self._cut(found)))
        figures = np.concatenate([[found.distance[2], index], sides[1] - sides[0]])
        return _Values(figures, np.pad(sides, ((0, 0), (2, 0), (0, 0)), constant_values=np.nan), found.distance[:2])

    def leave_out(self, place: int) -> np.ndarray | None:
        """(S,) the shift of a mean or share without each subject in turn; None for another figure, or where a side would be empty."""
        means = place - 2 - len(QUANTILES)
        if means < 0:
            return None
        sums = self._sums[..., [0, 1 + means]]
        rest = sums.sum(0) - sums
        if not (rest[..., 0] > 0).all():
            return None
        without = _divide(rest)[..., 0]
        return np.asarray(without[:, 1] - without[:, 0])

    def list_bins(self) -> list[Bin]:
        """The bins of the stability index that hold anything."""
        found = self._cut(walk(self._counts, np.ones((1, len(self._counts.subjects))), levels=self._levels))
        reference, archive = (items[0] for items in bin_items(found))
        ends = self._counts.values[found.reached[0, :, 0]]
        kept = np.flatnonzero(reference + archive > 0)
        return [
            Bin(
                float(ends[place - 1]) if place else None,
                float(ends[place]) if place < len(ends) else None,
                int(reference[place]),
                int(archive[place]),
            )
            for place in kept
        ]

    def _cut(self, found: Walk) -> Walk:
        """With the levels of bins alone."""
        return found._replace(reached=found.reached[:, self._at_cuts], passed=found.passed[:, self._at_cuts])


def _divide(sums: np.ndarray) -> np.ndarray:
    """(..., 1 + means) items and sums over them -> (..., means)."""
    return np.asarray(sums[..., 1:] / sums[..., :1])


def _join(blocks: list[_Values]) -> _Values:
    return _Values(*(np.concatenate(parts, -1) for parts in zip(*blocks, strict=True)))


def _strata(kinds: np.ndarray) -> np.ndarray:
    """Who is resampled together (S,): subjects of one side, and those of both; one alone of its kind goes with others of its side."""
    strata = kinds.copy()
    for kind, others in ((_BOTH, (_ARCHIVE, _REFERENCE)), (_REFERENCE, (_BOTH,)), (_ARCHIVE, (_BOTH,))):
        if (strata == kind).sum() == 1:
            strata[strata == kind] = next((other for other in others if (strata == other).any()), kind)
    return strata


def _resample(kinds: np.ndarray, replicates: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Weights (n, S) of some replicates at a time: subjects drawn with replacement within their stratum.

    Drawn here and not by `bootstrap.resample_subjects`: a thousand replicates of a million subjects are gigabytes, and take it a minute.

    Raises:
        UndefinedMetricError: a side of fewer than two subjects.
    """
    sides = [int((kinds != without).sum()) for without in (_ARCHIVE, _REFERENCE)]
    if min(sides) < 2:
        raise UndefinedMetricError(f"it needs two subjects on each side; the reference has {sides[0]}, the archive {sides[1]}")
    strata = _strata(kinds)
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    for rows in _portions(replicates, len(kinds)):
        weights = np.zeros((rows, len(kinds)))
        for row in weights:
            for group in groups:
                row[group] = np.bincount(rng.integers(0, len(group), len(group)), minlength=len(group))
        yield weights


def _part_pairs(counts: SubjectCounts, kinds: np.ndarray) -> tuple[SubjectCounts, np.ndarray]:
    """Where some subjects are on both sides and others are not: the former as two subjects, one on each side; and everybody's side."""
    both = kinds == _BOTH
    if both.all() or not both.any():
        return counts, kinds
    names = tuple(name for name, twice in zip(counts.subjects, both, strict=True) if twice)
    row_of = np.where(both, len(kinds) - 1 + np.cumsum(both), np.arange(len(kinds))).astype(np.int32)
    shape = len(kinds) + len(names), len(counts.values)
    normal = csc_array((counts.normal.data, counts.normal.indices, counts.normal.indptr), shape=shape)
    abnormal = csc_array((counts.abnormal.data, row_of[counts.abnormal.indices], counts.abnormal.indptr), shape=shape)
    sides = np.concatenate([np.where(both, _REFERENCE, kinds), np.full(len(names), _ARCHIVE)])
    return SubjectCounts(counts.subjects + names, counts.values, normal, abnormal), sides


def _permute(kinds: np.ndarray, permutations: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """(n, S) of some permutations at a time, 1 for a subject that changes sides."""
    alone, both = np.flatnonzero(kinds != _BOTH), np.flatnonzero(kinds == _BOTH)
    side = kinds[alone] == _ARCHIVE
    for rows in _portions(permutations, len(kinds)):
        changes = np.zeros((rows, len(kinds)))
        for row in changes:
            row[alone] = rng.permutation(side) != side
            row[both] = rng.integers(0, 2, len(both))
        yield changes


def _portions(replicates: int, subjects: int) -> list[int]:
    """Into numbers whose weights fit into memory."""
    at_once = max(TOGETHER, _WEIGHTS_AT_ONCE // subjects // TOGETHER * TOGETHER)
    return [min(at_once, replicates - start) for start in range(0, replicates, at_once)]


def _interval(
    name: str, value: float, replicates: np.ndarray, config: DriftConfig, left_out: np.ndarray | None, strata: np.ndarray
) -> tuple[float | None, float | None, str]:
    """Ends and how they were made."""
    if np.ptp(replicates) == 0:
        return None, None, "no interval: it is the same in all replicates"
    if name == KS:
        reach = float(np.quantile(replicates, config.level))
        return max(0.0, value - reach), min(1.0, value + reach), "band"
    tails = (1 - config.level) / 2, (1 + config.level) / 2
    low, high = np.quantile(replicates, tails)
    if name == PSI:
        bias = 2 * (replicates.mean() - value)  # the value's own, and as much again
        return max(0.0, float(low - bias)), max(0.0, float(high - bias)), "percentile less bias"
    corrected = None if left_out is None else bca_levels(value, replicates, left_out, strata, tails)
    if corrected is None:
        return float(low), float(high), "percentile"
    low, high = np.quantile(replicates, corrected)
    return float(low), float(high), "BCa"
