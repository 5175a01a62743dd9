"""The diffusion U-Net of Dhariwal & Nichol 2021 ("Diffusion Models Beat GANs on Image Synthesis", section 3 and appendix).

Residual blocks in the manner of BigGAN, which also halve and double the resolution; the time enters through adaptive group
normalisation (scale and shift); multi-head self-attention at chosen levels and in the middle; the last convolution of every block
and of the network begins at zero. Theirs are learnt variances and class labels, which are left out here.
"""

import math
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

_TIME_SCALE = 1000  # t in [0, 1] is embedded as the steps of Ho et al. 2020
_MAX_PERIOD = 10_000


class ScoreUNetConfig(BaseModel):
    """Widths and attention; the multiples of the first width are those of Dhariwal & Nichol for 256 × 256 (1, 1, 2, 2, 4, 4)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: tuple[int, ...] = Field(default=(64, 64, 128, 128, 256, 256), min_length=1, description="channels by level, full size first")
    attention_levels: tuple[int, ...] = Field(default=(3, 4, 5), description="levels with attention, 0 at full size; the middle has it too")
    residual_blocks: int = Field(default=2, ge=1, description="in each level on the way down; one more on the way up")
    head_channels: int = Field(default=64, ge=1, description="channels of one attention head")
    norm_groups: int = Field(default=32, ge=1, description="groups of the group normalisation")

    @property
    def reduction(self) -> int:
        """By how much the middle is smaller than the input: the input's side must be a multiple of it."""
        return 1 << (len(self.widths) - 1)

    def check_input(self, size_px: int) -> None:
        """Refuse an input whose side is no multiple of `reduction`.

        Raises:
            ValueError: names both.
        """
        if size_px % self.reduction:
            raise ValueError(f"expected input_size_px to be a multiple of {self.reduction} for {len(self.widths)} widths, got {size_px}")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if any(width < 2 or width % 2 or width % self.norm_groups for width in self.widths):
            raise ValueError(f"expected even widths that are multiples of norm_groups={self.norm_groups}, got {self.widths}")
        if any(not 0 <= level < len(self.widths) for level in self.attention_levels):
            raise ValueError(f"expected attention levels from 0 to {len(self.widths) - 1}, got {self.attention_levels}")
        attended = {self.widths[level] for level in self.attention_levels} | {self.widths[-1]}
        if any(width % self.head_channels for width in attended):
            raise ValueError(f"expected widths with attention {sorted(attended)} to be multiples of head_channels={self.head_channels}")
        return self


class ScoreUNet(nn.Module):
    """From an image at time t to an image of the same shape: the estimate of the noise in it."""

    def __init__(self, config: ScoreUNetConfig, *, channels: int = 3) -> None:
        super().__init__()
        self.config = config
        widths, embedding = config.widths, 4 * config.widths[0]
        self.embed = nn.Sequential(nn.Linear(widths[0], embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width, skips = widths[0], [widths[0]]
        for level, out in enumerate(widths):
            for _ in range(config.residual_blocks):
                self.down.append(_Block(width, out, embedding, config, attention=level in config.attention_levels))
                width = out
                skips.append(width)
            if level < len(widths) - 1:
                self.down.append(_Block(width, width, embedding, config, resample="down"))
                skips.append(width)
        self.middle = nn.ModuleList(_Block(width, width, embedding, config, attention=first) for first in (True, False))
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(config.residual_blocks + 1):
                self.up.append(_Block(width + skips.pop(), out, embedding, config, attention=level in config.attention_levels, skip=True))
                width = out
            if level > 0:
                self.up.append(_Block(width, width, embedding, config, resample="up"))
        self.last = nn.Sequential(nn.GroupNorm(config.norm_groups, width), nn.SiLU(), _zeroed(nn.Conv2d(width, channels, 3, padding=1)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Noise estimate (N, C, H, W) for x (N, C, H, W) at times t (N,) in [0, 1]; H and W are multiples of `config.reduction`."""
        e = self.embed(embed_time(t, dims=self.config.widths[0]))
        x = self.first(x)
        skips = [x]
        for block in self.down:
            x = block(x, e)
            skips.append(x)
        for block in self.middle:
            x = block(x, e)
        for block in self.up:
            x = block(torch.cat([x, skips.pop()], 1) if block.skip else x, e)
        y: Tensor = self.last(x)
        return y


def embed_time(t: Tensor, *, dims: int) -> Tensor:
    """Sinusoidal embedding (N, dims) of times (N,) in [0, 1]: cosines, then sines (Vaswani et al. 2017); `dims` is even."""
    half = dims // 2
    frequencies = torch.exp(-math.log(_MAX_PERIOD) / half * torch.arange(half, device=t.device, dtype=torch.float32))
    angles = _TIME_SCALE * t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


class _Block(nn.Module):
    """A residual block, with attention after it or a change of resolution within it."""

    def __init__(
        self,
        width: int,
        out: int,
        embedding: int,
        config: ScoreUNetConfig,
        *,
        attention: bool = False,
        resample: str | None = None,
        skip: bool = False,
    ) -> None:
        super().__init__()
        self.skip = skip  # whether it takes an encoder's output besides
        self.norm_in = nn.GroupNorm(config.norm_groups, width)
        self.resample = {None: nn.Identity(), "down": nn.AvgPool2d(2), "up": nn.Upsample(scale_factor=2, mode="nearest")}[resample]
        self.conv_in = nn.Conv2d(width, out, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * out)
        self.norm_out = nn.GroupNorm(config.norm_groups, out)
        self.conv_out = _zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.shortcut = nn.Identity() if width == out else nn.Conv2d(width, out, 1)
        self.attention = _Attention(out, config) if attention else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv_in(self.resample(nn.functional.silu(self.norm_in(x))))
        scale, shift = self.modulation(e)[:, :, None, None].chunk(2, 1)
        h = self.conv_out(nn.functional.silu(self.norm_out(h) * (1 + scale) + shift))
        y: Tensor = self.attention(self.shortcut(self.resample(x)) + h)
        return y


class _Attention(nn.Module):
    """Residual self-attention between the places of a map."""

    def __init__(self, width: int, config: ScoreUNetConfig) -> None:
        super().__init__()
        self.heads = width // config.head_channels
        self.norm = nn.GroupNorm(config.norm_groups, width)
        self.project_in = nn.Conv2d(width, 3 * width, 1)
        self.project_out = _zeroed(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        N, C, H, W = x.shape
        q, k, v = self.project_in(self.norm(x)).view(N, 3, self.heads, C // self.heads, H * W).transpose(-1, -2).unbind(1)
        a = nn.functional.scaled_dot_product_attention(q, k, v)  # (N, heads, H W, C / heads)
        y: Tensor = x + self.project_out(a.transpose(-1, -2).reshape(N, C, H, W))
        return y


def _zeroed(convolution: nn.Conv2d) -> nn.Conv2d:
    """Weights and bias at zero: the block begins as the identity."""
    nn.init.zeros_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution
