"""The training room: takes a detector and data, gives back the detector as it was at its best validation epoch."""

import copy
import hashlib
import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from methods.detectors.interface import Detector, LearnsAgainstCritic, LearnsByGradient, LearnsByMemory, Scores, SelectionRule, check_images
from methods.evaluation.histograms import count_scores
from methods.evaluation.metrics import roc_auc
from methods.training.batches import EpochSampler, SharedBatches, mix_seeds
from methods.training.outcome import FitReport, TrainingError
from methods.training.ranks import Rank, check_buffers_agree, gather, share_batch_norm

ALONE = Rank()
_STEPS_BETWEEN_CHECKS = 50  # of the losses, on a GPU
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """Labelled images on which the best epoch is chosen: never the test split.

    Attributes:
        images: dataset of (3, H, W) float32 in [0, 1].
        labels: (n,) 0 normal, 1 abnormal.
    """

    images: Dataset[Tensor]
    labels: np.ndarray


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
    selection: SelectionRule | None = None,
    checkpoint_every_s: float = 30.0,
    rank: Rank = ALONE,
    on_step: Callable[[int], None] = lambda count: None,
) -> FitReport:
    """Train a detector in place.

    Several processes, started by torchrun, each call this with the same arguments and detector but their `rank`. Each takes its share of
    every batch, so that the same images make up a step as in one process, and gets the same report; the weights are rank 0's to write.

    Args:
        detector: `LearnsByGradient` or `LearnsByMemory`; one that is both learns by gradient first.
        train: normal images (3, H, W) float32 in [0, 1] at the detector's size.
        validation: on which the epoch is chosen; without normal images in it the lowest training loss decides.
        seed: of the order of the images and everything drawn, anew each epoch: a training that is taken up again draws what it would have.
        threads: computing threads.
        checkpoints: a local folder where finished epochs are kept; what is in it already is taken up. None keeps nothing.
        patience: epochs without a better one after which to stop; None goes on to the last.
        precision: of Lightning: mixed ones halve memory on GPUs.
        selection: "auroc", the highest image AUROC on validation, or "loss", the lowest loss on its normal images, which decides also
            where validation lacks a class; None: as the detector's method has it.
        checkpoint_every_s: an epoch is kept when at least this time has passed since the last that was.
        rank: of this process; noise is drawn anew for each rank.
        on_step: called with the number of training images taken since the last call, by all ranks together; at first, in a training
            that is taken up again, with those of the epochs before.

    Raises:
        TrainingError: nothing to train on, a loss that is no number, a batch of one image that does not fit into the GPU's memory,
            checkpoints of another training, or ranks that the detector or the batch cannot be shared between.
    """
    if not len(train):  # type: ignore[arg-type]
        raise TrainingError("the training split is empty: there must be normal samples of at least one subject in it")
    torch.set_num_threads(threads)
    if isinstance(detector, LearnsByGradient):
        _check_ranks(detector, rank)
        then_remembers = isinstance(detector, LearnsByMemory)
        rule: SelectionRule = "loss" if then_remembers else selection or detector.selected_by  # no scores before there is a memory
        plan = _Plan(seed, checkpoints, checkpoint_every_s, patience, precision, rank, rule)
        report = _fit_by_gradient(detector, train, validation=validation, plan=plan, on_step=on_step)
        if then_remembers:
            _fit_by_memory(cast(LearnsByMemory, detector), train, seed=seed, on_step=lambda count: None)
        return report
    if isinstance(detector, LearnsByMemory):
        if rank.count > 1:
            raise TrainingError(f"{type(detector).__name__} looks at every image once, in one process: set `training: {{processes: 1}}`")
        return _fit_by_memory(detector, train, seed=seed, on_step=on_step)
    raise TypeError(f"{type(detector).__name__} is neither LearnsByGradient nor LearnsByMemory")


def score_all(detector: Detector, images: Dataset[Tensor]) -> Scores:
    """Scores of a dataset in its order, in batches of the detector's size, on the CPU: image (n,), pixel (n, H, W)."""
    device = _device_of(detector)
    batches = []
    with torch.inference_mode():
        for batch in DataLoader(images, batch_size=detector.batch_size):
            batches.append(detector.score(batch.to(device)))
    maps = [scores.pixel.cpu() for scores in batches if scores.pixel is not None]
    return Scores(image=torch.cat([scores.image.cpu() for scores in batches]), pixel=torch.cat(maps) if maps else None)


def _device_of(detector: Detector) -> torch.device:
    return next((tensor.device for tensor in detector.state_dict().values()), torch.device("cpu"))  # a GPU while it is trained


def _check_ranks(detector: LearnsByGradient, rank: Rank) -> None:
    if detector.training_batch_size % rank.count:
        raise TrainingError(
            f"a batch of {detector.training_batch_size} cannot be shared equally by {rank.count} processes: choose a training_batch_size "
            f"that {rank.count} divides, or other `training: {{processes: …}}`"
        )
    gpus = torch.cuda.device_count()
    if gpus and rank.count > gpus:
        raise TrainingError(f"{rank.count} processes need a GPU each, and {gpus} are visible here: lower `training: {{processes: …}}`")


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
    checkpoint_every_s: float
    patience: int | None
    precision: Precision
    rank: Rank
    selection: SelectionRule


def _fit_by_gradient(
    detector: LearnsByGradient, train: Dataset[Tensor], *, validation: Validation | None, plan: _Plan, on_step: Callable[[int], None]
) -> FitReport:
    for noisy in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    untrained = copy.deepcopy(detector.state_dict())
    pieces = 1  # that a batch is computed in
    while True:
        selection = _Selection(detector, validation, plan.patience, plan.rank, rule=plan.selection, seed=plan.seed)
        module = _Lightning(detector, train, selection, on_step, plan=plan, pieces=pieces)
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
            detector.load_state_dict(untrained)  # type: ignore[attr-defined]
            torch.cuda.empty_cache()
    rate = module.images_taken / (time.monotonic() - started)
    detector.load_state_dict(selection.best_state)  # type: ignore[attr-defined]
    module.detector.cpu().eval()
    return FitReport(
        selected_by=selection.rule,
        best_epoch=selection.best_epoch,
        images_per_s=rate,
        curve=selection.curve,
        processes=plan.rank.count,
    )


def _run_lightning(module: "_Lightning", plan: _Plan, pieces: int) -> None:
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


class _Selection:
    """Keeps the weights of the best epoch; all ranks measure together and choose the same."""

    def __init__(
        self, detector: LearnsByGradient, validation: Validation | None, patience: int | None, rank: Rank, *, rule: SelectionRule, seed: int
    ) -> None:
        self._detector = detector
        self._validation = validation
        self._normal = np.flatnonzero(validation.labels == 0) if validation is not None else np.empty(0, int)
        self._by_auroc = rule == "auroc" and validation is not None and len(np.unique(validation.labels)) == 2
        self.rule = self._describe(rule)
        self._patience = patience
        self._rank = rank
        self._seed = seed
        self._best = -math.inf
        self.best_epoch = 0
        self.best_state: dict[str, Tensor] = {}
        self.curve: list[dict[str, float]] = []

    def _describe(self, rule: SelectionRule) -> str:
        if self._by_auroc:
            return "highest image AUROC on validation"
        if not len(self._normal):
            return "lowest training loss (no normal images in validation)"
        return f"lowest loss on normal validation images{' (validation lacks a class)' if rule == 'auroc' else ''}"

    def end_epoch(self, epoch: int, loss: float) -> None:
        """Measure and, when it is the best so far, keep."""
        entry = {"epoch": float(epoch), "loss": loss}
        quality = -loss
        if self._validation is not None and self._by_auroc:
            scores = self._score(self._validation)
            counts = count_scores(scores, self._validation.labels, np.zeros(len(scores), int))
            quality = entry["validation_auroc"] = float(roc_auc(counts.normal.sum(0), counts.abnormal.sum(0)))
        elif self._validation is not None and len(self._normal):
            entry["validation_loss"] = self._measure_loss(self._validation)
            quality = -entry["validation_loss"]
        self.curve.append(entry)
        if quality > self._best:
            self._best, self.best_epoch = quality, epoch
            self.best_state = {name: copy.deepcopy(tensor) for name, tensor in self._detector.state_dict().items()}

    def _score(self, validation: Validation) -> np.ndarray:
        """Image scores (n,) of validation; each rank scores every `count`-th image."""
        n, ranks = len(validation.labels), self._rank.count
        own = range(self._rank.index, n, ranks)
        scores = torch.full((-(-n // ranks),), torch.nan)
        if own:
            scores[: len(own)] = score_all(self._detector, Subset(validation.images, own)).image
        return gather(scores, _device_of(self._detector)).T.flatten()[:n].numpy()  # (ranks, n / ranks) to the images' order

    def _measure_loss(self, validation: Validation) -> float:
        """Mean loss of normal images, with the same noise after every epoch; each rank measures every `count`-th image."""
        device, total = _device_of(self._detector), torch.zeros(2)  # sum of losses, images
        own = self._normal[self._rank.index :: self._rank.count].tolist()
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(mix_seeds(self._seed, self._rank.index))
            for batch in DataLoader(Subset(validation.images, own), batch_size=self._detector.training_batch_size) if own else ():
                total += torch.tensor([float(self._detector.loss(batch.to(device))) * len(batch), len(batch)])
        loss, images = gather(total, device).sum(0).tolist()
        return float(loss / images)

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
        self,
        detector: LearnsByGradient,
        train: Dataset[Tensor],
        selection: _Selection,
        on_step: Callable[[int], None],
        *,
        plan: _Plan,
        pieces: int,
    ) -> None:
        super().__init__()
        if not isinstance(detector, nn.Module):
            raise TypeError(f"{type(detector).__name__} learns by gradient and so must be a torch module")
        self.detector = detector  # registers its weights
        self.learner: LearnsByGradient = detector
        self._rivals = detector if isinstance(detector, LearnsAgainstCritic) else None
        self.automatic_optimization = self._rivals is None  # two optimisers take turns
        self.images_taken = 0
        self._train = train
        self._selection = selection
        self._on_step = on_step
        self._seed, self._rank = plan.seed, plan.rank
        order = EpochSampler(len(train), seed=plan.seed, epoch=lambda: self.current_epoch)  # type: ignore[arg-type]
        self._batches = SharedBatches(order, size=max(1, detector.training_batch_size // pieces), rank=plan.rank)
        self._losses: list[Tensor] = []  # that the epoch's is the mean of
        self._unchecked: list[tuple[int, Tensor]] = []

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(self._train, batch_sampler=self._batches)

    def on_train_start(self) -> None:
        if self.current_epoch:
            self._on_step(self.current_epoch * len(self._train))  # type: ignore[arg-type]

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        if batch_index == 0:  # not at every step: on a GPU each look at the values would wait for it
            check_images(batch, input_size_px=self.learner.input_size_px)
        # each step by itself: loaders draw from the same generator, more often after a resume
        torch.manual_seed(mix_seeds(self._seed, self.current_epoch, batch_index + 1, self._rank.index))
        loss = self._learn_in_turns(self._rivals, batch, batch_index) if self._rivals else self._learn(batch, batch_index)
        images = self._batches.images(batch_index)
        self.images_taken += images
        self._on_step(images)
        return loss

    def _learn(self, batch: Tensor, batch_index: int) -> Tensor:
        loss = self._weighed(self.learner.loss(batch), batch_index)
        self._losses.append(loss.detach())
        return loss

    def _learn_in_turns(self, rivals: LearnsAgainstCritic, batch: Tensor, batch_index: int) -> Tensor:
        """The critic learns from every batch, the generator from every `critic_steps`-th."""
        generator, critic = cast(list[LightningOptimizer], self.optimizers())
        critic.zero_grad()
        loss = self._weighed(rivals.critic_loss(batch), batch_index)
        self.manual_backward(loss)
        critic.step()
        if batch_index % rivals.critic_steps == 0:
            generator.zero_grad()
            loss = self._learn(batch, batch_index)
            self.manual_backward(loss)
            generator.step()
        return loss

    def _weighed(self, loss: Tensor, batch_index: int) -> Tensor:
        """The loss as this rank's share of the batch counts, watched over."""
        self._unchecked.append((batch_index, loss.detach()))
        if len(self._unchecked) >= (1 if loss.device.type == "cpu" else _STEPS_BETWEEN_CHECKS):
            self._check_losses()
        return loss if self._rank.count == 1 else loss * self._batches.weight(batch_index)

    def _check_losses(self) -> None:
        """Find the first loss that is no number, of any rank; seldom on a GPU, because reading one makes the CPU wait for it."""
        if not self._unchecked:
            return
        values = torch.stack([loss for _, loss in self._unchecked]).float().cpu()
        values = gather(values, self.device)  # (ranks, steps)
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            rank, at = min(bad.tolist(), key=lambda place: place[1])
            batch_index = self._unchecked[at][0]
            step = self.current_epoch * len(self._batches) + batch_index
            raise TrainingError(
                f"the loss is {values[rank, at]} at epoch {self.current_epoch + 1}, batch {batch_index}, step {step} of the training "
                "(batches and steps from 0); lower the learning rate"
            )
        self._unchecked = []

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        if batch_idx == 0:
            check_buffers_agree(self.detector)

    def on_train_epoch_end(self) -> None:
        self._check_losses()
        loss = torch.tensor(torch.stack(self._losses).double().cpu().numpy().mean())
        self.detector.eval()
        self._selection.end_epoch(self.current_epoch + 1, float(gather(loss, self.device).mean()))
        self.detector.train()
        self._losses = []
        if self._selection.is_out_of_patience:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["training"] = self._identity()
        checkpoint["selection"] = self._selection.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up a training, but no other one than this.

        Raises:
            TrainingError: says in what the two differ.
        """
        kept, wanted = checkpoint.get("training", {}), self._identity()
        differing = [f"{name} ({kept.get(name)} there, {value} here)" for name, value in wanted.items() if kept.get(name) != value]
        if differing:
            raise TrainingError(
                f"the checkpoints are of another training, with other {', '.join(differing)}: remove them, or give another folder"
            )
        self._selection.restore(checkpoint["selection"])

    def _identity(self) -> dict[str, str]:
        """What must be the same for a training to be taken up: not the number of ranks, which may change with the machine."""
        config = getattr(self.detector, "config", None)
        shapes = {name: tuple(tensor.shape) for name, tensor in self.detector.state_dict().items()}
        return {
            "detector": type(self.detector).__name__,
            "configuration": str(config),
            "tensors": hashlib.sha256(repr(shapes).encode()).hexdigest()[:12],
            "seed": str(self._seed),
            "number of images": str(len(self._train)),  # type: ignore[arg-type]
        }

    def configure_optimizers(self) -> Any:
        if self._rivals is not None:
            return [self._rivals.build_optimizer(), self._rivals.build_critic_optimizer()]
        return self.learner.build_optimizer()
