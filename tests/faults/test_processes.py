"""Processes that are killed or stopped in the middle: workers, the scheduler, the flow's own, by Ctrl-C and from Prefect's UI."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psutil
import pytest

from storage.scores import ScoreStore
from tests.faults.harness import SHARDS_IN_FLIGHT, Cost, Scene, Scoring, assert_same_arrays, kill, wait_until_gone, workers_of
from tests.servers import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CANCELLED = 130


def conclude(scoring: Scoring, undisturbed: ScoreStore, *, fault_s: float) -> None:
    """Proof that nothing is missing or wrong, and that nothing was done again but what was in flight."""
    scoring.verify()
    assert_same_arrays(scoring.scores(), undisturbed)
    in_flight = scoring.in_flight(fault_s)
    assert scoring.shards_begun_again() <= in_flight
    assert len(in_flight) <= SHARDS_IN_FLIGHT


def test_sigkill_of_a_worker(scene: Scene, undisturbed: ScoreStore, costs: list[Cost]) -> None:
    scoring = Scoring(scene, "worker")
    process = scoring.start_and_wait()
    workers_of(process)[0].kill()
    fault_s = time.time()
    scoring.finish(process)
    costs.append(scoring.cost("SIGKILL of a worker", fault_s=fault_s))
    conclude(scoring, undisturbed, fault_s=fault_s)


@pytest.mark.parametrize("scoring", ["local", "S3"], indirect=True)
def test_sigkill_of_the_flow(scoring: Scoring, undisturbed: ScoreStore, costs: list[Cost]) -> None:
    fault_s = kill(scoring.start_and_wait())
    scoring.finish()
    costs.append(scoring.cost("SIGKILL of the flow", fault_s=fault_s))
    conclude(scoring, undisturbed, fault_s=fault_s)


def test_ctrl_c(scene: Scene, undisturbed: ScoreStore, costs: list[Cost]) -> None:
    scoring = Scoring(scene, "ctrl-c")
    process = scoring.start_and_wait()
    workers = workers_of(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 128 + signal.SIGINT
    wait_until_gone(workers)
    fault_s = time.time()
    scoring.finish()
    costs.append(scoring.cost("Ctrl-C", fault_s=fault_s))
    conclude(scoring, undisturbed, fault_s=fault_s)


def test_cancelled_in_the_ui(scene: Scene, undisturbed: ScoreStore, costs: list[Cost]) -> None:
    scoring = Scoring(scene, "cancelled")
    process = scoring.start_and_wait()
    workers = workers_of(process)
    cancel_in_the_ui(scoring)
    assert process.wait(timeout=300) == CANCELLED, scoring.said()
    wait_until_gone(workers)
    fault_s = time.time()
    scoring.finish()
    costs.append(scoring.cost("cancelled in Prefect's UI", fault_s=fault_s))
    conclude(scoring, undisturbed, fault_s=fault_s)


def test_sigkill_of_the_scheduler(scene: Scene, undisturbed: ScoreStore, costs: list[Cost]) -> None:
    (port,) = free_ports(1)
    address = f"tcp://127.0.0.1:{port}"
    scoring = Scoring(scene, "scheduler", options=("--execution", address))
    at_address = ("scheduler", "--host", "127.0.0.1", "--port", str(port))
    workers = ("worker", address, "--nworkers", "2", "--nthreads", "2")
    with dask(*at_address, environment=scoring.environment) as scheduler, dask(*workers, environment=scoring.environment):
        process = scoring.start_and_wait()
        fault_s = time.time()
        scheduler.kill()
        scheduler.wait()
        # `dask worker` ends with its scheduler; whoever keeps them running (systemd, Kubernetes) starts both again
        with dask(*at_address, environment=scoring.environment), dask(*workers, environment=scoring.environment):
            scoring.finish(process)
    costs.append(scoring.cost("SIGKILL of the scheduler", fault_s=fault_s))
    conclude(scoring, undisturbed, fault_s=fault_s)


@contextmanager
def dask(*arguments: str, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`dask scheduler` or `dask worker`, ended with its children."""
    command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        if process.poll() is None:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                one.kill()
            process.wait()


def cancel_in_the_ui(scoring: Scoring) -> None:
    """What the button does; flows that were killed are still running there, with other archives in their names."""
    running = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}, "name": {"any_": [f"score {scoring.archive}"]}}}
    (flow_run,) = httpx.post(f"{scoring.api_url()}/flow_runs/filter", json=running).raise_for_status().json()
    state = {"type": "CANCELLING", "name": "Cancelling"}
    httpx.post(f"{scoring.api_url()}/flow_runs/{flow_run['id']}/set_state", json={"state": state}).raise_for_status()
