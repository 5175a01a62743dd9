"""A slide as the page shows it: its pixels in deep-zoom tiles, and over them what a detector says of it."""

import threading
from typing import Any, Protocol

import numpy as np
import pandas as pd
from PIL import Image

from storage import filesystems
from storage.heatmaps import Heatmap, open_heatmap, read_attributes
from storage.slides import SlideReader
from tasks.view_pictures import TILE_PX, DeepSlide
from tasks.view_table import Layer

_LONGER_PX = 2048  # of a heatmap that is put together here
_MOST_MAPS = 2048  # of a slide's samples with more of them the scores are shown instead of the maps: reading those takes minutes
_MEASUREMENTS = {"area_mm2": "Area mm^2", "mean_score": "Mean score", "max_score": "Max score"}  # as they stand in the GeoJSON


class Heat(Protocol):
    """Scores in a slide's coordinates, in tiles at every power of two; level 0 is the coarsest."""

    def describe(self) -> dict[str, Any]:
        """What it shows, width_px and height_px of its finest level, levels, tile_px, and pixel_px: how many
        of the slide's pixels one of its spans; both begin at the same corner.
        """

    def tile(self, level: int, column: int, row: int) -> np.ndarray:
        """One tile, (h, w) float, NaN where nothing was scored.

        Raises:
            IndexError: no such tile.
        """


class StoredHeat:
    """A slide's heatmap as it was assembled after scoring."""

    def __init__(self, heatmap: Heatmap) -> None:
        self._heatmap = heatmap

    def describe(self) -> dict[str, Any]:
        """See `Heat`."""
        height_px, width_px = self._heatmap.shape_of(0)
        return {
            "shows": "heatmap of the slide",
            "width_px": width_px,
            "height_px": height_px,
            "levels": self._heatmap.levels,
            "tile_px": TILE_PX,
            "pixel_px": self._heatmap.downsample_of(0),
        }

    def tile(self, level: int, column: int, row: int) -> np.ndarray:
        """See `Heat`."""
        finer = self._heatmap.levels - 1 - level
        if not 0 <= finer < self._heatmap.levels:
            raise IndexError(f"no level {level}")
        height_px, width_px = self._heatmap.shape_of(finer)
        x, y = column * TILE_PX, row * TILE_PX
        if x >= width_px or y >= height_px:
            raise IndexError(f"no tile in column {column} and row {row} of level {level}")
        return self._heatmap.read(finer, y, x, min(TILE_PX, height_px - y), min(TILE_PX, width_px - x))


class ComposedHeat:
    """From the samples of a slide: their maps, or, where there are none or too many, their scores; the highest where samples overlap."""

    def __init__(self, reader: SlideReader, layer: Layer, samples: pd.DataFrame) -> None:
        rows = samples.index.to_numpy()
        self._shows = "maps of its samples" if layer.store.map_size_px and len(rows) <= _MOST_MAPS else "scores of its samples"
        self._pixel_px = max(1.0, max(reader.width_px, reader.height_px) / _LONGER_PX)
        size = [max(1, round(side / self._pixel_px)) for side in (reader.height_px, reader.width_px)]
        self._values = np.full(size, np.nan, np.float32)
        downsamples = np.asarray(reader.level_downsamples)[samples["level"]]
        boxes = samples[["x_px", "y_px", "width_px", "height_px"]].to_numpy(float) * downsamples[:, None]
        boxes[:, 2:] += boxes[:, :2]
        corners = np.clip((boxes / self._pixel_px).round().astype(int), 0, [size[1], size[0]] * 2)
        scored = ~np.isnan(layer.score[rows])
        for row, (x0, y0, x1, y1) in zip(rows[scored].tolist(), corners[scored].tolist(), strict=True):
            place = np.s_[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
            here = self._values[place]
            if not here.size:
                continue
            values: Any = layer.score[row]
            if self._shows.startswith("maps"):
                values = np.asarray(Image.fromarray(layer.read_map(row)).resize(here.shape[::-1], Image.Resampling.BOX))
            self._values[place] = np.fmax(here, values)

    def describe(self) -> dict[str, Any]:
        """See `Heat`."""
        height_px, width_px = self._values.shape
        return {
            "shows": self._shows,
            "width_px": width_px,
            "height_px": height_px,
            "levels": 1,
            "tile_px": TILE_PX,
            "pixel_px": self._pixel_px,
        }

    def tile(self, level: int, column: int, row: int) -> np.ndarray:
        """See `Heat`."""
        found = self._values[row * TILE_PX : (row + 1) * TILE_PX, column * TILE_PX : (column + 1) * TILE_PX]
        if level or not found.size:
            raise IndexError(f"no tile in column {column} and row {row} of level {level}")
        return found


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
        """Geometry of the slide and of each layer's heatmap, in pixels of level 0."""
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
                stored = uri is not None and read_attributes(uri) is not None
                composed = ComposedHeat(self.pixels.reader, self._layers[layer], self._samples) if not stored else None
                self._heats[layer] = composed or StoredHeat(open_heatmap(str(uri)))
            return self._heats[layer]

    def regions(self, layer: int) -> list[dict[str, Any]]:
        """What is outlined, by its class and then by its highest score; empty where no slide map was made.

        Each has a name, rings of points and a box (left, top, width, height) in pixels of level 0, area_mm2, mean_score and max_score.
        """
        from tasks.slide_maps import regions_uri

        heatmap = self._heatmap_uri(layer)
        if heatmap is None or not filesystems.exists(uri := regions_uri(heatmap)):
            return []
        regions = [_describe_region(feature) for feature in filesystems.read_json(uri)["features"]]
        return sorted(regions, key=lambda region: (region["name"], -(region["max_score"] or 0)))

    def _heatmap_uri(self, layer: int) -> str | None:
        from tasks.slide_maps import heatmap_uri  # here, because it imports Prefect, which takes seconds

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
