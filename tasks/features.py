"""What a picture shows, as a vector of a pretrained network: for duplicates that a hash does not find, zoomed or cropped ones."""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from methods.detectors.networks.efficientnet_lite import EfficientNetLite0Features

_SIZE_PX = 224  # that the network was trained at
_BLOCKS = (10, 14)


def describe_picture(image: np.ndarray) -> bytes:
    """The mean activations of blocks 10 and 14 of EfficientNet-lite0, each normalised: 304 float16 as bytes.

    Args:
        image: (H, W, 3) uint8 RGB.
    """
    pixels = np.array(Image.fromarray(image).resize((_SIZE_PX, _SIZE_PX), Image.Resampling.BILINEAR, reducing_gap=2.0))
    with torch.inference_mode():
        blocks = _network()(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
    means = [torch.nn.functional.normalize(block.mean(dim=(2, 3)), dim=1) for block in blocks]
    return bytes(torch.cat(means, dim=1)[0].numpy().astype(np.float16).tobytes())


def stack_features(described: list[bytes]) -> np.ndarray:
    """(n, 304) float32 of what `describe_picture` gave."""
    return np.frombuffer(b"".join(described), np.float16).reshape(len(described), -1).astype(np.float32)


@lru_cache(maxsize=1)
def _network() -> EfficientNetLite0Features:
    return EfficientNetLite0Features(_BLOCKS)
