"""One figure out of many experiments: classes that take turns at being normal, and seeds that draw split and training anew.

The experiments are not independent: the same subjects are tested in several of them. A replicate therefore gives each subject one weight
for all experiments, and each seed one (crossed random effects: Owen 2007, "The pigeonhole bootstrap"). The classes are all there are and
are not resampled.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from methods.evaluation.bootstrap import resample_subjects
from methods.evaluation.histograms import SubjectCounts

_CHUNK = 100  # replicates at once: a megabyte or so for a thousand subjects


@dataclass(frozen=True)
class Summary:
    """A metric over S seeds × C classes.

    Attributes:
        mean: over all S × C experiments.
        low: lower end of the interval over subjects and, with two seeds or more, over seeds.
        high: its upper end.
        deviation: standard deviation over seeds of the mean over classes (ddof = 1); None with one seed.
        by_class: (C,) means over seeds.
    """

    mean: float
    low: float
    high: float
    deviation: float | None
    by_class: tuple[float, ...]


@dataclass(frozen=True)
class Weights:
    """How often each subject and each seed is drawn in each of R replicates.

    Attributes:
        subjects: the column of each subject.
        of_subjects: (R, subjects) int64.
        of_seeds: (R, S) int64, each row of sum S.
    """

    subjects: Mapping[str, int]
    of_subjects: np.ndarray
    of_seeds: np.ndarray


def draw_weights(strata: Mapping[str, str], *, seeds: int, replicates: int, rng: np.random.Generator) -> Weights:
    """Resample subjects with replacement within their stratum, and seeds among themselves.

    Args:
        strata: the stratum of each subject, such as what is truly seen in it.
        seeds: S; one seed stays as it is.
        replicates: R.
        rng: source of randomness.

    Raises:
        UndefinedMetricError: a stratum of one subject.
    """
    numbers = np.unique(list(strata.values()), return_inverse=True)[1]
    return Weights(
        subjects={subject: column for column, subject in enumerate(strata)},
        of_subjects=resample_subjects(numbers, replicates=replicates, rng=rng),
        of_seeds=rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=replicates),
    )


def replicate(counts: SubjectCounts, statistic: Callable[[np.ndarray, np.ndarray], np.ndarray], weights: Weights) -> np.ndarray:
    """One experiment's statistic (1 + R,): on its own subjects first, then on each replicate.

    Args:
        counts: of the subjects that the experiment tests, all of them known to `weights`.
        statistic: from weighted counts (..., U) of both classes to (...,), such as `metrics.roc_auc`.
        weights: from `draw_weights`.

    Raises:
        UndefinedMetricError: the statistic is undefined on the data or on a replicate.
    """
    columns = [weights.subjects[subject] for subject in counts.subjects]
    rows = np.concatenate([np.ones((1, len(columns))), weights.of_subjects[:, columns]])
    normal, abnormal = counts.normal.astype(float), counts.abnormal.astype(float)
    parts = (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))
    return np.concatenate([statistic(part @ normal, part @ abnormal) for part in parts])


def summarise(values: np.ndarray, weights: Weights, *, level: float = 0.95) -> Summary:
    """The mean over seeds and classes with its percentile interval.

    Args:
        values: (1 + R, S, C) of `replicate`, by experiment.
        weights: those that the replicates were made with.
        level: coverage of the interval.
    """
    over_classes = values.mean(2)  # (1 + R, S)
    replicates = (over_classes[1:] * weights.of_seeds).sum(1) / weights.of_seeds.sum(1)
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    seeds = values.shape[1]
    return Summary(
        mean=float(over_classes[0].mean()),
        low=float(low),
        high=float(high),
        deviation=float(over_classes[0].std(ddof=1)) if seeds > 1 else None,
        by_class=tuple(values[0].mean(0).tolist()),
    )


def rank_detectors(values: np.ndarray, weights: Weights, *, level: float = 0.95) -> list[Summary]:
    """The mean rank of each of D detectors with its percentile interval: 1 is the highest of an experiment, equal ones share their mean.

    Ranks are taken within every experiment of every replicate, on the same resamples for all (as the Friedman test ranks: Demšar 2006,
    "Statistical comparisons of classifiers over multiple data sets", section 3.2.2).

    Args:
        values: (D, 1 + R, S, C) of `replicate`, by detector and experiment; higher is better.
        weights: those that the replicates were made with.
        level: coverage of the interval.
    """
    return [summarise(ranks, weights, level=level) for ranks in rankdata(-values, axis=0)]
