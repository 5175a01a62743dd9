"""Where functions run: in this process, on a local Dask cluster, or on the cluster at an address. One interface, the same results.

A function and its arguments travel as they are, so they are importable and small: references, never arrays of an archive.
"""

import atexit
import ctypes
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_CONNECT_TIMEOUT_S = 15
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_executors: dict["ExecutionConfig", "Executor"] = {}
_executors_lock = threading.Lock()


class ExecutionConfig(BaseModel):
    """Where the heavy functions run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["process", "local", "address"] = "local"
    address: str | None = Field(default=None, description="of a running Dask scheduler, as tcp://host:8786; only with kind: address")
    workers: int | None = Field(default=None, ge=1, description="processes of the local cluster; one a core when not given")
    threads: int = Field(default=1, ge=1, description="computing threads of each function; part of what makes results equal to the bit")

    @model_validator(mode="after")
    def _address_belongs_to_its_kind(self) -> "ExecutionConfig":
        if (self.kind == "address") != (self.address is not None):
            raise ValueError("execution.address is given exactly when execution.kind is 'address'")
        return self


class Executor(Protocol):
    """Runs one function over many items."""

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Results as they come, in any order; the first error is raised and what has not begun is cancelled."""
        ...

    def run(self, function: Callable[..., R], *arguments: Any) -> R:
        """One call."""
        ...


class ProcessExecutor:
    """Runs everything here, one after the other."""

    def __init__(self, config: ExecutionConfig) -> None:
        self._threads = config.threads
        self._lock = threading.Lock()  # the tasks of a flow call from several threads; the work itself is serial

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """See `Executor`."""
        for item in items:
            yield self.run(function, item)

    def run(self, function: Callable[..., R], *arguments: Any) -> R:
        """See `Executor`."""
        with self._lock:
            return _call(function, self._threads, *arguments)


class DaskExecutor:
    """Runs on a Dask cluster: a local one started at the first call, or the one at an address."""

    def __init__(self, config: ExecutionConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._client: Any = None
        self._cluster: Any = None

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """See `Executor`."""
        from distributed import as_completed

        client = self._connect()
        futures = [client.submit(_call, function, self._config.threads, item, pure=False) for item in items]
        try:
            for future in as_completed(futures, loop=client.loop):
                yield future.result()  # not wait(): that swallows a worker that keeps dying
                future.release()
        finally:
            client.cancel(futures)

    def run(self, function: Callable[..., R], *arguments: Any) -> R:
        """See `Executor`."""
        future = self._connect().submit(_call, function, self._config.threads, *arguments, pure=False)
        try:
            result: R = future.result()
            return result
        finally:
            future.cancel()

    def close(self) -> None:
        """Stop the local cluster, or leave the remote one."""
        with self._lock:
            for resource in (self._client, self._cluster):
                if resource is not None:
                    resource.close()
            self._client = self._cluster = None

    def _connect(self) -> Any:
        from distributed import Client, LocalCluster

        with self._lock:
            if self._client is None:
                if self._config.kind == "address":
                    try:
                        self._client = Client(self._config.address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False)
                    except OSError as error:
                        raise ConnectionError(
                            f"no Dask scheduler answers at {self._config.address} within {_CONNECT_TIMEOUT_S} s: start one "
                            "(`dask scheduler`), correct execution.address, or leave `execution` out to use this machine"
                        ) from error
                else:
                    self._cluster = LocalCluster(
                        n_workers=self._config.workers or available_cores(),
                        threads_per_worker=1,
                        processes=True,
                        dashboard_address=None,
                        host="127.0.0.1",
                    )
                    self._client = Client(self._cluster, set_as_default=False)
        return self._client


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def executor_for(config: ExecutionConfig) -> Executor:
    """The executor of a configuration, one for the whole process: a cluster is started once and only when there is work."""
    with _executors_lock:
        if config not in _executors:
            if config.kind == "process":
                _executors[config] = ProcessExecutor(config)
            else:
                _executors[config] = executor = DaskExecutor(config)
                atexit.register(executor.close)
        return _executors[config]


@cache
def keep_freed_memory() -> None:
    """Have the C library keep the large blocks that are freed, up to a gibibyte, for the next batch.

    By default (and more so below Dask's nannies) it gives every activation back to the kernel and has its pages zeroed again for the
    next one: half of the time of scoring on a CPU went there (61 against 32 ms a tile). Nothing happens where there is no glibc.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def _call(function: Callable[..., R], threads: int, *arguments: Any) -> R:
    import torch

    keep_freed_memory()
    # inside the call, because a thread of a Dask worker does not see what was set in another
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return function(*arguments)
