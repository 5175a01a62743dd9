"""SimpleNet (Liu et al. 2023, "SimpleNet: A Simple Network for Image Anomaly Detection and Localization").

A discriminator D tells adapted features q = G(o) of normal images from the same features with noise, q⁻ = q + ε, ε ~ N(0, σ²) (eq. 5), by a
truncated L1 loss (eq. 7; E over places, BatchNorm over both kinds together):
    L = E max(0, th⁺ − D(q)) + E max(0, −th⁻ + D(q⁻)),   th⁺ = −th⁻ = ½.
A place scores −D(q) (eq. 8).

Paper: the 3 × 3 means of two layers on the shallower one's grid, joined (section 3.1; WideResNet-50-2, layers 2 and 3: 1,536 dimensions);
σ 0.015; 160 epochs of batches of 8; Gaussian of σ 4 over the map. Public code: one linear adaptor G; D is linear to 1,024, BatchNorm,
LeakyReLU 0.2, linear to 1 without bias; Xavier's normal weights; D learns by Adam, 2e-4, weight decay 1e-5, G by AdamW, 1e-4, with its
default decay; the score of an image is the largest of its places, before they are interpolated. There layers are also pooled over
neighbouring channels, and the best epoch is chosen on the test split; neither is done here.

Ours: the bundled backbone and, for it, a larger σ: its features spread by about 4, because no activation ends its blocks. Features are
computed anew each epoch: keeping them would take a gigabyte for 250 images at the paper's widths.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from methods.detectors.interface import Scores, SelectionRule, check_images
from methods.detectors.networks.backbones import BackboneConfig, build_backbone
from methods.detectors.networks.grids import average_neighbours, join_on_grid
from methods.detectors.networks.modes import evaluation_mode
from methods.detectors.networks.smoothing import smooth


class SimpleNetConfig(BaseModel):
    """Hyperparameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["simplenet"] = "simplenet"
    input_size_px: int = Field(default=224, ge=32, multiple_of=32)
    backbone: BackboneConfig = BackboneConfig(layers=("block4", "block10"))
    hidden: int = Field(default=1024, ge=1, description="width of the discriminator")
    noise_std: float = Field(default=1.0, gt=0, description="σ of the noise on adapted features (paper: 0.015, for WideResNet-50-2)")
    margin: float = Field(default=0.5, gt=0, description="th⁺, and −th⁻")
    smoothing_sigma_px: float = Field(default=4.0, ge=0, description="of the Gaussian over the map, at input size")
    learning_rate: float = Field(default=2e-4, gt=0, description="of the discriminator")
    weight_decay: float = Field(default=1e-5, ge=0, description="of the discriminator")
    adaptor_learning_rate: float = Field(default=1e-4, gt=0)
    adaptor_weight_decay: float = Field(default=1e-2, ge=0, description="decoupled from the gradient, as AdamW has it")
    epochs: int = Field(default=160, ge=1)
    training_batch_size: int = Field(default=8, ge=1)
    batch_size: int = Field(default=8, ge=1, description="images scored at once")

    @property
    def map_size_px(self) -> int | None:
        """Height and width of its anomaly maps; None for a detector without maps."""
        return self.input_size_px


def truncated_loss(real: Tensor, fake: Tensor, *, margin: float) -> Tensor:
    """L, a scalar, of D at places of normal features and of noisy ones, (n,) each."""
    return (margin - real).clamp_min(0).mean() + (margin + fake).clamp_min(0).mean()


class SimpleNet(nn.Module):
    """Learns what noise does to normal features; what looks as if it had been done is anomalous."""

    selected_by: SelectionRule = "auroc"

    def __init__(self, config: SimpleNetConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.epochs = config.epochs
        self.training_batch_size = config.training_batch_size
        self.backbone = build_backbone(config.backbone)
        dims = sum(self.backbone.channels)
        self.adaptor = nn.Linear(dims, dims)
        self.discriminator = nn.Sequential(
            nn.Linear(dims, config.hidden), nn.BatchNorm1d(config.hidden), nn.LeakyReLU(0.2), nn.Linear(config.hidden, 1, bias=False)
        )
        for layer in (self.adaptor, *self.discriminator):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)

    def features(self, images: Tensor) -> Tensor:
        """o (N, h, w, C): 3 × 3 means of each layer on the shallowest one's grid, joined."""
        layers = [average_neighbours(layer) for layer in self.backbone(images)]
        return join_on_grid(layers, side=layers[0].shape[-1])

    def loss(self, images: Tensor) -> Tensor:
        """L of a batch, a scalar, with gradients for adaptor and discriminator; draws from torch's global generator."""
        real = self.adaptor(self.features(images).flatten(0, 2))  # q (N h w, C)
        fake = real + self.config.noise_std * torch.randn_like(real)
        D: Tensor = self.discriminator(torch.cat([real, fake]))[:, 0]
        return truncated_loss(*D.chunk(2), margin=self.config.margin)

    def score(self, images: Tensor) -> Scores:
        """Pixel: −D at each place, bilinear and smoothed, below 0 where it looks normal; image: the largest −D."""
        check_images(images, input_size_px=self.input_size_px)
        o = self.features(images)
        with evaluation_mode(self.discriminator):
            places = -self.discriminator(self.adaptor(o.flatten(0, 2))).view(o.shape[:3])  # (N, h, w)
        pixel = nn.functional.interpolate(places[:, None], images.shape[-2:], mode="bilinear", align_corners=False)
        return Scores(image=places.amax((1, 2)), pixel=smooth(pixel, sigma_px=self.config.smoothing_sigma_px)[:, 0])

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Adam over the discriminator and, its weight decay decoupled, AdamW over the adaptor."""
        c = self.config
        adaptor = {"lr": c.adaptor_learning_rate, "weight_decay": c.adaptor_weight_decay, "decoupled_weight_decay": True}
        discriminator = {"lr": c.learning_rate, "weight_decay": c.weight_decay}
        return torch.optim.Adam(
            [{"params": self.adaptor.parameters(), **adaptor}, {"params": self.discriminator.parameters(), **discriminator}]
        )
