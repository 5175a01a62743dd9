"""Where functions run: in this process, on a local Dask cluster, or on the cluster at an address. One interface, the same results.

A function and its arguments travel as they are, so they are importable and small: references, never arrays of an archive.
"""

import atexit
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.logs import carry_ids

T = TypeVar("T")
R = TypeVar("R")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_executors: dict[str, "Executor"] = {}
_executors_lock = threading.Lock()
_preloaded: list[str] = []


class ExecutionConfig(BaseModel):
    """Where the heavy functions run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["process", "local", "address"] = "local"
    address: str | None = Field(default=None, description="of a running Dask scheduler, as tcp://host:8786; only with kind: address")
    workers: int | None = Field(
        default=None, ge=1, description="processes of the local cluster; when not given, one for as many cores as `threads`, or one a GPU"
    )
    threads: int = Field(default=1, ge=1, description="computing threads of each function; part of what makes results equal to the bit")
    resources: dict[str, float] = Field(
        default={},
        description="what a worker must offer, as GPU: 1 (`dask worker --resources GPU=1`); locally: a worker a GPU",
    )
    no_worker_timeout_s: float = Field(default=60, gt=0, description="a cluster without any worker for so long is an error")

    @model_validator(mode="after")
    def _address_belongs_to_its_kind(self) -> "ExecutionConfig":
        if (self.kind == "address") != (self.address is not None):
            raise ValueError("execution.address is given exactly when execution.kind is 'address'")
        return self


class Executor(Protocol):
    """Runs one function over many items."""

    def map(
        self, function: Callable[[T], R], items: Iterable[T], *, rescue: Callable[[T], T] | None = None, together: int = 1
    ) -> Iterator[R]:
        """Results as they come, in any order; the first error is raised and what has not begun is cancelled.

        Args:
            function: importable where it runs; called once an item, and again where its worker died.
            items: taken a few ahead of those that run: there may be millions.
            rescue: makes the item that is tried next in place of one whose workers died.
            together: calls that may run in one process at once; they share its cores and its resources.
        """
        ...

    def run(self, function: Callable[..., R], *arguments: Any) -> R:
        """One call."""
        ...

    def close(self) -> None:
        """End what was started for it; the next call starts it again."""
        ...


class ProcessExecutor:
    """Runs everything here, one after the other."""

    def __init__(self, config: ExecutionConfig) -> None:
        self._threads = config.threads
        self._lock = threading.Lock()  # the tasks of a flow call from several threads; the work itself is serial

    def map(
        self, function: Callable[[T], R], items: Iterable[T], *, rescue: Callable[[T], T] | None = None, together: int = 1
    ) -> Iterator[R]:
        """See `Executor`; what kills the worker kills this process, so nothing is rescued."""
        for item in items:
            yield self.run(function, item)

    def run(self, function: Callable[..., R], *arguments: Any) -> R:
        """See `Executor`."""
        with self._lock:
            return call(carry_ids(function), self._threads, *arguments)

    def close(self) -> None:
        """Nothing was started."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def executor_for(config: ExecutionConfig) -> Executor:
    """The executor of a configuration, one for the whole process: a cluster is started once and only when there is work."""
    key = config.model_dump_json()
    with _executors_lock:
        if key not in _executors:
            if config.kind == "process":
                _executors[key] = ProcessExecutor(config)
            else:
                from tasks.dask_executor import DaskExecutor

                _executors[key] = executor = DaskExecutor(config)
                atexit.register(executor.close)
        return _executors[key]


def parse_execution(text: str) -> ExecutionConfig:
    """Of `local`, `process`, or the address of a Dask scheduler."""
    return ExecutionConfig(kind="address", address=text) if "://" in text else ExecutionConfig.model_validate({"kind": text})


def stop_executor(config: ExecutionConfig) -> None:
    """End the local cluster of a configuration, or leave the remote one: calls that wait for it raise ConnectionError."""
    with _executors_lock:
        executor = _executors.get(config.model_dump_json())
    if executor is not None:
        executor.close()


def preload(module: str) -> None:
    """Name a module that functions import when they are called: workers of local clusters that start from now on share one import of it."""
    _preloaded.append(module)


def preloaded() -> list[str]:
    """The modules that were named."""
    return list(dict.fromkeys(_preloaded))


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


def return_freed_memory() -> None:
    """Give back what `keep_freed_memory` keeps: between long-lived small blocks it can be several times what is in use."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def call(function: Callable[..., R], threads: int, *arguments: Any) -> R:
    """Call a function with so many computing threads; this is what runs on a worker."""
    import torch

    keep_freed_memory()
    # inside the call, because a thread of a Dask worker does not see what was set in another
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return function(*arguments)


def take_gpu() -> None:
    """Have a worker of a local cluster use the GPU of its number, before it uses any; nothing happens elsewhere."""
    if "distributed" not in sys.modules:  # as on every worker: not imported for the question alone
        return
    import torch
    from distributed import get_worker

    try:
        number = get_worker().name
    except ValueError:  # not on a worker
        return
    gpus = torch.cuda.device_count()
    if gpus > 1 and isinstance(number, int) and not torch.cuda.is_initialized():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number % gpus]
