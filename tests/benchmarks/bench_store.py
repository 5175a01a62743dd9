"""A finished store of a million rows opened, shards written and read beside raw files, a manifest of a million rows
appended, its scores exported.

`pytest -m benchmark -s tests/benchmarks/bench_store.py`, or run it as a script. Everything is measured on a disk and in a bucket of
SeaweedFS on this machine, each in a process of its own; memory is what a call needs above what the process had before it.
"""

import json
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from methods.evaluation.calibration import fit_empirical, fit_gamma, fit_tail, null_to_dict
from storage import filesystems, object_stores
from storage.archives import append_manifest
from storage.manifest import write_manifest
from storage.models import Bundle, write_bundle
from storage.score_checks import verify_store
from storage.scores import create_store, default_shard_rows, open_store
from tasks.score_tools import export_archive
from tests.servers import s3_server

ROWS, MAP_PX = 1_000_000, 256
APPENDED = (10_000, 100_000, ROWS)
REPEATS = 5
MIB = 1 << 20


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


class Measured(NamedTuple):
    """Of one call in a new process: seconds by the clock and of the processor, MiB, and what it returned."""

    seconds: float
    cpu_s: float
    mib: float
    value: Any

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s ({self.cpu_s:.2f} s of the processor), {self.mib:.0f} MiB"


def measure(function: Callable[..., Any], *arguments: Any) -> Measured:
    """Call in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (function, arguments))


def _measured(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Measured:
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before, start, cpu_start = _memory_mib("VmRSS"), time.perf_counter(), time.process_time()
    value = function(*arguments)
    return Measured(time.perf_counter() - start, time.process_time() - cpu_start, _memory_mib("VmHWM") - before, value)


def _memory_mib(name: str) -> float:
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def write_finished_store(uri: str, model_uri: str) -> None:
    """A store as the scoring leaves it; the first shard is written by the real code, the others are its files under their own names."""
    shard_rows = default_shard_rows(MAP_PX)
    nulls = [null_to_dict(fit(np.linspace(0.5, 2, 1000))) for fit in (fit_empirical, fit_gamma, fit_tail)]
    model = write_bundle(model_uri, Bundle(tensors={"w": np.zeros(1)}, config={}, card={"calibration": {"nulls": nulls}}))
    attributes = {"model_digest": model, "model_uri": model_uri}
    store = create_store(uri, rows=ROWS, map_size_px=MAP_PX, shard_rows=shard_rows, attributes=attributes)
    last = store.shard_count - 1
    for shard in (0, last):
        count = len(store.rows_of(shard))
        store.write_shard(shard, image=np.ones(count, np.float32), maps=np.zeros((count, MAP_PX, MAP_PX), np.float16), failures=[])
    chunks = {name: filesystems.read_bytes(filesystems.join(uri, name, store.chunk_path(name, 0))) for name in store.arrays}
    record = store.read_record(0)

    def copy(shard: int) -> None:
        for name, content in chunks.items():
            filesystems.write_bytes(filesystems.join(uri, name, store.chunk_path(name, shard)), content)
        rows = store.rows_of(shard)
        of_shard = {**record, "rows": [rows.start, rows.stop]}
        filesystems.write_bytes(filesystems.join(uri, "records", store.record_name(shard)), json.dumps(of_shard).encode())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(copy, range(1, last)))


def find_nothing_to_do(uri: str) -> int:
    return len(open_store(uri).pending_shards())


def count_problems(uri: str) -> int:
    return len(verify_store(open_store(uri), quick=True).problems)


def write_and_read_shards(uri: str) -> dict[str, float]:
    """MB/s of the maps' own bytes, best of some: through the store, and the same bytes as plain files or objects."""
    rows = default_shard_rows(MAP_PX)
    rng = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(rng.random((rows, MAP_PX // 8, MAP_PX // 8), np.float32), 8, 1), 8, 2)
    maps = (smooth + 0.01 * rng.random((rows, MAP_PX, MAP_PX), np.float32)).astype(np.float16)
    image = np.zeros(rows, np.float32)
    store = create_store(uri, rows=rows, map_size_px=MAP_PX, shard_rows=rows, attributes={})
    raw = maps.tobytes()
    mega = len(raw) / 1e6
    stored = {
        "store, write": _fastest(lambda: store.write_shard(0, image=image, maps=maps, failures=[])),
        "store, read": _fastest(lambda: store.read_maps(range(rows))),
        "raw, write": _fastest(lambda: filesystems.write_bytes(filesystems.join(uri, "raw"), raw)),
        "raw, read": _fastest(lambda: _read_raw(filesystems.join(uri, "raw"))),
    }
    compressed = store.read_record(0)["bytes"]["anomaly_map"] / len(raw)
    return {**{name: mega / seconds for name, seconds in stored.items()}, "compressed to": compressed}


def _read_raw(uri: str) -> bytes:
    if not object_stores.is_object_store(uri):
        return filesystems.read_bytes(uri)
    folder, _, name = uri.rpartition("/")
    return bytes(object_stores.open_bucket(folder).reader.get(name).bytes())


def _fastest(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def write_long_manifest(uri: str, rows: int) -> str:
    numbers = np.arange(rows)
    ids = pd.Series(pd.util.hash_array(numbers)).map("{:016x}".format) + pd.Series(numbers).map("{:016x}".format)
    table = pd.DataFrame(
        {
            "sample_id": ids,
            "uri": "s3://archive/pictures/" + ids + ".jpg",
            "sha256": ids + ids,
            "dataset": "clinic",
            "subject_id": "subject-" + pd.Series(numbers // 4).astype(str),
            "label": pd.array(numbers % 2, "Int8"),
            "split": "archive",
            "phash": ids.str.slice(0, 16),
            "sharpness": numbers / rows,
            **{"level": 0, "x_px": 0, "y_px": 0, "width_px": 256, "height_px": 256},
        }
    )
    return write_manifest(uri, table)


def append(archive: str, manifest: str, digest: str) -> int:
    return append_manifest(archive, manifest, digest).rows


def export(archive: str, into: str) -> None:
    export_archive(archive, into)


def print_figures(folder: str, where: str) -> None:
    archive = f"{folder}/archive"
    store = f"{archive}/scores/ae/v1"
    write_finished_store(store, f"{folder}/bundle")
    for name, function in (("opened, nothing to do", find_nothing_to_do), ("verify --quick", count_problems)):
        found = measure(function, store)
        assert found.value == 0
        say(f"{where}: {ROWS} finished rows, {name}: {found}")
    rates = measure(write_and_read_shards, f"{folder}/shards").value
    say(
        f"{where}: "
        + ", ".join(f"{name} {rate:.2f}" if "to" in name.split() else f"{name} {rate:.0f} MB/s" for name, rate in rates.items())
    )
    for kind in ("write", "read"):
        say(f"{where}: store / raw, {kind}: {rates[f'store, {kind}'] / rates[f'raw, {kind}']:.2f}")
    for rows in APPENDED:
        manifest = f"{folder}/manifest-{rows}.parquet"
        digest = write_long_manifest(manifest, rows)
        found = measure(append, archive, manifest, digest)
        assert found.value == rows
        say(f"{where}: append_manifest to {rows} rows: {found}; once more: {measure(append, archive, manifest, digest)}")
    for suffix in ("parquet", "csv"):
        say(f"{where}: export of {ROWS} rows to {suffix}: {measure(export, archive, f'{folder}/scores.{suffix}')}")


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_print_figures_of_the_store_on_a_disk_and_in_a_bucket() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print_figures(f"{folder}/local", "disk")
        with s3_server(Path(folder) / "s3") as server:
            print_figures(f"{server.bucket}/bench", "bucket")


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    test_print_figures_of_the_store_on_a_disk_and_in_a_bucket()
