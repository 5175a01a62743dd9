"""The real command on an archive of its own, what its processes wrote down while they worked, and what a fault cost."""

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from storage.archives import open_archive
from storage.scores import ScoreStore, open_store
from tasks.score_tools import verify_archive
from tests.command import NORMASCOPE, workers_of

ON_PATH = os.pathsep.join(str(Path(__file__).parents[2] / folder) for folder in ("tests/faults/inject", "."))
SAMPLES, SHARD_ROWS, WORKERS = 240, 8, 2
SHARDS_IN_FLIGHT = 2 * WORKERS  # one is read or written while the other is scored
_DELAY_S = 0.1  # that a sample takes longer to be read, so that there is a middle
_WAIT_S = 600


class Event(NamedTuple):
    """What a worker did: `read` a sample, began to `write` a shard, `wrote` it."""

    time_s: float
    pid: int
    name: str
    what: str


class Cost(NamedTuple):
    """A line of the table at the end."""

    fault: str
    store: str
    samples: int
    lost: int
    done_twice: int
    recovery_s: float


@dataclass
class Scene:
    """What all runs share: pictures' manifest, bundle, environment with the home, a folder for archives and logs."""

    folder: Path
    manifest: str
    bundle: str
    environment: Mapping[str, str]
    places: Mapping[str, int]  # row by sample


class Scoring:
    """`normascope score` into one archive, started as often as it takes.

    Args:
        scene: what is scored.
        name: of the archive.
        into: folder or prefix that it is made in; the scene's where not given.
        manifest: of the same samples elsewhere.
        environment: more variables of the command.
        faults: see tests/faults/inject.
        options: where it runs.
    """

    def __init__(
        self,
        scene: Scene,
        name: str,
        *,
        into: str | None = None,
        manifest: str | None = None,
        environment: Mapping[str, str] | None = None,
        faults: Mapping[str, object] | None = None,
        options: tuple[str, ...] = ("--workers", str(WORKERS)),
    ) -> None:
        self.scene = scene
        self.archive = f"{into or scene.folder}/{name}"
        self.store = "S3" if self.archive.startswith("s3://") else "local"
        self._place = scene.folder / f"{name}-{self.store}-log"
        self._journal = self._place / "journal"
        self._journal.mkdir(parents=True)
        told = self._place / "faults.json"
        told.write_text(json.dumps({"journal": str(self._journal), "delay_s": _DELAY_S, **(faults or {})}))
        self.environment = {**scene.environment, **(environment or {}), "NORMASCOPE_FAULTS": str(told), "PYTHONPATH": ON_PATH}
        cut = ("--shard-rows", str(SHARD_ROWS), "--batch-size", str(SHARD_ROWS))
        self._arguments = ["score", manifest or scene.manifest, "--model", scene.bundle, "--into", self.archive, *cut, *options]
        self._logs = 0

    def start(self, *, through: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Begin; `through` is a command that runs the command."""
        self._logs += 1
        with (self._place / f"{self._logs}.log").open("wb") as log:
            return subprocess.Popen(
                [*through, *NORMASCOPE, *self._arguments], env=self.environment, cwd=self.scene.folder, stdout=log, stderr=subprocess.STDOUT
            )

    def said(self, start: int | None = None) -> str:
        """What the command wrote to the terminal at its first, second … or last start."""
        return (self._place / f"{start or self._logs}.log").read_text()

    def api_url(self) -> str:
        """Of the Prefect server that the command records on."""
        (address,) = re.findall(r"^Prefect UI: (\S+)$", self.said(), re.MULTILINE)
        return f"{address}/api"

    def finish(self, process: subprocess.Popen[bytes] | None = None, *, timeout_s: float = _WAIT_S) -> None:
        """Run to a good end, or wait for one that was begun."""
        code = (process or self.start()).wait(timeout=timeout_s)
        assert code == 0, self.said()

    def events(self) -> list[Event]:
        """What all processes did, in the order of time; a last line that was cut short is left out."""
        found = []
        for path in self._journal.iterdir():
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    moment, name, what = line.split()
                    found.append(Event(float(moment), int(path.stem), name, what))
        return sorted(found)

    def wait_for(self, name: str, *, count: int, process: subprocess.Popen[bytes]) -> None:
        """Until so many events of a name have been written down while the process works."""
        deadline = time.monotonic() + _WAIT_S
        while sum(event.name == name for event in self.events()) < count:
            assert process.poll() is None, f"scoring ended before it could be disturbed:\n{self.said()}"
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def start_and_wait(self, *, shards: int = 4) -> subprocess.Popen[bytes]:
        """Begin, and return in the middle: when some shards are written and more are in flight."""
        process = self.start()
        self.wait_for("wrote", count=shards, process=process)
        return process

    def scores(self) -> ScoreStore:
        """The archive's only store."""
        archive = open_archive(self.archive)
        ((slot, versions),) = archive.slots().items()
        return open_store(archive.scores_uri(slot, versions[-1]))

    def verify(self) -> None:
        """What `normascope scores verify` does."""
        assert verify_archive(self.archive).problems == []

    def in_flight(self, at_s: float) -> set[int]:
        """Shards of which at least one sample had been read, and that were not written yet."""
        before = [event for event in self.events() if event.time_s <= at_s]
        begun = {self._shard_of(event) for event in before if event.name == "read"}
        return begun - {int(event.what) for event in before if event.name == "wrote"}

    def cost(self, fault: str, *, fault_s: float) -> Cost:
        """What a fault cost: samples read again, shards written again, and the time until all that was in flight was written.

        Args:
            fault: its name in the table.
            fault_s: when it had come, in seconds since the epoch; where the run had ended, just before the command was given again.
        """
        events = self.events()
        reads = Counter(event.what for event in events if event.name == "read")
        wrote = Counter(event.what for event in events if event.name == "wrote")
        waited_for = self.in_flight(fault_s)
        after = [event for event in events if event.name == "wrote" and event.time_s >= fault_s]
        # a shard that was written when its worker was killed, who could not note it any more, is not written again
        back_s = [min((event.time_s for event in after if int(event.what) == shard), default=fault_s) for shard in waited_for]
        return Cost(
            fault,
            self.store,
            SAMPLES,
            lost=reads.total() - len(reads),
            done_twice=wrote.total() - len(wrote),
            recovery_s=max(back_s, default=fault_s) - fault_s,
        )

    def shards_begun_again(self) -> set[int]:
        """Shards of which a sample was read more than once."""
        reads = Counter(event.what for event in self.events() if event.name == "read")
        return {self.scene.places[sample] // SHARD_ROWS for sample, count in reads.items() if count > 1}

    def _shard_of(self, event: Event) -> int:
        return self.scene.places[event.what] // SHARD_ROWS


def assert_same_arrays(one: ScoreStore, other: ScoreStore) -> None:
    """To the bit, NaN included."""
    np.testing.assert_array_equal(one.status(), other.status())
    np.testing.assert_array_equal(one.image_scores(), other.image_scores())
    np.testing.assert_array_equal(one.read_maps(range(one.rows)), other.read_maps(range(other.rows)))


def kill(process: subprocess.Popen[bytes]) -> float:
    """SIGKILL; returns when its workers have noticed that they are alone, and what was in flight is known."""
    workers = workers_of(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until_gone(workers)
    return time.time()


def wait_until_gone(workers: list[psutil.Process]) -> None:
    """Until processes have ended, be it that nobody takes notice of it."""
    assert workers
    wait_until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in workers), what="the workers end")


def wait_until(true: Callable[[], bool], *, what: str) -> None:
    """Poll."""
    deadline = time.monotonic() + _WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"not within {_WAIT_S} s: {what}"
        time.sleep(0.1)


def clean_environment(home: Path) -> dict[str, str]:
    """Of a command with a home of its own; what it says is there at once."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "AWS_"))}
    return kept | {"NORMASCOPE_HOME": str(home), "PYTHONUNBUFFERED": "1"}
