"""The tiles of one slide: tissue mask, grid at a spacing, labels from outlines, a cap, flags, and a preview of all that."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as arrow
from PIL import Image

from methods.curation.previews import draw_tiles
from methods.curation.tile_quality import measure_tiles
from methods.curation.tissue import draw_evenly, find_tissue, tile_grid, tissue_share
from storage import filesystems
from storage.datasets.source import SourceError
from storage.images import encode_jpeg, read_mask
from storage.manifest import sample_ids
from storage.slides import SlideReader, look_over, open_slide
from storage.tiff_levels import UnreadableSlideError
from tasks.curation import CurationConfig, TileQualityConfig, TilingConfig
from tasks.outlines import draw_outlines, has_outlines
from tasks.references import ItemReference
from tasks.rows import Box, Tabulated, check_marked, label_of, make_row, search_columns, to_columns
from tasks.transforms import stain_transform

_THUMBNAIL_PX = 1024
_FLAG_SPACING_UM = 2.0  # fine enough to tell sharp nuclei from blurred ones, a sixteenth of the pixels of 0.5 µm
_STAIN_TILES = 16
_BAND_PX = 256  # about a tile of the level, of which whatever is touched is decoded
_MASK_PX_A_TILE = 32  # outlines are rasterised this finely


@dataclass(frozen=True)
class TileLevel:
    """The level that tiles are read from, and their size there.

    Attributes:
        level: of the slide's pyramid.
        spacing_um: µm per pixel of that level.
        tile_px, stride_px: in pixels of that level.
    """

    level: int
    spacing_um: float
    tile_px: int
    stride_px: int


@dataclass(frozen=True)
class _Findings:
    """What is wrong with n tiles: the flags, (n,) bool each, and by tile why it cannot be read."""

    flags: dict[str, np.ndarray]
    unreadable: dict[int, str]

    def columns(self, curation: CurationConfig) -> dict[str, np.ndarray]:
        """The columns flags and excluded, (n,) object; each combination of flags is put into words once."""
        codes = sum(raised.astype(int) << bit for bit, raised in enumerate(self.flags.values()))
        combinations = [tuple(name for bit, name in enumerate(self.flags) if code >> bit & 1) for code in range(1 << len(self.flags))]
        excluded = np.array([curation.refuse(flags) for flags in combinations], object)[codes]
        excluded[list(self.unreadable)] = list(self.unreadable.values())
        return {"flags": np.array([";".join(flags) or None for flags in combinations], object)[codes], "excluded": excluded}


def tabulate_slide(item: ItemReference, tiling: TilingConfig, curation: CurationConfig, *, stain: str | None) -> Tabulated:
    """The rows of one slide; a slide without a single tile gets one excluded row that says why, and so do tiles that are damaged.

    Raises:
        SourceError: no spacing, a spacing that the slide does not reach, or a mask of another size.
        UnreadableSlideError: a slide of which nothing can be decoded.
    """
    with open_slide(item["uri"]) as slide:
        spacing_um = item["spacing_um"] or slide.spacing_um
        if spacing_um is None:
            raise SourceError("the slide does not say its µm per pixel; list it in a CSV with the column spacing_um")
        named = ItemReference(**{**item, "slide_id": item["slide_id"] or filesystems.name_of(item["uri"])})
        view = choose_level(slide, spacing_um, tiling)
        thumbnail, holes = look_over(slide, _THUMBNAIL_PX)
        tissue_mask = find_tissue(thumbnail, spacing_um=spacing_um * slide.width_px / thumbnail.shape[1], config=tiling.tissue)
        width_px, height_px = slide.level_dimensions[view.level]
        corners = tile_grid(width_px, height_px, tile_px=view.tile_px, stride_px=view.stride_px, to_border=tiling.dense)
        boxes = np.hstack([corners, corners + view.tile_px])
        seen = boxes * (thumbnail.shape[1] / width_px)  # in pixels of the thumbnail
        tissue = tissue_share(tissue_mask, seen)
        lost = np.zeros(len(boxes), bool)
        if holes.any():  # whether there is tissue is not to be known
            lost = tissue_share(holes, seen) > 0
        marked, marks = _look_up_marks(named, slide, boxes * slide.level_downsamples[view.level], view, tissue_mask.shape)
        labels = _labels(named, marked, tiling)
        if tiling.dense:  # by every pixel of the mask that a tile touches, not by those that it shares the most of
            enough = tissue_share(tissue_mask, np.hstack([np.floor(seen[:, :2]), np.ceil(seen[:, 2:])])) > 0
        else:
            enough = tissue >= np.where(labels == 1, tiling.abnormal_tissue_share, tiling.tissue_share)
        kept = _capped(enough & ~lost, labels, tiling, seed=named["sha256"] or "") | lost
        findings = _look_at_tiles(slide, spacing_um, boxes[kept] * slide.level_downsamples[view.level], curation.tiles)
        transform, trouble = stain_transform(stain, _read_some(slide, view, corners[kept & ~lost]) if stain else None)
    if trouble:
        findings.flags["stain-failed"] = np.ones(int(kept.sum()), bool)
    for tile in np.flatnonzero(lost[kept]).tolist():
        findings.unreadable.setdefault(tile, "unreadable: damaged here in the overview's level and every finer one")
    hashes = search_columns(thumbnail, curation.duplicates)
    of_all = hashes | {"spacing_um": view.spacing_um, "transform": transform}
    rows = _rows(named, view, of_all, corners[kept], labels[kept], tissue[kept], marked[kept], findings, curation)
    note = _describe(corners, enough | lost, kept, findings, tiling) + (f"; stain: {trouble}" if trouble else "")
    preview = draw_tiles(thumbnail, tissue_mask, seen, kept=kept, labels=labels, marks=marks)
    empty = [make_row(named, Box(0, 0, slide.width_px, slide.height_px), excluded=f"no tile: {note}", **hashes)]
    return Tabulated(rows if len(rows) else empty, note, encode_jpeg(preview))


def choose_level(slide: SlideReader, spacing_um: float, tiling: TilingConfig) -> TileLevel:
    """The coarsest level that is fine enough; what is finer than asked is resampled when the tile is read.

    Raises:
        SourceError: even level 0 is coarser than asked.
    """
    wanted_um = tiling.spacing_um or spacing_um
    spacings = [spacing_um * downsample for downsample in slide.level_downsamples]
    fine_enough = [level for level, spacing in enumerate(spacings) if spacing <= wanted_um * (1 + tiling.spacing_tolerance)]
    if not fine_enough:
        raise SourceError(f"scanned at {spacing_um:g} µm per pixel, tiling.spacing_um asks for {wanted_um:g}: pixels are not invented")
    level = fine_enough[-1]
    ratio = wanted_um / spacings[level]
    ratio = 1.0 if abs(ratio - 1) <= tiling.spacing_tolerance else ratio
    tile_px, stride_px = (max(1, round(side * ratio)) for side in (tiling.size_px, tiling.stride_px or tiling.size_px))
    return TileLevel(level=level, spacing_um=spacings[level], tile_px=tile_px, stride_px=stride_px)


def _look_up_marks(
    item: ItemReference, slide: SlideReader, boxes: np.ndarray, view: TileLevel, seen_px: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray | None]:
    """(n,) share of each level-0 box that is outlined or masked as abnormal, and that mask at `seen_px`; NaN, None where nothing says."""
    uri = item["mask_uri"]
    if uri is None:
        return np.full(len(boxes), np.nan), None
    if has_outlines(uri):
        downsample = max(1.0, view.tile_px * slide.level_downsamples[view.level] / _MASK_PX_A_TILE)
        mask = draw_outlines(uri, item["mask_sha256"] or "", width_px=slide.width_px, height_px=slide.height_px, downsample=downsample)
    else:
        downsample = 1.0
        with filesystems.open_for_reading(uri) as file:
            mask = read_mask(file)
        if mask.shape != (slide.height_px, slide.width_px):
            sizes = f"{mask.shape[1]} × {mask.shape[0]} px, its slide {slide.width_px} × {slide.height_px}"
            raise SourceError(f"the mask {uri} has {sizes}: save it at the slide's size, or give outlines (.xml, .geojson)")
    check_marked(item, mask)
    rows, columns = (np.arange(seen) * side // seen for seen, side in zip(seen_px, mask.shape, strict=True))
    return tissue_share(mask, boxes / downsample), mask[np.ix_(rows, columns)]


def _labels(item: ItemReference, marked: np.ndarray, tiling: TilingConfig) -> np.ndarray:
    """(n,) float: 0, 1, or NaN where unknown; each kind of tile is asked for once: without a mask, unmarked, grazed and marked."""
    kinds = [np.isnan(marked), marked == 0, marked < tiling.abnormal_share, np.ones(len(marked), bool)]
    shares = (None, 0.0, tiling.abnormal_share / 2, 1.0)
    labels = [label_of(item, share, whole=False, least_share=tiling.abnormal_share) for share in shares]
    return np.select(kinds, [np.nan if label is None else float(label) for label in labels])


def _capped(enough: np.ndarray, labels: np.ndarray, tiling: TilingConfig, *, seed: str) -> np.ndarray:
    """Of the normal, the abnormal and the unknown tiles `tiles_max` each, drawn by the slide's own digest: other slides change nothing."""
    if tiling.tiles_max is None:
        return enough
    kept = np.zeros_like(enough)
    for label in (0, 1, np.nan):
        candidates = np.flatnonzero(enough & (np.isnan(labels) if np.isnan(label) else labels == label))
        kept[
            draw_evenly(candidates, tiling.tiles_max, rng=np.random.default_rng([tiling.seed, int(seed[:12] or "0", 16), int(label == 1)]))
        ] = True
    return kept


def _look_at_tiles(slide: SlideReader, spacing_um: float, boxes: np.ndarray, quality: TileQualityConfig) -> _Findings:
    """What is wrong with each tile, given as level-0 boxes in the order of the grid; looked at at about `_FLAG_SPACING_UM`."""
    fine = [level for level, downsample in enumerate(slide.level_downsamples) if spacing_um * downsample <= _FLAG_SPACING_UM]
    level = fine[-1] if fine else 0
    downsample = slide.level_downsamples[level]
    reduction = max(1, int(_FLAG_SPACING_UM / (spacing_um * downsample)))
    measured, unreadable = np.full((2, len(boxes)), np.nan), {}
    boxes = (boxes / downsample).round().astype(int)
    for band in _bands(boxes):
        try:
            measured[:, band] = _measure_band(slide, boxes[band], level, reduction)
        except UnreadableSlideError:  # one by one: the others of the band are sound
            for tile in range(band.start, band.stop):
                try:
                    measured[:, [tile]] = _measure_band(slide, boxes[[tile]], level, reduction)
                except UnreadableSlideError as error:
                    unreadable[tile] = f"unreadable: {error}"
    return _Findings(quality.flags(*measured), unreadable)


def _bands(boxes: np.ndarray) -> Iterator[slice]:
    """Rows of the grid that are read together, because where tiles are small each would read the same few tiles of the level."""
    rows, start = _starts_of_rows(boxes), 0
    for begin, end in pairwise([*rows.tolist(), len(boxes)]):
        if begin > start and boxes[end - 1, 3] - boxes[start, 1] > _BAND_PX:
            yield slice(start, begin)
            start = begin
    if len(boxes):
        yield slice(start, len(boxes))


def _starts_of_rows(boxes: np.ndarray) -> np.ndarray:
    """Where the rows of the grid begin among boxes (n, 4) that are listed row by row."""
    return np.flatnonzero(np.diff(boxes[:, 1], prepend=-1))


def _measure_band(slide: SlideReader, boxes: np.ndarray, level: int, reduction: int) -> np.ndarray:
    """(2, n) sharpness and ink of tiles of some rows of the grid, (n, 4) in pixels of the level."""
    (left, top), (right, bottom) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    pixels = slide.read_region(int(left), int(top), int(right - left), int(bottom - top), level=level)
    measured, spans = np.empty((2, len(boxes))), (boxes[:, ::2] - left) / reduction
    for begin, end in pairwise([*_starts_of_rows(boxes).tolist(), len(boxes)]):
        strip = pixels[boxes[begin, 1] - top : boxes[begin, 3] - top]
        if reduction > 1:
            strip = np.asarray(Image.fromarray(strip).reduce(reduction))
        measured[0, begin:end], measured[1, begin:end] = measure_tiles(strip, spans[begin:end])
    return measured


def _read_some(slide: SlideReader, view: TileLevel, corners: np.ndarray) -> np.ndarray:
    """(n, 3) uint8: the pixels of a few tiles, evenly over the slide; damaged ones are passed over."""
    tiles = [np.empty((0, 3), np.uint8)]
    for x, y in corners[np.linspace(0, len(corners) - 1, min(len(corners), _STAIN_TILES)).astype(int)].tolist():
        with suppress(UnreadableSlideError):
            tiles.append(slide.read_region(x, y, view.tile_px, view.tile_px, level=view.level).reshape(-1, 3))
    return np.concatenate(tiles)


def _rows(
    item: ItemReference,
    view: TileLevel,
    of_all: dict[str, Any],
    corners: np.ndarray,
    labels: np.ndarray,
    tissue: np.ndarray,
    marked: np.ndarray,
    findings: _Findings,
    curation: CurationConfig,
) -> arrow.Table:
    """A row a tile, put together by columns, because a slide has tens of thousands of them."""
    common = make_row(item, Box(0, 0, view.tile_px, view.tile_px, view.level), **of_all)
    picture, size = item["sha256"] or item["uri"], {"width_px": view.tile_px, "height_px": view.tile_px}
    columns = {
        "sample_id": sample_ids(picture, corners, frame=item["frame"], level=view.level, **size),
        "x_px": corners[:, 0],
        "y_px": corners[:, 1],
        "label": labels,
        "finding": np.array([item["finding"], None], object)[(labels == 0).astype(int)],
        "tissue_share": tissue,
        "abnormal_share": marked,
        **findings.columns(curation),
    }
    return to_columns(len(corners), common, columns)


def _describe(corners: np.ndarray, enough: np.ndarray, kept: np.ndarray, findings: _Findings, tiling: TilingConfig) -> str:
    if not len(corners):
        return f"the slide is smaller than tiling.size_px = {tiling.size_px}"
    too_little = "without tissue" if tiling.dense else f"with less than {tiling.tissue_share:.0%} tissue"
    parts = [f"{int(kept.sum())} of {len(corners)} tiles kept", f"{int((~enough).sum())} {too_little}"]
    if capped := int((enough & ~kept).sum()):
        parts.append(f"{capped} not drawn (tiling.tiles_max)")
    if findings.unreadable:
        parts.append(f"{len(findings.unreadable)} unreadable")
    counted = {flag: int(raised.sum()) for flag, raised in sorted(findings.flags.items())}
    return "; ".join([*parts, *(f"{count} flagged {flag}" for flag, count in counted.items() if count)])
