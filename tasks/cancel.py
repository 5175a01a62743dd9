"""Leave at once: tell the server which runs end here, and end the processes that work for this one."""

import json
import os
import urllib.error
import urllib.request
from typing import Any

import psutil

from tasks import server

_TIMEOUT_S = 2


def cancel_runs(tag: str) -> None:
    """Mark the unfinished flow runs that carry a tag as cancelled; a server that does not answer is not waited for."""
    unfinished = {"tags": {"all_": [tag]}, "state": {"type": {"any_": ["RUNNING", "PENDING", "SCHEDULED"]}}}
    cancelled = {"state": {"type": "CANCELLED", "name": "Cancelled", "message": "stopped by a signal; run again to go on"}, "force": True}
    try:
        for flow_run in _post("flow_runs/filter", {"flow_runs": unfinished}):
            _post(f"flow_runs/{flow_run['id']}/set_state", cancelled)
    except (OSError, urllib.error.URLError, ValueError, KeyError):
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


def _post(path: str, content: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{os.environ['PREFECT_API_URL'].rstrip('/')}/{path}", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        return json.loads(answer.read() or b"null")
