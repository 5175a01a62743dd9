"""The training room: takes a detector and data, gives back the detector as it was at its best validation epoch."""

import copy
import hashlib
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from methods.detectors.interface import Detector, LearnsAgainstCritic, LearnsByGradient, LearnsByMemory, SelectionRule, check_images
from methods.training.batches import EpochSampler, SharedBatches, mix_seeds
from methods.training.outcome import FitReport, TrainingError
from methods.training.ranks import Rank, check_buffers_agree, gather, share_batch_norm
from methods.training.selection import Selection, Validation

ALONE = Rank()
_STEPS_BETWEEN_CHECKS = 50  # of the losses, on a GPU
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]

logger = logging.getLogger(__name__)


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
        selection = Selection(detector, validation, plan.patience, plan.rank, rule=plan.selection, seed=plan.seed)
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


class _Lightning(LightningModule):
    """What Lightning needs to drive a detector."""

    def __init__(
        self,
        detector: LearnsByGradient,
        train: Dataset[Tensor],
        selection: Selection,
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
