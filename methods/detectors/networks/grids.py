"""Features of several layers of a backbone as one vector a place, or one vector an image."""

from typing import Literal

import torch
from torch import Tensor, nn


def average_neighbours(layer: Tensor) -> Tensor:
    """Mean of the 3 × 3 places around each place of features (N, C, h, w); at the border of those that there are."""
    return nn.functional.avg_pool2d(layer, 3, 1, 1, count_include_pad=False)


def join_on_grid(layers: list[Tensor], *, side: int, upsampling: Literal["bilinear", "nearest"] = "bilinear") -> Tensor:
    """One vector a place of all layers' features.

    Args:
        layers: features (N, C_l, h_l, w_l) each.
        side: height and width of the grid; finer layers are averaged to it, coarser ones interpolated.
        upsampling: how coarser ones are interpolated.

    Returns:
        (N, side, side, C), C = Σ C_l, contiguous.
    """
    aligned = []
    for layer in layers:
        if layer.shape[-1] > side:
            layer = nn.functional.adaptive_avg_pool2d(layer, side)
        elif layer.shape[-1] < side:
            corners = None if upsampling == "nearest" else False
            layer = nn.functional.interpolate(layer, (side, side), mode=upsampling, align_corners=corners)
        aligned.append(layer)
    return torch.cat(aligned, 1).permute(0, 2, 3, 1).contiguous()


def pool_places(layers: list[Tensor]) -> Tensor:
    """One vector an image: (N, C) float64, the means over the places of each layer's features (N, C_l, h_l, w_l)."""
    return torch.cat([layer.double().mean((2, 3)) for layer in layers], 1)
