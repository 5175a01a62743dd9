"""Training on both labels, weighted draws, and schedules of the learning rate."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import WeightedRandomSampler

from methods.detectors.interface import LearnsFromLabels, SchedulesRate, Scores
from methods.training.batches import EpochSampler, mix_seeds
from methods.training.fit import fit
from methods.training.outcome import FitReport, TrainingError
from methods.training.selection import Validation

LABELS = np.array([0, 0, 0, 0, 0, 0, 1, 1])


def images_for(labels: np.ndarray, seed: int = 0) -> Tensor:
    """Abnormal ones are brighter."""
    noise = torch.rand(len(labels), 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return 0.4 * noise + 0.5 * torch.from_numpy(labels)[:, None, None, None].float()


class _KilledError(Exception):
    """Stands for a process that dies."""


class Classifier(nn.Module):
    """A logistic regression that draws noise, writes down what it learns from, and dies when it is told to."""

    input_size_px, batch_size, training_batch_size, epochs = 2, 3, 4, 4
    selected_by = "loss"
    balanced = True
    dies_at: int | None = None

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(12, 1)
        self.seen: list[list[int]] = []
        self.held_out: list[int] = []
        self.room = 4
        self.rates: list[float] = []
        self._optimizer: torch.optim.Optimizer | None = None

    def labelled_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        assert labels.dtype == torch.int64
        assert torch.equal(labels, (images.mean((1, 2, 3)) > 0.45).long())  # each image has its own label
        if self.training and len(images) > self.room:
            raise torch.OutOfMemoryError
        if self.training:
            self.seen.append(labels.tolist())
            self.rates.append(self._optimizer.param_groups[0]["lr"])  # type: ignore[union-attr]
        else:
            self.held_out += labels.tolist()
        if len(self.seen) == self.dies_at:
            raise _KilledError
        noisy = images + 0.1 * torch.randn_like(images)
        return nn.functional.binary_cross_entropy_with_logits(self.linear(noisy.flatten(1)).squeeze(1), labels.float())

    def weigh_samples(self, labels: Tensor) -> Tensor:
        counts = torch.bincount(labels, minlength=2).double()
        return 1 / counts[labels] if self.balanced else torch.ones(len(labels), dtype=torch.float64)

    def score(self, images: Tensor) -> Scores:
        return Scores(image=self.linear(images.flatten(1)).squeeze(1).sigmoid(), pixel=None)

    def build_optimizer(self) -> torch.optim.Optimizer:
        self._optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        return self._optimizer


class Annealed(Classifier):
    """Whose rate follows a cosine."""

    def build_scheduler(self, optimizer: torch.optim.Optimizer, *, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


VALIDATION_LABELS = np.array([0, 1, 1, 0, 1])
VALIDATION = Validation(images=images_for(VALIDATION_LABELS, seed=1), labels=VALIDATION_LABELS)  # type: ignore[arg-type]


def train(
    detector: Classifier, labels: np.ndarray | None = LABELS, validation: Validation | None = VALIDATION, **options: Any
) -> FitReport:
    images = images_for(labels if labels is not None else LABELS)
    return fit(detector, images, labels=labels, validation=validation, seed=3, threads=1, **options)  # type: ignore[arg-type]


def order(count: int, *, seed: int = 1, epoch: int = 0, weights: Tensor | None = None) -> list[int]:
    return list(EpochSampler(count, seed=seed, epoch=lambda: epoch, weights=weights))


def test_a_weighted_order_draws_as_torchs_weighted_sampler_does() -> None:
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    generator = torch.Generator().manual_seed(mix_seeds(1, 2))
    expected = list(WeightedRandomSampler(weights.tolist(), 4, replacement=True, generator=generator))
    assert order(4, epoch=2, weights=weights) == expected


def test_a_weighted_order_draws_each_image_as_often_as_its_weight_says() -> None:
    n = 20_000
    weights = torch.ones(n, dtype=torch.float64)
    weights[: n // 10] = 9
    often = sum(index < n // 10 for index in order(n, weights=weights)) / n
    assert often == pytest.approx(0.5, abs=5 * math.sqrt(0.25 / n))  # 9 · 0.1 against 1 · 0.9; five standard errors


def test_a_weighted_order_depends_on_seed_and_epoch_alone() -> None:
    weights = torch.arange(1, 51, dtype=torch.float64)
    assert order(50, epoch=3, weights=weights) == order(50, epoch=3, weights=weights)
    assert order(50, epoch=3, weights=weights) != order(50, epoch=4, weights=weights)
    assert order(50, epoch=3, weights=weights) != order(50, seed=2, epoch=3, weights=weights)


def test_a_balanced_classifier_sees_both_labels_alike_and_an_equal_one_every_image_once_an_epoch() -> None:
    labels = np.repeat([0, 1], [180, 20])
    balanced, equal = Classifier(), Classifier()
    equal.balanced = False
    for detector in (balanced, equal):
        detector.training_batch_size = detector.room = 50
        detector.epochs = 1
        train(detector, labels)
        assert [len(batch) for batch in detector.seen] == [50] * 4
    seen = Counter(label for batch in balanced.seen for label in batch)
    assert abs(seen[1] - 100) < 5 * math.sqrt(200 * 0.25)
    assert Counter(label for batch in equal.seen for label in batch) == {0: 180, 1: 20}


def test_a_classifier_that_selects_by_loss_is_measured_on_all_labelled_validation_images() -> None:
    detector = Classifier()
    assert isinstance(detector, LearnsFromLabels)
    report = train(detector)
    assert report.selected_by == "lowest loss on validation images"
    assert detector.held_out == VALIDATION_LABELS.tolist() * 4
    losses = [entry["validation_loss"] for entry in report.curve]
    assert report.best_epoch == 1 + int(np.argmin(losses))


def test_a_classifier_can_be_selected_by_auroc_and_learns() -> None:
    detector = Classifier()
    detector.epochs = 30
    report = train(detector, selection="auroc")
    assert report.selected_by == "highest image AUROC on validation"
    assert max(entry["validation_auroc"] for entry in report.curve) == 1


@pytest.mark.parametrize("validation", [None, Validation(images=images_for(np.zeros(0)), labels=np.zeros(0, int))])  # type: ignore[arg-type]
def test_without_validation_a_classifiers_lowest_training_loss_decides(validation: Validation | None) -> None:
    assert train(Classifier(), validation=validation).selected_by == "lowest training loss (no images in validation)"


def test_where_validation_lacks_a_class_a_classifiers_loss_decides() -> None:
    validation = Validation(images=images_for(np.ones(3, int)), labels=np.ones(3, int))  # type: ignore[arg-type]
    report = train(Classifier(), validation=validation, selection="auroc")
    assert report.selected_by == "lowest loss on validation images (validation lacks a class)"


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 0, 0, 1], "3 normal samples and 1 abnormal sample; .* needs at least 2 of each: give more abnormal samples, or"),
        ([0, 1, 1, 1], "1 normal sample and 3 abnormal samples; .*: give more normal samples, or"),
        ([0, 1], "1 normal sample and 1 abnormal sample; .*: give more normal and abnormal samples, or"),
        ([0, 0, 0, 0], r"4 normal samples and 0 abnormal samples; .*: set `split\.train_on: both`, with abnormal samples to deal, or"),
        ([0, 0, 1, 1, 2], r"must be 0 \(normal\) or 1 \(abnormal\), got \[2\]"),
    ],
)
def test_labels_from_which_nothing_can_be_told_apart_are_refused(labels: list[int], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        train(Classifier(), np.array(labels))


def test_a_classifier_without_labels_is_refused() -> None:
    with pytest.raises(TypeError, match="Classifier learns from labels, one for each of the training images"):
        train(Classifier(), None)


def test_the_rate_follows_its_schedule_over_all_steps_whatever_the_pieces() -> None:
    whole, narrow = Annealed(), Annealed()
    assert isinstance(whole, SchedulesRate)
    narrow.room = 2
    train(whole)
    train(narrow)
    expected = [0.05 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]  # 4 epochs of 2 steps
    assert whole.rates == pytest.approx(expected)
    assert narrow.rates == pytest.approx([rate for rate in expected for _ in range(2)])


@pytest.mark.parametrize("balanced", [True, False])
def test_a_killed_classifier_goes_on_with_draws_and_rate_to_the_weights_of_an_unbroken_one(tmp_path: Path, balanced: bool) -> None:
    unbroken, killed, resumed = Annealed(), Annealed(), Annealed()
    for detector in (unbroken, killed, resumed):
        detector.balanced = balanced
    report = train(unbroken)
    killed.dies_at = 6  # in the third of four epochs of two steps
    with pytest.raises(_KilledError):
        train(killed, checkpoints=str(tmp_path), checkpoint_every_s=0)
    again = train(resumed, checkpoints=str(tmp_path))
    assert resumed.rates == unbroken.rates[4:]
    assert resumed.seen == unbroken.seen[4:]
    assert (again.curve, again.best_epoch) == (report.curve, report.best_epoch)
    assert all(torch.equal(resumed.state_dict()[name], tensor) for name, tensor in unbroken.state_dict().items())


def test_checkpoints_of_a_training_on_other_labels_are_refused(tmp_path: Path) -> None:
    train(Classifier(), checkpoints=str(tmp_path), checkpoint_every_s=0)
    with pytest.raises(TrainingError, match="with other labels"):
        train(Classifier(), LABELS[::-1].copy(), checkpoints=str(tmp_path))
