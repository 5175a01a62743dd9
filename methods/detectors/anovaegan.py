"""AnoVAEGAN (Baur et al. 2018, "Deep Autoencoding Models for Unsupervised Anomaly Segmentation in Brain MR Images").

A VAE whose reconstructions x̂ = G(z), z ~ q(z|x), must also convince a critic D (WGAN-GP, Gulrajani et al. 2017, eq. 3):
    L_D = D(x̂) − D(x) + λ (|∇ D(x̃)|₂ − 1)²,   x̃ = x + α (x̂ − x),   α ~ U[0, 1] for each image,
    L_VAE = ½ |x − x̂|² + KL(q(z|x) ‖ N(0, I)) − w D(x̂).
The norm of the gradient is over all pixels and channels of an image. The score is the squared error of the reconstruction at z = μ(x).

Paper: the model, λ = 10. Its spatial latent is replaced by the bottleneck of the later comparative study of the same group
(`networks/unified.py`, layer normalisation in generator and critic), from whose public code also come: latent 128, Adam 1e-4 with
β (0.5, 0.9), batch 8, five critic steps for each of the others, weights 1, images in [0, 1]. There the norm is over one axis only and the
penalty on the sum of the critic's places where the loss has their mean; not here. Ours: 256 × 256 and the squared error, as SANO's
comparison has them; encoder and generator learn from one sum, where that code keeps the critic's term from the encoder; the epochs.
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from methods.detectors.interface import Scores, SelectionRule, check_images
from methods.detectors.networks.modes import evaluation_mode, frozen
from methods.detectors.networks.unified import UnifiedCritic, UnifiedDecoder, UnifiedEncoder
from methods.detectors.sizes import PowerOfTwo
from methods.detectors.vae import gaussian_kl, half_squared_error, reparameterise


class AnoVAEGANConfig(BaseModel):
    """Hyperparameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["anovaegan"] = "anovaegan"
    input_size_px: PowerOfTwo = Field(default=256, ge=16, description="a power of two")
    latent: int = Field(default=128, ge=1, description="length of z")
    kl_weight: float = Field(default=1.0, ge=0, description="weight of the KL term")
    adversarial_weight: float = Field(default=1.0, ge=0, description="w, weight of the critic's opinion of the reconstruction")
    gradient_penalty: float = Field(default=10.0, ge=0, description="λ, weight of the critic's gradient penalty")
    critic_steps: int = Field(default=5, ge=1, description="batches that the critic learns from for each that the VAE learns from")
    learning_rate: float = Field(default=1e-4, gt=0)
    epochs: int = Field(default=100, ge=1)
    training_batch_size: int = Field(default=8, ge=2, description="at least 2, for the encoder's batch normalisation")
    batch_size: int = Field(default=8, ge=1, description="images scored at once")

    @property
    def map_size_px(self) -> int | None:
        """Height and width of its anomaly maps; None for a detector without maps."""
        return self.input_size_px


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    """(|∇ D(x̃)|₂ − 1)² at x̃ = real + α (fake − real), the norm over everything that makes up a sample.

    Args:
        critic: D, from samples (N, ...) to (N,), each from its own sample alone.
        real: (N, ...).
        fake: of real's shape.
        alpha: (N,) in [0, 1].

    Returns:
        (N,), at least 0, differentiable by the critic's weights.
    """
    each = (-1,) + (1,) * (real.ndim - 1)
    between = (real + alpha.view(each) * (fake - real)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square()


class AnoVAEGAN(nn.Module):
    """Learns reconstructions that look like normal images; what is not reconstructed is anomalous."""

    selected_by: SelectionRule = "loss"

    def __init__(self, config: AnoVAEGANConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.epochs = config.epochs
        self.training_batch_size = config.training_batch_size
        self.critic_steps = config.critic_steps
        self.encoder: nn.Module = UnifiedEncoder(size_px=config.input_size_px, latent=config.latent)
        self.decoder: nn.Module = UnifiedDecoder(size_px=config.input_size_px, latent=config.latent, normalisation="layer")
        self.critic: nn.Module = UnifiedCritic(size_px=config.input_size_px)

    def loss(self, images: Tensor) -> Tensor:
        """L_VAE averaged over the batch, a scalar, with gradients for encoder and generator; draws from torch's global generator."""
        mean, log_variance = self.encoder(images)
        x_hat = self.decoder(reparameterise(mean, log_variance, torch.randn_like(mean)))
        loss = half_squared_error(images, x_hat) + self.config.kl_weight * gaussian_kl(mean, log_variance)
        with frozen(self.critic):
            return (loss - self.config.adversarial_weight * self.critic(x_hat)).mean()

    def critic_loss(self, images: Tensor) -> Tensor:
        """L_D averaged over the batch, a scalar, with gradients for the critic; draws from torch's global generator."""
        with torch.no_grad():
            mean, log_variance = self.encoder(images)
            x_hat = self.decoder(reparameterise(mean, log_variance, torch.randn_like(mean)))
        alpha = torch.rand(len(images), device=images.device)
        penalty = gradient_penalty(self.critic, images, x_hat, alpha)
        return (self.critic(x_hat) - self.critic(images) + self.config.gradient_penalty * penalty).mean()

    def reconstruct(self, images: Tensor) -> Tensor:
        """The reconstruction (N, 3, H, W) at z = μ(x), clipped to [0, 1], of images of the same shape."""
        with evaluation_mode(self):
            x_hat: Tensor = self.decoder(self.encoder(images)[0])
        return x_hat.clamp(0, 1)

    def score(self, images: Tensor) -> Scores:
        """Pixel: squared error averaged over the channels; image: its mean. Both in [0, 1]."""
        check_images(images, input_size_px=self.input_size_px)
        error = (self.reconstruct(images) - images).square().mean(1)  # (N, H, W)
        return Scores(image=error.mean((1, 2)), pixel=error)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Adam over encoder and generator, with the study's settings."""
        weights = [*self.encoder.parameters(), *self.decoder.parameters()]
        return torch.optim.Adam(weights, lr=self.config.learning_rate, betas=(0.5, 0.9))

    def build_critic_optimizer(self) -> torch.optim.Optimizer:
        """Adam over the critic, with the study's settings."""
        return torch.optim.Adam(self.critic.parameters(), lr=self.config.learning_rate, betas=(0.5, 0.9))
