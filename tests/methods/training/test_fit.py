import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from methods.detectors.autoencoder import Autoencoder, AutoencoderConfig
from methods.detectors.interface import Scores
from methods.training.fit import FitReport, TrainingError, Validation, fit


class Images(Dataset[Tensor]):
    def __init__(self, count: int, seed: int = 0) -> None:
        self.images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


class Scripted(nn.Module):
    """A detector whose validation ranking is right after epoch 2 only, and whose loss falls all the time."""

    input_size_px, batch_size, epochs, training_batch_size = 32, 4, 4, 4

    def __init__(self, *, loss: float = 1.0) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(()))
        self._loss = loss

    def loss(self, images: Tensor) -> Tensor:
        return self._loss - self.steps

    def score(self, images: Tensor) -> Scores:
        right = abs(float(self.steps.detach()) - 2) < 0.5
        level = images.mean((1, 2, 3))
        return Scores(level if right else -level, None)

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)  # one batch an epoch: `steps` counts epochs


def fit_scripted(detector: Scripted, validation: Validation | None) -> FitReport:
    return fit(detector, Images(4), validation=validation, seed=0, threads=1)


def test_the_epoch_with_the_best_validation_auroc_is_kept() -> None:
    images = Images(4)
    images.images[:2] *= 0.1
    detector = Scripted()
    report = fit_scripted(detector, Validation(images, np.array([0, 0, 1, 1])))
    assert report.best_epoch == 2
    assert "AUROC" in report.selected_by
    assert float(detector.steps.detach()) == 2
    assert [entry["validation_auroc"] for entry in report.curve] == [0, 1, 0, 0]


@pytest.mark.parametrize("validation", [None, Validation(Images(4), np.zeros(4, int))], ids=["none", "one class"])
def test_without_both_classes_in_validation_the_lowest_loss_decides(validation: Validation | None) -> None:
    detector = Scripted()
    report = fit_scripted(detector, validation)
    assert report.best_epoch == 4
    assert "loss" in report.selected_by


def test_a_loss_that_is_no_number_stops_with_epoch_and_batch() -> None:
    with pytest.raises(TrainingError, match="loss is nan at epoch 1, batch 0"):
        fit_scripted(Scripted(loss=float("nan")), None)


def test_an_empty_training_split_is_refused() -> None:
    with pytest.raises(TrainingError, match="training split is empty"):
        fit(Scripted(), Images(0), validation=None, seed=0, threads=1)


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not() -> None:
    def weights(seed: int) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = Autoencoder(AutoencoderConfig(C0=2, d=2, input_size_px=32, epochs=2, training_batch_size=3))
        fit(network, Images(8), validation=None, seed=seed, threads=1)
        return torch.cat([tensor.flatten() for tensor in network.state_dict().values()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_training_lowers_the_loss_of_the_autoencoder() -> None:
    network = Autoencoder(AutoencoderConfig(C0=4, d=8, input_size_px=32, epochs=8, training_batch_size=4))
    report = fit(network, Images(8), validation=None, seed=0, threads=1)
    assert report.curve[-1]["loss"] < report.curve[0]["loss"]
