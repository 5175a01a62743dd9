"""What deploy/compose.yaml starts, from packages on loopback: its own commands and settings, with free ports in place of hosts."""

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.deploy.deployed import DEPLOY, ROOT, compose
from tests.servers import S3Server, free_ports, s3_server

_READY_S = 90
_GRACE_S = 30  # `normascope serve` ends the runs of its worker first
_PORTS = ("postgres:5432", "redis:6379", "server:4200", "scheduler:8786", "127.0.0.1:8787")
_SECRETS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "PREFECT_AUTH", "S3_ACCESS_KEY", "S3_SECRET_KEY")


def find_postgres() -> Path | None:
    """The folder of PostgreSQL's programs: on the path, or where Debian puts them."""
    found = shutil.which("initdb") or next(iter(sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))), None)
    return Path(found).resolve().parent if found else None


def missing_programs() -> list[str]:
    """What the machine lacks for it."""
    return [name for name, there in {"postgresql": find_postgres(), "redis-server": shutil.which("redis-server")}.items() if not there]


@dataclass
class Topology:
    """The running processes.

    Attributes:
        folder: of their logs.
        s3: the object store.
        places: address on loopback by host:port of the Compose file.
        values: of the variables that deploy/.env would hold.
    """

    folder: Path
    s3: S3Server
    places: dict[str, str]
    values: dict[str, str]
    _stack: ExitStack = field(default_factory=ExitStack)

    @property
    def api(self) -> str:
        """Of the Prefect server."""
        return f"http://{self.places['server:4200']}/api"

    def client(self) -> httpx.Client:
        """Of the Prefect API, with its password."""
        user, password = self.values["PREFECT_AUTH"].split(":")
        return httpx.Client(base_url=self.api, auth=(user, password), trust_env=False, timeout=30)

    def environment(self, service: str) -> dict[str, str]:
        """Of a process of the Compose file's service."""
        given = {name: self._fill(str(value)) for name, value in compose()["services"][service]["environment"].items()}
        own = {"PREFECT_HOME": str(self.folder / service / "prefect"), "NORMASCOPE_HOME": str(self.folder / service)}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "AWS_", "DASK_", "NORMASCOPE_"))}
        return self.s3.environment(kept) | given | own | {"OMP_NUM_THREADS": "1"}

    def run(self, service: str, command: list[str]) -> None:
        """One command in a service's environment, to its end."""
        done = subprocess.run(command, env=self.environment(service), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    def start(self, service: str, *more: str, name: str | None = None, cwd: Path = ROOT) -> None:
        """A service by the file's command and more words; it ends with the topology, by its own process id."""
        given = [*compose()["services"][service]["command"], *more]
        here = {"0.0.0.0": "127.0.0.1", "8786": self.places["scheduler:8786"].split(":")[1], "127.0.0.1:8788": "127.0.0.1:0"}
        filled = [here.get(part) or self._fill(part) for part in given]
        log = self.folder / f"{name or service}.log"
        (self.folder / service / "prefect").mkdir(parents=True, exist_ok=True)
        program = str(Path(sys.executable).with_name(filled[0]))
        self._stack.enter_context(_process([program, *filled[1:]], log, env=self.environment(service), cwd=cwd))

    def _fill(self, text: str) -> str:
        text = re.sub(r"\$\{(\w+)[^}]*\}", lambda found: self.values[found[1]], text)
        for place, address in self.places.items():
            text = text.replace(place, address)
        return text.replace("http://s3:8333", self.s3.endpoint).replace("/tls/", f"{self.folder}/tls/")


@contextmanager
def topology(folder: Path) -> Iterator[Topology]:
    """All services but the GPU worker and the one that runs flows, which is given its files first; stopped in the order of their needs."""
    with ExitStack() as stack:
        s3 = stack.enter_context(s3_server(folder / "s3", bucket="normascope"))
        places = {place: f"127.0.0.1:{port}" for place, port in zip(_PORTS, free_ports(len(_PORTS)), strict=True)}
        values = {name: secrets.token_hex(8) for name in _SECRETS}
        values |= {"PREFECT_AUTH": f"admin:{values['PREFECT_AUTH']}", "S3_ACCESS_KEY": s3.access_key, "S3_SECRET_KEY": s3.secret_key}
        running = Topology(folder, s3, places, values, _stack=stack)
        (folder / "tls").mkdir()
        subprocess.run([DEPLOY / "certificates.sh", folder / "tls"], check=True)
        stack.enter_context(_postgres(folder, values["POSTGRES_PASSWORD"], places["postgres:5432"]))
        stack.enter_context(_redis(folder, values["REDIS_PASSWORD"], places["redis:6379"]))
        running.start("server", "--port", places["server:4200"].split(":")[1])
        running.start("scheduler", "--host", "127.0.0.1")
        _wait_for(lambda: httpx.get(f"{running.api}/health", trust_env=False).is_success, "the Prefect server answers")
        running.start("services")
        for number in range(compose()["services"]["dask-worker"]["deploy"]["replicas"]):
            running.start("dask-worker", name=f"dask-worker-{number}")
        running.run("prepare", [sys.executable, "deploy/prepare.py", "s3://normascope/results"])
        _wait_for(lambda: httpx.get(f"http://{places['127.0.0.1:8787']}/health", trust_env=False).is_success, "Dask's scheduler answers")
        yield running


@contextmanager
def _postgres(folder: Path, password: str, address: str) -> Iterator[None]:
    """A cluster with the database and the user `prefect`. It refuses to run as root and then runs as `postgres`, in a folder of its own."""
    programs = find_postgres()
    assert programs is not None
    host, port = address.split(":")
    (folder / "password").write_text(password)
    with tempfile.TemporaryDirectory(prefix="normascope-postgres-") as place:
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            shutil.chown(place, "postgres")
            user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        secret = shutil.copy(folder / "password", f"{place}/password")
        if user:
            shutil.chown(secret, "postgres")
        options = ["--username=prefect", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync", f"--pgdata={place}/data"]
        subprocess.run([programs / "initdb", *options], check=True, capture_output=True, cwd=place, **user)
        serve = [
            str(programs / "postgres"),
            "-D",
            f"{place}/data",
            "-h",
            host,
            "-p",
            port,
            "-c",
            "unix_socket_directories=",
            "-c",
            "fsync=off",
        ]
        create = [programs / "createdb", f"--host={host}", f"--port={port}", "--username=prefect", "prefect"]
        with _process(serve, folder / "postgres.log", cwd=place, **user):
            answer = {**os.environ, "PGPASSWORD": password}
            _wait_for(lambda: subprocess.run(create, env=answer, capture_output=True).returncode == 0, "PostgreSQL has made the database")
            yield


@contextmanager
def _redis(folder: Path, password: str, address: str) -> Iterator[None]:
    host, port = address.split(":")
    options = ["--bind", host, "--port", port, "--requirepass", password, "--save", "", "--dir", str(folder)]
    with _process(["redis-server", *options], folder / "redis.log"):
        yield


@contextmanager
def _process(command: list[str], log: Path, *, env: Mapping[str, str] | None = None, cwd: Path | str = ROOT, **user: Any) -> Iterator[None]:
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=env, cwd=cwd, **user)
    try:
        yield
        assert process.poll() is None, f"{command} has ended:\n{log.read_text(errors='replace')[-2000:]}"
    finally:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if true():
                return
        time.sleep(0.2)
    raise AssertionError(f"not within {_READY_S} s: {what}")
