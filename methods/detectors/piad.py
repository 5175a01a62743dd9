"""PIAD (Tuluptceva et al. 2020, "Perceptual Image Anomaly Detection", ACPR 2019).

Encoder E and generator G, each against a critic (WGAN-GP): images G(z) of z ~ N(0, I) against images x, latents E(x) against z. Both also
learn to restore, L_rec being the relative perceptual L1 of x̂ = G(E(x)) (`networks/perceptual.py`), which is the score:
    L_D = D(fake) − D(real) + λ (|∇D| − 1)² + ε (D(real)² + D(fake)²)   for each critic,
    L_E = −D_z(E(x)) + γ_E L_rec,   L_G = −D_x(G(z)) + γ_G L_rec.
The weights keep gradients alike: every 100 steps γ is the median over a network's layers of |∇ adversarial term| / |∇ L_rec|, smoothed.

Paper: the above, VGG-19. Authors' public code: λ = 10, ε = 0.001; 64 px, one residual block a size, widths 32 to 128, latent a vector of
128, the latent's critic of two layers of 1,024, relu4_2 (all PA, and all AP, radiographs: the mean over relu3_2 and relu4_2); two critic
steps; batch 32; Adam β (0.5, 0.99), 2e-4 for encoder and generator and 5e-4 for critics; 13,000 steps, which are 109 epochs of 7,612 images
where a step of the generator shares its images with its critics'; γ from norms smoothed with 0.05. Ours: that γ is the median of the
smoothed norms' ratios now, theirs also over their course; the bundled backbone; the epoch by AUROC on validation where there are anomalies
(their number of steps was searched so), else by L_rec; the map.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from methods.detectors.anovaegan import gradient_penalty
from methods.detectors.interface import Scores, SelectionRule, check_images
from methods.detectors.networks.backbones import BackboneConfig
from methods.detectors.networks.modes import frozen
from methods.detectors.networks.perceptual import PerceptualDifference, enlarge_map
from methods.detectors.networks.residual import ResidualDecoder, ResidualEncoder, Shape
from methods.detectors.sizes import PowerOfTwo

_SLOPE = 0.2


class PIADConfig(BaseModel):
    """Hyperparameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["piad"] = "piad"
    input_size_px: PowerOfTwo = Field(default=64, ge=8, description="a power of two")
    latent: int = Field(default=128, ge=1, description="length of z")
    width: int = Field(default=32, ge=1, description="channels at the input's size, doubled with every halving")
    width_max: int = Field(default=128, ge=1, description="most channels at any size")
    blocks: int = Field(default=1, ge=1, description="residual blocks a size")
    latent_critic_widths: tuple[int, ...] = Field(
        default=(1024, 1024), min_length=1, description="of the hidden layers of the latents' critic"
    )
    backbone: BackboneConfig = Field(default=BackboneConfig(layers=("block4",)), description="network and the layers whose features count")
    gradient_penalty: float = Field(default=10.0, ge=0, description="λ, weight of the critics' gradient penalty")
    norm_penalty: float = Field(default=1e-3, ge=0, description="ε, weight of the critics' squared opinions")
    balance_every: int = Field(default=100, ge=1, description="steps of encoder and generator from one look at the gradients to the next")
    balance_smoothing: float = Field(default=0.05, gt=0, le=1, description="share of a new norm of gradients in the smoothed one")
    critic_steps: int = Field(default=2, ge=1, description="batches that the critics learn from for each that the others learn from")
    learning_rate: float = Field(default=2e-4, gt=0, description="of encoder and generator")
    critic_learning_rate: float = Field(default=5e-4, gt=0)
    epochs: int = Field(default=109, ge=1)
    training_batch_size: int = Field(default=32, ge=1)
    batch_size: int = Field(default=32, ge=1, description="images scored at once")

    @property
    def map_size_px(self) -> int | None:
        """Height and width of its anomaly maps; None for a detector without maps."""
        return self.input_size_px


class Balance(nn.Module):
    """γ: what the gradient of one loss is multiplied by to be like another's in most layers.

    Args:
        layers: number of layers.
        smoothing: share of a new norm in the smoothed one.
    """

    norms: Tensor
    weight: Tensor

    def __init__(self, layers: int, *, smoothing: float) -> None:
        super().__init__()
        self._smoothing = smoothing
        self.register_buffer("norms", torch.zeros(2, layers))  # of both losses, smoothed; 0 before the first look
        self.register_buffer("weight", torch.ones(()))

    def look(self, weights: list[nn.Parameter], adversarial: Tensor, restoring: Tensor) -> None:
        """Take in the gradients of two losses by the layers' weights; both can be differentiated again."""
        gradients = [torch.autograd.grad(loss, weights, retain_graph=True) for loss in (adversarial, restoring)]
        norms = torch.stack([torch.stack([gradient.norm() for gradient in of_loss]) for of_loss in gradients]).detach()
        before = torch.where(self.norms.any(), self.norms, norms)
        self.norms.copy_(before + self._smoothing * (norms - before))
        self.weight.copy_((self.norms[0] / self.norms[1].clamp_min(1e-12)).median())


class PIAD(nn.Module):
    """Learns to restore, and to generate, what is normal; what it cannot restore for a pretrained network's eyes is anomalous."""

    selected_by: SelectionRule = "auroc"

    steps: Tensor

    def __init__(self, config: PIADConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.epochs = config.epochs
        self.training_batch_size = config.training_batch_size
        self.critic_steps = config.critic_steps
        shape = Shape((config.input_size_px,), 1, config.latent, config.width, config.width_max, config.blocks)
        self.encoder: nn.Module = ResidualEncoder(shape)
        self.generator: nn.Module = ResidualDecoder(shape)
        self.critics = nn.ModuleDict(
            {
                "image": nn.Sequential(ResidualEncoder(shape._replace(latent=1)), nn.Flatten(0)),
                "latent": _build_latent_critic(config.latent, config.latent_critic_widths),
            }
        )
        self.difference = PerceptualDifference(config.backbone, size_px=config.input_size_px)
        smoothing = config.balance_smoothing
        self.encoder_balance = Balance(len(layer_weights(self.encoder)), smoothing=smoothing)
        self.generator_balance = Balance(len(layer_weights(self.generator)), smoothing=smoothing)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # of encoder and generator

    def prepare(self, batches: Iterable[Tensor]) -> None:
        """Take the mean and standard deviation of the features over batches of training images."""
        self.difference.fit_statistics(batches)

    def loss(self, images: Tensor) -> Tensor:
        """L_rec averaged over the batch, a scalar, with encoder's gradient of L_E and generator's of L_G; draws from the global generator.

        The value is L_rec because epochs compare by it: critics' opinions and γ are of one step.
        """
        fake_z = self._encode(images)
        if not self.training:
            return self.difference(images, self._generate(fake_z)).mean()
        with frozen(self.critics):
            of_encoder = -self.critics["latent"](fake_z).mean()
            of_generator = -self.critics["image"](self._generate(torch.randn_like(fake_z))).mean()
            if self.steps % self.config.balance_every == 0:
                restoring = self.difference(images, self._generate(fake_z)).mean()
                self.encoder_balance.look(layer_weights(self.encoder), of_encoder, restoring)
                self.generator_balance.look(layer_weights(self.generator), of_generator, restoring)
            self.steps += 1
            gamma_E, gamma_G = self.encoder_balance.weight, self.generator_balance.weight
            restoring = self.difference(images, self._generate(scale_gradient(fake_z, gamma_E / gamma_G))).mean()
            learnt = of_encoder + of_generator + gamma_G * restoring
            loss: Tensor = restoring.detach() + (learnt - learnt.detach())
            return loss

    def critic_loss(self, images: Tensor) -> Tensor:
        """L_D of both critics, averaged over the batch and added, a scalar; draws from torch's global generator."""
        with torch.no_grad():
            fake_z = self._encode(images)
            z = torch.randn_like(fake_z)
            fake_images = self._generate(z)
        return self._oppose(self.critics["image"], images, fake_images) + self._oppose(self.critics["latent"], z, fake_z)

    def score(self, images: Tensor) -> Scores:
        """Image: L_rec, at least 0; pixel: what it is the mean of, at the input's size."""
        check_images(images, input_size_px=self.input_size_px)
        places = self.difference(images, self._generate(self._encode(images)))
        return Scores(image=places.mean((1, 2)), pixel=enlarge_map(places, self.input_size_px))

    def reconstruct(self, images: Tensor) -> Tensor:
        """x̂ (N, 3, H, W) clipped to [0, 1], of images of that shape."""
        return self._generate(self._encode(images)).clamp(0, 1)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Adam over encoder and generator, with the public code's settings."""
        weights = [*self.encoder.parameters(), *self.generator.parameters()]
        return torch.optim.Adam(weights, lr=self.config.learning_rate, betas=(0.5, 0.99))

    def build_critic_optimizer(self) -> torch.optim.Optimizer:
        """Adam over both critics, with the public code's settings."""
        return torch.optim.Adam(self.critics.parameters(), lr=self.config.critic_learning_rate, betas=(0.5, 0.99))

    def _encode(self, images: Tensor) -> Tensor:
        """Latents (N, latent, 1, 1)."""
        z: Tensor = self.encoder(2 * images - 1)
        return z

    def _generate(self, z: Tensor) -> Tensor:
        """Images of latents, of no limited range."""
        y: Tensor = self.generator(z, self.input_size_px)
        return (y + 1) / 2

    def _oppose(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """L_D of one critic."""
        alpha = torch.rand(len(real), device=real.device)
        penalty = gradient_penalty(critic, real, fake, alpha)
        of_real, of_fake = critic(real), critic(fake)
        drift = of_real.square() + of_fake.square()
        return (of_fake - of_real + self.config.gradient_penalty * penalty + self.config.norm_penalty * drift).mean()


def scale_gradient(x: Tensor, factor: Tensor) -> Tensor:
    """x to the bit; its gradient is multiplied by the factor on the way back."""
    return x.detach() + factor * (x - x.detach())


def layer_weights(network: nn.Module) -> list[nn.Parameter]:
    """The layers' weights, without biases."""
    return [parameter for name, parameter in network.named_parameters() if name.endswith("weight")]


def _build_latent_critic(latent: int, widths: tuple[int, ...]) -> nn.Module:
    """From latents (N, latent, 1, 1) to one number each (N,)."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i, o in zip((latent, *widths[:-1]), widths, strict=True):
        layers += [nn.Linear(i, o), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1), nn.Flatten(0))
