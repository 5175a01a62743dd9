"""Deep perceptual autoencoder (Tuluptceva et al. 2020, "Anomaly Detection with Deep Perceptual Autoencoders").

An autoencoder g of pre-activation residual blocks learns x̂ = g(x) from the relative perceptual L1 alone (section 3.1,
`networks/perceptual.py`), which is also the score. With `growing` (section 3.2) images, network and features begin small: at each stage
the size doubles, and while α goes from 0 to 1
    x ← (1 − α) up(down(x)) + α x,   x̂ the same of the old exit and the new,
    L = (1 − α) L₁(down(x), down(x̂)) + α L₂(x, x̂),
each L with the features of its stage; then the new size stabilises. The optimiser starts anew with every transition and stabilisation.

Paper: the above, VGG-19, the epoch by the loss on normal validation images. Public code, Camelyon16 without growing (the defaults here;
its 34,666 steps are 583 epochs of 7,612 images): 64 px, all widths and the latent 4 channels, latent 8 × 8, relu4_2, batch 128, Adam
1e-3. Growing there: 16 → 32 → 64 px with relu3_2, relu3_2, relu4_2, each transition and stabilisation 20,000 steps, the last 8,666. NIH's
clear cases: 8 → 16 → 32 → 64 px with relu1_2, relu2_2, relu3_2, relu4_2 (for all PA, and all AP, relu3_2 again), widths 16, the latent a
vector of 16. These layers are features.3, features.8, features.13 and features.22 of torchvision/vgg19. Several layers in one stage count
alike, as in that code, where every stage has one.

Ours: the bundled backbone, of which block2 and block4 have the strides of relu3_2 and relu4_2; means of pixels where that code resizes
without smoothing; μ and σ of the training images, at each stage's size; the anomaly map, which is the difference of the features place
by place, bilinear; `loss: l1` for the ablation, with L = mean |x − x̂|.
"""

from collections.abc import Iterable
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn

from methods.detectors.interface import Scores, SelectionRule, check_images
from methods.detectors.networks.backbones import BackboneConfig
from methods.detectors.networks.perceptual import PerceptualDifference, PixelDifference, enlarge_map
from methods.detectors.networks.residual import ResidualDecoder, ResidualEncoder, Shape, base_of, blend, double, halve
from methods.detectors.sizes import PowerOfTwo


class GrowingConfig(BaseModel):
    """Progressive growing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: dict[int, str] = Field(
        min_length=1,
        description="the features' layer by the size in pixels of each stage before the last, as {16: block2, 32: block2}; the last has "
        "the input's size and the backbone's layers",
    )
    transition_epochs: float = Field(gt=0, description="in which a stage's new layers fade in")
    stabilisation_epochs: float = Field(gt=0, description="of a stage at its full size, the last stage's apart")

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: dict[int, str]) -> dict[int, str]:
        return dict(sorted(layers.items()))  # a bundle's configuration has its keys in the order of text: 16, 32, 8


class DeepPerceptualAutoencoderConfig(BaseModel):
    """Hyperparameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["dpa"] = "dpa"
    input_size_px: PowerOfTwo = Field(default=64, ge=8, description="a power of two")
    latent_side_px: PowerOfTwo = Field(default=8, ge=1, description="height and width of the latent, a power of two; 1 makes it a vector")
    latent: int = Field(default=4, ge=1, description="channels of the latent")
    width: int = Field(default=4, ge=1, description="channels at the input's size, doubled with every halving")
    width_max: int = Field(default=4, ge=1, description="most channels at any size")
    blocks: int = Field(default=2, ge=1, description="residual blocks a size")
    loss: Literal["perceptual", "l1"] = Field(default="perceptual", description="also the score; l1 is that of pixels")
    backbone: BackboneConfig = Field(default=BackboneConfig(layers=("block4",)), description="network and the layers whose features count")
    growing: GrowingConfig | None = Field(default=None, description="stages; null trains at the input's size from the start")
    learning_rate: float = Field(default=1e-3, gt=0)
    epochs: int = Field(default=583, ge=1)
    training_batch_size: int = Field(default=128, ge=1)
    batch_size: int = Field(default=32, ge=1, description="images scored at once")

    @property
    def map_size_px(self) -> int | None:
        """Height and width of its anomaly maps; None for a detector without maps."""
        return self.input_size_px

    @property
    def layers(self) -> dict[int, tuple[str, ...]]:
        """The features' layers by the size in pixels of each stage, ascending."""
        growing = self.growing.layers if self.growing else {}
        return {**{size: (layer,) for size, layer in growing.items()}, self.input_size_px: self.backbone.layers}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        least = base_of(self.latent_side_px)
        if self.input_size_px < least:
            raise ValueError(f"the input of {self.input_size_px} px is smaller than the latent of {least} px")
        if self.growing is not None:
            check_stages(self.growing, input_size_px=self.input_size_px, least_px=least, epochs=self.epochs)
        return self


def check_stages(growing: GrowingConfig, *, input_size_px: int, least_px: int, epochs: int) -> None:
    """Refuse stages that do not double up to the input, begin below the latent, or leave the last stage no epoch.

    Raises:
        ValueError: says what was expected and what came.
    """
    sizes = list(growing.layers)
    if max(sizes) >= input_size_px:
        raise ValueError(f"images of {input_size_px} px are too small for a growing stage of {max(sizes)} px before the last")
    expected = [input_size_px >> step for step in range(len(sizes), 0, -1)]
    if sizes != expected:
        raise ValueError(f"expected growing stages that double up to the input of {input_size_px} px, {expected}, got {sizes}")
    if sizes[0] < least_px:
        raise ValueError(f"the first growing stage of {sizes[0]} px is smaller than the latent of {least_px} px")
    begins = len(sizes) * (growing.transition_epochs + growing.stabilisation_epochs)
    if epochs < begins + 1:
        raise ValueError(f"the last growing stage begins after {begins:g} epochs and needs one at least, but there are {epochs} in all")


class DeepPerceptualAutoencoder(nn.Module):
    """Learns to restore what a pretrained network sees in normal images; what it cannot restore is anomalous."""

    selected_by: SelectionRule = "loss"

    growth: Tensor

    def __init__(self, config: DeepPerceptualAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.epochs = config.epochs
        self.training_batch_size = config.training_batch_size
        self.sizes_px = tuple(config.layers)
        shape = Shape(self.sizes_px, config.latent_side_px, config.latent, config.width, config.width_max, config.blocks)
        self.encoder, self.decoder = ResidualEncoder(shape), ResidualDecoder(shape)
        self.differences = nn.ModuleDict({str(size): _build_difference(config, layers, size) for size, layers in config.layers.items()})
        # of the phases 0, 1, 2, … each odd one is a transition to the next size, each even one the stabilisation there
        self.register_buffer("growth", torch.tensor([0.0, 1.0], dtype=torch.float64))  # phase, α
        self._phase, self._alpha = 0, 1.0  # the same, to be read without waiting for a GPU
        self.register_load_state_dict_post_hook(_read_growth)

    @property
    def size_px(self) -> int:
        """Of the present stage."""
        return self.sizes_px[(self._phase + 1) // 2]

    def advance_to(self, epoch: float) -> bool:
        """Grow to where training stands after `epoch` epochs; True where a transition or a stabilisation begins."""
        growing = self.config.growing
        if growing is None:
            return False
        stage_epochs = growing.stabilisation_epochs + growing.transition_epochs
        stage = min(int(epoch // stage_epochs), len(self.sizes_px) - 1)  # of which the stabilisation comes first
        faded = (epoch - stage * stage_epochs - growing.stabilisation_epochs) / growing.transition_epochs
        fades = faded >= 0 and stage < len(self.sizes_px) - 1
        phase, self._alpha = 2 * stage + fades, faded if fades else 1.0
        begins, self._phase = phase != self._phase, phase
        if begins or fades:
            self.growth.copy_(torch.tensor([self._phase, self._alpha], dtype=torch.float64))
        return begins

    def is_complete(self) -> bool:
        """Whether it has grown to the input's size, and all of it."""
        return self._phase == 2 * (len(self.sizes_px) - 1)

    def prepare(self, batches: Iterable[Tensor]) -> None:
        """Take the mean and standard deviation of the present stage's features over batches of training images."""
        difference = self.differences[str(self.size_px)]
        if isinstance(difference, PerceptualDifference):
            difference.fit_statistics(reduce(images, self.size_px) for images in batches)

    def loss(self, images: Tensor) -> Tensor:
        """L averaged over the batch, a scalar."""
        return torch.stack([weight * places.mean() for weight, places in self._compare(images)]).sum()

    def score(self, images: Tensor) -> Scores:
        """Image: L, at least 0; pixel: what L is the mean of, at the input's size."""
        check_images(images, input_size_px=self.input_size_px)
        terms = self._compare(images)
        image = torch.stack([weight * places.mean((1, 2)) for weight, places in terms]).sum(0)
        pixel = torch.stack([weight * enlarge_map(places, self.input_size_px) for weight, places in terms]).sum(0)
        return Scores(image=image, pixel=pixel)

    def reconstruct(self, images: Tensor) -> Tensor:
        """x̂ (N, 3, H, W) clipped to [0, 1], of images of that shape; trained for its features, it need not look like an image."""
        x_hat = self._restore(self._enter(images))
        return nn.functional.interpolate(x_hat, scale_factor=self.input_size_px // self.size_px, mode="nearest").clamp(0, 1)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Adam with the public code's learning rate."""
        weights = [*self.encoder.parameters(), *self.decoder.parameters()]
        return torch.optim.Adam(weights, lr=self.config.learning_rate)

    def _compare(self, images: Tensor) -> list[tuple[float, Tensor]]:
        """The terms of L: a weight, and the differences (N, h, w) whose mean it weighs."""
        x = self._enter(images)
        x_hat, size, alpha = self._restore(x), self.size_px, self._alpha
        terms = []
        if alpha < 1:
            terms.append((1 - alpha, self.differences[str(size // 2)](halve(x), halve(x_hat))))
        if alpha > 0:
            terms.append((alpha, self.differences[str(size)](x, x_hat)))
        return terms

    def _enter(self, images: Tensor) -> Tensor:
        """Images at the present stage's size, as blurred as its transition has them."""
        x = reduce(images, self.size_px)
        return x if self._alpha == 1 else blend(double(halve(x)), x, self._alpha)

    def _restore(self, x: Tensor) -> Tensor:
        """x̂ of images at the present stage's size, of no limited range."""
        z = self.encoder(2 * x - 1, self._alpha)
        y: Tensor = self.decoder(z, self.size_px, self._alpha)
        return (y + 1) / 2


def reduce(images: Tensor, size_px: int) -> Tensor:
    """Images (N, 3, H, W) halved down to (N, 3, size_px, size_px)."""
    while images.shape[-1] > size_px:
        images = halve(images)
    return images


def _build_difference(config: DeepPerceptualAutoencoderConfig, layers: tuple[str, ...], size_px: int) -> nn.Module:
    if config.loss == "l1":
        return PixelDifference()
    return PerceptualDifference(config.backbone.model_copy(update={"layers": layers}), size_px=size_px)


def _read_growth(module: nn.Module, *_unused: object) -> None:
    """Where a state that was loaded stands."""
    phase, alpha = module.get_buffer("growth").tolist()
    module._phase, module._alpha = int(phase), alpha  # type: ignore[assignment]
