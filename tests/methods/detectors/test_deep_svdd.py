"""Deep SVDD: both objectives and the radius by hand, the centre's rule, and a training through all its stages."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import Dataset

from methods.detectors.deep_svdd import DeepSVDD, DeepSVDDConfig, Stage, keep_from_zero, normalise_contrast, plan_stages
from methods.detectors.interface import DetectorError, LearnsByGradient, LearnsInStages, PreparesOnTraining
from methods.training.fit import fit

TINY = DeepSVDDConfig(input_size_px=8, widths=(4, 4), latent=3, batch_size=4, pretraining_epochs=0, epochs=2, fine_tuning_epochs=0)
SOFT = TINY.model_copy(update={"objective": "soft-boundary", "nu": 0.25})


def images_of(count: int = 4, seed: int = 0, size_px: int = 8) -> Tensor:
    return torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(seed))


def build(config: DeepSVDDConfig = TINY) -> DeepSVDD:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DeepSVDD(config).eval()


class _Given(nn.Module):
    """Features that are given, whatever the images."""

    def __init__(self, features: list[list[float]]) -> None:
        super().__init__()
        self.features = nn.Parameter(torch.tensor(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.features[: len(x)]


def with_distances(config: DeepSVDDConfig, distances: list[float]) -> DeepSVDD:
    """A detector whose images lie so far from its centre (1, 1, 1)."""
    detector = build(config)
    detector.centre.fill_(1.0)
    detector.encoder = _Given([[1.0, 1.0 + distance, 1.0] for distance in distances])
    return detector


def test_the_one_class_objective_is_the_mean_squared_distance() -> None:
    detector = with_distances(TINY, [1.0, 2.0, 0.0, 3.0])
    torch.testing.assert_close(detector.loss(images_of()), torch.tensor((1.0 + 4.0 + 0.0 + 9.0) / 4))
    torch.testing.assert_close(detector.score(images_of()).image, torch.tensor([1.0, 4.0, 0.0, 9.0]))


def test_the_soft_boundary_pays_for_its_radius_and_for_what_lies_outside() -> None:
    detector = with_distances(SOFT, [1.0, 2.0, 0.0, 3.0])
    detector.radius.fill_(1.5)
    loss = detector.loss(images_of())
    torch.testing.assert_close(loss, torch.tensor(2.25 + ((4 - 2.25) + (9 - 2.25)) / 4 / 0.25))
    torch.testing.assert_close(detector.score(images_of()).image, torch.tensor([1.0, 4.0, 0.0, 9.0]) - 2.25)
    loss.backward()
    assert isinstance(detector.encoder, _Given)
    moved = detector.encoder.features.grad.abs().sum(1) > 0  # type: ignore[union-attr]
    assert moved.tolist() == [False, True, False, True]  # those inside cost nothing


def test_the_radius_is_the_quantile_of_the_distances_in_training_after_the_warm_up_alone() -> None:
    distances = [1.0, 2.0, 0.5, 3.0, 0.25]
    detector = with_distances(SOFT.model_copy(update={"radius_warm_up_epochs": 1}), distances)
    for mode, epoch, radius in ((True, 0.5, 0.0), (False, 1.0, 0.0), (True, 1.0, float(np.quantile(distances, 0.75)))):
        detector.train(mode).advance_to(epoch)
        loss = detector.loss(images_of(5))
        assert detector.radius.item() == pytest.approx(radius)
        loss.backward()  # the loss was that of the radius before
        torch.testing.assert_close(loss.detach(), torch.tensor(distances).square().mean() / 0.25)


def test_no_layer_has_a_bias_so_that_weights_of_zero_do_not_reach_the_centre() -> None:
    config = DeepSVDDConfig()
    detector = DeepSVDD(config)
    assert all(getattr(layer, "bias", None) is None for layer in detector.modules())
    assert all(layer.weight is None for layer in detector.modules() if isinstance(layer, nn.BatchNorm2d))
    bounded = nn.Sigmoid | nn.Tanh | nn.Hardtanh | nn.ReLU6
    assert not any(isinstance(layer, bounded) for layer in detector.encoder.modules())
    detector = build()
    detector.prepare([images_of(8)])
    for weight in detector.encoder.parameters():
        nn.init.zeros_(weight)
    torch.testing.assert_close(detector.loss(images_of()), detector.centre.square().sum())
    assert detector.centre.abs().min() >= 0.1


def test_the_centres_coordinates_keep_from_zero_on_their_side_of_it() -> None:
    centre = torch.tensor([0.0, 0.05, -0.05, 0.1, -0.1, 0.7, -3.0])
    torch.testing.assert_close(keep_from_zero(centre), torch.tensor([0.1, 0.1, -0.1, 0.1, -0.1, 0.7, -3.0]))


def test_the_centre_is_the_mean_of_the_first_features_of_all_training_images_whatever_their_batches() -> None:
    images, centres = images_of(7), []
    for sizes in ([7], [3, 3, 1]):
        detector = build()
        with torch.no_grad():
            detector.prepare(list(images.split(sizes)))
            contrast = normalise_contrast(images)
            assert detector.lowest == contrast.min()
            assert detector.highest == contrast.max()
            x = (contrast - contrast.min()) / (contrast.max() - contrast.min())
            torch.testing.assert_close(detector.centre, keep_from_zero(detector.encoder(x).mean(0)))
        centres.append(detector.centre)
    torch.testing.assert_close(centres[0], centres[1])


def test_contrast_is_each_images_own_and_one_of_a_single_colour_has_none() -> None:
    images = images_of(3)
    images[2] = 0.3
    normalised = normalise_contrast(images)
    for image, expected in zip(images[:2].numpy(), normalised[:2].numpy(), strict=True):
        centred = image - image.mean()
        np.testing.assert_allclose(expected, centred / np.abs(centred).mean(), rtol=1e-4, atol=1e-5)
    assert normalised[2].abs().max() < 1e-2
    torch.testing.assert_close(normalise_contrast(0.2 + 0.5 * images[:2]), normalised[:2], rtol=1e-4, atol=1e-4)


def test_the_stages_are_searching_and_fine_tuning_of_the_autoencoder_and_of_the_hypersphere() -> None:
    stages = plan_stages(DeepSVDDConfig())
    assert [(stage.begins, stage.pretrains) for stage in stages] == [(0, True), (250, True), (350, False), (500, False)]
    assert [stage.learning_rate for stage in stages] == pytest.approx([1e-4, 1e-5, 1e-4, 1e-5])
    assert plan_stages(TINY) == [Stage(0, False, 1e-4)]
    assert [stage.begins for stage in plan_stages(DeepSVDDConfig(pretraining_epochs=0, epochs=2))] == [0, 1]


def test_the_network_is_the_papers() -> None:
    detector = DeepSVDD(DeepSVDDConfig())
    assert isinstance(detector, LearnsByGradient)
    assert isinstance(detector, LearnsInStages)
    assert isinstance(detector, PreparesOnTraining)
    convolutions = [layer for layer in detector.encoder.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [32, 64, 128]
    assert {layer.kernel_size for layer in convolutions} == {(5, 5)}
    x = images_of(2, size_px=32)
    assert detector.encoder(x).shape == (2, 128)
    assert detector.decoder is not None
    assert detector.decoder(detector.encoder(x)).shape == x.shape
    assert (detector.epochs, detector.training_batch_size) == (600, 200)
    optimizer = detector.build_optimizer()
    assert type(optimizer) is torch.optim.Adam
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (1e-4, 1e-6)


def test_pretraining_teaches_both_networks_to_reconstruct_and_the_hypersphere_only_the_encoder() -> None:
    detector, images = build(TINY.model_copy(update={"pretraining_epochs": 2})).train(), images_of()
    detector.prepare([images])
    assert detector.decoder is not None
    assert not detector.centre.any()  # not before the encoder is pretrained
    assert not detector.is_complete()
    x = detector._scale(images)
    expected = (detector.decoder(detector.encoder(x)) - x).square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(detector.loss(images), expected)
    assert len(detector.build_optimizer().param_groups[0]["params"]) == len(list(detector.parameters()))
    assert not detector.advance_to(1.5)
    assert detector.advance_to(2.0)
    detector.prepare([images])
    assert detector.centre.all()
    assert detector.is_complete()
    assert set(detector.build_optimizer().param_groups[0]["params"]) == set(detector.encoder.parameters())
    detector.zero_grad()
    detector.loss(images).backward()
    assert all(weight.grad is None for weight in detector.decoder.parameters())
    assert all(weight.grad is not None for weight in detector.encoder.parameters())


class _Pictures(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


class _KilledError(Exception):
    """Stands for a process that dies."""


class _Mortal(DeepSVDD):
    """Dies at a step when it is told to, and counts how often it was prepared."""

    dies_at: int | None = None
    taken = 0
    prepared = 0

    def loss(self, images: Tensor) -> Tensor:
        self.taken += self.training
        if self.taken == self.dies_at:
            raise _KilledError
        return super().loss(images)

    def prepare(self, batches: object) -> None:
        self.prepared += 1
        super().prepare(batches)  # type: ignore[arg-type]


@pytest.mark.parametrize("dies_at", [3, 5, 9])  # while pretraining, in the hypersphere's first epoch, in its third
def test_a_training_that_was_killed_goes_on_with_the_same_centre(dies_at: int, tmp_path: Path) -> None:
    changes = {"pretraining_epochs": 2, "epochs": 4, "fine_tuning_epochs": 1, "radius_warm_up_epochs": 1, "training_batch_size": 4}
    images, detectors = _Pictures(images_of(8)), []
    for _ in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            detectors.append(_Mortal(SOFT.model_copy(update=changes)))
    unbroken, killed, resumed = detectors
    fit(unbroken, images, validation=None, seed=5, threads=1)
    assert unbroken.prepared == 4  # as each stage begins
    killed.dies_at = dies_at
    with pytest.raises(_KilledError):
        fit(killed, images, validation=None, seed=5, threads=1, checkpoints=str(tmp_path), checkpoint_every_s=0)
    fit(resumed, images, validation=None, seed=5, threads=1, checkpoints=str(tmp_path))
    assert resumed.prepared < 4
    assert unbroken.centre.abs().min() >= 0.1
    assert unbroken.radius > 0
    assert all(torch.equal(resumed.state_dict()[name], tensor) for name, tensor in unbroken.state_dict().items())


def test_bad_input_is_refused() -> None:
    with pytest.raises(DetectorError, match="expected images"):
        build().score(images_of(size_px=16))
    with pytest.raises(ValidationError, match="multiple of 8 for 3 modules"):
        DeepSVDDConfig(input_size_px=36)
    with pytest.raises(ValidationError, match="less than 1"):
        DeepSVDDConfig(nu=1)
