"""Pseudo-anomalies made from normal images, on which detectors are compared where no anomaly is known.

A rectangle of another normal image is pasted over each image: the patch of CutPaste (Li et al. 2021, "CutPaste: Self-Supervised Learning
for Anomaly Detection and Localization": 2 to 15 % of the area, sides in a ratio of 0.3 to 3.3), from another image as Tan et al. 2020 do
("Detecting Outliers with Foreign Patch Interpolation"). That detectors chosen on such images are often those that labelled ones
would choose is what Fung et al. 2023 found ("Model Selection of Anomaly Detectors in the Absence of Labeled Validation Data").
Ours: a patch that changes nothing, such as background on background, is drawn again; its colours are not jittered.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

_AREA = (0.02, 0.15)
_RATIO = (0.3, 1 / 0.3)
_ATTEMPTS = 20
_CHANGE = 0.05  # mean absolute difference inside the patch, of values in [0, 1]


class PseudoAnomalies(Dataset[Tensor]):
    """Each image of a dataset with a patch of another pasted over it: (3, H, W) float32 in [0, 1], always the same for one seed.

    Patches are drawn in shares of the image's sides: at another input size they lie in the same places.

    Args:
        images: n ≥ 2 normal images (3, H, W).
        seed: of the patches.

    Raises:
        ValueError: fewer than two images.
    """

    def __init__(self, images: Dataset[Tensor], *, seed: int) -> None:
        if len(images) < 2:  # type: ignore[arg-type]
            raise ValueError("a patch of another image needs at least two images")
        self._images = images
        self._seed = seed

    def __len__(self) -> int:
        return len(self._images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng((self._seed, index))
        other = (index + int(rng.integers(1, len(self)))) % len(self)
        return paste_patch(self._images[index], self._images[other], rng=rng)


def paste_patch(image: Tensor, other: Tensor, *, rng: np.random.Generator) -> Tensor:
    """The image (3, H, W) with a rectangle of another one pasted at a place of its own, of the same shape.

    The first of 20 drawn patches is taken that changes the pixels under it by 0.05 on average, or else the one that changes most.
    """
    height, width = image.shape[1:]
    best, most = image, -1.0
    for _ in range(_ATTEMPTS):
        area, ratio = rng.uniform(*_AREA), math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        h = min(height, max(1, round(height * math.sqrt(area * ratio))))
        w = min(width, max(1, round(width * math.sqrt(area / ratio))))
        (y, x), (from_y, from_x) = ((int(u * (height - h + 1)), int(v * (width - w + 1))) for u, v in rng.random((2, 2)))
        patch = other[:, from_y : from_y + h, from_x : from_x + w]
        change = float((patch - image[:, y : y + h, x : x + w]).abs().mean())
        if change > most:
            best, most = torch.clone(image), change
            best[:, y : y + h, x : x + w] = patch
        if change >= _CHANGE:
            break
    return best
