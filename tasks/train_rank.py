"""One of the processes that torchrun starts to train a detector together, and the folder through which it speaks with the task.

Run as `torchrun … -m tasks.train_rank FOLDER`. It knows neither Prefect nor Dask. It ends when the task's process does.
"""

import json
import os
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import distributed

from methods.detectors.interface import Detector
from methods.training.outcome import FitReport, TrainingError
from methods.training.ranks import Rank, join_ranks
from storage.models import Bundle, read_bundle, write_bundle
from tasks.execution import keep_freed_memory
from tasks.training import TrainingJob, build_untrained, fit_rows, select_rows

_SECONDS_BETWEEN_REPORTS = 0.2
_LINES_OF_TRACEBACK = 12


@dataclass(frozen=True)
class Failure:
    """What ended a rank.

    Attributes:
        rank: which one.
        is_final: whether training again would end in the same.
        message: of the error; other than of a TrainingError with the rank and the end of the traceback.
    """

    rank: int
    is_final: bool
    message: str


class Exchange:
    """The folder between the task and the ranks: files of JSON, and at the end a bundle. Nothing is pickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_job(self, job: TrainingJob) -> None:
        """Task: what is to be trained."""
        (self.folder / "job.json").write_text(job.model_dump_json())

    def read_job(self) -> TrainingJob:
        """Rank: what is to be trained."""
        return TrainingJob.model_validate_json((self.folder / "job.json").read_text())

    def write_images_taken(self, count: int) -> None:
        """Rank 0: training images taken so far, by all ranks."""
        partial = self.folder / "progress.partial"
        partial.write_text(str(count))
        partial.replace(self.folder / "progress")

    def read_images_taken(self) -> int:
        """Task: as `write_images_taken` was told last."""
        path = self.folder / "progress"
        return int(path.read_text()) if path.exists() else 0

    def write_failure(self, failure: Failure, *, attempt: int) -> None:
        """Rank: why it ends; of each attempt the first is kept, because the others fail for want of the first."""
        partial = self.folder / f"failure-{failure.rank}.partial"
        partial.write_text(json.dumps(asdict(failure)))
        try:
            (self.folder / f"failure-{attempt}.json").hardlink_to(partial)
        except FileExistsError:
            return

    def read_failures(self) -> list[Failure]:
        """Task: the first failure of each attempt."""
        paths = sorted(self.folder.glob("failure-*.json"), key=lambda path: int(path.stem.split("-")[1]))
        return [Failure(**json.loads(path.read_text())) for path in paths]

    def write_result(self, model: Detector, report: FitReport) -> None:
        """Rank 0: the trained weights and how they came to be."""
        tensors = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
        write_bundle(str(self.folder / "result"), Bundle(tensors=tensors, config={}, card=asdict(report)))

    def read_result(self) -> tuple[dict[str, torch.Tensor], FitReport]:
        """Task: what `write_result` wrote, verified."""
        bundle = read_bundle(str(self.folder / "result"))
        return {name: torch.from_numpy(tensor) for name, tensor in bundle.tensors.items()}, FitReport(**bundle.card)


class _Progress:
    """Tells the task now and then how far training is; one rank does, for all."""

    def __init__(self, exchange: Exchange, *, tells: bool) -> None:
        self._exchange, self._tells = exchange, tells
        self._taken = 0
        self._told_at = time.monotonic()

    def advance(self, count: int) -> None:
        self._taken += count
        if time.monotonic() - self._told_at >= _SECONDS_BETWEEN_REPORTS:
            self._told_at = time.monotonic()
            self.tell()

    def tell(self) -> None:
        if self._tells:
            self._exchange.write_images_taken(self._taken)


def train_rank(exchange: Exchange, rank: Rank) -> None:
    """Train this rank's share; rank 0 writes the result."""
    job = exchange.read_job()
    keep_freed_memory()
    train, validation = select_rows(job)
    model = build_untrained(job)
    progress = _Progress(exchange, tells=rank.index == 0)
    report = fit_rows(model, train, validation, job, rank=rank, on_step=progress.advance)
    progress.tell()
    if rank.index == 0:
        exchange.write_result(model, report)
    distributed.destroy_process_group()


def main() -> None:
    """Train as torchrun's variables say, and write down what goes wrong."""
    threading.Thread(target=_leave_with_the_task, daemon=True).start()
    exchange = Exchange(Path(sys.argv[1]))
    rank = Rank(index=int(os.environ["RANK"]), count=int(os.environ["WORLD_SIZE"]))
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    try:
        join_ranks(rank, host=os.environ["MASTER_ADDR"], port=int(os.environ["MASTER_PORT"]), attempt=attempt)
        train_rank(exchange, rank)
    except Exception as error:
        exchange.write_failure(_describe(error, rank), attempt=attempt)
        raise


def _describe(error: Exception, rank: Rank) -> Failure:
    """A TrainingError speaks for itself. What a lost neighbour or a disk causes (RuntimeError, OSError) can be gone after a restart."""
    if isinstance(error, TrainingError):
        return Failure(rank=rank.index, is_final=True, message=str(error))
    lines = "".join(traceback.format_exception(error)).splitlines()[-_LINES_OF_TRACEBACK:]
    message = "\n".join([f"{type(error).__name__}: {error}", *lines])
    return Failure(
        rank=rank.index, is_final=not isinstance(error, (RuntimeError, OSError)), message=f"rank {rank.index} of {rank.count}: {message}"
    )


def _leave_with_the_task() -> None:
    """The task holds the other end of the standard input; it closes when its process ends, however that happens."""
    os.read(sys.stdin.fileno(), 1)  # not through the buffer, whose lock the interpreter wants at its end
    os._exit(1)


if __name__ == "__main__":
    main()
