"""A slide's heatmap: an OME-Zarr 0.5 multiscale in slide coordinates, and outlines on the slide as GeoJSON that QuPath opens."""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore, ObjectStore

from storage import filesystems, object_stores
from storage.patience import patiently

SCHEMA_VERSION = 1
BAND_PX = 256  # rows that are written at once: the height of a shard, so that each has one writer, who writes it whole

_CHUNK_PX = 512  # wide and a band high: a quarter of a mebibyte of float16
_SHARD_PX = 16 * _CHUNK_PX  # wide
_CODEC = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")  # level 3 takes 1.6 times as long for 2 % less
_PATIENCE_S = 120
_OURS = "normascope"  # the attribute beside "ome"


class HeatmapError(ValueError):
    """No heatmap, or not a complete one."""


@dataclass(frozen=True)
class Outline:
    """A polygon on a slide.

    Attributes:
        rings: the outline first, then the holes; each (n, 2) x and y in pixels of level 0 from its upper left corner, not closed.
        name, color: of its class, RGB in 0…255.
        measurements: by name.
    """

    rings: Sequence[np.ndarray]
    name: str
    color: tuple[int, int, int]
    measurements: Mapping[str, float]


class Heatmap:
    """A complete heatmap, open for reading. Make one with `open_heatmap`.

    Attributes:
        levels: number of resolutions, the finest first; each has half the size of the one before, rounded up.
        scale_um: µm per pixel of the finest.
        attributes: what it was made from and how; see `HeatmapWriter.finish`.
    """

    def __init__(self, uri: str, group: zarr.Group) -> None:
        self.uri = uri
        self.attributes: dict[str, Any] = dict(group.attrs[_OURS])  # type: ignore[arg-type]
        self._arrays: list[Any] = [group[path] for path in sorted(group.array_keys(), key=int)]
        self.levels = len(self._arrays)
        self.scale_um = float(self.attributes["downsample"] * self.attributes["spacing_um"])

    def shape_of(self, level: int) -> tuple[int, int]:
        """Height and width of a level in its pixels."""
        height, width = self._arrays[level].shape
        return int(height), int(width)

    def downsample_of(self, level: int) -> float:
        """Pixels of the slide's level 0 along the side of one pixel: pixel i covers [i · downsample, (i + 1) · downsample)."""
        return float(self.attributes["downsample"] * 2**level)

    def read(self, level: int, y: int, x: int, height: int, width: int) -> np.ndarray:
        """(height, width) float16, or float32 for image scores; NaN where there is no score, and outside of the map."""
        rows, columns = self.shape_of(level)
        region = np.full((height, width), np.nan, self._arrays[level].dtype)
        top, left, bottom, right = max(y, 0), max(x, 0), min(y + height, rows), min(x + width, columns)
        if top < bottom and left < right:
            with object_stores.explained(self.uri):
                region[top - y : bottom - y, left - x : right - x] = self._arrays[level][top:bottom, left:right]
        return region


class HeatmapWriter:
    """Writes a heatmap band by band; it is there when `finish` has returned, and not before. What was at its place goes at once."""

    def __init__(self, uri: str, *, shapes: Sequence[tuple[int, int]], dtype: np.dtype) -> None:
        """Clear the place and begin.

        Args:
            uri: of the folder or prefix, SLIDE.ome.zarr.
            shapes: height and width of every level, the finest first.
            dtype: float16 or float32.
        """
        self._uri = uri
        with object_stores.explained(uri):
            self._group = zarr.open_group(_zarr_store(uri), mode="w", zarr_format=3)
            self._levels = [_create_level(self._group, level, shape, dtype) for level, shape in enumerate(shapes)]

    def write(self, level: int, y: int, rows: np.ndarray) -> None:
        """Write rows of a level from row `y`, a multiple of `BAND_PX`, on: `BAND_PX` of them, or the last ones."""
        for x in range(0, rows.shape[1], _SHARD_PX):
            shard = rows[:, x : x + _SHARD_PX]
            if not _is_nan(shard).all():
                place = np.s_[y : y + len(rows), x : x + _SHARD_PX]
                patiently(partial(self._put, level, place, shard), patience_s=_PATIENCE_S, what=self._uri)

    def finish(
        self, *, name: str, spacing_um: float, downsample: float, window: tuple[float, float, float], attributes: Mapping[str, Any]
    ) -> None:
        """Say what it is; this makes it complete.

        As NGFF has it, a pixel's coordinate is that of its centre, and the slide's first pixel lies at 0: so a heatmap's pixel of
        d × d pixels of the slide begins at (d − 1) / 2 of them.

        Args:
            name: of the slide.
            spacing_um: µm per pixel of the slide's level 0.
            downsample: pixels of level 0 along the side of one of the finest level.
            window: lowest and highest score, and the one from which on viewers are to show colour.
            attributes: kept beside: what the heatmap was made from and how.
        """
        sides = [downsample * 2**level for level in range(len(self._levels))]
        datasets = [
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [side * spacing_um] * 2},
                    {"type": "translation", "translation": [(side - 1) / 2 * spacing_um] * 2},
                ],
            }
            for level, side in enumerate(sides)
        ]
        axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in ("y", "x")]
        method = {"description": "each pixel is the mean of those of 2 × 2 pixels of the level before that have a score"}
        multiscale = {"name": name, "axes": axes, "datasets": datasets, "type": "mean", "metadata": method}
        lowest, highest, start = window
        shown = {"min": lowest, "max": highest, "start": start, "end": highest}
        channel = {"label": "anomaly score", "color": "FF0000", "active": True, "window": shown}
        ours = {**attributes, "schema_version": SCHEMA_VERSION, "spacing_um": spacing_um, "downsample": downsample}
        ome: dict[str, Any] = {"version": "0.5", "multiscales": [multiscale], "omero": {"channels": [channel]}}
        with object_stores.explained(self._uri):
            self._group.attrs.update({"ome": ome, _OURS: ours})

    def _put(self, level: int, place: tuple[slice, slice], shard: np.ndarray) -> None:
        with object_stores.explained(self._uri):
            self._levels[level][place] = shard


def heatmap_uri(slides_uri: str, slide_id: str, sha256: str) -> str:
    """Where the heatmap of a slide lies; its regions are beside it (`regions_uri`). Slides of one name are told apart by their content."""
    name = re.sub(r"[^\w.-]+", "_", slide_id).strip(".")[:80]
    return filesystems.join(slides_uri, f"{name}-{sha256[:12]}.ome.zarr")


def regions_uri(heatmap: str) -> str:
    """The GeoJSON beside a heatmap."""
    return heatmap.removesuffix(".ome.zarr") + ".geojson"


def open_heatmap(uri: str) -> Heatmap:
    """Open a heatmap.

    Raises:
        HeatmapError: nothing is there, it was cut short, or it is of another schema.
    """
    attributes = read_attributes(uri)
    if attributes is None:
        raise HeatmapError(f"no complete heatmap at {uri}")
    if attributes["schema_version"] != SCHEMA_VERSION:
        raise HeatmapError(f"{uri} has the heatmap schema {attributes['schema_version']}, this normascope reads {SCHEMA_VERSION}")
    with object_stores.explained(uri):
        return Heatmap(uri, zarr.open_group(_zarr_store(uri), mode="r"))


def read_attributes(uri: str) -> dict[str, Any] | None:
    """What a complete heatmap says of itself; None where there is none."""
    metadata = filesystems.join(uri, "zarr.json")
    if not filesystems.exists(metadata):
        return None
    attributes: dict[str, Any] | None = filesystems.read_json(metadata).get("attributes", {}).get(_OURS)
    return attributes


def write_outlines(uri: str, outlines: Iterable[Outline]) -> None:
    """Write a FeatureCollection of annotations as QuPath (0.4 and later) reads and writes it; the file appears whole or not at all.

    Coordinates are pixels of level 0 from the slide's upper left corner. Rings are closed and, with y upwards, run counterclockwise around
    what is inside (RFC 7946, section 3.1.6), as those of `outlines` do.
    """
    buffer = io.BytesIO()  # outlines may come one by one: of a slide there can be a hundred thousand
    buffer.write(b'{"type":"FeatureCollection","features":[')
    for number, outline in enumerate(outlines):
        buffer.write(b",\n" if number else b"\n")
        buffer.write(json.dumps(_feature(outline), separators=(",", ":")).encode())
    buffer.write(b"\n]}\n")
    filesystems.write_bytes(uri, buffer.getvalue())


def _create_level(group: zarr.Group, level: int, shape: tuple[int, int], dtype: np.dtype) -> Any:
    array = group.create_array(
        str(level),
        shape=shape,
        chunks=(BAND_PX, _CHUNK_PX),
        shards=(BAND_PX, min(_SHARD_PX, -(-shape[1] // _CHUNK_PX) * _CHUNK_PX)),
        dtype=dtype,
        fill_value=np.nan,
        compressors=_CODEC,
        dimension_names=("y", "x"),
    )
    # shards without a score are not written at all; to ask of every chunk whether it is empty takes as long as to write it
    return array.with_config({"write_empty_chunks": True})


def _feature(outline: Outline) -> dict[str, Any]:
    rings = [np.concatenate([ring, ring[:1]]).round(3) for ring in outline.rings]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [(ring.astype(int) if (ring % 1 == 0).all() else ring).tolist() for ring in rings]},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": outline.name, "color": list(outline.color)},
            "measurements": dict(outline.measurements),
        },
    }


def _is_nan(values: np.ndarray) -> np.ndarray:
    """NumPy's own test takes ten times as long for float16."""
    return (values.view(np.uint16) & 0x7FFF) > 0x7C00 if values.dtype == np.float16 else np.isnan(values)


def _zarr_store(uri: str) -> Any:
    path = filesystems.local_path(uri)
    return LocalStore(path) if path is not None else ObjectStore(object_stores.open_bucket(uri).writer)
