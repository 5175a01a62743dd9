"""A variational autoencoder and six scores (Lu & Xu 2018, "Anomaly Detection for Skin Disease Images Using Variational Autoencoder").

With prior p(z) = N(0, I), posterior q(z|x) = N(μ(x), diag σ²(x)) and likelihood p(x|z) = N(f(z), λ I), the negative evidence lower bound
(paper, eq. 2), times the constant λ and without another, is what training minimises:
    ½ |x − f(z)|² + λ KL(q(z|x) ‖ p(z)),   z = μ + σ ε,   ε ~ N(0, I).
The scores, from L samples z_l of q(z|x) and the importance weights w_l = p(x|z_l) p(z_l) / q(z_l|x):
    vae = vae-reconstruction + vae-kl      vae-reconstruction = −1/L Σ log p(x|z_l)      vae-kl = KL(q(z|x) ‖ p(z))
    iwae = −log 1/L Σ w_l      iwae-reconstruction = −log 1/L Σ p(x|z_l)      iwae-kl = −log 1/L Σ p(z_l) / q(z_l|x)
All are in nats, but for the constant D/2 log 2πλ of the likelihood; iwae falls to −log p(x) as L grows (Burda et al. 2016). In the paper's
unit, that of the loss, vae and vae-reconstruction are λ times ours, which changes no ranking.

Paper: five blocks down and up for 128 × 128, latent 300, λ = 0.01, Adam 1e-4, batch 32, 40 epochs, L = 15, images in [-1, 1]. From its
public code: 64 channels in the first block, tanh at the end. The code lacks factors of ½ and the log-variance in its importance weights,
weighs log p(z)/q(z|x) instead of the likelihood, and scores in training mode; none of these here. Its augmentation is left out. Ours: the
weights begin as PyTorch has them; the same noise for every image; which score is the default (best of the paper's table); the map.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from methods.detectors.interface import Scores, SelectionRule, check_images
from methods.detectors.networks.dcgan import DCGANDecoder, DCGANEncoder
from methods.detectors.networks.modes import evaluation_mode
from methods.detectors.sizes import PowerOfTwo

Score = Literal["vae", "vae-reconstruction", "vae-kl", "iwae", "iwae-reconstruction", "iwae-kl"]


class VAEConfig(BaseModel):
    """Hyperparameters; the defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scoring_only: ClassVar[frozenset[str]] = frozenset({"score", "samples", "noise_seed"})  # no part in training: see `trains_alike`

    kind: Literal["vae"] = "vae"
    score: Score = Field(default="vae", description="which of the six is the image score")
    input_size_px: PowerOfTwo = Field(default=128, ge=8, description="a power of two")
    width: int = Field(default=64, ge=1, description="channels of the first block; each next one has twice as many")
    latent: int = Field(default=300, ge=1, description="length of z")
    kl_weight: float = Field(default=0.01, gt=0, description="λ, the weight of the KL term, which is the variance of p(x|z)")
    samples: int = Field(default=15, ge=1, description="L, samples of z for the scores")
    noise_seed: int = Field(default=0, ge=0, description="of the noise that every scored image gets")
    learning_rate: float = Field(default=1e-4, gt=0)
    epochs: int = Field(default=40, ge=1)
    training_batch_size: int = Field(default=32, ge=2, description="at least 2, for the batch normalisation")
    batch_size: int = Field(default=16, ge=1, description="images scored at once")

    @property
    def map_size_px(self) -> int | None:
        """Height and width of its anomaly maps; None for a detector without maps."""
        return self.input_size_px


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_variance)) ‖ N(0, I)) in nats, (N,), at least 0, of two (N, d)."""
    mean, log_variance = _widen(mean), _widen(log_variance)
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def log_normal(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(x; mean, diag exp(log_variance)) in nats, summed over the last dimension."""
    x, mean, log_variance = _widen(x), _widen(mean), _widen(log_variance)
    return -0.5 * ((x - mean).square() / log_variance.exp() + log_variance + math.log(2 * math.pi)).sum(-1)


def half_squared_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """½ |x − reconstruction|² (N,), summed over all components: −log N(x; reconstruction, I) but for a constant."""
    return 0.5 * (_widen(x) - _widen(reconstruction)).square().flatten(1).sum(1)


def reparameterise(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """The sample z = μ + σ ε of N(mean, diag exp(log_variance))."""
    return mean + (0.5 * log_variance).exp() * noise


def log_mean_exp(x: Tensor) -> Tensor:
    """log 1/L Σ exp(x_l) over the last dimension, without overflow."""
    return torch.logsumexp(_widen(x), -1) - math.log(x.shape[-1])


def six_scores(log_likelihood: Tensor, log_prior: Tensor, log_posterior: Tensor, kl: Tensor) -> dict[Score, Tensor]:
    """The scores of the paper (eq. 4-6 and 8-10) from L samples z_l of q(z|x).

    Args:
        log_likelihood: (N, L) log p(x|z_l).
        log_prior: (N, L) log p(z_l).
        log_posterior: (N, L) log q(z_l|x).
        kl: (N,) KL(q(z|x) ‖ p(z)).

    Returns:
        (N,) each, in nats, at least float32; higher is more anomalous.
    """
    reconstruction = -_widen(log_likelihood).mean(-1)
    return {
        "vae": reconstruction + kl,
        "vae-reconstruction": reconstruction,
        "vae-kl": kl,
        "iwae": -log_mean_exp(log_likelihood + (log_prior - log_posterior)),
        "iwae-reconstruction": -log_mean_exp(log_likelihood),
        "iwae-kl": -log_mean_exp(log_prior - log_posterior),
    }


class VAE(nn.Module):
    """Learns a distribution of normal images; what is unlikely under it is anomalous."""

    selected_by: SelectionRule = "loss"

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.epochs = config.epochs
        self.training_batch_size = config.training_batch_size
        self.encoder: nn.Module = DCGANEncoder(size_px=config.input_size_px, width=config.width, latent=config.latent)
        self.decoder: nn.Module = DCGANDecoder(size_px=config.input_size_px, width=config.width, latent=config.latent)

    def loss(self, images: Tensor) -> Tensor:
        """½ |x − f(z)|² + λ KL with one sample of z an image, averaged over the batch; draws from torch's global generator."""
        x = 2 * images - 1
        mean, log_variance = self.encoder(x)
        z = reparameterise(mean, log_variance, torch.randn_like(mean))
        return (half_squared_error(x, self.decoder(z)) + self.config.kl_weight * gaussian_kl(mean, log_variance)).mean()

    def latents(self, images: Tensor) -> Tensor:
        """Means μ(x) (N, latent) of images in [0, 1], in evaluation mode."""
        with evaluation_mode(self):
            mean: Tensor = self.encoder(2 * images - 1)[0]
        return mean

    def reconstruct(self, images: Tensor) -> Tensor:
        """The mean of the L reconstructions, (N, 3, H, W) in [0, 1], of images of the same shape."""
        return self._sample(images)[1]

    def all_scores(self, images: Tensor) -> dict[Score, Tensor]:
        """All six scores of images in [0, 1], each (N,) float32 in nats, from the same L passes of the decoder."""
        check_images(images, input_size_px=self.input_size_px)
        return self._sample(images)[0]

    def score(self, images: Tensor) -> Scores:
        """Image: the configured score; pixel: squared error of the mean reconstruction, averaged over the channels, in [0, 1]."""
        check_images(images, input_size_px=self.input_size_px)
        scores, reconstruction = self._sample(images)
        return Scores(image=scores[self.config.score], pixel=(reconstruction - images).square().mean(1))

    def _sample(self, images: Tensor) -> tuple[dict[Score, Tensor], Tensor]:
        """The six scores and the mean reconstruction; one pass of the encoder and L of the decoder."""
        x, config = 2 * images - 1, self.config
        generator = torch.Generator().manual_seed(config.noise_seed)
        noise = torch.randn(config.samples, config.latent, generator=generator).to(x.device)  # (L, d)
        with evaluation_mode(self):
            mean, log_variance = self.encoder(x)
            z = reparameterise(mean[:, None], log_variance[:, None], noise)  # (N, L, d)
            total, log_likelihood = torch.zeros_like(x), []
            for z_l in z.unbind(1):  # one at a time: all at once would need L times the memory
                f = self.decoder(z_l)
                total += f
                log_likelihood.append(-half_squared_error(x, f) / config.kl_weight)
        scores = six_scores(
            torch.stack(log_likelihood, 1),
            log_normal(z, torch.zeros_like(z), torch.zeros_like(z)),
            log_normal(z, mean[:, None], log_variance[:, None]),
            gaussian_kl(mean, log_variance),
        )
        return scores, (total / config.samples + 1) / 2

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Adam with the paper's learning rate."""
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate)


def _widen(x: Tensor) -> Tensor:
    """At least float32: sums and exponentials of half precision are of no use."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
