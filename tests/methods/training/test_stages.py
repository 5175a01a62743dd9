"""Detectors that change while they learn, and those that look at the training images before."""

import copy
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.detectors.interface import LearnsInStages, PreparesOnTraining, Scores
from methods.training.batches import EpochSampler
from methods.training.fit import fit
from methods.training.outcome import FitReport, TrainingError
from methods.training.selection import Validation

COUNT, BATCH, EPOCHS = 7, 3, 5
BEGINS, FADED = 1 + 1 / 3, 2  # epochs: when the second stage begins, and from when it is the last form


class _KilledError(Exception):
    """Stands for a process that dies."""


class Growing(nn.Module):
    """A linear map, to which from `BEGINS` a second one is faded in; its second stage learns at another rate."""

    selected_by = "loss"
    input_size_px, batch_size, training_batch_size, epochs = 2, 3, BATCH, EPOCHS
    stage: Tensor
    alpha: Tensor

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(12, 1), nn.Linear(12, 1)
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))
        self.register_buffer("alpha", torch.zeros(()))
        self.told: list[float] = []
        self.dies_at: int | None = None
        self.room = BATCH  # images that fit into memory

    def advance_to(self, epoch: float) -> bool:
        self.told.append(epoch)
        if len(self.told) == self.dies_at:
            raise _KilledError
        before = int(self.stage)
        self.stage.fill_(int(epoch >= BEGINS))
        self.alpha.fill_(min(1.0, max(0.0, (epoch - BEGINS) / (FADED - BEGINS))))
        return int(self.stage) != before

    def is_complete(self) -> bool:
        return float(self.alpha) == 1

    def predict(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        return (self.first(x) + self.alpha * self.second(x.square())).squeeze(1)

    def loss(self, images: Tensor) -> Tensor:
        if len(images) > self.room:
            raise torch.OutOfMemoryError
        return (self.predict(images) - images.sum((1, 2, 3)).sin()).square().mean()

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.02 if int(self.stage) == 0 else 0.05)

    def score(self, images: Tensor) -> Scores:
        assert self.is_complete()
        return Scores(image=self.predict(images), pixel=None)


IMAGES = torch.rand(COUNT, 3, 2, 2, generator=torch.Generator().manual_seed(1))
VALIDATION = Validation(images=IMAGES[:4].flip(3), labels=np.array([0, 0, 1, 1]))  # type: ignore[arg-type]


def train(detector: nn.Module, *, validation: Validation | None = None, patience: int | None = None, kept: Path | None = None) -> FitReport:
    options = {"checkpoints": str(kept), "checkpoint_every_s": 0.0} if kept is not None else {}
    return fit(detector, IMAGES, validation=validation, seed=5, threads=1, patience=patience, **options)  # type: ignore[arg-type]


def by_hand() -> list[dict[str, Tensor]]:
    """The weights after each epoch, with a new optimiser where the second stage begins."""
    detector, found = Growing(), []
    optimizer = detector.build_optimizer()
    steps = -(-COUNT // BATCH)
    for epoch in range(EPOCHS):
        order = list(EpochSampler(COUNT, seed=5, epoch=lambda epoch=epoch: epoch))  # type: ignore[misc]
        for step in range(steps):
            if detector.advance_to(epoch + step / steps):
                optimizer = detector.build_optimizer()
            optimizer.zero_grad()
            detector.loss(IMAGES[order[step * BATCH : (step + 1) * BATCH]]).backward()
            optimizer.step()
        found.append(copy.deepcopy(detector.state_dict()))
    return found


def test_it_is_a_detector_that_learns_in_stages() -> None:
    assert isinstance(Growing(), LearnsInStages)


def test_a_new_stage_has_a_new_optimiser_as_a_loop_by_hand_has_it() -> None:
    detector = Growing()
    report = train(detector)
    assert all(torch.equal(tensor, by_hand()[report.best_epoch - 1][name]) for name, tensor in detector.state_dict().items())
    assert detector.told == pytest.approx([epoch + step / 3 for epoch in range(EPOCHS) for step in range(3)])


def test_only_epochs_that_end_complete_are_measured_and_kept_and_the_others_stand_in_the_curve() -> None:
    detector = Growing()
    report = train(detector, validation=VALIDATION)
    assert [entry["epoch"] for entry in report.curve] == [1, 2, 3, 4, 5]
    assert [set(entry) for entry in report.curve[:2]] == [{"epoch", "loss"}] * 2
    assert all("validation_loss" in entry for entry in report.curve[2:])
    losses = [entry["validation_loss"] for entry in report.curve[2:]]
    assert report.best_epoch == 3 + int(np.argmin(losses))
    assert detector.is_complete()


def test_an_early_epoch_is_not_kept_however_low_its_loss() -> None:
    class Worsening(Growing):
        def loss(self, images: Tensor) -> Tensor:
            return super().loss(images) + 100 * len(self.told)

    report = train(Worsening())
    assert report.best_epoch == 3
    assert report.curve[0]["loss"] < report.curve[2]["loss"]


def test_patience_counts_complete_epochs_alone() -> None:
    class Worsening(Growing):
        def loss(self, images: Tensor) -> Tensor:
            return super().loss(images) + 100 * len(self.told)

    report = train(Worsening(), patience=1)
    assert (report.best_epoch, len(report.curve)) == (3, 4)


@pytest.mark.parametrize("dies_at", [5, 6, 8, 11])  # before, where and after the second stage begins
def test_a_training_killed_inside_a_stage_goes_on_to_the_weights_of_an_unbroken_one(tmp_path: Path, dies_at: int) -> None:
    unbroken, killed, resumed = Growing(), Growing(), Growing()
    report = train(unbroken, validation=VALIDATION)
    killed.dies_at = dies_at
    with pytest.raises(_KilledError):
        train(killed, validation=VALIDATION, kept=tmp_path)
    again = train(resumed, validation=VALIDATION, kept=tmp_path)
    assert resumed.told == unbroken.told[(dies_at - 1) // 3 * 3 :]  # from the epoch in which it died
    assert (again.curve, again.best_epoch) == (report.curve, report.best_epoch)
    assert all(torch.equal(resumed.state_dict()[name], tensor) for name, tensor in unbroken.state_dict().items())


def test_pieces_of_a_batch_are_one_step_of_the_stages() -> None:
    roomy, narrow = Growing(), Growing()
    narrow.training_batch_size = roomy.training_batch_size = 4
    roomy.room, narrow.room = 4, 2
    train(roomy)
    train(narrow)
    assert narrow.told[1:] == roomy.told  # once more at the start: it was in the whole batch that memory ran out


def test_a_training_that_ends_before_the_last_stage_is_refused() -> None:
    detector = Growing()
    detector.epochs = 2
    with pytest.raises(TrainingError, match="2 epochs end before the last stage of Growing"):
        train(detector)


def test_stages_and_a_schedule_together_are_refused() -> None:
    class Both(Growing):
        def build_scheduler(self, optimizer: torch.optim.Optimizer, *, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
            raise AssertionError

    with pytest.raises(TypeError, match="Both must do with one of a critic, stages and a schedule"):
        train(Both())


class Prepared(Growing):
    """Writes down what it is shown beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[int, Tensor]] = []

    def prepare(self, batches: Iterable[Tensor]) -> None:
        assert not self.training
        assert not torch.is_grad_enabled()
        once, again = list(batches), list(batches)
        assert torch.equal(torch.cat(once), torch.cat(again))
        self.shown.append((len(self.told), torch.cat(once)))


def test_a_detector_prepares_on_all_training_images_at_the_start_and_where_a_stage_begins(tmp_path: Path) -> None:
    detector = Prepared()
    assert isinstance(detector, PreparesOnTraining)
    detector.dies_at = 10
    with pytest.raises(_KilledError):
        train(detector, kept=tmp_path)
    assert [at for at, _ in detector.shown] == [1, 5]  # before the steps of these numbers
    assert all(torch.equal(images, IMAGES) for _, images in detector.shown)
    resumed = Prepared()
    train(resumed, kept=tmp_path)
    assert resumed.shown == []
