"""Drawn photographs of skin, bodies and hands, each with a mask of what was drawn into it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

Picture = NDArray[np.uint8]  # (H, W, 3) RGB
Mask = NDArray[np.bool_]  # (H, W)

SKIN_TONES = ((243, 214, 197), (232, 190, 167), (208, 158, 128), (172, 120, 90), (121, 80, 58), (86, 56, 42))


def skin(rng: np.random.Generator, height_px: int, width_px: int, *, tone: Sequence[int] | None = None) -> Picture:
    """Bare skin: a tone, uneven light, mottling, fine relief and the camera's noise."""
    base = np.asarray(SKIN_TONES[rng.integers(len(SKIN_TONES))] if tone is None else tone, float)
    y, x = np.mgrid[-1 : 1 : height_px * 1j, -1 : 1 : width_px * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0.04, 0.12) * (x * np.cos(angle) + y * np.sin(angle)) - 0.05 * (x**2 + y**2)
    mottling = 0.035 * _noise(rng, height_px, width_px, grain_px=max(min(height_px, width_px) / 12, 2))
    relief = 0.02 * _noise(rng, height_px, width_px, grain_px=2)
    image = base * (light + mottling + relief)[..., None] * (1 + 0.2 * mottling[..., None] * np.array((1, -1, -1)))
    return _as_bytes(image + rng.normal(0, 1.5, image.shape))


def skin_with_lesion(
    rng: np.random.Generator, height_px: int, width_px: int, *, tone: Sequence[int] | None = None, colour: Sequence[int] | None = None
) -> tuple[Picture, Mask]:
    """Skin with one lesion, an ellipse with an uneven rim, in the middle; and where it is."""
    image = skin(rng, height_px, width_px, tone=tone)
    size = min(height_px, width_px)
    mask = _ellipse(
        rng,
        height_px,
        width_px,
        centre=(height_px * rng.uniform(0.42, 0.58), width_px * rng.uniform(0.42, 0.58)),
        axes=(size * rng.uniform(0.16, 0.28), size * rng.uniform(0.2, 0.34)),
    )
    return _paint(rng, image, mask, colour or (96, 58, 44)), mask


def skin_with_rash(rng: np.random.Generator, height_px: int, width_px: int) -> tuple[Picture, Mask]:
    """Skin with several red plaques, some of them scaly; and where they are."""
    image, mask = skin(rng, height_px, width_px, tone=SKIN_TONES[rng.integers(4)]), np.zeros((height_px, width_px), bool)
    size = min(height_px, width_px)
    for _ in range(rng.integers(3, 9)):
        plaque = _ellipse(
            rng,
            height_px,
            width_px,
            centre=(rng.uniform(0.1, 0.9) * height_px, rng.uniform(0.1, 0.9) * width_px),
            axes=(size * rng.uniform(0.05, 0.16), size * rng.uniform(0.05, 0.16)),
        )
        image, mask = _paint(rng, image, plaque, (190 - int(rng.integers(40)), 80, 78)), mask | plaque
    scales = mask & (_noise(rng, height_px, width_px, grain_px=2) > 1.6)
    image[scales] = (232, 220, 214)
    return image, mask


def body_photograph(
    rng: np.random.Generator, *, height_px: int = 1200, width_px: int = 1600, abnormal: bool = False
) -> tuple[Picture, Mask, Mask]:
    """A total body photograph of a posterior torso: picture, bare skin, and what is abnormal on it (a scar and the print of a strap).

    The back, arms hanging down and neck stand before a plain wall; hair is at the top, trousers at the bottom, moles on the back. Clothing,
    hair and wall are not skin.
    """
    v, u = np.mgrid[0 : 1 : height_px * 1j, -0.5 * width_px / height_px : 0.5 * width_px / height_px : width_px * 1j]  # both in heights
    wall = np.asarray(((150, 160, 172), (96, 112, 130), (188, 190, 186))[rng.integers(3)], float)
    image = _as_bytes(wall * (1 + 0.06 * u[..., None] - 0.05 * v[..., None]) + rng.normal(0, 1.5, (height_px, width_px, 3)))
    waist, shoulders = rng.uniform(0.22, 0.26), rng.uniform(0.36, 0.42)
    half_width = np.interp(v, (0.16, 0.24, 0.3, 0.75, 1), (0.1, shoulders * 0.8, shoulders, waist, waist * 1.15))
    torso = (np.abs(u) < half_width) & (v > 0.16)
    arms = (np.abs(np.abs(u) - np.interp(v, (0.25, 0.95), (shoulders - 0.02, shoulders + 0.1))) < 0.06) & (v > 0.25) & (v < 0.95)
    neck, head = (np.abs(u) < 0.075) & (v > 0.08) & (v < 0.2), (u / 0.12) ** 2 + ((v - 0.02) / 0.13) ** 2 < 1
    trousers = (np.abs(u) < half_width + 0.015) & (v > rng.uniform(0.84, 0.9) + 0.01 * np.sin(9 * u))
    bare = (torso | arms | neck) & ~head & ~trousers
    bare_image = skin(rng, height_px, width_px, tone=SKIN_TONES[rng.integers(4)])
    image[bare] = bare_image[bare]
    spine = bare & (np.abs(u - 0.004 * np.sin(20 * v)) < 0.012) & torso
    image[spine] = _as_bytes(image[spine] * 0.94)
    image[head] = _as_bytes(np.array((52, 40, 34)) * (1 + 0.15 * _noise(rng, height_px, width_px, grain_px=3)[head, None]))
    image[trousers] = _as_bytes(
        np.array(((38, 48, 84), (40, 42, 46), (70, 84, 70))[rng.integers(3)])
        * (1 + 0.1 * _noise(rng, height_px, width_px, grain_px=4)[trousers, None])
    )
    inner = bare & torso & (v > 0.3) & (v < 0.8) & (np.abs(u) < waist * 0.85)
    image = _with_moles(rng, image, inner)
    return _with_marks(rng, image, bare, inner, u, v, abnormal=abnormal)


def hand_photograph(
    rng: np.random.Generator, *, height_px: int = 240, width_px: int = 320, tone: Sequence[int] | None = None, jewellery: bool = False
) -> tuple[Picture, Mask, Mask]:
    """A hand with spread fingers on white: picture, hand, and where a ring (and sometimes a bracelet) is."""
    v, u = np.mgrid[0 : 1 : height_px * 1j, -0.5 * width_px / height_px : 0.5 * width_px / height_px : width_px * 1j]
    hand = ((u / 0.17) ** 2 + ((v - 0.66) / 0.2) ** 2 < 1) | ((np.abs(u) < 0.11) & (v > 0.7))
    fingers = []
    for angle, length in zip(np.radians((-58, -20, -4, 12, 30)) + rng.normal(0, 0.03, 5), (0.3, 0.42, 0.46, 0.42, 0.34), strict=True):
        along, across = u * np.sin(angle) - (v - 0.62) * np.cos(angle), u * np.cos(angle) + (v - 0.62) * np.sin(angle)
        fingers.append((along, (np.abs(across) < 0.036 - 0.01 * along / length) & (along > 0.1) & (along < length)))
        hand |= fingers[-1][1]
    image = _as_bytes(246 - 6 * v[..., None] + rng.normal(0, 1.2, (height_px, width_px, 3)))
    image[hand] = skin(rng, height_px, width_px, tone=tone or SKIN_TONES[rng.integers(5)])[hand]
    jewels = np.zeros_like(hand)
    if jewellery:
        along, finger = fingers[rng.integers(1, 5)]
        jewels |= finger & (np.abs(along - 0.24) < 0.014)
        if rng.random() < 0.4:
            jewels |= hand & (np.abs(v - 0.9) < 0.02)
        metal = np.asarray(((212, 175, 70), (190, 192, 198))[rng.integers(2)], float)
        image[jewels] = _as_bytes(metal * rng.uniform(0.75, 1.2, (int(jewels.sum()), 1)))
    return image, hand, jewels


def _with_marks(
    rng: np.random.Generator, image: Picture, bare: Mask, inner: Mask, u: NDArray[np.float64], v: NDArray[np.float64], *, abnormal: bool
) -> tuple[Picture, Mask, Mask]:
    marks = np.zeros_like(bare)
    if abnormal:
        slope, height = rng.uniform(-0.8, 0.8), rng.uniform(0.45, 0.65)
        scar = inner & (np.abs(v - height - slope * u - 0.01 * np.sin(60 * u)) < 0.008) & (np.abs(u) < 0.13)
        strap = inner & (np.abs(v - 0.36) < 0.006)
        for mark, colour in ((scar, (206, 150, 146)), (strap, (168, 92, 84))):
            image, marks = _paint(rng, image, mark, colour), marks | mark
    return image, bare, marks


def _with_moles(rng: np.random.Generator, image: Picture, where: Mask) -> Picture:
    y, x = np.nonzero(where)
    for _ in range(rng.integers(4, 12)):
        place, radius = rng.integers(len(y)), max(image.shape[0] * rng.uniform(0.002, 0.005), 1)
        mole = _ellipse(rng, *image.shape[:2], centre=(y[place], x[place]), axes=(radius, radius * rng.uniform(1, 1.5)))
        image = _paint(rng, image, mole & where, (104, 66, 50))
    return image


def _ellipse(rng: np.random.Generator, height_px: int, width_px: int, *, centre: tuple[float, float], axes: tuple[float, float]) -> Mask:
    """An ellipse with an uneven rim; only its surroundings are computed."""
    reach = 1.2 * max(axes) + 1
    top, left = (max(int(middle - reach), 0) for middle in centre)
    y, x = np.mgrid[top : min(int(centre[0] + reach) + 1, height_px), left : min(int(centre[1] + reach) + 1, width_px)]
    direction = rng.uniform(0, np.pi)
    along = (x - centre[1]) * np.cos(direction) + (y - centre[0]) * np.sin(direction)
    across = (y - centre[0]) * np.cos(direction) - (x - centre[1]) * np.sin(direction)
    angle = np.arctan2(across, along)
    rim = 1 + 0.08 * np.sin(3 * angle + rng.uniform(0, 6)) + 0.05 * np.sin(7 * angle + rng.uniform(0, 6))
    mask = np.zeros((height_px, width_px), bool)
    mask[top : top + y.shape[0], left : left + y.shape[1]] = (along / axes[1]) ** 2 + (across / axes[0]) ** 2 < rim**2
    return mask


def _paint(rng: np.random.Generator, image: Picture, mask: Mask, colour: Sequence[int]) -> Picture:
    """A coloured patch with a soft rim and uneven pigment; only its surroundings are computed."""
    if not mask.any():
        return image
    (top, left), (bottom, right) = (np.argwhere(mask).min(0) - 8).clip(0), np.argwhere(mask).max(0) + 9
    part = image[top:bottom, left:right].astype(float)
    opacity = gaussian_filter(mask[top:bottom, left:right].astype(float), 1.2)[..., None] * 0.85
    pigment = 1 + 0.12 * _noise(rng, *part.shape[:2], grain_px=3)[..., None]
    painted = image.copy()
    painted[top:bottom, left:right] = _as_bytes(part * (1 - opacity) + np.asarray(colour, float) * pigment * opacity)
    return painted


def _noise(rng: np.random.Generator, height_px: int, width_px: int, *, grain_px: float) -> NDArray[np.float64]:
    """Smooth noise of mean 0 and standard deviation about 1, drawn coarse and enlarged."""
    coarse = rng.normal(size=(int(height_px / grain_px) + 3, int(width_px / grain_px) + 3))
    noise = zoom(gaussian_filter(coarse, 0.6), grain_px * 1.05, order=1)[:height_px, :width_px]
    return (noise - noise.mean()) / max(noise.std(), 1e-6)


def _as_bytes(image: NDArray[np.floating]) -> Picture:
    return image.clip(0, 255).astype(np.uint8)
