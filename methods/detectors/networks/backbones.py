"""Frozen networks, pretrained on photographs, whose intermediate outputs are features."""

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from methods.detectors.interface import DetectorError
from methods.detectors.networks.efficientnet_lite import CHANNELS_OF_BLOCK, STRIDE_PX_OF_BLOCK, EfficientNetLite0Features

BUNDLED = "efficientnet-lite0"


class BackboneConfig(BaseModel):
    """Which network, which of its layers, whose weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default=BUNDLED, description="a network of BUNDLED, torchvision or timm")
    layers: tuple[str, ...] = Field(min_length=1, description="names of layers, shallow to deep; bundled: block2, block4, block10, block14")
    weights: str | None = Field(default=None, description="a local weight file; null: those that belong to the name")
    weights_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$", description="SHA-256 of that file")


class Backbone(nn.Module):
    """A frozen network, always in evaluation mode; gradients flow to the images.

    Attributes:
        channels: of each layer's features.
        strides_px: pixels of the image per place of each layer's features.
    """

    channels: tuple[int, ...]
    strides_px: tuple[int, ...]

    def __init__(self, network: nn.Module, *, channels: tuple[int, ...], strides_px: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.channels = channels
        self.strides_px = strides_px
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "Backbone":
        """Frozen: stays in evaluation mode whatever is asked."""
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features [(N, C, H / stride, W / stride)] of the layers, for images (N, 3, H, W) in [0, 1]."""
        features: list[Tensor] = self.network(images)
        return features


def build_backbone(config: BackboneConfig) -> Backbone:
    """The network with its weights.

    Raises:
        DetectorError: no such network or layer.
    """
    if config.name != BUNDLED:
        raise DetectorError(f"expected {BUNDLED}, got {config.name!r}")
    blocks = {f"block{number}": number for number in CHANNELS_OF_BLOCK}
    if unknown := [layer for layer in config.layers if layer not in blocks]:
        raise DetectorError(f"{BUNDLED} has the layers {', '.join(blocks)}; got {', '.join(unknown)}")
    numbers = tuple(blocks[layer] for layer in config.layers)
    if list(numbers) != sorted(set(numbers)):
        raise DetectorError(f"expected different layers from shallow to deep, got {', '.join(config.layers)}")
    return Backbone(
        EfficientNetLite0Features(numbers),
        channels=tuple(CHANNELS_OF_BLOCK[number] for number in numbers),
        strides_px=tuple(STRIDE_PX_OF_BLOCK[number] for number in numbers),
    )
