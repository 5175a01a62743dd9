"""The executor on a Dask cluster: few calls in flight, and an end to every wait.

Dask tries a call again where a worker died, which is right for a machine that fails and endless for a sample that kills. It waits in
silence for workers and resources that nobody has, and forgets all calls when the scheduler goes. Here each of these is said.
"""

import logging
import math
import multiprocessing
import os
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import dask
from distributed import Client, Future, KilledWorker, Nanny, Scheduler, SpecCluster
from distributed.client import FutureCancelledError
from distributed.system import MEMORY_LIMIT
from distributed.utils import get_mp_context

from tasks.execution import ExecutionConfig, available_cores, call, preloaded
from tasks.logs import carry_ids

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_CONNECT_TIMEOUT_S = 15
_LOOK_S = 2  # between two looks at who is there, while no result comes
_GATHER_TIMEOUT_S = 60
_RESOURCE_TIMEOUT_S = 15  # workers are there, but none offers what is wanted
_ALLOWED_FAILURES = 1  # a worker can die of an accident; a call that was there at two deaths is rescued
_RESCUES_MAX = 64
_LOST_TIMEOUT_S = 120  # the default, 15, closes nannies whose workers are just starting, on a machine that is busy
_THREADS_PER_PROCESS = 2  # one call reads or writes while the other computes, where calls may run together
_PROCESS = "process"  # the resource of a local worker that calls share, or have for themselves
_SPARE, _SPARE_RESCUED = 16, 1  # calls that wait at a worker; its death is blamed on them as well, and who is rescued pays for that
_END: Any = object()


class NoWorkerError(RuntimeError):
    """A cluster has no worker that could do the work, for longer than is waited."""


class WorkersDiedError(RuntimeError):
    """Every worker that was given an item died, however it was rescued."""


class DaskExecutor:
    """Runs on a Dask cluster: a local one started at the first call, or the one at an address.

    Every call raises `NoWorkerError` when nobody is there who could work, and ConnectionError when the scheduler went away or does
    not answer; the next call connects anew.
    """

    def __init__(self, config: ExecutionConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._cluster: _Cluster | None = None

    def map(
        self, function: Callable[[T], R], items: Iterable[T], *, rescue: Callable[[T], T] | None = None, together: int = 1
    ) -> Iterator[R]:
        """See `Executor`.

        Raises:
            WorkersDiedError: an item was rescued 64 times and killed its workers again.
        """
        waiting = iter(items)
        carried = partial(call, carry_ids(function), self._config.threads)
        flight: _Flight[T] = _Flight(self._connect(_module_of(function)), carried, together, rescued=rescue is not None)
        try:
            flight.find_workers()
            while True:
                while flight.has_room() and (item := next(waiting, _END)) is not _END:
                    flight.submit(_Passenger(item))
                if not flight.aboard:
                    return
                passenger, outcome = flight.wait_for_one()
                if not isinstance(outcome, KilledWorker):
                    yield outcome
                elif rescue is not None:
                    flight.submit(_rescue(passenger, rescue, outcome))
                else:
                    raise outcome
        except _SchedulerLostError as error:
            self._leave(flight.cluster)
            raise ConnectionError(
                f"the Dask scheduler at {flight.cluster.address} went away: what was finished is kept, and the same command goes on there"
            ) from error
        finally:
            flight.abort()

    def run(self, function: Callable[..., R], *arguments: Any) -> R:
        """See `Executor`."""
        (result,) = self.map(partial(_unpack, function), [arguments])
        return result

    def close(self) -> None:
        """Stop the local cluster, or leave the remote one."""
        with self._lock:
            cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.close()

    def _connect(self, module: str) -> "_Cluster":
        """The cluster, which is started for a function of a module where there is none yet."""
        with self._lock:
            if self._cluster is None:
                self._cluster = _Cluster(self._config, module)
            return self._cluster

    def _leave(self, cluster: "_Cluster") -> None:
        with self._lock:
            if self._cluster is cluster:
                self._cluster = None
        cluster.close()


class _SchedulerLostError(Exception):
    """The calls in flight are forgotten."""


class _Cluster:
    """A connection to a scheduler, and the workers behind it."""

    def __init__(self, config: ExecutionConfig, module: str) -> None:
        self.config = config
        self.lock = threading.Lock()
        self.in_flight = 0  # calls of all threads
        self._closing, self._closed = threading.Lock(), False
        self._local = None if config.kind == "address" else _start_local_cluster(config, module)
        self.address = config.address if self._local is None else self._local.scheduler_address
        try:
            self.client = Client(self.address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False)
        except OSError as error:
            raise ConnectionError(
                f"no Dask scheduler answers at {self.address} within {_CONNECT_TIMEOUT_S} s: start one "
                "(`dask scheduler`), correct execution.address, or leave `execution` out to use this machine"
            ) from error

    def wanted(self, together: int) -> dict[str, float]:
        """The resources that one call takes, when so many share a process."""
        of_process = self.config.resources | ({_PROCESS: 1} if self._local is not None else {})
        return {name: amount / together for name, amount in of_process.items()}

    def workers(self) -> list[dict[str, Any]]:
        """Those that are there now.

        Raises:
            _SchedulerLostError: the scheduler does not answer.
        """
        if self.client.status != "running":
            raise _SchedulerLostError
        try:
            return list(self.client.scheduler_info()["workers"].values())
        except (OSError, KeyError) as error:  # a client that is closed meanwhile answers with nothing
            raise _SchedulerLostError from error

    def replace_lost(self) -> None:
        """Have local processes that the nannies gave up started again."""
        if self._local is not None:
            self._local.scale(len(self._local.worker_spec))

    def close(self) -> None:
        """End it; of several threads that ask for it one does, and the others wait."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self.client.close()
                if self._local is not None:
                    self._local.close()


@dataclass(frozen=True)
class _Passenger(Generic[T]):
    """An item, and how often its workers died."""

    item: T
    rescues: int = 0


class _Flight(Generic[T]):
    """The calls of one `map` that are handed to the cluster and not yet done."""

    def __init__(self, cluster: _Cluster, function: Callable[[T], Any], together: int, *, rescued: bool) -> None:
        self.cluster = cluster
        self.aboard: dict[Future, _Passenger[T]] = {}
        self._function = function
        self._wanted = cluster.wanted(together)
        self._done: SimpleQueue[Future] = SimpleQueue()
        self._alone_since: float | None = None
        self._spare = _SPARE_RESCUED if rescued else _SPARE
        self._room = 0

    def find_workers(self) -> None:
        """Wait until somebody is there who can work.

        Raises:
            NoWorkerError, _SchedulerLostError: as `wait_for_one`.
        """
        while not self._look():
            time.sleep(0.2)

    def has_room(self) -> bool:
        """Whether another call should be handed over: the threads of a flow share the room, and each has room for one."""
        return not self.aboard or self.cluster.in_flight < self._room

    def submit(self, passenger: _Passenger[T]) -> None:
        """Hand a call to the cluster.

        Raises:
            _SchedulerLostError: the connection was closed meanwhile.
        """
        try:
            future = self.cluster.client.submit(self._function, passenger.item, pure=False, resources=self._wanted or None)
        except Exception as error:
            if self.cluster.client.status == "running":
                raise
            raise _SchedulerLostError from error
        with self.cluster.lock:
            self.cluster.in_flight += 1
        self.aboard[future] = passenger
        future.add_done_callback(self._done.put)

    def wait_for_one(self) -> tuple[_Passenger[T], Any]:
        """The next item that is done, with its result, or with KilledWorker. Errors of the function are raised.

        Raises:
            NoWorkerError: nobody works on them.
            _SchedulerLostError: they will never be done.
        """
        while True:
            try:
                future = self._done.get(timeout=_LOOK_S)
            except Empty:
                self._look()
                continue
            try:
                outcome = self._fetch(future)
            except KilledWorker as error:
                outcome = error
            except (Exception, FutureCancelledError) as error:
                if future.status == "error":
                    raise
                if future.status == "cancelled" or not isinstance(error, TimeoutError):
                    raise _SchedulerLostError from error
                future.add_done_callback(self._done.put)  # the worker died with the result: it is done again
                continue
            with self.cluster.lock:
                self.cluster.in_flight -= 1
            return self.aboard.pop(future), outcome

    def _fetch(self, future: Future) -> Any:
        """Its result: not by wait(), which swallows a worker that keeps dying. A connection that is closed meanwhile answers nothing."""
        until = time.monotonic() + _GATHER_TIMEOUT_S
        while True:
            try:
                return future.result(timeout=_LOOK_S)
            except TimeoutError as error:
                if self.cluster.client.status != "running":
                    raise _SchedulerLostError from error
                if future.status == "error" or time.monotonic() > until:
                    raise

    def abort(self) -> None:
        """Cancel what is not done."""
        with self.cluster.lock:
            self.cluster.in_flight -= len(self.aboard)
        if self.aboard and self.cluster.client.status == "running":
            self.cluster.client.cancel(list(self.aboard))
        self.aboard.clear()

    def _look(self) -> bool:
        """Whether somebody is there who can work; raises when nobody has been for too long."""
        workers = self.cluster.workers()
        slots = [_slots(worker, self._wanted) for worker in workers]
        self._room = sum(count + self._spare for count in slots if count)
        if self._room:
            self._alone_since = None
            return True
        self.cluster.replace_lost()
        self._alone_since = self._alone_since or time.monotonic()
        alone_s = time.monotonic() - self._alone_since
        config = self.cluster.config
        if workers and alone_s > _RESOURCE_TIMEOUT_S:
            offered = sorted(
                {f"{name}={amount:g}" for worker in workers for name, amount in worker["resources"].items() if name != _PROCESS}
            )
            raise NoWorkerError(
                f"none of the {len(workers)} workers at {self.cluster.address} offers {_say(config.resources)} (they offer "
                f"{', '.join(offered) or 'nothing'}): start one with `dask worker --resources`, or correct execution.resources"
            )
        if not workers and alone_s > config.no_worker_timeout_s:
            raise NoWorkerError(
                f"the Dask cluster at {self.cluster.address} has had no worker for {config.no_worker_timeout_s:g} s: what was finished is "
                "kept; start workers (`dask worker`) and give the same command again"
            )
        return False


def _start_local_cluster(config: ExecutionConfig, module: str) -> SpecCluster:
    """Processes that are started again when they die; with a GPU wanted, one for each, which sees no other.

    They are forked from one that has imported the module, and what `tasks.execution.preload` was told, and does nothing else: imports are
    paid once and not by every worker, and their memory is shared.
    """
    environments = _environments(config)
    if not environments:
        raise NoWorkerError(
            f"this machine offers no {_say(config.resources)}: correct execution.resources, or give the address of a cluster"
        )
    dask.config.set(
        {
            "distributed.deploy.lost-worker-timeout": f"{_LOST_TIMEOUT_S}s",
            # what nobody looks at takes processor time from the workers: a profiler that walks every stack 100 times a second, and a
            # measure of each event loop's delay, 50 times a second
            "distributed.worker.profile.enabled": False,
            "distributed.admin.tick.interval": "500ms",
            "distributed.worker.multiprocessing-method": "forkserver",
        }
    )
    get_mp_context()  # names Dask's own packages the first time it is called, and would replace what is named here
    multiprocessing.set_forkserver_preload(["__main__", "distributed", "torch", module, *preloaded()])  # torch: see `call`
    options = {
        "nthreads": _THREADS_PER_PROCESS,
        "memory_limit": int(MEMORY_LIMIT / len(environments)),
        "resources": {_PROCESS: 1, **config.resources},
        "host": "127.0.0.1",
        "dashboard": False,
        "silence_logs": logging.CRITICAL,  # of what a worker says of its own end; what matters the nanny and the scheduler say here
    }
    workers = {number: {"cls": Nanny, "options": {**options, "env": {**os.environ, **env}}} for number, env in enumerate(environments)}
    scheduler = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0", "allowed_failures": _ALLOWED_FAILURES}
    return SpecCluster(scheduler={"cls": Scheduler, "options": scheduler}, workers=workers, silence_logs=logging.WARNING)


def _environments(config: ExecutionConfig) -> list[dict[str, str]]:
    """The variables of each process of the local cluster; none where the machine has not what is wanted."""
    if not config.resources:
        return [{} for _ in range(config.workers or max(1, available_cores() // config.threads))]
    if set(config.resources) != {"GPU"}:
        return []
    import torch

    gpus = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    return [{"CUDA_VISIBLE_DEVICES": name} for name in visible.split(",")[: min(gpus, config.workers or gpus)]]


def _slots(worker: Mapping[str, Any], wanted: Mapping[str, float]) -> int:
    """Calls that a worker can run at once."""
    by_resource = [math.floor(worker["resources"].get(name, 0) / amount + 1e-9) for name, amount in wanted.items()]
    return min(worker["nthreads"], *by_resource) if by_resource else int(worker["nthreads"])


def _rescue(passenger: _Passenger[T], rescue: Callable[[T], T], error: KilledWorker) -> _Passenger[T]:
    name = textwrap.shorten(repr(passenger.item), 300, placeholder=" …")
    if passenger.rescues == _RESCUES_MAX:
        raise WorkersDiedError(f"every worker that was given {name} died: {error}") from error
    logger.warning("the workers that were given %s died; it is tried with more care", name)
    return _Passenger(rescue(passenger.item), passenger.rescues + 1)


def _module_of(function: Callable[..., Any]) -> str:
    """Where a function stands, whatever of it is already given."""
    while isinstance(function, partial):
        function = function.args[0] if function.func is _unpack else function.func
    return function.__module__


def _say(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in resources.items())


def _unpack(function: Callable[..., R], arguments: tuple[Any, ...]) -> R:
    return function(*arguments)
