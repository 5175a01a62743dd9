"""Slide maps: `pytest -m benchmark -s tests/benchmarks/bench_slide_maps.py`, or run it as a script.

Two questions. How much memory and time does a slide of 100,000 × 100,000 pixels take, of which every pixel was scored? (The store is
simulated, all else is real.) And what does a slide of 20,000 × 20,000 pixels take from the file to map and regions, against a bare
loop that reads its tiles, scores them and throws the scores away?
"""

import json
import os
import re
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
from skimage import data

from storage.heatmaps import open_heatmap
from storage.manifest import read_manifest, write_manifest
from storage.scores import create_store, default_shard_rows
from storage.slides import write_pyramid
from tasks import write_slide_map as mapping
from tasks.arithmetic import Arithmetic, Scorer
from tasks.curation import CurationConfig, TilingConfig
from tasks.execution import keep_freed_memory
from tasks.models import detector_config, load_detector
from tasks.references import ItemReference, ModelReference, RowsReference
from tasks.rows import SEARCH_COLUMNS, to_table
from tasks.samples import read_sample
from tasks.score_shard import Limits, ShardJob, Target, score_shard
from tasks.slide_maps import SlideMapConfig, find_threshold, list_slides
from tasks.slide_rows import tabulate_slide
from tasks.write_slide_map import SlideMapJob, SlideMapReference, SlideReference, write_slide_map
from tests.archives import write_small_bundle

SIDE_PX, TILE_PX, SPACING_UM, THRESHOLD = 100_000, 256, 0.25, 0.6
LIMIT_MB = 2000
SCORED_PX = 20_000
ARITHMETIC = Arithmetic(batch_size=16)


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
    """Not by getrusage, whose maximum a process takes over from the one that started it."""
    return int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def simulate(map_px: int) -> None:
    """In a process of its own, because memory is given back late; prints a line of JSON."""
    keep_freed_memory()  # as every worker does
    table = simulated_rows()
    rows = SimpleNamespace(read_rows=lambda first, stop: table.iloc[first:stop])
    slide = SlideReference(slide_id="simulated", uri="none", sha256="0" * 64, spans=[(0, len(table))])
    store, before_mb = SimulatedStore(map_px), peak_mb()
    parts = {"open_store": lambda uri: store, "open_slide": lambda uri: SimulatedSlide(), "_open_rows": lambda **_: rows}
    with tempfile.TemporaryDirectory() as folder, mock.patch.multiple(mapping, **parts):
        job = SlideMapJob(
            slide=slide,
            rows=RowsReference(uri="none", digest=""),
            store_uri="none",
            slides_uri=folder,
            threshold=THRESHOLD,
            least_area_um2=SlideMapConfig().least_area_um2,
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
            "regions_mb": Path(made["regions_uri"]).stat().st_size / 1e6,
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
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        found = json.loads(answer.stdout.splitlines()[-1])
        print(json.dumps({"benchmark": "slide maps: 100,000²", "load": os.getloadavg()[0], **found}))  # noqa: T201
        assert found["peak_mb"] < LIMIT_MB


def write_slide(path: Path) -> RowsReference:
    """Tissue, in which every 2,048 px a square is magenta; the rows of all its tiles."""
    tissue = np.tile(data.immunohistochemistry(), (4, 4, 1))
    tissue[900:1100, 900:1100] = (220, 40, 200)
    times = -(-SCORED_PX // len(tissue))
    write_pyramid(path, np.tile(tissue, (times, times, 1))[:SCORED_PX, :SCORED_PX], spacing_um=SPACING_UM)
    nothing: Any = dict.fromkeys(ItemReference.__annotations__)
    known = {"uri": str(path), "sha256": "ab" * 32, "dataset": "d", "subject_id": "s", "label": 0, "partly_annotated": False}
    found = tabulate_slide(nothing | known, TilingConfig(size_px=TILE_PX, dense=True), CurationConfig(duplicates=None), stain=None)
    table = to_table([found]).drop_columns(list(SEARCH_COLUMNS)).to_pandas()
    uri = str(path.with_suffix(".parquet"))
    return RowsReference(uri=uri, digest=write_manifest(uri, table.assign(group_id="s")))


def score_bare(rows: RowsReference, model: ModelReference) -> None:
    scorer, table = Scorer(load_detector(model), ARITHMETIC), read_manifest(rows["uri"]).to_dict("records")
    for start in range(0, len(table), ARITHMETIC.batch_size):
        pixels = [read_sample(row, size_px=scorer.input_size_px) for row in table[start : start + ARITHMETIC.batch_size]]
        scorer.score(scorer.to_device(np.stack(pixels)))


def score_slide(rows: RowsReference, model: ModelReference, folder: Path) -> tuple[SlideMapReference, float]:
    """The map's reference, and the seconds that the map alone took."""
    [slide] = list_slides(rows)
    map_px = detector_config(model).map_size_px
    cut: dict[str, Any] = {"rows": slide["spans"][-1][1], "map_size_px": map_px, "shard_rows": default_shard_rows(map_px)}
    attributes = {"arithmetic": ARITHMETIC.model_dump(), "model_digest": model["digest"], "detector": model["kind"]}
    store = create_store(str(folder / "scores"), **cut, attributes=attributes)
    target = Target(store_uri=store.uri, model=model, donors=[])
    for shard in range(store.shard_count):
        score_shard(ShardJob(rows=rows, shard=shard, targets=[target], isolate=False, limits=Limits()))
    start = time.perf_counter()
    threshold = find_threshold(model, SlideMapConfig())
    made = write_slide_map(
        SlideMapJob(
            slide=slide, rows=rows, store_uri=store.uri, slides_uri=str(folder / "slides"), threshold=threshold, least_area_um2=1000
        )
    )
    return made, time.perf_counter() - start


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_a_slide_of_20_000_pixels_a_side_from_file_to_regions_against_a_bare_loop() -> None:
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model, rows = write_small_bundle(folder / "model", "patchcore"), write_slide(folder / "slide.tif")
        seconds = {"bare": np.inf, "whole": np.inf, "map": np.inf}
        for turn in range(2):
            start = time.perf_counter()
            score_bare(rows, model)
            middle = time.perf_counter()
            made, of_map = score_slide(rows, model, folder / str(turn))
            whole = time.perf_counter() - middle
            seconds = {name: min(seconds[name], now) for name, now in (("bare", middle - start), ("whole", whole), ("map", of_map))}
        found = {"tiles": made["tiles"], "regions": made["regions"], "ratio": seconds["bare"] / seconds["whole"], **seconds}
        print(json.dumps({"benchmark": "slide maps: 20,000²", "load": os.getloadavg()[0], **found}))  # noqa: T201


if __name__ == "__main__":
    if "--simulate" in sys.argv:
        simulate(int(sys.argv[-1]))
    else:
        test_a_slide_of_20_000_pixels_a_side_from_file_to_regions_against_a_bare_loop()
        test_a_slide_of_100_000_pixels_a_side_takes_less_than_two_gigabytes()
