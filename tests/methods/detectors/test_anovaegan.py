"""AnoVAEGAN: the gradient penalty in closed form, and who learns from which loss."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import Dataset

from methods.detectors.anovaegan import AnoVAEGAN, AnoVAEGANConfig, gradient_penalty
from methods.detectors.interface import DetectorError, LearnsAgainstCritic
from methods.detectors.vae import gaussian_kl
from methods.training.fit import fit
from methods.training.selection import Validation

TINY = AnoVAEGANConfig(input_size_px=16, latent=4, batch_size=4, training_batch_size=4)


def images_of(count: int = 4, seed: int = 0, size_px: int = 16) -> Tensor:
    return torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(seed))


def seasoned(config: AnoVAEGANConfig = TINY) -> AnoVAEGAN:
    """A network whose normalisation has seen a few batches."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AnoVAEGAN(config).train()
        for seed in range(3):
            network.loss(images_of(8, seed))
    return network.eval()


class LinearCritic(nn.Module):
    """D(x) = <w, x>, whose gradient is w everywhere."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.w).flatten(1).sum(1)


def test_the_penalty_on_a_linear_critic_is_that_of_its_norm_over_all_pixels() -> None:
    real, fake, alpha = images_of(5), images_of(5, seed=1), torch.rand(5)
    for length in (0.0, 0.5, 1.0, 3.0):
        direction = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(2))
        critic = LinearCritic(length * direction / direction.norm())
        penalty = gradient_penalty(critic, real, fake, alpha)
        torch.testing.assert_close(penalty, torch.full((5,), (length - 1) ** 2), atol=1e-5, rtol=1e-5)
        if length:
            (slope,) = torch.autograd.grad(penalty.mean(), critic.w)
            torch.testing.assert_close(slope, 2 * (length - 1) * direction / direction.norm(), atol=1e-5, rtol=1e-4)


def test_the_penalty_is_taken_between_real_and_fake_at_each_samples_own_place() -> None:
    real, fake, alpha = images_of(3), images_of(3, seed=1), torch.tensor([0.0, 0.25, 1.0])
    # the gradient of ½ |x|² is x
    penalty = gradient_penalty(lambda x: 0.5 * x.square().flatten(1).sum(1), real, fake, alpha)
    between = torch.stack([real[0], 0.75 * real[1] + 0.25 * fake[1], fake[2]])
    torch.testing.assert_close(penalty, (between.flatten(1).norm(dim=1) - 1).square())


def test_the_critic_is_penalised_between_images_and_reconstructions_with_a_place_drawn_for_each() -> None:
    network, images, places = seasoned(), images_of(), []
    network.critic.register_forward_pre_hook(lambda module, inputs: places.append(inputs[0].detach()))
    torch.manual_seed(4)
    network.critic_loss(images)
    torch.manual_seed(4)
    mean, log_variance = network.encoder(images)
    x_hat = network.decoder(mean + (0.5 * log_variance).exp() * torch.randn_like(mean)).detach()
    between, fake, real = places
    assert torch.equal(fake, x_hat)
    assert torch.equal(real, images)
    way = (fake - real).flatten(1)
    shares = ((between - real).flatten(1) * way).sum(1) / way.square().sum(1)
    torch.testing.assert_close(between, real + shares.view(-1, 1, 1, 1) * (fake - real), atol=1e-5, rtol=1e-5)
    assert len(shares.unique()) == 4
    assert 0 <= shares.min() <= shares.max() <= 1


class Prior(nn.Module):
    """An encoder that knows nothing, so that z is the noise."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(x), 4), torch.zeros(len(x), 4)


class Grey(nn.Module):
    """A generator of images of one grey value."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(0.25))

    def forward(self, z: Tensor) -> Tensor:
        return self.value.expand(len(z), 3, 16, 16)


def test_both_losses_are_the_stated_ones_for_a_linear_critic() -> None:
    network, images = AnoVAEGAN(TINY.model_copy(update={"adversarial_weight": 0.5})), images_of()
    w = torch.full((3, 16, 16), 2.0 / (3 * 16 * 16) ** 0.5)  # of length 2
    network.encoder, network.decoder, network.critic = Prior(), Grey(), LinearCritic(w)
    fake, real = (w * 0.25).sum(), (images * w).sum((1, 2, 3)).mean()
    torch.testing.assert_close(network.critic_loss(images), fake - real + 10 * (2 - 1) ** 2)
    half_squares = 0.5 * (images - 0.25).square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(network.loss(images), half_squares - 0.5 * fake)


def test_the_vaes_loss_has_its_kl_term_and_a_sample_of_z() -> None:
    network, images = seasoned(TINY.model_copy(update={"kl_weight": 0.3})), images_of()
    torch.manual_seed(4)
    loss = network.loss(images)
    torch.manual_seed(4)
    mean, log_variance = network.encoder(images)
    x_hat = network.decoder(mean + (0.5 * log_variance).exp() * torch.randn_like(mean))
    expected = 0.5 * (images - x_hat).square().sum((1, 2, 3)) + 0.3 * gaussian_kl(mean, log_variance) - network.critic(x_hat)
    torch.testing.assert_close(loss, expected.mean())


def test_each_loss_teaches_its_own_side_only() -> None:
    network, images = seasoned().train(), images_of()
    critic = set(network.critic.parameters())
    network.loss(images).backward()
    assert all((parameter.grad is None) == (parameter in critic) for parameter in network.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    network.zero_grad()
    network.critic_loss(images).backward()
    # the last bias shifts D alike for real and fake
    assert all((parameter.grad is not None) == (parameter in critic) for parameter in network.parameters() if parameter.shape != (1,))


def test_the_two_optimisers_share_no_weight_and_leave_none_out() -> None:
    network = seasoned()
    assert isinstance(network, LearnsAgainstCritic)
    sides = [optimizer.param_groups[0]["params"] for optimizer in (network.build_optimizer(), network.build_critic_optimizer())]
    assert set(sides[0]) | set(sides[1]) == set(network.parameters())
    assert not set(sides[0]) & set(sides[1])
    assert set(sides[1]) == set(network.critic.parameters())
    for optimizer in (network.build_optimizer(), network.build_critic_optimizer()):
        assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (1e-4, (0.5, 0.9))
    assert (network.critic_steps, network.config.gradient_penalty) == (5, 10.0)


def test_the_critic_sees_every_image_by_itself() -> None:
    network, images = seasoned().train(), images_of()
    opinions = network.critic(images)
    assert opinions.shape == (4,)
    torch.testing.assert_close(network.critic(images[:1]), opinions[:1])
    jacobian = torch.autograd.functional.jacobian(network.critic, images)  # (N, N, 3, H, W)
    sizes = jacobian.flatten(2).norm(dim=2)
    assert (sizes.diagonal() > 0).all()
    assert torch.equal(sizes, sizes.diagonal().diag())


def test_a_critic_that_learns_tells_real_from_fake() -> None:
    torch.manual_seed(0)
    network, images = AnoVAEGAN(TINY).train(), images_of(8)
    optimizer = torch.optim.Adam(network.critic.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        network.critic_loss(images).backward()
        optimizer.step()
    with torch.no_grad():
        assert network.critic(images).min() > network.critic(network.reconstruct(images)).max()


class _Pictures(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def test_the_training_room_trains_it_and_finds_what_was_never_seen() -> None:
    torch.manual_seed(0)
    config = TINY.model_copy(update={"learning_rate": 3e-3, "epochs": 40, "critic_steps": 2, "kl_weight": 0.1})
    network, x = AnoVAEGAN(config), torch.linspace(0, 1, 16)
    noise = 0.05 * torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    normal = (0.2 + 0.6 * x[:, None] * x + noise).clamp(0, 1)
    odd = normal[8:].clone()
    odd[..., 2:6, 2:6] = 1.0
    validation = Validation(images=_Pictures(torch.cat([normal[8:], odd])), labels=np.repeat([0, 1], 4))
    critic = {name: tensor.clone() for name, tensor in network.critic.state_dict().items()}
    report = fit(network, _Pictures(normal[:8]), validation=validation, seed=0, threads=1, selection="auroc")
    assert report.curve[-1]["validation_auroc"] == 1
    assert any(not torch.equal(tensor, critic[name]) for name, tensor in network.critic.state_dict().items())
    assert report.curve[-1]["loss"] < report.curve[0]["loss"]


def test_the_score_is_the_squared_error_of_the_reconstruction_at_the_mean() -> None:
    network, images = seasoned(), images_of()
    with torch.inference_mode():
        scores = network.score(images)
        x_hat = network.decoder(network.encoder(images)[0]).clamp(0, 1)
    torch.testing.assert_close(scores.pixel, (x_hat - images).square().mean(1))
    torch.testing.assert_close(scores.image, (x_hat - images).square().mean((1, 2, 3)))


def test_a_score_does_not_depend_on_its_neighbours_nor_on_the_mode() -> None:
    network, images = seasoned(), images_of()
    order = torch.tensor([2, 0, 3, 1])
    with torch.inference_mode():
        scores, permuted, training = network.score(images), network.score(images[order]), network.train().score(images)
    assert torch.equal(scores.image[order], permuted.image)
    assert torch.equal(scores.pixel, training.pixel)  # type: ignore[arg-type]
    assert network.training


def test_bad_input_is_refused() -> None:
    with pytest.raises(DetectorError, match="expected images"):
        seasoned().score(images_of(size_px=32))
    with pytest.raises(ValidationError, match="power of two"):
        AnoVAEGANConfig(input_size_px=48)
