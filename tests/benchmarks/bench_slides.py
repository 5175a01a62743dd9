"""Tiles a second of the two slide readers on one core: `pytest -m benchmark -s tests/benchmarks/bench_slides.py`, or run it as a script."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from skimage import data

from storage.slides import OpenSlideReader, SlideReader, TiffSlide, write_pyramid

SIDE_PX = 4096


def tiles_per_second(open_reader: Callable[[str], SlideReader], path: str, *, tile_px: int, start_px: int) -> float:
    corners = [(x, y) for y in range(start_px, SIDE_PX - tile_px + 1, tile_px) for x in range(start_px, SIDE_PX - tile_px + 1, tile_px)]
    best = 0.0
    for _ in range(3):
        with open_reader(path) as slide:
            start = time.perf_counter()
            for x, y in corners:
                slide.read_region(x, y, tile_px, tile_px)
            best = max(best, len(corners) / (time.perf_counter() - start))
    return best


@pytest.mark.benchmark
def test_print_tiles_per_second_of_both_readers() -> None:
    tissue = data.immunohistochemistry()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "slide.tif")
        start = time.perf_counter()
        write_pyramid(path, np.tile(tissue, (SIDE_PX // 512, SIDE_PX // 512, 1)), spacing_um=0.5)
        print(f"\nwrite_pyramid of {SIDE_PX}² px: {time.perf_counter() - start:.2f} s")  # noqa: T201
        for name, tile_px, start_px in (("256² aligned", 256, 0), ("224² unaligned", 224, 100)):
            fast = tiles_per_second(TiffSlide, path, tile_px=tile_px, start_px=start_px)
            slow = tiles_per_second(OpenSlideReader, path, tile_px=tile_px, start_px=start_px)
            print(f"{name}: TiffSlide {fast:,.0f}/s, OpenSlideReader {slow:,.0f}/s, ratio {fast / slow:.1f}")  # noqa: T201


if __name__ == "__main__":
    test_print_tiles_per_second_of_both_readers()
