"""A progress bar at every long step: on a terminal a bar, elsewhere a line now and then."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

_SECONDS_BETWEEN_LINES = 5.0
_lock = threading.Lock()
_shown: Progress | None = None
_users = 0


class Bar:
    """One step's progress; `advance` may be called from any thread."""

    def __init__(self, description: str, total: int) -> None:
        self.description, self.total, self.done = description, total, 0
        self.started = self._phase_started = time.monotonic()
        self._lock = threading.Lock()
        self._last_line = self.started
        self._progress = _acquire()
        self._task = self._progress.add_task(description, total=total) if self._progress else None

    def advance(self, count: int = 1) -> None:
        """Say that `count` more are done."""
        with self._lock:
            self.done += count
            if self._progress is not None and self._task is not None:
                self._progress.update(self._task, completed=self.done)
            elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES and self.done < self.total:
                self._last_line = time.monotonic()
                rate = self.done / (time.monotonic() - self._phase_started)
                left = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
                self._say(f"{self.done}/{self.total}, {rate:.3g}/s{left}")

    def restart(self, total: int) -> None:
        """Begin again with another total (the next phase of the same step)."""
        with self._lock:
            self.total, self.done, self._phase_started = total, 0, time.monotonic()
            if self._progress is not None and self._task is not None:
                self._progress.reset(self._task, total=total)

    def close(self) -> None:
        """Take the bar away, or print the closing line."""
        if self._progress is not None:
            _release()
        else:
            self._say(f"{self.done}/{self.total}, {time.monotonic() - self.started:.1f} s")

    def _say(self, text: str) -> None:
        sys.stderr.write(f"{self.description}: {text}\n")
        sys.stderr.flush()


class _Rate(ProgressColumn):
    """How many parts are done a second, lately."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.3g}/s" if speed is not None else "")


@contextmanager
def show_progress(description: str, total: int) -> Iterator[Bar]:
    """A bar for the duration of a step of `total` parts; nothing is shown when there is nothing to do."""
    bar = Bar(description, total)
    try:
        yield bar
    finally:
        bar.close()


def _acquire() -> Progress | None:
    """One display for all bars, because a terminal has room for one."""
    global _shown, _users
    if not sys.stderr.isatty():
        return None
    with _lock:
        if _shown is None:
            columns = (
                TextColumn("{task.description:<34}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            _shown = Progress(*columns, console=Console(stderr=True))
            _shown.start()
        _users += 1
        return _shown


def _release() -> None:
    global _shown, _users
    with _lock:
        _users -= 1
        if _users == 0 and _shown is not None:
            _shown.stop()
            _shown = None
