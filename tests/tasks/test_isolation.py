"""Real processes: samples that crash, hang or eat memory when they are read are found and failed, and their neighbours keep their bits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from storage.scores import FAILED, ScoreStore, create_store
from tasks.arithmetic import Arithmetic
from tasks.execution import ExecutionConfig, executor_for
from tasks.isolation import score_isolated
from tasks.references import RowsReference
from tasks.score_shard import Limits, ShardJob, Target, score_shard
from tests.archives import CONFIGS, write_archive_pictures, write_manifest_of, write_small_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

COUNT = 12
POISON = """
import ctypes, sys
from PIL import Image

def swallow(file, name=None):
    how = file.read().split(b":")[1]
    if how == b"segfault":
        ctypes.string_at(0)
    if how == b"hang with the lock":
        ctypes.PyDLL(None).sleep(1000)
    eaten = []
    while True:
        eaten.append(bytearray(b"x") * (16 << 20))

Image.register_open("POISON", swallow, lambda start: start.startswith(b"POISON:"))
"""


class Place:
    """Pictures, of which some become poison after their manifest is written, and a model."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.pictures = write_archive_pictures(folder / "pictures", COUNT)
        uri, digest = write_manifest_of(self.pictures)
        self.rows = RowsReference(uri=uri, digest=digest)
        self.model = write_small_bundle(folder / "model")
        (folder / "poison").mkdir()
        (folder / "poison" / "sitecustomize.py").write_text(POISON)
        monkeypatch.syspath_prepend(folder / "poison")  # of the processes that this one starts
        self.whole = self.store("whole")
        score_shard(self.job("whole"))

    def store(self, name: str) -> ScoreStore:
        attributes = {"arithmetic": Arithmetic(batch_size=4).model_dump()}
        size = CONFIGS["ae"].map_size_px
        return create_store(str(self.folder / name), rows=COUNT, map_size_px=size, shard_rows=COUNT, attributes=attributes)

    def job(self, name: str, **limits: float) -> ShardJob:
        target = Target(store_uri=self.store(name).uri, model=self.model, donors=[])
        return ShardJob(rows=self.rows, shard=0, targets=[target], isolate=False, limits=Limits(**limits))

    def poison(self, row: int, how: str) -> None:
        sorted(self.pictures.iterdir())[row].write_bytes(f"POISON:{how}".encode())

    def check(self, name: str, *, failed: Sequence[int]) -> list[str]:
        """The reasons."""
        store = self.store(name)
        assert np.flatnonzero(store.status() == FAILED).tolist() == list(failed)
        kept = np.delete(np.arange(COUNT), failed)
        np.testing.assert_array_equal(store.image_scores()[kept], self.whole.image_scores()[kept])
        np.testing.assert_array_equal(store.read_maps(kept), self.whole.read_maps(kept))
        return store.failures()["reason"].tolist()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def test_samples_that_kill_are_found_and_their_neighbours_are_scored(place: Place) -> None:
    reasons = {
        "segfault": "was killed by SIGSEGV",
        "hang with the lock": "took too long without letting Python go on",
        "more and more": "of 1500 MiB of memory",
    }
    rows = [1, 2, 8]
    for row, how in zip(rows, reasons, strict=True):
        place.poison(row, how)
    outcome = score_isolated(place.job("store", read_s=3, memory_mb=1500))
    assert outcome["targets"][0]["scored"] == COUNT - len(rows)
    for said, reason in zip(place.check("store", failed=rows), reasons.values(), strict=True):
        assert said.startswith("kills its worker: when it was read, the process")
        assert f"{reason}, twice" in said


def test_workers_that_die_of_a_shard_are_rescued_by_isolating_it(place: Place) -> None:
    place.poison(7, "segfault")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(place.folder / "poison"))
        executor = executor_for(ExecutionConfig(kind="local", workers=1))
        (outcome,) = executor.map(score_shard, [place.job("store", read_s=60)], rescue=lambda job: job | {"isolate": True})
    assert len(outcome["targets"][0]["failed"]) == 1
    place.check("store", failed=[7])


def test_errors_are_raised_as_ever_and_a_process_that_dies_with_nothing_in_hand_is_an_error(place: Place) -> None:
    job = place.job("store")
    gone = {**job["targets"][0], "model": {**place.model, "digest": "0" * 64}}
    with pytest.raises(ValueError, match="another model"):
        score_isolated(job | {"targets": [gone]})
    with pytest.raises(ChildProcessError, match="of 10 MiB of memory"):
        score_isolated(place.job("store", memory_mb=10))
