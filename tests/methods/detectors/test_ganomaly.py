"""GANomaly: every loss term by hand, and who learns from which loss."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from methods.detectors.ganomaly import GANomaly, GANomalyConfig, GANomalyEncoder
from methods.detectors.interface import DetectorError, LearnsAgainstCritic, Reconstructs

TINY = GANomalyConfig(input_size_px=16, width=4, latent=5, batch_size=4)


def images_of(count: int = 4, seed: int = 0, size_px: int = 16) -> Tensor:
    return torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(seed))


def seasoned(config: GANomalyConfig = TINY) -> GANomaly:
    """A network whose normalisation has seen a few batches."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = GANomaly(config).train()
        for seed in range(3):
            network.loss(images_of(8, seed))
    return network.eval()


class _Brightness(nn.Module):
    """An encoder whose features are the image and whose output is its mean in each channel, times a weight."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.weight, self.weight * x.mean((2, 3))


class _Flat(nn.Module):
    """A decoder of images of one value in each channel."""

    def forward(self, z: Tensor) -> Tensor:
        return z[:, :, None, None].expand(-1, -1, 16, 16)


class _Sceptic(nn.Module):
    """A discriminator that tells by the first channel's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.scale * x, self.scale * x.mean((2, 3))[:, :1]


def obvious() -> GANomaly:
    """x̂ is the mean of x in each channel, ẑ half of z."""
    network = GANomaly(TINY)
    network.encoder, network.decoder, network.second_encoder, network.discriminator = _Brightness(), _Flat(), _Brightness(0.5), _Sceptic()
    return network


def test_each_loss_term_is_the_stated_one_by_hand() -> None:
    network, images = obvious(), images_of()
    x = 2 * images - 1
    mean = x.mean((2, 3), keepdim=True)
    adversarial, contextual, encoder = network.loss_terms(images)
    torch.testing.assert_close(adversarial, (3 * (x - mean)).square().mean())
    torch.testing.assert_close(contextual, (x - mean).abs().mean())
    torch.testing.assert_close(encoder, (0.5 * mean).square().mean())
    torch.testing.assert_close(network.loss(images), adversarial + 50 * contextual + encoder)


@pytest.mark.parametrize(("name", "at"), [("adversarial_weight", 0), ("contextual_weight", 1), ("encoder_weight", 2)])
def test_each_weight_is_that_of_its_term(name: str, at: int) -> None:
    nothing = {"adversarial_weight": 0.0, "contextual_weight": 0.0, "encoder_weight": 0.0}
    network, images = seasoned(TINY.model_copy(update=nothing | {name: 2.0})), images_of()
    torch.testing.assert_close(network.loss(images), 2 * network.loss_terms(images)[at])


def test_the_discriminator_loses_the_cross_entropy_of_real_and_reconstructed() -> None:
    network, images = obvious(), images_of()
    x = 2 * images - 1
    logits = (3 * x.mean((2, 3)))[:, 0].tolist()  # the same for x and x̂
    probabilities = [1 / (1 + math.exp(-logit)) for logit in logits]
    expected = sum(-math.log(p) - math.log(1 - p) for p in probabilities) / len(probabilities)
    assert network.critic_loss(images).item() == pytest.approx(expected, rel=1e-5)


def test_each_loss_teaches_its_own_side_only() -> None:
    network, images = seasoned().train(), images_of()
    critic = set(network.discriminator.parameters())
    network.loss_terms(images)[0].backward()  # of feature matching alone
    assert all(parameter.grad is None for parameter in critic)
    assert all(parameter.grad is not None for side in (network.encoder, network.decoder) for parameter in side.parameters())
    assert all(parameter.grad is None for parameter in network.second_encoder.parameters())
    network.zero_grad()
    network.loss(images).backward()
    assert all((parameter.grad is None) == (parameter in critic) for parameter in network.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    network.zero_grad()
    network.critic_loss(images).backward()
    assert all((parameter.grad is not None) == (parameter in critic) for parameter in network.discriminator.blocks.parameters())
    assert all(parameter.grad is None for parameter in set(network.parameters()) - critic)


def test_the_two_optimisers_share_no_weight_and_leave_none_out() -> None:
    network = seasoned()
    assert isinstance(network, LearnsAgainstCritic)
    assert isinstance(network, Reconstructs)
    optimizers = network.build_optimizer(), network.build_critic_optimizer()
    sides = [set(optimizer.param_groups[0]["params"]) for optimizer in optimizers]
    assert sides[0] | sides[1] == set(network.parameters())
    assert not sides[0] & sides[1]
    assert sides[1] == set(network.discriminator.parameters())
    for optimizer in optimizers:
        assert type(optimizer) is torch.optim.Adam
        assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (2e-4, (0.5, 0.999))


def test_the_networks_are_the_papers() -> None:
    config = GANomalyConfig()
    network = GANomaly(config)
    weights = config.adversarial_weight, config.contextual_weight, config.encoder_weight
    assert (weights, config.latent, config.epochs, network.training_batch_size) == ((1, 50, 1), 100, 15, 64)
    for encoder, outputs in ((network.encoder, 100), (network.second_encoder, 100), (network.discriminator, 1)):
        assert isinstance(encoder, GANomalyEncoder)
        convolutions = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
        assert [layer.out_channels for layer in convolutions] == [64, 128, 256, outputs]
        assert {layer.kernel_size for layer in convolutions} == {(4, 4)}
        assert all(layer.bias is None for layer in convolutions)
        assert {layer.negative_slope for layer in encoder.modules() if isinstance(layer, nn.LeakyReLU)} == {0.2}
        features, output = encoder(images_of(2, size_px=32))
        assert (features.shape, output.shape) == ((2, 256, 4, 4), (2, outputs))
    drawn = network.encoder.blocks[2].weight
    assert drawn.std().item() == pytest.approx(0.02, rel=0.05)
    z, x_hat, z_hat = network.generate(images_of(2, size_px=32))
    assert (z.shape, x_hat.shape, z_hat.shape) == ((2, 100), (2, 3, 32, 32), (2, 100))


def test_a_discriminator_that_learns_tells_real_from_reconstructed() -> None:
    torch.manual_seed(0)
    network, images = GANomaly(TINY).train(), images_of(8)
    optimizer = torch.optim.Adam(network.discriminator.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        network.critic_loss(images).backward()
        optimizer.step()
    with torch.no_grad():
        real, fake = network.discriminator(2 * images - 1)[1], network.discriminator(2 * network.reconstruct(images) - 1)[1]
    assert real.min() > 0 > fake.max()


def test_the_score_is_the_mean_difference_of_the_latents_and_is_not_scaled_by_other_images() -> None:
    network, images = obvious(), images_of()
    x = 2 * images - 1
    scores = network.score(images)
    torch.testing.assert_close(scores.image, (0.5 * x.mean((2, 3))).abs().mean(1))
    torch.testing.assert_close(scores.pixel, (images - images.mean((2, 3), keepdim=True)).abs().mean(1))
    torch.testing.assert_close(network.score(images[:1]).image, scores.image[:1])
    torch.testing.assert_close(network.reconstruct(images), images.mean((2, 3), keepdim=True).expand_as(images))


def test_bad_input_is_refused() -> None:
    with pytest.raises(DetectorError, match="expected images"):
        seasoned().score(images_of(size_px=32))
    with pytest.raises(ValidationError, match="power of two"):
        GANomalyConfig(input_size_px=48)
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        GANomalyConfig(training_batch_size=1)
