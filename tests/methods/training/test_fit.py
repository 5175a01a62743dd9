"""The training room with detectors whose every epoch is known beforehand."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from methods.detectors.autoencoder import Autoencoder, AutoencoderConfig
from methods.detectors.interface import DetectorError, Scores
from methods.training.fit import _choose_device, fit
from methods.training.outcome import FitReport, TrainingError
from methods.training.selection import Validation, score_all


class _Images(Dataset[Tensor]):
    """Images (3, 2, 2), each filled with its number."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((3, 2, 2), self.values[index])


class _Clock(nn.Module):
    """Its only weight is the number of steps taken; what it scores and loses at each is prescribed.

    The score is the image's value times a sign: +1 ranks abnormal images above normal ones, -1 below, 0 not at all. What it loses on
    validation is a noisy multiple of the images' sum.
    """

    selected_by = "auroc"
    input_size_px = 2
    batch_size = 3
    training_batch_size = 4

    def __init__(self, *, signs: list[float], losses: list[float], held_out: list[float] = ()) -> None:  # type: ignore[assignment]
        super().__init__()
        self.held_out = [0.0, *(held_out or losses)]
        self.epochs = len(losses)
        self.steps = nn.Parameter(torch.zeros(()))
        self.signs, self.losses = [0.0, *signs], losses

    def loss(self, images: Tensor) -> Tensor:
        if not self.training:
            return self.held_out[int(self.steps)] * images.mean() * (1 + torch.rand(()))
        return self.losses[int(self.steps)] + 0 * self.steps - (self.steps - self.steps.detach())  # gradient -1: a step adds 1

    def score(self, images: Tensor) -> Scores:
        assert not self.training
        return Scores(image=self.signs[int(self.steps)] * images.mean((1, 2, 3)), pixel=None)

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1)


VALIDATION = Validation(images=_Images([0.1, 0.2, 0.3, 0.8, 0.9]), labels=np.array([0, 0, 0, 1, 1]))


def _fit(detector: nn.Module, *, count: int = 4, validation: Validation | None = None, seed: int = 0) -> FitReport:
    return fit(detector, _Images([i / count for i in range(count)]), validation=validation, seed=seed, threads=1)  # type: ignore[arg-type]


def test_the_weights_of_the_epoch_with_the_highest_validation_auroc_are_kept() -> None:
    detector = _Clock(signs=[-1, 0, 1, 0, -1], losses=[5, 4, 3, 2, 1])
    report = _fit(detector, validation=VALIDATION)
    assert (report.best_epoch, int(detector.steps)) == (3, 3)
    assert "AUROC" in report.selected_by
    assert [entry["validation_auroc"] for entry in report.curve] == [0, 0.5, 1, 0.5, 0]
    assert [entry["loss"] for entry in report.curve] == [5, 4, 3, 2, 1]
    assert [entry["epoch"] for entry in report.curve] == [1, 2, 3, 4, 5]
    assert not detector.training


def test_the_first_of_equally_good_epochs_is_kept() -> None:
    detector = _Clock(signs=[0, 1, 1, 1], losses=[4, 3, 2, 1])
    assert _fit(detector, validation=VALIDATION).best_epoch == 2
    assert int(detector.steps) == 2


def test_a_method_that_selects_by_loss_keeps_the_epoch_with_the_lowest_on_normal_validation_images() -> None:
    detector = _Clock(signs=[1, -1, -1, -1], losses=[4, 3, 2, 1], held_out=[4, 3, 3, 5])
    detector.selected_by = "loss"
    report = _fit(detector, validation=VALIDATION)
    assert (report.best_epoch, int(detector.steps)) == (2, 2)
    assert report.selected_by == "lowest loss on normal validation images"
    found = [entry["validation_loss"] for entry in report.curve]
    assert found == pytest.approx([found[0] * held_out / 4 for held_out in (4, 3, 3, 5)], rel=1e-6)  # the same noise after every epoch
    assert 0.2 * 4 <= found[0] <= 0.4 * 4  # the mean of 0.1, 0.2 and 0.3, and up to twice that: abnormal images have no part in it
    assert "validation_auroc" not in report.curve[0]


def test_the_configuration_may_select_otherwise_than_the_method() -> None:
    detector = _Clock(signs=[-1, 1, -1], losses=[3, 2, 1])
    detector.selected_by = "loss"
    images = _Images([0.0, 0.25, 0.5, 0.75])
    report = fit(detector, images, validation=VALIDATION, seed=0, threads=1, selection="auroc")  # type: ignore[arg-type]
    assert (report.best_epoch, report.selected_by) == (2, "highest image AUROC on validation")


def test_without_abnormal_images_in_validation_the_lowest_loss_on_its_normal_ones_decides() -> None:
    detector = _Clock(signs=[1] * 4, losses=[4, 3, 2, 1], held_out=[3, 1, 2, 4])
    report = _fit(detector, validation=Validation(images=_Images([0.1, 0.2]), labels=np.array([0, 0])))
    assert (report.best_epoch, int(detector.steps)) == (2, 2)
    assert report.selected_by == "lowest loss on normal validation images (validation lacks a class)"


@pytest.mark.parametrize("validation", [None, Validation(images=_Images([0.1, 0.2]), labels=np.array([1, 1]))])
def test_without_normal_images_in_validation_the_lowest_training_loss_decides(validation: Validation | None) -> None:
    detector = _Clock(signs=[1] * 4, losses=[3, 1, 2, 4])
    report = _fit(detector, validation=validation)
    assert (report.best_epoch, int(detector.steps)) == (2, 2)
    assert report.selected_by == "lowest training loss (no normal images in validation)"
    assert "validation_auroc" not in report.curve[0]


def test_the_loss_of_an_epoch_is_the_mean_over_its_batches() -> None:
    detector = _Clock(signs=[1] * 4, losses=[1, 3, 4, 8])
    detector.epochs = 2
    assert [entry["loss"] for entry in _fit(detector, count=8).curve] == [2, 6]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_training_naming_epoch_batch_and_step(bad: float) -> None:
    detector = _Clock(signs=[1] * 4, losses=[1, 1, 1, bad])
    detector.epochs = 2
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at epoch 2, batch 1, step 3 of the training"):
        _fit(detector, count=8)


def test_a_loss_on_validation_that_is_never_finite_is_said_to_be_that() -> None:
    detector = _Clock(signs=[1] * 2, losses=[2, 1], held_out=[float("nan")] * 2)
    with pytest.raises(TrainingError, match="the loss on validation was not finite after any epoch"):
        _fit(detector, validation=Validation(images=_Images([0.1, 0.2]), labels=np.array([0, 0])))


@pytest.mark.parametrize("values", [[0.0, 255.0], [float("nan"), 0.5]])
def test_training_images_outside_the_range_are_refused(values: list[float]) -> None:
    with pytest.raises(DetectorError, match=r"expected values in \[0, 1\]"):
        fit(_Clock(signs=[1], losses=[1]), _Images(values), validation=None, seed=0, threads=1)  # type: ignore[arg-type]


def test_an_empty_training_set_is_refused() -> None:
    with pytest.raises(TrainingError, match="training split is empty"):
        _fit(_Clock(signs=[1], losses=[1]), count=0)


def test_what_does_not_learn_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="Identity is neither"):
        _fit(nn.Identity())


def _trained_autoencoder(seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = Autoencoder(AutoencoderConfig(C0=2, d=2, input_size_px=16, epochs=2, training_batch_size=2))
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    fit(detector, images, validation=None, seed=seed, threads=1)  # type: ignore[arg-type]
    return copy.deepcopy(detector.state_dict())


def test_the_same_seed_gives_the_same_weights_to_the_bit_and_another_does_not() -> None:
    one, two, other = _trained_autoencoder(3), _trained_autoencoder(3), _trained_autoencoder(4)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


class _Memory:
    """Writes down what it was shown."""

    input_size_px = 2
    batch_size = 3

    def __init__(self) -> None:
        self.seen: list[list[float]] = []
        self.drawn = 0

    def observe(self, images: Tensor) -> None:
        self.seen.append([round(value, 3) for value in images[:, 0, 0, 0].tolist()])

    def conclude(self, generator: torch.Generator) -> None:
        self.drawn = int(torch.randint(1 << 30, (1,), generator=generator))

    def score(self, images: Tensor) -> Scores:
        assert len(images) <= self.batch_size
        return Scores(image=images[:, 0, 0, 0], pixel=images[:, 0])

    def state_dict(self) -> dict[str, Tensor]:
        return {}


def test_a_detector_with_a_memory_sees_every_image_once_and_draws_by_the_seed() -> None:
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    detectors, steps = [_Memory() for _ in range(3)], []
    for detector, seed in zip(detectors, (1, 1, 2), strict=True):
        fit(detector, _Images(values), validation=None, seed=seed, threads=1, on_step=steps.append)
    assert detectors[0].seen == [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7]]
    assert steps == [3, 3, 1] * 3
    assert detectors[0].drawn == detectors[1].drawn != detectors[2].drawn


def test_progress_counts_every_image_of_every_epoch() -> None:
    detector, steps = _Clock(signs=[1] * 6, losses=[1.0] * 6), []
    detector.epochs = 2
    fit(detector, _Images([0.5] * 10), validation=None, seed=0, threads=1, on_step=steps.append)
    assert steps == [4, 4, 2, 4, 4, 2]


def test_scores_of_a_dataset_keep_its_order() -> None:
    values = [0.7, 0.1, 0.9, 0.3, 0.5, 0.2, 0.4]
    scores = score_all(_Memory(), _Images(values))
    torch.testing.assert_close(scores.image, torch.tensor(values))
    assert scores.pixel is not None
    assert scores.pixel.shape == (7, 2, 2)


class _KilledError(Exception):
    """Stands for a process that dies."""


class _NoisyAutoencoder(Autoencoder):
    """Draws in its loss, as variational detectors do, and dies at a step when it is told to."""

    dies_at: int | None = None
    taken = 0

    def loss(self, images: Tensor) -> Tensor:
        self.taken += 1
        if self.taken == self.dies_at:
            raise _KilledError
        return super().loss((images + 0.1 * torch.randn_like(images)).clamp(0, 1))


def _noisy(epochs: int = 4) -> _NoisyAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _NoisyAutoencoder(AutoencoderConfig(C0=2, d=2, input_size_px=16, epochs=epochs, training_batch_size=2))


def _pictures(count: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_a_training_that_was_killed_goes_on_to_the_same_weights_as_an_unbroken_one(tmp_path: Path) -> None:
    images, validation = _pictures(6), Validation(images=_pictures(4), labels=np.array([0, 1, 0, 1]))  # type: ignore[arg-type]
    unbroken, killed = _noisy(), _noisy()
    report = fit(unbroken, images, validation=validation, seed=5, threads=1)  # type: ignore[arg-type]
    killed.dies_at = 8  # in the third of four epochs of three steps
    with pytest.raises(_KilledError):
        fit(killed, images, validation=validation, seed=5, threads=1, checkpoints=str(tmp_path), checkpoint_every_s=0)  # type: ignore[arg-type]
    resumed, steps = _noisy(), list[int]()
    again = fit(resumed, images, validation=validation, seed=5, threads=1, checkpoints=str(tmp_path), on_step=steps.append)  # type: ignore[arg-type]
    assert steps == [12, *[2] * 6]  # two epochs were done before
    assert resumed.taken == 6  # the last two epochs alone
    assert (again.curve, again.best_epoch) == (report.curve, report.best_epoch)
    assert all(torch.equal(resumed.state_dict()[name], tensor) for name, tensor in unbroken.state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 5}, "other configuration"),
        ({"C0": 4}, "other configuration"),
        ({"seed": 6}, r"other seed \(5 there, 6 here\)"),
        ({"count": 8}, r"other number of images \(6 there, 8 here\)"),
        ({"detector": Autoencoder}, r"other detector \(_NoisyAutoencoder there, Autoencoder here\)"),
    ],
)
def test_checkpoints_of_another_training_are_refused_saying_in_what_it_differs(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    def train(*, seed: int = 5, count: int = 6, detector: type[Autoencoder] = _NoisyAutoencoder, C0: int = 2, epochs: int = 1) -> None:
        model = detector(AutoencoderConfig(C0=C0, d=2, input_size_px=16, epochs=epochs, training_batch_size=2))
        images = _pictures(count)
        fit(model, images, validation=None, seed=seed, threads=1, checkpoints=str(tmp_path), checkpoint_every_s=0)  # type: ignore[arg-type]

    train()
    with pytest.raises(TrainingError, match=said):
        train(**change)


def test_patience_stops_after_so_many_epochs_without_a_better_one() -> None:
    detector = _Clock(signs=[0, 1, 0, 0, 0, 0], losses=[6, 5, 4, 3, 2, 1])
    report = fit(detector, _Images([0.5] * 4), validation=VALIDATION, seed=0, threads=1, patience=2)
    assert (len(report.curve), report.best_epoch, int(detector.steps)) == (4, 2, 2)


class _Greedy(_NoisyAutoencoder):
    """Has memory for one image only."""

    def loss(self, images: Tensor) -> Tensor:
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Autoencoder.loss(self, images)


def test_out_of_memory_halves_the_batch_and_keeps_its_effective_size(caplog: pytest.LogCaptureFixture) -> None:
    config = AutoencoderConfig(C0=2, d=2, input_size_px=16, epochs=2, training_batch_size=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        roomy, greedy = Autoencoder(config), _Greedy(config)
    greedy.load_state_dict(roomy.state_dict())
    for detector in (roomy, greedy):
        fit(detector, _pictures(8), validation=None, seed=0, threads=1)  # type: ignore[arg-type]
    assert "in 4 pieces" in caplog.text
    for name, tensor in roomy.state_dict().items():
        torch.testing.assert_close(greedy.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_single_image_that_does_not_fit_is_an_error_that_says_so() -> None:
    class _Hopeless(_NoisyAutoencoder):
        def loss(self, images: Tensor) -> Tensor:
            raise torch.OutOfMemoryError

    with pytest.raises(TrainingError, match="single image does not fit"):
        fit(_Hopeless(AutoencoderConfig(C0=2, d=2, input_size_px=16, epochs=1)), _pictures(2), validation=None, seed=0, threads=1)  # type: ignore[arg-type]


class _Rivals(nn.Module):
    selected_by = "loss"
    """Two weights, each of which counts the steps of its optimiser."""

    input_size_px, batch_size, training_batch_size, epochs, critic_steps = 2, 3, 2, 1, 3

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def loss(self, images: Tensor) -> Tensor:
        return 7 - (self.generator - self.generator.detach())

    def critic_loss(self, images: Tensor) -> Tensor:
        return -self.critic

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.generator], lr=1)

    def build_critic_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.critic], lr=1)

    def score(self, images: Tensor) -> Scores:
        return Scores(image=images.mean((1, 2, 3)), pixel=None)


def test_a_critic_learns_from_every_batch_and_its_generator_from_every_third() -> None:
    rivals = _Rivals()
    report = fit(rivals, _Images([0.5] * 12), validation=None, seed=0, threads=1)
    assert (int(rivals.critic), int(rivals.generator)) == (6, 2)
    assert report.curve[0]["loss"] == 7  # the generator's


class _Keeper(nn.Module):
    """Keeps the batches it is shown, and says to what it was moved."""

    input_size_px = 2
    batch_size = 3

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Tensor] = []
        self.said: list[str] = []

    def to(self, device: torch.device) -> "_Keeper":  # type: ignore[override]
        self.said.append(f"moved to {device}")
        return self

    def observe(self, images: Tensor) -> None:
        self.said.append("observed")
        self.batches.append(images)

    def conclude(self, generator: torch.Generator) -> None:
        self.said.append("concluded")

    def score(self, images: Tensor) -> Scores:
        raise NotImplementedError


def test_a_memory_is_filled_on_the_device_that_is_chosen_and_then_brought_back__no_gpu_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the order is seen: the device is the one without values, which every machine has."""
    monkeypatch.setattr("methods.training.fit._choose_device", lambda: torch.device("meta"))
    keeper = _Keeper()
    _fit(keeper, count=7)
    assert keeper.said == ["moved to meta", *["observed"] * 3, "concluded", "moved to cpu"]
    assert [batch.device.type for batch in keeper.batches] == ["meta"] * 3
    assert [len(batch) for batch in keeper.batches] == [3, 3, 1]


def test_without_a_gpu_a_memory_is_filled_on_the_cpu_and_flags_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    keeper, before = _Keeper(), torch.backends.cudnn.allow_tf32
    _fit(keeper, count=4)
    assert keeper.said == ["moved to cpu", "observed", "observed", "concluded", "moved to cpu"]
    assert torch.equal(torch.cat(keeper.batches)[:, 0, 0, 0], torch.tensor([0, 0.25, 0.5, 0.75]))
    assert torch.backends.cudnn.allow_tf32 == before


def test_with_a_gpu_that_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert _choose_device() == torch.device(expected)
