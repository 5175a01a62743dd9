"""What a worker does to map a slide: its tiles' scores → its heatmap in slide coordinates and its regions. Knows no Prefect."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from methods.heatmaps import SLAB_ROWS, Mosaic, Pyramid, cast
from methods.regions import Region, RegionTracer
from storage.archives import Archive, ManifestRows, open_rows
from storage.heatmaps import BAND_PX, HeatmapWriter, Outline, heatmap_uri, read_attributes, regions_uri, write_outlines
from storage.scores import ScoreStore, open_store
from storage.slides import SlideReader, open_slide
from tasks.execution import return_freed_memory
from tasks.fingerprints import digest_of
from tasks.references import RowsReference

logger = logging.getLogger(__name__)

_TILE_COLUMNS = ["level", "x_px", "y_px", "width_px", "height_px", "spacing_um"]
_ROWS_AT_ONCE = 8192  # all columns of a large slide's tiles take hundreds of megabytes
_BATCH_BYTES = 8 << 20  # of maps that are read at once
_FILLED_PX = 16  # side of the map that stands for an image score: its blending is smooth enough at a sixteenth of a tile
_BANDS_BETWEEN = 8
_COARSEST_PX = 256  # of the longer side of the last level
_RECORDS_AT_ONCE = 16
_ANOMALY, _NOT_SCORED = ("Anomaly", (200, 0, 0)), ("Not scored", (128, 128, 128))  # classes in QuPath


class SlideMapError(ValueError):
    """A slide whose scores make no map: not all there yet, or tiles of several sizes."""


class SlideReference(TypedDict):
    """A slide and the rows that its tiles have: [first, stop) of each run of them."""

    slide_id: str
    uri: str
    sha256: str
    spans: list[tuple[int, int]]


class SlideMapJob(TypedDict):
    """All that is needed to make the map of one slide; without a threshold no anomalies are outlined."""

    slide: SlideReference
    rows: RowsReference
    store_uri: str
    slides_uri: str
    threshold: float | None
    least_area_um2: float


class SlideMapReference(TypedDict):
    """A heatmap, its regions, and what is in them; `failed` tiles have no score."""

    uri: str
    regions_uri: str
    slide_id: str
    made_from: str
    tiles: int
    failed: int
    regions: int
    area_mm2: float


class _Grid(NamedTuple):
    """A slide's map: its size, its tiles', and along the side of one of its pixels pixels of the slide's level 0, which has `slide_px`."""

    height_px: int
    width_px: int
    tile_px: int
    downsample: float
    slide_px: tuple[int, int]
    spacing_um: float

    @property
    def pixel_um2(self) -> float:
        return (self.downsample * self.spacing_um) ** 2


def write_slide_map(job: SlideMapJob) -> SlideMapReference:
    """Make a slide's heatmap and its regions.

    What is there and was made from the same scores, with the same threshold, is left as it is; else it is made anew, and is not there
    until that is done.

    Raises:
        SlideMapError: a tile is not scored yet, or they are of several sizes or levels.
        UnreadableSlideError: the slide's header.
    """
    slide, store = job["slide"], open_store(job["store_uri"])
    records = _read_records(store, slide)
    model = {name: store.attributes[name] for name in ("model_digest", "detector")}
    wanted = digest_of(slide, job["threshold"], job["least_area_um2"], model, [record["sha256"] for record in records])
    uri = heatmap_uri(job["slides_uri"], slide["slide_id"], slide["sha256"])
    found = read_attributes(uri)
    if found is None or found["made_from"] != wanted:
        tiles = _read_tiles(job, records)
        found = _assemble(job, store, tiles, uri, {**model, "made_from": wanted})
    return _refer(uri, found)


def _refer(uri: str, found: dict[str, Any]) -> SlideMapReference:
    kept: dict[str, Any] = {name: found[name] for name in SlideMapReference.__annotations__ if name in found}
    return SlideMapReference(uri=uri, regions_uri=regions_uri(uri), **kept)  # type: ignore[typeddict-item]


def _assemble(job: SlideMapJob, store: ScoreStore, tiles: pd.DataFrame, uri: str, made_from: dict[str, Any]) -> dict[str, Any]:
    name, threshold = job["slide"]["slide_id"], job["threshold"]
    scored, failed = tiles[~tiles["failed"]], tiles[tiles["failed"]]
    with open_slide(job["slide"]["uri"]) as slide:
        grid = _lay_grid(scored if len(scored) else failed, slide, store.map_size_px or _FILLED_PX)
        boxes = _boxes(failed, slide.level_downsamples, grid)
    dtype = np.dtype(np.float16 if store.map_size_px else np.float32)
    pyramid = Pyramid(height_px=grid.height_px, width_px=grid.width_px, band_px=BAND_PX, least_px=_COARSEST_PX)
    writer = HeatmapWriter(uri, shapes=pyramid.shapes, dtype=dtype)
    anomalies = RegionTracer(
        width_px=grid.width_px, threshold=np.inf if threshold is None else threshold, least_px=job["least_area_um2"] / grid.pixel_um2
    )
    gaps = RegionTracer(width_px=grid.width_px, threshold=1)
    lowest, highest = np.inf, -np.inf
    for top, band in _blend(store, scored, grid, dtype):
        for level, y, rows in pyramid.add(band):
            writer.write(level, y, rows)
        for start in range(0, len(band), SLAB_ROWS):
            slab = cast(band[start : start + SLAB_ROWS], np.dtype(np.float32))
            lowest, highest = np.fmin(lowest, np.fmin.reduce(slab, axis=None)), np.fmax(highest, np.fmax.reduce(slab, axis=None))
            anomalies.add(slab)
            if len(boxes):
                gaps.add(_cover(boxes, top + start, slab))
        if top % (_BANDS_BETWEEN * BAND_PX) == 0:  # regions lie between what bands have freed
            return_freed_memory()
    regions = anomalies.finish()
    found = (_outline(region, grid, *_ANOMALY, scores=True) for region in regions)
    lost = (_outline(region, grid, *_NOT_SCORED, scores=False) for region in gaps.finish())
    write_outlines(regions_uri(uri), chain(found, lost))
    attributes = {
        **made_from,
        "slide_id": name,
        "slide_uri": job["slide"]["uri"],
        "slide_sha256": job["slide"]["sha256"],
        "blending": "mean weighted by the distance to the tile's border, along each axis",
        "tiles": len(tiles),
        "failed": len(failed),
        "threshold": threshold,
        "least_area_um2": job["least_area_um2"],
        "regions": len(regions),
        "area_mm2": sum(region.area_px for region in regions) * grid.pixel_um2 / 1e6,
    }
    lowest, highest = (lowest, highest) if lowest <= highest else (0, 1)  # nothing was scored
    window = float(lowest), float(highest), float(lowest if threshold is None else threshold)
    writer.finish(name=name, spacing_um=grid.spacing_um, downsample=grid.downsample, window=window, attributes=attributes)
    logger.info("%s: %d tiles, %d failed, %d regions", name, len(tiles), len(failed), len(regions))
    return attributes


def _lay_grid(tiles: pd.DataFrame, slide: SlideReader, map_px: int) -> _Grid:
    kinds = tiles[["level", "width_px", "height_px", "spacing_um"]].drop_duplicates()
    level, width, height, spacing_um = kinds.iloc[0]
    if len(kinds) > 1 or width != height:
        sizes = "; ".join(f"{w} × {h} px of level {n}" for n, w, h, _ in kinds.itertuples(index=False))
        raise SlideMapError(f"a heatmap is made of square tiles of one size and level, these are of {sizes}: score them apart")
    slide_width, slide_height = slide.level_dimensions[int(level)]
    downsample = slide.level_downsamples[int(level)]
    return _Grid(
        height_px=-(-slide_height * map_px // int(height)),
        width_px=-(-slide_width * map_px // int(width)),
        tile_px=map_px,
        downsample=int(width) / map_px * downsample,
        slide_px=slide.level_dimensions[0],
        spacing_um=float(spacing_um) / downsample,
    )


def _blend(store: ScoreStore, tiles: pd.DataFrame, grid: _Grid, dtype: np.dtype) -> Iterator[tuple[int, np.ndarray]]:
    """First row and rows of each band."""
    mosaic = Mosaic(width_px=grid.width_px, band_px=BAND_PX, tile_px=grid.tile_px, dtype=dtype)
    tiles = tiles.sort_values(["y_px", "x_px"], kind="stable")
    corners = tiles[["x_px", "y_px"]].to_numpy(np.float64) * grid.tile_px / tiles[["width_px"]].to_numpy()
    rows = tiles["row"].to_numpy()
    batch, done = max(1, _BATCH_BYTES // (2 * grid.tile_px**2)), 0
    for top in range(0, grid.height_px, BAND_PX):
        until = int(np.searchsorted(corners[:, 1] - 0.5, top + BAND_PX - 1, side="right"))
        for start in range(done, until, batch):
            chosen = slice(start, min(start + batch, until))
            mosaic.add(_read_maps(store, rows[chosen], grid.tile_px), corners[chosen])
        done = until
        yield top, mosaic.take()[: grid.height_px - top]


def _read_maps(store: ScoreStore, rows: np.ndarray, size_px: int) -> np.ndarray:
    """(n, size_px, size_px) of rows; where the detector has no maps, each filled with the image's score."""
    first, stop = int(rows.min()), int(rows.max()) + 1
    if store.map_size_px is None:
        scores = store.read_range("image_score", first, stop)[rows - first]
        return np.repeat(scores, size_px**2).reshape(-1, size_px, size_px)
    if stop - first <= 2 * len(rows):  # a slice is read several times faster
        return store.read_maps(range(first, stop))[rows - first]
    return store.read_maps(rows)


def _boxes(tiles: pd.DataFrame, level_downsamples: tuple[float, ...], grid: _Grid) -> np.ndarray:
    """(n, 4) x0, y0, x1, y1 of the pixels of the map whose centres lie in each tile."""
    scale = np.asarray(level_downsamples)[tiles["level"]][:, None] / grid.downsample
    boxes = tiles[["x_px", "y_px", "width_px", "height_px"]].to_numpy(np.float64, copy=True)
    boxes[:, 2:] += boxes[:, :2]
    return np.ceil(boxes * scale - 0.5).astype(np.int64)


def _cover(boxes: np.ndarray, top: int, slab: np.ndarray) -> np.ndarray:
    """1 where a box covers what has no score; `slab` holds the map's rows from `top` on."""
    covered = np.zeros_like(slab)
    for x0, y0, x1, y1 in boxes[(boxes[:, 1] < top + len(slab)) & (boxes[:, 3] > top)].tolist():
        covered[max(0, y0 - top) : y1 - top, x0:x1] = 1
    covered[~np.isnan(slab)] = 0
    return covered


def _outline(region: Region, grid: _Grid, name: str, color: tuple[int, int, int], *, scores: bool) -> Outline:
    measurements = {"Area mm^2": region.area_px * grid.pixel_um2 / 1e6}
    if scores:
        measurements |= {"Mean score": region.mean, "Max score": region.highest}
    # the last pixels of the map reach beyond the slide
    return Outline([np.minimum(ring * grid.downsample, grid.slide_px) for ring in region.rings], name, color, measurements)


def _read_records(store: ScoreStore, slide: SlideReference) -> list[dict[str, Any]]:
    """Of the shards that hold the slide's rows."""
    shards = sorted(
        {row // store.shard_rows for first, stop in slide["spans"] for row in (*range(first, stop, store.shard_rows), stop - 1)}
    )
    try:
        with ThreadPoolExecutor(_RECORDS_AT_ONCE) as pool:
            return list(pool.map(store.read_record, shards))
    except FileNotFoundError as error:
        raise SlideMapError(f"{slide['slide_id']} is not scored to its end in {store.uri}; score it first") from error


def _read_tiles(job: SlideMapJob, records: list[dict[str, Any]]) -> pd.DataFrame:
    """The slide's rows, their numbers, and whether they failed."""
    opened = _open_rows(**job["rows"])
    spans = [
        (first, min(first + _ROWS_AT_ONCE, stop)) for start, stop in job["slide"]["spans"] for first in range(start, stop, _ROWS_AT_ONCE)
    ]
    parts = [opened.read_rows(first, stop)[_TILE_COLUMNS].assign(row=np.arange(first, stop)) for first, stop in spans]
    tiles = pd.concat(parts, ignore_index=True)
    failed = [failure["row"] for record in records for failure in record["failures"]]
    return tiles.assign(failed=tiles["row"].isin(failed))


@lru_cache(maxsize=1)
def _open_rows(uri: str, digest: str) -> Archive | ManifestRows:
    """Kept for the next slide."""
    return open_rows(uri, digest)
