"""Encoder and decoder of pre-activation residual blocks that can grow (Tuluptceva et al. 2020, section 3.2, after Karras et al. 2018,
"Progressive Growing of GANs").

From the authors' public code: LeakyReLU of slope 0.2, no normalisation layers, average pooling down, nearest neighbour up, He's
initialisation by the fan-out, both kinds of entry and exit layers, a vector as latent by a 4 × 4 convolution. Ours: the decoder's first
block may change the number of channels; blocks begin near their skips and exits near grey, because ReLU6, as in EfficientNet-lite, has no
gradient for images far out of range, as He's initialisation makes them.

Sizes are sides of square images and features in pixels, all powers of two. Each size from which an image may enter has its own entry
layers, and each at which one may leave its own exit.
"""

from typing import Literal, NamedTuple

from torch import Tensor, nn

from methods.detectors.interface import CHANNELS

_VECTOR_BASE_PX = 4  # features from which a vector is made, and to which it is spread
_SLOPE = 0.2
_BLOCK_GAIN = 0.1  # of a block's last weights at first
_EXIT_GAIN = 0.01


def base_of(latent_side_px: int) -> int:
    """The side of the smallest features: the latent's, but for a vector."""
    return _VECTOR_BASE_PX if latent_side_px == 1 else latent_side_px


class Shape(NamedTuple):
    """What encoder and decoder of one autoencoder share.

    Attributes:
        sizes_px: of images that may enter and leave, ascending; the last is the input's.
        latent_side_px: of the latent; 1 is a vector.
        latent: channels of the latent.
        width: channels at the input's size; they double with every halving, up to `width_max`.
        width_max: see above.
        blocks: residual blocks a size.
    """

    sizes_px: tuple[int, ...]
    latent_side_px: int
    latent: int
    width: int
    width_max: int
    blocks: int

    @property
    def base_px(self) -> int:
        """The smallest features."""
        return base_of(self.latent_side_px)

    def channels(self, size_px: int) -> int:
        """Of features of a size."""
        return min(self.width_max, self.width * self.sizes_px[-1] // size_px)

    def halved_px(self) -> list[int]:
        """Sizes that are halved by the encoder and doubled to by the decoder, ascending."""
        count = (self.sizes_px[-1] // self.base_px).bit_length() - 1
        return [self.base_px << step for step in range(1, count + 1)]


class PreActivationBlock(nn.Module):
    """skip(x) + conv(act(conv(act(x)))), both of them at half or twice the size where that is asked for."""

    def __init__(self, i: int, o: int, *, resample: Literal["down", "up"] | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(_act(), _resample(resample), _convolution(i, o, 3), _act(), _convolution(o, o, 3, gain=_BLOCK_GAIN))
        self.skip = nn.Sequential(_resample(resample), _convolution(i, o, 1) if i != o else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """(N, o, H', W') of (N, i, H, W)."""
        y: Tensor = self.skip(x) + self.body(x)
        return y


class ResidualEncoder(nn.Module):
    """From images to latents."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._base_px = shape.base_px
        self.entries = nn.ModuleDict({str(size): _entry(shape.channels(size), shape.blocks) for size in shape.sizes_px})
        self.halvings = nn.ModuleDict(
            {str(size): _stack(shape.channels(size), shape.channels(size // 2), shape.blocks, "down") for size in shape.halved_px()}
        )
        width = shape.channels(self._base_px)
        self.last: nn.Module = PreActivationBlock(width, shape.latent)
        if shape.latent_side_px == 1:
            self.last = nn.Sequential(_act(), _convolution(width, shape.latent, _VECTOR_BASE_PX, padding=0))

    def forward(self, x: Tensor, alpha: float = 1.0) -> Tensor:
        """Latents (N, latent, side, side) of images (N, 3, H, W) of any entry's size.

        Args:
            x: images.
            alpha: share of the way through this size's own layers; the rest enters at half the size. 1 and 0 are exactly the two networks.
        """
        size = x.shape[-1]
        if alpha == 0:
            return self.forward(halve(x))
        h = self.entries[str(size)](x)
        if alpha < 1:
            h = blend(self.entries[str(size // 2)](halve(x)), self.halvings[str(size)](h), alpha)
            size //= 2
        while size > self._base_px:
            h = self.halvings[str(size)](h)
            size //= 2
        z: Tensor = self.last(h)
        return z


class ResidualDecoder(nn.Module):
    """From latents to images of no limited range."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._base_px = shape.base_px
        width = shape.channels(self._base_px)
        self.first: nn.Module = PreActivationBlock(shape.latent, width)
        if shape.latent_side_px == 1:  # a 4 × 4 convolution of one place with 3 of padding: 4 × 4 places
            self.first = nn.Sequential(_act(), _convolution(shape.latent, width, _VECTOR_BASE_PX, padding=_VECTOR_BASE_PX - 1))
        self.doublings = nn.ModuleDict(
            {str(size): _stack(shape.channels(size // 2), shape.channels(size), shape.blocks, "up") for size in shape.halved_px()}
        )
        self.exits = nn.ModuleDict(
            {str(size): nn.Sequential(_act(), _convolution(shape.channels(size), CHANNELS, 3, gain=_EXIT_GAIN)) for size in shape.sizes_px}
        )

    def forward(self, z: Tensor, size_px: int, alpha: float = 1.0) -> Tensor:
        """Images (N, 3, size_px, size_px) of latents, size_px being any exit's.

        Args:
            z: latents.
            size_px: of the images.
            alpha: share of this size's own layers; the rest leaves at half the size. 1 and 0 are exactly the two networks.
        """
        if alpha == 0:
            return double(self.forward(z, size_px // 2))
        h = self.first(z)
        size = self._base_px
        while size < size_px:
            size *= 2
            before, h = h, self.doublings[str(size)](h)
        x: Tensor = self.exits[str(size_px)](h)
        return x if alpha == 1 else blend(double(self.exits[str(size_px // 2)](before)), x, alpha)


def halve(x: Tensor) -> Tensor:
    """Means of 2 × 2 pixels."""
    return nn.functional.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """Each pixel four times, so that `halve` gives x back to the bit."""
    return nn.functional.interpolate(x, scale_factor=2, mode="nearest")


def blend(low: Tensor, high: Tensor, alpha: float) -> Tensor:
    """(1 − α) low + α high."""
    return (1 - alpha) * low + alpha * high


def _entry(width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(_convolution(CHANNELS, width, 3), *(PreActivationBlock(width, width) for _ in range(blocks)))


def _stack(i: int, o: int, blocks: int, resample: Literal["down", "up"]) -> nn.Sequential:
    return nn.Sequential(PreActivationBlock(i, o, resample=resample), *(PreActivationBlock(o, o) for _ in range(blocks - 1)))


def _act() -> nn.Module:
    return nn.LeakyReLU(_SLOPE)


def _resample(kind: Literal["down", "up"] | None) -> nn.Module:
    if kind is None:
        return nn.Identity()
    return nn.AvgPool2d(2) if kind == "down" else nn.Upsample(scale_factor=2, mode="nearest")


def _convolution(i: int, o: int, kernel: int, *, padding: int | None = None, gain: float = 1.0) -> nn.Conv2d:
    convolution = nn.Conv2d(i, o, kernel, padding=kernel // 2 if padding is None else padding)
    nn.init.kaiming_normal_(convolution.weight, a=_SLOPE, mode="fan_out", nonlinearity="leaky_relu")
    convolution.weight.data.mul_(gain)
    return convolution
