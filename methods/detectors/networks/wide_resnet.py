"""Wide residual networks (Zagoruyko & Komodakis 2016, "Wide Residual Networks"): WRN-d-k of depth d and widening factor k.

A 3 × 3 convolution to 16 channels, three groups of (d − 4) / 6 blocks of 16 k, 32 k and 64 k channels, the second and third of which halve
the image, then batch normalisation, ReLU, the mean over all places and a linear layer. A block adds to its input two 3 × 3 convolutions,
each after batch normalisation and ReLU; where the width changes, the input goes through a 1 × 1 convolution. No dropout. The first
weights are those of Golan & El-Yaniv's public code: He et al.'s for convolutions, U(±1 / √inputs) for the linear layer, biases 0.
"""

from torch import Tensor, nn
from torch.nn.functional import relu


class WideBlock(nn.Module):
    """From (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """The input and what is added to it."""
        h = relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(h)
        added: Tensor = self.conv2(relu(self.norm2(self.conv1(h))))
        return kept + added


class WideResNet(nn.Module):
    """From images (N, 3, H, W) to logits (N, classes); H and W multiples of 4."""

    def __init__(self, *, depth: int, width: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
        channels = 16
        for group, outputs in enumerate((16 * width, 32 * width, 64 * width)):
            for block in range((depth - 4) // 6):
                layers.append(WideBlock(channels, outputs, stride=2 if group and not block else 1))
                channels = outputs
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.last = nn.Linear(channels, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        nn.init.uniform_(self.last.weight, -(channels**-0.5), channels**-0.5)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.last(self.features(x))
        return logits
