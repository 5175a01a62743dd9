"""What stands round every command: its server, its errors, Ctrl-C, and what it says at the end. Heavy imports happen inside functions."""

import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tasks import server

EXECUTION = "`local` (a Dask cluster on this machine), `process`, or tcp://host:port of a Dask scheduler"

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="the run's configuration; README.md shows one of a dozen lines")]
Port = Annotated[int | None, typer.Option(help="port of the Prefect server to start; 4200 or the next free one when not given")]


@contextmanager
def command(port: int | None) -> Iterator[str]:
    """A server to record on, a tag that this command's runs carry, Ctrl-C that stops at once, and the count of steps at the end."""
    with errors():
        server.configure_prefect()
        started = time.monotonic()
        address = server.ensure_server(port=port, meanwhile=_import_torch)
        typer.echo(f"Prefect UI: {address}", err=True)
        tag = f"command-{uuid.uuid4().hex[:8]}"
        _stop_at_once(tag)
        from prefect import tags

        _show_warnings()
        with tags(tag):
            yield address
        from tasks.caching import steps

        typer.echo(f"{steps.summarise()} ({time.monotonic() - started:.1f} s)", err=True)


@contextmanager
def errors() -> Iterator[None]:
    """Errors that a person can mend become one message and exit code 1; all others keep their traceback."""
    try:
        yield
    except Exception as error:
        text = _describe_gone_server(error) or _describe(error)
        if text is None:
            raise
        logging.getLogger(__name__).debug("failed", exc_info=True)
        typer.secho(text, fg="red", err=True)
        raise typer.Exit(1) from None


def _describe(error: Exception) -> str | None:
    if not isinstance(error, (ValueError, RuntimeError, OSError)):
        return None
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        if error.errno == 28:
            text += ". The disk is full: nothing half-written is left; make room and run the same command again"
    return f"{type(error).__name__}: {text}"


def _describe_gone_server(error: Exception) -> str | None:
    """Of errors that Prefect's client raises where the server that answered when the command began does not any more."""
    unreached = type(error).__module__.partition(".")[0] == "httpx" or "Failed to reach API" in str(error)
    address = os.environ.get("PREFECT_API_URL")
    if not unreached or address is None or server.is_healthy(address):
        return None
    log = f": its log is {server.log_path()}" if server.has_died() else ""
    return f"ServerError: the Prefect server at {address} has stopped answering{log}. The same command goes on from the finished steps"


def announce(report: Any, ui_url: str, *, painted: bool) -> None:
    """Where the report is, and the UI."""
    from storage import filesystems

    typer.echo(
        f"report:     {filesystems.local_path(report['html_uri']) or report['html_uri']}" + (" (painted anomalies)" if painted else "")
    )
    typer.echo(f"Prefect UI: {ui_url}")


def _import_torch() -> None:
    """And what else nearly every command imports later: seconds that cost nothing while a server starts."""
    import methods.training.fit  # noqa: F401
    import storage.manifest  # noqa: F401


def _show_warnings() -> None:
    """What a run has to say of the data goes to the terminal as well as to the UI."""
    from tasks.logs import ROOMS, log_as_set

    if log_as_set():
        return
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    for room in ROOMS:
        logging.getLogger(room).addHandler(handler)


def _stop_at_once(tag: str) -> None:
    """On Ctrl-C: say so in the UI, end the workers, leave. Every file is written whole or not at all, so nothing else is to be done."""

    def handler(number: int, _frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C does not wait for the server
        sys.stderr.write("\nstopping; the same command goes on from here\n")
        from tasks.cancel import cancel_runs, kill_children

        kill_children()
        cancel_runs(tag)
        os._exit(128 + number)

    handle: Callable[[int, Any], None] = handler
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
