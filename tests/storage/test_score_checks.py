"""Each kind of damage to a score store is found and named with its shard."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage import score_checks
from storage.score_checks import verify_store
from storage.scores import Failure, ScoreStore, create_store, open_store

ROWS, SHARD_ROWS, SIDE_PX = 10, 4, 8


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    """Three finished shards; row 5 has failed."""
    store = create_store(str(tmp_path / "store"), rows=ROWS, map_size_px=SIDE_PX, shard_rows=SHARD_ROWS, attributes={})
    for shard in range(3):
        write(store, shard)
    return store


def write(store: ScoreStore, shard: int) -> None:
    rows = np.array(store.rows_of(shard))
    image = rows.astype(np.float32)
    image[rows == 5] = np.nan
    maps = np.random.default_rng(shard).random((len(rows), SIDE_PX, SIDE_PX)).astype(np.float16)
    failures = [Failure(row=5, sample_id="s5", reason="torn")] if 5 in rows else []
    store.write_shard(shard, image=image, maps=maps, failures=failures)


def problems_of(store: ScoreStore, *, quick: bool = False) -> list[str]:
    return [str(problem) for problem in verify_store(open_store(store.uri), quick=quick).problems]


def test_a_whole_store_has_no_problem_and_every_row_is_counted_once(store: ScoreStore) -> None:
    told = list[int]()
    found = verify_store(store, advance=told.append)
    assert found.problems == []
    assert (found.scored, found.failed, found.failures) == (9, 1, [(5, "s5")])
    assert sum(told) == 3


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def edit(path: Path, **changed: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str, bool]] = {
    "a flipped bit in a map": ("anomaly_map/c.1.0.0", flip, "anomaly_map/c.1.0.0 (cannot be decoded|holds other values)", False),
    "a flipped bit in a score": ("image_score/c.1", flip, "image_score/c.1 holds other values than were written", False),
    "a flipped bit in a status": ("status/c.1", flip, "status/c.1 holds other values than were written", False),
    "a torn shard": ("anomaly_map/c.1.0.0", truncate, r"anomaly_map/c.1.0.0 holds \d+ bytes where \d+ were written: torn", True),
    "an empty shard": ("image_score/c.1", lambda path: path.write_bytes(b""), "image_score/c.1 holds 0 bytes where 16 were written", True),
    "a missing shard": ("anomaly_map/c.1.0.0", Path.unlink, "anomaly_map/c.1.0.0 is missing", True),
    "a missing record": ("records/shard-00000001.json", Path.unlink, "has files and no record of its rows", True),
    "a torn record": ("records/shard-00000001.json", truncate, "its record cannot be read", True),
    "a record of nothing": ("records/shard-00000001.json", lambda path: path.write_text("{}"), "its record cannot be read .KeyError", True),
    "a record of other rows": (
        "records/shard-00000001.json",
        lambda path: edit(path, rows=[0, 4]),
        "its record is of rows 0 to 3",
        True,
    ),
    "a record that miscounts": (
        "records/shard-00000001.json",
        lambda path: edit(path, scored=4),
        "its record counts 4 scored and 1 failed of 4, and names 1 failures",
        True,
    ),
    "a record without its failures": (
        "records/shard-00000001.json",
        lambda path: edit(path, scored=4, failed=0, failures=[]),
        "its status and its record differ in which rows failed",
        False,
    ),
    "a failure of another shard": (
        "records/shard-00000001.json",
        lambda path: edit(path, failures=[{"row": 2, "sample_id": "s2", "reason": "torn"}]),
        "its record names a failure twice, or one of other rows",
        True,
    ),
    "a failure without a reason": (
        "records/shard-00000001.json",
        lambda path: edit(path, failures=[{"row": 5, "sample_id": "s5", "reason": ""}]),
        "its record names a failure without a reason",
        True,
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named_with_its_shard(store: ScoreStore, name: str) -> None:
    path, damage, text, seen_quickly = DAMAGES[name]
    damage(Path(store.uri) / path)
    found = problems_of(store)
    assert all(problem.startswith("shard 1 (rows 4 to 7): ") for problem in found)
    assert bool(problems_of(store, quick=True)) == seen_quickly
    assert any(re.search(text, problem) for problem in found)


def test_what_is_pending_is_told_in_runs_apart_from_what_was_begun(store: ScoreStore) -> None:
    store.grow(30)
    assert problems_of(store) == [
        "shard 2 (rows 8 to 11): has files and no record of its rows: cut short, grown since, or its record is lost",
        "shards 3 to 7 (rows 12 to 29): pending",
    ]
    found = verify_store(store)
    assert (found.scored, found.failed) == (7, 1)


def test_the_old_record_of_a_grown_shard_is_no_problem(store: ScoreStore) -> None:
    store.grow(12)
    write(store, 2)
    assert problems_of(store) == []


def test_files_of_shards_that_are_not_the_stores_are_named(store: ScoreStore) -> None:
    (Path(store.uri) / "image_score/c.7").write_bytes(bytes(16))
    assert problems_of(store) == ["image_score/c.7: the store has no shard 7: it ends with 2"]


def test_arrays_that_are_cut_otherwise_are_named(store: ScoreStore) -> None:
    edit(Path(store.uri) / "status/zarr.json", shape=[7])
    assert "array status: expected (10,) uint8 in shards of 4 rows, found (7,) uint8 in shards of 4" in problems_of(store)


def test_only_a_few_shards_are_looked_at_ahead_of_what_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = list[int]()
    monkeypatch.setattr(score_checks.os, "sched_getaffinity", lambda _: {0, 1})
    results = score_checks._map_ahead(lambda shard: begun.append(shard) or score_checks.Findings(scored=shard), list(range(100)))
    assert next(results).scored == 0
    assert len(begun) <= 5
    assert [found.scored for found in results] == list(range(1, 100))
