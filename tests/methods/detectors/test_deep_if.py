"""The forest against scikit-learn's scores, and what the detector keeps."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.ensemble import IsolationForest

from methods.detectors.deep_if import DeepIF, DeepIFConfig, average_path_length
from methods.detectors.interface import DetectorError, LearnsByMemory
from methods.detectors.networks.backbones import BackboneConfig

CONFIG = DeepIFConfig(input_size_px=32, backbone=BackboneConfig(layers=("block2", "block4")), trees=30, batch_size=4)


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


def trained(config: DeepIFConfig = CONFIG, seen: torch.Tensor | None = None, seed: int = 0) -> DeepIF:
    detector = DeepIF(config).eval()
    with torch.inference_mode():
        for batch in (images(40, 0) if seen is None else seen).split(config.batch_size):
            detector.observe(batch)
        detector.conclude(torch.Generator().manual_seed(seed))
    return detector


@pytest.mark.parametrize(("samples", "used"), [(256, 40), (20, 20), (5, 5)])
def test_the_score_is_minus_scikit_learns(samples: int, used: int) -> None:
    detector = trained(CONFIG.model_copy(update={"samples": samples}))
    new = torch.cat([images(12, 1), images(12, 2, contrast=1.0)])
    with torch.inference_mode():
        seen, x, found = detector.features(images(40, 0)).numpy(), detector.features(new), detector.isolate(detector.features(new))
        assert torch.equal(detector.score(new[:4]).image, detector.isolate(detector.features(new[:4])).float())
    seed = int(torch.randint(2**31 - 1, (1,), generator=torch.Generator().manual_seed(0)))
    forest = IsolationForest(n_estimators=30, max_samples=used, random_state=seed).fit(seen)
    np.testing.assert_allclose(found, -forest.score_samples(x.numpy()), rtol=1e-12)
    np.testing.assert_allclose(detector.isolate(torch.from_numpy(seen)), -forest.score_samples(seen), rtol=1e-12)
    assert np.ptp(found.numpy()) > 0.01


def test_what_lies_on_a_split_goes_where_scikit_learn_sends_it() -> None:
    detector, grid = trained(), torch.randint(0, 3, (50, 64), generator=torch.Generator().manual_seed(0)).float()
    forest = IsolationForest(n_estimators=30, random_state=0).fit(grid.numpy())
    detector._keep([tree.tree_ for tree in forest.estimators_], samples=50)
    on_splits = detector.threshold.float().clone()[: 64 * 20].view(20, 64)
    np.testing.assert_allclose(detector.isolate(on_splits), -forest.score_samples(on_splits.numpy()), rtol=1e-12)


def test_average_path_length_is_that_of_unsuccessful_searches() -> None:
    np.testing.assert_allclose(average_path_length(np.array([1, 2])), [0, 1])
    harmonic = sum(1 / k for k in range(1, 256))
    np.testing.assert_allclose(average_path_length(np.array([256])), 2 * harmonic - 2 * 255 / 256, rtol=1e-3)


def test_other_images_score_higher_and_there_is_no_map() -> None:
    detector = trained()
    with torch.inference_mode():
        normal, odd = detector.score(images(12, 1)), detector.score(images(12, 2, contrast=1.0))
    assert odd.image.min() > normal.image.max()
    assert normal.pixel is None
    assert detector.config.map_size_px is None


def test_the_forest_sees_training_images_alone_and_scores_are_not_scaled_by_the_others() -> None:
    detector = trained()
    with torch.inference_mode():
        alone, among = detector.score(images(1, 1)).image, detector.score(torch.cat([images(1, 1), images(3, 2, contrast=1.0)])).image
    assert torch.equal(alone, among[:1])


def test_what_is_kept_are_arrays_that_restore_the_scores() -> None:
    first, second, new = trained(), DeepIF(CONFIG).eval(), images(4, 1)
    state = {name: torch.from_numpy(tensor.numpy().copy()) for name, tensor in first.state_dict().items()}
    second.load_state_dict(state)
    with torch.inference_mode():
        assert torch.equal(first.score(new).image, second.score(new).image)


def test_the_seed_decides_which_trees_grow() -> None:
    assert torch.equal(trained(seed=3).threshold, trained(seed=3).threshold)
    assert trained(seed=3).threshold[:5].tolist() != trained(seed=4).threshold[:5].tolist()


def test_images_that_are_all_the_same_make_trees_without_a_split() -> None:
    detector = trained(seen=images(1, 0).expand(4, -1, -1, -1))
    with torch.inference_mode():
        assert detector.score(images(4, 1)).image.tolist() == [0.5] * 4


def test_what_cannot_be_learnt_from_is_refused() -> None:
    detector = DeepIF(CONFIG)
    assert isinstance(detector, LearnsByMemory)
    with pytest.raises(DetectorError, match="no forest yet"):
        detector.score(images(1, 0))
    with torch.inference_mode():
        with pytest.raises(DetectorError, match="at least 2 training images, got 0"):
            detector.conclude(torch.Generator())
        detector.observe(images(1, 0))
        with pytest.raises(DetectorError, match="at least 2 training images, got 1"):
            detector.conclude(torch.Generator())


@pytest.mark.parametrize(("change", "message"), [({"trees": 0}, "trees"), ({"samples": 1}, "samples"), ({"scale": True}, "extra")])
def test_a_configuration_that_does_not_fit_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DeepIFConfig.model_validate({**CONFIG.model_dump(), **change})
