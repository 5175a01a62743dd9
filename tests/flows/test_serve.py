"""`normascope serve` as a process: real server, real worker, a schedule of seconds."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import psutil
import pytest
import yaml

from tasks import serve, server
from tests.command import NORMASCOPE, Workplace
from tests.servers import free_ports

PASSWORD = "anna:planted"
FLOWS = """
import time
from prefect import flow

@flow(name="tick")
def tick(seconds: float = 0) -> str:
    time.sleep(seconds)
    return "ticked"
"""
POOL = {"name": "normascope"}
DEPLOYMENTS = {
    "normascope": {"limits": {"gpu": 2}, "lost_after": 10},
    "deployments": [
        {"name": "often", "entrypoint": "ticking.py:tick", "schedules": [{"interval": 15}], "work_pool": POOL},
        {
            "name": "long",
            "entrypoint": "ticking.py:tick",
            "parameters": {"seconds": 600},
            "triggers": [{"type": "event", "enabled": True, "match": {}, "expect": ["normascope.drift.seen"]}],
            "work_pool": POOL,
        },
    ],
}
_PATIENCE_S = 120


@contextmanager
def serving(place: Workplace, port: int) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The command and its lines until it serves; killed at the end where it has not ended."""
    process = subprocess.Popen(
        [*NORMASCOPE, "serve", "prefect.yaml", "--port", str(port)],
        env=place.environment,
        cwd=place.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line.startswith("Prefect UI: "):
                break
        else:
            pytest.fail("".join(said))
        yield process, said
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def until(found: Callable[[], Any]) -> Any:
    """What is found, asked for again and again."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (answer := found()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.5)
    return answer


def test_runs_whose_worker_is_gone_are_ended_by_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NORMASCOPE_HOME", str(tmp_path)), ("PREFECT_API_URL", "http://127.0.0.1:9/api")):
        monkeypatch.setenv(name, value)
    assert serve.end_left_behind() == []
    (tmp_path / "worker.json").write_text(json.dumps({"pid": os.getpid(), "created": 0.0}))  # another process has its number now
    marked = {**os.environ, "NORMASCOPE_SERVED_FROM": str(tmp_path), "PREFECT__FLOW_RUN_ID": "some-run"}
    run, other = (subprocess.Popen(["sleep", "60"], env=environment) for environment in (marked, os.environ))
    try:
        (line,) = serve.end_left_behind()
        assert f"({run.pid}): they are ended; flow runs cancelled with them: some-run" in line
        assert (psutil.pid_exists(run.pid), psutil.pid_exists(other.pid)) == (False, True)
        assert serve.end_left_behind() == []
    finally:
        for process in (run, other):
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_schedule_fires_all_ends_with_ctrl_c_is_there_again_after_a_restart_and_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / "ticking.py").write_text(FLOWS)
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(DEPLOYMENTS))
    place, [port] = Workplace(tmp_path), free_ports(1)
    place.environment |= {"PREFECT_SERVER_API_AUTH_STRING": PASSWORD}
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api", auth=("anna", "planted"), timeout=60, trust_env=False)

    def runs(name: str, state: str) -> list[dict[str, Any]]:
        query = {"deployments": {"name": {"any_": [name]}}, "flow_runs": {"state": {"name": {"any_": [state]}}}}
        return list(client.post("/flow_runs/filter", json=query).raise_for_status().json())

    with serving(place, port) as (process, _):
        started = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert httpx.get(f"{client.base_url}flows/count", trust_env=False).status_code in (401, 405)
        second = place.call("serve", "prefect.yaml")
        assert second.returncode == 1
        assert f"process {process.pid} since" in second.stderr
        done = until(lambda: runs("often", "Completed"))
        assert client.get("/v2/concurrency_limits/gpu").json()["limit"] == 2
        lost = lose_a_run(client)
        emit(client, "normascope.drift.seen", {"prefect.resource.id": "normascope.archive.test"})
        long = until(lambda: runs("long", "Running"))[0]["id"]
        assert until(lambda: state_of(client, lost)["type"] == "CRASHED")
        started += psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        _, alive = psutil.wait_procs(started, timeout=5)
        assert not alive

    with serving(place, port) as (process, _):
        assert {run["id"] for run in done} <= {run["id"] for run in runs("often", "Completed")}
        assert state_of(client, long)["name"] in ("Cancelled", "Crashed")
        deployments = client.post("/deployments/filter", json={}).json()
        assert sorted((each["name"], len(each["schedules"])) for each in deployments) == [("long", 0), ("often", 1)]
        assert len(client.post("/automations/filter", json={}).json()) == 2
        assert until(lambda: runs("often", "Scheduled"))
        emit(client, "normascope.drift.seen", {"prefect.resource.id": "normascope.archive.test"})
        left = until(lambda: runs("long", "Running"))[0]["id"]
        workers, servers = started_by(place, "worker.json"), started_by(place, "server.json")
        process.kill()
        process.wait()

    try:
        with serving(place, port) as (process, said):
            assert not psutil.wait_procs(workers, timeout=5)[1]
            assert state_of(client, left)["name"] == "Cancelled"
            assert not runs("long", "Running")
            assert any("had left processes behind" in line and line.rstrip().endswith(left) for line in said)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        assert not psutil.wait_procs(servers, timeout=5)[1]  # it goes with the one that took it over
    finally:
        for each in (*workers, *servers):
            with suppress(psutil.Error):
                each.kill()


def started_by(place: Workplace, record: str) -> list[psutil.Process]:
    """The process that a file of the home names, and all that it has started."""
    first = psutil.Process(json.loads((place.folder / "home" / record).read_text())["pid"])
    return [first, *first.children(recursive=True)]


def lose_a_run(client: httpx.Client) -> str:
    """A run that says once that it is alive, and never again anything."""
    flow = client.post("/flows/", json={"name": "lost"}).raise_for_status().json()["id"]
    run = client.post("/flow_runs/", json={"flow_id": flow, "state": {"type": "RUNNING"}}).raise_for_status().json()["id"]
    emit(client, "prefect.flow-run.heartbeat", {"prefect.resource.id": f"prefect.flow-run.{run}"})
    return str(run)


def emit(client: httpx.Client, event: str, resource: dict[str, str]) -> None:
    content = {"event": event, "resource": resource, "occurred": datetime.now(UTC).isoformat(), "id": os.urandom(16).hex()}
    client.post("/events", json=[content]).raise_for_status()


def state_of(client: httpx.Client, run: str) -> dict[str, Any]:
    return dict(client.get(f"/flow_runs/{run}").raise_for_status().json()["state"])


def test_the_second_on_a_home_is_told_by_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMASCOPE_HOME", str(tmp_path))
    with (
        serve.only_one(),
        pytest.raises(serve.ServeError, match=rf"already: process {os.getpid()} since .*kill {os.getpid()}"),
        serve.only_one(),
    ):
        pass
    with serve.only_one():
        pass


def test_a_file_that_is_not_there_and_a_server_that_is_dead_are_named(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    missing = place.call("serve")
    assert missing.returncode == 1
    assert "no file of deployments at deploy/prefect.yaml" in missing.stderr
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(DEPLOYMENTS))
    place.environment["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    dead = place.call("serve", "prefect.yaml")
    assert dead.returncode == 1
    assert "no Prefect server answers at PREFECT_API_URL = http://127.0.0.1:9/api" in dead.stderr


def test_wrong_credentials_are_said_to_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"/api/health": 200, "/api/admin/version": 401}
    with answering(answers) as url:
        monkeypatch.setenv("PREFECT_API_URL", url)
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "anna:wrong")
        with pytest.raises(server.ServerError, match=r"refuses the credentials of PREFECT_API_AUTH_STRING \(user:password\)") as told:
            server.ensure_server()
        assert "wrong" not in str(told.value)
        monkeypatch.delenv("PREFECT_API_AUTH_STRING")
        with pytest.raises(server.ServerError, match="refuses to answer without PREFECT_API_AUTH_STRING"):
            server.ensure_server()


@contextmanager
def answering(statuses: dict[str, int]) -> Iterator[str]:
    """A server that answers each path with its status."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses[self.path])
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running, mock.patch.dict(os.environ, {"NO_PROXY": "127.0.0.1"}):
        Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/api"
        running.shutdown()
