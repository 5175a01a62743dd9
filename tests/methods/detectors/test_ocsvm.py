"""The decision function against scikit-learn's, and what the detector keeps."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.svm import OneClassSVM

from methods.detectors.interface import DetectorError, LearnsByMemory
from methods.detectors.networks.backbones import BackboneConfig
from methods.detectors.networks.efficientnet_lite import EfficientNetLite0Features
from methods.detectors.ocsvm import OneClassSVMConfig, OneClassSVMDetector

CONFIG = OneClassSVMConfig(input_size_px=32, backbone=BackboneConfig(layers=("block2", "block4")), batch_size=4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small images lose more to waiting threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images(count: int, seed: int, contrast: float = 0.3) -> torch.Tensor:
    noise = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return 0.5 + contrast * (noise - 0.5)


def trained(config: OneClassSVMConfig = CONFIG, count: int = 40) -> OneClassSVMDetector:
    detector = OneClassSVMDetector(config).eval()
    with torch.inference_mode():
        for batch in images(count, 0).split(config.batch_size):
            detector.observe(batch)
        detector.conclude(torch.Generator().manual_seed(0))
    return detector


@pytest.mark.parametrize(("nu", "gamma"), [(0.1, "scale"), (0.5, 0.02), (0.9, 0.005)])
def test_the_score_is_minus_scikit_learns_decision_function(nu: float, gamma: float | str) -> None:
    config = CONFIG.model_copy(update={"nu": nu, "gamma": gamma})
    detector, new = trained(config), torch.cat([images(12, 1), images(12, 2, contrast=1.0)])
    with torch.inference_mode():
        latents, new_latents = detector.features(images(40, 0)).numpy(), detector.features(new).numpy()
        mean, std = latents.mean(0), latents.std(0)
        machine = OneClassSVM(nu=nu, gamma=gamma).fit((latents - mean) / std)
        expected = -machine.decision_function((new_latents - mean) / std)
        scores = detector.score(new)
    assert scores.image.dtype == torch.float32
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(scores.image.numpy(), expected, rtol=0, atol=1e-5)


def test_latents_are_the_means_of_the_layers() -> None:
    detector, batch = OneClassSVMDetector(CONFIG), images(4, 1)
    with torch.inference_mode():
        expected = torch.cat([block.double().mean((2, 3)) for block in EfficientNetLite0Features((2, 4))(batch)], 1)
        assert torch.equal(detector.features(batch), expected)


def test_other_images_score_higher_and_nu_bounds_the_share_of_training_images_outside() -> None:
    detector = trained()
    with torch.inference_mode():
        normal, odd = detector.score(images(40, 0)).image, detector.score(images(8, 2, contrast=1.0)).image
    assert (normal > 1e-2).sum() <= 0.1 * 40  # libsvm ends within 1e-3 of the margin, where most of forty images lie
    assert odd.min() > normal.max()
    assert detector.score(images(1, 0)).pixel is None
    assert detector.config.map_size_px is None


def test_what_is_kept_are_tensors_that_restore_the_scores() -> None:
    first, second, new = trained(), OneClassSVMDetector(CONFIG).eval(), images(4, 1)
    state = {name: torch.from_numpy(tensor.numpy().copy()) for name, tensor in first.state_dict().items()}
    assert {f"machine.{name}" for name in ("mean", "std", "support_vectors", "dual_coefficients", "offset", "gamma")} <= set(state)
    second.load_state_dict(state)
    with torch.inference_mode():
        assert torch.equal(first.score(new).image, second.score(new).image)


def test_a_score_does_not_depend_on_its_neighbours_to_the_bit() -> None:
    detector, batch = trained(), images(4, 1)
    order = torch.tensor([2, 0, 3, 1])
    with torch.inference_mode():
        one, permuted = detector.score(batch).image, detector.score(batch[order]).image
        among_others = detector.score(torch.cat([batch[:1], images(3, 9)])).image
    assert torch.equal(one[order], permuted)
    assert torch.equal(one[:1], among_others[:1])
    assert one.std() > 0


def test_more_images_than_are_fitted_are_drawn_by_the_seed() -> None:
    config = CONFIG.model_copy(update={"max_images": 15, "nu": 0.95})  # so close to 1 every image is a support vector

    def fitted(seed: int) -> torch.Tensor:
        detector = OneClassSVMDetector(config)
        with torch.inference_mode():
            detector.observe(images(40, 0))
            detector.conclude(torch.Generator().manual_seed(seed))
        return detector.machine.support_vectors

    assert fitted(0).shape == (15, 64)
    assert torch.equal(fitted(0), fitted(0))
    assert not torch.equal(fitted(0), fitted(1))


def test_standardisation_uses_all_observed_images() -> None:
    detector = trained(CONFIG.model_copy(update={"max_images": 15}))
    with torch.inference_mode():
        latents = detector.features(images(40, 0))
    torch.testing.assert_close(detector.machine.mean, latents.mean(0))
    torch.testing.assert_close(detector.machine.std, latents.std(0, correction=0))


def test_it_learns_by_memory_and_starts_anew_after_each_conclusion() -> None:
    detector = trained()
    assert isinstance(detector, LearnsByMemory)
    with pytest.raises(DetectorError, match="at least 2 training images, got 0"):
        detector.conclude(torch.Generator())


def test_what_cannot_be_learnt_from_is_refused() -> None:
    detector = OneClassSVMDetector(CONFIG)
    with pytest.raises(DetectorError, match="learnt nothing yet"):
        detector.score(images(1, 0))
    with torch.inference_mode():
        detector.observe(images(1, 0))
        with pytest.raises(DetectorError, match="at least 2 training images, got 1"):
            detector.conclude(torch.Generator())
        detector.observe(images(1, 0).expand(3, -1, -1, -1))
        with pytest.raises(DetectorError, match="all 3 training images are the same"):
            detector.conclude(torch.Generator())
    for wrong in (torch.rand(1, 3, 32, 64), images(1, 0) * 255):
        with pytest.raises(DetectorError, match="expected"):
            detector.observe(wrong)
        with pytest.raises(DetectorError, match="expected"):
            trained().score(wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": (2, 4)}, "extra"),
        ({"backbone": {"layers": ()}}, "at least 1"),
        ({"gamma": 0.0}, "above 0"),
        ({"gamma": "auto"}, "gamma"),
        ({"nu": 0.0}, "nu"),
        ({"nu": 1.0}, "nu"),
        ({"kernel": "linear"}, "extra"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OneClassSVMConfig.model_validate({**CONFIG.model_dump(), **change})
