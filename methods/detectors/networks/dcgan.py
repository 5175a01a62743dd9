"""A fully convolutional encoder and decoder in the manner of DCGAN (Radford et al. 2016), as the VAE of Lu & Xu 2018 has them.

Blocks of a 4 × 4 convolution of stride 2, batch normalisation and ReLU halve the image down to 4 × 4, each twice as wide as the one before;
4 × 4 convolutions without padding give mean and log-variance, 1 × 1. The decoder is the mirror and ends in tanh. As in DCGAN, the first
block down and the last one up have no batch normalisation.
"""

from itertools import pairwise

from torch import Tensor, nn

LATENT_SIDE_PX = 4  # of what the last block down gives


def count_blocks(size_px: int) -> int:
    """How many blocks halve an image of a size, a power of two from 8, down to 4 × 4."""
    return size_px.bit_length() - LATENT_SIDE_PX.bit_length()


class DCGANEncoder(nn.Module):
    """From images (N, 3, H, W) to mean and log-variance, each (N, latent)."""

    def __init__(self, *, size_px: int, width: int, latent: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(count_blocks(size_px))]
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.ReLU()]
        for i, o in pairwise(widths):
            layers += [nn.Conv2d(i, o, 4, 2, 1), nn.BatchNorm2d(o), nn.ReLU()]
        self.blocks = nn.Sequential(*layers)
        self.mean = nn.Conv2d(widths[-1], latent, LATENT_SIDE_PX)
        self.log_variance = nn.Conv2d(widths[-1], latent, LATENT_SIDE_PX)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent."""
        h = self.blocks(x)  # (N, C, 4, 4)
        return self.mean(h).flatten(1), self.log_variance(h).flatten(1)


class DCGANDecoder(nn.Module):
    """From latents (N, latent) to images (N, 3, H, W) in [-1, 1]."""

    def __init__(self, *, size_px: int, width: int, latent: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in reversed(range(count_blocks(size_px)))]
        layers: list[nn.Module] = [nn.Unflatten(1, (latent, 1, 1))]
        layers += [nn.ConvTranspose2d(latent, widths[0], LATENT_SIDE_PX), nn.BatchNorm2d(widths[0]), nn.ReLU()]
        for i, o in pairwise(widths):
            layers += [nn.ConvTranspose2d(i, o, 4, 2, 1), nn.BatchNorm2d(o), nn.ReLU()]
        self.blocks = nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        """The image of a latent."""
        x: Tensor = self.blocks(z)
        return x
