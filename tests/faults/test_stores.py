"""Stores that fail in the middle: a server that is killed, answers 503, stalls or breaks its answers; a full disk."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.scores import ScoreStore
from tests.faults.conftest import ObjectStore
from tests.faults.harness import SHARDS_IN_FLIGHT, Cost, Scene, Scoring, assert_same_arrays
from tests.faults.proxy import Faults

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

OUTAGE_S = 30


def test_an_s3_server_that_is_gone_for_30_s_costs_the_wait(
    object_store: ObjectStore, scene: Scene, undisturbed: ScoreStore, costs: list[Cost]
) -> None:
    scoring = object_store.scoring(scene, "outage")
    process = scoring.start_and_wait()
    fault_s = time.time()
    object_store.server.kill()
    time.sleep(OUTAGE_S)
    object_store.server.start_again()
    scoring.finish(process)
    costs.append(scoring.cost(f"S3 server killed for {OUTAGE_S} s", fault_s=fault_s))
    conclude(scoring, undisturbed)
    assert scoring.shards_begun_again() <= scoring.in_flight(fault_s)


@pytest.mark.parametrize(
    ("name", "faults"),
    [
        ("one in five is 503 or cut off", Faults(unavailable=0.1, refused=0.05, cut=0.05)),
        ("one in thirty stalls and is lost", Faults(stalled=0.03, stall_s=20)),
    ],
)
def test_a_server_that_answers_badly_is_asked_again(
    name: str, faults: Faults, object_store: ObjectStore, scene: Scene, undisturbed: ScoreStore, costs: list[Cost]
) -> None:
    scoring = object_store.scoring(scene, name.replace(" ", "-"))
    object_store.proxy.met.clear()
    object_store.proxy.faults = faults
    fault_s = time.time()
    try:
        scoring.finish(timeout_s=300)
    finally:
        object_store.proxy.faults = Faults()
    assert sum(object_store.proxy.met.values()) >= 10
    costs.append(scoring.cost(name, fault_s=fault_s))
    conclude(scoring, undisturbed)
    assert not scoring.shards_begun_again()


def test_a_full_disk_stops_with_a_reason_and_the_next_run_goes_on(scene: Scene, undisturbed: ScoreStore, costs: list[Cost]) -> None:
    with small_disk(scene.folder / "disk", size="600k") as disk:
        scoring = Scoring(scene, "full", into=str(scene.folder / "disk"))
        process = scoring.start(through=disk.enter)
        assert process.wait(timeout=120) == 1
        fault_s = time.time()
        assert "disk is full" in scoring.said()
        assert 0 < sum(event.name == "wrote" for event in scoring.events()) < undisturbed.shard_count
        disk.grow("64m")
        scoring.finish(scoring.start(through=disk.enter))
        costs.append(scoring.cost("a full disk", fault_s=fault_s))
        scoring.archive = f"/proc/{disk.holder.pid}/root{scoring.archive}"  # the disk is seen by its own processes only
        conclude(scoring, undisturbed)
        assert not list(Path(scoring.archive).rglob("*.partial"))
        # of two groups of shards one stops first; what the other begins until it stops too is lost as well
        assert len(scoring.shards_begun_again()) <= 2 * SHARDS_IN_FLIGHT


def conclude(scoring: Scoring, undisturbed: ScoreStore) -> None:
    scoring.verify()
    assert_same_arrays(scoring.scores(), undisturbed)


class SmallDisk:
    """A tmpfs in a mount namespace of its own, there as long as the process that holds it."""

    def __init__(self, folder: Path, size: str) -> None:
        folder.mkdir()
        self._folder = folder
        mounted = f"mount -t tmpfs -o size={size} tmpfs {folder} && echo mounted && exec sleep 1000"
        self.holder = subprocess.Popen(["unshare", "-Urm", "sh", "-c", mounted], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.holder.stdout is not None
        if self.holder.stdout.readline() != b"mounted\n":
            pytest.skip(f"no mount namespaces here: {self.holder.communicate()[1].decode()}")

    @property
    def enter(self) -> tuple[str, ...]:
        """Runs a command that sees the disk."""
        return "nsenter", f"--target={self.holder.pid}", "--user", "--mount", "--preserve-credentials"

    def grow(self, size: str) -> None:
        subprocess.run([*self.enter, "mount", "-o", f"remount,size={size}", str(self._folder)], check=True)


@contextmanager
def small_disk(folder: Path, *, size: str) -> Iterator[SmallDisk]:
    disk = SmallDisk(folder, size)
    try:
        yield disk
    finally:
        disk.holder.kill()
        disk.holder.communicate()
