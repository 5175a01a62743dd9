"""Anomalies painted into real pictures, with the exact mask of what was painted: for demonstrations, never evidence of diagnosis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy import ndimage

Finding = Literal["fold", "blur", "pen", "foreign texture", "stain change"]
FINDINGS: tuple[Finding, ...] = get_args(Finding)

_ATTEMPTS = 200


@dataclass(frozen=True)
class Painted:
    """A picture with anomalies.

    Attributes:
        image: (H, W, 3) uint8; outside the mask the original, to the bit.
        mask: (H, W) bool; true where something was painted.
        findings: what, in the order of painting.
    """

    image: np.ndarray
    mask: np.ndarray
    findings: tuple[Finding, ...]


def paint_anomalies(
    image: np.ndarray,
    tissue: np.ndarray,
    *,
    findings: Sequence[Finding],
    size_px: tuple[int, int],
    rng: np.random.Generator,
    foreign: np.ndarray,
) -> Painted:
    """Paint one region of each finding on tissue, none over another.

    Args:
        image: (H, W, 3) uint8 RGB.
        tissue: (H, W) bool, where regions may lie.
        findings: what to paint, in this order.
        size_px: least and greatest extent of a region.
        rng: decides places and shapes.
        foreign: (h, w) uint8 texture of something that is not tissue.

    Raises:
        ValueError: no free place was found for one of them.
    """
    painted, mask = image.copy(), np.zeros(image.shape[:2], bool)
    for finding in findings:
        region, corner = _place(finding, tissue, mask, size_px, rng)
        here = np.s_[corner[0] : corner[0] + region.shape[0], corner[1] : corner[1] + region.shape[1]]
        changed = _PAINTERS[finding](painted, here, region, rng, foreign)
        np.copyto(painted[here], changed, where=region[..., None])
        mask[here] |= region
    return Painted(painted, mask, tuple(findings))


def _place(
    finding: Finding, tissue: np.ndarray, taken: np.ndarray, size_px: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, tuple[int, int]]:
    """A region (bool) and its upper left corner: at least nine tenths on tissue, nothing on what is taken, nothing off the picture."""
    ys, xs = np.nonzero((tissue & ~taken)[::8, ::8])  # a coarse look suffices to draw a centre
    if not len(ys):
        raise ValueError(f"no tissue is left to paint a {finding} on")
    for _ in range(_ATTEMPTS):
        extent = int(rng.integers(size_px[0], size_px[1] + 1))
        region = _band(extent, rng) if finding in ("fold", "pen") else _blob(extent, rng)
        at = rng.integers(len(ys))
        y, x = int(ys[at]) * 8 - extent // 2, int(xs[at]) * 8 - extent // 2
        here = np.s_[y : y + extent, x : x + extent]
        inside = y >= 0 and x >= 0 and y + extent <= tissue.shape[0] and x + extent <= tissue.shape[1]
        if inside and tissue[here][region].mean() > 0.9 and not taken[here][region].any():
            return region, (y, x)
    raise ValueError(f"no place was found for a {finding} of {size_px[0]} to {size_px[1]} px; use smaller regions or fewer of them")


def _blob(extent: int, rng: np.random.Generator) -> np.ndarray:
    """A compact region with a wavy outline, (extent, extent) bool."""
    y, x = (np.mgrid[0:extent, 0:extent] + 0.5) / extent - 0.5
    angle = np.arctan2(y, x)
    wave = sum(rng.normal(0, 0.12 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 9))
    return np.asarray(np.hypot(x, y) < np.minimum(0.4 * (1 + wave), 0.49))


def _band(extent: int, rng: np.random.Generator) -> np.ndarray:
    """A curved band with round ends through a square, a sixth to a quarter of it wide, (extent, extent) bool."""
    y, x = (np.mgrid[0:extent, 0:extent] + 0.5) / extent - 0.5
    angle = rng.uniform(0, np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    bend = 0.12 * np.sin(along * rng.uniform(3, 6) + rng.uniform(0, 2 * np.pi))
    width = rng.uniform(0.16, 0.25) * (1 + 0.2 * np.sin(along * 9 + rng.uniform(0, 6)))
    beyond = np.maximum(np.abs(along) - 0.38, 0)
    return np.asarray(np.hypot(across - bend, beyond) < width / 2)


def _fold(image: np.ndarray, here: tuple[slice, slice], region: np.ndarray, rng: np.random.Generator, _: np.ndarray) -> np.ndarray:
    """Tissue lies double: the densities of the place and of its neighbour, mirrored, add up; darker along the crease."""
    own = image[here].astype(np.float32)
    shift = int(rng.integers(region.shape[0] // 6, region.shape[0] // 3))
    other = np.roll(own[:, ::-1], shift, 0)
    depth = np.minimum(ndimage.distance_transform_edt(region) / 8, 1)[..., None]
    doubled = own * other / 245 * (0.6 + 0.25 * depth)
    return np.minimum(doubled, own * 0.75).astype(np.uint8)


def _blur(image: np.ndarray, here: tuple[slice, slice], region: np.ndarray, rng: np.random.Generator, _: np.ndarray) -> np.ndarray:
    """Out of focus."""
    sigma = float(rng.uniform(7, 10))
    return np.asarray(ndimage.gaussian_filter(image[here].astype(np.float32), (sigma, sigma, 0)).round().astype(np.uint8))


def _pen(image: np.ndarray, here: tuple[slice, slice], region: np.ndarray, rng: np.random.Generator, _: np.ndarray) -> np.ndarray:
    """A marker's ink: it absorbs, so that the tissue shows through darkly; streaks, and more of it at the rim where it dried."""
    ink = np.array([(0.16, 0.58, 0.34), (0.16, 0.30, 0.72), (0.26, 0.25, 0.30)][rng.integers(3)])  # transmittance
    streaks = ndimage.gaussian_filter(rng.normal(size=region.shape), (region.shape[0] / 20, region.shape[1] / 160))
    rim = np.exp(-ndimage.distance_transform_edt(region) / 5)
    amount = 1 + 0.12 * streaks / streaks.std() + 0.3 * rim
    return np.asarray((image[here] * ink ** amount.clip(0.5, 2)[..., None]).astype(np.uint8))


def _foreign(image: np.ndarray, here: tuple[slice, slice], region: np.ndarray, rng: np.random.Generator, foreign: np.ndarray) -> np.ndarray:
    """A texture that is not tissue, in the colours of dust and fibres."""
    tiles = [-(-side // texture_side) for side, texture_side in zip(region.shape, foreign.shape[:2], strict=True)]
    texture = np.tile(foreign, tiles)[: region.shape[0], : region.shape[1]] / 255
    dark, light = np.array([92, 70, 62]), np.array([222, 200, 178])
    return np.asarray((dark + texture[..., None] * (light - dark)).astype(np.uint8))


def _stain(image: np.ndarray, here: tuple[slice, slice], region: np.ndarray, rng: np.random.Generator, _: np.ndarray) -> np.ndarray:
    """Another chromogen: densities of the channels scaled, and a little more of everything."""
    density = -np.log((image[here].astype(np.float32) + 1) / 256)
    scaled = density * np.array([0.55, rng.uniform(1.7, 2.1), 0.8], np.float32) + np.array([0.02, 0.07, 0.04], np.float32)
    return np.asarray((256 * np.exp(-scaled) - 1).clip(0, 255).astype(np.uint8))


_PAINTERS: dict[Finding, Callable[..., np.ndarray]] = {
    "fold": _fold,
    "blur": _blur,
    "pen": _pen,
    "foreign texture": _foreign,
    "stain change": _stain,
}
