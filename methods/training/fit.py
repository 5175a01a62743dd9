"""The training room: takes a detector and data, gives back the detector as it was at its best validation epoch."""

import copy
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from methods.detectors.interface import Detector, Learner, LearnsByMemory, LearnsFromLabels, SelectionRule
from methods.training.batches import mix_seeds
from methods.training.labels import check_classes
from methods.training.lightning_module import DetectorModule, Plan, Precision
from methods.training.outcome import FitReport, TrainingError
from methods.training.ranks import Rank, share_batch_norm
from methods.training.selection import Selection, Validation

ALONE = Rank()

logger = logging.getLogger(__name__)


def fit(
    detector: Detector,
    train: Dataset[Tensor],
    *,
    validation: Validation | None,
    seed: int,
    threads: int,
    labels: np.ndarray | None = None,
    checkpoints: str | None = None,
    patience: int | None = None,
    precision: Precision = "32-true",
    selection: SelectionRule | None = None,
    checkpoint_every_s: float = 30.0,
    rank: Rank = ALONE,
    on_step: Callable[[int], None] = lambda count: None,
) -> FitReport:
    """Train a detector in place.

    Several processes, started by torchrun, each call this with the same arguments and detector but their `rank`. Each takes its share of
    every batch, so that the same images make up a step as in one process, and gets the same report; the weights are rank 0's to write.

    Args:
        detector: `LearnsByGradient`, `LearnsFromLabels` or `LearnsByMemory`; one that is also the last learns by gradient first.
        train: images (3, H, W) float32 in [0, 1] at the detector's size: normal ones, for a detector that learns from labels of both.
        validation: on which the epoch is chosen; without normal images in it the lowest training loss decides.
        seed: of the order of the images and everything drawn, anew each epoch: a training that is taken up again draws what it would have.
        threads: computing threads.
        labels: (n,) of the training images, 0 normal, 1 abnormal, for a detector that learns from labels; no other is told them.
        checkpoints: a local folder where finished epochs are kept; what is in it already is taken up. None keeps nothing.
        patience: epochs without a better one after which to stop; None goes on to the last.
        precision: of Lightning: mixed ones halve memory on GPUs.
        selection: "auroc", the highest image AUROC on validation, or "loss", the lowest loss on its normal images (of a detector that
            learns from labels, on all), which decides also where validation lacks a class; None: as the detector's method has it.
        checkpoint_every_s: an epoch is kept when at least this time has passed since the last that was.
        rank: of this process; noise is drawn anew for each rank.
        on_step: called with the number of training images taken since the last call, by all ranks together; at first, in a training
            that is taken up again, with those of the epochs before.

    Raises:
        TrainingError: nothing to train on, or fewer than two images of a class to learn from; a loss that is no number, a batch of one
            image that does not fit into the GPU's memory, checkpoints of another training, ranks that the detector or the batch cannot be
            shared between, or an end before the last stage.
    """
    if not len(train):  # type: ignore[arg-type]
        raise TrainingError("the training split is empty: there must be normal samples of at least one subject in it")
    torch.set_num_threads(threads)
    if isinstance(detector, LearnsFromLabels):
        if labels is None or len(labels) != len(train):  # type: ignore[arg-type]
            raise TypeError(f"{type(detector).__name__} learns from labels, one for each of the training images")
        check_classes(labels)
    else:
        labels = None
    if isinstance(detector, Learner):
        _check_ranks(detector, rank)
        then_remembers = isinstance(detector, LearnsByMemory)
        rule: SelectionRule = "loss" if then_remembers else selection or detector.selected_by  # no scores before there is a memory
        plan = Plan(seed, checkpoints, checkpoint_every_s, patience, precision, rank, rule)
        report = _fit_by_gradient(detector, train, labels, validation=validation, plan=plan, on_step=on_step)
        if then_remembers:
            _fit_by_memory(cast(LearnsByMemory, detector), train, seed=seed, on_step=lambda count: None)
        return report
    if isinstance(detector, LearnsByMemory):
        if rank.count > 1:
            raise TrainingError(f"{type(detector).__name__} looks at every image once, in one process: set `training: {{processes: 1}}`")
        return _fit_by_memory(detector, train, seed=seed, on_step=on_step)
    raise TypeError(f"{type(detector).__name__} is neither LearnsByGradient nor LearnsFromLabels nor LearnsByMemory")


def _check_ranks(detector: Learner, rank: Rank) -> None:
    if detector.training_batch_size % rank.count:
        raise TrainingError(
            f"a batch of {detector.training_batch_size} cannot be shared equally by {rank.count} processes: choose a training_batch_size "
            f"that {rank.count} divides, or other `training: {{processes: …}}`"
        )
    gpus = torch.cuda.device_count()
    if gpus and rank.count > gpus:
        raise TrainingError(f"{rank.count} processes need a GPU each, and {gpus} are visible here: lower `training: {{processes: …}}`")


def _fit_by_memory(detector: LearnsByMemory, train: Dataset[Tensor], *, seed: int, on_step: Callable[[int], None]) -> FitReport:
    started, device = time.monotonic(), _choose_device()
    _move(detector, device)
    torch.manual_seed(mix_seeds(seed, 1))  # of what a detector draws while it looks; the order is the images'
    with torch.inference_mode(), _single_precision():
        for batch in DataLoader(train, batch_size=detector.batch_size):
            detector.observe(batch.to(device))
            on_step(len(batch))
        detector.conclude(torch.Generator().manual_seed(seed))
    _move(detector, torch.device("cpu"))
    rate = len(train) / (time.monotonic() - started)  # type: ignore[arg-type]
    return FitReport(selected_by="no selection: one pass over the training images", best_epoch=1, images_per_s=rate)


def _choose_device() -> torch.device:
    """That Lightning's "auto" takes for one process, but of accelerators CUDA's alone: others lack float64, which memories are made in."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _move(detector: LearnsByMemory, device: torch.device) -> None:
    if isinstance(detector, nn.Module):
        detector.to(device)


@contextmanager
def _single_precision() -> Iterator[None]:
    """On a GPU, features as they are scored: without the shorter mantissas that convolutions have there by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _fit_by_gradient(
    detector: Learner,
    train: Dataset[Tensor],
    labels: np.ndarray | None,
    *,
    validation: Validation | None,
    plan: Plan,
    on_step: Callable[[int], None],
) -> FitReport:
    for noisy in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    untrained = copy.deepcopy(detector.state_dict())
    pieces = 1  # that a batch is computed in
    while True:
        selection = Selection(detector, validation, plan.patience, plan.rank, rule=plan.selection, seed=plan.seed)
        module = DetectorModule(detector, train, labels, selection, on_step, plan=plan, pieces=pieces)
        try:
            started = time.monotonic()
            _run_lightning(module, plan, pieces)
            break
        except torch.OutOfMemoryError as error:
            if plan.rank.count > 1:  # the others are past this step or wait for it: no rank can begin again by itself
                share = detector.training_batch_size // plan.rank.count
                raise TrainingError(f"{share} images of a batch do not fit into one GPU's memory; lower training_batch_size") from error
            if pieces >= detector.training_batch_size:
                raise TrainingError("a batch of a single image does not fit into the GPU's memory; lower the input size") from error
            pieces *= 2
            logger.warning("out of memory: a batch of %d is now computed in %d pieces", detector.training_batch_size, pieces)
            detector.load_state_dict(untrained)  # type: ignore[union-attr]
            torch.cuda.empty_cache()
    rate = module.images_taken / (time.monotonic() - started)
    if not selection.best_epoch:
        raise TrainingError(_explain_no_epoch(detector, selection))
    detector.load_state_dict(selection.best_state)  # type: ignore[union-attr]
    module.detector.cpu().eval()
    return FitReport(
        selected_by=selection.rule,
        best_epoch=selection.best_epoch,
        images_per_s=rate,
        curve=selection.curve,
        processes=plan.rank.count,
    )


def _explain_no_epoch(detector: Learner, selection: Selection) -> str:
    if any("validation_loss" in entry for entry in selection.curve):
        return "the loss on validation was not finite after any epoch; lower the learning rate"
    return f"{detector.epochs} epochs end before the last stage of {type(detector).__name__}: train longer"


def _run_lightning(module: DetectorModule, plan: Plan, pieces: int) -> None:
    """Train to the end, from the last finished epoch where there is one."""
    keep = _SpacedCheckpoint(plan.checkpoint_every_s, dirpath=plan.checkpoints, save_last="link", save_on_train_epoch_end=True)
    last = Path(plan.checkpoints, "last.ckpt") if plan.checkpoints is not None else None
    trainer = Trainer(
        max_epochs=module.learner.epochs,
        precision=plan.precision,
        accumulate_grad_batches=pieces if module.automatic_optimization else 1,
        logger=False,
        callbacks=[keep] if last is not None else [],
        enable_checkpointing=last is not None,  # the best weights are kept in memory, and the bundle is written once
        enable_progress_bar=False,
        enable_model_summary=False,
        **_placement(plan.rank),
    )
    if plan.rank.count > 1:
        share_batch_norm(module.detector)
    module.detector.train()
    with warnings.catch_warnings():
        # on loader processes (the images are decoded once and kept) and old torch names
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(module, ckpt_path=last if last is not None and last.exists() else None)


def _placement(rank: Rank) -> dict[str, Any]:
    """Lightning's options for this process alone, or as one of those that torchrun started."""
    if rank.count == 1:
        return {"accelerator": "auto", "devices": 1}
    # a critic and its generator leave each other's weights unused; buffers are the same everywhere, which is checked
    strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    return {"accelerator": accelerator, "devices": rank.count, "strategy": strategy, "use_distributed_sampler": False}


class _SpacedCheckpoint(ModelCheckpoint):
    """Keeps finished epochs, but not more often than it pays: a kill costs that time and the epoch in hand."""

    _kept_at = 0.0

    def __init__(self, every_s: float, **options: Any) -> None:
        super().__init__(**options)
        self._every_s = every_s

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep this epoch if the last one that was kept is long ago."""
        due = time.monotonic() - max(self._kept_at, self._started_at) >= self._every_s
        if trainer.strategy.broadcast(due):  # rank 0's clock decides for all
            super().on_train_epoch_end(trainer, pl_module)
            self._kept_at = time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here."""
        self._started_at = time.monotonic()
