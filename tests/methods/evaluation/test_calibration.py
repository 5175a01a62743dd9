"""p-values against their definition: uniform where nothing is abnormal, exactly so where a guarantee says it."""

import itertools
import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from methods.evaluation.calibration import (
    CalibrationError,
    EmpiricalNull,
    GammaNull,
    Null,
    TailNull,
    conformal_p_values,
    conformal_threshold,
    fit_empirical,
    fit_gamma,
    fit_tail,
    null_from_dict,
    null_to_dict,
)

FITS = (fit_gamma, fit_empirical, fit_tail)
SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


def _gammas(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(3.0, 0.5, count)


@pytest.mark.parametrize("fit", FITS)
def test_p_values_of_normal_scores_are_uniform(fit) -> None:
    p = fit(_gammas(20_000, 0)).p_values(_gammas(20_000, 1))
    assert p.dtype == np.float64
    assert stats.kstest(p, "uniform").statistic < 0.02  # 1.4 % is what 20,000 fitted and 20,000 tested differ by in one case of twenty


@pytest.mark.parametrize("fit", FITS)
def test_a_higher_score_never_has_a_higher_p_value(fit) -> None:
    p = fit(_gammas(400, 0)).p_values(np.linspace(-1, 30, 20_000))
    assert (np.diff(p) <= 0).all()
    assert p[0] == 1
    assert p[-1] < 0.01


def test_gamma_is_the_one_of_highest_likelihood() -> None:
    scores = _gammas(2_000, 2)
    found = fit_gamma(scores)
    shape, _, scale = stats.gamma.fit(scores, floc=0)
    assert (found.shape, found.scale) == pytest.approx((shape, scale))
    assert (found.shape, found.scale) == pytest.approx((3.0, 0.5), rel=0.1)
    np.testing.assert_allclose(found.p_values(scores), 1 - stats.gamma.cdf(scores, found.shape, scale=found.scale), atol=1e-12)
    likelihood = stats.gamma.logpdf(scores, found.shape, scale=found.scale).sum()
    for shape_factor, scale_factor in itertools.product((0.95, 1.0, 1.05), repeat=2):
        assert stats.gamma.logpdf(scores, found.shape * shape_factor, scale=found.scale * scale_factor).sum() <= likelihood + 1e-6


def test_exponential_p_values_are_known_in_closed_form() -> None:
    np.testing.assert_allclose(GammaNull(shape=1.0, scale=2.0).p_values(np.array([-1.0, 0.0, 2.0, 8.0])), [1, 1, np.exp(-1), np.exp(-4)])


def test_empirical_p_values_are_counted() -> None:
    null = fit_empirical(np.array([3.0, 1.0, 2.0, 2.0]))
    np.testing.assert_array_equal(null.p_values(np.array([0.0, 1.0, 1.5, 2.0, 3.0, 4.0])), np.array([5, 5, 4, 4, 2, 1]) / 5)


def test_the_tail_meets_the_body_without_a_jump_and_the_body_is_empirical() -> None:
    scores = _gammas(1_000, 3)
    null, u = fit_tail(scores, quantile=0.9), np.sort(scores)[899]
    assert (null.body[-1], null.exceedances) == (u, 100)
    at, above = null.p_values(np.array([u, np.nextafter(u, np.inf)]))
    assert at == 102 / 1001  # the threshold itself and the hundred above it, and the new one
    assert above == pytest.approx(at, rel=1e-9)
    below = scores[scores <= u]
    np.testing.assert_array_equal(null.p_values(below), fit_empirical(scores).p_values(below))


def test_a_tail_of_known_shape_is_found_and_extrapolated() -> None:
    scores = stats.genpareto.rvs(0.4, scale=2.0, size=20_000, random_state=np.random.default_rng(4))
    null = fit_tail(scores, quantile=0.9)
    assert null.shape == pytest.approx(0.4, abs=0.08)
    assert null.scale == pytest.approx(2.0 + 0.4 * null.body[-1], rel=0.1)  # the excess of a Pareto is one of the same shape
    far = stats.genpareto.isf(1e-6, 0.4, scale=2.0)  # twenty times rarer than the rarest seen
    assert 2e-7 < null.p_values(np.array([far]))[0] < 5e-6


def test_a_tail_that_ends_does_not_give_zero_beyond_its_end() -> None:
    scores = np.random.default_rng(5).random(2_000)
    null = fit_tail(scores)
    assert null.shape == 0
    first, second = null.p_values(np.array([1.2, 1.4]))
    assert first > second > 0


def test_only_the_tail_needs_its_twenty_scores() -> None:
    scores = np.arange(1.0, 31.0)
    fit_gamma(scores)
    with pytest.raises(CalibrationError, match=r"at least 20 scores above its threshold, got 3 of 30 above the 0\.9 quantile"):
        fit_tail(scores)
    assert fit_tail(scores, quantile=0.3).exceedances == 21


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.array([]), "at least"),
        (np.array([1.0]), "at least"),
        (np.full(100, 0.5), "all 100 normal scores are 0.5"),
        (np.append(_gammas(100, 0), np.nan), "1 of 101 that are not"),
        (np.append(_gammas(100, 0), np.inf), "1 of 101 that are not"),
        (_gammas(100, 0)[None], "shape"),
    ],
)
def test_scores_that_tell_nothing_are_refused(fit, scores: np.ndarray, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        fit(scores)


def test_gamma_refuses_few_scores_and_scores_that_are_not_positive() -> None:
    with pytest.raises(CalibrationError, match="expected at least 10 normal scores, got 9"):
        fit_gamma(np.arange(1.0, 10.0))
    with pytest.raises(CalibrationError, match=r"scores above 0, got -0\.5; use fit_empirical or fit_tail"):
        fit_gamma(np.append(_gammas(20, 0), -0.5))


@pytest.mark.parametrize("quantile", [0.0, 1.0, -0.1, np.nan])
def test_a_quantile_outside_its_range_is_refused(quantile: float) -> None:
    with pytest.raises(ValueError, match=r"expected a quantile in \(0, 1\)"):
        fit_tail(_gammas(500, 0), quantile=quantile)


@pytest.mark.parametrize("fit", FITS)
def test_a_fit_survives_json(fit) -> None:
    null: Null = fit(_gammas(300, 6))
    again = null_from_dict(json.loads(json.dumps(null_to_dict(null))))
    assert again == null
    np.testing.assert_array_equal(again.p_values(_gammas(50, 7)), null.p_values(_gammas(50, 7)))
    with pytest.raises(CalibrationError, match="finite"):
        again.p_values(np.array([np.nan]))


@pytest.mark.parametrize(
    "document",
    [
        {"kind": "normal"},
        {},
        {"kind": "gamma", "shape": 1.0},
        {"kind": "gamma", "shape": -1.0, "scale": 1.0},
        {"kind": "gamma", "shape": "1", "scale": 1.0},
        {"kind": "gamma", "shape": 1.0, "scale": float("nan")},
        {"kind": "gamma", "shape": 1.0, "scale": 1.0, "location": 0.0},
        {"kind": "empirical", "scores": []},
        {"kind": "empirical", "scores": [2.0, 1.0]},
        {"kind": "empirical", "scores": ["a", "b"]},
        {"kind": "tail", "body": [1.0], "exceedances": 0, "shape": 0.1, "scale": 1.0},
        {"kind": "tail", "body": [1.0], "exceedances": 3, "shape": -0.1, "scale": 1.0},
    ],
)
def test_a_document_that_is_no_distribution_is_refused(document: dict) -> None:
    with pytest.raises(CalibrationError):
        null_from_dict(document)


@pytest.mark.parametrize("values", [(1, 2, 3, 4), (1, 1, 2, 2), (1, 1, 1, 2), (5, 5, 5, 5), (1, 2, 2), (1, 2)])
def test_conformal_p_values_are_super_uniform_in_every_order(values: tuple[int, ...]) -> None:
    """All orders of n + 1 exchangeable scores, the last of which is the new one: P(p <= a) <= a, and equal without ties."""
    orders = list(itertools.permutations(values))
    p = np.array([conformal_p_values(np.array(order[:-1], float), np.array(order[-1:], float))[0] for order in orders])
    for k in range(len(values) + 1):
        a = Fraction(k, len(values))
        called = Fraction(int((p <= float(a) + 1e-12).sum()), len(orders))
        assert called == a if len(set(values)) == len(values) else called <= a


@pytest.mark.parametrize("values", [(1, 2, 3, 4), (1, 1, 2, 2), (5, 5, 5, 5)])
def test_randomised_conformal_p_values_are_uniform_whatever_the_ties(values: tuple[int, ...]) -> None:
    rng = np.random.default_rng(8)
    p = []
    for new in range(len(values)):
        rest = np.array(values[:new] + values[new + 1 :], float)
        p.append(conformal_p_values(rest, np.full(5_000, values[new], float), rng=rng))
    p = np.concatenate(p)
    assert p.min() > 0
    assert p.max() <= 1
    assert stats.kstest(p, "uniform").statistic < 0.015


@given(SCORES, SCORES)
def test_conformal_p_values_are_the_definition(calibration: list[float], scores: list[float]) -> None:
    found = conformal_p_values(np.array(calibration), np.array(scores))
    expected = [(1 + sum(other >= score for other in calibration)) / (len(calibration) + 1) for score in scores]
    np.testing.assert_array_equal(found, expected)
    randomised = conformal_p_values(np.array(calibration), np.array(scores), rng=np.random.default_rng(0))
    assert (randomised <= found).all()


@given(SCORES, SCORES, st.sampled_from([0.07, 0.1, 0.25, 0.29, 0.5, 0.9]))
def test_what_reaches_the_conformal_threshold_is_what_has_a_p_value_of_at_most_the_rate(
    calibration: list[float], scores: list[float], rate: float
) -> None:
    if rate * (len(calibration) + 1) < 1:
        with pytest.raises(CalibrationError, match=f"rate of {rate:g} needs at least"):
            conformal_threshold(np.array(calibration), rate)
        return
    threshold = conformal_threshold(np.array(calibration, np.float32), rate)
    p = conformal_p_values(np.array(calibration), np.array(scores))
    np.testing.assert_array_equal(np.array(scores, np.float32) >= np.float32(threshold.value), p <= rate + 1e-12)


def test_the_conformal_threshold_says_what_it_guarantees_and_what_it_needs() -> None:
    threshold = conformal_threshold(np.arange(99.0), 0.05)
    assert threshold.value == np.nextafter(94.0, np.inf)
    assert threshold.rule == "conformal false-positive rate of at most 0.05"
    assert threshold.detail == "guaranteed 0.0500 from 99 calibration scores"
    with pytest.raises(CalibrationError, match="needs at least 19 calibration scores, got 18"):
        conformal_threshold(np.arange(18.0), 0.05)
    assert conformal_threshold(np.arange(19.0), 0.05).value == np.nextafter(18.0, np.inf)


def test_the_conformal_false_positive_rate_holds_over_many_calibrations() -> None:
    rng = np.random.default_rng(9)
    called = [rng.normal() >= conformal_threshold(rng.normal(size=24), 0.1).value for _ in range(5_000)]
    assert abs(np.mean(called) - 2 / 25) < 0.013  # floor(0.1 × 25) / 25 without ties; three and a half standard errors


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0, np.nan])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"expected a false-positive rate in \(0, 1\)"):
        conformal_threshold(np.arange(10.0), rate)


def test_conformal_calibration_without_scores_or_with_bad_ones_is_refused() -> None:
    for bad, message in ((np.array([]), "at least one"), (np.array([np.nan]), "finite"), (np.zeros((2, 2)), "shape")):
        with pytest.raises(CalibrationError, match=message):
            conformal_p_values(bad, np.array([1.0]))
    with pytest.raises(CalibrationError, match="finite"):
        conformal_p_values(np.array([1.0]), np.array([np.inf]))
    assert conformal_p_values(np.array([1.0]), np.array([])).shape == (0,)


def test_fits_are_frozen() -> None:
    for null in (GammaNull(1.0, 1.0), EmpiricalNull((1.0,)), TailNull((1.0,), 1, 0.0, 1.0)):
        with pytest.raises(AttributeError):
            null.kind = "other"
