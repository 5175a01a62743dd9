"""The Prefect server of one machine: SQLite under normascope's home, started when needed, its history kept. Imports no Prefect."""

import base64
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tasks.settings import export_settings, find_home, load_settings

_START_TIMEOUT_S = 180  # the very first start makes the database; on a busy machine it has taken more than 90 s
_STOP_TIMEOUT_S = 15
_TRIES = 5  # to find a port that nobody takes meanwhile
_ANSWER_TIMEOUT_S = 2
_LOG_BYTES = 4 << 20
# of a process whose stderr is a log: what a command's terminal is spared
LOGGED = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING", "PREFECT_LOGGING_COLORS": "false"}


class ServerError(RuntimeError):
    """The Prefect server cannot be started or reached; the message says what to do."""


@dataclass(frozen=True)
class Server:
    """A running server that we started."""

    pid: int
    created: float
    port: int

    @property
    def ui_url(self) -> str:
        """The page to open."""
        return f"http://127.0.0.1:{self.port}"


def home() -> Path:
    """Where history, results of tasks and logs are kept: NORMASCOPE_HOME, or ~/.normascope."""
    return find_home()


def log_path() -> Path:
    """What a server that we start writes: warnings, errors, and how it ended."""
    return home() / "prefect" / "server.log"


def cut_log(path: Path, *, at_most: int = _LOG_BYTES) -> None:
    """Move what stands in a log to `NAME.1`, over what was there, where it is longer; for logs that are opened to append."""
    if path.stat().st_size > at_most:
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
        os.truncate(path, 0)


def configure_prefect() -> None:
    """Set what Prefect reads from the environment; to be called before Prefect is imported. What the user has set stays.

    Raises:
        SettingsError: what the file of settings says cannot be used.
    """
    defaults = {
        **export_settings(),
        "PREFECT_HOME": str(home() / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # it can print a traceback at the first start, and patients' archives phone nobody
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_UI_V2_ENABLED": "false",  # nor does the page: the newer one asks Amplitude for settings when it opens
        # in its memory, as is the default, a server that restarts forgets who holds slots, and nobody gives them back
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,tasks,methods,storage",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # what threads of a run log is of no run to Prefect
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # tracebacks and steps stand in the UI; the terminal gets bars and messages
    }
    if password := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):  # who may start the server with it may also use it
        defaults["PREFECT_API_AUTH_STRING"] = password
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def ensure_server(*, port: int | None = None, meanwhile: Callable[[], None] = lambda: None) -> str:
    """Address of the Prefect UI, with PREFECT_API_URL set to its API.

    Uses the server at PREFECT_API_URL where that is set, the one that an earlier command left running, or starts one.

    Args:
        port: insist on this port; otherwise 4200, or the next free one.
        meanwhile: called while a server starts, which takes seconds; not where one runs. It imports no Prefect.

    Raises:
        ServerError: the port is taken, the server does not answer, or it refuses the credentials.
    """
    given = os.environ.get("PREFECT_API_URL")
    if given:
        if not is_healthy(given):
            raise ServerError(f"no Prefect server answers at PREFECT_API_URL = {given}: start it, or unset the variable to use a local one")
        _check_credentials(given)
        return given.removesuffix("/api")
    with _locked():
        server = running_server()
        if server is None or (port is not None and server.port != port):
            if server is not None:
                raise ServerError(f"the server already runs at {server.ui_url}: stop it first (normascope ui --stop), or leave --port out")
            server = _start(port, meanwhile) if port is not None else _start_anywhere(meanwhile)
    _check_credentials(f"{server.ui_url}/api")
    os.environ["PREFECT_API_URL"] = f"{server.ui_url}/api"
    return server.ui_url


def running_server() -> Server | None:
    """The server that an earlier command started, if it still runs and answers."""
    try:
        server = Server(**json.loads(_record().read_text()))
        alive = psutil.Process(server.pid).create_time() == server.created
    except (OSError, ValueError, TypeError, psutil.Error):
        return None
    return server if alive and is_healthy(f"{server.ui_url}/api") else None


def has_died() -> bool:
    """Whether the server that a command started has ended without having been stopped: an error, a kill, the machine switched off."""
    return _record().exists() and running_server() is None


def stop_server() -> Server | None:
    """Stop it, by its own process id; returns what was stopped."""
    server = running_server()
    if server is None:
        return None
    os.killpg(server.pid, signal.SIGTERM)  # it leads a process group of its own
    _, alive = psutil.wait_procs([psutil.Process(server.pid)], timeout=_STOP_TIMEOUT_S)
    if alive:
        os.killpg(server.pid, signal.SIGKILL)
    _record().unlink(missing_ok=True)
    return server


def _start_anywhere(meanwhile: Callable[[], None]) -> Server:
    """On the first free port; another home's server may take it at the same moment."""
    for _ in range(_TRIES - 1):
        with suppress(_PortLostError):
            return _start(_free_port(load_settings().port), meanwhile)
    return _start(_free_port(load_settings().port), meanwhile)


class _PortLostError(ServerError):
    """Another program has taken the port meanwhile."""


def _start(port: int, meanwhile: Callable[[], None]) -> Server:
    if not _is_free(port):
        raise ServerError(f"port {port} is taken by another program: give another one with --port, or stop that program")
    log_path().parent.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PREFECT_UI_API_URL": "/api",
        **LOGGED,
    }
    with log_path().open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.prefect_server", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C at the command must not take the server with it
        )
    server = Server(pid=process.pid, created=psutil.Process(process.pid).create_time(), port=port)
    deadline = time.monotonic() + _START_TIMEOUT_S
    meanwhile()
    while not (_listens(process.pid, port) and is_healthy(f"{server.ui_url}/api")):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            lost = process.wait() >= 0 and not _is_free(port)
            raise (_PortLostError if lost else ServerError)(f"the Prefect server did not start on port {port}; its log is {log_path()}")
        time.sleep(0.1)
    _record().write_text(json.dumps(asdict(server)))
    return server


def _listens(pid: int, port: int) -> bool:
    """Whether it is this process that answers on a port, and not another server."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections)


def is_healthy(api_url: str) -> bool:
    """Whether a Prefect API answers."""
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def post(path: str, content: dict[str, Any]) -> Any:
    """What the API at PREFECT_API_URL answers, without Prefect's client; waits two seconds and asks once.

    Raises:
        OSError: no answer, or an error.
        ValueError: an answer that is no JSON.
    """
    request = urllib.request.Request(
        f"{os.environ['PREFECT_API_URL'].rstrip('/')}/{path}",
        json.dumps(content).encode(),
        {"Content-Type": "application/json", **_authorization()},
    )
    with urllib.request.urlopen(request, timeout=_ANSWER_TIMEOUT_S) as answer:
        return json.loads(answer.read() or b"null")


def _check_credentials(api_url: str) -> None:
    """Health is told to everybody: ask for what is not."""
    request = urllib.request.Request(f"{api_url.rstrip('/')}/admin/version", headers=_authorization())
    try:
        with urllib.request.urlopen(request, timeout=5):
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            given = "the credentials of" if _authorization() else "to answer without"
            raise ServerError(f"the Prefect server at {api_url} refuses {given} PREFECT_API_AUTH_STRING (user:password)") from None
    except OSError:
        return  # busy: it has just said that it is healthy


def _authorization() -> dict[str, str]:
    if password := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(password.encode()).decode()}"}
    key = os.environ.get("PREFECT_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port(first: int) -> int:
    return next(port for port in range(first, first + 200) if _is_free(port))


def _record() -> Path:
    return home() / "server.json"


@contextmanager
def _locked() -> Iterator[None]:
    """Two commands that start at the same time share one server."""
    home().mkdir(parents=True, exist_ok=True)
    with (home() / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
