"""Gaussian smoothing of anomaly maps."""

import torch
from torch import Tensor, nn


def smooth(maps: Tensor, *, sigma_px: float) -> Tensor:
    """Smoothed maps (N, 1, H, W), the border reflected, the kernel cut at 4 sigma."""
    if sigma_px == 0:
        return maps
    radius = int(4 * sigma_px + 0.5)
    x = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-0.5 * (x / sigma_px) ** 2)
    kernel = (kernel / kernel.sum())[None, None]  # (1, 1, 2 radius + 1)
    padded = nn.functional.pad(maps, (radius,) * 4, mode="reflect")
    return nn.functional.conv2d(nn.functional.conv2d(padded, kernel[:, :, None, :]), kernel[:, :, :, None])
