"""The loss by hand, the noise, features on one grid, batch normalisation when scoring, the two optimisers."""

from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError

from methods.detectors.interface import LearnsByGradient
from methods.detectors.networks.backbones import BackboneConfig
from methods.detectors.networks.efficientnet_lite import EfficientNetLite0Features
from methods.detectors.networks.smoothing import smooth
from methods.detectors.simplenet import SimpleNet, SimpleNetConfig, truncated_loss

CONFIG = SimpleNetConfig(input_size_px=64, backbone=BackboneConfig(layers=("block2", "block4")), hidden=16, noise_std=0.25, batch_size=4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small images lose more to waiting threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def built(config: SimpleNetConfig = CONFIG) -> SimpleNet:
    torch.manual_seed(0)
    return SimpleNet(config)


@pytest.mark.parametrize(
    ("real", "fake", "expected"),
    [
        ([0.5, 2.0], [-0.5, -3.0], 0.0),  # beyond the margins nothing is left to learn
        ([0.0, 1.0], [0.0, -1.0], 0.25 + 0.25),
        ([-0.3, 0.4], [-0.4, 0.7], (0.8 + 0.1) / 2 + (0.1 + 1.2) / 2),
    ],
)
def test_the_loss_of_two_points_by_hand(real: list[float], fake: list[float], expected: float) -> None:
    loss = truncated_loss(torch.tensor(real), torch.tensor(fake), margin=0.5)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_what_lies_beyond_its_margin_gives_no_gradient() -> None:
    real, fake = torch.tensor([0.6, 0.4], requires_grad=True), torch.tensor([-0.6, -0.4], requires_grad=True)
    truncated_loss(real, fake, margin=0.5).backward()
    assert real.grad.tolist() == [0, -0.5]  # type: ignore[union-attr]
    assert fake.grad.tolist() == [0, 0.5]  # type: ignore[union-attr]


def test_the_loss_is_that_of_adapted_features_against_the_same_with_noise() -> None:
    detector, batch = built().train(), images(3, 1)
    taken: list[torch.Tensor] = []
    detector.discriminator[0].register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].detach()))
    detector.loss(batch)
    real, fake = taken[0].chunk(2)
    torch.testing.assert_close(real, detector.adaptor(detector.features(batch).flatten(0, 2)))
    noise = fake - real  # 768 places × 64 dimensions
    assert float(noise.std()) == pytest.approx(0.25, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.005)
    assert float(noise.std(1).min()) > 0.1  # drawn for each place and dimension
    assert float(noise.std(0).min()) > 0.1


def test_features_are_averaged_and_coarser_layers_brought_to_the_first_ones_grid() -> None:
    detector, batch = built(), images(2, 1)
    with torch.inference_mode():
        layers = EfficientNetLite0Features((2, 4))(batch)
        fine, coarse = (torch.nn.functional.avg_pool2d(layer, 3, 1, 1, count_include_pad=False) for layer in layers)
        coarse = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear", align_corners=False)
        assert torch.equal(detector.features(batch), torch.cat([fine, coarse], 1).permute(0, 2, 3, 1))


def test_the_discriminator_scores_with_learnt_statistics_in_every_mode_and_learns_none() -> None:
    detector, batch = built().train(), images(4, 1)
    for seed in range(30):
        detector.loss(images(2, seed))
    normalisation = detector.discriminator[1]
    mean, variance = normalisation.running_mean.clone(), normalisation.running_var.clone()
    with torch.inference_mode():
        scores = detector.score(batch)
        hidden = detector.discriminator[0](detector.adaptor(detector.features(batch)))
        hidden = (hidden - mean) / (variance + normalisation.eps).sqrt() * normalisation.weight + normalisation.bias
        D = (torch.where(hidden > 0, hidden, 0.2 * hidden) @ detector.discriminator[3].weight.T)[..., 0]
        torch.testing.assert_close(scores.image, -D.amin((1, 2)), rtol=1e-4, atol=1e-5)
        assert torch.equal(detector.eval().score(batch).image, scores.image)
    assert torch.equal(normalisation.running_mean, mean)
    assert torch.equal(normalisation.running_var, variance)


def test_the_map_is_minus_d_interpolated_and_smoothed() -> None:
    detector = built(CONFIG.model_copy(update={"smoothing_sigma_px": 0.0})).eval()
    with torch.inference_mode():
        batch = images(2, 1)
        places = -detector.discriminator(detector.adaptor(detector.features(batch).flatten(0, 2))).view(2, 1, 16, 16)
        expected = torch.nn.functional.interpolate(places, (64, 64), mode="bilinear", align_corners=False)[:, 0]
        assert torch.equal(detector.score(batch).pixel, expected)
        assert torch.equal(built().eval().score(batch).pixel, smooth(expected[:, None], sigma_px=4)[:, 0])


def test_one_optimizer_is_adam_for_the_discriminator_and_adamw_for_the_adaptor() -> None:
    ours, twin = built(), built()
    assert isinstance(ours, LearnsByGradient)
    one = ours.build_optimizer()
    two = [
        torch.optim.AdamW(twin.adaptor.parameters(), lr=1e-4),
        torch.optim.Adam(twin.discriminator.parameters(), lr=2e-4, weight_decay=1e-5),
    ]
    for step in range(3):
        for detector, optimizers in ((ours, [one]), (twin, two)):
            torch.manual_seed(step)
            detector.zero_grad()
            detector.loss(images(2, step)).backward()
            for optimizer in optimizers:
                optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), twin.parameters(), strict=True))
    assert not torch.equal(ours.adaptor.weight, built().adaptor.weight)


def test_the_backbone_learns_nothing_and_weights_begin_as_xavier_has_them() -> None:
    detector = built(CONFIG.model_copy(update={"hidden": 1024}))
    before = {name: tensor.clone() for name, tensor in detector.backbone.state_dict().items()}
    optimizer = detector.train().build_optimizer()
    detector.loss(images(2, 1)).backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.backbone.state_dict().items())
    for layer in (detector.adaptor, detector.discriminator[0]):
        assert float(layer.weight.detach().std()) == pytest.approx((2 / sum(layer.weight.shape)) ** 0.5, rel=0.1)
    assert detector.discriminator[3].bias is None


def test_the_defaults_are_the_papers() -> None:
    config = SimpleNetConfig()
    assert (config.input_size_px, config.hidden, config.margin, config.smoothing_sigma_px) == (224, 1024, 0.5, 4)
    assert (config.epochs, config.training_batch_size) == (160, 8)
    assert SimpleNet.selected_by == "auroc"


@pytest.mark.parametrize(("change", "message"), [({"noise_std": 0.0}, "noise_std"), ({"margin": 0}, "margin"), ({"noise": 1}, "extra")])
def test_a_configuration_that_does_not_fit_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SimpleNetConfig.model_validate({**CONFIG.model_dump(), **change})
