"""What holds for every registered detector."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from methods.detectors.anoddpm import AnoDDPMConfig
from methods.detectors.anovaegan import AnoVAEGANConfig
from methods.detectors.autoencoder import Autoencoder, AutoencoderConfig
from methods.detectors.cevae import ContextEncodingVAEConfig
from methods.detectors.coreset import select_coreset
from methods.detectors.interface import Detector, DetectorError, LearnsByMemory
from methods.detectors.networks.efficientnet_lite import EfficientNetLite0Features, _pretrained
from methods.detectors.networks.score_unet import ScoreUNetConfig
from methods.detectors.networks.smoothing import smooth
from methods.detectors.ocsvm import OneClassSVMConfig
from methods.detectors.patchcore import PatchCore, PatchCoreConfig
from methods.detectors.registry import NAMES, DetectorConfig, build_detector
from methods.detectors.sano import SanoConfig
from methods.detectors.vae import VAEConfig
from methods.detectors.vqvae import VQVAEConfig

TINY_UNET = ScoreUNetConfig(widths=(8, 16), attention_levels=(1,), residual_blocks=1, head_channels=8, norm_groups=4)
CONFIGS: list[DetectorConfig] = [
    AutoencoderConfig(C0=4, d=8, input_size_px=64, batch_size=4),
    PatchCoreConfig(input_size_px=64, memory_size=50),
    VAEConfig(input_size_px=64, width=4, latent=8, batch_size=4),
    ContextEncodingVAEConfig(input_size_px=64, latent=8, batch_size=4),
    VQVAEConfig(input_size_px=64, width=16, residual_width=4, codes=32, code_dims=8, batch_size=4),
    AnoVAEGANConfig(input_size_px=64, latent=8, batch_size=4),
    SanoConfig(input_size_px=16, unet=TINY_UNET, smoothing_sigma_px=1.0),
    AnoDDPMConfig(input_size_px=16, unet=TINY_UNET, reverse_steps=3, eta=0.0),
    OneClassSVMConfig(input_size_px=64),
]


def images_of(config: DetectorConfig, count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, config.input_size_px, config.input_size_px, generator=torch.Generator().manual_seed(seed))


def fill_zeros(detector: Detector) -> None:
    """Weights that are zero before training, as the last layer of a score network, would make every score the same."""
    for parameter in detector.parameters() if isinstance(detector, torch.nn.Module) else ():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)


def trained(config: DetectorConfig) -> Detector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = build_detector(config)
        fill_zeros(detector)
    if isinstance(detector, LearnsByMemory):
        with torch.inference_mode():
            detector.observe(images_of(config, seed=1))
            detector.conclude(torch.Generator().manual_seed(0))
    return detector


def test_every_registered_kind_is_tested_here() -> None:
    assert {config.kind for config in CONFIGS} == set(NAMES)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
class TestContract:
    def test_scores_have_the_stated_shapes_and_types(self, config: DetectorConfig) -> None:
        detector = trained(config)  # not within: weights that are made in inference mode never have a gradient, which ceVAE's score needs
        with torch.inference_mode():
            scores = detector.score(images_of(config))
        assert scores.image.shape == (4,)
        assert scores.image.dtype == torch.float32
        assert (scores.pixel is None) == (config.map_size_px is None)
        if scores.pixel is not None:
            assert scores.pixel.shape == (4, config.map_size_px, config.map_size_px)
            assert scores.pixel.dtype == torch.float32

    def test_a_score_does_not_depend_on_its_neighbours_to_the_bit(self, config: DetectorConfig) -> None:
        detector, images = trained(config), images_of(config)
        order = torch.tensor([2, 0, 3, 1])
        others = torch.cat([images[:1], images_of(config, 3, seed=9)])
        with torch.inference_mode():
            one, permuted, among_others = detector.score(images), detector.score(images[order]), detector.score(others)
        assert torch.equal(one.image[order], permuted.image)
        assert torch.equal(one.image[:1], among_others.image[:1])
        assert one.image.unique().numel() == 4  # else equality says nothing
        if one.pixel is not None and among_others.pixel is not None:
            assert torch.equal(one.pixel[:1], among_others.pixel[:1])

    def test_the_state_survives_as_arrays(self, config: DetectorConfig) -> None:
        first, second = trained(config), build_detector(config)
        state = {name: tensor.numpy().copy() for name, tensor in first.state_dict().items()}
        second.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})  # type: ignore[attr-defined]
        with torch.inference_mode():
            assert torch.equal(first.score(images_of(config)).image, second.score(images_of(config)).image)

    def test_wrong_images_are_refused(self, config: DetectorConfig) -> None:
        detector, size = trained(config), config.input_size_px
        wrong = (torch.rand(1, 3, size, size + 16), torch.rand(1, 1, size, size), torch.rand(1, 3, size, size).double())
        out_of_range = (torch.rand(1, 3, size, size) * 255, torch.full((1, 3, size, size), torch.nan))
        for images in (*wrong, *out_of_range):
            with pytest.raises(DetectorError, match="expected"):
                detector.score(images)

    def test_unknown_keys_are_refused(self, config: DetectorConfig) -> None:
        with pytest.raises(ValidationError):
            type(config).model_validate({"kind": config.kind, "unknown": 1})


def test_autoencoder_is_the_papers() -> None:
    network = Autoencoder(AutoencoderConfig())
    convolutions = [layer for layer in network.encoder if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [32, 64, 128, 256]
    assert {layer.stride for layer in convolutions} == {(2, 2)}
    assert network.encoder(torch.rand(2, 3, 128, 128)).shape == (2, 64)
    optimizer = network.build_optimizer()
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (1e-3, 1e-5)
    assert (network.epochs, network.training_batch_size) == (200, 8)


def test_autoencoder_loss_is_the_mean_of_its_scores() -> None:
    config = AutoencoderConfig(C0=4, d=8, input_size_px=64)
    network, images = Autoencoder(config), images_of(config)
    torch.testing.assert_close(network.loss(images), network.score(images).image.mean())


def test_coreset_is_the_obvious_greedy_one() -> None:
    vectors = torch.rand(60, 5, generator=torch.Generator().manual_seed(3))
    chosen = select_coreset(vectors, size=12, generator=torch.Generator().manual_seed(0)).tolist()
    slow = [chosen[0]]
    while len(slow) < 12:
        slow.append(int(torch.cdist(vectors, vectors[slow]).amin(1).argmax()))
    assert chosen == slow
    assert select_coreset(vectors, size=99, generator=torch.Generator()).tolist() == list(range(60))
    same = select_coreset(torch.zeros(5, 2), size=3, generator=torch.Generator().manual_seed(0)).tolist()
    assert len(set(same)) == 3


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


def test_smoothing_is_scipys_gaussian() -> None:
    from scipy.ndimage import gaussian_filter

    one_map = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = gaussian_filter(one_map[0, 0].numpy(), 4, mode="mirror", truncate=4)
    np.testing.assert_allclose(smooth(one_map, sigma_px=4)[0, 0], expected, atol=1e-5)


def test_folded_backbone_is_the_packages_network() -> None:
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    network, folded = _pretrained(), EfficientNetLite0Features((2, 4, 10)).train()
    with torch.inference_mode():
        x, expected = network._swish(network._bn0(network._conv_stem((images * 255 - 127) / 128))), []
        for number, block in enumerate(network._blocks[:11]):
            x = block(x)
            if number in (2, 4, 10):
                expected.append(x)
        for ours, theirs in zip(folded(images), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    assert not folded.training


def test_another_weight_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.detectors.networks.efficientnet_lite.WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="not the known weight file"):
        _pretrained()
