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
_SERVED = "NORMASCOPE_SERVED_FROM"  # in the environment of the worker and all that it starts: the home
_STOPPED = "`normascope serve` was stopped while this ran; the next run goes on from the finished steps"


class ServeError(RuntimeError):
    """`serve` cannot start, or cannot go on; the message says why."""


@dataclass(frozen=True)
class Worker:
    """A process that we started; `created` tells it from a later one of the same number."""

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
    """Address of a server's page; one that is started here, or was by a `serve` that was killed, is stopped at the end.

    Raises:
        server.ServerError: see `ensure_server`.
    """
    running = None if os.environ.get("PREFECT_API_URL") else server.running_server()
    ours = not os.environ.get("PREFECT_API_URL") and (running is None or _remembered(_server_record()) == _identify(running))
    address = server.ensure_server(port=port)
    if ours and (running := server.running_server()) is not None:
        _remember(_server_record(), _identify(running))
    try:
        yield address
    finally:
        if ours:
            server.stop_server()
            _server_record().unlink(missing_ok=True)


def end_left_behind() -> list[str]:
    """End the worker that a killed `serve` has left on this home, and its runs; a line about what was left, if anything.

    To be called before another worker starts, so that what is due is run by one. The server is told of the runs: see `stop_worker`.
    """
    left, there = _remembered(_worker_record()), [process.pid for process in _served()]
    if left is None or not there:
        return []
    runs = stop_worker(left)
    cancelled = f"; flow runs cancelled with them: {', '.join(runs)}" if runs else ""
    return [f"a `serve` that was killed had left processes behind ({', '.join(map(str, there))}): they are ended{cancelled}"]


@contextmanager
def serving_worker(pool: str) -> Iterator[Worker]:
    """A worker of a work pool."""
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
    Runs outlive a worker that was killed, and are ended all the same. Files are written whole or not at all, and finished steps are kept:
    nothing waits for the runs.
    """
    process = _process(worker.pid, worker.created)
    if process is not None:
        process.suspend()
        if not [one for one in _served() if one != process]:
            process.resume()
            process.terminate()
            psutil.wait_procs([process], timeout=_IDLE_STOP_S)
    runs = _end(_served())
    _worker_record().unlink(missing_ok=True)
    return runs


def _end(processes: list[psutil.Process]) -> tuple[str, ...]:
    """Kill processes; first the server is told that the flow runs among them are cancelled, whose ids are returned."""
    runs = tuple(sorted({run for process in processes if (run := _variable(process, "PREFECT__FLOW_RUN_ID")) is not None}))
    for run in runs:
        _tell(run)
    for process in processes:
        with _gone():
            process.kill()
    psutil.wait_procs(processes, timeout=_IDLE_STOP_S)
    return runs


def _start_worker(pool: str) -> Worker:
    environment = {
        "PREFECT_WORKER_QUERY_SECONDS": "5",
        "PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES": "false",
        **os.environ,
        **server.LOGGED,
        _SERVED: str(server.home()),
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
    _remember(_worker_record(), worker)
    return worker


def _identify(running: server.Server) -> Worker:
    return Worker(running.pid, running.created)


def _remember(record: Path, process: Worker) -> None:
    record.write_text(json.dumps(asdict(process)))


def _remembered(record: Path) -> Worker | None:
    try:
        return Worker(**json.loads(record.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _process(pid: int, created: float) -> psutil.Process | None:
    """The process, unless it has ended or another one has its number."""
    with _gone():
        process = psutil.Process(pid)
        if process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _variable(process: psutil.Process, name: str) -> str | None:
    """Of a process' environment; Prefect gives a run's process its id there, and we the home."""
    with _gone():
        return process.environ().get(name)
    return None


def _served() -> list[psutil.Process]:
    """The worker of this home and all that it has started, also where it is gone."""
    home = str(server.home())
    return [process for process in psutil.process_iter() if _variable(process, _SERVED) == home]


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


def _worker_record() -> Path:
    return server.home() / "worker.json"


def _server_record() -> Path:
    return server.home() / "serve-server.json"


def _log() -> Path:
    return server.home() / "prefect" / "worker.log"
