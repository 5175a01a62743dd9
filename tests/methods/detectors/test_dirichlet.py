"""The Dirichlet distribution of highest likelihood, against sampled parameters, the likelihood's gradient and SciPy's likelihood."""

import numpy as np
import pytest
import torch
from scipy.special import digamma
from scipy.stats import dirichlet

from methods.detectors.dirichlet import fit_dirichlet, inverse_digamma


def fit_to(samples: np.ndarray) -> np.ndarray:
    p = torch.from_numpy(samples)
    return fit_dirichlet(p.mean(-2), p.log().mean(-2)).numpy()


@pytest.mark.parametrize("alpha", [(1.0, 1.0, 1.0), (0.3, 2.0, 7.0, 1.5), (20.0, 5.0), (50.0, 0.5, 0.5, 0.5, 0.5)])
def test_known_parameters_are_recovered_from_samples(alpha: tuple[float, ...]) -> None:
    samples = np.random.default_rng(0).dirichlet(alpha, 20_000)
    samples = np.clip(samples, 1e-300, None)
    np.testing.assert_allclose(fit_to(samples), alpha, rtol=0.03)


def test_the_gradient_of_the_likelihood_is_zero_there_and_scipys_likelihood_is_lower_everywhere_near() -> None:
    rng = np.random.default_rng(1)
    samples = rng.dirichlet((0.7, 3.0, 1.2), 200)
    alpha = fit_to(samples)
    gradient = digamma(alpha.sum()) - digamma(alpha) + np.log(samples).mean(0)
    np.testing.assert_allclose(gradient, 0, atol=1e-9)
    likelihood = dirichlet.logpdf(samples.T, alpha).sum()
    for _ in range(20):
        other = alpha * np.exp(0.02 * rng.standard_normal(3))
        assert dirichlet.logpdf(samples.T, other).sum() < likelihood


def test_several_distributions_are_fitted_each_by_itself() -> None:
    rng = np.random.default_rng(2)
    samples = np.stack([rng.dirichlet((1.0, 2.0), 300), rng.dirichlet((9.0, 0.5), 300)])
    together = fit_to(samples)
    np.testing.assert_allclose(together, np.stack([fit_to(samples[0]), fit_to(samples[1])]), rtol=1e-7)


def test_a_network_that_is_nearly_sure_among_72_classes_is_fitted_too() -> None:
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((300, 72)) + 15 * np.eye(72)[7]
    log_p = torch.from_numpy(logits).log_softmax(1)
    alpha = fit_dirichlet(log_p.exp().mean(0), log_p.mean(0))
    gradient = torch.digamma(alpha.sum()) - torch.digamma(alpha) + log_p.mean(0)
    assert alpha.min() > 0
    assert alpha.argmax() == 7
    assert gradient.abs().max() < 1e-8


@pytest.mark.parametrize("sharpness", [0.5, 10.0, 1e4, 1e7])
def test_newtons_method_ends_where_the_fixed_point_stands_still(sharpness: float) -> None:
    rng = np.random.default_rng(4)
    p = torch.from_numpy(np.clip(rng.dirichlet(sharpness * np.array([0.2, 1.0, 3.0]), 500), 1e-300, None))
    alpha = fit_dirichlet(p.mean(0), p.log().mean(0))
    torch.testing.assert_close(inverse_digamma(torch.digamma(alpha.sum()) + p.log().mean(0)), alpha, rtol=1e-7, atol=0)
    assert 0.8 < alpha.sum() / (4.2 * sharpness) < 1.2


def test_the_inverse_of_digamma_is_one() -> None:
    x = torch.logspace(-4, 6, 200, dtype=torch.float64)
    torch.testing.assert_close(inverse_digamma(torch.digamma(x)), x, rtol=1e-9, atol=0)
