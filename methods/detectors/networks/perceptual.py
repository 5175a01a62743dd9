"""What two images differ in, place by place: in the features of a pretrained network (Tuluptceva et al. 2020, section 3.1), or in pixels.

    L(x, x̂) = |f(x) − f(x̂)|₁ / |f(x)|₁,   f = (features − μ) / σ for each channel.

Paper: the formula; μ and σ of the layer over a large data set, VGG-19. From the authors' public code: the denominator has no gradient; of
several layers L is the mean, each with a denominator of its own.
(What it divides by is called "var" there; the paper says standard deviation, and so it is here.) Ours: the backbone is free; μ and σ are
those of the training images, kept with the weights; images too small for a layer are enlarged for it; the maps.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from methods.detectors.interface import DetectorError
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
    """Relative L1 between standardised features, averaged over layers; before `fit_statistics` as if of mean 0 and deviation 1.

    Args:
        config: of a backbone, with the layers that count, each as much as any other.
        size_px: of the images that are compared, a power of two; they are enlarged by a whole factor (bilinear) where the deepest layer
            would have fewer than 4 × 4 places.

    Raises:
        DetectorError: as of `build_backbone`; layers whose places do not fit into each other.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: BackboneConfig, *, size_px: int) -> None:
        super().__init__()
        self.backbone = build_backbone(config)
        finest = min(self.backbone.strides_px)
        if any(stride % finest for stride in self.backbone.strides_px):
            strides = ", ".join(map(str, self.backbone.strides_px))
            raise DetectorError(f"expected layers whose strides are multiples of the finest one's, got {strides} px")
        self.enlargement = max(1, -(-_LEAST_PLACES * max(self.backbone.strides_px) // size_px))
        channels = sum(self.backbone.channels)  # one layer's after the other's
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def features(self, images: Tensor) -> list[Tensor]:
        """Each layer's features (N, C, h, w), not standardised, of images (N, 3, H, W); [0, 1] is the range of what the backbone knows."""
        if self.enlargement > 1:
            images = nn.functional.interpolate(images, scale_factor=self.enlargement, mode="bilinear", align_corners=False)
        features: list[Tensor] = self.backbone(images)
        return features

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Relative differences (N, h, w) on the finest layer's grid, whose mean over the places is the loss of a sample."""
        layers = zip(self._standardise(self.features(x)), self._standardise(self.features(x_hat)), strict=True)
        return _average([relative_l1(f_x, f_x_hat) for f_x, f_x_hat in layers])

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[Tensor]) -> None:
        """Take mean and standard deviation of every channel over all places of all images; a channel that never varies is not scaled."""
        layers = self._split(torch.zeros_like(self.mean, dtype=torch.float64))
        counts, totals, squares = [0] * len(layers), [layer.clone() for layer in layers], [layer.clone() for layer in layers]
        for images in batches:
            for number, layer in enumerate(self.features(images)):
                places = layer.double().transpose(0, 1).flatten(1)  # (C, n)
                counts[number] += places.shape[1]
                totals[number] += places.sum(1)
                squares[number] += places.square().sum(1)
        statistics = [_summarise(*sums) for sums in zip(counts, totals, squares, strict=True)]
        self.mean.copy_(torch.cat([mean for mean, _ in statistics]))
        self.std.copy_(torch.cat([std for _, std in statistics]))

    def _standardise(self, features: list[Tensor]) -> list[Tensor]:
        layers = zip(features, self._split(self.mean), self._split(self.std), strict=True)
        return [(layer - mean[:, None, None]) / std[:, None, None] for layer, mean, std in layers]

    def _split(self, channels: Tensor) -> tuple[Tensor, ...]:
        """What is kept of all layers' channels, by layer."""
        return channels.split(self.backbone.channels)


def _summarise(count: int, total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) float64 from the sums over places; 1 for a channel that never varies."""
    mean = total / count
    variance = (squares - count * mean.square()) / max(1, count - 1)
    varies = variance > _LEAST_VARIANCE * mean.square().clamp_min(_LEAST_VARIANCE)
    return mean, torch.where(varies, variance, 1).sqrt()


def _average(maps: list[Tensor]) -> Tensor:
    """The mean (N, h, w) of maps on the grid of the largest, whose side is a multiple of the others': its mean is that of their means."""
    if len(maps) == 1:
        return maps[0]
    side = max(places.shape[-1] for places in maps)
    repeated = [places.repeat_interleave(n := side // places.shape[-1], 1).repeat_interleave(n, 2) for places in maps]
    return torch.stack(repeated).mean(0)


class PixelDifference(nn.Module):
    """|x − x̂|, for comparison."""

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Differences averaged over the channels (N, H, W), whose mean over the places is the loss of a sample."""
        return (x - x_hat).abs().mean(1)


def enlarge_map(places: Tensor, size_px: int) -> Tensor:
    """A map (N, h, w) at a size (N, size_px, size_px), bilinear."""
    return nn.functional.interpolate(places[:, None], (size_px, size_px), mode="bilinear", align_corners=False)[:, 0]
