"""The samples of one ordinary picture: whole, in tiles, or in patches of skin; measured, hashed, flagged."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from methods.curation import quality as measures
from methods.curation.radiograph import central_crop
from methods.curation.skin import cut_patches, draw_patches, find_skin
from methods.curation.tissue import tile_grid, tissue_share
from storage import filesystems
from storage.datasets.source import SourceError
from storage.images import encode_jpeg, is_turned, read_mask
from storage.pictures import is_dicom, read_picture
from tasks.curation import CurationConfig, TilingConfig
from tasks.references import ItemReference
from tasks.rows import NOWHERE, Box, Tabulated, check_marked, label_of, make_row, search_columns
from tasks.transforms import EQUALISE, stain_transform


@dataclass(frozen=True)
class _Picture:
    """A picture while it is tabulated."""

    item: ItemReference
    pixels: np.ndarray  # (H, W, 3) uint8
    mask: np.ndarray | None  # (H, W) bool
    found: dict[str, Any]  # what every sample's row says of the picture
    flags: tuple[str, ...]

    @property
    def width_px(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height_px(self) -> int:
        return int(self.pixels.shape[0])


def tabulate_picture(item: ItemReference, tiling: TilingConfig, curation: CurationConfig, *, stain: str | None) -> Tabulated:
    """The rows of one picture.

    Raises:
        SourceError: a mask of another size, or one that contradicts the label.
        UnreadableImageError: a damaged picture.
    """
    cut = tiling.by_dataset.get(item["dataset"], tiling.pictures)
    if cut == "patches" and (left_out := curation.skin.leave_out(item["site"])) is not None:
        return Tabulated([make_row(item, NOWHERE, label=item["label"], excluded=left_out)], left_out)
    picture = _open(item, curation, stain)
    if cut == "patches":
        return _patches(picture, curation)
    if cut == "tiled":
        return _tiles(picture, tiling, curation)
    return _whole(picture, curation)


def _open(item: ItemReference, curation: CurationConfig, stain: str | None) -> _Picture:
    pixels = read_picture(item["uri"], frame=item["frame"], sha256=item["sha256"] or "")
    quality = measures.measure_quality(pixels)
    transform, trouble = stain_transform(stain, pixels.reshape(-1, 3))
    flags = (*measures.flags(quality, curation.quality), *(("stain-failed",) if trouble else ()))
    found = {
        **search_columns(pixels, curation.duplicates),
        "sharpness": quality.sharpness if np.isfinite(quality.sharpness) else None,  # too small to say
        "brightness": quality.brightness,
        "contrast": quality.contrast,
        "ita_deg": None if np.isnan(quality.ita_deg) else quality.ita_deg,
        "flags": ";".join(flags) or None,
        "transform": EQUALISE if curation.equalise else transform,
        "excluded": curation.refuse(flags),
    }
    return _Picture(item, pixels, _read_mask(item, pixels), found, flags)


def _whole(picture: _Picture, curation: CurationConfig) -> Tabulated:
    box = Box(0, 0, picture.width_px, picture.height_px)
    if curation.crop_share is not None:
        box = Box(*central_crop(picture.width_px, picture.height_px, share=curation.crop_share))
    label = label_of(picture.item, None, whole=True, least_share=1)
    return Tabulated([make_row(picture.item, box, label=label, abnormal_share=_share(picture, box), **picture.found)], "1 picture")


def _tiles(picture: _Picture, tiling: TilingConfig, curation: CurationConfig) -> Tabulated:
    corners = tile_grid(picture.width_px, picture.height_px, tile_px=tiling.size_px, stride_px=tiling.stride_px or tiling.size_px)
    if not len(corners):
        note = f"no tile: {picture.width_px} × {picture.height_px} px is smaller than tiling.size_px = {tiling.size_px}"
        return Tabulated(
            [make_row(picture.item, Box(0, 0, picture.width_px, picture.height_px), **picture.found | {"excluded": note})], note
        )
    boxes = [Box(x, y, tiling.size_px, tiling.size_px) for x, y in corners.tolist()]
    rows = [_sample(picture, box, least_share=tiling.abnormal_share) for box in boxes]
    return Tabulated(rows, f"{len(rows)} tiles")


def _patches(picture: _Picture, curation: CurationConfig) -> Tabulated:
    """Patches of a body photograph: those that are refused have a row too, which says why."""
    skin = find_skin(picture.pixels, curation.skin)
    spacing_um = picture.item["spacing_um"]
    scale = None if spacing_um is None else spacing_um / 1000
    patches = cut_patches(skin, config=curation.skin, mm_per_px=scale, photograph=picture.pixels)
    ita_deg = measures.measure_ita(picture.pixels, skin) if skin.any() else np.nan  # of the skin, not of the wall behind it
    picture = replace(picture, found=picture.found | {"ita_deg": None if np.isnan(ita_deg) else ita_deg})
    rows = []
    for patch in patches:
        row = _sample(picture, Box(patch.x_px, patch.y_px, patch.width_px, patch.height_px), least_share=1e-9)
        reason = patch.reason if not patch.kept else None
        rows.append(row | {"tissue_share": patch.skin_share, "excluded": reason or row["excluded"]})
    kept = sum(patch.kept for patch in patches)
    preview = encode_jpeg(draw_patches(picture.pixels, skin, patches))
    if not rows:
        return Tabulated(
            [make_row(picture.item, Box(0, 0, picture.width_px, picture.height_px), **picture.found | {"excluded": "no skin"})], "no skin"
        )
    return Tabulated(rows, f"{kept} of {len(patches)} patches kept", preview)


def _sample(picture: _Picture, box: Box, *, least_share: float) -> dict[str, Any]:
    """A part of a picture; without a mask a part of an abnormal picture is unknown, as the source says something of the whole alone."""
    share = _share(picture, box)
    label = label_of(picture.item, share, whole=False, least_share=least_share)
    return make_row(picture.item, box, label=label, abnormal_share=share, **picture.found)


def _share(picture: _Picture, box: Box) -> float | None:
    if picture.mask is None:
        return None
    side = np.array([[box.x_px, box.y_px, box.x_px + box.width_px, box.y_px + box.height_px]])
    return float(tissue_share(picture.mask, side)[0])


def _read_mask(item: ItemReference, pixels: np.ndarray) -> np.ndarray | None:
    if item["mask_uri"] is None:
        return None
    with filesystems.open_for_reading(item["mask_uri"]) as file:
        mask = read_mask(file)
    if mask.shape != pixels.shape[:2]:
        sizes = f"{mask.shape[1]} × {mask.shape[0]} px, its picture {pixels.shape[1]} × {pixels.shape[0]}"
        what_to_do = "save it at the picture's size"
        if mask.shape == pixels.shape[1::-1] and _is_turned(item):
            what_to_do = "it fits the picture as it is stored, which EXIF has turned by a quarter; turn the mask likewise"
        raise SourceError(f"the mask {item['mask_uri']} has {sizes}: {what_to_do}")
    check_marked(item, mask)
    return mask


def _is_turned(item: ItemReference) -> bool:
    if item["frame"] is not None or is_dicom(item["uri"]):
        return False
    with filesystems.open_for_reading(item["uri"]) as file:
        return is_turned(file)
