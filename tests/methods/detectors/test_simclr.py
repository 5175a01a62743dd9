"""SimCLR with cross-entropy: its losses by hand and against MONAI's, its network against torchvision's, a lesson."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.losses import ContrastiveLoss
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import resnet18

from methods.detectors.interface import DetectorError, LearnsByGradient, LearnsFromLabels, SchedulesRate
from methods.detectors.networks.contrastive import nt_xent
from methods.detectors.networks.resnet import ResNet, ResNetConfig
from methods.detectors.networks.views import ViewConfig
from methods.detectors.simclr import SimCLR, SimCLRConfig
from methods.training.batches import EpochSampler
from methods.training.fit import fit
from methods.training.selection import Validation

SMALL = ResNetConfig(width=8, blocks=(1, 1, 1, 1))


def detector(**changes: object) -> SimCLR:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SimCLR(SimCLRConfig(**{"input_size_px": 32, "encoder": SMALL, "training_batch_size": 8} | changes))  # type: ignore[arg-type]


def pictures(labels: np.ndarray, seed: int) -> Tensor:
    """Noise; in abnormal ones a bright disc somewhere."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.4 + 0.2 * torch.rand(len(labels), 3, 32, 32, generator=generator)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    for image, label in zip(images, labels, strict=True):
        at = torch.randint(8, 24, (2,), generator=generator)
        if label:
            image[:, (y - at[0]).square() + (x - at[1]).square() < 25] = torch.tensor([0.9, 0.3, 0.3])[:, None]
    return images


def test_nt_xent_of_two_pairs_by_hand() -> None:
    # images a and b: views a₁ = a₂ = (1, 0), b₁ = b₂ = (0, 1): every view has its partner at cosine 1 and two others at 0
    views = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = -math.log(math.exp(1 / 0.5) / (math.exp(1 / 0.5) + 2))
    assert nt_xent(views, 3 * views, temperature=0.5).item() == pytest.approx(expected)  # lengths do not matter
    # all at odds: a₁ = b₂ and b₁ = a₂: the partner at 0, one other at 1, one at 0
    crossed = -math.log(1 / (math.exp(1 / 0.5) + 2))
    assert nt_xent(views, views.flip(0), temperature=0.5).item() == pytest.approx(crossed)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_is_monais(temperature: float) -> None:
    first, second = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    expected = ContrastiveLoss(temperature=temperature)(first, second)
    torch.testing.assert_close(nt_xent(first, second, temperature=temperature), expected)


def test_nt_xent_under_mixed_precision_is_as_exact_as_its_projections() -> None:
    first, second = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = nt_xent(first, second, temperature=0.01)
    torch.testing.assert_close(found, nt_xent(first.float(), second.float(), temperature=0.01))


def test_resnet_is_torchvisions_with_its_names() -> None:
    ours, theirs = ResNet(ResNetConfig()), resnet18()
    ours.load_state_dict({name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("fc.")})
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(images), theirs.train(mode)(images), atol=1e-4, rtol=1e-4)


def test_first_weights_come_from_a_file_of_torchvisions_names_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    theirs, path = resnet18(), tmp_path / "resnet18.safetensors"
    save_file(theirs.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    model = detector(encoder=ResNetConfig(weights=str(path), weights_sha256=digest))
    assert torch.equal(model.network.encoder.conv1.weight, theirs.conv1.weight)
    with pytest.raises(DetectorError, match="does not hold the weights of a ResNet of this size"):
        detector(encoder=ResNetConfig(width=8, weights=str(path), weights_sha256=digest))
    with pytest.raises(DetectorError, match="is not the known weight file"):
        detector(encoder=ResNetConfig(weights=str(path), weights_sha256="0" * 64))
    with pytest.raises(ValidationError, match="expected weights_sha256"):
        ResNetConfig(weights=str(path))
    with pytest.raises(ValidationError, match="at least one block"):
        ResNetConfig(blocks=(1, 0, 1, 1))


def test_it_is_the_papers() -> None:
    model = SimCLR(SimCLRConfig())
    assert isinstance(model, LearnsFromLabels)
    assert isinstance(model, SchedulesRate)
    assert not isinstance(model, LearnsByGradient)
    optimizer = model.build_optimizer()
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (1e-3, 1e-4)
    assert (model.epochs, model.training_batch_size, model.selected_by) == (20, 64, "auroc")
    assert sum(parameter.numel() for parameter in model.network.encoder.parameters()) == 11_176_512  # torchvision's resnet18 without fc
    views = model.config.views
    assert (views.crop_scale, views.crop_ratio, views.flip_probability, views.jitter) == ((0.8, 1.0), (0.75, 1.33), 0.5, 0.2)


def test_the_loss_is_cross_entropy_of_both_views_plus_nt_xent() -> None:
    still = ViewConfig(crop_scale=(1, 1), crop_ratio=(1, 1), flip_probability=0, rotation_degrees=0, jitter=0)  # both views are the image
    labels = torch.tensor([0, 1, 1, 0])
    images = pictures(labels.numpy(), seed=1)
    model = detector(views=still, contrastive_weight=0.7).eval()
    features = model.network.features(images)
    z = model.network.projection(features)
    expected = torch.nn.functional.cross_entropy(model.classifier(features), labels) + 0.7 * nt_xent(z, z, temperature=0.1)
    torch.testing.assert_close(model.labelled_loss(images, labels), expected, atol=1e-4, rtol=1e-4)


def test_the_encoder_sees_the_images_with_imagenets_mean_and_deviation() -> None:
    model, images = detector().eval(), pictures(np.zeros(2), seed=1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = model.network.encoder((images - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(model.network.features(images), expected)


def test_the_sampler_draws_both_classes_equally_often() -> None:
    labels = torch.tensor([0] * 980 + [1] * 20)
    weights = detector().weigh_samples(labels)
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum())
    drawn = labels[list(EpochSampler(1000, seed=0, epoch=lambda: 0, weights=weights))]
    assert abs(int(drawn.sum()) - 500) < 5 * math.sqrt(1000 * 0.25)
    equal = detector().weigh_samples(torch.tensor([0, 1, 1, 0]))
    assert (equal == equal[0]).all()


def test_the_rate_falls_along_half_a_cosine_from_the_first_step_to_the_last() -> None:
    model = detector(learning_rate=0.2)
    optimizer = model.build_optimizer()
    schedule, rates = model.build_scheduler(optimizer, steps=10), []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * step / 10)) for step in range(10)])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


def test_it_learns_from_few_abnormal_images_and_its_score_is_a_probability() -> None:
    labels = np.repeat([0, 1], [40, 8])
    held_out = np.repeat([0, 1], 16)
    images, tested = pictures(labels, seed=1), pictures(held_out, seed=2)
    model = detector(epochs=6, learning_rate=3e-3, training_batch_size=16)
    validation = Validation(images=pictures(held_out, seed=3), labels=held_out)  # type: ignore[arg-type]
    report = fit(model, images, labels=labels, validation=validation, seed=0, threads=1, selection="loss")  # type: ignore[arg-type]
    assert report.selected_by == "lowest loss on validation images"
    with torch.inference_mode():
        scores = model.score(tested)
    assert scores.pixel is None
    assert scores.image.min() >= 0
    assert scores.image.max() <= 1
    normal, abnormal = scores.image[held_out == 0], scores.image[held_out == 1]
    assert (abnormal[:, None] > normal).double().mean() > 0.95
    assert abnormal.mean() - normal.mean() > 0.2
