"""Intervals from resampling subjects: the images and pixels of one person are not independent, the persons are.

A replicate is a weight on each subject, never a copy of data (cluster bootstrap: Field and Welsh 2007, Bootstrapping clustered data).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from methods.evaluation.histograms import SubjectCounts
from methods.evaluation.metrics import UndefinedMetricError

_CHUNK_ELEMENTS = 1_000_000  # 8 MB for each array of a chunk of replicates: about 50 MB at the peak, whatever the number of replicates
_KINDS = {0: "without anomaly", 1: "with anomaly"}


class BootstrapConfig(BaseModel):
    """How intervals are made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replicates: int = Field(default=1000, ge=2)
    level: float = Field(default=0.95, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Estimate:
    """A value with its interval over subjects, and the standard deviation of the replicates."""

    value: float
    low: float
    high: float
    replicates: int
    standard_deviation: float


def resample_subjects(strata: np.ndarray, *, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """Weights (replicates, S) int64 of resampling S subjects with replacement, within each stratum.

    Args:
        strata: (S,) the stratum of each subject: 1 for those that carry anomaly and 0 for those that do not, or a finer
            division. Each keeps its number of subjects, so that a replicate does not lack a kind of subject that the data have.
        replicates: how many.
        rng: source of randomness.

    Raises:
        UndefinedMetricError: a stratum of one subject, whose resamples would all be the same.
    """
    weights = np.zeros((replicates, len(strata)), np.int64)
    kinds, sizes = np.unique(strata, return_counts=True)
    if (sizes < 2).any():
        found = ", ".join(f"{size} {_KINDS.get(kind, f'in stratum {kind}')}" for kind, size in zip(kinds.tolist(), sizes, strict=True))
        raise UndefinedMetricError(f"an interval over subjects needs at least two subjects of each kind; there are {found}")
    for kind in kinds:
        members = np.flatnonzero(strata == kind)
        weights[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=replicates)
    return weights


def bootstrap_interval(
    counts: SubjectCounts, statistic: Callable[[np.ndarray, np.ndarray], np.ndarray], *, weights: np.ndarray, level: float = 0.95
) -> Estimate:
    """The statistic on all subjects, with its percentile interval over the replicates (Efron and Tibshirani 1993, section 13.3).

    Args:
        counts: of S subjects.
        statistic: from weighted counts (..., U) of both classes to (...,), such as `metrics.roc_auc`.
        weights: (R, S) from `resample_subjects`.
        level: coverage of the interval.

    Raises:
        ValueError: the weights are of another number of subjects.
        UndefinedMetricError: the statistic is undefined on the data or on a replicate.
    """
    if weights.shape[1:] != (len(counts.subjects),):
        raise ValueError(f"expected weights (replicates, {len(counts.subjects)}), one for each subject, got {weights.shape}")
    value = float(statistic(counts.normal.sum(0), counts.abnormal.sum(0)))
    per_chunk = max(1, _CHUNK_ELEMENTS // max(1, len(counts.values)))
    normal, abnormal = counts.normal.astype(float), counts.abnormal.astype(float)  # exact up to 2⁵³ pixels, and multiplied by BLAS
    parts = [
        statistic(chunk @ normal, chunk @ abnormal)
        for chunk in (weights[start : start + per_chunk].astype(float) for start in range(0, len(weights), per_chunk))
    ]
    replicates = np.concatenate(parts)
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), replicates=len(replicates), standard_deviation=float(replicates.std(ddof=1)))
