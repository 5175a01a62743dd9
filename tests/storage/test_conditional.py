"""Compare and swap: two real processes lose no change of each other's, on a disk and in a bucket."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import conditional, filesystems, object_stores
from storage.conditional import ConflictError
from tests.servers import S3Server, s3_server

COUNT = """
import sys
from storage import conditional
for _ in range(40):
    while True:
        content, version = conditional.read(sys.argv[1])
        try:
            conditional.replace(sys.argv[1], str(int(content) + 1).encode(), version)
            break
        except conditional.ConflictError:
            pass
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(params=["local", pytest.param("bucket", marks=pytest.mark.slow)])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where nothing is yet."""
    if request.param == "local":
        return str(tmp_path / "folder" / "pointer.json")
    return f"{request.getfixturevalue('server').bucket}/{tmp_path.name}/pointer.json"


def test_a_file_is_created_once(uri: str) -> None:
    version = conditional.create(uri, b"one")
    with pytest.raises(FileExistsError):
        conditional.create(uri, b"two")
    assert conditional.read(uri) == (b"one", version)


def test_a_file_is_replaced_by_who_has_read_what_is_there(uri: str) -> None:
    first = conditional.create(uri, b"one")
    second = conditional.replace(uri, b"two", first)
    with pytest.raises(ConflictError, match="replaced by another process"):
        conditional.replace(uri, b"three", first)
    assert conditional.read(uri) == (b"two", second)
    assert conditional.replace(uri, b"three", second) == conditional.read(uri)[1]


def test_nothing_is_read_or_replaced_where_nothing_is(uri: str) -> None:
    with pytest.raises(FileNotFoundError):
        conditional.read(uri)
    with pytest.raises(ConflictError):
        conditional.replace(uri, b"one", '"00000000000000000000000000000000"')


def test_the_lock_beside_a_file_is_not_listed(tmp_path: Path) -> None:
    conditional.create(str(tmp_path / "a.json"), b"one")
    assert filesystems.list_files(str(tmp_path)) == [str(tmp_path / "a.json")]


def test_other_places_are_refused() -> None:
    with pytest.raises(ValueError, match="only local folders and s3://"):
        conditional.create("memory://normascope-tests/a.json", b"one")


@pytest.mark.slow
def test_a_write_whose_answer_was_lost_is_known_as_our_own(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{server.bucket}/lost/pointer.json"
    bucket, path = object_stores.open_object(uri)

    class SendsTwice:
        def put(self, *arguments: Any, **options: Any) -> Any:
            bucket.writer.put(*arguments, **options)
            return bucket.writer.put(*arguments, **options)

    monkeypatch.setattr(object_stores, "open_object", lambda uri: (object_stores.Bucket(bucket.reader, SendsTwice()), path))
    version = conditional.create(uri, b"one")
    assert conditional.read(uri) == (b"one", version)
    version = conditional.replace(uri, b"two", version)
    assert conditional.read(uri) == (b"two", version)
    with pytest.raises(FileExistsError):
        conditional.create(uri, b"two")  # of the same content, and not ours


@pytest.mark.slow
def test_two_processes_lose_no_change_of_each_other(uri: str) -> None:
    conditional.create(uri, b"0")
    command = [sys.executable, "-c", COUNT, uri]
    processes = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for _ in range(2)]
    assert [process.wait(timeout=200) for process in processes] == [0, 0]
    assert conditional.read(uri)[0] == b"80"
