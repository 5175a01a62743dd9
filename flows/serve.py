"""A file of deployments → a machine that runs them when they are due."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tasks import serve, server


def serve_file(path: Path, *, port: int | None, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        path: a `prefect.yaml`.
        port: of the Prefect server, where one is to be started.
        say: is told what now runs, and the page to open.

    Raises:
        ConfigError: the file cannot be used.
        serve.ServeError: another `serve` runs on this home; the worker or the server has ended by itself.
        server.ServerError: the server does not answer, or refuses the credentials.
        serve_apply.ApplyError: the file names a flow, a parameter or a block that is not there.
    """
    with serve.only_one(), serve.signals() as stop, ExitStack() as ends:
        with _another_process() as executor:
            pool = executor.submit(_read, path).result().pool
            address = ends.enter_context(serve.serving_server(port))
            for line in serve.end_left_behind():
                say(line)
            for line in executor.submit(_apply, path, os.environ["PREFECT_API_URL"]).result():
                say(line)
        if not stop.is_set():
            with serve.serving_worker(pool) as worker:
                say(f"work pool:  {pool}, worker process {worker.pid}, logs in {server.home() / 'prefect'}")
                say(f"Prefect UI: {address} (Ctrl-C stops all)")
                serve.wait(worker, stop)
                say("stopping")


def _another_process() -> ProcessPoolExecutor:
    """Flows bring torch with them, 0.6 GB that a process which then only waits would hold for weeks. Ctrl-C is for this process."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_leave_ctrl_c)


def _leave_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read(path: Path) -> Any:
    from tasks.serve_file import ServeFile
    from tasks.yaml_files import ConfigError, read_yaml

    if not path.exists():
        raise ConfigError(f"no file of deployments at {path}: give one, or write it after deploy/prefect.yaml of the repository")
    return read_yaml(path, ServeFile)


def _apply(path: Path, api_url: str) -> list[str]:
    from tasks.serve_apply import apply_file

    applied = apply_file(_read(path), api_url=api_url, folder=Path.cwd())
    return [
        *applied.lines,
        *(f"not in {path}: {name} stays as it was; `prefect deployment delete` removes it" for name in applied.strangers),
    ]
