"""Outlines of findings as masks: of a whole slide at a reduced size, or of one sample at its own."""

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from storage.annotations import Annotation, rasterise, read_annotations

_SUFFIXES = (".xml", ".geojson", ".json")


def has_outlines(uri: str) -> bool:
    """Whether a mask is given as outlines and not as a picture."""
    return uri.lower().endswith(_SUFFIXES)


def draw_outlines(uri: str, sha256: str, *, width_px: int, height_px: int, downsample: float) -> np.ndarray:
    """The mask (h, w) bool of a whole slide of this size at level 0, reduced by `downsample`."""
    width, height = math.ceil(width_px / downsample), math.ceil(height_px / downsample)
    return rasterise(_outlines(uri, sha256), width_px=width, height_px=height, downsample=downsample)


def draw_region(uri: str, sha256: str, *, x_px: float, y_px: float, side_px: float, size_px: int) -> np.ndarray:
    """The mask (size_px, size_px) bool of a square of level 0."""
    corner = np.array([x_px, y_px])
    moved = [replace(outline, polygon=outline.polygon - corner) for outline in _outlines(uri, sha256)]
    return rasterise(moved, width_px=size_px, height_px=size_px, downsample=side_px / size_px)


@lru_cache(maxsize=4)
def _outlines(uri: str, _sha256: str) -> tuple[Annotation, ...]:
    return read_annotations(uri)
