"""A slide as the page shows it: its pixels in deep-zoom tiles, and over them what a detector says of it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from storage import filesystems
from storage.heatmaps import heatmap_uri, open_heatmap, read_attributes, regions_uri
from storage.slides import SlideReader
from tasks.view_pictures import TILE_PX, DeepSlide
from tasks.view_table import Layer

_LONGER_PX = 2048  # of a heatmap that is put together here
_MOST_MAPS = 2048  # of a slide with more samples the scores are shown: to read so many maps takes minutes
_MEASUREMENTS = {"area_mm2": "Area mm^2", "mean_score": "Mean score", "max_score": "Max score"}  # as they stand in the GeoJSON


@dataclass(frozen=True)
class Heat:
    """Scores in a slide's coordinates, from the slide's upper left corner on.

    Attributes:
        shows: what was put together, for people.
        shapes: height and width of each level, the finest first; each has half the size of the one before, rounded up.
        pixel_px: pixels of the slide's level 0 along the side of one of the finest level.
        read: level, y, x, height and width → (height, width) float, NaN where nothing was scored.
    """

    shows: str
    shapes: list[tuple[int, int]]
    pixel_px: float
    read: Callable[[int, int, int, int, int], np.ndarray]

    def describe(self) -> dict[str, Any]:
        """What the page needs to ask for tiles and to lay them over the slide."""
        (height_px, width_px), levels = self.shapes[0], len(self.shapes)
        sizes = {"width_px": width_px, "height_px": height_px, "levels": levels, "tile_px": TILE_PX, "pixel_px": self.pixel_px}
        return {"shows": self.shows, **sizes}

    def tile(self, level: int, column: int, row: int) -> np.ndarray:
        """One tile, (h, w) float, smaller than `TILE_PX` at the right and lower edge; level 0 is the coarsest.

        Raises:
            IndexError: no such tile.
        """
        x, y = column * TILE_PX, row * TILE_PX
        height_px, width_px = self.shapes[-1 - level] if level < len(self.shapes) else (0, 0)
        if x >= width_px or y >= height_px:
            raise IndexError(f"no tile in column {column} and row {row} of level {level}")
        return self.read(len(self.shapes) - 1 - level, y, x, min(TILE_PX, height_px - y), min(TILE_PX, width_px - x))


def open_heat(uri: str) -> Heat:
    """The heatmap of a slide that was assembled after scoring."""
    heatmap = open_heatmap(uri)
    shapes = [heatmap.shape_of(level) for level in range(heatmap.levels)]
    return Heat("heatmap of the slide", shapes, heatmap.downsample_of(0), heatmap.read)


def compose_heat(reader: SlideReader, layer: Layer, samples: pd.DataFrame) -> Heat:
    """From the samples of a slide: their maps, or, where there are none or too many, their scores; the highest where samples overlap."""
    rows = samples.index.to_numpy()
    has_maps = layer.store.map_size_px is not None and len(rows) <= _MOST_MAPS
    pixel_px = max(1.0, max(reader.width_px, reader.height_px) / _LONGER_PX)
    height_px, width_px = (max(1, round(side / pixel_px)) for side in (reader.height_px, reader.width_px))
    heat = np.full((height_px, width_px), np.nan, np.float32)
    downsamples = np.asarray(reader.level_downsamples)[samples["level"]]
    boxes = samples[["x_px", "y_px", "width_px", "height_px"]].to_numpy(float) * downsamples[:, None] / pixel_px
    boxes[:, 2:] += boxes[:, :2]
    scored = ~np.isnan(layer.score[rows])
    for row, (x0, y0, x1, y1) in zip(rows[scored].tolist(), boxes[scored].round().astype(int).tolist(), strict=True):
        here = heat[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
        if here.size:
            one = layer.read_map(row) if has_maps else layer.score[row : row + 1, None]
            np.fmax(here, np.asarray(Image.fromarray(one).resize(here.shape[::-1], Image.Resampling.BOX)), out=here)
    shows = "maps of its samples" if has_maps else "scores of its samples"
    return Heat(shows, [heat.shape], pixel_px, lambda _, y, x, height, width: heat[y : y + height, x : x + width])


class ViewedSlide:
    """One slide and what each layer says of it.

    Attributes:
        pixels: the slide's own.
    """

    def __init__(self, pixels: DeepSlide, layers: list[Layer], samples: pd.DataFrame) -> None:
        self.pixels = pixels
        self._layers = layers
        self._samples = samples  # of the slide, by row
        self._heats: dict[int, Heat] = {}
        self._lock = threading.Lock()

    def describe(self) -> dict[str, Any]:
        """Its size and spacing, and how its tiles are asked for."""
        reader, first = self.pixels.reader, self._samples.iloc[0]
        spacing_um = None if pd.isna(first["spacing_um"]) else first["spacing_um"] / reader.level_downsamples[int(first["level"])]
        return {
            "slide_id": first["slide_id"],
            "width_px": reader.width_px,
            "height_px": reader.height_px,
            "spacing_um": spacing_um,
            "levels": self.pixels.levels,
            "tile_px": TILE_PX,
            "samples": len(self._samples),
        }

    def box(self, row: int) -> list[float]:
        """Left, top, width and height of a sample in pixels of level 0."""
        sample: Any = self._samples.loc[row]
        downsample = self.pixels.reader.level_downsamples[int(sample["level"])]
        return [float(sample[name]) * downsample for name in ("x_px", "y_px", "width_px", "height_px")]

    def heat(self, layer: int) -> Heat:
        """A layer's heatmap, put together when it is first asked for.

        Raises:
            IndexError: no such layer.
        """
        with self._lock:
            if layer not in self._heats:
                uri = self._heatmap_uri(layer)
                is_there = uri is not None and read_attributes(uri) is not None
                self._heats[layer] = (
                    open_heat(str(uri)) if is_there else compose_heat(self.pixels.reader, self._layers[layer], self._samples)
                )
            return self._heats[layer]

    def regions(self, layer: int) -> list[dict[str, Any]]:
        """What is outlined, by its class and then by its highest score; empty where no slide map was made.

        Each has a name, rings of points and a box (left, top, width, height) in pixels of level 0, area_mm2, mean_score and max_score.
        """
        heatmap = self._heatmap_uri(layer)
        if heatmap is None or not filesystems.exists(uri := regions_uri(heatmap)):
            return []
        regions = [_describe_region(feature) for feature in filesystems.read_json(uri)["features"]]
        return sorted(regions, key=lambda region: (region["name"], -(region["max_score"] or 0)))

    def _heatmap_uri(self, layer: int) -> str | None:
        folder, first = self._layers[layer].slides_uri, self._samples.iloc[0]
        return None if folder is None else heatmap_uri(folder, str(first["slide_id"]), str(first["sha256"]))


def _describe_region(feature: dict[str, Any]) -> dict[str, Any]:
    rings, measured = feature["geometry"]["coordinates"], feature["properties"]["measurements"]
    outline = np.array(rings[0])
    return {
        "name": feature["properties"]["classification"]["name"],
        "rings": rings,
        "box": [*outline.min(0).tolist(), *np.ptp(outline, 0).tolist()],
        **{key: measured.get(name) for key, name in _MEASUREMENTS.items()},
    }
