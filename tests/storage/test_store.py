"""Manifest, model bundles, score store and file systems: what is refused, and what survives."""

import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from storage import filesystems
from storage.datasets.folder import FolderSource, SourceError, list_folder
from storage.manifest import ManifestError, read_manifest, sample_id, validate_manifest, write_manifest
from storage.models import Bundle, BundleError, read_bundle, write_bundle
from storage.scores import FAILED, SCORED, Failure, ScoreStore, ScoreStoreError, create_store, open_store

ROW = {"uri": "a.png", "sha256": "00", "dataset": "d", "subject_id": "s", "label": 0, "split": "train"}
BOX = {"level": 0, "x_px": 0, "y_px": 0, "width_px": 4, "height_px": 4}


def rows(**changes: object) -> pd.DataFrame:
    return pd.DataFrame([{"sample_id": "one", **ROW, **BOX}, {"sample_id": "two", **ROW, **BOX, **changes}])


@pytest.mark.parametrize(
    ("change", "column"),
    [({"label": 3}, "label"), ({"split": "tset"}, "split"), ({"sample_id": "one"}, "sample_id"), ({"subject_id": ""}, "subject_id")],
)
def test_a_bad_row_is_refused_with_its_row_and_column(change: dict[str, object], column: str) -> None:
    with pytest.raises(ManifestError, match=rf"row \d, column '{column}'"):
        validate_manifest(rows(**change))


def test_unknown_and_missing_columns_are_named() -> None:
    with pytest.raises(ManifestError, match=r"unknown manifest columns.*labels"):
        validate_manifest(rows().assign(labels=1))
    with pytest.raises(ManifestError, match=r"missing.*uri"):
        validate_manifest(rows().drop(columns="uri"))


def test_a_manifest_is_read_back_and_another_content_is_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "manifest.parquet")
    digest = write_manifest(uri, rows(label=None))
    table = read_manifest(uri, digest=digest)
    assert table["label"].tolist()[0] == 0
    assert table["label"].isna().tolist() == [False, True]
    write_manifest(uri, rows())
    with pytest.raises(ManifestError, match="not the manifest this was made for"):
        read_manifest(uri, digest=digest)


def test_sample_id_is_of_content_and_box() -> None:
    assert sample_id("a", **BOX) == sample_id("a", **BOX)
    assert len({sample_id("a", **BOX), sample_id("b", **BOX), sample_id("a", **{**BOX, "x_px": 1})}) == 3


def bundle() -> Bundle:
    return Bundle(tensors={"weight": np.arange(4, dtype=np.float32)}, config={"kind": "ae"}, card={"seed": 0})


def test_a_bundle_is_read_back(tmp_path: Path) -> None:
    digest = write_bundle(str(tmp_path), bundle())
    read = read_bundle(str(tmp_path), digest=digest)
    np.testing.assert_array_equal(read.tensors["weight"], [0, 1, 2, 3])
    assert (read.config, read.card) == ({"kind": "ae"}, {"seed": 0})
    with pytest.raises(BundleError, match="another model"):
        read_bundle(str(tmp_path), digest="0" * 64)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "card.json"])
def test_a_bundle_with_one_changed_byte_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write_bundle(str(tmp_path), bundle())
    content = bytearray((tmp_path / name).read_bytes())
    content[-2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        read_bundle(str(tmp_path))


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_place_of_safetensors_is_refused_and_never_executed(tmp_path: Path) -> None:
    import hashlib
    import json

    write_bundle(str(tmp_path / "b"), bundle())
    content = pickle.dumps(Trap(tmp_path / "executed"))
    (tmp_path / "b" / "model.safetensors").write_bytes(content)
    checksums = json.loads((tmp_path / "b" / "checksums.json").read_text())
    (tmp_path / "b" / "checksums.json").write_text(json.dumps(checksums | {"model.safetensors": hashlib.sha256(content).hexdigest()}))
    with pytest.raises(BundleError, match="not a safetensors file"):
        read_bundle(str(tmp_path / "b"))
    assert not (tmp_path / "executed").exists()


def test_an_incomplete_bundle_is_refused(tmp_path: Path) -> None:
    write_bundle(str(tmp_path), bundle())
    (tmp_path / "checksums.json").unlink()
    with pytest.raises(BundleError, match="no complete model bundle"):
        read_bundle(str(tmp_path))


def store_at(uri: str, **attributes: object) -> ScoreStore:
    return create_store(uri, rows=10, map_size_px=8, shard_rows=4, attributes={"model_digest": "m", **attributes})


def write(store: ScoreStore, shard: int, failed: tuple[int, ...] = ()) -> None:
    span = store.rows_of(shard)
    image, maps = np.arange(len(span), dtype=np.float32), np.ones((len(span), 8, 8), np.float16)
    for row in failed:
        image[row - span.start], maps[row - span.start] = np.nan, np.nan
    store.write_shard(shard, image=image, maps=maps, failures=[Failure(row, f"s{row}", "damaged") for row in failed])


def test_only_whole_shards_are_done(tmp_path: Path) -> None:
    uri = str(tmp_path / "s.zarr")
    store = store_at(uri)
    assert store.pending_shards() == [0, 1, 2]
    write(store, 1)
    write(store, 2)
    assert store_at(uri).pending_shards() == [0]
    (tmp_path / "s.zarr" / "status" / "c" / "1").unlink()  # killed between the maps and the status
    assert open_store(uri).pending_shards() == [0, 1]
    (tmp_path / "s.zarr" / "anomaly_map" / "c" / "2" / "0" / "0").unlink()
    assert open_store(uri).pending_shards() == [0, 1, 2]


def test_failures_keep_their_reasons_and_their_shard_on_disk(tmp_path: Path) -> None:
    store = store_at(str(tmp_path / "s.zarr"))
    write(store, 2, failed=(8, 9))  # nothing but NaN
    assert store.pending_shards() == [0, 1]
    assert store.status()[8:].tolist() == [FAILED, FAILED]
    assert store.failures()[["row", "sample_id", "reason"]].to_numpy().tolist() == [[8, "s8", "damaged"], [9, "s9", "damaged"]]
    write(store, 2, failed=(9,))
    assert store.status()[8:].tolist() == [SCORED, FAILED]


def test_a_store_of_another_model_is_refused_with_both_digests(tmp_path: Path) -> None:
    uri = str(tmp_path / "s.zarr")
    store_at(uri)
    with pytest.raises(ScoreStoreError, match="model_digest: this run has other, the store m"):
        store_at(uri, model_digest="other")


def test_a_scored_row_without_a_number_is_refused(tmp_path: Path) -> None:
    store = store_at(str(tmp_path / "s.zarr"))
    for image, maps in ((np.nan, 1), (1, np.inf)):
        with pytest.raises(ScoreStoreError, match="scored row"):
            store.write_shard(2, image=np.full(2, image, np.float32), maps=np.full((2, 8, 8), maps, np.float16), failures=[])
    assert 2 in store.pending_shards()


def test_a_store_that_was_cut_short_at_creation_is_made_again(tmp_path: Path) -> None:
    import zarr

    zarr.open_group(str(tmp_path / "s.zarr"), mode="w", zarr_format=3)
    assert store_at(str(tmp_path / "s.zarr")).pending_shards() == [0, 1, 2]


def test_a_full_disk_leaves_the_old_file_and_no_half_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    filesystems.write_bytes(str(target), b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        filesystems.write_bytes(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_an_object_store_is_an_equal_place(monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "ENDPOINT_URL": f"http://{host}:{port}",
            "ACCESS_KEY_ID": "k",
            "SECRET_ACCESS_KEY": "s",
            "DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        boto3.client("s3").create_bucket(Bucket="archive")
        filesystems.write_bytes("s3://archive/a/b.txt", b"content")
        assert filesystems.list_files("s3://archive/a") == ["s3://archive/a/b.txt"]
        digest = write_manifest("s3://archive/manifest.parquet", rows())
        assert len(read_manifest("s3://archive/manifest.parquet", digest=digest)) == 2
        store = store_at("s3://archive/s.zarr")
        write(store, 2, failed=(9,))
        again = open_store("s3://archive/s.zarr")
        assert again.pending_shards() == [0, 1]
        assert again.status().tolist() == [0] * 8 + [SCORED, FAILED]
        np.testing.assert_array_equal(again.read_maps(range(8, 9)), np.ones((1, 8, 8), np.float16))
    finally:
        server.stop()


def test_a_folder_takes_labels_from_subfolders_and_masks_by_name(pictures: Path) -> None:
    items = list_folder(FolderSource(path=str(pictures)))
    assert [item.label for item in items] == [0] * 12 + [1] * 6
    assert all((item.mask_uri is not None) == (item.label == 1) for item in items)


def test_the_folder_itself_as_normal_does_not_swallow_its_subfolders(pictures: Path) -> None:
    (pictures / "normal" / "picture-000.png").rename(pictures / "top.png")
    items = list_folder(FolderSource(path=str(pictures), normal="."))
    assert "masks" not in {Path(item.uri).parent.name for item in items}
    assert {item.label for item in items if Path(item.uri).parent.name == "abnormal"} == {1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png,7,s,,", "line 2: label is '7'"),
        ("a.png,0,s,tset,", "line 2: split is 'tset'"),
        ("a.png,0,s,train,half", "line 2: spacing_um is 'half'"),
        (",0,s,,", "line 2: uri is empty"),
    ],
)
def test_a_bad_line_of_a_csv_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(f"uri,label,subject_id,split,spacing_um\n{line}\n")
    with pytest.raises(SourceError, match=message):
        list_folder(FolderSource(path=str(tmp_path / "a.csv")))


def test_a_csv_is_read_with_paths_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("uri,label,subject_id\npictures/a.png,1,anna\n/abs/b.png,,\n")
    first, second = list_folder(FolderSource(path=str(tmp_path / "a.csv")))
    assert (first.uri, first.label, first.subject_id) == (str(tmp_path / "pictures" / "a.png"), 1, "anna")
    assert (second.uri, second.label, second.subject_id) == ("/abs/b.png", None, "b")


def test_two_masks_of_one_name_are_refused(pictures: Path) -> None:
    (pictures / "masks" / "picture-012.jpg").write_bytes(b"")
    with pytest.raises(SourceError, match="two masks are named 'picture-012'"):
        list_folder(FolderSource(path=str(pictures)))
