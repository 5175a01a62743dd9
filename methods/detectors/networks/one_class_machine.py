"""A one-class support vector machine (Schölkopf et al. 2001, "Estimating the Support of a High-Dimensional Distribution") as a module.

What is kept are the mean and deviation of the features it was fitted to, the support vectors z_i among the standardised ones, their
coefficients α_i, the offset ρ and γ; the decision function f(z) = Σ α_i exp(−γ |z − z_i|²) − ρ is computed from them here, so that a
bundle needs no pickle and no scikit-learn.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from methods.detectors.interface import DetectorError
from methods.detectors.networks.lengths import load_any_length


class OneClassMachine(nn.Module):
    """A region that holds most of the features it was fitted to."""

    mean: Tensor
    std: Tensor
    support_vectors: Tensor
    dual_coefficients: Tensor
    offset: Tensor
    gamma: Tensor

    def __init__(self, dims: int) -> None:
        super().__init__()
        # float64: f is a difference of nearly equal sums
        self.register_buffer("mean", torch.zeros(dims, dtype=torch.float64))
        self.register_buffer("std", torch.ones(dims, dtype=torch.float64))
        self.register_buffer("support_vectors", torch.empty(0, dims, dtype=torch.float64))
        self.register_buffer("dual_coefficients", torch.empty(0, dtype=torch.float64))
        self.register_buffer("offset", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("gamma", torch.ones(1, dtype=torch.float64))
        load_any_length(self, "support_vectors", "dual_coefficients")

    @property
    def is_fitted(self) -> bool:
        """Whether there is a region."""
        return bool(len(self.support_vectors))

    def fit(self, features: Tensor, *, nu: float, gamma: float | Literal["scale"], most: int, generator: torch.Generator) -> None:
        """Standardise, draw `most` of them if there are more, and fit.

        Args:
            features: (n, C) of normal images.
            nu: ν, upper bound on the share of them outside.
            gamma: γ; scale for 1 / (dimensions × variance of all features).
            most: that are fitted.
            generator: draws them.

        Raises:
            DetectorError: fewer than two, or no two different ones.
        """
        from sklearn.svm import OneClassSVM  # here, because it takes seconds to import and scoring does without

        if len(features) < 2:
            raise DetectorError(f"a one-class SVM needs at least 2 training images, got {len(features)}")
        device, features = self.mean.device, features.double()
        mean, std = features.mean(0), features.std(0, correction=0)
        if not std.any():
            raise DetectorError(f"the latents of all {len(features)} training images are the same: there is nothing to learn")
        std[std == 0] = 1  # a feature that never varies stays 0
        z = (features - mean) / std
        if len(z) > most:
            z = z[torch.randperm(len(z), generator=generator)[:most]]
        width = 1 / (z.shape[1] * float(z.var(correction=0))) if gamma == "scale" else gamma
        machine = OneClassSVM(kernel="rbf", nu=nu, gamma=width).fit(z.numpy())
        with torch.inference_mode(False):  # tensors that a later training may load over
            self.mean, self.std = (torch.from_numpy(known.numpy()).to(device) for known in (mean, std))
            self.support_vectors = torch.from_numpy(machine.support_vectors_).to(device)
            self.dual_coefficients = torch.from_numpy(machine.dual_coef_[0].copy()).to(device)
            self.offset = torch.tensor([-machine.intercept_[0]], dtype=torch.float64, device=device)
            self.gamma = torch.tensor([width], dtype=torch.float64, device=device)

    def decision(self, features: Tensor) -> Tensor:
        """f (N,) float64 of features (N, C), not standardised: above 0 inside; scikit-learn's `decision_function`.

        Raises:
            DetectorError: nothing was fitted.
        """
        if not self.is_fitted:
            raise DetectorError("the one-class SVM has learnt nothing yet: train it, or load a bundle")
        z = (features.double() - self.mean) / self.std
        # one image at a time: differences lose no digits, and nothing depends on the batch
        kernels = [torch.exp(-self.gamma * (self.support_vectors - one).square().sum(1)) @ self.dual_coefficients for one in z]
        return torch.stack(kernels) - self.offset if kernels else z.new_empty(0)
