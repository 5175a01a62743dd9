"""A bucket that stalls, is overloaded or refuses: both of its clients go on, or say what is wrong."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fsspec
import numpy as np
import pytest

from storage import conditional, filesystems, object_stores
from storage.scores import create_store, open_store
from tests.servers import s3_server

pytestmark = pytest.mark.slow

CONTENT = b"what is in it"


class FaultyServer(ThreadingHTTPServer):
    """Keeps what is put; `faults` come first, one a request: a status to answer, or "stall" for silence until the end."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults: list[Any] = []
        self.files: dict[str, bytes] = {}
        self.ended = threading.Event()
        self.lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def _begin(self) -> bool:
        """Whether to answer as asked."""
        with self.server.lock:
            fault = self.server.faults.pop(0) if self.server.faults else None
        if fault == "stall":
            self.server.ended.wait()
            self.close_connection = True
            return False
        if fault is not None:
            self._answer(fault, b"<Error><Code>Fault</Code><Message>as asked</Message></Error>")
            return False
        return True

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self._begin():
            found = path in self.server.files
            self._answer(200 if found else 404, self.server.files.get(path, b"<Error><Code>NoSuchKey</Code></Error>"))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self._begin():
            self.server.files[self.path.partition("?")[0]] = content
            self._answer(200, b"")

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"tag"')
        self.send_header("Last-Modified", "Sat, 21 Nov 2026 12:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    server = FaultyServer()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "3",
    }.items():
        monkeypatch.setenv(name, value)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.files["/archive/file"] = CONTENT
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()
    thread.join()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize("faults", [["stall"], [503, 503, 503], [500], ["stall", 503]])
def test_both_clients_read_a_file_although_the_server_stalls_or_is_overloaded(server: FaultyServer, faults: list[Any]) -> None:
    for read in (filesystems.read_bytes, lambda uri: conditional.read(uri)[0]):
        server.faults[:] = faults
        assert read("s3://archive/file") == CONTENT
        assert not server.faults


@pytest.mark.parametrize("faults", [[503, 503, 503], [500]])
def test_a_file_is_written_although_the_server_is_overloaded(server: FaultyServer, faults: list[Any]) -> None:
    server.faults[:] = faults
    filesystems.write_bytes("s3://archive/new", b"new")
    assert server.files["/archive/new"] == b"new"


def test_who_is_refused_is_told_so_at_once_by_both_clients(server: FaultyServer) -> None:
    for read in (filesystems.read_bytes, conditional.read):
        server.faults[:] = [403]
        with pytest.raises(PermissionError, match="gives no access"):
            read("s3://archive/file")
        assert not server.faults


def test_without_credentials_the_place_and_the_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "/none", "AWS_CONFIG_FILE": "/none"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PermissionError, match=r"s3://archive/one: no credentials; set AWS_ACCESS_KEY_ID"):
        object_stores.open_bucket("s3://archive/one")


def test_a_server_that_is_gone_is_a_connection_error_and_a_shard_waits_for_it(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_stores, "_RETRIED_S", 1)
    object_stores._open.cache_clear()
    store = create_store("s3://archive/scores", rows=2, map_size_px=None, shard_rows=2, attributes={})
    server.faults[:] = [503] * 40
    with pytest.raises(ConnectionError, match="does not answer"):
        store.write_shard(0, image=np.zeros(2, np.float32), maps=None, failures=[], patience_s=0)
    assert server.faults
    store.write_shard(0, image=np.zeros(2, np.float32), maps=None, failures=[])
    assert not server.faults
    assert open_store("s3://archive/scores").read_record(0)["scored"] == 2
    object_stores._open.cache_clear()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running.bucket


@pytest.mark.parametrize("name", ["a b/c d.json", "größe/µ.json", "50%/a+b#c.json", "a%20b.json"])
def test_files_of_any_name_are_the_same_to_both_clients_of_a_bucket(bucket: str, name: str) -> None:
    uri = f"{bucket}/names/{name}"
    filesystems.write_bytes(uri, b"content")
    assert filesystems.read_bytes(uri) == b"content"
    assert fsspec.filesystem("s3").cat_file(uri) == b"content"
    assert filesystems.list_sizes(f"{bucket}/names")[name] == 7
    assert uri in filesystems.list_files(f"{bucket}/names")
    assert filesystems.settle(uri) == 7
