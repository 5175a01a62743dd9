"""A time limit on what cannot be interrupted: past it the process is killed, so that its work is done by another.

A thread watches over all that has begun. It cannot run while native code holds the interpreter's lock, so the C library's own watcher
(`faulthandler`), which needs no lock, is told anew each second when to end the process if nobody tells it otherwise.
"""

import faulthandler
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

EXIT_STATUS = 75  # of a process that was killed here; one that held the lock ends with 1
_BEAT_S = 1.0
_GRACE_S = 5.0  # for the thread to come first, which can say what took so long


class _Watchdog:
    """One for the process; its thread lives from the first limit on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[int, tuple[float, float, str]] = {}  # by number: when it is over, seconds allowed, what
        self._numbers = 0
        self._armed_until = math.inf
        self._thread: threading.Thread | None = None

    def begin(self, seconds: float, what: str) -> int:
        over = time.monotonic() + seconds
        with self._lock:
            self._numbers += 1
            self._running[self._numbers] = (over, seconds, what)
            if over + _GRACE_S < self._armed_until:
                self._arm(over)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                self._thread.start()
            return self._numbers

    def end(self, number: int) -> None:
        with self._lock:
            del self._running[number]

    def _arm(self, over: float) -> None:
        wait_s = max(0.0, over - time.monotonic()) + _GRACE_S
        faulthandler.dump_traceback_later(wait_s, exit=True, file=sys.__stderr__ or 2)
        self._armed_until = time.monotonic() + wait_s

    def _watch(self) -> None:
        while True:
            time.sleep(_BEAT_S)
            with self._lock:
                over, seconds, what = min(self._running.values(), default=(math.inf, 0.0, ""))
                if self._running:
                    self._arm(over)
                else:
                    faulthandler.cancel_dump_traceback_later()
                    self._armed_until = math.inf
            if time.monotonic() > over:
                logger.critical("%s takes longer than %g s: process %d is killed", what, seconds, os.getpid())
                faulthandler.dump_traceback(file=sys.__stderr__ or 2)
                os._exit(EXIT_STATUS)


_watchdog = _Watchdog()


@contextmanager
def time_limit(seconds: float | None, what: str) -> Iterator[None]:
    """Kill this process if the block takes longer than `seconds`, also where it holds the interpreter's lock; None: never.

    Then the log and stderr say `what` took so long and where every thread stood. The block itself cannot tell.
    """
    if seconds is None:
        yield
        return
    number = _watchdog.begin(seconds, what)
    try:
        yield
    finally:
        _watchdog.end(number)
