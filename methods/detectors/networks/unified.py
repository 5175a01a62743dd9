"""The one architecture that the comparative study of brain MRI gives all its autoencoders and critics (Baur et al. 2021, "Autoencoders for
Unsupervised Anomaly Segmentation in Brain MR Images: A Comparative Study").

5 × 5 convolutions of stride 2, normalisation and LeakyReLU halve the image down to 8 × 8; widths 32, 64, 128 and then 128 on (four of them
for the study's 128 × 128). A 1 × 1 convolution to an eighth of the channels, fully connected layers to mean and log-variance; the decoder
is the mirror, with a 1 × 1 convolution and no activation at the end. From its public code: LeakyReLU's slope 0.3 and, where batch
normalisation does not belong, normalisation of every channel over its places. Its dropout of 0.1 on the latents is left out; a code's
log-variance is learnt, where theirs is log σ.
"""

from typing import Literal

from torch import Tensor, nn

BOTTLENECK_SIDE_PX = 8
Normalisation = Literal["batch", "layer"]

_SLOPE = 0.3  # Keras's default


def unified_widths(size_px: int) -> list[int]:
    """Channels of each block down for an image of a size, a power of two from 16."""
    return [min(128, 32 * 2**i) for i in range(size_px.bit_length() - BOTTLENECK_SIDE_PX.bit_length())]


def unified_blocks(size_px: int, *, normalisation: Normalisation) -> nn.Sequential:
    """From images (N, 3, H, W) to features (N, C, 8, 8)."""
    layers: list[nn.Module] = []
    i = 3
    for level, o in enumerate(unified_widths(size_px)):
        layers += [nn.Conv2d(i, o, 5, 2, 2), _normalise(o, size_px >> (level + 1), normalisation), nn.LeakyReLU(_SLOPE)]
        i = o
    return nn.Sequential(*layers)


class UnifiedEncoder(nn.Module):
    """From images (N, 3, H, W) to mean and log-variance, each (N, latent)."""

    def __init__(self, *, size_px: int, latent: int) -> None:
        super().__init__()
        width = unified_widths(size_px)[-1]
        self.blocks = nn.Sequential(unified_blocks(size_px, normalisation="batch"), nn.Conv2d(width, width // 8, 1), nn.Flatten())
        self.mean = nn.Linear(width // 8 * BOTTLENECK_SIDE_PX**2, latent)
        self.log_variance = nn.Linear(width // 8 * BOTTLENECK_SIDE_PX**2, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent."""
        h = self.blocks(x)
        return self.mean(h), self.log_variance(h)


class UnifiedDecoder(nn.Module):
    """From latents (N, latent) to images (N, 3, H, W), not limited to any range."""

    def __init__(self, *, size_px: int, latent: int, normalisation: Normalisation) -> None:
        super().__init__()
        widths = unified_widths(size_px)[::-1]
        side, i = BOTTLENECK_SIDE_PX, widths[0]
        layers: list[nn.Module] = [
            nn.Linear(latent, i // 8 * side**2),
            nn.Unflatten(1, (i // 8, side, side)),
            nn.Conv2d(i // 8, i, 1),
            _normalise(i, side, normalisation),
            nn.ReLU(),
        ]
        for level in range(len(widths)):
            o = max(32, 128 >> level)
            layers += [nn.ConvTranspose2d(i, o, 5, 2, 2, output_padding=1)]
            layers += [_normalise(o, side << (level + 1), normalisation), nn.LeakyReLU(_SLOPE)]
            i = o
        self.blocks = nn.Sequential(*layers, nn.Conv2d(i, 3, 1))

    def forward(self, z: Tensor) -> Tensor:
        """The image of a latent."""
        x: Tensor = self.blocks(z)
        return x


class UnifiedCritic(nn.Module):
    """From images (N, 3, H, W) to one number each (N,): the mean over 8 × 8 places; no image sees another, as WGAN-GP needs it."""

    def __init__(self, *, size_px: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(unified_blocks(size_px, normalisation="layer"), nn.Conv2d(unified_widths(size_px)[-1], 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """How real each image looks."""
        d: Tensor = self.blocks(x).flatten(1).mean(1)
        return d


def _normalise(channels: int, side_px: int, normalisation: Normalisation) -> nn.Module:
    return nn.BatchNorm2d(channels) if normalisation == "batch" else nn.LayerNorm((side_px, side_px))
