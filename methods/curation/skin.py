"""Total body photographs: which pixels are skin, and the patches that are cut from it (Burgert et al. 2025, section 3.1)."""

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage
from scipy.cluster.vq import kmeans2, vq
from skimage.morphology import remove_small_holes, remove_small_objects

from methods.curation.quality import sharpness

_WORKING_PX = 384  # longer side of the copy in which skin is looked for
_BLUR_PX = 1.0
_SAMPLE = 8_000  # pixels that clusters are found in
_GREY = np.arange(256) / 255
_LINEAR = np.where(_GREY <= 0.04045, _GREY / 12.92, ((_GREY + 0.055) / 1.055) ** 2.4).astype(np.float32)  # sRGB
_FLARE = 0.004  # of linear light: in deep shade chromaticity is noise, this draws it to grey
# Skin absorbs blue more than green more than red by melanin and haemoglobin, so that at any tone ln R/G and ln G/B are positive: their
# centre and spread over Fitzpatrick I to VI under daylight to tungsten. In YCbCr they lie inside the bounds of Chai and Ngan (1999).
_LOCUS = np.array([0.62, 0.50])
_LOCUS_SPREAD = np.array([0.26, 0.30])
_LEAST_PRIOR = 0.1
_REDNESS_WEIGHT = 1.6  # melanin raises both ratios, and differs more within a body than redness does; beige cloth differs in redness
_WORD = re.compile(r"[^\W_]+")
_ROW_CHOICES = 16  # places within a step that a row may have
_TINT, _KEPT, _REJECTED = (255, 0, 160), (0, 200, 0), (225, 40, 40)


class SkinConfig(BaseModel):
    """What is taken for skin, and which patches are cut."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clusters: int = Field(default=8, ge=2, description="colours that a photograph is divided into")
    most_distance: float = Field(default=0.25, gt=0, description="by which skin of one body may differ in ln R/G and ln G/B, along melanin")
    most_texture: float = Field(
        default=3.0, gt=0, description="times the roughness of the body's skin above which skin colour is cloth or wood"
    )
    smallest_area_share: float = Field(default=0.01, ge=0, le=1, description="of the photograph; smaller pieces are no skin")
    largest_hole_share: float = Field(
        default=0.03, ge=0, le=1, description="of the photograph; smaller holes are lesions and belong to the skin"
    )
    side_px: int = Field(default=512, ge=8, description="side of a patch where the scale is unknown")
    side_mm: float = Field(default=60.0, gt=0, description="side of a patch where the scale is known")
    overlap: float = Field(default=0.0, ge=0, le=0.9, description="share of a side by which neighbours may overlap")
    least_skin_share: float = Field(default=0.98, gt=0, le=1, description="patches with less skin are rejected")
    edge_share: float = Field(
        default=0.0, ge=0, lt=0.5, description="margin of the photograph, in sides of a patch, that patches keep away from"
    )
    least_sharpness: float = Field(default=0.0, ge=0, description="patches of less are blurred; smooth skin has little, so 0 rejects none")
    sites_left_out: tuple[str, ...] = Field(
        default=("head", "face", "hand", "hands", "foot", "feet", "palms", "soles"),
        description="photographs whose site, in the source's words, has one of these words give no patch; the paper's, and the ISIC "
        "archive's for hands and feet",
    )

    def leave_out(self, site: str | None) -> str | None:
        """Why a photograph of this part of the body gives no patch, or None; words count whole and in either case."""
        words = f" {' '.join(_WORD.findall((site or '').lower()))} "
        named = [name for name in self.sites_left_out if f" {' '.join(_WORD.findall(name.lower()))} " in words]
        return f"site left out: {site} (curation.skin.sites_left_out: {', '.join(named)})" if named else None


@dataclass(frozen=True)
class Patch:
    """A candidate: where it lies in the photograph, and why it was rejected.

    Attributes:
        x_px, y_px, width_px, height_px: box in pixels of the photograph.
        skin_share: of the box, in [0, 1].
        reason: why it is not used, None if it is.
    """

    x_px: int
    y_px: int
    width_px: int
    height_px: int
    skin_share: float
    reason: str | None

    @property
    def kept(self) -> bool:
        """Whether the patch is used."""
        return self.reason is None


def find_skin(photograph: np.ndarray, config: SkinConfig) -> np.ndarray:
    """Which pixels of a photograph of a body are skin, of whatever tone.

    Ratios of linear light, ln R/G and ln G/B, do not change with shading. The photograph is divided into clusters of them (and, weakly, of
    lightness); a prior over the ratios of all skin tones and the place (a body is in the middle, a background touches the border) choose
    the cluster that is surely skin; others join that are close to it and as smooth. Pieces that are small go, holes that are small
    (lesions, whatever their colour) are filled.

    Seen on generated bodies alone. It fails where cloth or background has the very chromaticity of the skin (nude-coloured underwear,
    reddish wood behind tanned skin), in light that is far from white, and at lesions on the outline of the body, which are no holes. It
    finds head and hands, too: leave those photographs or parts out by what the source says.

    Args:
        photograph: (H, W, 3) uint8 RGB.
        config: see there.

    Returns:
        (H, W) bool; nowhere true if nothing has the colour of skin.

    Raises:
        ValueError: not such a picture.
    """
    if photograph.ndim != 3 or photograph.shape[2] != 3 or photograph.dtype != np.uint8 or not photograph.size:
        raise ValueError(f"expected a photograph (H, W, 3) uint8 RGB, got {photograph.shape} {photograph.dtype}")
    small = _shrink(photograph)
    features, roughness = _features(small)  # (h, w, 3), (h, w)
    labels = _cluster(features, config.clusters)  # (h, w)
    mask, background = _choose(features[..., :2], roughness, labels, config)
    mask = ndimage.binary_opening(mask, iterations=2, structure=np.ones((3, 3)))
    mask = _fill_lesions(mask, background, round(config.largest_hole_share * mask.size))
    mask = remove_small_objects(mask, max_size=round(config.smallest_area_share * mask.size))
    full = Image.fromarray(mask).resize((photograph.shape[1], photograph.shape[0]), Image.Resampling.NEAREST)
    return np.asarray(full, bool)


def cut_patches(
    mask: np.ndarray, *, config: SkinConfig, mm_per_px: float | None = None, photograph: np.ndarray | None = None
) -> tuple[Patch, ...]:
    """Patches of one size in rows over the skin, with those that were rejected on its rim.

    Rows lie where they hold the most patches together (dynamic programming over their places), and in a row each run of skin holds as many
    as fit, evenly from its middle. Boxes that stick out of the photograph are listed with what of them lies inside.

    Args:
        mask: (H, W) bool, the skin.
        config: sizes and limits.
        mm_per_px: scale of the photograph, where it is known: patches are then `side_mm`, else `side_px`.
        photograph: (H, W, 3) uint8; needed only for `least_sharpness`.

    Returns:
        Row by row, left to right; boxes without any skin are left out.

    Raises:
        ValueError: no such mask or scale, or sharpness is asked for without the photograph.
    """
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"expected a mask (H, W) bool, got {mask.shape} {mask.dtype}")
    if mm_per_px is not None and not 0 < mm_per_px < np.inf:
        raise ValueError(f"expected a positive scale in mm per px, got {mm_per_px}; give None where it is unknown")
    if config.least_sharpness and photograph is None:
        raise ValueError("least_sharpness needs the photograph; pass it, or set least_sharpness to 0")
    side = config.side_px if mm_per_px is None else max(round(config.side_mm / mm_per_px), 1)
    height, width = mask.shape
    if min(height, width) < side:
        return (
            (Patch(0, 0, width, height, float(mask.mean()), f"the photograph is smaller than a patch of {side} px"),) if mask.any() else ()
        )
    step, rows = max(round(side * (1 - config.overlap)), 1), _place_rows(mask, side, config)
    corners = [(x, y) for y in _with_rejected(sorted(rows), height, side, step) for x in _with_rejected(rows.get(y, []), width, side, step)]
    patches = (_judge(mask, x, y, side, config, photograph) for x, y in corners)
    return tuple(patch for patch in patches if patch.skin_share > 0)


def draw_patches(photograph: np.ndarray, mask: np.ndarray, patches: tuple[Patch, ...]) -> np.ndarray:
    """The photograph with skin tinted, kept patches in green, rejected ones thin in red; (H, W, 3) uint8."""
    tinted = photograph.copy()
    tinted[mask] = (photograph[mask] * 0.75 + np.array(_TINT) * 0.25).astype(np.uint8)
    preview = Image.fromarray(tinted)
    draw, line_px = ImageDraw.Draw(preview), max(round(max(mask.shape) / 300), 1)
    for patch in sorted(patches, key=lambda patch: patch.kept):  # kept ones lie on top
        box = (patch.x_px, patch.y_px, patch.x_px + patch.width_px - 1, patch.y_px + patch.height_px - 1)
        draw.rectangle(box, outline=_KEPT if patch.kept else _REJECTED, width=2 * line_px if patch.kept else line_px)
    return np.asarray(preview)


def _shrink(photograph: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(photograph)
    scale = min(_WORKING_PX / max(picture.size), 1)
    width, height = (max(round(side * scale), 1) for side in picture.size)
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX, reducing_gap=2.0))


def _features(photograph: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ln R/G, ln G/B and a little lightness (h, w, 3) float32; local roughness of the logarithm of light (h, w)."""
    light = np.take(_LINEAR, photograph)
    smooth = np.log(ndimage.gaussian_filter(light, (_BLUR_PX, _BLUR_PX, 0)) + _FLARE)
    ratios = np.stack([smooth[..., 0] - smooth[..., 1], smooth[..., 1] - smooth[..., 2], 0.12 * smooth[..., 1]], axis=-1)
    green = np.log(light[..., 1] + 5 * _FLARE)
    fine = green - ndimage.gaussian_filter(green, 2.0)
    return ratios, np.sqrt(np.maximum(ndimage.uniform_filter(fine**2, 9), 0))  # the filter's running sum rounds below 0


def _cluster(features: np.ndarray, clusters: int) -> np.ndarray:
    """(h, w) int; the seed is fixed, so that a photograph always gives the same patches."""
    pixels = features.reshape(-1, 3)
    sample = pixels[:: -(-len(pixels) // _SAMPLE)]
    found = min(clusters, len(np.unique(sample, axis=0)))
    centres, _ = kmeans2(sample, found, iter=25, minit="++", rng=np.random.default_rng(0))
    return np.asarray(vq(pixels, centres)[0]).reshape(features.shape[:2])


def _choose(ratios: np.ndarray, roughness: np.ndarray, labels: np.ndarray, config: SkinConfig) -> tuple[np.ndarray, np.ndarray]:
    """Two (h, w) bool: the clusters that are surely skin or like it, and those that crowd at the border."""
    count = labels.max() + 1
    index = np.arange(count)
    area = np.bincount(labels.ravel(), minlength=count)
    centres = np.stack([ndimage.median(channel, labels, index) for channel in np.moveaxis(ratios, -1, 0)], axis=1)  # (count, 2)
    prior = np.exp(-0.5 * np.square((centres - _LOCUS) / _LOCUS_SPREAD).sum(axis=1))
    rough = np.asarray(ndimage.median(roughness, labels, index))
    middle, border = _middle_and_border(labels, count)
    score = prior * middle * area / (1 + border)
    body = int(np.argmax(np.where(prior > _LEAST_PRIOR, score, 0)))
    if prior[body] <= _LEAST_PRIOR:
        return np.zeros(labels.shape, bool), np.ones(labels.shape, bool)
    near = _distance(centres, centres[body]) < config.most_distance / 2
    distance = _distance(centres, np.average(centres[near], axis=0, weights=area[near]))  # one cluster may lie at the brink of the skin
    joins = (distance < config.most_distance) & (prior > _LEAST_PRIOR) & (rough < config.most_texture * max(rough[body], 0.01))
    joins &= (border < border[body] + 1.5) | (distance < config.most_distance / 2)
    return joins[labels], (~joins & (border > 1))[labels]


def _distance(centres: np.ndarray, centre: np.ndarray) -> np.ndarray:
    melanin, redness = np.array([[1, 1], [1, -1]]) / np.sqrt(2) @ (centres - centre).T
    return np.hypot(melanin, _REDNESS_WEIGHT * redness)


def _fill_lesions(mask: np.ndarray, background: np.ndarray, largest_px: int) -> np.ndarray:
    """The mask without its small holes, but for those through which the background shows: between arm and trunk, say."""
    filled = remove_small_holes(mask, max_size=largest_px)
    holes, count = ndimage.label(filled & ~mask)
    index = np.arange(1, count + 1)
    area, share = np.bincount(holes.ravel(), minlength=count + 1)[1:], ndimage.mean(background, holes, index)
    gaps = index[(np.asarray(share) > 0.5) & (area > largest_px / 10)]
    return np.asarray(filled & ~np.isin(holes, gaps))


def _middle_and_border(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """How much each cluster lies in the middle, and on the upper, left and right border, compared with an even spread (1)."""
    height, width = labels.shape
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in (height, width))
    weight = np.exp(-2 * (x[None, :] ** 2 + 0.5 * y[:, None] ** 2))
    area = np.maximum(np.bincount(labels.ravel(), minlength=count), 1)
    middle = np.bincount(labels.ravel(), weight.ravel(), minlength=count) / area / weight.mean()
    rim = np.zeros(labels.shape, bool)
    margin = max(min(height, width) // 40, 1)
    rim[:margin] = rim[:, :margin] = rim[:, -margin:] = True
    border = np.bincount(labels[rim], minlength=count) / area / rim.mean()
    return middle, border


def _place_rows(mask: np.ndarray, side: int, config: SkinConfig) -> dict[int, list[int]]:
    """y of the rows that together hold the most patches with enough skin, and the x of those; rows are a step apart or more."""
    step, margin = max(round(side * (1 - config.overlap)), 1), round(config.edge_share * side)
    pace = max(step // _ROW_CHOICES, 1)
    above = np.concatenate([np.zeros((1, mask.shape[1]), np.int32), mask.cumsum(axis=0, dtype=np.int32)])
    places = range(margin, mask.shape[0] - side - margin + 1, pace)
    fits = [_fit_row(above[y + side] - above[y], side, step, margin, config.least_skin_share) for y in places]
    hop = -(-step // pace)
    most = [0] * (len(fits) + hop)  # patches in the rows from here on
    for i in range(len(fits) - 1, -1, -1):
        most[i] = max(most[i + 1], len(fits[i]) + most[i + hop])
    rows, i = {}, 0
    while i < len(fits) and most[i]:
        if most[i] > most[i + 1]:  # only this row reaches it
            rows[places[i]] = fits[i]
            i += hop
        else:
            i += 1
    return rows


def _fit_row(column_sums: np.ndarray, side: int, step: int, margin: int, least: float) -> list[int]:
    """As many x as fit into each run of places with enough skin, evenly from its middle."""
    sums = np.concatenate([[0], column_sums.cumsum(dtype=np.int64)])
    enough = sums[side:] - sums[:-side] >= least * side * side
    enough[:margin] = False
    enough[len(enough) - margin :] = False
    bounds = np.flatnonzero(np.diff(np.concatenate([[False], enough, [False]]).astype(np.int8)))
    placed: list[int] = []
    for first, last in zip(bounds[::2].tolist(), (bounds[1::2] - 1).tolist(), strict=True):
        start = max(first, placed[-1] + step) if placed else first
        if start <= last:
            count = (last - start) // step + 1
            start += (last - start - (count - 1) * step) // 2
            placed.extend(start + k * step for k in range(count))
    return placed


def _with_rejected(kept: list[int], length: int, side: int, step: int) -> list[int]:
    """Kept places along a side of the photograph and those that fill it around and between them; the outermost may stick out."""
    if not kept:
        return list(range((length - side) % step // 2 - step, length, step))
    between = [at for left, right in pairwise(kept) for at in range(left + step, right - step + 1, step)]
    return sorted({*kept, *between, *range(kept[0] - step, -side, -step), *range(kept[-1] + step, length, step)})


def _judge(mask: np.ndarray, x: int, y: int, side: int, config: SkinConfig, photograph: np.ndarray | None) -> Patch:
    height, width = mask.shape
    left, top = max(x, 0), max(y, 0)
    box = (left, top, max(min(x + side, width) - left, 0), max(min(y + side, height) - top, 0))
    inside = np.s_[top : top + box[3], left : left + box[2]]
    share = float(mask[inside].mean()) if box[2] and box[3] else 0.0
    return Patch(*box, share, _reason(box, share, inside, mask.shape, side, config, photograph))


def _reason(
    box: tuple[int, int, int, int],
    share: float,
    inside: tuple[slice, slice],
    shape: tuple[int, ...],
    side: int,
    config: SkinConfig,
    photograph: np.ndarray | None,
) -> str | None:
    x, y, width, height = box
    if (width, height) != (side, side):
        return f"at the edge: {width} × {height} of {side} × {side} px are in the photograph"
    if min(x, y, shape[1] - x - side, shape[0] - y - side) < round(config.edge_share * side):
        return f"at the edge: closer than {config.edge_share:g} of a side"
    if share < config.least_skin_share:
        return f"{np.floor(share * 100):.0f} % skin"
    if photograph is not None and config.least_sharpness and sharpness(photograph[inside]) < config.least_sharpness:
        return "blurred"
    return None
