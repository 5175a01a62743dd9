"""The sample that kills: a shard of which workers died is scored in a process of its own, which says what it takes in hand.

When that process dies, what it had in hand is to blame. Several samples at once (those of one picture, or of one batch) are then taken
one by one; a sample that was in hand alone at two deaths fails, and its neighbours are scored as ever. The parent knows how the process
ended, and ends it itself when it takes more memory than a worker may.
"""

import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe

import psutil

from tasks.execution import keep_freed_memory
from tasks.score_shard import ShardJob, ShardOutcome, fill_shard
from tasks.watchdog import EXIT_STATUS

logger = logging.getLogger(__name__)

_DEATHS = 2  # one may be an accident
_LOOK_S = 0.2  # between two looks at the memory
_NO_MEMORY = 76  # exit status
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class _Death:
    """How a process ended, and which positions it had in hand, to be "read" or "scored"; none while it began or wrote."""

    cause: str
    step: str = ""
    positions: tuple[int, ...] = ()


def score_isolated(job: ShardJob) -> ShardOutcome:
    """Score a shard in processes of its own until one lives to the end.

    Raises:
        ChildProcessError: a process died twice with nothing in hand.
        Exception: what `fill_shard` raises.
    """
    deaths: Counter[tuple[int, ...]] = Counter()
    alone: set[int] = set()
    condemned: dict[int, str] = {}
    while True:
        ended = _attempt(job, alone, condemned)
        if not isinstance(ended, _Death):
            return ended
        logger.warning("shard %d: a process %s with positions %s to be %s", job["shard"], ended.cause, ended.positions, ended.step)
        deaths[ended.positions] += 1
        if len(ended.positions) > 1:
            alone.update(ended.positions)
        elif deaths[ended.positions] == _DEATHS and not ended.positions:
            raise ChildProcessError(f"shard {job['shard']}: a process {ended.cause}, twice, with no sample in hand")
        elif deaths[ended.positions] == _DEATHS:
            condemned[ended.positions[0]] = f"kills its worker: when it was {ended.step}, the process {ended.cause}, twice"


def work() -> None:
    """The process: takes a job from the pipe whose number is its argument, and dies with its parent."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    keep_freed_memory()
    connection = Connection(int(sys.argv[1]))
    job, alone, condemned = connection.recv()
    try:
        outcome = fill_shard(job, take=lambda step, positions: connection.send(("take", step, positions)), alone=alone, condemned=condemned)
    except MemoryError:
        os._exit(_NO_MEMORY)
    except Exception as error:  # the parent raises it
        connection.send(("error", "", error))
    else:
        connection.send(("done", "", outcome))


def _attempt(job: ShardJob, alone: set[int], condemned: dict[int, str]) -> ShardOutcome | _Death:
    ours, theirs = Pipe()
    command = [sys.executable, "-c", "from tasks.isolation import work; work()", str(theirs.fileno())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    most_bytes = _most_bytes(job)
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL) as process:
        theirs.close()
        step, positions = "", ()
        try:
            ours.send((job, alone, condemned))
            while True:
                if ours.poll(_LOOK_S):
                    kind, step, content = ours.recv()
                    if kind == "done":
                        return content
                    if kind == "error":
                        raise content
                    positions = tuple(content)
                if most_bytes and (taken := psutil.Process(process.pid).memory_info().rss) > most_bytes:
                    return _Death(f"took {taken >> 20} of {most_bytes >> 20} MiB of memory", step, positions)
        except (EOFError, ConnectionError):  # it has closed its end
            return _Death(_describe(process.wait()), step, positions)
        finally:
            process.kill()


def _most_bytes(job: ShardJob) -> int | None:
    """What the process may take: what the job says, or what Dask's nanny gives a worker, whom this process works for."""
    if (memory_mb := job["limits"].memory_mb) is not None:
        return memory_mb << 20
    try:
        from distributed import get_worker

        limit: int | None = get_worker().memory_manager.memory_limit
    except ValueError:  # not on a worker
        return None
    return limit


def _describe(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    known = {EXIT_STATUS: "took too long", 1: "took too long without letting Python go on", _NO_MEMORY: "ran out of memory"}
    return known.get(status, f"ended with status {status}")
