"""The Gaussian of every place against NumPy's covariance and SciPy's Mahalanobis distance."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.spatial.distance import mahalanobis

from methods.detectors.interface import DetectorError, LearnsByMemory
from methods.detectors.networks.backbones import BackboneConfig
from methods.detectors.networks.efficientnet_lite import EfficientNetLite0Features
from methods.detectors.padim import PaDiM, PaDiMConfig

CONFIG = PaDiMConfig(input_size_px=32, backbone=BackboneConfig(layers=("block2", "block4")), dimensions=20, batch_size=4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small images lose more to waiting threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images(count: int, seed: int, contrast: float = 0.3, size_px: int = 32) -> torch.Tensor:
    noise = torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(seed))
    return 0.5 + contrast * (noise - 0.5)


def trained(config: PaDiMConfig = CONFIG, count: int = 30, sizes: int = 4) -> PaDiM:
    torch.manual_seed(0)
    detector = PaDiM(config).eval()
    with torch.inference_mode():
        for batch in images(count, 0, size_px=config.input_size_px).split(sizes):
            detector.observe(batch)
        detector.conclude(torch.Generator())
    return detector


@pytest.mark.parametrize("count", [6, 30])  # fewer images than dimensions, and more
def test_every_place_measures_scipys_mahalanobis_distance_with_numpys_covariance(count: int) -> None:
    detector, new = trained(count=count), torch.cat([images(2, 1), images(1, 2, contrast=1.0)])
    with torch.inference_mode():
        seen, x, found = (
            detector.features(images(count, 0)).double().numpy(),
            detector.features(new).double().numpy(),
            detector.measure(new),
        )
    assert found.shape == (3, 8, 8)
    for place in range(64):
        inverse = np.linalg.inv(np.cov(seen[place], rowvar=False) + 0.01 * np.eye(20))
        expected = [mahalanobis(one, seen[place].mean(0), inverse) for one in x[place]]
        np.testing.assert_allclose(found[:, place // 8, place % 8], expected, rtol=1e-4)


def test_the_sums_do_not_depend_on_how_images_are_batched_and_do_not_grow_with_their_number() -> None:
    one_by_one, together = trained(sizes=1), trained(sizes=30)
    torch.testing.assert_close(one_by_one.mean, together.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one_by_one.whitening, together.whitening, rtol=1e-5, atol=1e-5)
    detector = PaDiM(CONFIG)
    with torch.inference_mode():
        detector.observe(images(4, 0))
        kept = detector._products.shape, detector._sum.shape
        detector.observe(images(4, 1))
    assert kept == (detector._products.shape, detector._sum.shape) == ((64, 20, 20), (64, 20))


def test_features_are_chosen_dimensions_of_layers_laid_on_the_finest_grid() -> None:
    detector, batch = PaDiM(CONFIG), images(2, 1)
    with torch.inference_mode():
        fine, coarse = EfficientNetLite0Features((2, 4))(batch)
        joined = torch.cat([fine, coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)], 1)
        assert torch.equal(detector.features(batch), joined[:, detector.chosen].flatten(2).permute(2, 0, 1))


def test_the_dimensions_are_drawn_when_it_is_built_and_belong_to_its_state() -> None:
    def chosen(seed: int, dimensions: int = 20) -> torch.Tensor:
        torch.manual_seed(seed)
        return PaDiM(CONFIG.model_copy(update={"dimensions": dimensions})).state_dict()["chosen"]

    assert len(chosen(0).unique()) == 20
    assert torch.equal(chosen(0), chosen(0))
    assert not torch.equal(chosen(0), chosen(1))
    assert chosen(0, 1000).tolist() == list(range(64))
    first, second = trained(), PaDiM(CONFIG).eval()
    assert not torch.equal(first.chosen, second.chosen)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    with torch.inference_mode():
        assert torch.equal(first.score(images(3, 1)).image, second.score(images(3, 1)).image)


def test_the_image_score_is_the_largest_of_the_map_which_is_highest_where_something_was_pasted() -> None:
    config = CONFIG.model_copy(update={"input_size_px": 96})
    odd = images(1, 1, size_px=96)
    odd[..., 16:48, 48:80] = torch.tensor([0.9, 0.1, 0.8])[:, None, None]
    with torch.inference_mode():
        scores = trained(config).score(torch.cat([odd, images(3, 2, size_px=96)]))
    assert torch.equal(scores.image, scores.pixel.amax((1, 2)))  # type: ignore[union-attr]
    y, x = np.unravel_index(int(scores.pixel[0].argmax()), (96, 96))  # type: ignore[index]
    assert 12 <= y < 52
    assert 44 <= x < 84
    assert scores.image[0] > 2 * scores.image[1:].max()


def test_what_cannot_be_learnt_from_is_refused() -> None:
    detector = PaDiM(CONFIG)
    assert isinstance(detector, LearnsByMemory)
    with pytest.raises(DetectorError, match="learnt nothing yet"):
        detector.score(images(1, 0))
    with torch.inference_mode():
        with pytest.raises(DetectorError, match="at least 2 training images, got 0"):
            detector.conclude(torch.Generator())
        detector.observe(images(1, 0))
        with pytest.raises(DetectorError, match="at least 2 training images, got 1"):
            detector.conclude(torch.Generator())


@pytest.mark.parametrize(("change", "message"), [({"ridge": 0.0}, "ridge"), ({"dimensions": 0}, "dimensions"), ({"dims": 5}, "extra")])
def test_a_configuration_that_does_not_fit_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PaDiMConfig.model_validate({**CONFIG.model_dump(), **change})
