"""What a process does to train a detector: the task's own, or one of those that torchrun started for it."""

import logging
from collections.abc import Callable
from typing import Literal

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field

from methods.detectors.interface import Detector, LearnsByMemory, LearnsFromLabels, SelectionRule
from methods.detectors.registry import DetectorConfig, build_detector, learns_from_labels
from methods.training.labels import check_classes
from methods.training.outcome import FitReport
from methods.training.ranks import Rank
from methods.training.selection import Validation
from storage.manifest import read_manifest
from tasks.execution import available_cores
from tasks.samples import SampleDataset

_CACHE_BYTES = 2 << 30  # of decoded training images, of all processes together

logger = logging.getLogger(__name__)


class TrainingConfig(BaseModel):
    """What is the same for every detector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    samples_per_subject: int | None = Field(
        default=None, ge=1, description="most training samples of one subject, drawn by the seed; null: all"
    )
    selection_samples: int | None = Field(
        default=None, ge=2, description="most validation samples, half of each class, on which epochs are compared; null: all"
    )
    selection: SelectionRule | None = Field(
        default=None,
        description="by which the epoch is chosen on validation: highest image AUROC, or lowest loss of normal images "
        "(of a classifier, of all); null: as the detector's paper does",
    )
    patience: int | None = Field(default=None, ge=1, description="epochs without a better one after which training stops; null: never")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field(default="32-true", description="mixed ones halve memory on GPUs")
    threads: int | None = Field(default=None, ge=1, description="computing threads of all processes together; one a core when not given")
    processes: int | None = Field(
        default=1,
        ge=1,
        description="that share every batch, each with a GPU of its own where there are any; null: one a GPU, or one",
    )
    checkpoint_every_s: float = Field(default=30.0, ge=0, description="a finished epoch is kept when the last one kept is so long ago")


class TrainingJob(BaseModel):
    """All that a process needs to know to train: references and configuration.

    Attributes:
        manifest_uri: of the development manifest: no row of the test split can be read from it.
        manifest_digest: its digest.
        checkpoints: a folder on this machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest_uri: str
    manifest_digest: str
    detector: DetectorConfig
    training: TrainingConfig
    checkpoints: str


def select_rows(job: TrainingJob) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The manifest's rows of training samples, as many of a subject as the configuration says, and of validation samples.

    Training samples are the normal ones, for a detector that learns from labels those of both labels.

    Raises:
        TrainingError: such a detector has fewer than two samples of a class.
    """
    rows = read_manifest(job.manifest_uri, digest=job.manifest_digest)
    rows = rows[rows["label"].notna()]
    by_labels = learns_from_labels(job.detector)
    train = _cap_per_subject(rows[(rows["split"] == "train") & ((rows["label"] == 0) | by_labels)], job.training)
    if by_labels:
        check_classes(train["label"].to_numpy(int))
    return train, rows[rows["split"] == "validation"]


def build_untrained(job: TrainingJob) -> Detector:
    """The detector as training begins: the same in every process."""
    with torch.random.fork_rng(devices=[]):  # of GPUs it would open each one's context in every process
        torch.manual_seed(job.training.seed)
        return build_detector(job.detector)


def count_processes(model: Detector, training: TrainingConfig) -> int:
    """How many processes train a detector: one with a memory is filled by one."""
    count = training.processes if training.processes is not None else max(1, torch.cuda.device_count())
    if count > 1 and isinstance(model, LearnsByMemory):
        logger.warning("%s looks at every image once, in one process: `training.processes` is not used", type(model).__name__)
        return 1
    return count


def fit_rows(
    model: Detector, train: pd.DataFrame, validation: pd.DataFrame, job: TrainingJob, *, rank: Rank, on_step: Callable[[int], None]
) -> FitReport:
    """Train a detector in place, alone or as one of several processes; see `methods.training.fit.fit`."""
    from methods.training.fit import fit  # here, because Lightning takes seconds to import

    training = job.training
    with torch.random.fork_rng(devices=[]):
        return fit(
            model,
            SampleDataset(train, size_px=model.input_size_px, cache_bytes=_CACHE_BYTES // rank.count),
            labels=train["label"].to_numpy(int),
            validation=_validation(model, validation, training),
            seed=training.seed,
            threads=max(1, (training.threads or available_cores()) // rank.count),
            checkpoints=job.checkpoints,
            patience=training.patience,
            precision=training.precision,
            selection=training.selection,
            checkpoint_every_s=training.checkpoint_every_s,
            rank=rank,
            on_step=on_step,
        )


def _validation(model: Detector, rows: pd.DataFrame, training: TrainingConfig) -> Validation | None:
    if training.selection == "loss" and not isinstance(model, LearnsFromLabels):
        rows = rows[rows["label"] == 0]  # all that is measured: which of them are drawn must not depend on the anomalies beside them
    compared = _cap_per_class(rows, training)
    images = SampleDataset(compared, size_px=model.input_size_px)
    return Validation(images, compared["label"].to_numpy(int)) if len(compared) else None


def _cap_per_subject(rows: pd.DataFrame, training: TrainingConfig) -> pd.DataFrame:
    if training.samples_per_subject is None:
        return rows
    shuffled = rows.sample(frac=1, random_state=training.seed)
    return shuffled.groupby("subject_id", sort=False).head(training.samples_per_subject).sort_index()


def _cap_per_class(rows: pd.DataFrame, training: TrainingConfig) -> pd.DataFrame:
    if training.selection_samples is None:
        return rows
    shuffled = rows.sample(frac=1, random_state=training.seed)
    return shuffled.groupby("label", sort=False).head(training.selection_samples // 2).sort_index()
