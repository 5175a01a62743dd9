"""ResNet of basic blocks (He et al. 2016, "Deep Residual Learning for Image Recognition", table 1) without classifier.

Layers and tensors are called as torchvision's `resnet18`, so that its weight files fit; width and depth may be smaller here.
"""

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from methods.detectors.interface import DetectorError
from methods.detectors.networks.weights import read_weights, wants_weights


class ResNetConfig(BaseModel):
    """Size and first weights; the defaults are ResNet-18 with random ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(default=64, ge=1, description="channels of the first layer; each of the next three doubles them")
    blocks: tuple[int, int, int, int] = Field(default=(2, 2, 2, 2), description="basic blocks of each layer")
    weights: str | None = Field(default=None, description="a local file of torchvision's resnet18, .safetensors or .pth; null: random")
    weights_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$", description="SHA-256 of that file")

    @model_validator(mode="after")
    def _is_complete(self) -> "ResNetConfig":
        if min(self.blocks) < 1:
            raise ValueError(f"expected at least one block in each layer, got {self.blocks}")
        if self.weights is not None and self.weights_sha256 is None:
            raise ValueError(f"expected weights_sha256, the digest of {self.weights}; `sha256sum {self.weights}` prints it")
        return self


class ResNet(nn.Module):
    """Images (N, 3, H, W), normalised as the weights ask, to features (N, dims), the mean over the places of the last layer."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.dims = 8 * config.width
        self.conv1 = nn.Conv2d(3, config.width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        channels = config.width
        for number, blocks in enumerate(config.blocks):
            width = config.width * 2**number
            layer = [_BasicBlock(channels if i == 0 else width, width, stride=2 if i == 0 and number else 1) for i in range(blocks)]
            self.add_module(f"layer{number + 1}", nn.Sequential(*layer))
            channels = width
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
        if config.weights is not None and config.weights_sha256 is not None and wants_weights():
            self._load(Path(config.weights).expanduser(), config.weights_sha256)

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, dims)."""
        x = nn.functional.max_pool2d(self.bn1(self.conv1(images)).relu(), 3, 2, 1)  # (N, width, H / 4, W / 4)
        for number in range(4):
            x = self.get_submodule(f"layer{number + 1}")(x)
        return x.mean((2, 3))

    def _load(self, path: Path, sha256: str) -> None:
        state = {name: tensor for name, tensor in read_weights(path, sha256=sha256).items() if not name.startswith("fc.")}
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise DetectorError(f"{path} does not hold the weights of a ResNet of this size: {str(error)[:300]}") from None


class _BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a short cut."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride > 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        change = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return torch.relu(change + self.downsample(x))
