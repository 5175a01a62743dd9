"""Three photographs of textures and one of stained tissue, 512 × 512 px, that scikit-image ships: real, and there wherever this runs.

Nothing in them is abnormal: `paint` paints defects into some windows. The left half of a picture trains, in four windows to be cut into
tiles; the right half, in 32 windows of 64 × 64 px, is for validation and test, so that no pixel is in two splits.
Where: inside the installed package scikit-image (https://scikit-image.org/docs/stable/api/skimage.data.html).
"""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from skimage.data import data_dir

from storage.datasets.source import SourceItem

_FILES = {"brick": "brick.png", "grass": "grass.png", "gravel": "gravel.png", "tissue": "ihc.png"}
_SIDE_PX = 512
_TRAINING_PX = (256, 128)  # width, height
_HELD_OUT_PX = (64, 64)


class TextureSource(BaseModel):
    """Which texture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["texture"] = "texture"
    texture: Literal["brick", "grass", "gravel", "tissue"] = Field(description="tissue is immunohistochemistry (DAB and haematoxylin)")


def list_texture(source: TextureSource) -> list[SourceItem]:
    """Four windows of the left half, split train, then 32 of the right half, in no split; each a subject of its own, all normal."""
    uri = str(Path(data_dir, _FILES[source.texture]).absolute())
    return [
        SourceItem(
            uri=uri,
            dataset=f"texture {source.texture}",
            subject_id=f"{source.texture}:{window}",
            label=0,
            frame=window,
            split=split,
        )
        for size_px, half, split in ((_TRAINING_PX, "left", "train"), (_HELD_OUT_PX, "right", None))
        for window in _name_windows(size_px, half)
    ]


def _name_windows(size_px: tuple[int, int], half: str) -> list[str]:
    """The frames of one half of a picture; see `storage.frames.read_array`."""
    width, height = size_px
    numbers = np.arange(_SIDE_PX * _SIDE_PX // (width * height)).reshape(_SIDE_PX // height, _SIDE_PX // width)
    left, right = np.hsplit(numbers, 2)
    return [f"{width}x{height}:{number}" for number in (left if half == "left" else right).ravel()]
