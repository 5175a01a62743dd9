"""Slide maps: `pytest -m benchmark -s tests/benchmarks/bench_slide_maps.py`, or run it as a script.

Two questions. How much memory and time does a slide of 100,000 × 100,000 pixels take, of which every pixel was scored? (The store is
simulated, all else is real.) And what does a slide of 20,000 × 20,000 pixels take from the file to map and regions, against a bare
loop that reads its tiles, scores them and throws the scores away?
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from storage.heatmaps import open_heatmap
from tasks import slide_maps
from tasks.execution import keep_freed_memory
from tasks.references import RowsReference
from tasks.slide_maps import SlideMapJob, SlideReference, write_slide_map

SIDE_PX, TILE_PX, SPACING_UM, THRESHOLD = 100_000, 256, 0.25, 0.65
LIMIT_MB = 2000


class SimulatedStore:
    """Maps of 152,100 tiles, each one of 64 smooth ones."""

    map_size_px: int
    shard_rows = 512

    def __init__(self, map_px: int) -> None:
        noise = ndimage.gaussian_filter(np.random.default_rng(0).random((64, map_px, map_px), np.float32), (0, map_px / 8, map_px / 8))
        self._maps = ((noise - noise.min()) / (noise.max() - noise.min())).astype(np.float16)
        self.map_size_px = map_px
        self.attributes = {"model_digest": "m", "detector": "simulated"}

    def read_record(self, shard: int) -> dict[str, Any]:
        return {"sha256": str(shard), "failures": []}

    def read_maps(self, rows: Any) -> np.ndarray:
        return self._maps[np.asarray(rows) * 7919 % 64]


class SimulatedSlide:
    """A header without pixels."""

    level_dimensions, level_downsamples = ((SIDE_PX, SIDE_PX),), (1.0,)

    def __enter__(self) -> "SimulatedSlide":
        return self

    def __exit__(self, *_: Any) -> None:
        return


def simulated_rows() -> pd.DataFrame:
    side = np.arange(0, SIDE_PX - TILE_PX + 1, TILE_PX)
    corners = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    place = {"level": 0, "width_px": TILE_PX, "height_px": TILE_PX, "spacing_um": SPACING_UM}
    return pd.DataFrame({"x_px": corners[:, 0], "y_px": corners[:, 1], **place})


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def simulate(map_px: int) -> None:
    """In a process of its own, because memory is given back late; prints a line of JSON."""
    keep_freed_memory()  # as every worker does
    table = simulated_rows()
    rows = SimpleNamespace(read_rows=lambda first, stop: table.iloc[first:stop])
    slide = SlideReference(slide_id="simulated", uri="none", sha256="0" * 64, spans=[(0, len(table))])
    store, before_mb = SimulatedStore(map_px), peak_mb()
    parts = {"open_store": lambda uri: store, "open_slide": lambda uri: SimulatedSlide(), "_open_rows": lambda **_: rows}
    with tempfile.TemporaryDirectory() as folder, mock.patch.multiple(slide_maps, **parts):
        job = SlideMapJob(
            slide=slide,
            rows=RowsReference(uri="none", digest=""),
            store_uri="none",
            slides_uri=folder,
            threshold=THRESHOLD,
            least_area_um2=300,
        )
        wall, cpu = time.perf_counter(), time.process_time()
        made = write_slide_map(job)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        heatmap = open_heatmap(made["uri"])
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        found = {
            "map_px": map_px,
            "tiles": made["tiles"],
            "heatmap": heatmap.shape_of(0),
            "levels": heatmap.levels,
            "regions": made["regions"],
            "files": len(files),
            "written_mb": sum(path.stat().st_size for path in files) / 1e6,
            "seconds": wall,
            "cpu_seconds": cpu,
            "before_mb": before_mb,
            "peak_mb": peak_mb(),
        }
    print(json.dumps(found))  # noqa: T201


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_a_slide_of_100_000_pixels_a_side_takes_less_than_two_gigabytes() -> None:
    for map_px in (64, 128):
        command = [sys.executable, __file__, "--simulate", str(map_px)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        found = json.loads(answer.stdout.splitlines()[-1])
        print(json.dumps({"benchmark": "slide maps: 100,000²", "load": os.getloadavg()[0], **found}))  # noqa: T201
        assert found["peak_mb"] < LIMIT_MB


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    if "--simulate" in sys.argv:
        simulate(int(sys.argv[-1]))
    else:
        test_a_slide_of_100_000_pixels_a_side_takes_less_than_two_gigabytes()
