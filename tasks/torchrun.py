"""Train a detector by several processes on this machine: torchrun as a process of the task.

Lightning's own launchers will not do here: one runs the whole flow again as rank 1, the others cannot start from a Dask worker.
torchrun starts all ranks again when one dies, and they go on from the last checkpoint.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from torch import Tensor

from methods.training.outcome import FitReport, TrainingError
from tasks import train_rank
from tasks.train_rank import Exchange
from tasks.training import TrainingJob

_RESTARTS = 2
_SECONDS_BETWEEN_LOOKS = 0.2
_SHUTDOWN_S = 5  # for the ranks that are left when one dies
_LINES_OF_LOG = 15
_ROOT = Path(__file__).parents[1]
_FAILED_RANK = re.compile(r"rank\s*: (\d+) \(local_rank: \d+\)\s*exitcode\s*: (-?\d+)")  # in torchrun's summary


def fit_by_torchrun(job: TrainingJob, *, processes: int, on_step: Callable[[int], None]) -> tuple[dict[str, Tensor], FitReport]:
    """Train by several processes.

    Args:
        job: what to train.
        processes: how many; on a machine with GPUs each has one.
        on_step: called with the number of training images taken since the last call; negative when a rank died and epochs are repeated.

    Returns:
        The trained tensors by name, and the report.

    Raises:
        TrainingError: as a rank raised it, or that a rank died more than twice: which one, and the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix="normascope-training-") as folder:
        exchange = Exchange(Path(folder))
        exchange.write_job(job)
        torchrun = _start(exchange.folder, processes)
        try:
            _watch(torchrun, exchange, on_step)
        finally:
            _kill(torchrun)
        if torchrun.returncode:
            raise TrainingError(_describe_crash(exchange, processes))
        return exchange.read_result()


def _start(folder: Path, processes: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(processes), "--max-restarts", str(_RESTARTS), "--shutdown-timeout", str(_SHUTDOWN_S)]
    command += ["--log-dir", str(folder / "logs"), "--redirects", "3", "-m", train_rank.__name__, str(folder)]
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with (folder / "torchrun.log").open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # never written to: the ranks end when it closes
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},  # the ranks set their threads themselves
            start_new_session=True,  # Ctrl-C is the task's to handle
        )


def _watch(torchrun: subprocess.Popen[bytes], exchange: Exchange, on_step: Callable[[int], None]) -> None:
    """Relay progress until torchrun ends or a rank raises a TrainingError, which starting again would not mend."""
    told, has_ended = 0, False
    while not has_ended:
        has_ended = torchrun.poll() is not None  # asked first, so that the last look comes after the end
        taken = exchange.read_images_taken()
        if taken != told:
            on_step(taken - told)
            told = taken
        for failure in exchange.read_failures():
            if failure.is_final:
                raise TrainingError(failure.message)
        if not has_ended:
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _kill(torchrun: subprocess.Popen[bytes]) -> None:
    """End torchrun and its ranks, which have sessions of their own; torchrun first, so that it starts none anew."""
    try:
        ranks = psutil.Process(torchrun.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        ranks = []
    torchrun.kill()
    for rank in ranks:
        try:
            rank.kill()
        except psutil.NoSuchProcess:
            continue
    torchrun.wait()
    psutil.wait_procs(ranks, timeout=_SHUTDOWN_S)
    if torchrun.stdin is not None:
        torchrun.stdin.close()


def _describe_crash(exchange: Exchange, processes: int) -> str:
    """Which rank failed first, how, and the end of its log; torchrun's own log where no rank came as far as that."""
    summary = (exchange.folder / "torchrun.log").read_text(errors="replace")
    killed = [(int(rank), -int(code)) for rank, code in _FAILED_RANK.findall(summary) if code.startswith("-")]
    failures = exchange.read_failures()
    if killed:
        rank, signal = killed[0]
        reason = f"killed by signal {signal}" + (" (out of memory?)" if signal == 9 else "")
    elif failures:
        return f"training failed {_RESTARTS + 1} times, at last {failures[-1].message}"
    else:
        return f"torchrun could not train with {processes} processes:\n{_end_of(summary)}"
    logs = sorted(exchange.folder.glob(f"logs/*/attempt_*/{rank}/stderr.log"))
    log = _end_of(logs[-1].read_text(errors="replace")) if logs else ""
    return f"training failed {_RESTARTS + 1} times, at last rank {rank} of {processes}: {reason}\n{log}".rstrip()


def _end_of(log: str) -> str:
    return "\n".join(log.splitlines()[-_LINES_OF_LOG:])
