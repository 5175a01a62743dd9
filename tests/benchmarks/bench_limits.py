"""What docs/scale.md counts with: `pytest -s -m benchmark tests/benchmarks/bench_limits.py`.

Seconds of the processor and bytes of a picture, calls a second through the executor, task runs a second through Prefect's API, S3 requests
and objects of a shard, seconds and bytes of an archive's own manifest.
"""

import io
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skimage import data

from methods.detectors.patchcore import PatchCoreConfig
from methods.detectors.registry import build_detector
from storage import filesystems
from storage.archives import PART_ROWS, append_manifest, open_archive
from storage.manifest import read_manifest, sample_id, write_named
from storage.scores import create_store, default_shard_rows, open_store
from tasks.execution import ExecutionConfig, executor_for, keep_freed_memory
from tasks.samples import read_samples, to_tensor
from tests.archives import write_manifest_of
from tests.faults.proxy import Proxy, disturbing_proxy
from tests.servers import as_client, s3_server

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1200)]

PICTURES, CALLS, TASK_RUNS, SHARDS, ARCHIVE_ROWS, MAP_SIZE_PX = 64, 5000, 300, 3, 200_000, 256


def test_print_what_a_picture_takes(tmp_path: Path) -> None:
    """Pieces of real tissue; seconds of the processor on one thread, which a busy machine changes least."""
    (tmp_path / "pictures").mkdir()
    tissue, rng = data.immunohistochemistry(), np.random.default_rng(0)
    for number in range(PICTURES):
        pixels = np.roll(tissue, rng.integers(0, 512, 2), (0, 1))
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number:03d}.jpg", quality=90)
    rows = read_manifest(write_manifest_of(tmp_path / "pictures")[0]).to_dict("records")
    detector = build_detector(PatchCoreConfig(input_size_px=MAP_SIZE_PX, memory_size=1024, candidates=20_000))
    keep_freed_memory()
    torch.set_num_threads(1)
    started = time.process_time()
    images = to_tensor(np.stack([pixels[MAP_SIZE_PX] for row in rows for pixels in read_samples([row], [MAP_SIZE_PX])]))  # type: ignore[index]
    read_s = time.process_time() - started
    with torch.inference_mode():
        detector.observe(images[:16])
        detector.conclude(torch.Generator().manual_seed(0))
        batches = images.split(8)
        detector.score(batches[0])
        started = time.process_time()
        scores = [detector.score(batch) for batch in batches]
        scored_s = time.process_time() - started
    show(f"a JPEG of 512² read and resized to {MAP_SIZE_PX}²: {1000 * read_s / PICTURES:.1f} ms")
    show(f"scored by PatchCore: {1000 * scored_s / PICTURES:.1f} ms")
    maps = torch.cat([one.pixel for one in scores]).numpy().astype(np.float16)
    store = create_store(str(tmp_path / "scores"), rows=PICTURES, map_size_px=MAP_SIZE_PX, shard_rows=PICTURES, attributes={})
    started = time.process_time()
    store.write_shard(0, image=torch.cat([one.image for one in scores]).numpy(), maps=maps, failures=[])
    written_s = time.process_time() - started
    stored = sum(filesystems.list_sizes(str(tmp_path / "scores" / "anomaly_map")).values())
    show(
        f"written: {1000 * written_s / PICTURES:.1f} ms; its map: {stored / PICTURES / 1024:.0f} of {maps.nbytes / PICTURES / 1024:.0f} KiB"
    )


def test_print_calls_a_second_through_the_executor() -> None:
    executor = executor_for(ExecutionConfig(kind="local", workers=2))
    list(executor.map(abs, range(100)))  # the workers are up and have imported what they need
    started = time.monotonic()
    assert sum(executor.map(abs, range(CALLS))) == CALLS * (CALLS - 1) // 2
    show(f"executor, two processes: {CALLS / (time.monotonic() - started):.0f} empty calls a second")


@pytest.mark.usefixtures("prefect_server")
def test_print_task_runs_a_second_through_prefect() -> None:
    from prefect import flow, task
    from prefect.task_runners import ThreadPoolTaskRunner

    nothing = task(lambda number: number, name="nothing")

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=4))  # type: ignore[arg-type]
    def many() -> int:
        return sum(future.result() for future in [nothing.submit(number) for number in range(TASK_RUNS)])

    started = time.monotonic()
    many()
    show(f"Prefect, SQLite: {TASK_RUNS / (time.monotonic() - started):.0f} task runs a second, {TASK_RUNS} of them in one flow")


def test_print_s3_requests_of_a_shard(tmp_path: Path) -> None:
    shard_rows = default_shard_rows(MAP_SIZE_PX)
    rng = np.random.default_rng(0)
    image = rng.normal(size=shard_rows).astype(np.float32)
    maps = rng.normal(size=(shard_rows, MAP_SIZE_PX, MAP_SIZE_PX)).astype(np.float16)
    with (
        s3_server(tmp_path / "s3") as server,
        disturbing_proxy(server.endpoint) as proxy,
        as_client(replace(server, endpoint=proxy.endpoint)),
    ):
        picture = f"{server.bucket}/picture.png"
        buffer = io.BytesIO()
        Image.fromarray(data.immunohistochemistry()).save(buffer, "PNG")
        filesystems.write_bytes(picture, buffer.getvalue())
        proxy.asked.clear()
        box = {"level": 0, "x_px": 0, "y_px": 0, "width_px": 512, "height_px": 512}
        read_samples([{"uri": picture, "sha256": "", **box}], [MAP_SIZE_PX])
        show(f"reading a picture: {describe(proxy, per=1)}")
        uri = f"{server.bucket}/scores"
        create_store(uri, rows=SHARDS * shard_rows, map_size_px=MAP_SIZE_PX, shard_rows=shard_rows, attributes={})
        proxy.asked.clear()
        store = open_store(uri)
        show(f"opening a store: {describe(proxy, per=1)}")
        for shard in range(SHARDS):
            store.write_shard(shard, image=image, maps=maps, failures=[])
        show(f"writing a shard of {shard_rows} rows of {MAP_SIZE_PX}²: {describe(proxy, per=SHARDS)}")
        objects = filesystems.list_sizes(uri)
        show(f"a shard is {(len(objects) - 4) / SHARDS:.0f} objects, {sum(objects.values()) / SHARDS / 2**20:.1f} MiB of noise")
        proxy.asked.clear()
        assert store.pending_shards() == []
        show(f"what is pending: {describe(proxy, per=1)}, and as many again for every thousand shards")


def test_print_what_an_archives_manifest_takes(tmp_path: Path) -> None:
    digests = [os.urandom(32).hex() for _ in range(ARCHIVE_ROWS)]
    box = {"level": 0, "x_px": 0, "y_px": 0, "width_px": 512, "height_px": 512}
    rows = pd.DataFrame(
        {
            "sample_id": [sample_id(digest, **box) for digest in digests],  # type: ignore[arg-type]
            "uri": [f"s3://hospital/archive/2019/{digest[:24]}.jpg" for digest in digests],
            "sha256": digests,
            "dataset": "hospital",
            "subject_id": [digest[:12] for digest in digests],
            "group_id": [digest[:12] for digest in digests],
            "split": "archive",
            **box,
        }
    )
    uri, digest = write_named(str(tmp_path), rows, manifest=slice(None))["manifest"]
    started = time.monotonic()
    append_manifest(str(tmp_path / "archive"), uri, digest)
    appended_s = time.monotonic() - started
    parts = filesystems.list_sizes(str(tmp_path / "archive" / "rows"))
    document = len(filesystems.read_bytes(str(tmp_path / "archive" / "archive.json")))
    show(f"an archive's manifest: {ARCHIVE_ROWS / appended_s:,.0f} rows a second, {sum(parts.values()) / ARCHIVE_ROWS:.0f} bytes a row")
    show(f"archive.json: {document / len(parts):.0f} bytes for each {PART_ROWS} rows")
    archive, started = open_archive(str(tmp_path / "archive")), time.monotonic()
    archive.read_rows(PART_ROWS, PART_ROWS + 256)
    show(f"a shard's rows, of a part that is not in memory yet: {1000 * (time.monotonic() - started):.0f} ms")


def describe(proxy: Proxy, *, per: int) -> str:
    """What was asked since the last time, by method."""
    methods: Counter[str] = Counter()
    for (method, _), count in proxy.asked.items():
        methods[method] += count
    proxy.asked.clear()
    return ", ".join(f"{count / per:g} {method}" for method, count in sorted(methods.items()))


def show(line: str) -> None:
    print(f"\n{line}", end="")  # noqa: T201
