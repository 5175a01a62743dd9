"""GANomaly (Akcay et al. 2018, "GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training").

An image goes through encoder, decoder and a second encoder, z = G_E(x), x̂ = G_D(z), ẑ = E(x̂), against a discriminator D with features f:
    L_adv = |f(x) − f(x̂)|²   (eq. 1),      L_con = |x − x̂|₁   (eq. 2),      L_enc = |z − ẑ|²   (eq. 3),
    L = w_adv L_adv + w_con L_con + w_enc L_enc   (eq. 4),      L_D = −log D(x) − log(1 − D(x̂)).
The score is A(x) = |z − ẑ|₁ (eq. 5).

Paper: the networks (DCGAN's, 32 × 32), weights 1, 50 and 1, latent 100, Adam with β (0.5, 0.999), images in [-1, 1]. From its public code:
each norm is a mean over components, f is all of D but its last layer, 64 channels, batch 64, Adam 2e-4, 15 epochs, weights that begin as
N(0, 0.02²). That code's score is |z − ẑ|², and it begins D anew when one of D's losses falls under 1e-5; not here. Paper and code scale the
scores to [0, 1] over the test set (eq. 6), and the code keeps the epoch with the best AUROC on it: both use what is tested. Here a score
stays as it is, and the epoch is chosen on validation. Ours: the decoder's convolutions have biases; the map |x − x̂|, of which the paper
says nothing.
"""

from itertools import pairwise
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, mse_loss

from methods.detectors.interface import Scores, SelectionRule, check_images
from methods.detectors.networks.dcgan import LATENT_SIDE_PX, DCGANDecoder, count_blocks
from methods.detectors.networks.modes import evaluation_mode, frozen
from methods.detectors.sizes import PowerOfTwo


class GANomalyConfig(BaseModel):
    """Hyperparameters; the defaults are the paper's and its public code's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ganomaly"] = "ganomaly"
    input_size_px: PowerOfTwo = Field(default=32, ge=16, description="a power of two")
    width: int = Field(default=64, ge=1, description="channels of the first block; each next one has twice as many")
    latent: int = Field(default=100, ge=1, description="length of z")
    adversarial_weight: float = Field(default=1.0, ge=0, description="w_adv, of the discriminator's features")
    contextual_weight: float = Field(default=50.0, ge=0, description="w_con, of the reconstruction")
    encoder_weight: float = Field(default=1.0, ge=0, description="w_enc, of the latents")
    critic_steps: int = Field(
        default=1, ge=1, description="batches that the discriminator learns from for each that the generator learns from"
    )
    learning_rate: float = Field(default=2e-4, gt=0, description="of both sides")
    epochs: int = Field(default=15, ge=1)
    training_batch_size: int = Field(default=64, ge=2, description="at least 2, for the batch normalisation")
    batch_size: int = Field(default=64, ge=1, description="images scored at once")

    @property
    def map_size_px(self) -> int | None:
        """Height and width of its anomaly maps; None for a detector without maps."""
        return self.input_size_px


class GANomalyEncoder(nn.Module):
    """From images (N, 3, H, W) to features (N, C, 4, 4) and an output (N, outputs): both encoders; with one output the discriminator."""

    def __init__(self, *, size_px: int, width: int, outputs: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(count_blocks(size_px))]
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
        for i, o in pairwise(widths):
            layers += [nn.Conv2d(i, o, 4, 2, 1, bias=False), nn.BatchNorm2d(o), nn.LeakyReLU(0.2)]
        self.blocks = nn.Sequential(*layers)
        self.last = nn.Conv2d(widths[-1], outputs, LATENT_SIDE_PX, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and output."""
        features: Tensor = self.blocks(x)
        return features, self.last(features).flatten(1)


class GANomaly(nn.Module):
    """Learns to encode its own reconstructions as it encodes normal images; what is encoded otherwise is anomalous."""

    selected_by: SelectionRule = "auroc"

    def __init__(self, config: GANomalyConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.epochs = config.epochs
        self.training_batch_size = config.training_batch_size
        self.critic_steps = config.critic_steps
        size_px, width, latent = config.input_size_px, config.width, config.latent
        self.encoder: nn.Module = GANomalyEncoder(size_px=size_px, width=width, outputs=latent)  # G_E
        self.decoder: nn.Module = DCGANDecoder(size_px=size_px, width=width, latent=latent)  # G_D
        self.second_encoder: nn.Module = GANomalyEncoder(size_px=size_px, width=width, outputs=latent)  # E
        self.discriminator: nn.Module = GANomalyEncoder(size_px=size_px, width=width, outputs=1)  # D
        self.apply(_begin)

    def generate(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (N, latent), x̂ (N, 3, H, W) in [-1, 1] and ẑ (N, latent) of images x in [-1, 1]."""
        z = self.encoder(x)[1]
        x_hat = self.decoder(z)
        return z, x_hat, self.second_encoder(x_hat)[1]

    def loss_terms(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """L_adv, L_con and L_enc averaged over the batch, scalars, with gradients for the generator alone, of images in [0, 1]."""
        x = 2 * images - 1
        z, x_hat, z_hat = self.generate(x)
        with frozen(self.discriminator):
            adversarial = mse_loss(self.discriminator(x_hat)[0], self.discriminator(x)[0])
        return adversarial, l1_loss(x_hat, x), mse_loss(z_hat, z)

    def loss(self, images: Tensor) -> Tensor:
        """L averaged over the batch, a scalar, with gradients for both encoders and the decoder."""
        adversarial, contextual, encoder = self.loss_terms(images)
        config = self.config
        return config.adversarial_weight * adversarial + config.contextual_weight * contextual + config.encoder_weight * encoder

    def critic_loss(self, images: Tensor) -> Tensor:
        """L_D averaged over the batch, a scalar, with gradients for the discriminator."""
        x = 2 * images - 1
        with torch.no_grad():
            x_hat = self.decoder(self.encoder(x)[1])
        real, fake = self.discriminator(x)[1], self.discriminator(x_hat)[1]
        one, zero = torch.ones_like(real), torch.zeros_like(fake)
        return binary_cross_entropy_with_logits(real, one) + binary_cross_entropy_with_logits(fake, zero)

    def reconstruct(self, images: Tensor) -> Tensor:
        """x̂ (N, 3, H, W), taken to [0, 1], of images of the same shape and range."""
        with evaluation_mode(self):
            x_hat: Tensor = self.decoder(self.encoder(2 * images - 1)[1])
        return (x_hat + 1) / 2

    def score(self, images: Tensor) -> Scores:
        """Image: |z − ẑ| averaged over the latent, at least 0; pixel: |x − x̂| averaged over the channels, both images in [0, 1]."""
        check_images(images, input_size_px=self.input_size_px)
        with evaluation_mode(self):
            z, x_hat, z_hat = self.generate(2 * images - 1)
        return Scores(image=(z - z_hat).abs().mean(1), pixel=((x_hat + 1) / 2 - images).abs().mean(1))

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Adam over both encoders and the decoder."""
        sides = (self.encoder, self.decoder, self.second_encoder)
        weights = [weight for side in sides for weight in side.parameters()]
        return torch.optim.Adam(weights, lr=self.config.learning_rate, betas=(0.5, 0.999))

    def build_critic_optimizer(self) -> torch.optim.Optimizer:
        """Adam over the discriminator."""
        return torch.optim.Adam(self.discriminator.parameters(), lr=self.config.learning_rate, betas=(0.5, 0.999))


def _begin(layer: nn.Module) -> None:
    """Draw a layer's first weights as DCGAN does."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
