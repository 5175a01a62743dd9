"""Features on one grid, whitening, the memory and the distance to it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from methods.detectors.interface import DetectorError
from methods.detectors.networks.backbones import BackboneConfig
from methods.detectors.networks.efficientnet_lite import EfficientNetLite0Features
from methods.detectors.networks.smoothing import smooth
from methods.detectors.networks.weights import architecture_only
from methods.detectors.patchcore import PatchCore, PatchCoreConfig, _whitening, weigh_by_neighbours
from methods.training.fit import fit


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
        places = obvious.view(4, -1).sort(descending=True).values
        worst = places[:, : round(config.image_share * places.shape[1])].mean(1)
        torch.testing.assert_close(detector.score(images_of(config, seed=2)).image, worst, atol=1e-3, rtol=1e-3)


def test_patchcore_whitens_features_so_that_no_direction_varies_more_than_another() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5000, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    centred = features - features.mean(0)
    whitened = centred @ _whitening(centred.T @ centred / len(centred))
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


PAPER = PatchCoreConfig(
    input_size_px=64,
    whiten=False,
    memory_share=0.1,
    candidates=None,
    projection_dims=None,
    image_score="reweighted",
    neighbours=3,
    smoothing_sigma_px=2,
)


def trained(config: PatchCoreConfig, count: int = 8, seed: int = 0) -> PatchCore:
    detector = PatchCore(config).eval()
    torch.manual_seed(0)  # of what is drawn where there are too many patches
    with torch.inference_mode():
        for batch in images_of(config, count, seed=1).split(2):
            detector.observe(batch)
        detector.conclude(torch.Generator().manual_seed(seed))
    return detector


def test_the_reweighting_is_the_papers_equation_7_by_hand() -> None:
    memory = torch.tensor([[-3.5, 0.0], [3.0, 0.0], [4.0, 0.0], [3.0, 2.0], [100.0, 0.0]])
    m_test, m_star = torch.zeros(1, 2), torch.tensor([1])
    e = np.exp([3.0, 4.0, 13**0.5])  # distances to m*, to its neighbour at 1 and to that at 2; (-3.5, 0) is nearer to the patch, not to m*
    two = weigh_by_neighbours(m_test, memory, m_star, neighbours=2)
    three = weigh_by_neighbours(m_test, memory, m_star, neighbours=3)
    np.testing.assert_allclose(two, [1 - e[0] / e[:2].sum()], rtol=1e-6)
    np.testing.assert_allclose(three, [1 - e[0] / e.sum()], rtol=1e-6)
    both = weigh_by_neighbours(torch.cat([m_test, memory[4:]]), memory, torch.tensor([1, 4]), neighbours=3)
    assert torch.equal(both[:1], three)
    np.testing.assert_allclose(both[1], 1.0)  # on a vector of the memory that is far from all others
    same = weigh_by_neighbours(torch.zeros(1, 2), torch.ones(4, 2), torch.tensor([2]), neighbours=9)
    np.testing.assert_allclose(same, [0.75], rtol=1e-6)  # of a memory of four equal vectors
    huge = weigh_by_neighbours(1e4 * m_test, 1e4 * memory, m_star, neighbours=3)
    assert torch.equal(huge, torch.ones(1))  # exp of it would be infinite


def test_the_papers_variant_is_that_of_a_slow_twin() -> None:
    detector, new = trained(PAPER), images_of(PAPER, 3, seed=2)
    with torch.inference_mode():
        patches = detector.features(images_of(PAPER, 8, seed=1)).flatten(0, 2).double().numpy()
        x, scores = detector.features(new).double().numpy(), detector.score(new)
    chosen = [int(torch.randint(len(patches), (1,), generator=torch.Generator().manual_seed(0)))]
    while len(chosen) < round(0.1 * len(patches)):
        chosen.append(int(np.min([np.linalg.norm(patches - patches[taken], axis=1) for taken in chosen], axis=0).argmax()))
    memory = patches[chosen]
    np.testing.assert_allclose(detector.memory, memory, rtol=1e-6)
    for n in range(3):
        places = np.array([[np.linalg.norm(memory - x[n, i, j], axis=1).min() for j in range(8)] for i in range(8)])
        i, j = np.unravel_index(places.argmax(), (8, 8))
        m_star = memory[np.linalg.norm(memory - x[n, i, j], axis=1).argmin()]
        around = memory[np.linalg.norm(memory - m_star, axis=1).argsort()[:3]]
        share = np.exp(places.max()) / np.exp(np.linalg.norm(around - x[n, i, j], axis=1)).sum()
        assert float(scores.image[n]) == pytest.approx((1 - share) * places.max() / 64**0.5, rel=1e-4)
        coarse = torch.from_numpy(places / 64**0.5).float()[None, None]
        expected = smooth(torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear", align_corners=False), sigma_px=2)[0, 0]
        torch.testing.assert_close(scores.pixel[n], expected, rtol=1e-4, atol=1e-5)  # type: ignore[index]


def test_a_reweighted_score_does_not_depend_on_its_neighbours_to_the_bit() -> None:
    detector, images = trained(PAPER), images_of(PAPER, 4, seed=2)
    with torch.inference_mode():
        one, permuted = detector.score(images).image, detector.score(images.flip(0)).image
        share = trained(PAPER.model_copy(update={"image_score": "share", "image_share": 1 / 64})).score(images).image
    assert torch.equal(one.flip(0), permuted)
    assert one.unique().numel() == 4
    assert (one < share).all()  # the largest distance, weighed
    assert (one > share / 2).all()  # by 1 − 1/b at least


def test_without_whitening_nothing_of_it_is_kept_and_one_kind_is_not_loaded_as_the_other() -> None:
    plain, whitened = trained(PAPER), trained(PAPER.model_copy(update={"whiten": True}))
    assert set(whitened.state_dict()) - set(plain.state_dict()) == {"mean", "whitening"}
    seen = plain.features(images_of(PAPER, 8, seed=1)).flatten(0, 2)
    assert (torch.cdist(plain.memory, seen).amin(1) < 0.2).all()  # the features themselves, but for the rounding of products
    assert (torch.cdist(whitened.memory, seen).amin(1) > 1).all()
    with pytest.raises(RuntimeError, match="Unexpected"):
        plain.load_state_dict(whitened.state_dict())


def test_a_reweighted_score_wants_a_memory_of_two() -> None:
    with pytest.raises(ValidationError, match="at least 2, got 1"):
        PatchCoreConfig(image_score="reweighted", memory_size=1)
    with pytest.raises(ValidationError, match="neighbours"):
        PatchCoreConfig(neighbours=1)
    with pytest.raises(DetectorError, match="at least 2 vectors; 64 patches gave 1"):
        trained(PAPER.model_copy(update={"memory_share": 0.001}), count=1)


def test_the_limit_of_patches_makes_no_difference_to_the_bit_while_there_are_no_more() -> None:
    config = PatchCoreConfig(input_size_px=64, memory_size=50, candidates=300)
    free, tight = trained(config), trained(config.model_copy(update={"candidates_max": 8 * 64}))
    assert all(torch.equal(tensor, tight.state_dict()[name]) for name, tensor in free.state_dict().items())


def test_beyond_the_limit_memory_stays_and_the_whitening_is_that_of_all_patches() -> None:
    config = PatchCoreConfig(input_size_px=64, memory_size=50, candidates=100, candidates_max=200)
    detector, images = PatchCore(config).eval(), images_of(config, 16, seed=1)
    with torch.inference_mode():
        patches = detector.features(images).flatten(0, 2)
        for batch in images.split(2):
            detector.observe(batch)
            assert detector._observed is not None
            assert detector._observed[0].kept.untyped_storage().nbytes() == 200 * 64 * 4
        detector.conclude(torch.Generator().manual_seed(0))
        assert detector._observed is None
        torch.testing.assert_close(detector.mean, patches.mean(0), atol=1e-5, rtol=1e-5)
        white = (patches - patches.mean(0)) @ detector.whitening
        all_seen = trained(config.model_copy(update={"candidates_max": 5000}), count=16)
        expected = (patches - patches.mean(0)) @ all_seen.whitening
        torch.testing.assert_close(white @ white.T, expected @ expected.T, atol=0.05, rtol=1e-3)  # turned or mirrored it is the same
        assert (torch.cdist(detector.memory, white).amin(1) < 0.01).all()
        late = torch.cdist(detector.memory, white).argmin(1) // 64
    assert len(late.unique()) > 8  # of early images and of late ones


def test_what_is_drawn_beyond_the_limit_hangs_on_the_seed_of_the_training() -> None:
    config = PatchCoreConfig(input_size_px=64, memory_size=64, candidates=64, candidates_max=64)  # all that are kept
    states = []
    for seed in (3, 3, 4):
        detector = PatchCore(config).eval()
        fit(detector, images_of(config, 8, seed=1), validation=None, seed=seed, threads=1)  # type: ignore[arg-type]
        states.append(detector.memory.sort(0).values)
    assert torch.equal(states[0], states[1])
    assert not torch.allclose(states[0], states[2])


def test_the_shipped_configuration_of_the_paper_has_its_features_and_switches() -> None:
    path = Path(__file__).parents[3] / "deploy" / "configs" / "papers" / "patchcore-roth-2022.yaml"
    config = PatchCoreConfig.model_validate(yaml.safe_load(path.read_text())["detectors"][0])
    assert (config.whiten, config.image_score, config.memory_share, config.candidates) == (False, "reweighted", 0.1, None)
    with architecture_only(), torch.inference_mode():
        assert PatchCore(config).features(torch.zeros(1, 3, 224, 224)).shape == (1, 28, 28, 512 + 1024)
