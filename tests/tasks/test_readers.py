"""Reading ahead: in order, within its budget, each picture once, and what is wrong with a sample told from a store that is away."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storage import filesystems
from storage.archives import append_manifest
from storage.manifest import read_manifest
from tasks import readers, samples
from tasks.readers import Piece, Record, cut_pieces, join_pieces, read_ahead, read_piece, read_records
from tasks.references import RowsReference
from tasks.samples import read_sample
from tests.archives import write_archive_pictures, write_manifest_of
from tests.servers import as_client, s3_server


@pytest.fixture
def rows(tmp_path: Path) -> RowsReference:
    uri, digest = write_manifest_of(write_archive_pictures(tmp_path / "pictures", 10))
    return RowsReference(uri=uri, digest=digest)


def tiles_of(record: Record, *, side_px: int = 32) -> list[Record]:
    """A picture of 64 × 64 as four rows."""
    corners = [(x, y) for y in (0, side_px) for x in (0, side_px)]
    return [{**record, "x_px": x, "y_px": y, "width_px": side_px, "height_px": side_px} for x, y in corners]


@pytest.mark.parametrize("budget", [1, 100, 10**6])
def test_what_is_read_and_not_yet_taken_stays_within_the_budget_or_is_one_item(budget: int) -> None:
    sizes = np.random.default_rng(0).integers(1, 60, 200).tolist()
    lock, begun, most, taken = threading.Lock(), [], [0.0, 0], 0

    def read(number: int) -> int:
        with lock:
            begun.append(number)
            held = sum(sizes[item] for item in begun if item >= taken)
            if held > budget:
                assert len([item for item in begun if item >= taken]) == 1
            most[0], most[1] = max(most[0], held), max(most[1], len(begun) - taken)
        time.sleep(0.0005)
        return -number

    results = read_ahead(range(200), read, held_bytes=lambda number: sizes[number], budget_bytes=budget, readers=8)
    for expected, (number, result) in enumerate(results):
        assert (number, result) == (expected, -expected)
        time.sleep(0.001)
        with lock:
            taken = number + 1
    assert sorted(begun) == list(range(200))
    assert most[1] > 1 or budget == 1  # it did run ahead


def test_an_error_is_raised_where_its_item_stands_and_the_rest_is_not_begun() -> None:
    begun = []

    def read(number: int) -> int:
        begun.append(number)
        return 1 // (number - 3)

    with pytest.raises(ZeroDivisionError):
        list(read_ahead(range(100), read, held_bytes=lambda _: 1, budget_bytes=2, readers=2))
    assert max(begun) <= 5


def test_records_of_a_manifest_and_of_an_archive_are_alike_and_read_what_the_manifest_says(rows: RowsReference, tmp_path: Path) -> None:
    archive = append_manifest(str(tmp_path / "archive"), rows["uri"], rows["digest"])
    records = read_records(rows, 3, 7)
    assert read_records(RowsReference(uri=archive.uri, digest=archive.digest), 3, 7) == records
    assert all(record["frame"] is None and record["excluded"] is None for record in records)
    table = read_manifest(rows["uri"])
    for piece in cut_pieces(records, range(4), [32, 64]):
        ((sample,), position) = read_piece(records, piece, [32, 64]), piece.positions[0]
        assert isinstance(sample, dict)
        for size_px in (32, 64):
            np.testing.assert_array_equal(sample[size_px], read_sample(table.iloc[3 + position], size_px=size_px))


def test_a_picture_of_many_rows_is_decoded_once(rows: RowsReference, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [tile for record in read_records(rows, 0, 2) for tile in tiles_of(record)]
    pieces = cut_pieces(records, range(8), [16, 32])
    assert [piece.positions for piece in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert pieces[0].held_bytes == 4 * 64 * 64 + 4 * 3 * (16**2 + 32**2)
    decoded = []
    decode = samples.decode_picture
    monkeypatch.setattr(samples, "decode_picture", lambda uri, **options: decoded.append(uri) or decode(uri, **options))
    found = [sample for piece in pieces for sample in read_piece(records, piece, [16, 32])]
    assert decoded == [records[0]["uri"], records[4]["uri"]]
    whole = np.asarray(Image.open(records[0]["uri"]).convert("RGB"))
    np.testing.assert_array_equal(found[3][32], whole[32:, 32:])  # type: ignore[index]


def test_rows_that_are_to_be_alone_share_a_piece_with_no_other(rows: RowsReference) -> None:
    records = tiles_of(read_records(rows, 0, 1)[0]) * 2
    pieces = cut_pieces(records, [0, 1, 2, 4, 5, 6, 7], [32], alone={2, 5})
    assert [piece.positions for piece in pieces] == [[0, 1], [2], [4], [5], [6, 7]]


def test_small_pictures_are_handed_over_together_and_large_ones_alone() -> None:
    sizes = [10, 10, 10, 60, 10, 500, 10]
    pieces = [Piece([number], size) for number, size in enumerate(sizes)]
    joined = list(join_pieces(pieces, rows=3, held_bytes=80))
    assert [[piece.positions[0] for piece in together] for together in joined] == [[0, 1, 2], [3, 4], [5], [6]]
    assert [len(together) for together in join_pieces(pieces, rows=3, held_bytes=0)] == [1] * 7
    assert list(join_pieces([], rows=3, held_bytes=80)) == []


def test_a_missing_a_damaged_an_excluded_and_a_replaced_picture_fail_with_reasons_and_neighbours_do_not(rows: RowsReference) -> None:
    records = read_records(rows, 0, 5)
    Path(records[0]["uri"]).unlink()
    damaged = Path(records[1]["uri"])
    damaged.write_bytes(damaged.read_bytes()[:500])
    records[2] = {**records[2], "excluded": "blurred"}
    records[3:4] = [*tiles_of(records[3])[:2], {**records[3], "width_px": 65}]
    pieces = cut_pieces(records, range(len(records)), [32])
    assert [piece.positions for piece in pieces] == [[0], [1], [2], [3, 4, 5], [6]]
    found = [sample for piece in pieces for sample in read_piece(records, piece, [32])]
    for reason, sample in zip(("No such file", "unreadable picture", "excluded by curation: blurred"), found[:3], strict=True):
        assert isinstance(sample, str)
        assert reason in sample
    assert "65 × 64 px at (0, 0) are not in 64 × 64 px" in found[5]
    assert all(isinstance(found[position], dict) for position in (3, 4, 6))


@pytest.mark.parametrize("passes", [True, False])
def test_a_store_that_does_not_answer_is_waited_for_and_no_sample_fails_for_it(
    rows: RowsReference, monkeypatch: pytest.MonkeyPatch, passes: bool
) -> None:
    records, calls = read_records(rows, 0, 1), []

    def answer_later(*arguments: object) -> object:
        calls.append(arguments)
        if passes and len(calls) == 3:
            return samples.read_samples(*arguments)  # type: ignore[arg-type]
        raise ConnectionError("no answer")

    monkeypatch.setattr(readers, "read_samples", answer_later)
    monkeypatch.setattr(readers, "PATIENCE_S", 5.0 if passes else 0.3)
    if passes:
        assert isinstance(read_piece(records, Piece([0], 1), [32])[0], dict)
    else:
        with pytest.raises(ConnectionError):
            read_piece(records, Piece([0], 1), [32])
        assert len(calls) > 1


def test_a_disk_that_cannot_read_a_file_fails_its_sample(rows: RowsReference, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(readers, "read_samples", refuse)
    assert "Input/output error" in read_piece(read_records(rows, 0, 1), Piece([0], 1), [32])[0]


@pytest.mark.slow
def test_keys_that_a_bucket_refuses_stop_the_run_and_fail_no_sample(tmp_path: Path) -> None:
    with s3_server(tmp_path / "server") as server:
        folder = write_archive_pictures(tmp_path / "pictures", 2)
        uri, digest = write_manifest_of(folder)
        records = read_records(RowsReference(uri=uri, digest=digest), 0, 1)
        there = f"{server.bucket}/picture.jpg"
        filesystems.write_bytes(there, Path(records[0]["uri"]).read_bytes())
        moved = [{**records[0], "uri": there}]
        (piece,) = cut_pieces(moved, [0], [16])
        assert isinstance(read_piece(moved, piece, [16])[0], dict)
        with as_client(server, secret_key="wrong"), pytest.raises(PermissionError, match="no access"):
            read_piece(moved, piece, [16])


def test_an_object_that_a_bucket_refuses_fails_its_sample(rows: RowsReference, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        denied = RuntimeError()
        denied.response = {"Error": {"Code": "AccessDenied"}}  # type: ignore[attr-defined]
        raise PermissionError("s3://archive/secret.jpg: the object store gives no access") from denied

    monkeypatch.setattr(readers, "read_samples", refuse)
    records = read_records(rows, 0, 1)
    (piece,) = cut_pieces(records, [0], [16])
    assert "no access" in str(read_piece(records, piece, [16])[0])


@pytest.mark.parametrize(
    ("uri", "on_gpu", "expected"), [("/pictures/1.jpg", False, 1), ("/pictures/1.jpg", True, 4), ("s3://a/1.jpg", False, 4)]
)
def test_more_threads_read_where_they_wait_for_a_network_or_feed_a_gpu(
    uri: str, on_gpu: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "is_on_disk", lambda uri: "://" not in uri)
    assert readers.count_readers([{"uri": uri}], on_gpu=on_gpu) == expected
