"""The Dirichlet distribution that fits vectors of probabilities best (Minka 2000, "Estimating a Dirichlet distribution").

The likelihood depends on the vectors by the mean of log p alone; it is highest where
    ψ(α_k) = ψ(s) + mean log p_k   for all k,   s = Σ α,
to which the fixed point α_k ← ψ⁻¹(ψ(Σ α) + mean log p_k) (eq. 9) leads. Since its right side knows α by s only, one number has to be found:
the s at which h(s) = Σ ψ⁻¹(ψ(s) + mean log p_k) − s is 0. Newton's method does so in a few steps where the fixed point, by which Golan &
El-Yaniv's public code finds the same α, needs up to a thousand; where h rises, which is below the solution, s takes a step of the fixed
point. Of that code are the start (Wicker et al. 2008, eq. 8) and the steps of ψ⁻¹.
"""

import torch
from torch import Tensor

_NEWTON_STEPS = 5  # of ψ⁻¹
_EULER = 0.5772156649015329  # −ψ(1)


def fit_dirichlet(mean_p: Tensor, mean_log_p: Tensor, *, max_steps: int = 100, tolerance: float = 1e-10) -> Tensor:
    """Parameters α (..., K) float64 of the distributions of highest likelihood, each by itself, above 0.

    Args:
        mean_p: (..., K) float64, the mean of the probabilities; for the start.
        mean_log_p: (..., K) float64, the mean of their logarithms: at most log(mean_p), and below it somewhere, or no maximum exists.
        max_steps: of Newton's method.
        tolerance: relative change of s after which to stop.
    """
    spread = (mean_p * (mean_p.log() - mean_log_p)).sum(-1, keepdim=True)
    s = (mean_p.shape[-1] - 1) * _EULER / spread  # (..., 1)
    for _ in range(max_steps):
        alpha = inverse_digamma(torch.digamma(s) + mean_log_p)
        total = alpha.sum(-1, keepdim=True)
        slope = (torch.polygamma(1, s) / torch.polygamma(1, alpha)).sum(-1, keepdim=True) - 1  # h'(s)
        newton = s - (total - s) / slope
        before, s = s, torch.where((slope < 0) & (newton > 0), newton, total)
        if ((s - before).abs() < tolerance * s).all():
            break
    return inverse_digamma(torch.digamma(s) + mean_log_p)


def inverse_digamma(y: Tensor) -> Tensor:
    """x above 0 with ψ(x) = y, float64: Newton's method from Minka's start (appendix C)."""
    x = torch.where(y >= -2.22, y.exp() + 0.5, -1 / (y + _EULER))
    for _ in range(_NEWTON_STEPS):
        x = x - (torch.digamma(x) - y) / torch.polygamma(1, x)
    return x
