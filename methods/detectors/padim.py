"""PaDiM (Defard et al. 2021, "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization").

At every place (i, j) of the grid the joined features x_ij of normal images are taken for a Gaussian (section III-B):
    Σ_ij = 1/(N − 1) Σ_k (x_ij^k − μ_ij)(x_ij^k − μ_ij)ᵀ + ε I  (eq. 1),   M(x_ij) = √((x_ij − μ_ij)ᵀ Σ_ij⁻¹ (x_ij − μ_ij))  (eq. 2).
The map is M, the score of an image its maximum. It expects images that are registered: a place is compared with itself only.

Paper: ε = 0.01, a random choice of dimensions, kept for good; the shallowest layer's grid, onto which coarser layers are laid without
interpolation; WideResNet-50-2, layers 1 to 3, with 550 of 1,792 dimensions, or ResNet-18 with 100 of 448; 224 px; Gaussian of σ 4 over the
map. Ours: the bundled backbone with 100 of 176 dimensions; means and covariances are summed up image by image, so that memory does not grow
with the number of images; M is the length of L⁻¹ (x − μ) with Σ = L Lᵀ, one product a place.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from methods.detectors.interface import DetectorError, Scores, check_images
from methods.detectors.networks.backbones import BackboneConfig, build_backbone
from methods.detectors.networks.grids import join_on_grid
from methods.detectors.networks.smoothing import smooth

_PLACES_AT_ONCE = 256  # whose covariances are inverted together, in float64


class PaDiMConfig(BaseModel):
    """Hyperparameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["padim"] = "padim"
    input_size_px: int = Field(default=224, ge=32, multiple_of=32)
    backbone: BackboneConfig = BackboneConfig(layers=("block2", "block4", "block10"))
    dimensions: int = Field(default=100, ge=1, description="of the features, chosen at random; all if there are no more")
    ridge: float = Field(default=0.01, gt=0, description="ε, added to the variances")
    smoothing_sigma_px: float = Field(default=4.0, ge=0, description="of the Gaussian over the map, at input size")
    batch_size: int = Field(default=16, ge=1, description="images scored at once")

    @property
    def map_size_px(self) -> int | None:
        """Height and width of its anomaly maps; None for a detector without maps."""
        return self.input_size_px


class PaDiM(nn.Module):
    """A Gaussian of normal features at every place; what is far from it, in its own deviations, is anomalous."""

    chosen: Tensor
    mean: Tensor
    whitening: Tensor

    def __init__(self, config: PaDiMConfig) -> None:
        """Draws the dimensions from torch's global generator."""
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.backbone = build_backbone(config.backbone)
        self.side = config.input_size_px // min(self.backbone.strides_px)
        places, dims = self.side**2, min(config.dimensions, sum(self.backbone.channels))
        self.register_buffer("chosen", torch.randperm(sum(self.backbone.channels))[:dims].sort().values)
        self.register_buffer("mean", torch.zeros(places, dims))
        self.register_buffer("whitening", torch.zeros(places, dims, dims))
        self._count = 0
        self._sum = self._products = torch.empty(0)

    def features(self, images: Tensor) -> Tensor:
        """x (H W, N, C): the chosen dimensions of all layers' features at every place of the finest layer's grid."""
        x = join_on_grid(self.backbone(images), side=self.side, upsampling="nearest")  # (N, H, W, all dimensions)
        return x.flatten(1, 2)[..., self.chosen].transpose(0, 1).contiguous()

    def observe(self, images: Tensor) -> None:
        """Add a batch of normal images to the sums that mean and covariance are made of."""
        check_images(images, input_size_px=self.input_size_px)
        x = self.features(images).cpu().double()  # (places, n, C)
        if not self._count:
            self._sum, self._products = torch.zeros_like(x[:, 0]), x.new_zeros(len(x), x.shape[2], x.shape[2])
        self._count += x.shape[1]
        self._sum += x.sum(1)
        self._products.baddbmm_(x.transpose(1, 2), x)

    def conclude(self, generator: torch.Generator) -> None:
        """Mean and, from the covariance, L⁻¹ at every place; nothing is drawn.

        Raises:
            DetectorError: fewer than two images, of which there is no covariance.
        """
        N, products = self._count, self._products
        if N < 2:
            raise DetectorError(f"PaDiM needs at least 2 training images, got {N}")
        mean = self._sum / N
        self.mean.copy_(mean)
        for first in range(0, len(mean), _PLACES_AT_ONCE):
            part = slice(first, first + _PLACES_AT_ONCE)
            covariance = (products[part] - N * mean[part, :, None] * mean[part, None]) / (N - 1)
            self.whitening[part] = _invert_root(covariance, ridge=self.config.ridge)
        self._count, self._sum, self._products = 0, torch.empty(0), torch.empty(0)

    def score(self, images: Tensor) -> Scores:
        """Pixel: Mahalanobis distance at each place, bilinear and smoothed; image: the largest of the map."""
        check_images(images, input_size_px=self.input_size_px)
        if not self.whitening[0].any():
            raise DetectorError("PaDiM has learnt nothing yet: train it, or load a bundle")
        pixel = nn.functional.interpolate(self.measure(images)[:, None], images.shape[-2:], mode="bilinear", align_corners=False)
        pixel = smooth(pixel, sigma_px=self.config.smoothing_sigma_px)[:, 0]
        return Scores(image=pixel.amax((1, 2)), pixel=pixel)

    def measure(self, images: Tensor) -> Tensor:
        """M (N, H, W) at every place of the grid."""
        deviation = self.features(images) - self.mean[:, None]  # (places, N, C)
        whitened = deviation @ self.whitening.transpose(1, 2)
        return whitened.square().sum(2).sqrt().T.unflatten(1, (self.side, self.side))


def _invert_root(covariance: Tensor, *, ridge: float) -> Tensor:
    """L⁻¹ (n, C, C) float64 with L Lᵀ = covariance (n, C, C) float64 + ridge I."""
    identity = torch.eye(covariance.shape[1], dtype=covariance.dtype, device=covariance.device)
    root = torch.linalg.cholesky(covariance + ridge * identity)
    return torch.linalg.solve_triangular(root, identity.expand_as(root), upper=False)
