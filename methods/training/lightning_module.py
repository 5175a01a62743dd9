"""A detector as Lightning drives it: steps, their losses and draws, stages, the end of an epoch, what a checkpoint holds."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from methods.detectors.interface import (
    Learner,
    LearnsAgainstCritic,
    LearnsInStages,
    PreparesOnTraining,
    SchedulesRate,
    SelectionRule,
    check_images,
)
from methods.detectors.networks.modes import evaluation_mode
from methods.training.batches import EpochSampler, SharedBatches, mix_seeds
from methods.training.labels import Batch, LabelledImages, batch_loss, draw_weights, images_of
from methods.training.outcome import TrainingError
from methods.training.ranks import Rank, check_buffers_agree, gather
from methods.training.selection import Selection

_STEPS_BETWEEN_CHECKS = 50  # of the losses, on a GPU
Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


@dataclass(frozen=True)
class Plan:
    """How a detector is trained; the arguments of `methods.training.fit.fit`."""

    seed: int
    checkpoints: str | None
    checkpoint_every_s: float
    patience: int | None
    precision: Precision
    rank: Rank
    selection: SelectionRule


class DetectorModule(LightningModule):
    """What Lightning needs to drive a detector.

    Args:
        detector: a torch module.
        train: its training images.
        labels: (n,) theirs, for one that learns from labels.
        selection: measures each epoch.
        on_step: called with the number of images of each step.
        plan: how it is trained.
        pieces: that a batch is computed in; the optimiser steps after the last.
    """

    def __init__(
        self,
        detector: Learner,
        train: Dataset[Tensor],
        labels: np.ndarray | None,
        selection: Selection,
        on_step: Callable[[int], None],
        *,
        plan: Plan,
        pieces: int,
    ) -> None:
        super().__init__()
        if not isinstance(detector, nn.Module):
            raise TypeError(f"{type(detector).__name__} learns by gradient and so must be a torch module")
        self.detector = detector  # registers its weights
        self.learner: Learner = detector
        self._rivals = detector if isinstance(detector, LearnsAgainstCritic) else None
        self._staged = detector if isinstance(detector, LearnsInStages) else None
        self._scheduled = detector if isinstance(detector, SchedulesRate) else None
        if sum(way is not None for way in (self._rivals, self._staged, self._scheduled)) > 1:
            raise TypeError(f"{type(detector).__name__} must do with one of a critic, stages and a schedule")
        self.automatic_optimization = self._rivals is None  # two optimisers take turns
        self.images_taken = 0
        self._train, self._labels = train, labels
        self._selection = selection
        self._on_step = on_step
        self._seed, self._rank, self._pieces = plan.seed, plan.rank, pieces
        weights = draw_weights(detector, labels)
        order = EpochSampler(len(train), seed=plan.seed, epoch=lambda: self.current_epoch, weights=weights)  # type: ignore[arg-type]
        self._batches = SharedBatches(order, size=max(1, detector.training_batch_size // pieces), rank=plan.rank)
        self._losses: list[Tensor] = []  # that the epoch's is the mean of
        self._unchecked: list[tuple[int, Tensor]] = []

    @property
    def _steps_an_epoch(self) -> int:
        """Of the optimiser."""
        return -(-len(self._batches) // self._pieces)

    def train_dataloader(self) -> DataLoader[Any]:
        """This rank's shares of the batches of an epoch."""
        images = self._train if self._labels is None else LabelledImages(self._train, self._labels)
        return DataLoader(images, batch_sampler=self._batches)

    def on_train_start(self) -> None:
        """Count the images of the epochs that were done before."""
        if self.current_epoch:
            self._on_step(self.current_epoch * len(self._train))  # type: ignore[arg-type]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Before a step: tell a detector that learns in stages how far the training is; a new stage has a new optimiser."""
        if batch_idx % self._pieces:
            return
        step = batch_idx // self._pieces
        begins = self._staged is not None and self._staged.advance_to(self.current_epoch + step / self._steps_an_epoch)
        if self._staged is not None and begins:
            self.trainer.strategy.optimizers = [self._staged.build_optimizer()]
        if begins or not (self.current_epoch or step):
            self._prepare()

    def _prepare(self) -> None:
        """Show a detector that asks for it all training images."""
        if not isinstance(self.detector, PreparesOnTraining):
            return
        with torch.no_grad(), evaluation_mode(self.detector):
            self.detector.prepare(_OnDevice(self._train, self.learner.training_batch_size, self.device))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The loss of a batch, of which Lightning takes the gradient; or, with a critic, a step of each whose turn it is."""
        if batch_index == 0:  # not at every step: on a GPU each look at the values would wait for it
            check_images(images_of(batch), input_size_px=self.learner.input_size_px)
        # each step by itself: loaders draw from the same generator, more often after a resume
        torch.manual_seed(mix_seeds(self._seed, self.current_epoch, batch_index + 1, self._rank.index))
        loss = self._learn_in_turns(self._rivals, batch, batch_index) if self._rivals else self._learn(batch, batch_index)
        images = self._batches.images(batch_index)
        self.images_taken += images
        self._on_step(images)
        return loss

    def _learn(self, batch: Batch, batch_index: int) -> Tensor:
        loss = self._weighed(batch_loss(self.learner, batch), batch_index)
        self._losses.append(loss.detach())
        return loss

    def _learn_in_turns(self, rivals: LearnsAgainstCritic, batch: Batch, batch_index: int) -> Tensor:
        """The critic learns from every batch, the generator from every `critic_steps`-th."""
        generator, critic = cast(list[LightningOptimizer], self.optimizers())
        critic.zero_grad()
        loss = self._weighed(rivals.critic_loss(images_of(batch)), batch_index)
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

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Look once an epoch whether the ranks are still alike."""
        if batch_idx == 0:
            check_buffers_agree(self.detector)

    def on_train_epoch_end(self) -> None:
        """Measure the epoch on validation, and stop when none has been better for long."""
        self._check_losses()
        loss = torch.tensor(torch.stack(self._losses).double().cpu().numpy().mean())
        is_complete = self._staged is None or self._staged.is_complete()
        self.detector.eval()
        self._selection.end_epoch(self.current_epoch + 1, float(gather(loss, self.device).mean()), is_complete=is_complete)
        self.detector.train()
        self._losses = []
        if self._selection.is_out_of_patience:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is kept besides weights, optimiser and schedule."""
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
        identity = {
            "detector": type(self.detector).__name__,
            "configuration": str(config),
            "tensors": hashlib.sha256(repr(shapes).encode()).hexdigest()[:12],
            "seed": str(self._seed),
            "number of images": str(len(self._train)),  # type: ignore[arg-type]
        }
        if self._labels is not None:
            identity["labels"] = hashlib.sha256(self._labels.astype(np.int64).tobytes()).hexdigest()[:12]
        return identity

    def configure_optimizers(self) -> Any:
        """The detector's optimiser and schedule, or its generator's and critic's optimisers."""
        if self._rivals is not None:
            return [self._rivals.build_optimizer(), self._rivals.build_critic_optimizer()]
        optimizer = self.learner.build_optimizer()
        if self._scheduled is None:
            return optimizer
        schedule = self._scheduled.build_scheduler(optimizer, steps=self.learner.epochs * self._steps_an_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _OnDevice:
    """All images of a dataset in their order, in batches on a device, as often as one iterates."""

    def __init__(self, images: Dataset[Tensor], batch_size: int, device: torch.device) -> None:
        self._loader, self._device = DataLoader(images, batch_size=batch_size), device

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self._loader:
            yield batch.to(self._device)
