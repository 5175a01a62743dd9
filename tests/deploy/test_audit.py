"""What CI says of known vulnerabilities: none, some, nobody to ask, a lock that cannot be read; the service is one on loopback."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.deployed import ROOT
from tests.servers import free_ports

LOCK = f"leaky==1.0 \\\n    --hash=sha256:{'0' * 64}\n"
VULNERABILITY = {
    "id": "OSV-2026-1",
    "summary": "it leaks",
    "affected": [{"package": {"name": "leaky", "ecosystem": "PyPI"}, "ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": "1.1"}]}]}],
}


@contextmanager
def service(status: int, answer: dict[str, Any]) -> Iterator[str]:
    """The address of something that answers every question the same."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: Any) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def audit(lock: Path, address: str) -> tuple[int, str]:
    """The exit status and all that was said."""
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    found = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PIP_AUDIT_OSV_URL": address, "TMPDIR": str(lock.parent)}
    done = subprocess.run([ROOT / ".ci" / "audit", lock], env=kept | found, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("status", "answer", "exits", "says"),
    [
        (200, {}, 0, "none"),
        (200, {"vulns": [VULNERABILITY]}, 1, "OSV-2026-1"),
        (503, {}, 3, "does not answer"),
    ],
)
def test_a_finding_is_not_taken_for_a_service_that_does_not_answer(
    tmp_path: Path, status: int, answer: dict[str, Any], exits: int, says: str
) -> None:
    (tmp_path / "lock").write_text(LOCK)
    with service(status, answer) as address:
        code, said = audit(tmp_path / "lock", address)
    assert (code, says in said) == (exits, True), said
    assert exits == 1 or said.count("\n") == 1


def test_without_a_network_one_line_says_so_and_a_lock_without_hashes_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(LOCK)
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
    code, said = audit(tmp_path / "lock", nobody)
    assert (code, said.count("\n")) == (3, 1), said
    assert "not looked for" in said
    (tmp_path / "lock").write_text("leaky==1.0\n")
    code, said = audit(tmp_path / "lock", nobody)
    assert (code, "does not contain a hash" in said) == (1, True), said
