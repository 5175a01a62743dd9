"""A small archive to look at, with a known answer: pictures and a slide, one version scored to the end and one half-way; and its page."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import uvicorn

from storage import filesystems
from storage.archives import Archive, append_manifest
from storage.heatmaps import HeatmapWriter, Outline, heatmap_uri, regions_uri, write_outlines
from storage.manifest import read_manifest, sample_id, write_named
from storage.models import Bundle, write_bundle
from storage.scores import Failure, create_store
from storage.slides import write_pyramid
from tasks.view import make_app
from tasks.view_source import Source
from tests.archives import write_archive_pictures, write_manifest_of

KEY = "a-key-of-this-test"
PICTURES, TILES = 60, 16
SHARD_ROWS, MAP_PX = 16, 8
FAILED_ROW, REASON = 7, "truncated: the file ends after 12 of 400 bytes"
SLIDE_PX, TILE_PX = 2048, 512
GREY = 200
NORMAL_SCORES = (1.0, 2.0, 3.0, 4.0)
_POINT = {"split": "validation", "value": 4.5, "rule": "largest Youden index", "detail": ""}
CARD = {
    "calibration": {
        "nulls": [{"kind": "gamma", "why_none": "too few"}, {"kind": "empirical", "scores": NORMAL_SCORES}],
        "operating_points": [{"level": level, **_POINT} for level in ("image", "pixel")],
    }
}
HEAT_DOWNSAMPLE, HEAT = 4, 7.5


def make_archive(folder: Path) -> Archive:
    """Rows 0 … 59 are pictures, 60 … 75 the tiles of a slide. Slots: `maps`, complete but for one failure, and `whole`, half done."""
    pictures = write_archive_pictures(folder / "pictures", PICTURES)
    rows = read_manifest(write_manifest_of(pictures)[0])
    slide = folder / "slides" / "slide-1.tif"
    write_pyramid(slide, np.full((SLIDE_PX, SLIDE_PX, 3), GREY, np.uint8), spacing_um=0.5)
    rows = pd.concat([rows, _tiles_of(slide)], ignore_index=True)
    archive = append_manifest(str(folder / "archive"), *write_named(str(folder), rows, all=slice(None))["all"])
    model_digest = write_bundle(str(folder / "model"), Bundle(tensors={"w": np.zeros(1, np.float32)}, config={}, card=CARD))
    for slot, map_size_px, shards in (("maps", MAP_PX, 5), ("whole", None, 2)):
        store = create_store(
            archive.scores_uri(slot, 1),
            rows=archive.rows,
            map_size_px=map_size_px,
            shard_rows=SHARD_ROWS,
            attributes={"detector": "ae", "model_digest": model_digest, "arithmetic": {}},
            notes={"model_uri": str(folder / "model")},
        )
        for shard in range(shards):
            of_shard = store.rows_of(shard)
            maps = map_size_px and np.stack([map_of(row) for row in of_shard]).astype(np.float16)
            failures = [Failure(FAILED_ROW, rows["sample_id"][FAILED_ROW], REASON)] if FAILED_ROW in of_shard else []
            store.write_shard(shard, image=scores_of(of_shard), maps=maps, failures=failures)
    _write_heatmap(archive, str(rows["sha256"].iloc[-1]))
    return archive


def scores_of(rows: range) -> np.ndarray:
    """(n,) float32, all different, from 0 to 7.5, in no order."""
    return np.array([row * 29 % (PICTURES + TILES) / 10 for row in rows], np.float32)


def map_of(row: int) -> np.ndarray:
    """(MAP_PX, MAP_PX): the left half 0, the right half the score."""
    values = np.zeros((MAP_PX, MAP_PX), np.float32)
    values[:, MAP_PX // 2 :] = scores_of(range(row, row + 1))
    return values


@contextmanager
def serving(archive_uri: str) -> Iterator[str]:
    """The page on a free port of the loopback address, in this process; gives host and port."""
    app = make_app(Source(archive_uri), key=KEY)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def _tiles_of(slide: Path) -> pd.DataFrame:
    sha256 = filesystems.sha256_of(str(slide))
    boxes = [(x, y) for y in range(0, SLIDE_PX, TILE_PX) for x in range(0, SLIDE_PX, TILE_PX)]
    return pd.DataFrame(
        {
            "sample_id": [sample_id(sha256, level=0, x_px=x, y_px=y, width_px=TILE_PX, height_px=TILE_PX) for x, y in boxes],
            "uri": str(slide),
            "sha256": sha256,
            "dataset": "biopsies",
            "subject_id": "subject-slide",
            "slide_id": "slide 1",
            "split": None,
            "level": 0,
            "x_px": [x for x, _ in boxes],
            "y_px": [y for _, y in boxes],
            "width_px": TILE_PX,
            "height_px": TILE_PX,
            "spacing_um": 0.5,
            "tissue_share": 1.0,
        }
    )


def _write_heatmap(archive: Archive, sha256: str) -> None:
    """Of the slide: scored 0 in its left half and HEAT in its right half but for the lowest quarter, which has no score; one region."""
    side = SLIDE_PX // HEAT_DOWNSAMPLE
    uri = heatmap_uri(archive.slides_uri("maps", 1), "slide 1", sha256)
    writer = HeatmapWriter(uri, shapes=[(side, side), (side // 2, side // 2)], dtype=np.dtype(np.float16))
    for level, size in enumerate((side, side // 2)):
        values = np.zeros((size, size), np.float16)
        values[:, size // 2 :] = HEAT
        values[3 * size // 4 :] = np.nan
        writer.write(level, 0, values)
    writer.finish(name="slide 1", spacing_um=0.5, downsample=HEAT_DOWNSAMPLE, window=(0.0, HEAT, 1.0), attributes={"threshold": 1.0})
    corners = np.array([(1024, 0), (1024, 1536), (2048, 1536), (2048, 0)])
    region = Outline([corners], "Anomaly", (200, 0, 0), {"Area mm^2": 0.393, "Mean score": HEAT, "Max score": HEAT})
    write_outlines(regions_uri(uri), [region])
