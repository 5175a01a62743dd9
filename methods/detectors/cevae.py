"""The context-encoding VAE (Zimmerer et al. 2018, "Context-encoding Variational Autoencoder for Unsupervised Anomaly Detection").

A VAE with q(z|x) = N(μ(x), diag σ²(x)) and p(x|z) = N(g(z), I) learns on images x, and as a denoiser on images x̃ with square patches cut
out, whose target is the image before the cut:
    L = KL(q(z|x) ‖ p(z)) + ½ |x − g(z)|² + ½ |x − g(μ(x̃))|²,   z ~ q(z|x).
The score of a place is its reconstruction error times the gradient of the negative evidence lower bound there, both at z = μ(x).

Paper and its author's public code (MIC-DKFZ, mood): these terms; the product; the gradient smoothed by a Gaussian of σ 3, then multiplied;
the image score is the negative lower bound. The code's scaling of gradients to the range of the batch would make a score depend on its
neighbours and is left out. The paper's own widths are replaced by those of the comparative study of brain MRI (`networks/unified.py`),
from whose public code also come: latent 128, Adam 1e-4, batch 8, one to three patches of 20 px in 128, filled with 0, images in [0, 1].
That code has the masked image as the target and an absolute error; not here. Ours: 256 × 256 and the squared error, as SANO's comparison
has them; the number of epochs; the mean over channels of the error and of the gradient's magnitude.
"""

from typing import Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from methods.detectors.interface import Scores, SelectionRule, check_images
from methods.detectors.networks.modes import evaluation_mode
from methods.detectors.networks.smoothing import smooth
from methods.detectors.networks.unified import UnifiedDecoder, UnifiedEncoder
from methods.detectors.sizes import PowerOfTwo
from methods.detectors.vae import gaussian_kl, half_squared_error, reparameterise


class ContextEncodingVAEConfig(BaseModel):
    """Hyperparameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cevae"] = "cevae"
    input_size_px: PowerOfTwo = Field(default=256, ge=16, description="a power of two")
    latent: int = Field(default=128, ge=1, description="length of z")
    kl_weight: float = Field(default=1.0, ge=0, description="weight of the KL term")
    context_weight: float = Field(default=1.0, ge=0, description="weight of the term with patches cut out; 0 leaves a plain VAE")
    min_patches: int = Field(default=1, ge=1, description="least number of patches cut out of an image")
    max_patches: int = Field(default=3, ge=1, description="greatest number of patches cut out of an image")
    patch_share: float = Field(default=20 / 128, gt=0, lt=1, description="side of a patch as a share of the image's")
    smoothing_sigma_px: float = Field(default=3.0, ge=0, description="of the Gaussian over the gradient")
    learning_rate: float = Field(default=1e-4, gt=0)
    epochs: int = Field(default=100, ge=1)
    training_batch_size: int = Field(default=8, ge=2, description="at least 2, for the batch normalisation")
    batch_size: int = Field(default=8, ge=1, description="images scored at once")

    @property
    def map_size_px(self) -> int | None:
        """Height and width of its anomaly maps; None for a detector without maps."""
        return self.input_size_px

    @property
    def patch_size_px(self) -> int:
        """Side of a patch."""
        return max(1, round(self.patch_share * self.input_size_px))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_patches < self.min_patches:
            raise ValueError(f"expected min_patches <= max_patches, got {self.min_patches} and {self.max_patches}")
        if int(4 * self.smoothing_sigma_px + 0.5) >= self.input_size_px:
            raise ValueError(f"expected smoothing_sigma_px below a quarter of input_size_px, got {self.smoothing_sigma_px}")
        return self


class Deviation(NamedTuple):
    """How far images are from what the model expects.

    Attributes:
        bound: (N,) negative evidence lower bound ½ |x − g(μ)|² + λ KL.
        gradient: (N, 3, H, W) its derivative by the image.
        reconstruction: (N, 3, H, W) g(μ).
    """

    bound: Tensor
    gradient: Tensor
    reconstruction: Tensor


def cut_patches(images: Tensor, *, size_px: int, min_patches: int, max_patches: int) -> Tensor:
    """Images (N, C, H, W) with square patches set to 0, their number and places drawn for each from torch's global generator.

    Args:
        images: left as they are.
        size_px: side of a patch, at most H and W.
        min_patches: least number in an image; patches may overlap.
        max_patches: greatest number in an image.
    """
    count, _, height, width = images.shape
    each = (count, max_patches, 1)
    top = torch.randint(0, height - size_px + 1, each, device=images.device)
    left = torch.randint(0, width - size_px + 1, each, device=images.device)
    number = torch.randint(min_patches, max_patches + 1, (count, 1, 1), device=images.device)
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    rows = (y >= top) & (y < top + size_px)  # (N, patches, H)
    columns = (x >= left) & (x < left + size_px)  # (N, patches, W)
    is_used = torch.arange(max_patches, device=images.device)[:, None] < number  # (N, patches, 1)
    is_cut = ((rows & is_used)[..., :, None] & columns[..., None, :]).any(1, keepdim=True)  # (N, 1, H, W)
    return images.masked_fill(is_cut, 0.0)


class ContextEncodingVAE(nn.Module):
    """Learns a distribution of normal images and to fill in what is missing; a place that both find unlikely is anomalous."""

    selected_by: SelectionRule = "loss"

    def __init__(self, config: ContextEncodingVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.epochs = config.epochs
        self.training_batch_size = config.training_batch_size
        self.encoder: nn.Module = UnifiedEncoder(size_px=config.input_size_px, latent=config.latent)
        self.decoder: nn.Module = UnifiedDecoder(size_px=config.input_size_px, latent=config.latent, normalisation="batch")

    def loss(self, images: Tensor) -> Tensor:
        """L averaged over the batch, a scalar; draws from torch's global generator."""
        config = self.config
        mean, log_variance = self.encoder(images)
        z = reparameterise(mean, log_variance, torch.randn_like(mean))
        loss = config.kl_weight * gaussian_kl(mean, log_variance) + half_squared_error(images, self.decoder(z))
        if config.context_weight:
            cut = cut_patches(images, size_px=config.patch_size_px, min_patches=config.min_patches, max_patches=config.max_patches)
            filled_in = self.decoder(self.encoder(cut)[0])
            loss = loss + config.context_weight * half_squared_error(images, filled_in)
        return loss.mean()

    def reconstruct(self, images: Tensor) -> Tensor:
        """The reconstruction (N, 3, H, W), clipped to [0, 1], of images of the same shape."""
        with evaluation_mode(self):
            x: Tensor = self.decoder(self.encoder(images)[0])
        return x.clamp(0, 1)

    def deviation(self, images: Tensor) -> Deviation:
        """The negative lower bound at z = μ(x) and its gradient by the image; also within `torch.inference_mode`."""
        with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(self):
            x = images.detach().clone().requires_grad_()  # a clone made here may have a gradient, an inference tensor may not
            mean, log_variance = self.encoder(x)
            reconstruction = self.decoder(mean)
            bound = half_squared_error(x, reconstruction) + self.config.kl_weight * gaussian_kl(mean, log_variance)
            # of the sum: each image's own gradient, whatever the number of images
            (gradient,) = torch.autograd.grad(bound.sum(), x)
        return Deviation(bound.detach(), gradient, reconstruction.detach())

    def score(self, images: Tensor) -> Scores:
        """Pixel: squared error times the smoothed magnitude of the bound's gradient, at least 0; image: the bound."""
        check_images(images, input_size_px=self.input_size_px)
        bound, gradient, reconstruction = self.deviation(images)
        error = (reconstruction - images).square().mean(1)  # (N, H, W)
        slope = smooth(gradient.abs().mean(1, keepdim=True), sigma_px=self.config.smoothing_sigma_px)[:, 0]
        return Scores(image=bound, pixel=error * slope)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Adam with the study's learning rate."""
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate)
