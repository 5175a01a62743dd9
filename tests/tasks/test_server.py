import socket
from pathlib import Path

import pytest

from tasks import server


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


@pytest.mark.slow
def test_the_server_outlives_the_call_is_used_again_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMASCOPE_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    try:
        address = server.ensure_server()
        monkeypatch.delenv("PREFECT_API_URL")
        assert server.ensure_server() == address
        assert server.is_healthy(f"{address}/api")
    finally:
        stopped = server.stop_server()
    assert stopped is not None
    assert not server.is_healthy(f"{stopped.ui_url}/api")
    assert (tmp_path / "prefect" / "prefect.db").exists()
