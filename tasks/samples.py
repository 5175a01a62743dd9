"""From a row of the manifest to the pixels a detector sees."""

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from storage import filesystems
from storage.images import UnreadableImageError, read_mask
from storage.pictures import decode_picture
from storage.slides import SlideReader, is_slide, open_slide
from storage.tiff_levels import UnreadableSlideError
from tasks.outlines import draw_outlines, draw_region, has_outlines
from tasks.transforms import apply_transform

Row = Mapping[Hashable, Any] | pd.Series  # a row of the manifest, as a dictionary or as pandas has it
READ_ERRORS = (UnreadableImageError, UnreadableSlideError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def read_sample(row: Row, *, size_px: int) -> np.ndarray:
    """The sample's pixels, (size_px, size_px, 3) uint8 RGB; transformed as the row says, resized with antialiasing where the box differs.

    Raises:
        UnreadableImageError, UnreadableSlideError: the file is damaged where the sample lies, or too small for its box.
        OSError: it is not there or does not answer.
    """
    # a copy: the picture it is cut from is kept for its other samples
    return np.array(_resize(_cut(row, None if is_of_slide(row) else _picture(row["uri"], _text(row, "frame"), row["sha256"])), size_px))


def read_samples(rows: Sequence[Row], sizes_px: Sequence[int]) -> list[dict[int, np.ndarray] | UnreadableSlideError | UnreadableImageError]:
    """Samples of one picture, decoded once, or of one slide: of each the pixels by size, as `read_sample` gives them, or what is wrong.

    Raises:
        UnreadableImageError, OSError: as `read_sample`, of the picture as a whole.
    """
    first = rows[0]
    samples: list[dict[int, np.ndarray] | UnreadableSlideError | UnreadableImageError] = []
    of_slide = is_of_slide(first)
    picture = None if of_slide else decode_picture(first["uri"], frame=_text(first, "frame"), sha256=first["sha256"])
    for row in rows:
        try:
            cut = _cut(row, picture)
        except (UnreadableImageError, UnreadableSlideError) as error:
            samples.append(error)
        else:
            samples.append({size_px: np.asarray(_resize(cut, size_px)) for size_px in sizes_px})
    return samples


def is_of_slide(row: Row) -> bool:
    """Whether the sample is a region of a slide, which is read without the rest."""
    return _text(row, "frame") is None and _is_slide(row["uri"], row["sha256"])


def read_sample_mask(row: Row, *, size_px: int) -> np.ndarray | None:
    """Which pixels are abnormal, (size_px, size_px) bool; None where it is unknown.

    A normal sample's is empty; an abnormal one's is cut out of its picture's mask. A pixel of a reduced mask is abnormal when half of
    what it stands for is.
    """
    if pd.isna(row["mask_uri"]):
        return np.zeros((size_px, size_px), bool) if not pd.isna(row["label"]) and row["label"] == 0 else None
    mask = _cut_mask(row, size_px)
    if mask.shape == (size_px, size_px):
        return mask
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize((size_px, size_px), Image.Resampling.BOX)) >= 128


def read_whole_mask(row: Row, *, max_px: int) -> np.ndarray | None:
    """The mask (h, w) bool of the whole picture that a sample belongs to, no side longer than `max_px`; None where there is none.

    Outlines are drawn at that size; a mask that is a picture is reduced by a whole factor.
    """
    if pd.isna(row["mask_uri"]):
        return None
    if has_outlines(row["mask_uri"]):
        width_px, height_px = _slide(row["uri"], row["sha256"]).level_dimensions[0]
        downsample = max(1.0, max(width_px, height_px) / max_px)
        return draw_outlines(row["mask_uri"], row["mask_sha256"], width_px=width_px, height_px=height_px, downsample=downsample)
    mask = _mask(row["mask_uri"], row["mask_sha256"])
    step = -(-max(mask.shape) // max_px)
    return mask if step == 1 else np.asarray(Image.fromarray(mask).convert("L").reduce(step)) >= 128


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
def _picture(uri: str, frame: str | None, sha256: str) -> Image.Image:
    return decode_picture(uri, frame=frame, sha256=sha256)


@lru_cache(maxsize=4)
def _mask(uri: str, _sha256: str) -> np.ndarray:
    with filesystems.open_for_reading(uri) as file:
        return read_mask(file)


def _cut(row: Row, picture: Image.Image | None) -> Image.Image:
    """The sample's part of its picture, or of its slide where there is no picture, transformed as the row says."""
    x, y, width, height = int(row["x_px"]), int(row["y_px"]), int(row["width_px"]), int(row["height_px"])
    if picture is None:
        part = Image.fromarray(_slide(row["uri"], row["sha256"]).read_region(x, y, width, height, level=int(row["level"])))
    elif (x, y, width, height) == (0, 0, *picture.size):
        part = picture
    elif x + width > picture.width or y + height > picture.height:
        raise UnreadableImageError(
            f"{row['uri']}: {width} × {height} px at ({x}, {y}) are not in {picture.width} × {picture.height} px: it was replaced since"
        )
    else:
        part = picture.crop((x, y, x + width, y + height))
    transform = _text(row, "transform")
    return part if transform is None else Image.fromarray(apply_transform(np.asarray(part), transform))


def _resize(part: Image.Image, size_px: int) -> Image.Image:
    return part if part.size == (size_px, size_px) else part.resize((size_px, size_px), Image.Resampling.BILINEAR)


def _cut_mask(row: Row, size_px: int) -> np.ndarray:
    """A sample's part of the mask, in the mask's own pixels; outlines are drawn at the sample's."""
    x, y, width, height = int(row["x_px"]), int(row["y_px"]), int(row["width_px"]), int(row["height_px"])
    downsample = _slide(row["uri"], row["sha256"]).level_downsamples[int(row["level"])] if int(row["level"]) else 1.0
    if has_outlines(row["mask_uri"]):
        left, top, side = (length * downsample for length in (x, y, width))
        return draw_region(row["mask_uri"], row["mask_sha256"], x_px=left, y_px=top, side_px=side, size_px=size_px)
    columns, rows = (slice(round(first * downsample), round((first + length) * downsample)) for first, length in ((x, width), (y, height)))
    mask = _mask(row["mask_uri"], row["mask_sha256"])
    if mask.shape[0] < rows.stop - math.ceil(downsample) or mask.shape[1] < columns.stop - math.ceil(downsample):  # an edge is rounded
        raise ValueError(
            f"the mask {row['mask_uri']} has {mask.shape[1]} × {mask.shape[0]} px, its sample reaches to {columns.stop} × {rows.stop}: "
            "curate again if the mask has changed"
        )
    return mask[rows, columns]


def _text(row: Row, name: str) -> str | None:
    value = row.get(name)
    return None if value is None or pd.isna(value) else str(value)
