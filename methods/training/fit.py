"""The training room: takes a detector and data, gives back the detector as it was at its best validation epoch."""

import copy
import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from methods.detectors.interface import Detector, LearnsByGradient, LearnsByMemory, Scores
from methods.evaluation.histograms import count_scores
from methods.evaluation.metrics import roc_auc

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
    on_step: Callable[[int], None] = lambda count: None,
) -> FitReport:
    """Train a detector in place.

    Args:
        detector: `LearnsByGradient` or `LearnsByMemory`.
        train: normal images (3, H, W) float32 in [0, 1] at the detector's size.
        validation: by which the epoch is chosen (highest AUROC); without it, or with one class only, the lowest training loss decides.
        seed: of the order of the images and everything drawn.
        threads: computing threads.
        on_step: called with the number of training images taken since the last call.

    Raises:
        TrainingError: nothing to train on, or a loss that is no number.
    """
    if not len(train):  # type: ignore[arg-type]
        raise TrainingError("the training split is empty: there must be normal samples of at least one subject in it")
    torch.set_num_threads(threads)
    if isinstance(detector, LearnsByGradient):
        return _fit_by_gradient(detector, train, validation=validation, seed=seed, on_step=on_step)
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


def _fit_by_gradient(
    detector: LearnsByGradient, train: Dataset[Tensor], *, validation: Validation | None, seed: int, on_step: Callable[[int], None]
) -> FitReport:
    selection = _Selection(detector, validation)
    module = _Lightning(detector, selection, on_step)
    loader = DataLoader(train, batch_size=detector.training_batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed))
    for noisy in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    trainer = Trainer(
        max_epochs=detector.epochs,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,  # the best weights are kept in memory, and the bundle is written once
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    detector.train()  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", module="lightning"
        )  # on loader processes (the images are decoded once and kept) and old torch names
        started = time.monotonic()
        trainer.fit(module, loader)
    rate = len(train) * detector.epochs / (time.monotonic() - started)  # type: ignore[arg-type]
    detector.load_state_dict(selection.best_state)  # type: ignore[attr-defined]
    module.detector.cpu().eval()
    return FitReport(selected_by=selection.rule, best_epoch=selection.best_epoch, images_per_s=rate, curve=selection.curve)


class _Selection:
    """Keeps the weights of the best epoch."""

    def __init__(self, detector: LearnsByGradient, validation: Validation | None) -> None:
        two_classes = validation is not None and len(np.unique(validation.labels)) == 2
        self._validation = validation if two_classes else None
        self.rule = "highest image AUROC on validation" if two_classes else "lowest training loss (validation lacks a class)"
        self._detector = detector
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


class _Lightning(LightningModule):
    """What Lightning needs to drive a detector."""

    def __init__(self, detector: LearnsByGradient, selection: _Selection, on_step: Callable[[int], None]) -> None:
        super().__init__()
        if not isinstance(detector, nn.Module):
            raise TypeError(f"{type(detector).__name__} learns by gradient and so must be a torch module")
        self.detector = detector
        self._selection = selection
        self._on_step = on_step
        self._losses: list[float] = []

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        loss = self.detector.loss(batch)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at epoch {self.current_epoch + 1}, batch {batch_index}; lower the learning rate"
            )
        self._losses.append(loss.item())
        self._on_step(len(batch))
        return loss

    def on_train_epoch_end(self) -> None:
        self.detector.eval()
        self._selection.end_epoch(self.current_epoch + 1, float(np.mean(self._losses)))
        self.detector.train()
        self._losses = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.detector.build_optimizer()
