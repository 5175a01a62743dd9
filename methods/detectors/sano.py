"""SANO (Gonzalez-Jimenez et al. 2022, "SANO: Score-based Anomaly Localization for Dermatology").

A network s(x, t) learns the score ∇ log p_t(x) of normal images under the variance-preserving SDE (paper, eq. 2)
    dx = −½ β(t) x dt + √β(t) dw,   β(t) = β̄_min + t (β̄_max − β̄_min),   t in [0, 1],
whose kernel is Gaussian (Song et al. 2021, "Score-Based Generative Modeling through SDEs", eq. 33):
    p_0t(x_t | x_0) = N(m x_0, σ² I),   log m = −¼ t² (β̄_max − β̄_min) − ½ t β̄_min,   σ² = 1 − m².
The paper's 1,000 steps from β_min = 1e-4 to β_max = 0.02 are β̄ = N β, so 0.1 and 20 (Song et al., appendix C). Where a normal image
is likely the score is small; a place with a large one is pulled by the model towards something else. One forward pass an image.

The paper gives eq. 1-3, the steps, both β, Adam's 2e-4, batch 64 and pixel scores only. All else is ours: images in [-1, 1]; the U-Net's
widths and attention; the network estimates the noise, so s = −ε/σ; the loss weighted by λ(t) = σ² as its public codebase does, and
averaged over components; t uniform from the smallest step, 1 / N, to 1; at inference the image as it is (no noise) at a t that is chosen
on validation, from 1 / N on, which stands for t → 0; the image score. "400 iterations" of 64 would be four passes over its 6,146 images;
the default is 400 passes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from methods.detectors.interface import DetectorError, Scores, SelectionRule, check_images
from methods.detectors.networks.score_unet import ScoreUNet, ScoreUNetConfig
from methods.detectors.networks.smoothing import smooth

Weighting = Literal["variance", "likelihood", "uniform"]
ScoreFunction = Callable[[Tensor, Tensor], Tensor]  # (N, ...) and times (N,) -> (N, ...)


class SanoConfig(BaseModel):
    """Hyperparameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # no part in training: see `trains_alike`
    scoring_only: ClassVar[frozenset[str]] = frozenset({"score_time", "score_times", "smoothing_sigma_px", "image_quantile"})

    kind: Literal["sano"] = "sano"
    input_size_px: int = Field(default=256, ge=16)
    unet: ScoreUNetConfig = ScoreUNetConfig()
    steps: int = Field(default=1000, ge=2, description="N, diffusion steps that t in [0, 1] stands for")
    beta_min: float = Field(default=1e-4, gt=0, description="noise variance of the first step")
    beta_max: float = Field(default=0.02, gt=0, description="noise variance of the last step")
    weighting: Weighting = Field(default="variance", description="λ(t) of the loss: σ² (variance), β (likelihood) or 1 (uniform: eq. 1)")
    score_time: float | None = Field(default=None, gt=0, le=1, description="t at inference; null: chosen on validation from score_times")
    score_times: tuple[float, ...] = Field(
        default=(0.001, 0.01, 0.05, 0.1, 0.2),
        min_length=1,
        description="candidates for t, those below 1 / steps taken for it; the first one without validation. The larger t is, the less a "
        "clean image looks like the noised ones of that time, and the coarser is what the network attends to",
    )
    smoothing_sigma_px: float = Field(default=2.0, ge=0, description="of the Gaussian over the map")
    image_quantile: float | None = Field(
        default=None, gt=0, le=1, description="quantile of the map that is the image score; null for its mean"
    )
    learning_rate: float = Field(default=2e-4, gt=0)
    epochs: int = Field(default=400, ge=1)
    training_batch_size: int = Field(default=64, ge=1)
    batch_size: int = Field(default=4, ge=1, description="images scored at once")

    @property
    def map_size_px(self) -> int | None:
        """Height and width of its anomaly maps; None for a detector without maps."""
        return self.input_size_px

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self.unet.check_input(self.input_size_px)
        if self.beta_max < self.beta_min:
            raise ValueError(f"expected beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")
        if self.score_time is not None and self.score_time < 1 / self.steps:
            raise ValueError(
                f"expected score_time from 1 / steps = {1 / self.steps:g}, below which nothing is trained, got {self.score_time}"
            )
        if not all(0 < t <= 1 for t in self.score_times):
            raise ValueError(f"expected score_times in (0, 1], got {self.score_times}")
        if int(4 * self.smoothing_sigma_px + 0.5) >= self.input_size_px:
            raise ValueError(f"expected smoothing_sigma_px below a quarter of input_size_px, got {self.smoothing_sigma_px}")
        return self


@dataclass(frozen=True)
class VariancePreservingSDE:
    """Eq. 2 with the linear β(t) of eq. 3.

    Attributes:
        beta_min: β̄_min, the rate at t = 0.
        beta_max: β̄_max, the rate at t = 1.
    """

    beta_min: float
    beta_max: float

    def beta(self, t: Tensor) -> Tensor:
        """β(t), eq. 3, of the shape of t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def kernel(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """m and σ of p_0t(x_t | x_0) = N(m x_0, σ² I), of the shape of t in [0, 1] (Song et al. 2021, eq. 33)."""
        log_m = -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min
        return log_m.exp(), (-torch.expm1(2 * log_m)).sqrt()


def denoising_score_matching(
    s: ScoreFunction, x_0: Tensor, *, sde: VariancePreservingSDE, t: Tensor, z: Tensor, weighting: Weighting = "variance"
) -> Tensor:
    """The integrand of eq. 1 by sample: ½ λ(t) times the mean over components of (∇ log p_0t(x_t | x_0) − s(x_t, t))².

    For data N(μ, v I) the least expected value, reached by the true score, is ½ λ(t) (1/σ² − 1/(m² v + σ²)): zero for v = 0.

    Args:
        s: any score function.
        x_0: (N, ...) float, data.
        sde: the noising process.
        t: (N,) times in (0, 1].
        z: standard normal noise of x_0's shape.
        weighting: λ(t): σ² ("variance"), β(t) ("likelihood", Song et al. 2021a) or 1 ("uniform").

    Returns:
        (N,) losses, at least 0.
    """
    each = (-1,) + (1,) * (x_0.ndim - 1)
    m, sigma = (factor.view(each) for factor in sde.kernel(t))
    # ∇ log p_0t = −z/σ; times σ both terms stay of order 1 as t goes to 0
    error = (sigma * s(m * x_0 + sigma * z, t) + z).square().flatten(1).mean(1)
    variance = sigma.flatten().square()
    if weighting == "variance":
        return 0.5 * error
    return 0.5 * error / variance * (sde.beta(t) if weighting == "likelihood" else 1)


class Sano(nn.Module):
    """Learns where the likelihood of normal images rises; what has far to climb is anomalous.

    Attributes:
        score_time: (1,) t at inference.
    """

    selected_by: SelectionRule = "loss"

    tuned = "score_time"
    score_time: Tensor

    def __init__(self, config: SanoConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.epochs = config.epochs
        self.training_batch_size = config.training_batch_size
        self.sde = VariancePreservingSDE(config.steps * config.beta_min, config.steps * config.beta_max)
        self.unet = ScoreUNet(config.unet)
        self.register_buffer("score_time", torch.tensor([self.candidates()[0]]))

    def candidates(self) -> tuple[float, ...]:
        """The configured t, or those that validation chooses from; none below 1 / N."""
        times = self.config.score_times if self.config.score_time is None else (self.config.score_time,)
        return tuple(dict.fromkeys(max(t, 1 / self.config.steps) for t in times))

    def use(self, value: float) -> None:
        """Score at this t from now on."""
        self.score_time.fill_(value)

    def s(self, x: Tensor, t: Tensor) -> Tensor:
        """The score ∇ log p_t (N, 3, H, W) of x in [-1, 1] at times t (N,): minus the estimated noise over σ(t)."""
        _, sigma = self.sde.kernel(t)
        return -self.unet(x, t) / sigma[:, None, None, None]

    def loss(self, images: Tensor) -> Tensor:
        """Denoising score matching (eq. 1) at one random time an image, a scalar; draws from torch's global generator."""
        x_0 = 2 * images - 1
        smallest = 1 / self.config.steps
        t = smallest + (1 - smallest) * torch.rand(len(x_0), device=x_0.device)
        return denoising_score_matching(self.s, x_0, sde=self.sde, t=t, z=torch.randn_like(x_0), weighting=self.config.weighting).mean()

    def component_scores(self, images: Tensor) -> Tensor:
        """s(x, t) (N, 3, H, W) at the inference time for images in [0, 1]: signed, by channel, not smoothed; for `deviation_threshold`."""
        check_images(images, input_size_px=self.input_size_px)
        return self.s(2 * images - 1, self.score_time.expand(len(images)))

    def training_threshold(self, batches: Iterable[Tensor], *, deviations: float) -> float:
        """`deviation_threshold` of batches (N, 3, H, W) of training images in [0, 1]."""
        return deviation_threshold((self.component_scores(batch) for batch in batches), deviations=deviations)

    def score(self, images: Tensor) -> Scores:
        """Pixel: |s| averaged over the channels, smoothed, at least 0; image: the map's mean or quantile (ours; the paper has none)."""
        channel_mean = self.component_scores(images).abs().mean(1, keepdim=True)  # (N, 1, H, W)
        pixel = smooth(channel_mean, sigma_px=self.config.smoothing_sigma_px)[:, 0]
        places = pixel.flatten(1)
        if self.config.image_quantile is None:
            return Scores(image=places.mean(1), pixel=pixel)
        rank = max(1, round(self.config.image_quantile * places.shape[1]))
        return Scores(image=places.kthvalue(rank, dim=1).values, pixel=pixel)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Adam with the paper's learning rate."""
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate)


def deviation_threshold(component_scores: Iterable[Tensor], *, deviations: float = 3.0) -> float:
    """The pixel threshold that needs no anomaly (paper, section 2.2): N standard deviations of all components of training scores.

    Args:
        component_scores: batches (N, C, H, W) of `Sano.component_scores` on training images.
        deviations: N; the paper's 3.

    Returns:
        The threshold on `Scores.pixel`, above 0.

    Raises:
        ValueError: N is not above 0.
        DetectorError: no scores, scores that are not finite, or all equal ones.
    """
    if not deviations > 0:
        raise ValueError(f"expected a number of deviations above 0, got {deviations}")
    count, mean, squares = 0, 0.0, 0.0  # of all so far; squares about the mean (Chan et al. 1979)
    for batch in component_scores:
        values = batch.double().flatten()
        if not len(values):
            continue
        total, difference = count + len(values), float(values.mean()) - mean
        squares += float((values - values.mean()).square().sum()) + difference**2 * count * len(values) / total
        mean += difference * len(values) / total
        count = total
    if not count or not 0 < squares < float("inf"):
        raise DetectorError(f"a threshold needs different finite training scores; got {count} with squared deviations of {squares}")
    return deviations * (squares / count) ** 0.5
