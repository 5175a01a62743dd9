"""Random views of images, drawn for each by itself and made for a whole batch at once, on the device where the batch is.

A view is a random crop resized to the image's size, flipped, rotated, and changed in colour, with the distributions of torchvision's
`RandomResizedCrop`, flips, `RandomRotation` and `ColorJitter`. Ours: crop, flips and rotation are one affine map with one bilinear
interpolation, what lies outside the image is its reflection instead of black, and one order of the four changes of colour is drawn a batch.
Everything is drawn from torch's global generator on the CPU, so that a GPU sees the same views.
"""

import math

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

_TRIES = 10  # for a box that fits, as torchvision's
_GREY = (0.2989, 0.587, 0.114)  # torchvision's weights of R, G, B


class ViewConfig(BaseModel):
    """How far views may differ; the defaults are those of Aggarwal et al. 2024."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop_scale: tuple[float, float] = Field(default=(0.8, 1.0), description="least and greatest area of the crop, of the image's")
    crop_ratio: tuple[float, float] = Field(default=(0.75, 1.33), description="least and greatest ratio of its width to its height")
    flip_probability: float = Field(default=0.5, ge=0, le=1, description="of a horizontal flip, and again of a vertical one")
    rotation_degrees: float = Field(default=15.0, ge=0, le=180, description="greatest angle either way (paper: 15 in section 4, 30 in 3.1)")
    jitter: float = Field(default=0.2, ge=0, le=0.5, description="greatest change of brightness, contrast, saturation and hue")

    @model_validator(mode="after")
    def _is_ordered(self) -> "ViewConfig":
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"expected 0 < least ≤ greatest ≤ 1 for crop_scale, got {self.crop_scale}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"expected 0 < least ≤ greatest for crop_ratio, got {self.crop_ratio}")
        return self


def draw_views(images: Tensor, config: ViewConfig) -> Tensor:
    """One random view of each image (N, 3, H, H) in [0, 1], of the same shape and range."""
    n = len(images)
    size, centre = draw_boxes(n, scale=config.crop_scale, ratio=config.crop_ratio)
    signs = torch.where(torch.rand(n, 2) < config.flip_probability, -1.0, 1.0)
    angles = math.radians(config.rotation_degrees) * _draw(n)
    views = place(images, size=size, centre=centre, signs=signs, angles=angles)
    factors, shifts = 1 + config.jitter * _draw(3, n), config.jitter * _draw(n)
    for change in torch.randperm(4).tolist():
        views = (
            change_hue(views, shifts)
            if change == 3
            else (change_brightness, change_contrast, change_saturation)[change](views, factors[change])
        )
    return views


def draw_boxes(count: int, *, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Boxes in a square image: areas uniform, ratios of width to height log-uniform, the first of ten tries that fits, or the whole.

    Returns:
        Width and height (count, 2) as shares of the image's side; centre (count, 2), x and y from −1 to 1.
    """
    area = scale[0] + (scale[1] - scale[0]) * torch.rand(count, _TRIES)
    aspect = torch.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * torch.rand(count, _TRIES))
    tried = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 2)  # (count, tries, 2)
    fits = (tried <= 1).all(2)
    size = tried[torch.arange(count), fits.int().argmax(1)]
    size[~fits.any(1)] = 1
    return size, (1 - size) * _draw(count, 2)


def place(images: Tensor, *, size: Tensor, centre: Tensor, signs: Tensor, angles: Tensor) -> Tensor:
    """Cut boxes out of square images, resize them to the images' size, flip and then rotate them.

    Args:
        images: (N, C, H, H).
        size, centre: (N, 2) as of `draw_boxes`.
        signs: (N, 2), −1 where x (left and right), y (top and bottom) are exchanged, else 1.
        angles: (N,) in radians, counter-clockwise.
    """
    cos, sin = angles.cos(), angles.sin()
    back = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)  # (N, 2, 2): y points down
    theta = torch.cat([(size * signs)[:, :, None] * back, centre[:, :, None]], 2)  # (N, 2, 3), from places of the view to the image's
    grid = nn.functional.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False).clamp(0, 1)


def change_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Each image (N, 3, H, W) times its factor (N,)."""
    return _blend(images, torch.zeros_like(images[:, :1]), factors)


def change_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Differences to the mean grey of each image (N, 3, H, W) times its factor (N,)."""
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), factors)


def change_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Differences to the grey of each pixel of (N, 3, H, W) times its image's factor (N,)."""
    return _blend(images, _grey(images), factors)


def change_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Each image (N, 3, H, W) with its hue, in HSV, shifted by so many turns (N,) of the colour circle."""
    value, where = images.max(1)  # (N, H, W)
    chroma = value - images.amin(1)
    red, green, blue = images.unbind(1)
    differences = torch.stack([green - blue, blue - red, red - green])  # (3, N, H, W)
    hue = differences.gather(0, where[None])[0] / torch.where(chroma > 0, chroma, 1) + 2 * where  # in sixths of a turn
    hue = hue + 6 * turns.to(images)[:, None, None]
    k = (torch.tensor([5.0, 3.0, 1.0], device=images.device)[:, None, None] + hue[:, None]) % 6  # (N, 3, H, W)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def _draw(*shape: int) -> Tensor:
    """Uniform from −1 to 1."""
    return 2 * torch.rand(*shape) - 1


def _grey(images: Tensor) -> Tensor:
    return (images * torch.tensor(_GREY, device=images.device)[:, None, None]).sum(1, keepdim=True)  # (N, 1, H, W)


def _blend(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    factors = factors.to(images)[:, None, None, None]
    return (factors * images + (1 - factors) * others).clamp(0, 1)
