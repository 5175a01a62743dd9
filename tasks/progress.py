"""A progress bar at every long step: on a terminal a bar, elsewhere a line now and then."""

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_UPDATES = 1.5  # of the UI, whose server has other things to do as well
_RECENT_S = 60.0
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


@contextmanager
def publish_progress(bar: Bar, *, key: str, what: str) -> Iterator[None]:
    """Show a bar in the Prefect UI as well, as an artifact of the flow run, with the rate of the last minute and the time that is left.

    A thread does it, so that a server that is slow or gone stops no work.

    Args:
        bar: whose parts are counted.
        key: of the artifact: small letters, digits and dashes; its earlier runs stand beside it in the UI.
        what: the parts are, as "images".
    """
    from prefect.artifacts import create_progress_artifact

    artifact = cast(UUID, create_progress_artifact(0.0, key=key, description=_say_progress(bar, what)))
    ended = threading.Event()

    def follow() -> None:
        seen = deque([(bar.started, 0)])
        while not ended.wait(_SECONDS_BETWEEN_UPDATES):
            seen.append((time.monotonic(), bar.done))
            while len(seen) > 2 and seen[0][0] < time.monotonic() - _RECENT_S:
                seen.popleft()
            (since, before), (now, done) = seen[0], seen[-1]
            _update(artifact, bar, f"{_say_progress(bar, what)}, {_say_rate(done - before, now - since, bar.total - done, what)}")

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        seconds = time.monotonic() - bar.started
        _update(artifact, bar, f"{_say_progress(bar, what)} in {seconds:.1f} s, {bar.done / seconds:.3g} {what}/s")


def _update(artifact: UUID, bar: Bar, description: str) -> None:
    from prefect.artifacts import update_progress_artifact

    try:
        update_progress_artifact(artifact, 100 * bar.done / bar.total if bar.total else 100.0, description)
    except Exception as error:  # whatever its client raises: progress is worth no run
        logger.debug("progress is not shown: %s", error)


def _say_progress(bar: Bar, what: str) -> str:
    return f"{bar.done:,} of {bar.total:,} {what}"


def _say_rate(done: int, seconds: float, left: int, what: str) -> str:
    if not done:
        return "no rate yet"
    minutes, left_s = divmod(round(left * seconds / done), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{done / seconds:.3g} {what}/s, {hours}:{minutes:02d}:{left_s:02d} left"


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
