"""The archive's own manifest: it only grows, old rows keep their place, and a kill at any write leaves one that opens."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from storage import archives, conditional, filesystems
from storage.archives import ArchiveError, append_manifest, open_archive
from storage.manifest import ManifestError, iterate_manifest, read_manifest, sample_id, write_manifest
from storage.scores import create_store
from tests.servers import S3Server, s3_server

BOX = {"level": 0, "x_px": 0, "y_px": 0, "width_px": 8, "height_px": 8}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "PART_ROWS", 4)


def table_of(numbers: Any) -> pd.DataFrame:
    rows = [
        {
            "sample_id": sample_id(f"{number:064d}", **BOX),  # type: ignore[arg-type]
            "uri": f"/pictures/{number}.png",
            "sha256": f"{number:064d}",
            "dataset": "clinic",
            "subject_id": f"subject-{number}",
            "label": None if number % 3 == 2 else number % 3,
            "spacing_um": 0.5 if number % 2 else None,
            "split": "archive",
            **BOX,
        }
        for number in numbers
    ]
    return pd.DataFrame(rows)


def manifest_of(folder: Path | str, numbers: Any) -> tuple[str, str]:
    uri = filesystems.join(str(folder), f"manifest-{'-'.join(map(str, numbers))[:40]}.parquet")
    return uri, write_manifest(uri, table_of(numbers))


def numbers_in(uri: str) -> list[int]:
    rows = open_archive(uri).iterate_rows(["uri"])
    return [int(Path(picture).stem) for part in rows for picture in part["uri"]]


def files_in(uri: str) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(Path(uri, "rows").glob("*.parquet"))}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archives, "PART_ROWS", 4)
        append_manifest(str(folder / "archive"), *manifest_of(folder, range(10)))
    return folder / "archive"


@pytest.fixture
def uri(tmp_path: Path, template: Path) -> str:
    """An archive of ten samples."""
    return str(shutil.copytree(template, tmp_path / "archive"))


def test_rows_come_back_as_the_manifest_holds_them(tmp_path: Path, uri: str) -> None:
    expected = read_manifest(*manifest_of(tmp_path, range(10))[:1])
    archive = open_archive(uri)
    assert archive.rows == 10
    assert [part["rows"] for part in archive.parts] == [4, 4, 2]
    for first, stop in ((0, 10), (3, 9), (8, 10), (4, 8), (5, 6), (7, 7)):
        pd.testing.assert_frame_equal(archive.read_rows(first, stop), expected.iloc[first:stop])
    pd.testing.assert_frame_equal(pd.concat(archive.iterate_rows()), expected)
    assert [part.index.tolist() for part in archive.iterate_rows(["label"])] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    with pytest.raises(ArchiveError, match="holds rows 0 to 9, asked for 5 to 10"):
        archive.read_rows(5, 11)


def test_two_parts_stay_in_memory(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, read = open_archive(uri), list[str]()
    real = filesystems.read_bytes
    monkeypatch.setattr(filesystems, "read_bytes", lambda uri: read.append(uri) or real(uri))
    for first, stop in ((0, 2), (2, 6), (6, 8), (1, 5)):
        archive.read_rows(first, stop)
    assert len(read) == 2
    archive.read_rows(9, 10)
    archive.read_rows(4, 6)
    assert len(read) == 3
    archive.read_rows(0, 1)
    assert len(read) == 4


def test_a_superset_in_another_order_is_appended_at_the_end_and_nothing_is_touched(tmp_path: Path, uri: str) -> None:
    before, digest = files_in(uri), open_archive(uri).digest
    numbers = [15, 3, 11, 0, 1, 9, 12, 2, 4, 5, 14, 6, 7, 8, 13, 10, 16]
    archive = append_manifest(uri, *manifest_of(tmp_path, numbers))
    assert archive.rows == 17
    assert archive.digest == open_archive(uri).digest != digest
    assert numbers_in(uri) == [*range(10), 15, 11, 12, 14, 13, 10, 16]
    after = files_in(uri)
    assert {name: after[name] for name in before} == before
    assert [part["first"] for part in archive.parts] == [0, 4, 8, 10, 14]
    assert [manifest["rows"] for manifest in archive.manifests] == [10, 17]


def test_the_manifest_that_was_appended_last_is_not_read_again(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = manifest_of(tmp_path, range(10))
    monkeypatch.setattr(filesystems, "sha256_of", lambda uri: pytest.fail(f"{uri} was read"))
    assert append_manifest(uri, *manifest).rows == 10


def test_old_rows_keep_their_content_whatever_a_later_manifest_says_of_them(tmp_path: Path, uri: str) -> None:
    changed = table_of(range(11)).assign(dataset="another")
    archive = append_manifest(uri, str(tmp_path / "changed.parquet"), write_manifest(str(tmp_path / "changed.parquet"), changed))
    assert archive.read_rows(0, 11)["dataset"].tolist() == ["clinic"] * 10 + ["another"]


def test_a_manifest_that_lacks_old_samples_is_refused_with_the_first_of_them(tmp_path: Path, uri: str) -> None:
    ids = table_of(range(10))["sample_id"]
    before = conditional.read(f"{uri}/archive.json")
    with pytest.raises(ArchiveError, match=rf"lacks {ids[3]} \(row 3\), {ids[7]} \(row 7\) of its 10 samples"):
        append_manifest(uri, *manifest_of(tmp_path, [0, 1, 2, 4, 5, 6, 8, 9, 20, 21]))
    with pytest.raises(ArchiveError, match=r"\(row 4\) and 5 more of its 10"):
        append_manifest(uri, *manifest_of(tmp_path, [20]))
    assert conditional.read(f"{uri}/archive.json") == before


def test_an_archive_of_no_sample_is_not_made(tmp_path: Path) -> None:
    empty = str(tmp_path / "empty.parquet")
    digest = write_manifest(empty, table_of([0]).iloc[:0])
    with pytest.raises(ArchiveError, match="holds no sample"):
        append_manifest(str(tmp_path / "archive"), empty, digest)
    with pytest.raises(ArchiveError, match="no archive at"):
        open_archive(str(tmp_path / "archive"))


def test_a_manifest_of_another_digest_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ManifestError, match="expected digest other, found"):
        append_manifest(uri, manifest_of(tmp_path, range(11))[0], "other")


class _Killed(BaseException):
    pass


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make the nth write from now on kill."""

    def arm(step: int) -> None:
        steps = iter(range(1000))

        def killed(real: Any) -> Any:
            def call(*arguments: Any) -> Any:
                if next(steps) == step:
                    raise _Killed
                return real(*arguments)

            return call

        for module, name in ((filesystems, "write_bytes"), (conditional, "create"), (conditional, "replace")):
            monkeypatch.setattr(module, name, killed(getattr(module, name)))

    yield arm
    monkeypatch.undo()


@pytest.mark.parametrize("step", range(5))
def test_a_kill_at_any_write_of_an_append_leaves_an_archive_that_opens_and_is_appended_again(
    tmp_path: Path, uri: str, kill_at: Any, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    before, manifest = files_in(uri), manifest_of(tmp_path, range(19))  # three parts, archive.json and its file
    digest = open_archive(uri).digest
    kill_at(step)
    with pytest.raises(_Killed):
        append_manifest(uri, *manifest)
    monkeypatch.undo()
    monkeypatch.setattr(archives, "PART_ROWS", 4)
    assert open_archive(uri, digest=digest).rows == 10
    assert numbers_in(uri) == list(range(10))
    assert append_manifest(uri, *manifest).rows == 19
    assert numbers_in(uri) == list(range(19))
    after = files_in(uri)
    assert {name: after[name] for name in before} == before
    assert len(after) == 6


@pytest.mark.parametrize("step", range(5))
def test_a_kill_at_any_write_of_the_first_append_leaves_no_archive(
    tmp_path: Path, kill_at: Any, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    manifest, uri = manifest_of(tmp_path, range(10)), str(tmp_path / "archive")
    kill_at(step)
    with pytest.raises(_Killed):
        append_manifest(uri, *manifest)
    monkeypatch.undo()
    with pytest.raises(ArchiveError, match="no archive at"):
        open_archive(uri)
    assert append_manifest(uri, *manifest).rows == 10


def test_of_two_that_append_at_once_one_is_told_and_the_archive_is_the_others(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = conditional.replace

    def replace(*arguments: Any) -> str:
        monkeypatch.setattr(conditional, "replace", real)
        append_manifest(uri, *manifest_of(tmp_path, [*range(10), 30, 31]))
        return real(*arguments)

    monkeypatch.setattr(conditional, "replace", replace)
    with pytest.raises(conditional.ConflictError, match="replaced by another process"):
        append_manifest(uri, *manifest_of(tmp_path, [*range(10), 20, 21]))
    assert numbers_in(uri) == [*range(10), 30, 31]


def test_a_part_that_was_changed_or_is_gone_is_named_with_its_rows(uri: str) -> None:
    path = Path(uri) / "rows" / next(name for name in files_in(uri) if name.startswith("part-000000000004"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(ArchiveError, match=r"rows 4 to 7 of the archive were changed: .*part-000000000004"):
        open_archive(uri).read_rows(3, 6)
    path.unlink()
    with pytest.raises(ArchiveError, match="rows 4 to 7 of the archive are missing"):
        open_archive(uri).read_rows(3, 6)
    assert open_archive(uri).read_rows(8, 10)["uri"].tolist() == ["/pictures/8.png", "/pictures/9.png"]


def test_sample_ids_whose_hashes_are_the_same_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, keys = pd.util.hash_array, list[str]()

    def colliding(samples: Any, *, hash_key: str, categorize: bool) -> np.ndarray:
        keys.append(hash_key)
        hashes = real(samples, hash_key=hash_key, categorize=categorize)
        return hashes % 8 if hash_key.endswith("0") else hashes

    monkeypatch.setattr(pd.util, "hash_array", colliding)
    uri = str(tmp_path / "archive")
    append_manifest(uri, *manifest_of(tmp_path, range(10)))
    append_manifest(uri, *manifest_of(tmp_path, range(12)))
    assert numbers_in(uri) == list(range(12))
    assert len(set(keys)) == 2


def test_a_sample_that_a_manifest_holds_twice_is_refused_with_its_rows(tmp_path: Path, uri: str) -> None:
    table = pd.concat([table_of(range(12)), table_of([11]).assign(uri="elsewhere")], ignore_index=True)
    path = str(tmp_path / "twice.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("storage.manifest.validate_manifest", lambda table: table)  # written by somebody else
        digest = write_manifest(path, table)
    with pytest.raises(ManifestError, match="rows 11 and 12 hold the same sample"):
        append_manifest(uri, path, digest)


def test_a_manifest_is_read_in_batches_of_any_size(tmp_path: Path) -> None:
    path, _ = manifest_of(tmp_path, range(10))
    assert [len(batch) for batch in iterate_manifest(path, rows=4)] == [4, 4, 2]
    assert next(iterate_manifest(path, columns=["uri"])).schema.names == ["uri"]


def test_slots_are_the_versions_of_the_score_stores_that_are_there(uri: str) -> None:
    archive = open_archive(uri)
    assert archive.slots() == {}
    for slot, version in (("ae", 1), ("ae", 10), ("ae", 2), ("patchcore", 1)):
        store = archive.scores_uri(slot, version)
        create_store(store, rows=10, map_size_px=None, shard_rows=4, attributes={})
    Path(archive.scores_uri("ae", 3)).mkdir()
    assert archive.slots() == {"ae": [1, 2, 10], "patchcore": [1]}
    assert archive.slides_uri("ae", 2) == f"{uri}/slides/ae/v2"
    for slot in ("", "../ae", "a/b", ".hidden"):
        with pytest.raises(ArchiveError, match="cannot name a slot"):
            archive.scores_uri(slot, 1)


def test_an_archive_of_another_digest_or_schema_is_refused(uri: str) -> None:
    with pytest.raises(ArchiveError, match="has changed: expected digest another"):
        open_archive(uri, digest="another")
    path = Path(uri) / "archive.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(ArchiveError, match="schema 9, this normascope reads 1"):
        open_archive(uri)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.mark.slow
def test_an_archive_in_a_bucket_is_appended_by_one_of_two_at_once(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{server.bucket}/archives/one"
    append_manifest(uri, *manifest_of(f"{server.bucket}/manifests", range(10)))
    real = conditional.replace

    def replace(*arguments: Any) -> str:
        monkeypatch.setattr(conditional, "replace", real)
        append_manifest(uri, *manifest_of(f"{server.bucket}/manifests", [*range(10), 30, 31]))
        return real(*arguments)

    monkeypatch.setattr(conditional, "replace", replace)
    with pytest.raises(conditional.ConflictError):
        append_manifest(uri, *manifest_of(f"{server.bucket}/manifests", [*range(10), 20, 21]))
    assert numbers_in(uri) == [*range(10), 30, 31]
    assert open_archive(uri).read_rows(9, 11)["uri"].tolist() == ["/pictures/9.png", "/pictures/30.png"]
