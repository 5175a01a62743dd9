"""Quality of a picture by numbers: blur, exposure, size, skin tone, screenshots, rulers, pen marks; and the flags that thresholds raise.

All numbers come from shrunk copies, as they are measured on every picture of an archive. They mark a picture for a look; they prove
nothing: each function names what deceives it.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from methods.curation.hashing import compiled
from methods.curation.ink import ink_mask

Check = Literal["small", "near-constant", "blurred", "underexposed", "overexposed", "screenshot", "ruler", "pen"]
SkinTone = Literal["very light", "light", "intermediate", "tan", "brown", "dark"]
PHOTOGRAPH_CHECKS: tuple[Check, ...] = ("small", "near-constant", "blurred", "underexposed", "overexposed", "screenshot", "ruler")
TILE_CHECKS: tuple[Check, ...] = ("small", "near-constant", "blurred", "pen")
RADIOGRAPH_CHECKS: tuple[Check, ...] = ("small", "near-constant")

_WORKING_PX = 512  # longer side; what is finer is not looked at, so that a number does not depend on the camera's resolution
_COLOUR_PX = 64  # longer side of the copy that colours are taken from
_CELL_PX = 16  # contrast is measured within cells, so that shading and a background do not count
_BLACK, _WHITE = 5, 250  # grey levels that count as clipped
_ROUNDING = 20 / 12  # variance of the Laplacian of rounding to whole grey levels: else a picture gets sharper the more it is blurred
_STEP = 16  # grey levels from a row to the next that make an edge
_BAND_PX = 4  # rows that are averaged before ticks are looked for
_TICK_PERIODS_PX = np.arange(4, 61)
_TICK_CONTRAST = 2.0  # grey levels (standard deviation along a band) below which there are no ticks
_WHITE_POINT = np.array([0.95047, 1.0, 1.08883])  # D65
_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_GREY = np.arange(256) / 255
_LINEAR = np.where(_GREY <= 0.04045, _GREY / 12.92, ((_GREY + 0.055) / 1.055) ** 2.4)  # sRGB
_ITA_BOUNDS_DEG = (55.0, 41.0, 28.0, 10.0, -30.0)


@dataclass(frozen=True)
class Quality:
    """What was measured of a picture.

    Attributes:
        width_px, height_px: size of the picture.
        sharpness: variance of the Laplacian over the mean variance within cells of 16 px, at 512 px; about 0.1 and more for a sharp
            picture, 20 for white noise.
        brightness: mean luminance in [0, 1].
        contrast: 95th minus 5th percentile of luminance in [0, 1].
        underexposed, overexposed: share of pixels in black and in white.
        ita_deg: individual typology angle, (−90, 90]; NaN where no pixel has the yellow component that it needs.
        flat_share: share of pixels that are exactly as their right and lower neighbours, neither black nor white.
        line_share: longest perfectly straight horizontal or vertical edge, as a share of that side.
        ruler: how periodic the most periodic narrow band is, in [0, 1].
        pen_share: share of the area in the colours of ink.
    """

    width_px: int
    height_px: int
    sharpness: float
    brightness: float
    contrast: float
    underexposed: float
    overexposed: float
    ita_deg: float
    flat_share: float
    line_share: float
    ruler: float
    pen_share: float


class QualityConfig(BaseModel):
    """Which flags are raised, and from which values on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checks: tuple[Check, ...] = Field(default=PHOTOGRAPH_CHECKS, description="flags that may be raised; slides and radiographs need others")
    least_side_px: int = Field(default=64, ge=1, description="pictures with a shorter side are small")
    least_contrast: float = Field(default=0.02, ge=0, le=1, description="pictures of less are near-constant")
    least_sharpness: float = Field(default=0.04, ge=0, description="pictures of less are blurred")
    darkest: float = Field(default=0.08, ge=0, le=1, description="mean luminance below which a picture is underexposed")
    brightest: float = Field(default=0.95, ge=0, le=1, description="mean luminance above which a picture is overexposed")
    most_black: float = Field(default=0.5, ge=0, le=1, description="share of black pixels above which a picture is underexposed")
    most_white: float = Field(default=0.3, ge=0, le=1, description="share of white pixels above which a picture is overexposed")
    least_screen_flat: float = Field(default=0.35, ge=0, le=1, description="flat share of a screenshot")
    least_screen_line: float = Field(default=0.6, ge=0, le=1, description="line share of a screenshot")
    least_ruler: float = Field(default=0.45, ge=0, le=1, description="periodicity of a ruler")
    most_pen: float = Field(default=0.05, ge=0, le=1, description="share of ink above which a tile is marked")


def measure_quality(image: np.ndarray, *, skin: np.ndarray | None = None) -> Quality:
    """All numbers of a picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        skin: (H, W) bool, the pixels whose skin tone is meant; all without it.

    Raises:
        ValueError: not such a picture, or a mask of another size.
    """
    _check(image, skin)
    picture = Image.fromarray(image)
    grey = picture.convert("L")
    working = _shrink(grey, _WORKING_PX)
    levels = np.array(working.histogram()) / (working.width * working.height)
    low, high = np.searchsorted(levels.cumsum(), (0.05, 0.95))
    colours = np.asarray(_reduce(picture, _COLOUR_PX))
    flat_share, line_share = _screen_shares(np.asarray(grey))
    return Quality(
        width_px=image.shape[1],
        height_px=image.shape[0],
        sharpness=_sharpness(np.asarray(working)),
        brightness=float(levels @ _GREY),
        contrast=float(high - low) / 255,
        underexposed=float(levels[: _BLACK + 1].sum()),
        overexposed=float(levels[_WHITE:].sum()),
        ita_deg=_ita(colours if skin is None else _masked(image, skin)),
        flat_share=flat_share,
        line_share=line_share,
        ruler=_ruler(working),
        pen_share=_ink_share(colours),
    )


def flags(quality: Quality, config: QualityConfig) -> tuple[Check, ...]:
    """What is wrong with a picture by these thresholds, in the order of `Check`; empty if nothing."""
    raised: dict[Check, bool] = {
        "small": min(quality.width_px, quality.height_px) < config.least_side_px,
        "near-constant": near_constant(quality, config),
        "blurred": quality.sharpness < config.least_sharpness and not near_constant(quality, config),
        "underexposed": quality.brightness < config.darkest or quality.underexposed > config.most_black,
        "overexposed": quality.brightness > config.brightest or quality.overexposed > config.most_white,
        "screenshot": quality.flat_share >= config.least_screen_flat and quality.line_share >= config.least_screen_line,
        "ruler": quality.ruler >= config.least_ruler,
        "pen": quality.pen_share > config.most_pen,
    }
    return tuple(check for check in get_args(Check) if raised[check] and check in config.checks)


def near_constant(quality: Quality, config: QualityConfig) -> bool:
    """Whether a picture shows hardly anything: a lens cap, an empty field, bare glass."""
    return quality.contrast < config.least_contrast


def sharpness(image: np.ndarray) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al., ICPR 2000) at 512 px over the mean variance in cells of 16 px, in [0, 20].

    Less the variance that rounding to grey levels has. The same for a picture and its enlargement. Noise counts as sharp, so that a
    blurred but grainy picture of little contrast passes; a picture that shows smooth skin alone is hardly told from a blurred one.
    """
    _check(image, None)
    return _sharpness(np.asarray(_shrink(Image.fromarray(image).convert("L"), _WORKING_PX)))


def measure_ita(image: np.ndarray, skin: np.ndarray | None = None) -> float:
    """Median individual typology angle, arctan((L* − 50) / b*) · 180 / π, of the pixels in `skin` (Chardon et al., Int J Cosmet Sci 1991).

    From photographs without a colour target it depends on light and white balance: an estimate for subgroups, not a measurement.

    Args:
        image: (H, W, 3) uint8 sRGB.
        skin: (H, W) bool; all pixels without it.

    Returns:
        Degrees; NaN where no pixel has b* > 0.
    """
    _check(image, skin)
    return _ita(np.asarray(_reduce(Image.fromarray(image), _COLOUR_PX)) if skin is None else _masked(image, skin))


def skin_tone(ita_deg: float) -> SkinTone | None:
    """The group of an angle: very light > 55° ≥ light > 41° ≥ intermediate > 28° ≥ tan > 10° ≥ brown > −30° ≥ dark; None for NaN."""
    if np.isnan(ita_deg):
        return None
    tones: tuple[SkinTone, ...] = get_args(SkinTone)
    return tones[sum(ita_deg <= bound for bound in _ITA_BOUNDS_DEG)]


def pen_share(tile: np.ndarray) -> float:
    """Share of a slide's tile in the colours of ink, by what part of the optical density lies in which channel.

    Haematoxylin, eosin and DAB absorb green most, or green and blue alike with some red; blue and green ink absorb red most, black ink
    all alike and strongly, red ink green and blue and no red at all. Deceived by lakes of red blood cells (red ink), carbon and
    melanin (black ink) and special stains in blue or green. Faint ink over dark tissue is missed. Meant for slides: any
    blue shirt is ink.

    Args:
        tile: (H, W, 3) uint8 RGB.
    """
    _check(tile, None)
    return _ink_share(np.asarray(_reduce(Image.fromarray(tile), _COLOUR_PX)))


def _check(image: np.ndarray, skin: np.ndarray | None) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"expected a picture (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    if skin is not None and skin.shape != image.shape[:2]:
        raise ValueError(f"expected a skin mask of the picture's size {image.shape[:2]}, got {skin.shape}")


def _shrink(picture: Image.Image, longest_px: int) -> Image.Image:
    """To exactly this longer side where it is longer."""
    scale = longest_px / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(round(side * scale), 1) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=1.0)  # averages where it shrinks


def _reduce(picture: Image.Image, longest_px: int) -> Image.Image:
    """By a whole factor, which is fast, to about this longer side."""
    return picture.reduce(max(round(max(picture.size) / longest_px), 1))


def _masked(image: np.ndarray, skin: np.ndarray) -> np.ndarray:
    """(n, 3) pixels in the mask, on a grid that leaves some thousand of them."""
    step = max(int(np.sqrt(np.count_nonzero(skin) / _COLOUR_PX**2)), 1)
    return image[::step, ::step][skin[::step, ::step]]


def _sharpness(grey: np.ndarray) -> float:
    rows, columns = (side // _CELL_PX * _CELL_PX for side in grey.shape)
    if not rows or not columns:
        return float("inf")  # too small for a cell: flagged as small, not as blurred
    values = grey[:rows, :columns].astype(np.float32)
    cells = np.add.reduceat(values.reshape(-1, _CELL_PX, columns).sum(axis=1), np.arange(0, columns, _CELL_PX), axis=1) / _CELL_PX**2
    contrast = _mean_square(values) - _mean_square(cells)  # the variance within cells
    centre = values[1:-1, 1:-1]
    laplacian = values[1:-1, :-2] + values[1:-1, 2:]
    laplacian += values[:-2, 1:-1]
    laplacian += values[2:, 1:-1]
    laplacian -= 4 * centre
    variance = _mean_square(laplacian) - float(laplacian.mean()) ** 2
    return max(variance - _ROUNDING, 0.0) / contrast if contrast > 1e-3 else 0.0


def _mean_square(values: np.ndarray) -> float:
    flat = values.ravel()
    return float(flat @ flat) / flat.size


def _ita(pixels: np.ndarray) -> float:
    """Median angle of (..., 3) uint8 sRGB pixels, by CIELAB of illuminant D65."""
    xyz = np.take(_LINEAR, pixels.reshape(-1, 3)) @ _TO_XYZ.T[:, 1:] / _WHITE_POINT[1:]  # (n, 2): L* and b* need no X
    y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), xyz * (841 / 108) + 4 / 29).T
    lightness, yellow = 116 * y - 16, 200 * (y - z)
    usable = yellow > 0.5
    return float(np.degrees(np.median(np.arctan((lightness[usable] - 50) / yellow[usable])))) if usable.any() else float("nan")


def _screen_shares(grey: np.ndarray) -> tuple[float, float]:
    """Flat share and line share, of at most 1024 px a side by leaving out rows and columns, which keeps what is exactly constant.

    Deceived by letterbox bars and montages with frames; a photographed monitor is noisy and found by neither.
    """
    step = -(-max(grey.shape) // (2 * _WORKING_PX))
    levels = np.ascontiguousarray(grey[::step, ::step])
    if min(levels.shape) < 2:
        return 0.0, 0.0
    return _flat_share(levels), max(_straight_edge(np.ascontiguousarray(part)) for part in (levels[:, ::8], levels[::8].T))


@compiled
def _flat_share(levels: np.ndarray) -> float:
    flat = rows = 0
    for y in range(0, levels.shape[0] - 1, 3):  # one of nine pixels is enough
        for x in range(0, levels.shape[1] - 1, 3):
            here = levels[y, x]
            flat += int(here == levels[y, x + 1] and here == levels[y + 1, x] and _BLACK < here < _WHITE)
        rows += 1
    return float(flat / (rows * ((levels.shape[1] + 1) // 3)))


@compiled
def _straight_edge(levels: np.ndarray) -> float:
    """The largest share of a row in which the next row is brighter, or darker, by a step."""
    most = 0
    for y in range(levels.shape[0] - 1):
        brighter = darker = 0
        for x in range(levels.shape[1]):
            step = np.int32(levels[y + 1, x]) - np.int32(levels[y, x])
            brighter += int(step >= _STEP)
            darker += int(step <= -_STEP)
        most = max(most, brighter, darker)
    return most / levels.shape[1]


def _ruler(grey: Image.Image) -> float:
    rows, columns = grey.reduce((1, _BAND_PX)), grey.reduce((_BAND_PX, 1))
    return max(_periodicity(np.asarray(rows)), _periodicity(np.asarray(columns).T))


def _periodicity(bands: np.ndarray) -> float:
    """Autocorrelation at one, two and three periods, the least of them, of the most periodic pair of neighbouring bands.

    Ticks stand across a narrow band. Where half of the bands are as periodic it is a texture (cloth, bricks), and 0. Rulers that lie more
    than some degrees askew, show fewer than about fifteen ticks or ticks closer than 4 px at 512 px are missed; fences and zips are found.

    Args:
        bands: (n, length) grey levels along a picture.
    """
    if len(bands) < 2 or bands.shape[1] < 4 * _TICK_PERIODS_PX[-1]:
        return 0.0
    ticks = bands.astype(np.float32, order="C")
    ticks -= ndimage.uniform_filter1d(ticks, int(_TICK_PERIODS_PX[-1]) // 2 + 1, axis=1)
    score = _tick_scores(ticks, int(_TICK_PERIODS_PX[0]), int(_TICK_PERIODS_PX[-1]), bands.shape[1] * _TICK_CONTRAST**2)
    pairs = np.minimum(score[1:], score[:-1]).max(axis=1)  # the same period in both
    best = float(pairs.max())
    return 0.0 if best <= 0 or np.median(pairs) > best / 2 else min(best, 1.0)


@compiled
def _tick_scores(ticks: np.ndarray, shortest: int, longest: int, least_power: float) -> np.ndarray:
    """(n, periods) float32: autocorrelation at one, two and three periods, the least of them, where a period is a peak; 0 elsewhere."""
    length, shift = ticks.shape[1], shortest - 1
    scores = np.zeros((len(ticks), longest - shortest + 1), np.float32)
    padded = np.zeros(length + longest + 2, np.float32)
    for n in range(len(ticks)):
        band = ticks[n]
        padded[:length] = band
        power = max(np.dot(band, band), np.float32(least_power))
        once = np.zeros(longest - shortest + 3, np.float32)  # of the periods and of one more on either side
        for x in range(length):
            value, others = padded[x], padded[x + shift : x + shift + len(once)]
            for k in range(len(once)):  # side by side, which vector units take at once
                once[k] += value * others[k]
        for k in range(1, len(once) - 1):
            if once[k] > once[k - 1] and once[k] > once[k + 1] and once[k] > 0:
                twice, thrice = 2 * (k + shift), 3 * (k + shift)
                least = min(once[k], np.dot(band[twice:], band[:-twice]))
                scores[n, k - 1] = max(min(least, np.dot(band[thrice:], band[:-thrice])) / power, np.float32(0))
    return scores


def _ink_share(pixels: np.ndarray) -> float:
    return float(ink_mask(pixels).mean())
