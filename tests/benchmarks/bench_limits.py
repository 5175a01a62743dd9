"""What docs/scale.md counts with: `pytest -s -m benchmark tests/benchmarks/bench_limits.py`.

Calls a second through the executor, task runs a second through Prefect's API, S3 requests and objects of a shard, seconds and bytes of an
archive's own manifest.
"""

import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from storage import filesystems
from storage.archives import PART_ROWS, append_manifest, open_archive
from storage.manifest import sample_id, write_named
from storage.scores import create_store, default_shard_rows, open_store
from tasks.execution import ExecutionConfig, executor_for
from tests.faults.proxy import Proxy, disturbing_proxy
from tests.servers import as_client, s3_server

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1200)]

CALLS, TASK_RUNS, SHARDS, ARCHIVE_ROWS, MAP_SIZE_PX = 5000, 300, 3, 200_000, 256


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
