"""A picture's fingerprint of 64 bits that outlives rescaling, recompression and, when asked, flips and quarter turns."""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

_SIDE_PX = 32
_LUMA = np.array([299, 587, 114])  # ITU-R BT.601, thousandths
_GREY_STEPS = 256  # grey levels are kept to 1/256: whole numbers, of which every sum is exact
_COSINE_STEPS = 2048  # 12 bits; with 16 bits of grey and 2 × 5 bits of summing below the 53 bits that float64 adds exactly
_SIGN = (-1.0) ** np.arange(1, 9)  # of a cosine of frequency 1…8 when its axis is turned round
LEAST_CONTRAST = 0.5  # grey levels of 255; 8-bit rounding and JPEG alone leave less than 0.2 in a picture of one colour


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that runs without the GIL; compiled once for all processes, or once a process where nothing can be written.

    Numba compiles anew when the file of a kernel changes, not when that of another which it calls does: kernels that call each other
    stand in one file, or the called one (`forests.find_root`) is so plain that it will not change.
    """
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder to cache in: a read-only installation without a home
        return numba.njit(nogil=True)(function)


def perceptual_hash(image: np.ndarray) -> np.uint64 | None:
    """The perceptual hash of a picture.

    Zauner (2010), "Implementation and benchmarking of perceptual image hash functions", DCT hash: the picture shrunk to 32 × 32 grey
    values, their DCT, of it the 8 × 8 coefficients of the lowest frequencies without those of frequency 0 of either axis; a bit is set
    where a coefficient is above their median. Ours: each of the 32 × 32 cells is the mean of exactly its area of the picture instead of
    a blur and a sample, and all arithmetic is on whole numbers, so that a turned picture gives exactly the turned coefficients.

    Args:
        image: (H, W, 3) uint8 RGB of any size.

    Returns:
        64 bits, vertical frequency 1 first, in it horizontal frequency 1 first; None for a picture that has no structure to hash, where the
        64 coefficients together vary by less than `LEAST_CONTRAST` grey levels (near-constant, or shaded along one axis only). Such
        pictures look alike to every hash: leave them out of the search.

    Raises:
        ValueError: not (H, W, 3) uint8, or empty.
    """
    coefficients = _coefficients(image)
    return _threshold(coefficients[None])[0] if _contrast(coefficients) >= LEAST_CONTRAST else None


def dihedral_hashes(image: np.ndarray) -> np.ndarray | None:
    """The hashes of a picture's 8 flips and quarter turns, from one DCT.

    To turn an axis round changes the signs of its odd frequencies, a quarter turn swaps the axes besides; the median is taken anew each
    time. Exactly `perceptual_hash(turned(image, k))` at k.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (8,) uint64 in the order of `turned`, first the picture as it is; None where `perceptual_hash` is.

    Raises:
        ValueError: not (H, W, 3) uint8, or empty.
    """
    coefficients = _coefficients(image)
    if _contrast(coefficients) < LEAST_CONTRAST:
        return None
    variants = []
    for variant in (coefficients, coefficients * _SIGN):
        for _ in range(4):
            variants.append(variant)
            variant = variant.T * _SIGN[:, None]  # numpy.rot90 is a transposition, then up and down exchanged
    return _threshold(np.stack(variants))


def turned(image: np.ndarray, k: int) -> np.ndarray:
    """The k-th flip or quarter turn of a picture (H, W, …): k mod 4 turns counterclockwise, from k = 4 on of its mirror image."""
    return np.rot90(image[:, ::-1] if k >= 4 else image, k % 4)


def shrink_grey(image: np.ndarray, *, side_px: int) -> np.ndarray:
    """A square grey picture, each pixel the mean luma of exactly its part of the given one.

    Args:
        image: (H, W, 3) uint8 RGB of any size.
        side_px: of the result.

    Returns:
        (side_px, side_px) float32 in [0, 255].

    Raises:
        ValueError: not (H, W, 3) uint8, or empty.
    """
    return np.asarray(_whole_grey(image, side_px) / _GREY_STEPS, np.float32)


def hash_to_text(value: np.uint64 | int) -> str:
    """16 hexadecimal digits, as the manifest keeps a hash."""
    return f"{int(value):016x}"


def text_to_hash(text: str) -> np.uint64:
    """The hash of 16 hexadecimal digits.

    Raises:
        ValueError: other than 16 hexadecimal digits.
    """
    if len(text) != 16 or not set(text.lower()) <= set("0123456789abcdef"):
        raise ValueError(f"a perceptual hash is 16 hexadecimal digits, not {text!r}")
    return np.uint64(int(text, 16))


def _cosines() -> np.ndarray:
    """(8, 32) frequencies 1…8 of the DCT-II in whole numbers; the right half mirrors the left, so that the symmetry is exact."""
    frequency, place = np.arange(1, 9)[:, None], np.arange(_SIDE_PX // 2)
    left = np.rint(_COSINE_STEPS * np.cos(np.pi * (2 * place + 1) * frequency / (2 * _SIDE_PX)))
    return np.concatenate([left, left[:, ::-1] * _SIGN[:, None]], axis=1)


_COSINES = _cosines()


def _coefficients(image: np.ndarray) -> np.ndarray:
    """(8, 8) float64 holding whole numbers below 2^53."""
    return np.asarray(_COSINES @ _whole_grey(image, _SIDE_PX) @ _COSINES.T)


def _contrast(coefficients: np.ndarray) -> float:
    """Grey levels of 255 (standard deviation) that the coefficients make up; fsum, because its result knows no order."""
    orthonormal = coefficients * (2 / _SIDE_PX) / (_COSINE_STEPS**2 * _GREY_STEPS)
    return math.sqrt(math.fsum((orthonormal**2).ravel())) / _SIDE_PX


def _threshold(coefficients: np.ndarray) -> np.ndarray:
    """(n,) uint64 of (n, 8, 8): above the median or not; the median is doubled rather than halved, which stays exact."""
    values = coefficients.reshape(-1, 64)
    middle = np.sort(values, axis=1)[:, 31:33].sum(1, keepdims=True)
    return np.packbits(2 * values > middle, axis=1).view(">u8")[:, 0].astype(np.uint64)


def _whole_grey(image: np.ndarray, side: int) -> np.ndarray:
    """(side, side) float64 holding whole numbers in [0, 255 · 256]."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"expected a picture (H, W, 3) uint8 that is not empty, got {image.shape} {image.dtype}; convert it to RGB first")
    height, width, _ = image.shape
    cells = _sum_cells(np.ascontiguousarray(image).reshape(height, -1), side) @ _LUMA
    return np.asarray(cells * _GREY_STEPS // (int(_LUMA.sum()) * height * width), np.float64)


@compiled
def _sum_cells(rows: np.ndarray, side: int) -> np.ndarray:
    """(side, side, 3) int64 sums of (H, W · 3) uint8 over a grid of cells; a pixel counts by its overlap, in 1/side of its width."""
    height, width = rows.shape[0], rows.shape[1] // 3
    cells = np.zeros((side, side, 3), np.int64)
    band = np.empty(rows.shape[1], np.uint32)
    for i in range(side):
        band[:] = 0
        top, bottom = i * height, (i + 1) * height
        for y in range(top // side, (bottom + side - 1) // side):
            weight = np.uint32(min(side * (y + 1), bottom) - max(side * y, top))
            for x in range(rows.shape[1]):
                band[x] += weight * np.uint32(rows[y, x])
        for j in range(side):
            left, right = j * width, (j + 1) * width
            for x in range(left // side, (right + side - 1) // side):
                share = min(side * (x + 1), right) - max(side * x, left)
                for channel in range(3):
                    cells[i, j, channel] += share * np.int64(band[3 * x + channel])
    return cells
