"""Stain normalisation: two stains are estimated from the optical density of a picture and exchanged for those of a target.

Beer-Lambert: the optical density −log10(I / I0) of a pixel is h W, with the unit densities W (2, 3) of the stains and their concentrations
h (2,). Macenko et al., A method for normalizing histology slides for quantitative analysis, ISBI 2009; Vahadane et al.,
Structure-preserving color normalization and sparse stain separation for histological images, IEEE TMI 35(8), 2016.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

_DENSITY = -np.log10((np.arange(256) + 1) / 256).astype(np.float32)  # by grey level; +1 keeps black finite, and 255 is clear glass
_MAXIMUM_PERCENTILE = 99  # of concentrations: a few dark pixels (pigment, dirt) must not set the scale
_CONVERGED = 1e-6


class StainError(ValueError):
    """Stains that cannot be estimated from these pixels; mark the tile and go on."""


class StainConfig(BaseModel):
    """How stains are estimated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["macenko", "vahadane"] = Field(default="vahadane", description="angles in the plane of densities, or a sparse dictionary")
    least_density: float = Field(default=0.15, gt=0, description="β: pixels of less optical density (norm over the channels) are glass")
    percentile: float = Field(
        default=1.0, ge=0, lt=50, description="α of Macenko: stains are the α-th and (100 − α)-th percentile of angles"
    )
    sparsity: float = Field(default=0.1, ge=0, description="λ of Vahadane's dictionary, for natural logarithms as in the paper")
    concentration_sparsity: float = Field(
        default=0.01,
        ge=0,
        description="λ of the concentrations under known stains, natural logarithms; 0.01 as in public code: 0.1 would lighten all",
    )
    iterations: int = Field(default=200, gt=0, description="most alternations of the dictionary learning")
    most_pixels: int = Field(default=20_000, gt=0, description="more are sampled")
    least_tissue_px: int = Field(default=500, gt=1, description="fewer pixels of tissue are too few to estimate from")
    least_gain: float = Field(
        default=3.0,
        ge=0,
        description="how many times less two stains must leave unexplained than one, in squared grey levels; noise gives about 2",
    )
    least_angle_deg: float = Field(default=3.0, gt=0, description="two stains closer than this are one colour")


@dataclass(frozen=True, eq=False)
class Stains:
    """The two stains of a picture or slide.

    Attributes:
        matrix: (2, 3) float64, optical density of the stains in R, G, B; rows are unit vectors without negative entries, haematoxylin
            (which absorbs more of the red) first.
        maximum: (2,) float64, 99th percentile of each stain's concentrations in the tissue.
    """

    matrix: np.ndarray
    maximum: np.ndarray

    def to_dict(self) -> dict[str, list[Any]]:
        """Lists of numbers that JSON takes and `from_dict` brings back exactly."""
        return {"matrix": self.matrix.tolist(), "maximum": self.maximum.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Stains":
        """The stains that `to_dict` wrote.

        Raises:
            StainError: not two unit rows without negative numbers and two positive maxima.
        """
        try:
            matrix, maximum = np.array(values["matrix"], np.float64), np.array(values["maximum"], np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise StainError(f"expected 'matrix' (2, 3) and 'maximum' (2,) of numbers, got {values!r}") from error
        usable = matrix.shape == (2, 3) and maximum.shape == (2,) and bool(np.isfinite(matrix).all() and np.isfinite(maximum).all())
        if not usable or matrix.min() < 0 or maximum.min() <= 0 or not np.allclose(np.linalg.norm(matrix, axis=1), 1):
            raise StainError(f"expected two unit rows without negative numbers and two positive maxima, got {values!r}")
        return cls(matrix, maximum)


def optical_density(image: np.ndarray) -> np.ndarray:
    """−log10((I + 1) / 256), float32 of the same shape, in [0, 2.41]; `image` is uint8, a transmitted-light picture."""
    return np.take(_DENSITY, image)


def estimate_stains(pixels: np.ndarray, config: StainConfig, rng: np.random.Generator) -> Stains:
    """The two stains that pixels are mixed of.

    Args:
        pixels: (n, 3) uint8 RGB; glass among them is left out.
        config: method and limits.
        rng: draws the sample of more than `most_pixels` pixels.

    Raises:
        StainError: other pixels than described, too little tissue, or one colour alone.
    """
    pixels = np.asarray(pixels)
    if pixels.ndim != 2 or pixels.shape[1] != 3 or pixels.dtype != np.uint8:
        raise StainError(f"expected pixels (n, 3) uint8 RGB, got {pixels.shape} {pixels.dtype}; reshape the picture with reshape(-1, 3)")
    density = optical_density(pixels)
    density = density[np.einsum("ij,ij->i", density, density) >= config.least_density**2]
    if len(density) < config.least_tissue_px:
        raise StainError(
            f"{len(density)} pixel(s) of tissue among {len(pixels)} are too few to estimate stains from ({config.least_tissue_px})"
        )
    if len(density) > config.most_pixels:
        density = density[rng.choice(len(density), config.most_pixels, replace=False)]
    density = density.astype(np.float64)
    axes = np.linalg.eigh(density.T @ density)[1][:, ::-1]  # columns, the strongest first
    _check_two_colours(density, axes, config.least_gain)
    matrix = _macenko(density, axes[:, :2], config.percentile)
    if config.kind == "vahadane":
        matrix = _vahadane(density, matrix, config)
    _check_apart(matrix, config.least_angle_deg)
    matrix = matrix[np.argsort(-matrix[:, 0], kind="stable")]  # haematoxylin absorbs more of the red
    maximum = np.percentile(concentrations(density, matrix, sparsity=config.concentration_sparsity), _MAXIMUM_PERCENTILE, axis=0)
    if maximum.min() <= 0:
        raise StainError("hardly a pixel holds the second stain: there is one colour only")
    return Stains(matrix, maximum.astype(np.float64))


def concentrations(density: np.ndarray, matrix: np.ndarray, *, sparsity: float) -> np.ndarray:
    """How much of each stain every pixel holds: argmin over h ≥ 0 of ½ ‖v − h W‖² + λ (h1 + h2) (Vahadane, equation 5), exactly.

    With unit stains a, b without negative entries, g = a·b, p = a·v − λ, q = b·v − λ, the gradient vanishes at
    h1 = (p − g q) / (1 − g²), h2 = (q − g p) / (1 − g²). Where h1 < 0 the minimum lies on h1 = 0, h2 = max(q, 0): its gradient in h1,
    g h2 − p, is then not negative, as p < g q and g ≥ 0; likewise for h2.

    Args:
        density: (n, 3) decadic optical density.
        matrix: (2, 3) unit rows without negative entries, not parallel.
        sparsity: λ for natural logarithms.

    Returns:
        (n, 2) of density's dtype.
    """
    dtype = density.dtype
    p, q = matrix.astype(dtype) @ density.T - dtype.type(sparsity / np.log(10))  # (2, n): decadic densities, so λ shrinks by ln 10
    g = dtype.type(matrix[0] @ matrix[1])
    first, second = (p - g * q) / (1 - g * g), (q - g * p) / (1 - g * g)
    h = np.empty((len(density), 2), dtype)
    h[:, 0] = np.where(second < 0, p, first)
    h[:, 1] = np.where(first < 0, q, second)
    return np.maximum(h, 0, out=h)


def normalise(image: np.ndarray, source: Stains, target: Stains, config: StainConfig) -> np.ndarray:
    """The picture as if it had been stained like the target.

    Concentrations are kept up to their scale: the 99th percentiles are matched (Macenko, section 3; Vahadane, equation 8). What the two
    stains do not explain (a third chromogen, ink) is lost.

    Args:
        image: (H, W, 3) uint8 RGB.
        source: stains of this picture, or of its slide.
        target: stains to paint with.
        config: sparsity of the concentrations.

    Returns:
        (H, W, 3) uint8.

    Raises:
        StainError: not such a picture.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise StainError(f"expected a picture (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    sparsity = config.concentration_sparsity if config.kind == "vahadane" else 0.0
    h = concentrations(optical_density(image.reshape(-1, 3)), source.matrix, sparsity=sparsity)  # (H * W, 2)
    density = h @ (target.matrix * (target.maximum / source.maximum)[:, None]).astype(np.float32)  # (H * W, 3)
    transmitted = np.exp2(density * np.float32(-np.log2(10)))
    return (transmitted * 256 - 0.5).clip(0, 255).astype(np.uint8).reshape(image.shape)


def _macenko(density: np.ndarray, plane: np.ndarray, percentile: float) -> np.ndarray:
    """(2, 3) unit rows: the extreme directions in the plane (3, 2) through the origin that holds most of the densities.

    Deviation from public code: there the plane is that of the centred densities, which does not pass through the origin.
    """
    plane = plane * np.array([np.sign(plane[:, 0].sum()), 1])
    along, across = (density @ plane).T
    extremes = np.percentile(np.arctan2(across, along), (percentile, 100 - percentile))
    return _unit_rows(np.stack([np.cos(extremes), np.sin(extremes)], axis=1) @ plane.T)


def _vahadane(density: np.ndarray, matrix: np.ndarray, config: StainConfig) -> np.ndarray:
    """(2, 3) unit rows: min over W ≥ 0, h ≥ 0 of ½ ‖V − H W‖² + λ Σ H (equation 5) by alternation, from Macenko's stains.

    W by block coordinate descent (Mairal et al., Online learning for matrix factorization, JMLR 2010, algorithm 2), on all pixels at
    once, as two stains and some thousand pixels need no mini-batches.
    """
    for _ in range(config.iterations):
        _check_apart(matrix, config.least_angle_deg)
        h = concentrations(density, matrix, sparsity=config.sparsity)
        if (h.sum(axis=0) <= 0).any():
            raise StainError("the dictionary has lost a stain: there is one colour only")
        a, b = h.T @ h, h.T @ density  # (2, 2), (2, 3)
        before, matrix = matrix, matrix.copy()
        for j in range(2):
            matrix[j] = _unit_rows(matrix[j : j + 1] + (b[j] - a[j] @ matrix) / a[j, j])[0]
        if np.abs(matrix - before).max() < _CONVERGED:
            break
    return matrix


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    rows = np.maximum(rows, 0)  # a stain that adds light does not exist
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny))


def _check_two_colours(density: np.ndarray, axes: np.ndarray, least_gain: float) -> None:
    """In grey levels, where noise is equal in all directions: around one colour a second axis leaves one of two directions of it."""
    transmitted = 256 * np.log(10) * 10**-density  # grey levels that a small change of density makes
    one, two = (np.square((density @ axes[:, k:] @ axes[:, k:].T) * transmitted).sum(axis=1).mean() for k in (1, 2))
    if one < max(least_gain * two, np.finfo(np.float32).eps):
        raise StainError(
            f"a second stain leaves {one / max(two, 1e-12):.1f} times less unexplained, not {least_gain}: there is one colour only"
        )


def _check_apart(matrix: np.ndarray, least_angle_deg: float) -> None:
    if not np.isfinite(matrix).all():
        raise StainError("the estimated stains are not finite")
    angle_deg = float(np.degrees(np.arccos(np.clip(matrix[0] @ matrix[1], -1, 1))))
    if angle_deg < least_angle_deg:
        raise StainError(f"the two stains differ by {angle_deg:.1f}°, less than {least_angle_deg}°: there is one colour only")
