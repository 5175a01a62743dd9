"""The evaluation's speed, as ratios within one run: `pytest -s -m benchmark tests/benchmarks/bench_evaluation.py`.

Image level: replicates of AUROC and average precision on a million scores against scikit-learn with the same weights. Of scikit-learn's
loop a few replicates are timed, which are also compared, and multiplied. Both run on one thread and are timed by their own processor time,
because other work on the machine would otherwise be measured with them.

Pixel level: maps in a score store, every fourth abnormal; counting them as `count_shard` does, shard by shard, against reading them alone.
Pictures and masks are not read: of normal samples nothing is, and a mask costs its own decoding.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import sklearn.metrics
from scipy import ndimage

from methods.evaluation.bands import trace_curves
from methods.evaluation.bootstrap import BootstrapConfig, draw_resamples
from methods.evaluation.histograms import SubjectCounts, count_pixels, count_scores, gather_counts
from methods.evaluation.ranks import overlap_area, rank
from storage.scores import create_store, open_store

SCORES, REPLICATES, COMPARED = 1_000_000, 1000, 3
SIDE, SHARD = 256, 256
PIXELS = 10**9
DISTINCT_SHARDS = 4  # that are drawn; the store holds them again and again


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("abnormal", "subjects"), [(0.1, 5_000), (0.02, 20_000), (0.5, 5_000)])
def test_print_how_much_faster_replicates_of_a_million_scores_are(abnormal: float, subjects: int) -> None:
    rng = np.random.default_rng(0)
    subject_of, labels = rng.integers(0, subjects, SCORES), (rng.random(SCORES) < abnormal).astype(int)
    scores = rng.normal(labels * 0.8).astype(np.float32)
    few = count_scores(scores[:100], labels[:100], subject_of[:100] % 3)
    rank(few, np.ones((2, 3))), trace_curves(few, np.ones((2, 3)))  # compiles
    started = time.thread_time()
    counts = count_scores(scores, labels, subject_of)
    counted_s = time.thread_time() - started
    weights = rng.multinomial(subjects, np.full(subjects, 1 / subjects), size=REPLICATES).astype(np.int32)
    started = time.thread_time()
    found = rank(counts, weights)
    ours_s = time.thread_time() - started
    started = time.thread_time()
    trace_curves(counts, weights)
    bands_s = time.thread_time() - started
    column_of = {int(name): column for column, name in enumerate(counts.subjects)}
    columns = np.array([column_of[subject] for subject in range(subjects)])
    started = time.thread_time()
    expected = [score_weighted(labels, scores, weights[row][columns][subject_of]) for row in range(COMPARED)]
    theirs_s = (time.thread_time() - started) / COMPARED * REPLICATES
    np.testing.assert_allclose(np.stack([found.auroc, found.average_precision], 1)[:COMPARED], expected, rtol=0, atol=1e-12)
    ratio = theirs_s / (ours_s + counted_s)
    print(f"\n{SCORES:,} scores, {abnormal:.0%} abnormal, {subjects:,} subjects, {REPLICATES} replicates of AUROC and AP:")  # noqa: T201
    print(f"{ours_s:.1f} s (and {counted_s:.1f} s to count), scikit-learn {theirs_s:.0f} s (from {COMPARED}): {ratio:.0f} times faster")  # noqa: T201
    print(f"both curves of every replicate, for their bands: {bands_s:.1f} s, {bands_s / ours_s:.1f} times as long as the metrics")  # noqa: T201


def score_weighted(labels: np.ndarray, scores: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    return (
        sklearn.metrics.roc_auc_score(labels, scores, sample_weight=weight),
        sklearn.metrics.average_precision_score(labels, scores, sample_weight=weight),
    )


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_print_how_near_counting_pixels_comes_to_reading_them(tmp_path: Path) -> None:
    masks = fill_store(tmp_path / "scores.zarr")
    np.savez_compressed(tmp_path / "masks.npz", *masks)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, "count", str(tmp_path)]  # in a process of its own: this one has drawn the maps
    print(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)  # noqa: T201


def count_store(folder: Path) -> None:
    store = open_store(str(folder / "scores.zarr"))
    with np.load(folder / "masks.npz") as kept:
        masks = list(kept.values())
    shards = list(range(store.shard_count))
    subjects = np.array([f"subject {row // 20}" for row in range(store.rows)])
    count_pixels(store.read_maps(store.rows_of(0)), masks[0], subjects[:SHARD])  # compiles, and warms the page cache of one shard

    def count_one(shard: int) -> SubjectCounts:
        rows = store.rows_of(shard)
        return count_pixels(store.read_maps(rows), masks[shard % DISTINCT_SHARDS], subjects[rows])

    def count_all(together: int) -> SubjectCounts:
        with ThreadPoolExecutor(together) as pool:  # as two threads of a worker do
            counts = gather_counts(pool.map(count_one, shards))
        assert counts is not None
        assert counts.normal.sum() + counts.abnormal.sum() == store.rows * SIDE**2
        return counts

    ratios: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for together in (1, 2, 2, 1, 1, 2):

        def read_all(together: int = together) -> None:
            with ThreadPoolExecutor(together) as pool:
                assert sum(pool.map(lambda shard: len(store.read_maps(store.rows_of(shard))), shards)) == store.rows

        read, both = timed(read_all), timed(partial(count_all, together))
        ratios[together].append((read.wall_s / both.wall_s, read.processor_s / both.processor_s))
    counts = count_all(1)
    peak_mb = int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024
    resamples = draw_resamples(counts.carries_anomaly, BootstrapConfig(replicates=REPLICATES, interval="percentile"))
    ranked, overlapped = (timed(partial(metric, counts, resamples.weights)) for metric in (rank, overlap_area))
    print(f"\n{store.rows * SIDE**2 / 1e6:,.0f} million pixels of {len(counts.subjects)} subjects, {len(counts.values):,} values")  # noqa: T201
    for together, found in ratios.items():
        for name, values in zip(("wall", "processor"), np.transpose(found).tolist(), strict=True):
            low, middle, high = sorted(values)
            which = f"{together} shards at once, {name} time"
            print(f"{which}: {middle:.2f} ({low:.2f} to {high:.2f}) of the rate of reading alone (wanted: 0.8)")  # noqa: T201
    print(f"{REPLICATES} replicates: AUROC and AP {ranked.processor_s:.1f} s, AUPRO {overlapped.processor_s:.1f} s")  # noqa: T201
    print(f"peak memory of counting, with all libraries: {peak_mb:.0f} MB")  # noqa: T201


def fill_store(path: Path) -> list[np.ndarray]:
    """Smooth maps of positive scores, as detectors give them, as many as `PIXELS` asks for."""
    rng = np.random.default_rng(0)
    rows = -(-PIXELS // SIDE**2 // SHARD) * SHARD
    store = create_store(str(path), rows=rows, map_size_px=SIDE, shard_rows=SHARD, attributes={"manifest_digest": "0", "model_digest": "0"})
    maps, masks = [], []
    for _ in range(DISTINCT_SHARDS):
        smooth = ndimage.gaussian_filter(rng.normal(size=(SHARD, SIDE, SIDE)).astype(np.float32), (0, 4, 4), truncate=2)
        mask = np.zeros(smooth.shape, bool)
        mask[::4, 100:140, 60:130] = True
        maps.append((np.abs(smooth) * 10 + mask).astype(np.float16))
        masks.append(mask)
    for shard in range(store.shard_count):
        store.write_shard(shard, image=np.zeros(SHARD, np.float32), maps=maps[shard % DISTINCT_SHARDS], failures=[])
    return masks


class Took(NamedTuple):
    wall_s: float
    processor_s: float  # of all threads


def timed(work: Callable[[], object]) -> Took:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - wall, time.process_time() - processor)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["count", folder]:
            count_store(Path(folder))
        case _:
            raise SystemExit(pytest.main(["-s", "-q", "-m", "benchmark", "--import-mode=importlib", __file__]))
