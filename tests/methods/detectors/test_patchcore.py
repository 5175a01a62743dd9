"""Features on one grid, whitening, the memory and the distance to it."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from methods.detectors.networks.backbones import BackboneConfig
from methods.detectors.networks.efficientnet_lite import EfficientNetLite0Features
from methods.detectors.patchcore import PatchCore, PatchCoreConfig, _whitening


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small images lose more to waiting threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images_of(config: PatchCoreConfig, count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, config.input_size_px, config.input_size_px, generator=torch.Generator().manual_seed(seed))


def test_features_are_layers_averaged_and_brought_to_one_grid_to_the_bit() -> None:
    config = PatchCoreConfig(input_size_px=96, backbone=BackboneConfig(layers=("block2", "block4", "block10")))
    images, pool = images_of(config), torch.nn.functional.avg_pool2d
    with torch.inference_mode():
        fine, exact, coarse = (pool(layer, 3, 1, 1, count_include_pad=False) for layer in EfficientNetLite0Features((2, 4, 10))(images))
        coarse = torch.nn.functional.interpolate(coarse, (12, 12), mode="bilinear", align_corners=False)
        expected = torch.cat([pool(fine, 2), exact, coarse], 1).permute(0, 2, 3, 1)
        assert torch.equal(PatchCore(config).features(images), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"grid_px": 48}, "divide input_size_px 64"), ({"blocks": (2, 4)}, "extra"), ({"backbone": {"layers": ()}}, "at least 1")],
)
def test_a_configuration_that_does_not_fit_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PatchCoreConfig.model_validate({"input_size_px": 64, **change})


def test_patchcore_scores_what_it_has_seen_zero_and_measures_mahalanobis_distance() -> None:
    config = PatchCoreConfig(input_size_px=64, memory_size=10_000, projection_dims=None, smoothing_sigma_px=0)
    detector, seen = PatchCore(config), images_of(PatchCoreConfig(input_size_px=64), seed=1)
    with torch.inference_mode():
        detector.observe(seen)
        detector.conclude(torch.Generator().manual_seed(0))
        assert detector.score(seen).image.max() < 0.05
        new = detector.features(images_of(config, seed=2)).flatten(0, 2)
        whitened = (new - detector.mean) @ detector.whitening
        obvious = torch.cdist(whitened, detector.memory).amin(1) / whitened.shape[1] ** 0.5
        torch.testing.assert_close(detector._nearest(whitened), obvious, atol=1e-3, rtol=1e-3)
        places = obvious.view(4, -1).sort(descending=True).values
        worst = places[:, : round(config.image_share * places.shape[1])].mean(1)
        torch.testing.assert_close(detector.score(images_of(config, seed=2)).image, worst, atol=1e-3, rtol=1e-3)


def test_patchcore_whitens_features_so_that_no_direction_varies_more_than_another() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5000, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    centred = features - features.mean(0)
    whitened = centred @ _whitening(centred)
    variances = torch.linalg.eigvalsh(whitened.T @ whitened / len(whitened))
    assert variances.max() < 1.001
    assert variances.median() > 0.9  # the ridge holds back those that hardly vary


def test_patchcore_map_is_highest_where_something_foreign_was_pasted() -> None:
    config = PatchCoreConfig(input_size_px=128, memory_size=200)
    detector = PatchCore(config)
    normal = images_of(config, seed=1) * 0.2 + 0.4
    odd = normal[:1].clone()
    odd[..., 32:96, 32:96] = torch.tensor([0.9, 0.1, 0.8])[:, None, None]
    with torch.inference_mode():
        detector.observe(normal)
        detector.conclude(torch.Generator().manual_seed(0))
        scores = detector.score(torch.cat([odd, normal[1:2]]))
    y, x = np.unravel_index(int(scores.pixel[0].argmax()), (128, 128))  # type: ignore[index]
    assert 24 <= y < 104
    assert 24 <= x < 104
    assert scores.image[0] > 2 * scores.image[1]
