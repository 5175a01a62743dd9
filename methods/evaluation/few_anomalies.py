"""Choosing hyperparameters by a small set of anomalies of confined variability (Tuluptceva et al. 2020, "Anomaly detection with deep
perceptual autoencoders", section 3.3 and figure 4), and by criteria that need no anomaly.

The AUROC of a draw of anomalies against normal scores is the mean, over the drawn, of each anomaly's placement: the share of normal scores
below it, ties counted half (DeLong et al. 1988). Placements are computed once for every trial, fold and anomaly; each draw is a mean.

From the paper: cross-validation, the AUROC against few anomalies of few types, draws repeated for each number of anomalies and of types.
Ours: every fold's model is compared on all drawn anomalies; a draw takes the types alike; of equally good trials the first is chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd


class TooFewAnomaliesError(ValueError):
    """Fewer anomalies, or types of them, than asked for."""


@dataclass(frozen=True)
class Draw:
    """Anomalies drawn from a set of them.

    Attributes:
        types: that they are of.
        positions: (count,) int64 in the set, ascending.
    """

    types: tuple[str, ...]
    positions: np.ndarray


@dataclass(frozen=True)
class StudyPoint:
    """What the trials chosen by repeated draws came to on the test split.

    Attributes:
        types, count: of the anomalies of each draw.
        chosen: the trial that each draw chose, D positions.
        values: its test AUROC, D.
    """

    types: int
    count: int
    chosen: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the draws."""
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the draws (ddof = 1); None for a single one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


def place(normal: np.ndarray, abnormal: np.ndarray) -> np.ndarray:
    """Placements (m,) in [0, 1] of abnormal scores (m,) among normal ones (n,); their mean is the AUROC.

    Raises:
        ValueError: no normal score.
    """
    if not len(normal):
        raise ValueError("expected at least one normal score")
    ordered = np.sort(normal)
    return np.asarray((np.searchsorted(ordered, abnormal, "left") + np.searchsorted(ordered, abnormal, "right")) / (2 * len(ordered)))


def draw_of(kinds: np.ndarray, *, types: Sequence[str], count: int, rng: np.random.Generator) -> Draw:
    """Draw anomalies of named types, as many of each as there are to be had.

    Args:
        kinds: (m,) str, the type of each anomaly.
        types: of which to draw.
        count: how many in all.
        rng: source of randomness.

    Raises:
        TooFewAnomaliesError: an unknown type, or fewer anomalies of these types than `count`; says how many there are of each.
    """
    if unknown := [name for name in types if name not in kinds]:
        raise TooFewAnomaliesError(f"no anomaly of type {', '.join(map(repr, unknown))}; there are {describe_types(kinds)}")
    wanted = np.isin(kinds, types)
    if wanted.sum() < count:
        raise TooFewAnomaliesError(f"{count} anomalies are asked for, and there are {describe_types(kinds[wanted])}")
    shuffled = rng.permutation(np.flatnonzero(wanted))
    rank = pd.Series(kinds[shuffled]).groupby(kinds[shuffled]).cumcount().to_numpy()  # the first of each type go before the second of any
    return Draw(tuple(types), np.sort(shuffled[np.argsort(rank, kind="stable")[:count]]))


def draw_types(kinds: np.ndarray, *, types: int, count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Draw types that each have their equal share of `count` anomalies, ⌈count / types⌉.

    Raises:
        TooFewAnomaliesError: fewer such types than asked for; says how many anomalies there are of each.
    """
    names, sizes = np.unique(kinds, return_counts=True)
    share = -(-count // types)
    eligible = names[sizes >= share]
    if len(eligible) < types:
        raise TooFewAnomaliesError(
            f"{count} anomalies of {types} type(s) need {types} with {share} each, and there are {describe_types(kinds) or 'none'}"
        )
    return tuple(sorted(rng.choice(eligible, types, replace=False).tolist()))


def choose(qualities: np.ndarray) -> tuple[int, int]:
    """The best of the trials and how many are as good, itself included.

    Args:
        qualities: (T,) higher is better, NaN for a trial that failed; of equal ones the first is chosen.

    Raises:
        ValueError: every trial failed.
    """
    if np.isnan(qualities).all():
        raise ValueError("no trial of the search succeeded")
    best = int(np.nanargmax(qualities))
    return best, int((qualities == qualities[best]).sum())


def study_draws(
    placements: np.ndarray, kinds: np.ndarray, tested: np.ndarray, *, types: Sequence[int], counts: Sequence[int], draws: int, seed: int
) -> list[StudyPoint]:
    """The paper's figure 4: for every number of types and of anomalies, draw, choose by the draw, and look up the chosen one's test AUROC.

    A number of types is left out where it exceeds the number of anomalies.

    Args:
        placements: (T, m) of m anomalies under each of T trials, averaged over the folds.
        kinds: (m,) str, the anomalies' types.
        tested: (T,) AUROC on the test split.
        types: numbers of types.
        counts: numbers of anomalies.
        draws: D of each.
        seed: of the draws; each has its own, whatever else is studied.

    Raises:
        TooFewAnomaliesError: fewer anomalies than one of the points needs.
    """
    points = []
    for number in types:
        for count in (count for count in counts if count >= number):
            drawn = []
            for draw in range(draws):
                rng = np.random.default_rng((seed, number, count, draw))
                names = draw_types(kinds, types=number, count=count, rng=rng)
                positions = draw_of(kinds, types=names, count=count, rng=rng).positions
                drawn.append(choose(placements[:, positions].mean(1))[0])
            points.append(StudyPoint(number, count, tuple(drawn), tuple(float(tested[one]) for one in drawn)))
    return points


def describe_types(kinds: np.ndarray) -> str:
    """How many anomalies there are of each type, in words."""
    names, sizes = np.unique(kinds, return_counts=True)
    return ", ".join(f"{size} of {name!r}" for name, size in zip(names.tolist(), sizes.tolist(), strict=True))
