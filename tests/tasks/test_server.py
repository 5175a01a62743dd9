import os
import re
import socket
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from unittest import mock

import httpx
import pytest
import typer

from flows.cli.frame import errors
from tasks import server
from tasks.doctor import _server
from tests.command import Workplace


def test_a_taken_port_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMASCOPE_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(server.ServerError, match=rf"port {port} is taken.*--port"):
            server.ensure_server(port=port)


def test_a_given_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(server.ServerError, match=r"PREFECT_API_URL = http://127.0.0.1:9/api"):
        server.ensure_server()


def test_slots_are_kept_in_files_by_a_storage_that_prefect_has(tmp_path: Path) -> None:
    with mock.patch.dict(os.environ, {"NORMASCOPE_HOME": str(tmp_path)}):
        os.environ.pop("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", None)
        server.configure_prefect()
        kept = import_module(os.environ["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"]).ConcurrencyLeaseStorage(tmp_path)
    assert kept.storage_path == tmp_path


def test_a_log_that_grows_is_moved_aside_under_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    with path.open("ab", buffering=0) as log:
        for count in range(3):
            log.write(b"%d error\n" % count * 10)
            server.cut_log(path, at_most=50)
            assert path.read_bytes() == b""
        server.cut_log(path, at_most=50)
    assert (tmp_path / "server.log.1").read_bytes() == b"2 error\n" * 10


def test_doctor_says_that_the_server_has_died_and_where_its_log_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMASCOPE_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    server.log_path().parent.mkdir()
    server.log_path().write_text("Traceback")
    assert "none runs; a command" in _server().text
    (tmp_path / "server.json").write_text('{"pid": 1, "created": 0, "port": 9}')
    assert "has ended without being stopped" in _server().text
    assert str(server.log_path()) in _server().text


def test_a_server_that_is_gone_in_the_middle_of_a_command_is_named_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NORMASCOPE_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    (tmp_path / "server.json").write_text('{"pid": 1, "created": 0, "port": 9}')
    for error in (httpx.ConnectError("All connection attempts failed"), RuntimeError("Failed to reach API at http://127.0.0.1:9/api/")):
        with pytest.raises(typer.Exit), errors():
            raise error
        assert f"127.0.0.1:9/api has stopped answering: its log is {server.log_path()}" in capsys.readouterr().err
    with pytest.raises(KeyError), errors():
        raise KeyError("of ours")


@pytest.mark.slow
def test_the_server_outlives_the_call_is_used_again_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMASCOPE_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_API_URL", "")  # `ensure_server` sets it: what it was comes back
    begun: list[bool] = []
    try:
        address = server.ensure_server(meanwhile=lambda: begun.append(True))
        monkeypatch.setenv("PREFECT_API_URL", "")
        assert server.ensure_server(meanwhile=lambda: begun.append(True)) == address
        assert len(begun) == 1  # while it started, not when it ran
        assert server.is_healthy(f"{address}/api")
        # a broken table is an error that the log keeps; the record of a server that was killed says where to look
        with sqlite3.connect(tmp_path / "prefect" / "prefect.db", timeout=30) as history:
            history.execute("ALTER TABLE variable RENAME TO elsewhere")
        assert httpx.post(f"{address}/api/variables/count", json={}, trust_env=False).status_code == 500
        assert "no such table: variable" in server.log_path().read_text()
    finally:
        stopped = server.stop_server()
    assert stopped is not None
    assert not server.has_died()
    assert not server.is_healthy(f"{stopped.ui_url}/api")
    assert (tmp_path / "prefect" / "prefect.db").exists()


@pytest.mark.slow
def test_two_homes_that_start_at_once_get_a_server_each(tmp_path: Path) -> None:
    places = [Workplace(tmp_path / name) for name in ("one", "other")]
    for place in places:
        place.folder.mkdir()
    try:
        with ThreadPoolExecutor(2) as pool:
            started = list(pool.map(lambda place: place.call("ui", "--no-open"), places))
        assert [done.returncode for done in started] == [0, 0], started
        addresses = {re.findall(r"Prefect UI: (\S+)", done.stdout)[0] for done in started}
        assert len(addresses) == 2
    finally:
        stopped = [place.call("ui", "--stop").stdout for place in places]
    assert all("stopped the server at" in said for said in stopped)


@pytest.mark.slow
def test_writers_wait_for_one_another_instead_of_being_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's own transactions on SQLite answer 503 here, and its client tries again two seconds later."""
    monkeypatch.setenv("NORMASCOPE_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    try:
        api = server.ensure_server() + "/api"
        flow = httpx.post(f"{api}/flows/", json={"name": "flow"}, timeout=60).json()["id"]
        run = httpx.post(f"{api}/flow_runs/", json={"flow_id": flow}, timeout=60).json()["id"]

        def create(number: int) -> int:
            task = {"flow_run_id": run, "task_key": "task", "dynamic_key": str(number), "state": {"type": "RUNNING"}}
            return httpx.post(f"{api}/task_runs/", json=task, timeout=60).status_code

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(create, range(200)))
    finally:
        server.stop_server()
    assert set(answers) == {201}
