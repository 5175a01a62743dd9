"""Deep SVDD (Ruff et al. 2018, "Deep One-Class Classification").

An encoder φ maps normal images close to a centre c. With d(x) = |φ(x) − c|² and weight decay besides, the objectives are
    one-class (eq. 4):      mean d(x),
    soft-boundary (eq. 3):  R² + 1/ν mean max(0, d(x) − R²),
where R is the (1 − ν)-quantile of √d (section 3.2). The score is d(x), with a soft boundary d(x) − R² (eq. 5). Weights of 0, biases or
bounded activations would let φ be c everywhere (propositions 1 to 3): c stays fixed, there are no biases and the activation is LeakyReLU.

Paper: LeNet-like modules of a 5 × 5 convolution, batch normalisation, LeakyReLU 0.1 and 2 × 2 max-pooling, of 32, 64 and 128 channels for
CIFAR-10 (8 and 4 for MNIST), then a linear layer to 128 (32); no biases; uniform Glorot weights, or those of an autoencoder with a
mirrored decoder that upsamples; images normalised each by its own mean and mean absolute deviation and scaled to [0, 1]; c is the mean of
φ over the training images before the first step; Adam, rate 1e-4 and then a tenth ("searching" 150 epochs, "fine-tuning" 100; the
autoencoder 250 and 100), batch 200, weight decay 1e-6, ν 0.1 or 0.01. From its public code: normalisation without learnt scale and shift,
ε 1e-4; c's coordinates nearer to 0 than 0.1 are moved to ±0.1, because one at 0 is met by weights of 0; [0, 1] is the range of the
training images; R is 0 for 10 epochs and then taken from every batch; the autoencoder's squared error is summed over an image. Ours: a
linear layer leads into the decoder, where that code folds the features into 4 × 4; images of one colour become 0, where both divide by 0;
the epoch is chosen by the loss on validation, where the paper takes the last. R cannot be shared by several processes.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from methods.detectors.interface import CHANNELS, Scores, SelectionRule, check_images
from methods.detectors.networks.modes import evaluation_mode

_NEAR_ZERO = 0.1  # coordinates of the centre are kept further from 0
_FLAT = 1e-4  # mean absolute deviation of an image of one colour, but for rounding


class DeepSVDDConfig(BaseModel):
    """Hyperparameters; the defaults are the paper's for CIFAR-10, one-class, with pretraining."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["deep-svdd"] = "deep-svdd"
    input_size_px: int = Field(default=32, ge=4, description="a multiple of 2 to the number of modules")
    widths: tuple[int, ...] = Field(default=(32, 64, 128), min_length=1, description="channels of each module, which halves the image")
    latent: int = Field(default=128, ge=1, description="length of φ(x)")
    objective: Literal["one-class", "soft-boundary"] = "one-class"
    nu: float = Field(default=0.1, gt=0, lt=1, description="ν, share of training images outside the soft boundary")
    radius_warm_up_epochs: int = Field(default=10, ge=0, description="epochs before the soft boundary's R moves from 0")
    learning_rate: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=1e-6, ge=0)
    pretraining_epochs: int = Field(default=350, ge=0, description="of the autoencoder whose encoder is the first; 0 for none")
    epochs: int = Field(default=250, ge=1, description="after the pretraining")
    fine_tuning_epochs: int = Field(default=100, ge=0, description="the last of either's epochs, at a tenth of the learning rate")
    training_batch_size: int = Field(default=200, ge=2, description="at least 2, for the batch normalisation")
    batch_size: int = Field(default=64, ge=1, description="images scored at once")

    @model_validator(mode="after")
    def _halves(self) -> "DeepSVDDConfig":
        if self.input_size_px % 2 ** len(self.widths):
            raise ValueError(f"expected input_size_px to be a multiple of {2 ** len(self.widths)} for {len(self.widths)} modules")
        return self

    @property
    def map_size_px(self) -> int | None:
        """None: it has no maps."""
        return None


class Stage(NamedTuple):
    """A part of the training with an optimiser of its own.

    Attributes:
        begins: epochs before it.
        pretrains: whether the autoencoder learns.
        learning_rate: throughout.
    """

    begins: int
    pretrains: bool
    learning_rate: float


def plan_stages(config: DeepSVDDConfig) -> list[Stage]:
    """Searching and fine-tuning, of the autoencoder and then of the hypersphere; those of no epochs are left out."""
    stages, begins = [], 0
    for pretrains, epochs in ((True, config.pretraining_epochs), (False, config.epochs)):
        slow = min(config.fine_tuning_epochs, epochs - 1) if epochs else 0
        for length, rate in ((epochs - slow, config.learning_rate), (slow, config.learning_rate / 10)):
            if length:
                stages.append(Stage(begins, pretrains, rate))
            begins += length
    return stages


def normalise_contrast(images: Tensor) -> Tensor:
    """Images (N, 3, H, W), each less its mean and divided by its mean absolute deviation; one of a single colour becomes about 0."""
    centred = images - images.mean((1, 2, 3), keepdim=True)
    return centred / centred.abs().mean((1, 2, 3), keepdim=True).clamp_min(_FLAT)


def keep_from_zero(centre: Tensor) -> Tensor:
    """The centre with coordinates nearer than 0.1 to 0 moved to 0.1 on their side of it."""
    moved = torch.where(centre < 0, -_NEAR_ZERO, _NEAR_ZERO).to(centre.dtype)
    return torch.where(centre.abs() < _NEAR_ZERO, moved, centre)


class DeepSVDD(nn.Module):
    """Learns to map normal images close to a point; what is mapped far from it is anomalous."""

    selected_by: SelectionRule = "loss"
    centre: Tensor
    radius: Tensor
    lowest: Tensor
    highest: Tensor
    stage: Tensor

    def __init__(self, config: DeepSVDDConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.epochs = config.pretraining_epochs + config.epochs
        self.training_batch_size = config.training_batch_size
        self.encoder: nn.Module = _build_encoder(config)
        self.decoder: nn.Module | None = _build_decoder(config) if config.pretraining_epochs else None
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
        self.register_buffer("centre", torch.zeros(config.latent))  # c
        self.register_buffer("radius", torch.zeros(()))  # R
        self.register_buffer("lowest", torch.zeros(()))  # value of the training images after `normalise_contrast`
        self.register_buffer("highest", torch.ones(()))
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))
        self._stages = plan_stages(config)
        self._radius_moves = False

    def advance_to(self, epoch: float) -> bool:
        """Enter the stage of that epoch."""
        hypersphere_begins = self.config.pretraining_epochs
        self._radius_moves = epoch >= hypersphere_begins + self.config.radius_warm_up_epochs
        stage = max(number for number, each in enumerate(self._stages) if each.begins <= epoch)
        begins = stage != int(self.stage)
        self.stage.fill_(stage)
        return begins

    def is_complete(self) -> bool:
        """Whether the pretraining is over."""
        return not self._stages[int(self.stage)].pretrains

    def prepare(self, batches: Iterable[Tensor]) -> None:
        """Take the range of the images before all training, and c before the hypersphere's."""
        stage = self._stages[int(self.stage)]
        if stage.begins == 0:
            ranges = [torch.stack(normalise_contrast(batch).aminmax()) for batch in batches]  # (2,) each
            self.lowest.copy_(torch.stack(ranges)[:, 0].min())
            self.highest.copy_(torch.stack(ranges)[:, 1].max())
        if stage.begins == self.config.pretraining_epochs:
            total, count = torch.zeros_like(self.centre, dtype=torch.float64), 0
            for batch in batches:
                total += self.encoder(self._scale(batch)).double().sum(0)
                count += len(batch)
            self.centre.copy_(keep_from_zero(total / count))

    def loss(self, images: Tensor) -> Tensor:
        """The objective of the stage on a batch, a scalar; in training mode R then follows the batch."""
        x = self._scale(images)
        if self.decoder is not None and not self.is_complete():
            return (self.decoder(self.encoder(x)) - x).square().sum((1, 2, 3)).mean()
        distance = self._distance(x)
        if self.config.objective == "one-class":
            return distance.mean()
        squared = self.radius.square()  # R is no weight, and is moved only after the loss
        loss = squared + (distance - squared).clamp_min(0).mean() / self.config.nu
        if self.training and self._radius_moves:
            self.radius.copy_(distance.detach().float().sqrt().quantile(1 - self.config.nu))
        return loss

    def score(self, images: Tensor) -> Scores:
        """Image: d(x), at least 0; with a soft boundary d(x) − R², above 0 outside it; no map."""
        check_images(images, input_size_px=self.input_size_px)
        with evaluation_mode(self):
            distance = self._distance(self._scale(images))
        return Scores(image=distance if self.config.objective == "one-class" else distance - self.radius.square(), pixel=None)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Adam with the rate of the stage over the weights that learn in it."""
        stage = self._stages[int(self.stage)]
        weights = self.parameters() if stage.pretrains else self.encoder.parameters()
        return torch.optim.Adam(weights, lr=stage.learning_rate, weight_decay=self.config.weight_decay)

    def _scale(self, images: Tensor) -> Tensor:
        """What the encoder takes: of training images in [0, 1]."""
        return (normalise_contrast(images) - self.lowest) / (self.highest - self.lowest).clamp_min(_FLAT)

    def _distance(self, x: Tensor) -> Tensor:
        """d (N,)."""
        distance: Tensor = (self.encoder(x) - self.centre).square().sum(1)
        return distance


def _build_encoder(config: DeepSVDDConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in pairwise((CHANNELS, *config.widths)):
        layers += [nn.Conv2d(i, o, 5, 1, 2, bias=False), nn.BatchNorm2d(o, eps=1e-4, affine=False), nn.LeakyReLU(0.1), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(config.widths[-1] * _last_side_px(config) ** 2, config.latent, bias=False))


def _build_decoder(config: DeepSVDDConfig) -> nn.Sequential:
    side, width = _last_side_px(config), config.widths[-1]
    layers: list[nn.Module] = [nn.Linear(config.latent, width * side**2, bias=False), nn.Unflatten(1, (width, side, side))]
    for i, o in pairwise((*config.widths[::-1], CHANNELS)):
        layers += [
            nn.BatchNorm2d(i, eps=1e-4, affine=False),
            nn.LeakyReLU(0.1),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(i, o, 5, 1, 2, bias=False),
        ]
    return nn.Sequential(*layers, nn.Sigmoid())


def _last_side_px(config: DeepSVDDConfig) -> int:
    return config.input_size_px // 2 ** len(config.widths)
