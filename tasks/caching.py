"""When a task's earlier result may stand for a new one: same content, same configuration, same code, and its outputs still there.

Prefect's own policies do not say this: INPUTS alone collides between tasks, TASK_SOURCE hashes one function's text and not what it
calls, and no policy asks whether the files that a result refers to still exist.
"""

import errno
import threading
from collections import Counter
from collections.abc import Callable
from functools import wraps
from itertools import count
from typing import Any

from prefect import Task, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.results import get_result_store
from prefect.tasks import exponential_backoff

from tasks.fingerprints import code_fingerprint, digest_of

# what waiting mends; everything else (a missing file, a full disk, a wrong value) fails at once
_PERMANENT_OS_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)

# by name, so that neither Dask nor botocore is imported for it: Zarr reads object stores past `storage.filesystems`, which makes OSErrors
_PASSING = {
    *("KilledWorker", "CommClosedError", "FutureCancelledError"),
    *("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError"),
}


class StepCounter:
    """Which steps this process asked for, and which of them were done rather than taken from the cache."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def count(self, name: str, *, done: bool) -> None:
        """One more asked for, or one more done."""
        with self._lock:
            (self.done if done else self.asked)[name] += 1

    def summarise(self) -> str:
        """In one line."""
        if not self.done:
            return f"{self.asked.total()} steps: all cached, nothing was done"
        names = ", ".join(f"{name} {count}" for name, count in self.done.items())
        return f"{self.asked.total()} steps: {self.done.total()} done ({names}), {max(0, self.asked.total() - self.done.total())} cached"


steps = StepCounter()


def cached_task(
    *, name: str, run_name: str, outputs_exist: Callable[[Any], bool], ignore: tuple[str, ...] = (), retries: int = 3
) -> Callable[[Callable[..., Any]], Any]:
    """A Prefect task whose result is kept as JSON and taken again while content, configuration and code are the same.

    The key is the digest of all arguments (references carry the digests of the content they point at), of the source of the task's
    module and of every project module it imports, and of the name. A result whose outputs are gone does not count.

    Args:
        name: shown in the UI; part of the key.
        run_name: template over the arguments, as Prefect's `task_run_name`.
        outputs_exist: given a kept result, whether everything it refers to is still there.
        ignore: arguments that cannot change the result (where to execute, how to show progress).
        retries: how often errors that can pass are tried again, 2, 4, 8… s apart with jitter.
    """

    def decorate(function: Callable[..., Any]) -> Task[..., Any]:
        @wraps(function)
        def counted(*arguments: Any, **options: Any) -> Any:
            steps.count(name, done=True)
            return function(*arguments, **options)

        def key(context: TaskRunContext, arguments: dict[str, Any]) -> str:
            steps.count(name, done=False)
            content = {argument: value for argument, value in arguments.items() if argument not in ignore}
            return _first_usable(f"{name}-{digest_of(content, code_fingerprint(function.__module__))[:40]}", outputs_exist)

        return task(
            name=name,
            task_run_name=run_name,
            cache_key_fn=key,
            persist_result=True,
            result_serializer="json",
            retries=retries,
            retry_delay_seconds=exponential_backoff(2),
            retry_jitter_factor=1,
            retry_condition_fn=_can_pass,
        )(counted)

    return decorate


def can_pass(error: BaseException) -> bool:
    """Whether an error may be gone when the same is tried again: a lost connection, a time-out, a worker that died."""
    if isinstance(error, OSError):
        return not isinstance(error, _PERMANENT_OS_ERRORS) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return type(error).__name__ in _PASSING


def _can_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and can_pass(error)


def _first_usable(key: str, outputs_exist: Callable[[Any], bool]) -> str:
    """The newest generation of a key whose outputs are there, or a new one.

    Only the newest is asked: when lost outputs were made again, they lie where the older generations' lay, and those would take
    them for their own.
    """
    store, newest = get_result_store(), None
    for candidate in (f"{key}-{generation}" if generation else key for generation in count()):
        if not store.exists(candidate):
            break
        newest = candidate
    return newest if newest is not None and outputs_exist(store.read(newest).result) else candidate
