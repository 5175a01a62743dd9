"""What holds for every registered detector."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from methods.detectors.anoddpm import AnoDDPMConfig
from methods.detectors.anovaegan import AnoVAEGANConfig
from methods.detectors.autoencoder import Autoencoder, AutoencoderConfig
from methods.detectors.cevae import ContextEncodingVAEConfig
from methods.detectors.deep_geo import DeepGeoConfig
from methods.detectors.deep_if import DeepIFConfig
from methods.detectors.deep_svdd import DeepSVDDConfig
from methods.detectors.dpa import DeepPerceptualAutoencoderConfig
from methods.detectors.ganomaly import GANomalyConfig
from methods.detectors.interface import Detector, DetectorError, LearnsByMemory, LearnsFromLabels
from methods.detectors.networks.backbones import BackboneConfig
from methods.detectors.networks.efficientnet_lite import EfficientNetLite0Features, _pretrained
from methods.detectors.networks.resnet import ResNetConfig
from methods.detectors.networks.score_unet import ScoreUNetConfig
from methods.detectors.networks.smoothing import smooth
from methods.detectors.ocsvm import OneClassSVMConfig
from methods.detectors.padim import PaDiMConfig
from methods.detectors.patchcore import PatchCoreConfig
from methods.detectors.piad import PIADConfig
from methods.detectors.registry import NAMES, DetectorConfig, build_detector
from methods.detectors.sano import SanoConfig
from methods.detectors.simclr import SimCLRConfig
from methods.detectors.simclr_knn import SimCLRNeighboursConfig
from methods.detectors.simplenet import SimpleNetConfig
from methods.detectors.vae import VAEConfig
from methods.detectors.vae_ocsvm import VAEOneClassSVMConfig
from methods.detectors.vqvae import VQVAEConfig
from methods.training.fit import fit

SHALLOW = BackboneConfig(layers=("block2",))
TINY_UNET = ScoreUNetConfig(widths=(8, 16), attention_levels=(1,), residual_blocks=1, head_channels=8, norm_groups=4)
TINY_RESNET = ResNetConfig(width=8, blocks=(1, 1, 1, 1))
CONFIGS: list[DetectorConfig] = [
    AutoencoderConfig(C0=4, d=8, input_size_px=64, batch_size=4),
    PatchCoreConfig(input_size_px=64, memory_size=50),
    VAEConfig(input_size_px=64, width=4, latent=8, batch_size=4),
    ContextEncodingVAEConfig(input_size_px=64, latent=8, batch_size=4),
    VQVAEConfig(input_size_px=64, width=16, residual_width=4, codes=32, code_dims=8, batch_size=4),
    AnoVAEGANConfig(input_size_px=64, latent=8, batch_size=4),
    SanoConfig(input_size_px=16, unet=TINY_UNET, smoothing_sigma_px=1.0),
    AnoDDPMConfig(input_size_px=16, unet=TINY_UNET, reverse_steps=3, eta=0.0),
    PaDiMConfig(input_size_px=64, dimensions=20),
    DeepIFConfig(input_size_px=64),
    SimpleNetConfig(input_size_px=64, hidden=32, batch_size=4),
    OneClassSVMConfig(input_size_px=64),
    VAEOneClassSVMConfig(vae=VAEConfig(input_size_px=64, width=4, latent=8, batch_size=4)),
    GANomalyConfig(input_size_px=64, width=4, latent=8, batch_size=4),
    DeepPerceptualAutoencoderConfig(input_size_px=32, latent_side_px=4, backbone=SHALLOW, batch_size=4),
    PIADConfig(input_size_px=32, latent=4, width=8, width_max=32, latent_critic_widths=(128,), backbone=SHALLOW, batch_size=4),
    DeepGeoConfig(input_size_px=16, width=1, batch_size=4),
    DeepSVDDConfig(input_size_px=16, widths=(4, 8), latent=8, pretraining_epochs=2, batch_size=4),
    SimCLRConfig(input_size_px=32, encoder=TINY_RESNET, batch_size=4),
    SimCLRNeighboursConfig(input_size_px=32, encoder=TINY_RESNET, batch_size=4),
]
# what makes each learn a simple kind of image in a few seconds
LESSONS: dict[str, dict[str, Any]] = {
    "ae": {"input_size_px": 16, "epochs": 30, "learning_rate": 3e-3},
    "vae": {"input_size_px": 16, "epochs": 30, "learning_rate": 3e-3, "samples": 5},
    "cevae": {"input_size_px": 16, "epochs": 30, "learning_rate": 3e-3, "smoothing_sigma_px": 1.0, "kl_weight": 0.1},
    "vqvae": {"input_size_px": 16, "epochs": 50, "learning_rate": 3e-3},
    "anovaegan": {"input_size_px": 16, "epochs": 30, "learning_rate": 3e-3, "critic_steps": 1, "kl_weight": 0.1},
    "sano": {"epochs": 100, "training_batch_size": 8, "learning_rate": 5e-3, "score_time": 0.1},
    "anoddpm": {"epochs": 60, "learning_rate": 5e-3, "training_batch_size": 8, "wavelength_px": 8},
    "patchcore": {},
    "padim": {},
    "deep-if": {},
    "simplenet": {"hidden": 128, "epochs": 30, "learning_rate": 2e-3, "adaptor_learning_rate": 1e-3},
    "ocsvm": {},
    "vae-ocsvm": {"vae": VAEConfig(input_size_px=16, width=8, latent=8, epochs=30, learning_rate=3e-3)},
    "ganomaly": {"input_size_px": 16, "width": 16, "latent": 8, "epochs": 100, "learning_rate": 1e-3, "training_batch_size": 4},
    "dpa": {"width": 8, "width_max": 32, "blocks": 1, "latent": 2, "epochs": 50, "learning_rate": 3e-3, "training_batch_size": 4},
    "piad": {"epochs": 220, "learning_rate": 1e-3, "critic_learning_rate": 3e-3, "balance_every": 10, "training_batch_size": 4},
    "deep-geo": {"epochs": 30, "transforms_per_image": 8, "learning_rate": 3e-3},
    "deep-svdd": {"pretraining_epochs": 0, "epochs": 60, "fine_tuning_epochs": 0, "learning_rate": 1e-3, "training_batch_size": 4},
    "simclr": {"epochs": 15, "learning_rate": 3e-3, "training_batch_size": 8},
    "simclr-knn": {"epochs": 15, "learning_rate": 3e-3, "training_batch_size": 8},
}
DRAW_NOTHING_IN_TRAINING = ("padim",)  # every seed teaches them the same


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


def shaded(config: DetectorConfig, count: int, seed: int) -> torch.Tensor:
    """Images that brighten towards a corner, slightly noisy: what is normal in a lesson."""
    x = torch.linspace(0, 1, config.input_size_px)
    return (0.2 + 0.6 * x[:, None] * x + 0.05 * (images_of(config, count, seed) - 0.5)).clamp(0, 1)


def place_of_a_mark(config: DetectorConfig) -> slice:
    return slice(config.input_size_px // 8, 3 * config.input_size_px // 8)


def mark(images: torch.Tensor, place: slice) -> torch.Tensor:
    """The images with a magenta square at the place, in both directions: what is odd in a lesson."""
    images[..., place, place] = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    return images


def teach(detector: Detector, config: DetectorConfig, *, seed: int) -> None:
    """Train on eight normal images, and on eight odd ones if it learns from labels."""
    images, labels = shaded(config, 8, seed=1), None
    if isinstance(detector, LearnsFromLabels):
        images = torch.cat([images, mark(shaded(config, 8, seed=4), place_of_a_mark(config))])
        labels = np.repeat([0, 1], 8)
    fit(detector, images, labels=labels, validation=None, seed=seed, threads=1)  # type: ignore[arg-type]


def test_every_registered_kind_is_tested_here() -> None:
    assert {config.kind for config in CONFIGS} == set(LESSONS) == set(NAMES)


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

    def test_scoring_draws_nothing_changes_nothing_and_is_the_same_in_every_mode(self, config: DetectorConfig) -> None:
        detector, images = trained(config), images_of(config)
        assert isinstance(detector, torch.nn.Module)
        state, random = {name: tensor.clone() for name, tensor in detector.state_dict().items()}, torch.get_rng_state()
        with torch.inference_mode():
            first, again = detector.score(images), detector.train().score(images)
        assert detector.training
        assert torch.equal(random, torch.get_rng_state())
        assert all(torch.equal(tensor, state[name]) for name, tensor in detector.state_dict().items())
        assert torch.equal(first.image, again.image)
        assert first.pixel is None or torch.equal(first.pixel, again.pixel)  # type: ignore[arg-type]

    def test_trained_with_the_same_seed_it_is_the_same_to_the_bit(self, config: DetectorConfig) -> None:
        config = config.model_copy(update=LESSONS[config.kind] | {"epochs": 2, "training_batch_size": 4, "max_images": 6})
        states = []
        for seed in (3, 3, 4):
            detector = trained(config)
            teach(detector, config, seed=seed)
            states.append(detector.state_dict())
        one, two, other = states
        assert all(torch.equal(one[name], two[name]) for name in one)
        if config.kind not in DRAW_NOTHING_IN_TRAINING:
            assert not all(torch.equal(one[name], other[name]) for name in one if one[name].shape == other[name].shape)

    def test_the_state_survives_as_arrays(self, config: DetectorConfig) -> None:
        first, second = trained(config), build_detector(config)
        state = {name: tensor.numpy().copy() for name, tensor in first.state_dict().items()}
        second.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})  # type: ignore[attr-defined]
        with torch.inference_mode():
            assert torch.equal(first.score(images_of(config)).image, second.score(images_of(config)).image)

    def test_wrong_images_are_refused(self, config: DetectorConfig) -> None:
        detector, image = trained(config), images_of(config, 1)
        takers = [detector.score, *([detector.observe] if isinstance(detector, LearnsByMemory) else [])]
        other_channels = image[:, :1], torch.cat([image, image[:, :1]], 1)
        other_shapes = torch.nn.functional.pad(image, (0, 16)), torch.nn.functional.pad(image, (8, 8, 8, 8)), image[0], *other_channels
        for images, take in product((*other_shapes, (255 * image).byte(), image.double()), takers):
            with pytest.raises(DetectorError, match=r"expected images \(N, 3, .* float32, got"):
                take(images)
        for images, take in product((255 * image, image - 1, image + torch.nan), takers):
            with pytest.raises(DetectorError, match=r"expected values in \[0, 1\], got"):
                take(images)

    def test_unknown_keys_are_refused(self, config: DetectorConfig) -> None:
        with pytest.raises(ValidationError):
            type(config).model_validate({"kind": config.kind, "unknown": 1})


SLOW = ("sano", "anoddpm", "piad")  # to learn


@pytest.mark.parametrize(
    "config", [pytest.param(config, id=config.kind, marks=[pytest.mark.slow] * (config.kind in SLOW)) for config in CONFIGS]
)
def test_what_was_never_seen_scores_higher_and_the_map_says_where(config: DetectorConfig) -> None:
    config = config.model_copy(update=LESSONS[config.kind])
    detector, place = trained(config), place_of_a_mark(config)
    normal, odd = shaded(config, 4, seed=2), mark(shaded(config, 4, seed=3), place)
    teach(detector, config, seed=0)
    with torch.inference_mode():
        scores = detector.score(torch.cat([normal, odd]))
    assert scores.image[4:].min() > scores.image[:4].max()
    if scores.pixel is not None:
        inside = scores.pixel[4:, place, place].mean((1, 2))
        assert (inside > 2 * scores.pixel[4:].mean((1, 2))).all()
        assert (inside > 2 * scores.pixel[:4, place, place].mean((1, 2))).all()


def test_autoencoder_is_the_papers() -> None:
    network = Autoencoder(AutoencoderConfig())
    convolutions = [layer for layer in network.encoder if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [32, 64, 128, 256]
    assert {layer.stride for layer in convolutions} == {(2, 2)}
    assert network.encoder(torch.rand(2, 3, 128, 128)).shape == (2, 64)
    assert [type(layer) for layer in network.encoder[1:8:2]] == [torch.nn.ReLU] * 4
    optimizer = network.build_optimizer()
    assert type(optimizer) is torch.optim.Adam
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (1e-3, 1e-5)
    assert (network.epochs, network.training_batch_size) == (200, 8)


@pytest.mark.parametrize(("C0", "d"), list(product((16, 32), (16, 32, 64))))
def test_every_network_of_the_papers_grid_is_a_mirror_with_so_many_latents(C0: int, d: int) -> None:
    network = Autoencoder(AutoencoderConfig(C0=C0, d=d))
    down = [layer for layer in network.encoder if isinstance(layer, torch.nn.Conv2d)]
    up = [layer for layer in network.decoder if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert [layer.out_channels for layer in down] == [C0, 2 * C0, 4 * C0, 8 * C0]
    assert [(layer.in_channels, layer.out_channels) for layer in up] == [(layer.out_channels, layer.in_channels) for layer in down[::-1]]
    assert network.encoder[-1].weight.shape == (d, 8 * C0 * 8 * 8)
    assert network.decoder[0].weight.shape == (8 * C0 * 8 * 8, d)
    with torch.inference_mode():
        restored = network.decoder(100 * torch.randn(1, d, generator=torch.Generator().manual_seed(0)))
    assert restored.shape == (1, 3, 128, 128)
    assert restored.min() >= 0  # a sigmoid at the end
    assert restored.max() <= 1


def test_autoencoder_loss_is_the_mean_of_its_scores() -> None:
    config = AutoencoderConfig(C0=4, d=8, input_size_px=64)
    network, images = Autoencoder(config), images_of(config)
    scores = network.score(images)
    torch.testing.assert_close(network.loss(images), scores.image.mean())
    torch.testing.assert_close(scores.pixel, (network.reconstruct(images) - images).square().mean(1))
    torch.testing.assert_close(scores.image, (network.reconstruct(images) - images).square().mean((1, 2, 3)))


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
