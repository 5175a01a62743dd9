"""Who holds a lease, who takes it over, who is told: with real processes that are killed and stopped, on a disk and in a bucket."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import conditional, filesystems, leases
from storage.leases import LeaseHeldError, LeaseLostError, hold_lease
from tests.servers import S3Server, s3_server

# argument: where; says what happens, a line each, and goes on when it is told to
HOLDER = """
import sys
from storage.leases import LeaseHeldError, LeaseLostError, hold_lease
try:
    with hold_lease(sys.argv[1], {"run": "brave-otter"}, lease_s=float(sys.argv[2])) as lease:
        print("held", flush=True)
        sys.stdin.readline()
        try:
            lease.check()
            print("kept", flush=True)
        except LeaseLostError as error:
            print("lost", error, flush=True)
except LeaseHeldError as error:
    print("refused", error, flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(params=["local", pytest.param("bucket", marks=pytest.mark.slow)])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a lease's file will be."""
    if request.param == "local":
        return str(tmp_path / "archive" / "lease.json")
    return f"{request.getfixturevalue('server').bucket}/{tmp_path.name}/lease.json"


@pytest.fixture
def start() -> Iterator[Any]:
    """Start processes that hold a lease; those that live are killed at the end."""
    running: list[subprocess.Popen[str]] = []

    def started(uri: str, *, lease_s: float = 60) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, uri, str(lease_s)]
        running.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]))
        return running[-1]

    yield started
    for process in running:
        process.kill()
        process.communicate()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def write_record(uri: str, **changed: Any) -> None:
    """A lease of a process on another machine that runs out in a minute."""
    now = time.time()
    record = {"host": "elsewhere", "space": "elsewhere", "pid": 42, "started": now, "nonce": "n", "since": now, "expires_at": now + 60}
    filesystems.write_json(uri, {**record, **changed})


def test_a_lease_that_is_held_is_refused_with_its_holder_and_free_again_afterwards(uri: str) -> None:
    with hold_lease(uri, {"run": "brave-otter"}) as lease:
        with pytest.raises(LeaseHeldError, match=rf"held by process {os.getpid()} on .*, run brave-otter since 2.* UTC; .* runs out at 2"):
            hold_lease(uri, {}).__enter__()
        lease.check()
    with hold_lease(uri, {}) as lease:
        lease.check()


def test_it_is_given_back_when_its_holder_fails(uri: str) -> None:
    with pytest.raises(ZeroDivisionError), hold_lease(uri, {}):
        1 / 0  # noqa: B018
    with hold_lease(uri, {}):
        pass


def test_a_lease_of_another_machine_is_taken_over_when_it_has_run_out_and_not_before(uri: str) -> None:
    write_record(uri)
    with pytest.raises(LeaseHeldError, match="held by process 42 on elsewhere since"):
        hold_lease(uri, {}).__enter__()
    write_record(uri, expires_at=time.time() - 1)
    with hold_lease(uri, {}) as lease:
        lease.check()


def test_a_dead_process_of_this_host_is_known_by_when_it_began_also_if_its_number_was_given_again(uri: str) -> None:
    write_record(uri, **{**leases._identity(), "started": 1.0})
    with hold_lease(uri, {}) as lease:
        lease.check()


def test_it_is_renewed_while_it_is_held(uri: str) -> None:
    with hold_lease(uri, {}, lease_s=0.4) as lease:
        first = json.loads(conditional.read(uri)[0])["expires_at"]
        deadline = time.monotonic() + 30
        while json.loads(conditional.read(uri)[0])["expires_at"] <= first + 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        lease.check()


def test_who_was_taken_over_is_told_by_whom_and_leaves_the_lease_alone(uri: str) -> None:
    with hold_lease(uri, {}) as lease:
        write_record(uri, nonce="theirs")
        lease._record["expires_at"] = 0.0
        with pytest.raises(LeaseLostError, match="not renewed in time and is held by process 42 on elsewhere"):
            lease.check()
    assert json.loads(conditional.read(uri)[0])["nonce"] == "theirs"


def test_a_store_that_does_not_answer_for_a_while_costs_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, real, refused = str(tmp_path / "lease.json"), conditional.replace, list[str]()

    def replace(uri: str, content: bytes, version: str) -> str:
        if len(refused) < 3:
            refused.append(uri)
            raise ConnectionError("gone")
        return real(uri, content, version)

    monkeypatch.setattr(conditional, "replace", replace)
    with hold_lease(uri, {}, lease_s=0.4) as lease:
        deadline = time.monotonic() + 30
        while len(refused) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        lease.check()


def test_a_renewal_that_arrived_and_whose_answer_did_not_costs_no_lease(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = conditional.replace

    def replace(*arguments: Any) -> str:
        real(*arguments)
        raise ConnectionError("no answer")

    with hold_lease(uri, {}) as lease:
        lease._record["expires_at"] = 0.0
        with monkeypatch.context() as patch:
            patch.setattr(conditional, "replace", replace)
            with pytest.raises(ConnectionError):
                lease.check()
        lease.check()


def test_of_threads_that_ask_at_once_one_gets_it(uri: str) -> None:
    gate, done, held, refused = threading.Barrier(4), threading.Event(), list[str](), list[str]()

    def ask() -> None:
        gate.wait()
        try:
            with hold_lease(uri, {}):
                held.append("held")
                done.wait(30)
        except LeaseHeldError as error:
            refused.append(str(error))
        if len(refused) == 3:
            done.set()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 3)


@pytest.mark.slow
def test_of_processes_that_start_at_once_one_works_and_a_killed_one_is_taken_over_at_once(uri: str, start: Any) -> None:
    processes = [start(uri) for _ in range(3)]
    lines = {process: read_line(process) for process in processes}
    [holder] = [process for process, line in lines.items() if line == "held"]
    for process, line in lines.items():
        assert process is holder or (line.startswith("refused") and f"process {holder.pid} " in line and "run brave-otter" in line)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with hold_lease(uri, {}) as lease:
        lease.check()


@pytest.mark.slow
def test_a_process_that_stood_still_too_long_is_taken_over_and_told_when_it_goes_on(uri: str, start: Any) -> None:
    process = start(uri, lease_s=2)
    assert read_line(process) == "held"
    process.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while True:
        try:
            with hold_lease(uri, {"run": "calm-heron"}) as lease:
                process.send_signal(signal.SIGCONT)
                process.stdin.write("go on\n")
                process.stdin.flush()
                line = read_line(process)
                lease.check()
            break
        except LeaseHeldError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert line.startswith("lost")
    assert f"process {os.getpid()} " in line
    assert "calm-heron" in line
