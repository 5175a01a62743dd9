"""What two images differ in, place by place: in the features of a pretrained network (Tuluptceva et al. 2020, section 3.1), or in pixels.

    L(x, x̂) = |f(x) − f(x̂)|₁ / |f(x)|₁,   f = (features − μ) / σ for each channel.

Paper: the formula; μ and σ of the layer over a large data set, VGG-19. From the authors' public code: the denominator has no gradient.
(What it divides by is called "var" there; the paper says standard deviation, and so it is here.) Ours: the backbone is free; μ and σ are
those of the training images, kept with the weights; images too small for a layer are enlarged for it; the maps.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from methods.detectors.networks.backbones import BackboneConfig, build_backbone

_LEAST_PLACES = 4  # a side, of features: as few as the paper's public settings have (16 px, VGG-19's relu3_2)
_LEAST_VARIANCE = 1e-10  # over the mean's square: less is rounding


def relative_l1(f_x: Tensor, f_x_hat: Tensor) -> Tensor:
    """|f(x) − f(x̂)| of each place, averaged over the channels, over the mean |f(x)| of the sample, which has no gradient.

    Args:
        f_x: standardised features (N, C, h, w).
        f_x_hat: of the reconstruction, of the same shape.

    Returns:
        (N, h, w), at least 0; the mean over the places is L. The same for both multiplied by any factor.
    """
    size = f_x.detach().abs().mean((1, 2, 3)).clamp_min(1e-6)  # the clamp is for features that are the mean everywhere
    return (f_x - f_x_hat).abs().mean(1) / size[:, None, None]


class PerceptualDifference(nn.Module):
    """Relative L1 between standardised features of one layer; before `fit_statistics` as if of mean 0 and deviation 1.

    Args:
        config: of a backbone with one layer.
        size_px: of the images that are compared, a power of two; they are enlarged by a whole factor (bilinear) where the layer would have
            fewer than 4 × 4 places.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: BackboneConfig, *, size_px: int) -> None:
        super().__init__()
        self.backbone = build_backbone(config)
        (channels,), (stride_px,) = self.backbone.channels, self.backbone.strides_px
        self.enlargement = max(1, -(-_LEAST_PLACES * stride_px // size_px))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def features(self, images: Tensor) -> Tensor:
        """Features (N, C, h, w), not standardised, of images (N, 3, H, W); [0, 1] is the range of what the backbone knows."""
        if self.enlargement > 1:
            images = nn.functional.interpolate(images, scale_factor=self.enlargement, mode="bilinear", align_corners=False)
        (features,) = self.backbone(images)
        return features

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Relative differences (N, h, w), whose mean over the places is the loss of a sample."""
        return relative_l1(self._standardise(self.features(x)), self._standardise(self.features(x_hat)))

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[Tensor]) -> None:
        """Take mean and standard deviation of every channel over all places of all images; a channel that never varies is not scaled."""
        count, total, squares = 0, torch.zeros_like(self.mean, dtype=torch.float64), torch.zeros_like(self.mean, dtype=torch.float64)
        for images in batches:
            places = self.features(images).double().transpose(0, 1).flatten(1)  # (C, n)
            count += places.shape[1]
            total += places.sum(1)
            squares += places.square().sum(1)
        mean = total / count
        variance = (squares - count * mean.square()) / max(1, count - 1)
        varies = variance > _LEAST_VARIANCE * mean.square().clamp_min(_LEAST_VARIANCE)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(varies, variance, 1).sqrt())

    def _standardise(self, features: Tensor) -> Tensor:
        return (features - self.mean[:, None, None]) / self.std[:, None, None]


class PixelDifference(nn.Module):
    """|x − x̂|, for comparison."""

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Differences averaged over the channels (N, H, W), whose mean over the places is the loss of a sample."""
        return (x - x_hat).abs().mean(1)


def enlarge_map(places: Tensor, size_px: int) -> Tensor:
    """A map (N, h, w) at a size (N, size_px, size_px), bilinear."""
    return nn.functional.interpolate(places[:, None], (size_px, size_px), mode="bilinear", align_corners=False)[:, 0]
