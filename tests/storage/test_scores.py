"""The score store: what counts as done, what is refused, what a reader touches."""

import errno
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from storage import conditional, filesystems, scores
from storage.scores import (
    FAILED,
    PENDING,
    SCORED,
    Failure,
    ScoreStore,
    ScoreStoreError,
    create_store,
    default_shard_rows,
    list_stores,
    open_store,
)

ROWS, SHARD_ROWS, SIDE_PX = 10, 4, 8
RUN = {"manifest_digest": "m" * 8, "model_digest": "d" * 8}


def _create(folder: Path, **options: Any) -> ScoreStore:
    arguments = {"rows": ROWS, "map_size_px": SIDE_PX, "shard_rows": SHARD_ROWS, "attributes": RUN, **options}
    return create_store(str(folder), **arguments)


def _content(store: ScoreStore, shard: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.array(store.rows_of(shard))
    return rows.astype(np.float32), np.broadcast_to(rows[:, None, None], (len(rows), SIDE_PX, SIDE_PX)).astype(np.float16)


def _write(store: ScoreStore, shard: int) -> None:
    image, maps = _content(store, shard)
    store.write_shard(shard, image=image, maps=maps, failures=[])


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    """An empty store of three shards, the last one shorter."""
    return _create(tmp_path / "store")


def test_a_shard_is_pending_until_it_is_written(store: ScoreStore) -> None:
    assert store.pending_shards() == [0, 1, 2]
    _write(store, 1)
    assert store.pending_shards() == [0, 2]
    assert store.status().tolist() == [PENDING] * 4 + [SCORED] * 4 + [PENDING] * 2
    for shard in (0, 2):
        _write(store, shard)
    assert store.pending_shards() == []


def test_scores_and_maps_come_back_in_the_rows_order(store: ScoreStore) -> None:
    for shard in range(store.shard_count):
        _write(store, shard)
    reopened = open_store(store.uri, expected=RUN)
    assert reopened.image_scores().tolist() == list(range(ROWS))
    assert reopened.image_scores().dtype == np.float32
    assert reopened.read_maps(range(2, 9))[:, 0, 0].tolist() == list(range(2, 9))
    assert reopened.read_maps(np.array([9, 0, 5, 5]))[:, 3, 3].tolist() == [9, 0, 5, 5]
    assert reopened.read_maps(np.array([7])).shape == (1, SIDE_PX, SIDE_PX)
    assert reopened.read_maps(range(0)).shape == (0, SIDE_PX, SIDE_PX)
    assert reopened.read_maps(range(1)).dtype == np.float16


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_at", ["image_score", "status", "records"])
def test_a_shard_without_a_record_is_pending_although_its_maps_are_there(
    store: ScoreStore, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    with monkeypatch.context() as patch:
        if killed_at == "records":
            patch.setattr(filesystems, "write_json", _kill)
        else:
            patch.setattr(zarr.Array, "__setitem__", _setitem_that_kills_at(killed_at))
        with pytest.raises(_Killed):
            _write(store, 1)
    assert (Path(store.uri) / "anomaly_map/c.1.0.0").is_file()
    reopened = open_store(store.uri)
    assert reopened.pending_shards() == [0, 1, 2]
    assert reopened.status().tolist() == [PENDING] * ROWS
    _write(store, 1)
    assert store.pending_shards() == [0, 2]


def _kill(*_arguments: object) -> None:
    raise _Killed


def _setitem_that_kills_at(name: str) -> Any:
    real = zarr.Array.__setitem__

    def setitem(array: zarr.Array[Any], where: Any, values: Any) -> None:
        if array.basename == name:
            raise _Killed
        real(array, where, values)

    return setitem


@pytest.mark.parametrize("name", ["anomaly_map/c.1.0.0", "image_score/c.1", "status/c.1", "records/shard-00000001.json"])
def test_a_deleted_file_makes_its_shard_pending_again(store: ScoreStore, name: str) -> None:
    for shard in range(store.shard_count):
        _write(store, shard)
    (Path(store.uri) / name).unlink()
    assert store.pending_shards() == [1]


def test_a_shard_in_which_everything_failed_stays_written(store: ScoreStore) -> None:
    _write(store, 2)
    failures = [Failure(row=row, sample_id=f"s{row}", reason="truncated") for row in store.rows_of(2)]
    nothing = np.full(2, np.nan, np.float32)
    store.write_shard(2, image=nothing, maps=np.full((2, SIDE_PX, SIDE_PX), np.nan, np.float16), failures=failures)
    assert store.pending_shards() == [0, 1]
    assert np.isnan(store.read_maps(range(8, 10))).all()
    assert store.status()[8:].tolist() == [FAILED, FAILED]


def test_failures_are_told_in_row_order_with_their_reasons(store: ScoreStore) -> None:
    assert store.failures().empty
    for shard, row in ((2, 8), (0, 1)):
        image, maps = _content(store, shard)
        image[row - store.rows_of(shard).start] = np.nan
        store.write_shard(shard, image=image, maps=maps, failures=[Failure(row=row, sample_id=f"s{row}", reason=f"torn {row}")])
    assert store.failures().to_dict("records") == [
        {"row": 1, "sample_id": "s1", "reason": "torn 1"},
        {"row": 8, "sample_id": "s8", "reason": "torn 8"},
    ]
    _write(store, 0)  # scored after all: the old failure is forgotten
    assert store.failures()["row"].tolist() == [8]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["image", "maps"])
def test_a_scored_row_without_a_finite_score_is_refused_and_nothing_is_done(store: ScoreStore, where: str, value: float) -> None:
    image, maps = _content(store, 0)
    (image if where == "image" else maps)[2] = value
    with pytest.raises(ScoreStoreError, match="shard 0: a scored row"):
        store.write_shard(0, image=image, maps=maps, failures=[])
    assert store.pending_shards() == [0, 1, 2]


@pytest.mark.parametrize("rows", [[3], [8], [5, 5]])
def test_a_failure_of_another_shard_or_given_twice_is_refused(store: ScoreStore, rows: list[int]) -> None:
    image, maps = _content(store, 1)
    with pytest.raises(ScoreStoreError, match="shard 1 is rows 4 to 7: a failure is of another row, or given twice"):
        store.write_shard(1, image=image, maps=maps, failures=[Failure(row=row, sample_id="s", reason="torn") for row in rows])


def test_a_shard_without_maps_is_refused_where_the_store_has_maps(store: ScoreStore) -> None:
    with pytest.raises(ScoreStoreError, match="holds no map"):
        store.write_shard(0, image=np.zeros(4, np.float32), maps=None, failures=[])


def test_a_store_of_a_detector_without_maps_has_none(tmp_path: Path) -> None:
    store = _create(tmp_path / "store", map_size_px=None)
    assert store.map_size_px is None
    store.write_shard(0, image=np.zeros(4, np.float32), maps=None, failures=[])
    assert store.pending_shards() == [1, 2]
    with pytest.raises(ScoreStoreError, match="no anomaly maps"):
        store.read_maps(range(1))


@pytest.mark.parametrize("name", ["manifest_digest", "model_digest"])
def test_a_store_of_another_run_is_refused_with_both_values(store: ScoreStore, name: str) -> None:
    with pytest.raises(ScoreStoreError, match=f"{name}: this run has another, the store {RUN[name]}"):
        _create(Path(store.uri), attributes={**RUN, name: "another"})
    with pytest.raises(ScoreStoreError, match=f"{name}: this run has another, the store {RUN[name]}"):
        open_store(store.uri, expected={name: "another"})


def test_a_store_of_another_schema_is_refused(store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "SCHEMA_VERSION", 99)
    with pytest.raises(ScoreStoreError, match="schema_version: this run has 99, the store 2"):
        open_store(store.uri)


def test_creating_again_keeps_what_is_written_and_does_not_compare_notes(store: ScoreStore) -> None:
    _write(store, 0)
    again = _create(Path(store.uri), notes={"manifest_uri": "moved"})
    assert again.pending_shards() == [1, 2]
    assert again.image_scores()[:4].tolist() == [0, 1, 2, 3]


def test_a_store_cut_short_at_its_creation_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(conditional, "create", _kill)
        with pytest.raises(_Killed):
            _create(tmp_path / "store")
    with pytest.raises(ScoreStoreError, match="no score store"):
        open_store(uri)
    assert list_stores(str(tmp_path)) == []
    assert _create(tmp_path / "store").rows == ROWS
    assert list_stores(str(tmp_path)) == [uri]


def test_two_processes_that_create_a_store_at_once_get_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = conditional.create

    def create(uri: str, content: bytes) -> str:
        monkeypatch.setattr(conditional, "create", real)
        _write(_create(tmp_path / "store"), 0)  # the other one is through, and has written
        return real(uri, content)

    monkeypatch.setattr(conditional, "create", create)
    assert _create(tmp_path / "store").pending_shards() == [1, 2]


def test_stores_of_an_earlier_schema_are_not_listed(store: ScoreStore) -> None:
    metadata = Path(store.uri) / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    assert list_stores(str(metadata.parents[1])) == []


def test_a_store_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScoreStoreError, match="manifest is empty"):
        _create(tmp_path / "store", rows=0)


@pytest.mark.parametrize(("shard_rows", "side_px"), [(48, 256), (50, 128), (7, 512), (4, 8)])
def test_a_chunk_divides_its_shard_and_stays_below_a_mebibyte(tmp_path: Path, shard_rows: int, side_px: int) -> None:
    _create(tmp_path / "store", rows=shard_rows, shard_rows=shard_rows, map_size_px=side_px)
    array: Any = zarr.open_group(str(tmp_path / "store"), mode="r")["anomaly_map"]
    chunk_rows = array.chunks[0]
    assert array.shards == (shard_rows, side_px, side_px)
    assert shard_rows % chunk_rows == 0
    assert chunk_rows * side_px**2 * 2 <= 1 << 20 or chunk_rows == 1


def test_reading_one_map_decodes_one_chunk_and_not_the_shard(tmp_path: Path) -> None:
    store = _create(tmp_path / "store", rows=16, shard_rows=16, map_size_px=256)  # 8 maps a chunk
    rng = np.random.default_rng(0)
    maps = rng.random((16, 256, 256), np.float32).astype(np.float16)
    store.write_shard(0, image=np.zeros(16, np.float32), maps=maps, failures=[])
    path = Path(store.uri) / "anomaly_map/c.0.0.0"
    content = bytearray(path.read_bytes())
    start = len(content) // 4  # in the first of the two chunks
    content[start : start + 4096] = bytes(4096)
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match="blosc decompression"):
        store.read_maps(range(8))
    np.testing.assert_array_equal(store.read_maps(np.array([12])), maps[12:13])


def test_a_record_says_what_was_written(store: ScoreStore) -> None:
    image, maps = _content(store, 2)
    image[1] = np.nan
    store.write_shard(2, image=image, maps=maps, failures=[Failure(row=9, sample_id="s9", reason="torn")])
    record = store.read_record(2)
    assert record["rows"] == [8, 10]
    assert (record["scored"], record["failed"]) == (1, 1)
    assert record["failures"] == [{"row": 9, "sample_id": "s9", "reason": "torn"}]
    assert record["sha256"] == {
        "image_score": hashlib.sha256(image.tobytes()).hexdigest(),
        "status": hashlib.sha256(bytes([SCORED, FAILED])).hexdigest(),
        "anomaly_map": hashlib.sha256(maps.tobytes()).hexdigest(),
    }
    assert record["bytes"]["anomaly_map"] == (Path(store.uri) / "anomaly_map/c.2.0.0").stat().st_size


@pytest.mark.parametrize(
    ("map_size_px", "rows"), [(None, 1024), (8, 1024), (128, 1024), (224, 256), (256, 256), (320, 128), (512, 64), (2048, 64)]
)
def test_the_shards_of_an_archive_hold_32_mebibytes_of_maps(map_size_px: int | None, rows: int) -> None:
    assert default_shard_rows(map_size_px) == rows


def _files(store: ScoreStore) -> dict[str, tuple[int, bytes]]:
    """Stamp and content of everything but metadata."""
    paths = [path for path in Path(store.uri).rglob("*") if path.is_file() and not path.name.endswith((".lock", "zarr.json"))]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def _fill(store: ScoreStore) -> None:
    for shard in store.pending_shards():
        _write(store, shard)


def test_a_grown_store_keeps_its_files_and_only_the_last_shard_is_done_again(store: ScoreStore) -> None:
    _fill(store)
    before = _files(store)
    store.grow(17, notes={"manifest_digest": "grown"})
    assert _files(store) == before
    grown = open_store(store.uri, expected={"manifest_digest": "grown", "model_digest": RUN["model_digest"]})
    assert (grown.rows, grown.shard_count) == (store.rows, store.shard_count) == (17, 5)
    assert grown.pending_shards() == store.pending_shards() == [2, 3, 4]
    assert grown.status().tolist() == [SCORED] * 8 + [PENDING] * 9
    assert grown.image_scores()[:10].tolist() == list(range(10))
    _fill(grown)
    assert grown.pending_shards() == []
    assert grown.read_maps(range(17))[:, 0, 0].tolist() == grown.image_scores().tolist() == list(range(17))
    after = _files(grown)
    assert {path for path in before if after[path] != before[path]} == {
        str(Path(store.uri) / name) for name in ("anomaly_map/c.2.0.0", "image_score/c.2", "status/c.2")
    }


def test_a_store_that_grows_at_the_end_of_a_shard_has_no_tail(tmp_path: Path) -> None:
    store = _create(tmp_path / "store", rows=8)
    _fill(store)
    store.grow(9)
    assert store.pending_shards() == [2]
    assert store.read_tail(2) is None


def test_the_old_rows_of_a_grown_shard_are_read_with_their_failures_however_often_it_grew(store: ScoreStore) -> None:
    image, maps = _content(store, 2)
    image[0], maps[0] = np.nan, np.nan
    store.write_shard(2, image=image, maps=maps, failures=[Failure(row=8, sample_id="s8", reason="torn")])
    for rows in (11, 12):
        store.grow(rows)
        tail = store.read_tail(2)
        assert tail is not None
        assert np.isnan(tail.image[0])
        assert tail.image.tolist()[1:] == list(range(9, rows - 1))
        assert tail.maps is not None
        np.testing.assert_array_equal(tail.maps[1:, 0, 0], np.arange(9, rows - 1))
        assert tail.failures == [Failure(row=8, sample_id="s8", reason="torn")]
        image, maps = _content(store, 2)
        image[: len(tail.image)], maps[: len(tail.image)] = tail.image, tail.maps
        store.write_shard(2, image=image, maps=maps, failures=tail.failures)
        assert 2 not in store.pending_shards()


def test_rows_that_were_final_two_growths_ago_are_read_although_the_shard_was_not_written_between(store: ScoreStore) -> None:
    _fill(store)
    store.grow(11)
    store.grow(12)
    tail = store.read_tail(2)
    assert tail is not None
    assert tail.image.tolist() == [8, 9]
    assert store.read_tail(0) is None


def test_old_rows_that_no_longer_are_what_was_written_are_computed_again(store: ScoreStore) -> None:
    _fill(store)
    store.grow(12)
    (Path(store.uri) / "image_score/c.2").write_bytes(np.float32([8, 7, np.nan, np.nan]).tobytes())
    assert store.read_tail(2) is None


@pytest.mark.parametrize("step", range(4))
def test_a_store_whose_growth_was_cut_short_is_as_it_was_and_grows_again(
    store: ScoreStore, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    _fill(store)
    resize, replace, steps = zarr.Array.resize, conditional.replace, iter(range(4))

    def killed(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if next(steps) == step:
                raise _Killed
            return real(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "resize", killed(resize))
        patch.setattr(conditional, "replace", killed(replace))
        with pytest.raises(_Killed):
            store.grow(17)
    reopened = open_store(store.uri, expected=RUN)
    assert reopened.rows == ROWS
    assert reopened.pending_shards() == []
    assert reopened.image_scores().tolist() == list(range(ROWS))
    assert len(reopened.status()) == ROWS
    reopened.grow(17)
    _fill(reopened)
    assert open_store(store.uri).image_scores().tolist() == list(range(17))


def test_a_store_does_not_shrink_and_two_that_grow_it_at_once_are_told(store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ScoreStoreError, match="10 rows and cannot shrink to 9"):
        store.grow(9)
    real = conditional.read

    def read(uri: str) -> tuple[bytes, str]:
        found = real(uri)
        monkeypatch.setattr(conditional, "read", real)
        open_store(store.uri).grow(12)
        return found

    monkeypatch.setattr(conditional, "read", read)
    with pytest.raises(conditional.ConflictError):
        store.grow(11)
    assert open_store(store.uri).rows == 12


def test_a_store_that_does_not_answer_is_asked_again_and_a_full_disk_is_not(store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real, errors = filesystems.settle, [ConnectionError("gone"), TimeoutError()]

    def settle(uri: str) -> int:
        if errors:
            raise errors.pop()
        return real(uri)

    monkeypatch.setattr(filesystems, "settle", settle)
    _write(store, 0)
    assert not errors
    assert store.pending_shards() == [1, 2]
    errors[:] = [ConnectionError("gone")] * 9
    image, maps = _content(store, 1)
    with pytest.raises(ConnectionError):
        store.write_shard(1, image=image, maps=maps, failures=[], patience_s=0)
    errors[:] = [OSError(errno.ENOSPC, "No space left on device")]
    with pytest.raises(OSError, match="No space"):
        _write(store, 1)
    assert store.pending_shards() == [1, 2]
