"""Stop: because the UI says so, with what is finished kept; or at once, with the server told and all processes ended."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import psutil

from tasks import server

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 2.0


@contextmanager
def watch_for_cancel(flow_run_id: str, stop: Callable[[], None]) -> Iterator[threading.Event]:
    """While the context lasts, ask the server whether somebody has cancelled a flow run; then set the event and call `stop`, once."""
    from prefect.client.orchestration import get_client

    cancelled, ended = threading.Event(), threading.Event()

    def watch() -> None:
        with get_client(sync_client=True) as client:
            while not ended.wait(_SECONDS_BETWEEN_LOOKS):
                try:
                    state = client.read_flow_run(UUID(flow_run_id)).state
                except Exception as error:  # whatever the client raises: a server that is gone cancels nothing
                    logger.debug("whether the run is cancelled cannot be known: %s", error)
                    continue
                if state is not None and (state.is_cancelling() or state.is_cancelled()):
                    cancelled.set()
                    stop()
                    return

    thread = threading.Thread(target=watch, name="cancel", daemon=True)
    thread.start()
    try:
        yield cancelled
    finally:
        ended.set()
        thread.join()


def cancel_runs(tag: str) -> None:
    """Mark the unfinished flow runs that carry a tag as cancelled; a server that does not answer is not waited for."""
    unfinished = {"tags": {"all_": [tag]}, "state": {"type": {"any_": ["RUNNING", "PENDING", "SCHEDULED"]}}}
    cancelled = {"state": {"type": "CANCELLED", "name": "Cancelled", "message": "stopped by a signal; run again to go on"}, "force": True}
    try:
        for flow_run in server.post("flow_runs/filter", {"flow_runs": unfinished}):
            server.post(f"flow_runs/{flow_run['id']}/set_state", cancelled)
    except (OSError, ValueError, KeyError):
        return


def kill_children() -> None:
    """End all descendants of this process but the Prefect server, which outlives commands."""
    running = server.running_server()
    spared = {running.pid} if running is not None else set()
    for child in psutil.Process().children():
        if child.pid in spared:
            continue
        for process in [*child.children(recursive=True), child]:
            try:
                process.kill()
            except psutil.Error:
                continue
