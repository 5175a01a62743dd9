"""Nearest neighbours in SimCLR's features: learns without labels, then measures cosine distances."""

import pytest
import torch
from torch import Tensor

from methods.detectors.interface import DetectorError, LearnsByGradient, LearnsByMemory, LearnsFromLabels
from methods.detectors.networks.resnet import ResNetConfig
from methods.detectors.simclr_knn import SimCLRNeighbours, SimCLRNeighboursConfig
from methods.training.fit import fit


def detector(**changes: object) -> SimCLRNeighbours:
    values = {"input_size_px": 32, "encoder": ResNetConfig(width=8, blocks=(1, 1, 1, 1)), "training_batch_size": 8, "epochs": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SimCLRNeighbours(SimCLRNeighboursConfig(**values | changes)).eval()  # type: ignore[arg-type]


def noise(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def filled(images: Tensor, **changes: object) -> SimCLRNeighbours:
    model = detector(**changes)
    with torch.inference_mode():
        for batch in images.split(4):
            model.observe(batch)
        model.conclude(torch.Generator().manual_seed(0))
    return model


def test_it_learns_by_gradient_and_then_by_memory_and_from_no_labels() -> None:
    model = detector()
    assert isinstance(model, LearnsByGradient)
    assert isinstance(model, LearnsByMemory)
    assert not isinstance(model, LearnsFromLabels)


@pytest.mark.parametrize("k", [1, 3])
def test_the_score_is_the_mean_cosine_distance_to_the_k_nearest(k: int) -> None:
    seen, images = noise(9, seed=1), noise(4, seed=2)
    model = filled(seen, neighbours=k)
    with torch.inference_mode():
        known, asked = model.network.features(seen), model.network.features(images)
        found = model.score(images).image
        among = model.score(seen).image
    for score, feature in zip(found, asked, strict=True):
        distances = 1 - torch.nn.functional.cosine_similarity(feature[None], known)
        assert score.item() == pytest.approx(distances.sort().values[:k].mean().item(), abs=1e-5)
    if k == 1:
        assert among.abs().max() < 1e-5  # each is its own nearest


def test_of_too_many_images_a_random_choice_is_kept() -> None:
    everything, choice = filled(noise(9, seed=1)), filled(noise(9, seed=1), max_images=5)
    assert (len(everything.memory), len(choice.memory)) == (9, 5)
    assert all(any(torch.equal(row, other) for other in everything.memory) for row in choice.memory)


def test_too_few_training_images_and_no_memory_are_refused() -> None:
    with pytest.raises(DetectorError, match="2 nearest neighbours need as many training images, got 1"):
        filled(noise(1, seed=1))
    with pytest.raises(DetectorError, match="no memory yet"):
        detector().score(noise(1, seed=1))


def test_training_lowers_nt_xent_and_the_memory_is_of_the_trained_network() -> None:
    images = noise(24, seed=1) * torch.rand(24, 3, 1, 1, generator=torch.Generator().manual_seed(5))
    model = detector(epochs=6, learning_rate=3e-3)
    report = fit(model, images, validation=None, seed=0, threads=1)  # type: ignore[arg-type]
    assert report.curve[-1]["loss"] < report.curve[0]["loss"]
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(model.network.features(images), dim=1)
    torch.testing.assert_close(model.memory, expected, atol=1e-4, rtol=1e-4)
