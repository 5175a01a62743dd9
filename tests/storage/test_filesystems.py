"""Local folders, fsspec's memory and, slowly, a real S3 endpoint behind the same functions."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as arrow
import pytest

from storage import filesystems
from storage.filesystems import FingerprintBook, join, list_files, list_folders, read_book, read_bytes, write_book, write_bytes
from storage.manifest import read_manifest, sample_id, write_manifest
from storage.models import Bundle, read_bundle, write_bundle
from storage.scores import Failure, create_store, open_store


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty folder's URI, local or in an object store."""
    if request.param == "local":
        yield str(tmp_path)
        return
    yield "memory://normascope-tests/root"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URIs of the files that were read to be hashed."""
    uris: list[str] = []
    real = filesystems.sha256_of

    def sha256_of(uri: str) -> str:
        uris.append(uri)
        return real(uri)

    monkeypatch.setattr(filesystems, "sha256_of", sha256_of)
    return uris


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_write_that_fails_midway_leaves_the_old_content_and_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, before: bytes | None
) -> None:
    target = tmp_path / "file"
    if before is not None:
        target.write_bytes(before)

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", full) if step == "fsync" else (Path, "replace", full)))
    with pytest.raises(OSError, match="No space left"):
        write_bytes(str(target), b"new content")
    assert [path.name for path in tmp_path.iterdir()] == ([] if before is None else ["file"])
    assert before is None or target.read_bytes() == before


def test_a_write_replaces_the_old_content_and_makes_the_folders(root: str) -> None:
    uri = join(root, "a", "b", "file")
    write_bytes(uri, b"a long old content")
    write_bytes(uri, b"new")
    assert read_bytes(uri) == b"new"
    assert list_files(root) == [uri]


def test_list_files_goes_down_in_order_and_skips_hidden_and_partial_files(root: str) -> None:
    for name in ("b.png", "a/z.png", "a/.hidden", ".git/config", "c.png.123.partial"):
        write_bytes(join(root, name), b"x")
    assert list_files(root) == [join(root, "a/z.png"), join(root, "b.png")]
    assert [read_bytes(uri) for uri in list_files(root)] == [b"x", b"x"]


def test_list_files_looks_into_a_folder_below_a_hidden_one(tmp_path: Path) -> None:
    write_bytes(str(tmp_path / ".cache" / "pictures" / "a.png"), b"x")
    assert list_files(str(tmp_path / ".cache" / "pictures")) == [str(tmp_path / ".cache" / "pictures" / "a.png")]


def test_list_files_of_a_file_is_the_file_and_of_nothing_none(tmp_path: Path) -> None:
    write_bytes(str(tmp_path / "a.png"), b"x")
    assert list_files(str(tmp_path / "a.png")) == [str(tmp_path / "a.png")]
    assert list_files(str(tmp_path / "absent")) == []


def test_list_files_follows_links_to_files_and_none_to_folders(tmp_path: Path) -> None:
    write_bytes(str(tmp_path / "elsewhere" / "a.png"), b"x")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "here" / "folder").symlink_to(tmp_path)
    assert list_files(str(tmp_path / "here")) == [str(tmp_path / "here" / name) for name in ("folder", "link.png")]


def test_list_folders_names_only_folders_right_below(root: str) -> None:
    for name in ("b/inner/x", "a/x", "file"):
        write_bytes(join(root, name), b"x")
    assert [filesystems.name_of(uri) for uri in list_folders(root)] == ["a", "b"]
    assert list_folders(join(root, "absent")) == []


def test_json_and_tables_come_back_as_written(root: str) -> None:
    table = pd.DataFrame({"row": [1, 2], "reason": ["torn", None]})
    filesystems.write_table(join(root, "t.parquet"), table)
    filesystems.write_json(join(root, "v.json"), {"b": 1, "a": [None, "µm"]})
    filesystems.write_json(join(root, "w.json"), {"a": [None, "µm"], "b": 1})
    pd.testing.assert_frame_equal(filesystems.read_table(join(root, "t.parquet")), table, check_dtype=False)
    assert filesystems.read_json(join(root, "v.json")) == {"a": [None, "µm"], "b": 1}
    assert read_bytes(join(root, "v.json")) == read_bytes(join(root, "w.json"))  # equal values are equal files


def test_absolute_and_as_link_change_local_paths_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert filesystems.absolute("x") == filesystems.absolute(f"file://{tmp_path}/x") == str(tmp_path / "x")
    assert filesystems.as_link(str(tmp_path / "a b")) == f"file://{tmp_path}/a%20b"
    assert filesystems.absolute("memory://x/") == filesystems.as_link("memory://x") == "memory://x"


def test_sha256_is_the_known_digest_of_a_known_content(root: str) -> None:
    write_bytes(join(root, "abc"), b"abc")
    assert filesystems.sha256_of(join(root, "abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_book_is_sorted_however_long_and_empty_where_there_is_none(root: str) -> None:
    columns = arrow.schema([("name", arrow.large_string()), ("number", arrow.int64())])
    uri, order = join(root, "books", "a.parquet"), np.random.default_rng(0).permutation(40_000)
    assert read_book(uri, columns) == columns.empty_table()
    write_book(uri, arrow.table([[f"{number:05d}" for number in order], order], schema=columns), by="name")
    back = read_book(uri, columns)
    assert back["number"].to_pylist() == list(range(40_000))
    assert back.schema == columns


def test_the_fingerprint_book_reads_only_changed_files_again(tmp_path: Path, reads: list[str]) -> None:
    changed, same, book_uri = (str(tmp_path / name) for name in ("changed", "same", "book.parquet"))
    for uri in (changed, same):
        write_bytes(uri, b"old")
    book = FingerprintBook(book_uri)
    before = [book.fingerprint(uri) for uri in (changed, same)]
    book.save()
    write_bytes(changed, b"new")  # of the same size
    os.utime(changed, ns=(1, 1))
    reads.clear()
    reopened = FingerprintBook(book_uri)
    after = [reopened.fingerprint(uri) for uri in (changed, same)]
    assert reads == [changed]
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_the_fingerprint_book_reads_always_where_a_store_stamps_nothing(reads: list[str]) -> None:
    uri = "memory://normascope-tests/unstamped"
    book = FingerprintBook("memory://normascope-tests/book.parquet")
    write_bytes(uri, b"old")
    before = book.fingerprint(uri)
    write_bytes(uri, b"new")
    assert book.fingerprint(uri) != before
    assert len(reads) == 2


def test_the_fingerprint_book_refuses_a_folder_and_nothing(tmp_path: Path) -> None:
    book = FingerprintBook(str(tmp_path / "book.parquet"))
    with pytest.raises(IsADirectoryError, match="expected a file"):
        book.fingerprint(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        book.fingerprint(str(tmp_path / "absent"))


def test_the_fingerprint_book_gives_digests_and_errors_in_the_order_it_was_asked(tmp_path: Path, reads: list[str]) -> None:
    uris = [str(tmp_path / name) for name in ("b", "absent", "a", "c")]
    for uri in (uris[0], uris[2], uris[3]):
        write_bytes(uri, uri.encode())
    book_uri, told = str(tmp_path / "book.parquet"), list[int]()
    book = FingerprintBook(book_uri)
    assert book.fingerprint(uris[3]) == filesystems.sha256_of(uris[3])
    reads.clear()
    found = book.fingerprint_all(uris, advance=told.append)
    assert reads == [uris[0], uris[2]]
    assert sum(told) == len(uris)
    assert isinstance(found[1], FileNotFoundError)
    book.save()
    again = FingerprintBook(book_uri).fingerprint_all(uris[::-1])
    assert len(reads) == 2
    assert [again[3], again[1], again[0]] == [found[0], found[2], found[3]]
    assert filesystems.read_table(book_uri)["uri"].tolist() == sorted([uris[0], uris[2], uris[3]])
    assert book.fingerprint_all([]) == []


def test_a_folder_of_many_files_in_an_object_store_is_listed_and_not_asked_file_by_file(monkeypatch: pytest.MonkeyPatch) -> None:
    many, few = ([f"memory://normascope-tests/{folder}/{n}" for n in range(count)] for folder, count in (("many", 30), ("few", 3)))
    for uri in (*many, *few):
        write_bytes(uri, uri.encode())
    asked, ask = list[str](), filesystems._ask
    monkeypatch.setattr(filesystems, "_ask", lambda uri: asked.append(uri) or ask(uri))
    absent = "memory://normascope-tests/many/absent"
    *found, lost = FingerprintBook("memory://normascope-tests/book.parquet").fingerprint_all([*many, *few, absent])
    assert asked == [*few, absent]
    assert found == [filesystems.sha256_of(uri) for uri in (*many, *few)]
    assert isinstance(lost, FileNotFoundError)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of an S3 endpoint on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    fs = fsspec.filesystem("s3")
    fs.mkdir("archive")
    yield "s3://archive"
    type(fs).clear_instance_cache()
    server.stop()


@pytest.mark.slow
def test_bytes_manifest_bundle_and_scores_live_on_s3(bucket: str) -> None:
    write_bytes(join(bucket, "a", "file"), b"content")
    assert list_files(bucket) == [join(bucket, "a/file")]
    assert read_bytes(join(bucket, "a", "file")) == b"content"
    assert list_folders(bucket) == [join(bucket, "a")]

    book = FingerprintBook(join(bucket, "book.parquet"))
    before = book.fingerprint(join(bucket, "a", "file"))
    fsspec.filesystem("s3", skip_instance_cache=True).pipe_file("archive/a/file", b"CONTENT")  # as another process would
    assert book.fingerprint(join(bucket, "a", "file")) != before

    many = [join(bucket, "many", f"{n:02d}") for n in range(25)]
    for uri in many:
        write_bytes(uri, uri.encode())
    assert book.fingerprint_all(many) == [filesystems.sha256_of(uri) for uri in many]
    book.save()
    fsspec.filesystem("s3", skip_instance_cache=True).pipe_file("archive/many/03", b"0" * len(many[3]))
    after = FingerprintBook(join(bucket, "book.parquet"))
    with pytest.MonkeyPatch.context() as patch:
        read: list[str] = []
        patch.setattr(filesystems, "sha256_of", lambda uri: read.append(uri) or "read")
        after.fingerprint_all(many)
        assert [after.fingerprint(uri) for uri in many[:2]] == book.fingerprint_all(many[:2])  # a listing and a question give one stamp
    assert read == [many[3]]

    row = {"uri": "x", "sha256": "0", "dataset": "d", "subject_id": "s", "level": 0, "x_px": 0, "y_px": 0, "width_px": 4, "height_px": 4}
    table = pd.DataFrame([{**row, "sample_id": sample_id("0", level=0, x_px=0, y_px=0, width_px=4, height_px=4)}])
    digest = write_manifest(join(bucket, "m.parquet"), table)
    assert read_manifest(join(bucket, "m.parquet"), digest=digest)["uri"].tolist() == ["x"]

    digest = write_bundle(join(bucket, "model"), Bundle(tensors={"w": np.arange(3.0)}, config={"kind": "x"}, card={}))
    assert read_bundle(join(bucket, "model"), digest=digest).tensors["w"].tolist() == [0, 1, 2]

    uri = join(bucket, "scores")
    store = create_store(uri, rows=5, map_size_px=4, shard_rows=2, attributes={"model_digest": "m"})
    assert store.pending_shards() == [0, 1, 2]
    maps = np.arange(32, dtype=np.float16).reshape(2, 4, 4)
    store.write_shard(1, image=np.float32([1, np.nan]), maps=maps, failures=[Failure(row=3, sample_id="s", reason="torn")])
    assert store.pending_shards() == [0, 2]  # the listing of before is not remembered
    reopened = open_store(uri, expected={"model_digest": "m"})
    np.testing.assert_array_equal(reopened.read_maps(range(2, 4)), maps)
    assert reopened.failures()["reason"].tolist() == ["torn"]
    fsspec.filesystem("s3", skip_instance_cache=True).rm("archive/scores/anomaly_map/c.1.0.0")
    assert store.pending_shards() == [0, 1, 2]
