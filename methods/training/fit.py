"""The training room: takes a detector and data, gives back the detector as it was at its best validation epoch."""

import copy
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from methods.detectors.interface import Detector, LearnsAgainstCritic, LearnsByGradient, LearnsByMemory, Scores
from methods.evaluation.histograms import count_scores
from methods.evaluation.metrics import roc_auc

CHECKPOINT_EVERY_S = 30.0
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """Training cannot begin or go on; the message says at which step and why."""


@dataclass(frozen=True)
class Validation:
    """Labelled images on which the best epoch is chosen: never the test split.

    Attributes:
        images: dataset of (3, H, W) float32 in [0, 1].
        labels: (n,) 0 normal, 1 abnormal.
    """

    images: Dataset[Tensor]
    labels: np.ndarray


@dataclass(frozen=True)
class FitReport:
    """What happened: goes to the model's card.

    Attributes:
        selected_by: the criterion by which the epoch was chosen.
        best_epoch: 1-based; 1 for detectors that look at the data once.
        curve: one entry an epoch: epoch, loss and, where there is validation, validation_auroc.
        images_per_s: training throughput.
    """

    selected_by: str
    best_epoch: int
    images_per_s: float
    curve: list[dict[str, float]] = field(default_factory=list)


def fit(
    detector: Detector,
    train: Dataset[Tensor],
    *,
    validation: Validation | None,
    seed: int,
    threads: int,
    checkpoints: str | None = None,
    patience: int | None = None,
    precision: Precision = "32-true",
    on_step: Callable[[int], None] = lambda count: None,
) -> FitReport:
    """Train a detector in place.

    Args:
        detector: `LearnsByGradient` or `LearnsByMemory`.
        train: normal images (3, H, W) float32 in [0, 1] at the detector's size.
        validation: by which the epoch is chosen (highest AUROC); without it, or with one class only, the lowest training loss decides.
        seed: of the order of the images and everything drawn, anew each epoch: a training that is taken up again draws what it would have.
        threads: computing threads.
        checkpoints: a local folder where a finished epoch is kept every half minute; what is in it already is taken up. None keeps nothing.
        patience: epochs without a better one after which to stop; None goes on to the last.
        precision: of Lightning: mixed ones halve memory on GPUs.
        on_step: called with the number of training images taken since the last call.

    Raises:
        TrainingError: nothing to train on, a loss that is no number, or a batch of one image that does not fit into the GPU's memory.
    """
    if not len(train):  # type: ignore[arg-type]
        raise TrainingError("the training split is empty: there must be normal samples of at least one subject in it")
    torch.set_num_threads(threads)
    if isinstance(detector, LearnsByGradient):
        plan = _Plan(seed=seed, checkpoints=checkpoints, patience=patience, precision=precision)
        return _fit_by_gradient(detector, train, validation=validation, plan=plan, on_step=on_step)
    if isinstance(detector, LearnsByMemory):
        return _fit_by_memory(detector, train, seed=seed, on_step=on_step)
    raise TypeError(f"{type(detector).__name__} is neither LearnsByGradient nor LearnsByMemory")


def score_all(detector: Detector, images: Dataset[Tensor]) -> Scores:
    """Scores of a dataset in its order, in batches of the detector's size, on the CPU: image (n,), pixel (n, H, W)."""
    device = next((tensor.device for tensor in detector.state_dict().values()), torch.device("cpu"))  # a GPU's while it is trained
    batches = []
    with torch.inference_mode():
        for batch in DataLoader(images, batch_size=detector.batch_size):
            batches.append(detector.score(batch.to(device)))
    maps = [scores.pixel.cpu() for scores in batches if scores.pixel is not None]
    return Scores(image=torch.cat([scores.image.cpu() for scores in batches]), pixel=torch.cat(maps) if maps else None)


def training_images(detector: Detector, count: int) -> int:
    """How many images training will take in all: for a progress bar."""
    return count * detector.epochs if isinstance(detector, LearnsByGradient) else count


def _fit_by_memory(detector: LearnsByMemory, train: Dataset[Tensor], *, seed: int, on_step: Callable[[int], None]) -> FitReport:
    started = time.monotonic()
    with torch.inference_mode():
        for batch in DataLoader(train, batch_size=detector.batch_size):
            detector.observe(batch)
            on_step(len(batch))
        detector.conclude(torch.Generator().manual_seed(seed))
    rate = len(train) / (time.monotonic() - started)  # type: ignore[arg-type]
    return FitReport(selected_by="no selection: one pass over the training images", best_epoch=1, images_per_s=rate)


@dataclass(frozen=True)
class _Plan:
    seed: int
    checkpoints: str | None
    patience: int | None
    precision: Precision


def _fit_by_gradient(
    detector: LearnsByGradient, train: Dataset[Tensor], *, validation: Validation | None, plan: _Plan, on_step: Callable[[int], None]
) -> FitReport:
    for noisy in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    untrained = copy.deepcopy(detector.state_dict())
    pieces = 1  # that a batch is computed in
    while True:
        selection = _Selection(detector, validation, plan.patience)
        module = _Lightning(detector, selection, on_step, seed=plan.seed, pieces=pieces)
        try:
            started = time.monotonic()
            _run_lightning(module, train, plan, pieces)
            break
        except torch.OutOfMemoryError as error:
            if pieces >= detector.training_batch_size:
                raise TrainingError("a batch of a single image does not fit into the GPU's memory; lower the input size") from error
            pieces *= 2
            logger.warning("out of memory: a batch of %d is now computed in %d pieces", detector.training_batch_size, pieces)
            detector.load_state_dict(untrained)  # type: ignore[attr-defined]
            torch.cuda.empty_cache()
    rate = module.images_taken / (time.monotonic() - started)
    detector.load_state_dict(selection.best_state)  # type: ignore[attr-defined]
    module.detector.cpu().eval()
    return FitReport(selected_by=selection.rule, best_epoch=selection.best_epoch, images_per_s=rate, curve=selection.curve)


def _run_lightning(module: "_Lightning", train: Dataset[Tensor], plan: _Plan, pieces: int) -> None:
    """Train to the end, from the last finished epoch where there is one."""
    keep = _SpacedCheckpoint(dirpath=plan.checkpoints, save_last="link", save_on_train_epoch_end=True)
    last = Path(plan.checkpoints, "last.ckpt") if plan.checkpoints is not None else None
    trainer = Trainer(
        max_epochs=module.learner.epochs,
        accelerator="auto",
        precision=plan.precision,
        devices=1,
        accumulate_grad_batches=pieces if module.automatic_optimization else 1,
        logger=False,
        callbacks=[keep] if last is not None else [],
        enable_checkpointing=last is not None,  # the best weights are kept in memory, and the bundle is written once
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    size = max(1, module.learner.training_batch_size // pieces)
    loader = DataLoader(train, batch_size=size, sampler=EpochSampler(len(train), seed=plan.seed, epoch=lambda: module.current_epoch))  # type: ignore[arg-type]
    module.detector.train()
    with warnings.catch_warnings():
        # on loader processes (the images are decoded once and kept) and old torch names
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(module, loader, ckpt_path=last if last is not None and last.exists() else None)


class _SpacedCheckpoint(ModelCheckpoint):
    """Keeps finished epochs, but not more often than it pays: a kill costs that time and the epoch in hand."""

    _kept_at = 0.0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep this epoch if the last one that was kept is long ago."""
        if time.monotonic() - max(self._kept_at, self._started_at) >= CHECKPOINT_EVERY_S:
            super().on_train_epoch_end(trainer, pl_module)
            self._kept_at = time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here."""
        self._started_at = time.monotonic()


class EpochSampler(Sampler[int]):
    """A new order each epoch that depends on the seed and the number of the epoch alone, not on the epochs before.

    The epoch is asked for: Lightning announces (`set_epoch`) the first one after a resume too late.
    """

    def __init__(self, count: int, *, seed: int, epoch: Callable[[], int]) -> None:
        self._count, self._seed, self._epoch = count, seed, epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(_mix(self._seed, self._epoch()))
        yield from torch.randperm(self._count, generator=generator).tolist()


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class _Selection:
    """Keeps the weights of the best epoch."""

    def __init__(self, detector: LearnsByGradient, validation: Validation | None, patience: int | None) -> None:
        two_classes = validation is not None and len(np.unique(validation.labels)) == 2
        self._validation = validation if two_classes else None
        self.rule = "highest image AUROC on validation" if two_classes else "lowest training loss (validation lacks a class)"
        self._detector = detector
        self._patience = patience
        self._best = -math.inf
        self.best_epoch = 0
        self.best_state: dict[str, Tensor] = {}
        self.curve: list[dict[str, float]] = []

    def end_epoch(self, epoch: int, loss: float) -> None:
        """Measure and, when it is the best so far, keep."""
        entry = {"epoch": float(epoch), "loss": loss}
        if self._validation is not None:
            scores = score_all(self._detector, self._validation.images).image.cpu().numpy()
            counts = count_scores(scores, self._validation.labels, np.zeros(len(scores), int))
            entry["validation_auroc"] = float(roc_auc(counts.normal.sum(0), counts.abnormal.sum(0)))
        self.curve.append(entry)
        quality = entry.get("validation_auroc", -loss)
        if quality > self._best:
            self._best, self.best_epoch = quality, epoch
            self.best_state = {name: copy.deepcopy(tensor) for name, tensor in self._detector.state_dict().items()}

    @property
    def is_out_of_patience(self) -> bool:
        """Whether too many epochs have passed since the best."""
        return self._patience is not None and len(self.curve) - self.best_epoch >= self._patience

    def state(self) -> dict[str, Any]:
        """What a training that is taken up again must know."""
        return {"best": self._best, "best_epoch": self.best_epoch, "best_state": self.best_state, "curve": self.curve}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self._best, self.best_epoch = state["best"], state["best_epoch"]
        self.best_state, self.curve = state["best_state"], list(state["curve"])


class _Lightning(LightningModule):
    """What Lightning needs to drive a detector."""

    def __init__(
        self, detector: LearnsByGradient, selection: _Selection, on_step: Callable[[int], None], *, seed: int, pieces: int
    ) -> None:
        super().__init__()
        if not isinstance(detector, nn.Module):
            raise TypeError(f"{type(detector).__name__} learns by gradient and so must be a torch module")
        self.detector = detector  # registers its weights
        self.learner: LearnsByGradient = detector
        self._rivals = detector if isinstance(detector, LearnsAgainstCritic) else None
        self.automatic_optimization = self._rivals is None  # two optimisers take turns
        self.images_taken = 0
        self._selection = selection
        self._on_step = on_step
        self._seed = seed
        self._losses: list[float] = []

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        # each step by itself: loaders draw from the same generator, more often after a resume
        torch.manual_seed(_mix(self._seed, self.current_epoch, batch_index + 1))
        loss = self._learn_in_turns(self._rivals, batch, batch_index) if self._rivals else self._learn(batch, batch_index)
        self.images_taken += len(batch)
        self._on_step(len(batch))
        return loss

    def _learn(self, batch: Tensor, batch_index: int) -> Tensor:
        loss = self._checked(self.learner.loss(batch), batch_index)
        self._losses.append(loss.item())
        return loss

    def _learn_in_turns(self, rivals: LearnsAgainstCritic, batch: Tensor, batch_index: int) -> Tensor:
        """The critic learns from every batch, the generator from every `critic_steps`-th."""
        generator, critic = cast(list[LightningOptimizer], self.optimizers())
        critic.zero_grad()
        loss = self._checked(rivals.critic_loss(batch), batch_index)
        self.manual_backward(loss)
        critic.step()
        if batch_index % rivals.critic_steps == 0:
            generator.zero_grad()
            loss = self._learn(batch, batch_index)
            self.manual_backward(loss)
            generator.step()
        return loss

    def _checked(self, loss: Tensor, batch_index: int) -> Tensor:
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at epoch {self.current_epoch + 1}, batch {batch_index}; lower the learning rate"
            )
        return loss

    def on_train_epoch_end(self) -> None:
        self.detector.eval()
        self._selection.end_epoch(self.current_epoch + 1, float(np.mean(self._losses)))
        self.detector.train()
        self._losses = []
        if self._selection.is_out_of_patience:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["selection"] = self._selection.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._selection.restore(checkpoint["selection"])

    def configure_optimizers(self) -> Any:
        if self._rivals is not None:
            return [self._rivals.build_optimizer(), self._rivals.build_critic_optimizer()]
        return self.learner.build_optimizer()
