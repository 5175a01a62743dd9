"""Intervals from resampling subjects: the images and pixels of one person are not independent, the persons are.

A replicate is a weight on each subject, never a copy of data (cluster bootstrap: Field and Welsh 2007, Bootstrapping clustered data). All
metrics of all detectors are taken on the same weights, so that their differences are paired.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from methods.evaluation.metrics import UndefinedMetricError

_KINDS = {"0": "without anomaly", "1": "with anomaly"}
_GROUPS = 400  # left out one after the other, in all strata together


class BootstrapConfig(BaseModel):
    """How intervals are made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replicates: int = Field(default=1000, ge=2, description="50, as in González-Jiménez et al. 2022, do for a standard deviation")
    level: float = Field(default=0.95, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)
    interval: Literal["bca", "percentile"] = Field(default="bca", description="bca corrects percentiles for bias and skewness")
    stratify: Literal["anomaly", "finding", "dataset", "site", "none"] = Field(
        default="anomaly", description="what of a subject every replicate has as often as the data: whether it carries anomaly, a column"
    )


@dataclass(frozen=True)
class Estimate:
    """A value with its interval over subjects, the standard deviation of the replicates, and how the interval was made."""

    value: float
    low: float
    high: float
    standard_deviation: float
    method: str


@dataclass(frozen=True)
class Resamples:
    """Weights on S subjects: everyone once; R replicates; G groups left out in turn.

    Attributes:
        weights: (1 + R + G, S) int32.
        replicates: R.
        groups: (G,) the stratum of each left-out group; empty where no jackknife is asked for.
    """

    weights: np.ndarray
    replicates: int
    groups: np.ndarray


def draw_resamples(strata: np.ndarray, config: BootstrapConfig) -> Resamples:
    """The weights of a configuration: one seed and one list of strata, one set of weights.

    Args:
        strata: (S,) the stratum of each subject.
        config: replicates, seed and interval.

    Raises:
        UndefinedMetricError: a stratum of one subject.
    """
    rng = np.random.default_rng(config.seed)
    drawn = resample_subjects(strata, replicates=config.replicates, rng=rng)
    left_out, groups = leave_out(strata, rng=rng) if config.interval == "bca" else (drawn[:0], strata[:0])
    return Resamples(np.concatenate([np.ones((1, len(strata)), np.int32), drawn, left_out]), config.replicates, groups)


def resample_subjects(strata: np.ndarray, *, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """Weights (replicates, S) int32 of resampling S subjects with replacement, within each stratum.

    Args:
        strata: (S,) the stratum of each subject: 1 for those that carry anomaly and 0 for those that do not, or a finer
            division. Each keeps its number of subjects, so that a replicate does not lack a kind of subject that the data have.
        replicates: how many.
        rng: source of randomness.

    Raises:
        UndefinedMetricError: a stratum of one subject, whose resamples would all be the same.
    """
    weights = np.zeros((replicates, len(strata)), np.int32)
    kinds, sizes = np.unique(strata, return_counts=True)
    if (sizes < 2).any():
        found = ", ".join(f"{size} {_KINDS.get(str(kind), f'in stratum {kind}')}" for kind, size in zip(kinds.tolist(), sizes, strict=True))
        raise UndefinedMetricError(f"an interval over subjects needs at least two subjects of each kind; there are {found}")
    for kind in kinds:
        members = np.flatnonzero(strata == kind)
        weights[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=replicates)
    return weights


def leave_out(strata: np.ndarray, *, rng: np.random.Generator, groups: int = _GROUPS) -> tuple[np.ndarray, np.ndarray]:
    """Weights (G, S) int32 of the jackknife and the stratum of each left-out group (G,).

    Each subject is a group; where there are more subjects than `groups`, random groups within the strata, as in Efron and Narasimhan
    2020, "The automatic construction of bootstrap confidence intervals", section 2: the acceleration needs no more.
    """
    rows, stratum_of = [], []
    for kind in np.unique(strata):
        members = rng.permutation(np.flatnonzero(strata == kind))
        share = max(2, round(groups * len(members) / len(strata)))
        for group in np.array_split(members, min(len(members), share)):
            row = np.ones(len(strata), np.int32)
            row[group] = 0
            rows.append(row)
            stratum_of.append(kind)
    return np.stack(rows), np.array(stratum_of)


def estimate(values: np.ndarray, resamples: Resamples, *, level: float = 0.95) -> Estimate:
    """A metric's value with its interval.

    Args:
        values: (1 + R + G,) the metric, or a difference of two, under the weights of `resamples`.
        resamples: those weights.
        level: coverage of the interval.
    """
    replicates, left_out = np.split(values[1:], [resamples.replicates])
    tails = (1 - level) / 2, (1 + level) / 2
    corrected = bca_levels(values[0], replicates, left_out, resamples.groups, tails) if len(left_out) else None
    low, high = np.quantile(replicates, tails if corrected is None else corrected)
    method = "percentile" if corrected is None else "BCa"
    return Estimate(float(values[0]), float(low), float(high), float(replicates.std(ddof=1)), method)


def bca_levels(
    value: float, replicates: np.ndarray, left_out: np.ndarray, groups: np.ndarray, tails: tuple[float, float]
) -> tuple[float, float] | None:
    """The quantiles of the replicates that are the ends of the BCa interval (Efron 1987; several strata: Davison and Hinkley 1997, 5.28).

    Args:
        value: of all subjects.
        replicates: (R,).
        left_out: (G,) values without each group.
        groups: (G,) the stratum of each.
        tails: levels of the ends.

    Returns:
        None where the correction is undefined: all replicates on one side of the value, or values that no left-out group changes.
    """
    from scipy.special import ndtr, ndtri

    below = ((replicates < value).mean() + (replicates <= value).mean()) / 2
    cubes = squares = 0.0
    for kind in np.unique(groups):
        mine = left_out[groups == kind]
        influence = (len(mine) - 1) * (mine.mean() - mine)
        cubes += float((influence**3).sum()) / len(mine) ** 3
        squares += float((influence**2).sum()) / len(mine) ** 2
    if not 0 < below < 1 or squares <= 1e-24:
        return None
    bias, acceleration = ndtri(below), cubes / (6 * squares**1.5)
    shifted = bias + ndtri(np.array(tails))
    low, high = ndtr(bias + shifted / (1 - acceleration * shifted))
    return float(low), float(high)
