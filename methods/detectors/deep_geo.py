"""Deep anomaly detection by geometric transformations (Golan & El-Yaniv 2018, "Deep Anomaly Detection Using Geometric Transformations").

A network learns which of k = 72 transformations T_j an image went through: flip, shift by a quarter of the image in both directions, and
rotation by quarter turns (section 4.1). For the softmax y(T_i(x)) of each transformation of normal images a Dirichlet distribution
Dir(α_i) is fitted; the normality of an image is its log-likelihood without the constant (eq. 2), averaged:
    n(x) = 1/k Σ_i Σ_j (α_ij − 1) log y(T_i(x))_j.   The score is −n(x).

Paper: transformations, WRN-10-4 at 32 × 32 (16-8 for larger images), Adam, cross-entropy, batches of 128 transformed images, ⌈200 / 72⌉ = 3
passes over all images under all transformations, α by maximum likelihood. From its public code: shifts of 8 px (a quarter of 32) that
reflect at the border with the edge repeated, in the order flip, shift, rotation; images in [-1, 1]; weight decay 5e-4; `dirichlet.py`.
That code takes the logarithm of a softmax that may be 0; here it is the log-softmax. Ours: an epoch shows every image under as many
transformations as `transforms_per_image`, drawn anew without repetition, so that the default of 216 epochs with one is as many steps of
as many transformed images as the paper's three passes; the epoch is chosen by the loss on validation, where the paper takes the last; the
mean over all places before the last layer whatever the image's size (as in the paper at 32 × 32).
"""

from itertools import product
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.detectors.dirichlet import fit_dirichlet
from methods.detectors.interface import DetectorError, Scores, SelectionRule, check_images
from methods.detectors.networks.modes import evaluation_mode
from methods.detectors.networks.wide_resnet import WideResNet

TRANSFORMS = 72  # flip 2 × shift 3 × 3 × rotation 4
_LEAST_SPREAD = 1e-12  # of the softmax over the training images, in nats


class DeepGeoConfig(BaseModel):
    """Hyperparameters; the defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["deep-geo"] = "deep-geo"
    input_size_px: int = Field(default=32, ge=8, multiple_of=4)
    depth: int = Field(default=10, ge=10, description="of the wide residual network: 10, 16, 22, ...")
    width: int = Field(default=4, ge=1, description="its widening factor")
    transforms_per_image: int = Field(default=1, ge=1, le=TRANSFORMS, description="transformations of each image in a step")
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    epochs: int = Field(default=216, ge=1)
    training_batch_size: int = Field(default=128, ge=1, description="images, each transformed `transforms_per_image` times")
    batch_size: int = Field(default=16, ge=1, description="images scored at once")

    @field_validator("depth")
    @classmethod
    def _of_whole_blocks(cls, depth: int) -> int:
        if (depth - 4) % 6:
            raise ValueError(f"expected a depth of 6 n + 4, got {depth}")
        return depth

    @property
    def map_size_px(self) -> int | None:
        """None: it has no maps."""
        return None


def transform_sources(size_px: int) -> Tensor:
    """Where each pixel of a transformed image comes from, (72, H · W) int64, as numbers of pixels row by row; the first is the identity."""
    pixels, shift = torch.arange(size_px**2).view(size_px, size_px), size_px // 4
    sources = []
    for flipped, down, right, turns in product((False, True), (0, -shift, shift), (0, -shift, shift), range(4)):
        image = pixels.flip(1) if flipped else pixels
        image = image[_reflect(size_px, down)][:, _reflect(size_px, right)]
        sources.append(image.rot90(turns).flatten())
    return torch.stack(sources)


def _reflect(size_px: int, shift: int) -> Tensor:
    """Which of `size_px` places in a row each one takes after a shift: what leaves at one end comes back mirrored at the other."""
    place = (torch.arange(size_px) - shift) % (2 * size_px)
    return torch.minimum(place, 2 * size_px - 1 - place)


class DeepGeo(nn.Module):
    """Learns to tell transformations of normal images apart; where it cannot as it used to, the image is anomalous."""

    selected_by: SelectionRule = "loss"
    alpha: Tensor
    sources: Tensor

    def __init__(self, config: DeepGeoConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.epochs = config.epochs
        self.training_batch_size = config.training_batch_size
        self.network: nn.Module = WideResNet(depth=config.depth, width=config.width, classes=TRANSFORMS)
        self.register_buffer("alpha", torch.zeros(TRANSFORMS, TRANSFORMS, dtype=torch.float64))  # 0: not fitted
        self.register_buffer("sources", transform_sources(config.input_size_px), persistent=False)
        self._forget()

    def transform(self, images: Tensor, which: Tensor) -> Tensor:
        """Images (N, 3, H, W) under the transformations numbered `which` (N, k), as (N, k, 3, H, W)."""
        size = *which.shape, images.shape[1], -1  # (N, k, 3, H · W)
        pixels = images.flatten(2)[:, None].expand(size)
        return pixels.gather(3, self.sources[which][:, :, None].expand(size)).view(*which.shape, *images.shape[1:])

    def loss(self, images: Tensor) -> Tensor:
        """Cross-entropy of the transformations, averaged over images and transformations; draws these from torch's global generator."""
        drawn = torch.rand(len(images), TRANSFORMS, device=images.device)
        which = drawn.argsort(1)[:, : self.config.transforms_per_image]  # (N, k)
        views = self.transform(images, which).flatten(0, 1)
        return cross_entropy(self.network(2 * views - 1), which.flatten())

    def log_probabilities(self, images: Tensor) -> Tensor:
        """log y(T_i(x))_j, (N, 72, 72) float64, of images in [0, 1]: of each one's transformations (1) the probability of each (2)."""
        every = torch.arange(TRANSFORMS, device=images.device)[None]
        with evaluation_mode(self):
            # one image at a time: its 72 views are a batch that is the same whatever else is scored
            logits = [self.network(2 * self.transform(image[None], every)[0] - 1) for image in images]
        return torch.stack(logits).double().log_softmax(2) if logits else images.new_zeros(0, TRANSFORMS, TRANSFORMS).double()

    def observe(self, images: Tensor) -> None:
        """Add the log-probabilities of a batch of normal images; when the network is trained."""
        check_images(images, input_size_px=self.input_size_px)
        log_p = self.log_probabilities(images).cpu()
        self._observed += len(images)
        self._sum_p += log_p.exp().sum(0)
        self._sum_log_p += log_p.sum(0)

    def conclude(self, generator: torch.Generator) -> None:
        """Fit the 72 Dirichlet distributions.

        Raises:
            DetectorError: nothing was observed, or the network sees no difference between the images.
        """
        if not self._observed:
            raise DetectorError("Deep GEO has seen no training image; the training split is empty")
        mean_p, mean_log_p = self._sum_p / self._observed, self._sum_log_p / self._observed
        if (mean_p * (mean_p.log() - mean_log_p)).sum(1).min() < _LEAST_SPREAD:
            raise DetectorError(f"all {self._observed} training images look the same: a distribution needs at least two different ones")
        self._forget()
        self.alpha.copy_(fit_dirichlet(mean_p, mean_log_p))

    def score(self, images: Tensor) -> Scores:
        """Image: −n(x), in nats but for a constant; no map.

        Raises:
            DetectorError: no distributions were fitted.
        """
        check_images(images, input_size_px=self.input_size_px)
        if not self.alpha.any():
            raise DetectorError("Deep GEO has no distributions yet: train it, or load a bundle")
        normality = ((self.alpha - 1) * self.log_probabilities(images)).sum(2).mean(1)
        return Scores(image=-normality.float(), pixel=None)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Adam with the public code's weight decay."""
        return torch.optim.Adam(self.network.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay)

    def _forget(self) -> None:
        """Begin with no image observed; sums are all that is kept of those that are."""
        self._observed = 0
        self._sum_p, self._sum_log_p = torch.zeros(2, TRANSFORMS, TRANSFORMS, dtype=torch.float64)
