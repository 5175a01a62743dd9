"""From scores to p-values: how often a normal item scores this high.

A distribution fitted to normal scores (Lu & Xu 2018 propose the Gamma) extrapolates and is as good as the fit; ranks among held-out normal
scores (conformal p-values) are valid for any score and any distribution, but never below 1 / (n + 1). The scores that are fitted or ranked
must not be those of training images, which a detector knows too well. Higher is more anomalous, as everywhere.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from methods.evaluation.thresholds import Threshold

_FEWEST_FOR_GAMMA = 10
_FEWEST_IN_TAIL = 20


class CalibrationError(ValueError):
    """Scores from which no p-value or threshold follows."""


@dataclass(frozen=True)
class GammaNull:
    """Normal scores as Gamma(shape, scale) from 0 on."""

    kind: ClassVar[str] = "gamma"
    shape: float
    scale: float

    def __post_init__(self) -> None:
        _require_positive(self, "shape", "scale")

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """P(S >= score) (N,) float64 in [0, 1] for finite scores (N,); 1 for scores of 0 and below."""
        from scipy import stats  # here, because it takes a second to import

        return np.asarray(stats.gamma.sf(_finite(scores), self.shape, scale=self.scale), np.float64)


@dataclass(frozen=True)
class EmpiricalNull:
    """Normal scores as they occurred, ascending."""

    kind: ClassVar[str] = "empirical"
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.scores or not np.isfinite(self.scores).all() or any(np.diff(self.scores) < 0):
            raise CalibrationError("expected finite normal scores in ascending order, at least one")

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """(1 + number of normal scores at or above) / (n + 1), (N,) float64, at least 1 / (n + 1), for finite scores (N,)."""
        return _rank_from_above(np.asarray(self.scores), _finite(scores))


@dataclass(frozen=True)
class TailNull:
    """The empirical distribution up to a threshold, a generalised Pareto distribution above (Pickands 1975; Coles 2001, chapter 4).

    Attributes:
        body: normal scores in ascending order, the threshold last.
        exceedances: how many normal scores lie above the threshold.
        shape: ξ, at least 0.
        scale: of the excess over the threshold.
    """

    kind: ClassVar[str] = "tail"
    body: tuple[float, ...]
    exceedances: int
    shape: float
    scale: float

    def __post_init__(self) -> None:
        if not self.body or not np.isfinite(self.body).all() or any(np.diff(self.body) < 0):
            raise CalibrationError("expected a body of finite normal scores in ascending order, at least one")
        if not (isinstance(self.exceedances, int) and self.exceedances >= 1 and math.isfinite(self.shape) and self.shape >= 0):
            raise CalibrationError(f"expected exceedances >= 1 and a shape >= 0, got {self.exceedances} and {self.shape}")
        _require_positive(self, "scale")

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """P(S >= score) (N,) float64 above 0 (but for underflow) for finite scores (N,); continuous where body and tail meet."""
        from scipy import stats

        values, body = _finite(scores), np.asarray(self.body)
        n = len(body) + self.exceedances
        at_or_above = n - np.searchsorted(body, values, side="left")
        at_threshold = n - np.searchsorted(body, body[-1], side="left")
        excess = np.maximum(values - body[-1], 0)
        tail = (1 + at_threshold) / (n + 1) * stats.genpareto.sf(excess, self.shape, scale=self.scale)
        return np.asarray(np.where(values > body[-1], tail, (1 + at_or_above) / (n + 1)), np.float64)


Null = GammaNull | EmpiricalNull | TailNull


def fit_gamma(normal_scores: np.ndarray) -> GammaNull:
    """The Gamma distribution of highest likelihood.

    Args:
        normal_scores: (n,) above 0, at least ten, not all the same.

    Raises:
        CalibrationError: other scores.
    """
    from scipy import stats

    values = _fittable(normal_scores, fewest=_FEWEST_FOR_GAMMA)
    if values.min() <= 0:
        raise CalibrationError(f"a Gamma distribution needs scores above 0, got {values.min():g}; use fit_empirical or fit_tail")
    shape, _, scale = stats.gamma.fit(values, floc=0)
    return GammaNull(shape=float(shape), scale=float(scale))


def fit_empirical(normal_scores: np.ndarray) -> EmpiricalNull:
    """The scores themselves.

    Args:
        normal_scores: (n,) finite, at least two, not all the same.

    Raises:
        CalibrationError: other scores.
    """
    return EmpiricalNull(scores=tuple(_fittable(normal_scores, fewest=2).tolist()))


def fit_tail(normal_scores: np.ndarray, *, quantile: float = 0.9) -> TailNull:
    """Empirical up to a quantile, above it the generalised Pareto distribution of highest likelihood among those without an end.

    A shape below 0 has an end, beyond which p would be 0 for anything; there the exponential (shape 0) is taken, which is conservative.

    Args:
        normal_scores: (n,) finite; above the quantile there must be at least 20.
        quantile: in (0, 1), where the tail begins: at the normal score of that rank.

    Raises:
        ValueError: the quantile is not in (0, 1).
        CalibrationError: other scores.
    """
    from scipy import stats

    if not 0 < quantile < 1:
        raise ValueError(f"expected a quantile in (0, 1), got {quantile}")
    values = _fittable(normal_scores, fewest=_FEWEST_IN_TAIL + 1)
    threshold = values[math.ceil(quantile * len(values)) - 1]
    excess = values[values > threshold] - threshold
    if len(excess) < _FEWEST_IN_TAIL:
        raise CalibrationError(
            f"a tail needs at least {_FEWEST_IN_TAIL} scores above its threshold, got {len(excess)} of {len(values)} above the "
            f"{quantile:g} quantile; give more scores or a lower quantile"
        )
    scale = float(excess.mean())
    shape, _, pareto_scale = stats.genpareto.fit(excess / scale, 0.1, floc=0, scale=1)
    shape, scale = (float(shape), float(pareto_scale) * scale) if shape > 0 else (0.0, scale)
    return TailNull(body=tuple(values[values <= threshold].tolist()), exceedances=len(excess), shape=shape, scale=scale)


def null_to_dict(null: Null) -> dict[str, Any]:
    """What JSON can hold of it; `null_from_dict` gives it back equal."""
    return {"kind": null.kind, **asdict(null)}


def null_from_dict(document: dict[str, Any]) -> Null:
    """The fitted distribution of `null_to_dict`, also after a way through JSON.

    Raises:
        CalibrationError: an unknown kind, other keys, or values that no distribution has.
    """
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in document.items()}
    kind = values.pop("kind", None)
    kinds: dict[str, type[Null]] = {null.kind: null for null in (GammaNull, EmpiricalNull, TailNull)}
    if kind not in kinds:
        raise CalibrationError(f"expected a kind of {sorted(kinds)}, got {kind!r}")
    try:
        return kinds[kind](**values)
    except TypeError as error:
        raise CalibrationError(f"not a {kind} distribution: {error}") from error


def conformal_p_values(calibration_scores: np.ndarray, scores: np.ndarray, *, rng: np.random.Generator | None = None) -> np.ndarray:
    """p = (1 + #{calibration >= score}) / (n + 1): where score and calibration are exchangeable, P(p <= a) <= a for every a and n.

    The guarantee is over calibration and score together, for each score alone (Vovk et al. 2005; Bates et al. 2023): p-values of one
    calibration set are dependent.

    Args:
        calibration_scores: (n,) finite scores of normal items that were not trained on, at least one.
        scores: (N,) finite.
        rng: breaks ties at random, the score's own among them: (#{>} + U (1 + #{=})) / (n + 1), which is exactly uniform.

    Returns:
        (N,) float64 in (0, 1].

    Raises:
        CalibrationError: no calibration scores, or scores that are not finite.
    """
    calibration, values = _calibration(calibration_scores), _finite(scores)
    if rng is None:
        return _rank_from_above(calibration, values)
    above = len(calibration) - np.searchsorted(calibration, values, side="right")
    equal = len(calibration) - above - np.searchsorted(calibration, values, side="left")
    uniform = 1 - rng.random(len(values))  # in (0, 1]
    return np.asarray((above + uniform * (1 + equal)) / (len(calibration) + 1), np.float64)


def conformal_threshold(calibration_scores: np.ndarray, false_positive_rate: float) -> Threshold:
    """The lowest threshold from which on a score has a conformal p-value of at most the rate: so rarely is a new normal item called.

    It is the next number of the calibration scores' type above one of them, because a score is called abnormal from the threshold on.

    Args:
        calibration_scores: (n,) finite floats of normal items that were not trained on.
        false_positive_rate: in (0, 1).

    Raises:
        ValueError: the rate is not in (0, 1).
        CalibrationError: too few calibration scores for the rate (fewer than 1 / rate − 1), or ones that are not finite.
    """
    if not 0 < false_positive_rate < 1:
        raise ValueError(f"expected a false-positive rate in (0, 1), got {false_positive_rate}")
    given = np.asarray(calibration_scores)
    calibration = _calibration(given)
    n = len(calibration)
    allowed = math.floor(false_positive_rate * (n + 1) + 1e-9) - 1  # calibration scores at or above one that is called
    if allowed < 0:
        raise CalibrationError(
            f"a false-positive rate of {false_positive_rate:g} needs at least {math.ceil(1 / false_positive_rate - 1e-9) - 1} "
            f"calibration scores, got {n}"
        )
    highest_not_called = calibration[n - 1 - allowed]
    kind = given.dtype.type if given.dtype.kind == "f" else np.float64
    value = float(np.nextafter(kind(highest_not_called), kind(np.inf)))
    rule = f"conformal false-positive rate of at most {false_positive_rate:g}"
    return Threshold(value, rule, f"guaranteed {(allowed + 1) / (n + 1):.4f} from {n} calibration scores")


def _rank_from_above(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    at_or_above = len(ascending) - np.searchsorted(ascending, values, side="left")
    return np.asarray((1 + at_or_above) / (len(ascending) + 1), np.float64)


def _calibration(scores: np.ndarray) -> np.ndarray:
    """Ascending float64."""
    values = _finite(scores)
    if not len(values):
        raise CalibrationError("conformal calibration needs at least one score of a normal item, got none")
    return np.sort(values)


def _fittable(normal_scores: np.ndarray, *, fewest: int) -> np.ndarray:
    """Ascending float64."""
    values = np.sort(_finite(normal_scores))
    if len(values) < fewest:
        raise CalibrationError(f"expected at least {fewest} normal scores, got {len(values)}")
    if values[0] == values[-1]:
        raise CalibrationError(f"all {len(values)} normal scores are {values[0]:g}: no distribution can be fitted to them")
    return values


def _finite(scores: np.ndarray) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    if values.ndim != 1:
        raise CalibrationError(f"expected scores (N,), got shape {values.shape}")
    if not np.isfinite(values).all():
        raise CalibrationError(f"expected finite scores, got {np.count_nonzero(~np.isfinite(values))} of {len(values)} that are not")
    return values


def _require_positive(null: object, *names: str) -> None:
    for name in names:
        value = getattr(null, name)
        if not (isinstance(value, float | int) and math.isfinite(value) and value > 0):
            raise CalibrationError(f"expected a {name} above 0 and finite, got {value!r}")
