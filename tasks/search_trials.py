"""The trials of a search as tasks: where each runs, with how many beside it, and how it is configured to train."""

import torch

from storage import filesystems
from tasks.caching import cached_task
from tasks.execution import ExecutionConfig, available_cores, executor_for, preload
from tasks.gpu_slots import hold_gpu_slot
from tasks.search_fold import FoldJob, FoldScores, fit_and_score
from tasks.training import TrainingConfig

preload("methods.training.fit")  # and with it Lightning, half of what a worker imports


@cached_task(
    name="trial",
    run_name="trial {trial}, fold {number}",
    outputs_exist=lambda scores: scores["failed"] is None and filesystems.exists(scores["uri"]),  # why it failed may have been mended
    ignore=("trial", "number", "execution"),
)
def score_fold(job: FoldJob, *, trial: int, number: int, execution: ExecutionConfig) -> FoldScores:
    """Train and score on a worker. A training that cannot go on is the trial's failure, not the search's; the next search tries again."""
    with hold_gpu_slot(execution):
        return executor_for(execution).run(fit_and_score, job)


def search_execution(execution: ExecutionConfig) -> ExecutionConfig:
    """Where trials run: as configured, but on a machine with GPUs with at most one worker a GPU."""
    gpus = torch.cuda.device_count()
    if execution.kind != "local" or not gpus:
        return execution
    return execution.model_copy(update={"workers": min(execution.workers or available_cores(), gpus)})


def count_slots(execution: ExecutionConfig) -> int:
    """How many trials and folds are handed out at once; the scheduler at an address has its own queue."""
    return {"process": 1, "local": execution.workers or available_cores(), "address": 32}[execution.kind]


def trial_training(training: TrainingConfig, execution: ExecutionConfig) -> TrainingConfig:
    """As the winner's, but in one process of as many threads as a worker computes with."""
    return winner_training(training).model_copy(update={"threads": execution.threads, "processes": 1})


def winner_training(training: TrainingConfig) -> TrainingConfig:
    """As configured, but the epoch is chosen without anomalies: what is compared, trained whole and written into the winner's file."""
    return training.model_copy(update={"selection": "loss"})
