"""From a row of the manifest to the pixels a detector sees."""

from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from storage import filesystems
from storage.images import UnreadableImageError, read_image, read_mask
from storage.slides import SlideReader, is_slide, open_slide
from storage.tiff_levels import UnreadableSlideError

Row = Mapping[Hashable, Any] | pd.Series  # a row of the manifest, as a dictionary or as pandas has it
READ_ERRORS = (UnreadableImageError, UnreadableSlideError, FileNotFoundError, PermissionError)


def read_sample(row: Row, *, size_px: int) -> np.ndarray:
    """The sample's pixels, (size_px, size_px, 3) uint8 RGB; resized with antialiasing where the box has another size.

    Raises:
        UnreadableImageError, UnreadableSlideError: the file is damaged where the sample lies.
        OSError: it is not there or does not answer.
    """
    x, y, width, height = int(row["x_px"]), int(row["y_px"]), int(row["width_px"]), int(row["height_px"])
    if _is_slide(row["uri"], row["sha256"]):
        pixels = _slide(row["uri"], row["sha256"]).read_region(x, y, width, height, level=int(row["level"]))
    else:
        pixels = _picture(row["uri"], row["sha256"])[y : y + height, x : x + width]
    if pixels.shape[:2] == (size_px, size_px):
        return np.array(pixels)  # a copy: the picture it is cut from is kept for its other samples
    return np.array(Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling.BILINEAR))


def read_sample_mask(row: Row, *, size_px: int) -> np.ndarray | None:
    """Which pixels are abnormal, (size_px, size_px) bool; None where it is unknown.

    A normal sample's is empty; an abnormal one's is cut out of its picture's mask. A pixel of a reduced mask is abnormal when half of
    what it stands for is.
    """
    if pd.isna(row["mask_uri"]):
        return np.zeros((size_px, size_px), bool) if row["label"] == 0 else None
    x, y, width, height = int(row["x_px"]), int(row["y_px"]), int(row["width_px"]), int(row["height_px"])
    mask = _mask(row["mask_uri"], row["mask_sha256"])[y : y + height, x : x + width]
    if mask.shape == (size_px, size_px):
        return mask
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize((size_px, size_px), Image.Resampling.BOX)) >= 128


def read_whole_mask(row: Row) -> np.ndarray | None:
    """The mask (H, W) bool of the whole picture that a sample belongs to; None where there is none."""
    return None if pd.isna(row["mask_uri"]) else _mask(row["mask_uri"], row["mask_sha256"])


def to_tensor(images: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255


class SampleDataset(Dataset[Tensor]):
    """Rows of a manifest as images (3, size, size) float32; decoded once, as long as `cache_bytes` lasts."""

    def __init__(self, rows: pd.DataFrame, *, size_px: int, cache_bytes: int = 2 << 30) -> None:
        self._rows = rows.to_dict("records")
        self._size_px = size_px
        self._kept: dict[int, np.ndarray] = {}
        self._room = cache_bytes // (3 * size_px**2)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Tensor:
        pixels = self._kept.get(index)
        if pixels is None:
            pixels = read_sample(self._rows[index], size_px=self._size_px)
            if len(self._kept) < self._room:
                self._kept[index] = pixels
        return to_tensor(pixels[None])[0]


# A process keeps a few files open. The digest is part of the key, so that a file that was replaced is opened again.
@lru_cache(maxsize=4096)
def _is_slide(uri: str, _sha256: str) -> bool:
    return is_slide(uri)


@lru_cache(maxsize=8)
def _slide(uri: str, _sha256: str) -> SlideReader:
    return open_slide(uri)


@lru_cache(maxsize=4)
def _picture(uri: str, _sha256: str) -> np.ndarray:
    with filesystems.open_for_reading(uri) as file:
        return read_image(file)


@lru_cache(maxsize=4)
def _mask(uri: str, _sha256: str) -> np.ndarray:
    with filesystems.open_for_reading(uri) as file:
        return read_mask(file)
