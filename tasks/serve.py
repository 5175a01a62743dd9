"""One machine's work: a Prefect server, a worker for its work pool, and their end. Imports no Prefect.

The worker is a process of its own in a session of its own, so that Ctrl-C reaches `serve` alone and the order of the end is ours: the
worker takes no more runs, the server is told of those that it ran, their processes end, then the server does where `serve` started it.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from tasks import server

_IDLE_STOP_S = 10  # a worker without runs leaves by itself
_SECONDS_BETWEEN_LOOKS = 0.5
_STOPPED = "`normascope serve` was stopped while this ran; the next run goes on from the finished steps"


class ServeError(RuntimeError):
    """`serve` cannot start, or cannot go on; the message says why."""


@dataclass(frozen=True)
class Worker:
    """A worker that we started; `created` tells its process from a later one of the same number."""

    pid: int
    created: float


@contextmanager
def only_one() -> Iterator[None]:
    """One `serve` a home; the file says who.

    Raises:
        ServeError: another one runs.
    """
    (server.home() / "prefect").mkdir(parents=True, exist_ok=True)  # Prefect warns where it is missing
    with (server.home() / "serve.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ServeError(f"`normascope serve` runs on this home already: {lock.read().strip() or 'it has just started'}") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; stop it with Ctrl-C, or: kill {os.getpid()}\n")
        lock.flush()
        yield
        lock.truncate(0)


@contextmanager
def signals() -> Iterator[threading.Event]:
    """The event that Ctrl-C or SIGTERM sets; a second one changes nothing, since the end takes seconds."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def serving_server(port: int | None) -> Iterator[str]:
    """Address of a server's page; one that is started here is stopped at the end.

    Raises:
        server.ServerError: see `ensure_server`.
    """
    ours = not os.environ.get("PREFECT_API_URL") and server.running_server() is None
    address = server.ensure_server(port=port)
    try:
        yield address
    finally:
        if ours:
            server.stop_server()


@contextmanager
def serving_worker(pool: str) -> Iterator[Worker]:
    """A worker of a work pool. One that a killed `serve` has left behind is stopped first."""
    if (left := _left_behind()) is not None:
        stop_worker(left)
    worker = _start_worker(pool)
    try:
        yield worker
    finally:
        stop_worker(worker)


def wait(worker: Worker, stop: threading.Event) -> None:
    """Until somebody says stop.

    Raises:
        ServeError: the worker or our server has ended by itself.
    """
    record = server.running_server()
    while not stop.wait(_SECONDS_BETWEEN_LOOKS):
        server.cut_log(_log())
        if _process(worker.pid, worker.created) is None:
            raise ServeError(f"the worker has ended; its log is {_log()}")
        if record is not None and _process(record.pid, record.created) is None:
            raise ServeError(f"the Prefect server has ended; its log is {server.log_path()}")


def stop_worker(worker: Worker) -> tuple[str, ...]:
    """End a worker and what it runs; returns the ids of the flow runs that the server was told are cancelled.

    An idle worker leaves by itself. One with runs is halted first: it would start others, and call those crashed that are told to end.
    Files are written whole or not at all, and finished steps are kept: nothing waits for the runs.
    """
    process = _process(worker.pid, worker.created)
    if process is None:
        _record().unlink(missing_ok=True)
        return ()
    process.suspend()
    descendants = process.children(recursive=True)
    runs = tuple(sorted({run for child in descendants if (run := _flow_run(child)) is not None}))
    if not descendants:
        process.resume()
        process.terminate()
        _, alive = psutil.wait_procs([process], timeout=_IDLE_STOP_S)
        descendants = [child for one in alive for child in one.children(recursive=True)]
    for run in runs:
        _tell(run)
    for one in (*descendants, process):
        with _gone():
            one.kill()
    psutil.wait_procs([*descendants, process], timeout=_IDLE_STOP_S)
    _record().unlink(missing_ok=True)
    return runs


def _start_worker(pool: str) -> Worker:
    environment = {
        "PREFECT_WORKER_QUERY_SECONDS": "5",
        "PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES": "false",
        **os.environ,
        **server.LOGGED,
    }
    name = f"serve-{socket.gethostname()}"
    with _log().open("ab") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", pool, "--name", name],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    worker = Worker(started.pid, psutil.Process(started.pid).create_time())
    _record().write_text(json.dumps(asdict(worker)))
    return worker


def _left_behind() -> Worker | None:
    try:
        return Worker(**json.loads(_record().read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _process(pid: int, created: float) -> psutil.Process | None:
    """The process, unless it has ended or another one has its number."""
    with _gone():
        process = psutil.Process(pid)
        if process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _flow_run(process: psutil.Process) -> str | None:
    """Prefect gives a run's process its id."""
    with _gone():
        return process.environ().get("PREFECT__FLOW_RUN_ID")
    return None


def _tell(run: str) -> None:
    state = {"type": "CANCELLED", "name": "Cancelled", "message": _STOPPED}
    try:
        server.post(f"flow_runs/{run}/set_state", {"state": state, "force": True})
    except (OSError, ValueError):  # a server that is gone is not waited for
        return


@contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except psutil.Error:
        return


def _record() -> Path:
    return server.home() / "worker.json"


def _log() -> Path:
    return server.home() / "prefect" / "worker.log"
