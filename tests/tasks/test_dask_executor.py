"""Real processes: workers that die, are missing or offer nothing, and a scheduler that goes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tasks.dask_executor import DaskExecutor, NoWorkerError, WorkersDiedError
from tasks.execution import ExecutionConfig

IMPORTED_BY = os.getpid()
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def double(value: int) -> int:
    return 2 * value


def fail(value: int) -> int:
    raise ValueError(f"no {value}")


def nap(value: int) -> int:
    time.sleep(0.2)
    return value


def pid_of(_item: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def say_who_imported(_item: int) -> tuple[int, int]:
    """The process that imported this module, and this one."""
    time.sleep(0.2)
    return IMPORTED_BY, os.getpid()


def overlap(folder: str, value: int) -> int:
    """How many calls are in this process now, this one included."""
    mine = Path(folder, f"{os.getpid()}-{value}")
    mine.touch()
    time.sleep(0.3)
    count = len(list(Path(folder).glob(f"{os.getpid()}-*")))
    mine.unlink()
    return count


def die_if_even(value: int) -> int:
    """Even numbers kill their worker, and odd ones do not."""
    if value % 2 == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def die(value: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return value


def make_odd(value: int) -> int:
    return value | 1


def same(value: int) -> int:
    return value


@contextmanager
def executor_of(**config: object) -> Iterator[DaskExecutor]:
    executor = DaskExecutor(ExecutionConfig.model_validate(config))
    try:
        yield executor
    finally:
        executor.close()


class Dask:
    """Processes of `dask scheduler` and `dask worker`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        self.address = ""

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        """At the port of the one before, where there was one."""
        file = self._folder / "scheduler.json"
        file.unlink(missing_ok=True)
        port = self.address.rpartition(":")[2] or "0"
        process = self._start("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard", "--scheduler-file", str(file))
        deadline = time.monotonic() + 60
        while not file.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.address = json.loads(file.read_text())["address"]
        return process

    def start_worker(self, *options: str) -> subprocess.Popen[bytes]:
        """Without a nanny."""
        return self._start("worker", self.address, "--host", "127.0.0.1", "--no-dashboard", "--no-nanny", "--nthreads", "1", *options)

    def stop(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [str(Path(sys.executable).parent / "dask"), *arguments]
        with (self._folder / "dask.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self._folder)
        self._started.append(process)
        return process


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[Dask]:
    """A scheduler without workers."""
    processes = Dask(tmp_path)
    processes.start_scheduler()
    yield processes
    processes.stop()


@pytest.fixture(scope="module")
def local() -> Iterator[DaskExecutor]:
    """Two processes on this machine."""
    with executor_of(kind="local", workers=2) as executor:
        yield executor


def test_local_cluster_gives_all_results_and_raises_the_first_error(local: DaskExecutor) -> None:
    assert sorted(local.map(double, range(20))) == [2 * value for value in range(20)]
    with pytest.raises(ValueError, match=r"no "):
        list(local.map(fail, [1, 2]))
    assert local.run(max, 3, 4) == 4


def test_workers_share_one_import_of_what_they_run() -> None:
    call = (
        "from tasks.execution import ExecutionConfig, executor_for\n"
        "from tests.tasks.test_dask_executor import say_who_imported\n"
        "print(list(executor_for(ExecutionConfig(workers=2)).map(say_who_imported, range(20))))"
    )
    ended = subprocess.run([sys.executable, "-c", call], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    importers, workers = map(set, zip(*json.loads(ended.stdout.replace("(", "[").replace(")", "]")), strict=True))
    assert (len(importers), len(workers)) == (1, 2)
    assert not importers & workers


def test_a_worker_sees_the_environment_of_the_day_its_cluster_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("first", "second"):
        monkeypatch.setenv("NORMASCOPE_OF_THE_DAY", value)
        with executor_of(kind="local", workers=1) as executor:
            assert executor.run(os.getenv, "NORMASCOPE_OF_THE_DAY") == value


def test_items_are_taken_a_few_ahead_of_the_results(local: DaskExecutor) -> None:
    taken = []
    results = local.map(nap, (taken.append(item) or item for item in range(100_000)), rescue=same)  # type: ignore[func-returns-value]
    for _ in range(4):
        next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 10
    assert local.run(double, 1) == 2  # what was cancelled leaves its room


def test_calls_share_a_process_only_when_they_may(local: DaskExecutor, tmp_path: Path) -> None:
    assert set(local.map(partial(overlap, str(tmp_path)), range(8))) == {1}
    assert max(local.map(partial(overlap, str(tmp_path)), range(8), together=2)) == 2


def test_a_worker_that_is_killed_once_costs_nothing(local: DaskExecutor) -> None:
    results = local.map(pid_of, range(60))
    killed = next(results)
    os.kill(killed, signal.SIGKILL)
    assert len(list(results)) == 59
    assert set(local.map(pid_of, range(30))) - {killed}  # the nanny has started another


def test_an_item_that_kills_its_workers_is_rescued_and_its_neighbours_are_done(local: DaskExecutor) -> None:
    assert sorted(local.map(die_if_even, [1, 4, 7, 9, 11], rescue=make_odd)) == [1, 5, 7, 9, 11]


def test_an_item_that_cannot_be_rescued_is_named(local: DaskExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.dask_executor._RESCUES_MAX", 1)
    with pytest.raises(WorkersDiedError, match=r"was given 77 died"):
        list(local.map(die, [77], rescue=same))


@pytest.mark.parametrize("taken", [1, 3])
def test_an_executor_that_is_closed_by_another_thread_is_a_lost_connection(taken: int) -> None:
    with executor_of(kind="local", workers=1) as executor:
        results = executor.map(nap, range(1000))
        for _ in range(taken):
            next(results)
        closing = threading.Thread(target=lambda: (time.sleep(0.1), executor.close()))
        closing.start()
        with pytest.raises(ConnectionError, match="went away"):
            list(results)
        closing.join()
        assert executor.run(double, 21) == 42  # on a new cluster


def test_a_connection_that_is_closed_while_workers_are_looked_for_is_a_lost_one(
    local: DaskExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert local.run(double, 1) == 2
    with monkeypatch.context() as patch:
        patch.setattr("distributed.Client.scheduler_info", lambda *_arguments, **_options: {})
        with pytest.raises(ConnectionError, match="went away"):
            local.run(double, 1)
    assert local.run(double, 1) == 2


def test_a_resource_that_this_machine_has_not_is_named() -> None:
    with executor_of(kind="local", resources={"TPU": 1}) as executor, pytest.raises(NoWorkerError, match=r"this machine offers no TPU=1"):
        executor.run(double, 1)


def test_a_resource_that_no_worker_offers_is_named_after_a_short_wait(dask: Dask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.dask_executor._RESOURCE_TIMEOUT_S", 2)
    dask.start_worker("--resources", "GPU=1")
    with executor_of(kind="address", address=dask.address) as executor:
        assert executor.run(double, 1) == 2
    with (
        executor_of(kind="address", address=dask.address, resources={"TPU": 2}) as executor,
        pytest.raises(NoWorkerError, match=r"none of the 1 workers at tcp.* offers TPU=2 \(they offer GPU=1\)"),
    ):
        executor.run(double, 1)
    with executor_of(kind="address", address=dask.address, resources={"GPU": 1}) as executor:
        assert executor.run(double, 1) == 2


def test_a_cluster_that_shrinks_to_nothing_is_an_error_and_can_grow_again(dask: Dask) -> None:
    worker = dask.start_worker()
    with executor_of(kind="address", address=dask.address, no_worker_timeout_s=3) as executor:
        results = executor.map(nap, range(100))
        next(results)
        worker.kill()
        with pytest.raises(NoWorkerError, match=r"no worker for 3 s: what was finished is kept"):
            list(results)
        dask.start_worker()
        assert sorted(executor.map(nap, range(3))) == [0, 1, 2]


def test_a_scheduler_that_is_killed_is_an_error_and_the_next_call_finds_the_one_that_came_after_it(dask: Dask) -> None:
    (first,) = dask._started
    dask.start_worker()
    with executor_of(kind="address", address=dask.address) as executor:
        results = executor.map(nap, range(100))
        next(results)
        first.kill()
        first.wait()
        with pytest.raises(ConnectionError, match=r"the Dask scheduler at tcp.* went away"):
            list(results)
        dask.start_scheduler()
        dask.start_worker()
        assert sorted(executor.map(nap, range(3))) == [0, 1, 2]
