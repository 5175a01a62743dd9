"""AnoDDPM (Wyatt et al. 2022, "AnoDDPM: Anomaly Detection with Denoising Diffusion Probabilistic Models using Simplex Noise").

An image is noised up to step λ of a diffusion (Ho et al. 2020, linear β, T = 1,000 steps), denoised again by a network that knows normal
images only, and compared with what it was. Simplex noise of several octaves covers large lesions, which Gaussian noise would leave.

Paper and public code: λ = 250; six octaves, persistence 0.8, first wavelength 64 px; simplex noise on the way back too; squared error;
256 px; U-Net of base width 128 with attention at 16 and 8 px in two heads; steps up to 800 are trained; Adam 1e-4, batch 1, 3,000 epochs.
Ours: three channels, each with its own noise; the simplex noise is planar and drawn anew, where theirs is a slice of a spatial one, and
has unit variance, so that σ_t means what it does in Ho et al.; the way back in the form of Song, Meng & Ermon 2021 ("DDIM", eq. 12), of
which η = 1 at every step is the ancestral one with the posterior's variance (theirs: β) and η = 0 in few steps is the fast one; the
estimate of the clean image is clipped to its range; scores in units of [0, 1]; no averaged weights; the same noise for every image, so
that scores compare.
"""

import itertools
import math
from collections.abc import Callable
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from methods.detectors.interface import CHANNELS, Scores, SelectionRule, check_images
from methods.detectors.networks.score_unet import ScoreUNet, ScoreUNetConfig

_SKEW = (math.sqrt(3) - 1) / 2  # takes the triangular grid to a square one
_UNSKEW = (3 - math.sqrt(3)) / 6
# variance of one octave: √3 corners an area of 1 times the integral of (½ − r²)⁸ r²/2 over the disc that a corner reaches
_OCTAVE_VARIANCE = math.sqrt(3) * (math.pi / 2) * 0.5**10 / 90

NoiseFunction = Callable[[Tensor, int], Tensor]  # (N, ...) at a step -> the noise in it (N, ...)


class AnoDDPMConfig(BaseModel):
    """Hyperparameters; with reverse_steps=10 and eta=0 an image costs ten passes of the network instead of λ."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["anoddpm"] = "anoddpm"
    input_size_px: int = Field(default=256, ge=16)
    unet: ScoreUNetConfig = ScoreUNetConfig(widths=(128, 128, 256, 256, 512, 512), attention_levels=(4, 5), head_channels=256)
    steps: int = Field(default=1000, ge=2, description="T, diffusion steps")
    beta_min: float = Field(default=1e-4, gt=0, lt=1, description="noise variance of the first step")
    beta_max: float = Field(default=0.02, gt=0, lt=1, description="noise variance of the last step")
    trained_steps: int = Field(default=800, ge=1, description="the loss draws steps from 1 to this")
    partial_steps: int = Field(default=250, ge=1, description="λ, the step to which an image is noised")
    reverse_steps: int | None = Field(default=None, ge=1, description="steps of the way back, evenly strided; null for all λ")
    eta: float = Field(default=1.0, ge=0, le=1, description="share of fresh noise on the way back: 1 ancestral, 0 deterministic")
    clips: bool = Field(default=True, description="whether the estimate of the clean image is clipped to the range of images")
    noise: Literal["simplex", "gaussian"] = "simplex"
    octaves: int = Field(default=6, ge=1, description="of the simplex noise, each of half the wavelength of the one before")
    persistence: float = Field(default=0.8, gt=0, le=1, description="amplitude of an octave over that of the one before")
    wavelength_px: float = Field(default=64.0, gt=0, description="of the first octave")
    noise_seed: int = Field(default=0, ge=0, description="of the noise that every scored image gets")
    learning_rate: float = Field(default=1e-4, gt=0)
    epochs: int = Field(default=3000, ge=1)
    training_batch_size: int = Field(default=1, ge=1)
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
        order = (self.reverse_steps or self.partial_steps, self.partial_steps, self.trained_steps, self.steps)
        if list(order) != sorted(order):
            raise ValueError(f"expected reverse_steps <= partial_steps <= trained_steps <= steps, got {order}")
        return self


def cumulative_alphas(steps: int, *, beta_min: float, beta_max: float) -> Tensor:
    """ᾱ_t (steps + 1,) float32: the share of variance that the clean image has at step t, 1 at step 0 (Ho et al. 2020, eq. 4)."""
    betas = torch.linspace(beta_min, beta_max, steps, dtype=torch.float64)
    return torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)]).float()


def noised(x_0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t = √ᾱ x_0 + √(1 − ᾱ) ε (Ho et al. 2020, eq. 4), the factors broadcast over x_0."""
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise


def denoise(
    estimate: NoiseFunction,
    x: Tensor,
    *,
    alpha_bar: Tensor,
    steps: list[int],
    eta: float,
    draw: Callable[[], Tensor],
    clips: bool,
) -> Tensor:
    """The way back from steps[0] to the clean image (Song, Meng & Ermon 2021, eq. 12 with σ of eq. 16).

    Args:
        estimate: ε(x, t), the noise in x at step t.
        x: (N, ...) at step steps[0].
        alpha_bar: (T + 1,) as of `cumulative_alphas`.
        steps: descending, the last is 0.
        eta: 0 deterministic, 1 ancestral.
        draw: noise of unit variance that broadcasts over x; not called where no noise is due.
        clips: whether the estimate of x_0 is held in [-1, 1].

    Returns:
        x_0 (N, ...).
    """
    for step, next_step in itertools.pairwise(steps):
        a, a_next = alpha_bar[step], alpha_bar[next_step]
        noise = estimate(x, step)
        x_0 = (x - (1 - a).sqrt() * noise) / a.sqrt()
        if clips:
            x_0 = x_0.clamp(-1, 1)
            noise = (x - a.sqrt() * x_0) / (1 - a).sqrt()
        sigma = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)).sqrt()
        x = a_next.sqrt() * x_0 + (1 - a_next - sigma**2).clamp_min(0).sqrt() * noise
        if eta and next_step:
            x = x + sigma * draw()
    return x


def simplex_noise(
    count: int,
    size_px: int,
    *,
    wavelength_px: float,
    octaves: int,
    persistence: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Independent fields (count, size_px, size_px) float32 of planar simplex noise (Perlin 2001) of mean 0 and variance 1 at every pixel.

    Octave i has wavelength `wavelength_px` / 2^i and amplitude `persistence`^i. Fields of one call share the places of the grid, not its
    slopes.

    Args:
        count: of fields.
        size_px: height and width.
        wavelength_px: of the first octave.
        octaves: at least 1.
        persistence: see above.
        generator: on `device`; None for torch's global one.
        device: of what comes back.
    """
    total = torch.zeros(count, size_px, size_px, device=device)
    for octave in range(octaves):
        total += persistence**octave * _octave(count, size_px, wavelength_px / 2**octave, generator, device)
    return total / math.sqrt(_OCTAVE_VARIANCE * sum(persistence ** (2 * octave) for octave in range(octaves)))


class AnoDDPM(nn.Module):
    """Noises an image in part and makes a normal one of it again; what does not come back is anomalous."""

    selected_by: SelectionRule = "loss"

    alpha_bar: Tensor

    def __init__(self, config: AnoDDPMConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.epochs = config.epochs
        self.training_batch_size = config.training_batch_size
        self.register_buffer("alpha_bar", cumulative_alphas(config.steps, beta_min=config.beta_min, beta_max=config.beta_max))
        self.unet = ScoreUNet(config.unet)

    def loss(self, images: Tensor) -> Tensor:
        """Mean of (ε − ε(x_t, t))² (Ho et al. 2020, eq. 14) at one random step an image, a scalar; draws from torch's global generator."""
        x_0 = 2 * images - 1
        noise = self.draw_noise(len(x_0), None, x_0.device)
        step = torch.randint(1, self.config.trained_steps + 1, (len(x_0),), device=x_0.device)
        x_t = noised(x_0, noise, self.alpha_bar[step][:, None, None, None])
        return nn.functional.mse_loss(self.unet(x_t, step / self.config.steps), noise)

    def reconstruct(self, images: Tensor) -> Tensor:
        """The normal image (N, 3, H, W) in [0, 1] nearest to images of that shape, as the model has it: to step λ and back."""
        generator = torch.Generator().manual_seed(self.config.noise_seed)

        def draw() -> Tensor:
            return self.draw_noise(1, generator, torch.device("cpu")).to(images.device)  # one for all images of the batch

        def estimate(x: Tensor, step: int) -> Tensor:
            noise: Tensor = self.unet(x, torch.full((len(x),), step / self.config.steps, device=x.device))
            return noise

        steps = strided_steps(self.config.partial_steps, count=self.config.reverse_steps or self.config.partial_steps)
        x = noised(2 * images - 1, draw(), self.alpha_bar[self.config.partial_steps])
        x = denoise(estimate, x, alpha_bar=self.alpha_bar, steps=steps, eta=self.config.eta, draw=draw, clips=self.config.clips)
        return ((x + 1) / 2).clamp(0, 1)

    def draw_noise(self, count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Noise (count, 3, H, W) of mean 0 and variance 1, of the configured kind; None is torch's global generator."""
        size = self.input_size_px
        if self.config.noise == "gaussian":
            return torch.randn(count, CHANNELS, size, size, generator=generator, device=device)
        fields = simplex_noise(
            count * CHANNELS,
            size,
            wavelength_px=self.config.wavelength_px,
            octaves=self.config.octaves,
            persistence=self.config.persistence,
            generator=generator,
            device=device,
        )
        return fields.view(count, CHANNELS, size, size)

    def score(self, images: Tensor) -> Scores:
        """Pixel: squared error to the reconstruction, averaged over the channels; image: its mean. Both in [0, 1]."""
        check_images(images, input_size_px=self.input_size_px)
        error = (self.reconstruct(images) - images).square().mean(1)  # (N, H, W)
        return Scores(image=error.mean((1, 2)), pixel=error)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Adam with the public code's learning rate."""
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate)


def strided_steps(last: int, *, count: int) -> list[int]:
    """Steps from `last` down to 0 in `count` strides as even as whole numbers allow, `count` at most `last`."""
    return [last * (count - stride) // count for stride in range(count + 1)]


def _octave(count: int, size_px: int, wavelength_px: float, generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    """Fields (count, size, size) of variance `_OCTAVE_VARIANCE`: at each corner of a triangular grid a random slope of length 1."""
    x = torch.arange(size_px, device=device) / wavelength_px
    skew = (x[:, None] + x) * _SKEW
    offset = torch.rand(
        2, generator=generator, device=device
    )  # without it the same pixels would be corners, where noise is weak, in every field
    a, b = x[None, :] + skew + offset[0], x[:, None] + skew + offset[1]
    i, j = a.floor().long(), b.floor().long()
    fraction = (a - i + b - j) * _UNSKEW
    dx, dy = a - i - fraction, b - j - fraction  # from the cell's first corner
    side = max(int(i.max()), int(j.max())) + 2
    angle = 2 * math.pi * torch.rand(count, side * side, generator=generator, device=device)
    slope_x, slope_y = angle.cos(), angle.sin()
    right = (dx > dy).long()  # which of the cell's two triangles
    field = torch.zeros(count, size_px, size_px, device=device)
    for along_a, along_b in ((torch.zeros_like(right), torch.zeros_like(right)), (right, 1 - right), (torch.ones_like(right),) * 2):
        unskew = (along_a + along_b) * _UNSKEW
        x_from, y_from = dx - along_a + unskew, dy - along_b + unskew
        weight = (0.5 - x_from**2 - y_from**2).clamp_min(0) ** 4
        corner = ((j + along_b) * side + i + along_a).flatten()
        field += weight * (slope_x[:, corner].view_as(field) * x_from + slope_y[:, corner].view_as(field) * y_from)
    return field
