"""SIGKILL in the middle of scoring, a second run, the same arrays; Ctrl-C; and where the work runs makes no difference."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from storage.scores import ScoreStore, open_store
from tests.command import NORMASCOPE, Workplace, workers_of
from tests.phantoms import write_pictures

pytestmark = pytest.mark.slow

NORMAL, ABNORMAL = 150, 30


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Pictures, and a home whose Prefect server is stopped at the end."""
    folder = tmp_path_factory.mktemp("kill")
    write_pictures(folder / "pictures", normal=NORMAL, abnormal=ABNORMAL, size_px=256)
    yield folder
    subprocess.run([*NORMASCOPE, "ui", "--stop"], env=environment(folder), check=True, capture_output=True)


def environment(folder: Path) -> dict[str, str]:
    return Workplace(folder).environment


def configure(folder: Path, store: str, **execution: object) -> Path:
    path = folder / f"{store}.yaml"
    config = {
        "name": store,
        "store": store,
        "source": {"kind": "folder", "path": "pictures"},
        "detectors": [{"kind": "patchcore", "memory_size": 1024}],
        "training": {"samples_per_subject": 1, "seed": 0},
        "scoring": {"shard_rows": 8, "shards_per_task": 4},
        "execution": {"kind": "local", "workers": 2, **execution},
    }
    path.write_text(yaml.safe_dump(config))
    return path


def score(folder: Path, config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*NORMASCOPE, "score", str(config)], env=environment(folder), check=True, capture_output=True, text=True)


def start(folder: Path, config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*NORMASCOPE, "score", str(config)], env=environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def finished_shards(folder: Path, store: str) -> dict[str, int]:
    """Records of finished shards with the time they were written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / store / "scores").glob("*.zarr/records/*.json")}


def wait_for_shards(folder: Path, store: str, *, count: int, process: subprocess.Popen[bytes]) -> dict[str, int]:
    deadline = time.monotonic() + 240
    while len(done := finished_shards(folder, store)) < count:
        assert process.poll() is None, "scoring ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return done


def opened(folder: Path, store: str) -> ScoreStore:
    (path,) = (folder / store / "scores").glob("*.zarr")
    return open_store(str(path))


@pytest.fixture(scope="module")
def undisturbed(workplace: Path) -> ScoreStore:
    score(workplace, configure(workplace, "undisturbed"))
    return opened(workplace, "undisturbed")


def assert_same_arrays(one: ScoreStore, other: ScoreStore) -> None:
    np.testing.assert_array_equal(one.status(), other.status())
    np.testing.assert_array_equal(one.image_scores(), other.image_scores())
    np.testing.assert_array_equal(one.read_maps(range(one.rows)), other.read_maps(range(other.rows)))


@pytest.mark.timeout(600)
def test_sigkill_while_scoring_costs_at_most_the_shards_in_flight(workplace: Path, undisturbed: ScoreStore) -> None:
    config = configure(workplace, "killed")
    process = start(workplace, config)
    wait_for_shards(workplace, "killed", count=4, process=process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(3)  # its workers notice that they are alone and leave
    before = finished_shards(workplace, "killed")
    assert 4 <= len(before) < opened(workplace, "killed").shard_count
    score(workplace, config)
    after = finished_shards(workplace, "killed")
    assert {name: after[name] for name in before} == before  # not one finished shard was written again
    assert len(after) == undisturbed.shard_count
    assert_same_arrays(opened(workplace, "killed"), undisturbed)


@pytest.mark.timeout(600)
def test_ctrl_c_stops_at_once_with_its_workers_and_a_second_run_goes_on(workplace: Path, undisturbed: ScoreStore) -> None:
    config = configure(workplace, "interrupted")
    process = start(workplace, config)
    wait_for_shards(workplace, "interrupted", count=3, process=process)
    workers = workers_of(process)
    assert workers
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=15) == 128 + signal.SIGINT
    psutil.wait_procs(workers, timeout=5)
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    assert not list((workplace / "interrupted").rglob("*.yaml.partial"))
    before = finished_shards(workplace, "interrupted")
    score(workplace, config)
    after = finished_shards(workplace, "interrupted")
    assert {name: after[name] for name in before} == before
    assert_same_arrays(opened(workplace, "interrupted"), undisturbed)


@pytest.mark.timeout(600)
def test_this_process_and_a_cluster_at_an_address_give_the_same_bits(workplace: Path, undisturbed: ScoreStore) -> None:
    from distributed import LocalCluster

    score(workplace, configure(workplace, "process", kind="process"))
    assert_same_arrays(opened(workplace, "process"), undisturbed)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster:
        score(workplace, configure(workplace, "address", kind="address", address=cluster.scheduler_address))
    assert_same_arrays(opened(workplace, "address"), undisturbed)
