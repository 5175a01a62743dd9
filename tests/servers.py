"""Real servers for tests: SeaweedFS, an S3 server that checks signatures, on loopback and free ports, alive as long as its context.

It can be killed in between and started again: at the same port, with what it had stored.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import fsspec
import httpx

_REGION = "us-east-1"
_READY_S = 60
_GRACE_S = 5  # after SIGTERM it takes up to 26 s to bring its data in order, which nobody will read again
_PORTS = ("master", "volume", "filer", "s3")
# what would lead requests for this machine elsewhere, or sign them with other keys
_DISTURBING = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
    *("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_REGION"),
)


class ServerFailedError(RuntimeError):
    """The server did not start; the message ends with its log."""


class _SeaweedFS:
    """The program, its data below a folder, on ports that stay the same from one start to the next."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "server.log"
        self._folder = folder
        ports = free_ports(2 * len(_PORTS))
        http, grpc = (dict(zip(_PORTS, part, strict=True)) for part in (ports[: len(_PORTS)], ports[len(_PORTS) :]))
        self.endpoint = f"http://127.0.0.1:{http['s3']}"
        self._command = _command(folder, http, grpc)
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "data").mkdir(parents=True)

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=subprocess.STDOUT, cwd=self._folder)
        _wait_until_healthy(self._process, self.endpoint, self.log)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=_GRACE_S)
            except subprocess.TimeoutExpired:
                self.kill()


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Attributes:
        endpoint: http://127.0.0.1:port.
        access_key, secret_key: of its only identity, which may do everything.
        bucket: s3:// URI of an empty bucket.
        program: its process.
    """

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str
    program: _SeaweedFS

    def kill(self) -> None:
        """SIGKILL: connections break, what was answered is kept."""
        self.program.kill()

    def start_again(self) -> None:
        """After `kill`; returns when it reads and writes again."""
        self.program.start()
        _make_bucket(self.bucket.removeprefix("s3://"))

    def environment(self, base: Mapping[str, str] | None = None, *, secret_key: str | None = None) -> dict[str, str]:
        """The environment variables of a process that works on the server; with another secret, of one that it refuses."""
        kept = {name: value for name, value in (os.environ if base is None else base).items() if name not in _DISTURBING}
        return kept | {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key or self.secret_key,
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_RETRY_MODE": "standard",
            "AWS_MAX_ATTEMPTS": "3",
        }


@contextmanager
def s3_server(folder: Path, *, bucket: str = "archive") -> Iterator[S3Server]:
    """Start SeaweedFS with its data below `folder`, make a bucket, and set this process's environment to it.

    fsspec remembers its file systems by their arguments, not by the environment they read: they are forgotten when the environment
    changes, at the start and at the end. s3fs waits 5 s for a connection and 15 s for an answer.

    Raises:
        ServerFailedError: it stopped, or does not answer within a minute.
    """
    access_key, secret_key = secrets.token_hex(8), secrets.token_hex(16)
    _write_identity(folder / "identity.json", access_key, secret_key)
    program = _SeaweedFS(folder)
    server = S3Server(program.endpoint, access_key, secret_key, f"s3://{bucket}", program)
    try:
        program.start()
        with as_client(server):
            _make_bucket(bucket)
            yield server
    finally:
        program.stop()


@contextmanager
def as_client(server: S3Server, *, secret_key: str | None = None) -> Iterator[None]:
    """This process as a client of the server, with the right secret or with another one."""
    with mock.patch.dict(os.environ, server.environment(secret_key=secret_key), clear=True):
        _forget_file_systems()
        try:
            yield
        finally:
            _forget_file_systems()
    _forget_file_systems()


def _command(folder: Path, http: Mapping[str, int], grpc: Mapping[str, int]) -> list[str]:
    return [
        str(Path(sys.executable).parent / "weed"),
        "server",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
        f"-s3.config={folder / 'identity.json'}",
        *(f"-{name}.port={port}" for name, port in http.items()),
        *(f"-{name}.port.grpc={port}" for name, port in grpc.items()),
        *(f"-{name}.localSocket={folder / name}.sock" for name in ("filer", "s3")),  # else in /tmp, named by the port alone
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-master.electionTimeout=1s",  # after a kill the only master waits that long for others before it leads
        "-master.volumeSizeLimitMB=256",
        "-volume.max=20",
        "-volume.minFreeSpace=256MiB",  # the default, a share of the disk, makes a well filled large one read-only
    ]


def _write_identity(path: Path, access_key: str, secret_key: str) -> None:
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"identities": [identity]}))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all are held until the last is found, so that they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_until_healthy(process: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    with httpx.Client(trust_env=False, timeout=5) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServerFailedError(f"SeaweedFS ended with {process.returncode}:\n{_end_of(log)}")
            try:
                if client.get(f"{endpoint}/healthz").is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    raise ServerFailedError(f"SeaweedFS at {endpoint} does not answer within {_READY_S} s:\n{_end_of(log)}")


def _make_bucket(name: str) -> None:
    """The gateway is healthy before the volume server has registered: try until a file can be written."""
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            fs = fsspec.filesystem("s3", skip_instance_cache=True)
            if not fs.exists(name):
                fs.mkdir(name)
            fs.pipe_file(f"{name}/probe", b"x")
            fs.rm_file(f"{name}/probe")
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _forget_file_systems() -> None:
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
