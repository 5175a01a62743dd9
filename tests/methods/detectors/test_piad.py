"""PIAD: its losses by hand, the balance of gradients on two layers, and who learns from what."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from methods.detectors.interface import DetectorError, LearnsAgainstCritic, PreparesOnTraining
from methods.detectors.networks.backbones import BackboneConfig
from methods.detectors.networks.perceptual import PerceptualDifference
from methods.detectors.piad import PIAD, Balance, PIADConfig, layer_weights, scale_gradient
from methods.training.fit import fit

SHALLOW = BackboneConfig(layers=("block2",))
TINY = PIADConfig(
    input_size_px=16,
    latent=4,
    width=4,
    width_max=8,
    latent_critic_widths=(8,),
    backbone=SHALLOW,
    training_batch_size=4,
    batch_size=4,
    balance_every=2,
)


def images_of(count: int = 4, seed: int = 0, size_px: int = 16) -> Tensor:
    return torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(seed))


def built(config: PIADConfig = TINY) -> PIAD:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PIAD(config)
    network.prepare([images_of(8, seed=1)])
    return network


class Linear(nn.Module):
    """D(x) = <w, x>."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.w).flatten(1).sum(1)


class Codes(nn.Module):
    """An encoder to the mean of the pixels, whose weight is a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.mean((1, 2, 3)).view(-1, 1, 1, 1).expand(-1, 4, -1, -1)


class Greys(nn.Module):
    """A generator of images of one grey value, whose weight is a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.25))

    def forward(self, z: Tensor, size_px: int) -> Tensor:
        return (self.weight * z.mean((1, 2, 3)).view(-1, 1, 1, 1)).expand(-1, 3, size_px, size_px)


class Pixels(nn.Module):
    """L_rec as the mean difference of pixels."""

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        return (x - x_hat).abs().mean(1)


def simple(config: PIADConfig = TINY) -> tuple[PIAD, Tensor, Tensor]:
    """A network whose every part is linear, and its critics' weights."""
    network = built(config)
    w_x, w_z = torch.full((3, 16, 16), 2 / (3 * 16 * 16) ** 0.5), torch.full((4, 1, 1), 1.5 / 2)  # of length 2 and 1.5
    network.encoder, network.generator, network.difference = Codes(), Greys(), Pixels()  # type: ignore[assignment]
    network.critics["image"], network.critics["latent"] = Linear(w_x), Linear(w_z)
    network.encoder_balance, network.generator_balance = Balance(1, smoothing=0.05), Balance(1, smoothing=0.05)
    return network.train(), w_x, w_z


def test_the_critics_losses_are_the_stated_ones() -> None:
    network, w_x, w_z = simple()
    images = images_of()
    torch.manual_seed(4)
    found = network.critic_loss(images)
    torch.manual_seed(4)
    fake_z = 0.5 * (2 * images - 1).mean((1, 2, 3)).view(-1, 1, 1, 1).expand(-1, 4, -1, -1)
    z = torch.randn(4, 4, 1, 1)
    fake = (0.25 * z.mean((1, 2, 3)) + 1) / 2
    D_fake, D_real = fake * w_x.sum(), (images * w_x).sum((1, 2, 3))
    of_images = (D_fake - D_real + 10 * (2 - 1) ** 2 + 1e-3 * (D_fake**2 + D_real**2)).mean()
    D_fake, D_real = (fake_z * w_z).sum((1, 2, 3)), (z * w_z).sum((1, 2, 3))
    of_latents = (D_fake - D_real + 10 * (1.5 - 1) ** 2 + 1e-3 * (D_fake**2 + D_real**2)).mean()
    torch.testing.assert_close(found, of_images + of_latents)


def test_encoder_and_generator_each_get_the_gradient_of_their_own_loss() -> None:
    network, w_x, w_z = simple(TINY.model_copy(update={"balance_every": 100}))
    network.steps += 1  # no look
    network.encoder_balance.weight.fill_(3.0)
    network.generator_balance.weight.fill_(0.5)
    images = images_of()
    torch.manual_seed(4)
    loss = network.loss(images)
    loss.backward()
    torch.manual_seed(4)
    e, g = torch.tensor(0.5, requires_grad=True), torch.tensor(0.25, requires_grad=True)
    mean, noise = (2 * images - 1).mean((1, 2, 3)), torch.randn(4, 4, 1, 1).mean((1, 2, 3))
    of_encoder = -(e * mean * w_z.sum()).mean()
    of_generator = -((g * noise + 1) / 2 * w_x.sum()).mean()
    restoring = (images - ((g * e * mean + 1) / 2).view(-1, 1, 1, 1)).abs().mean()
    torch.testing.assert_close(loss.detach(), restoring.detach())  # by which epochs compare
    torch.testing.assert_close(network.encoder.weight.grad, torch.autograd.grad(of_encoder + 3.0 * restoring, e, retain_graph=True)[0])
    torch.testing.assert_close(network.generator.weight.grad, torch.autograd.grad(of_generator + 0.5 * restoring, g)[0])
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.critics.parameters())


def test_the_balance_of_two_layers_by_hand() -> None:
    first, second = nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor([2.0]))
    balance = Balance(2, smoothing=0.25)
    adversarial, restoring = (first * torch.tensor([6.0, 8.0])).sum() + 9 * second.sum(), 2 * first.norm() + 3 * second.sum()
    balance.look([first, second], adversarial, restoring)
    torch.testing.assert_close(balance.norms, torch.tensor([[10.0, 9.0], [2.0, 3.0]]))  # the first look as it is
    torch.testing.assert_close(balance.weight, torch.tensor(3.0))  # of 5 and 3 torch's median is the lower
    balance.look([first, second], 3 * adversarial, 0 * restoring)
    torch.testing.assert_close(balance.norms, torch.tensor([[15.0, 13.5], [1.5, 2.25]]))
    torch.testing.assert_close(balance.weight, torch.tensor(6.0))  # of 10 and 6
    assert first.grad is None


def test_gradients_are_looked_at_every_so_many_steps_and_only_in_training() -> None:
    network = built().train()
    weights = []
    for _ in range(4):
        network.loss(images_of())
        weights.append((float(network.encoder_balance.weight), float(network.generator_balance.weight)))
        with torch.no_grad():
            for critic in network.critics.values():
                for parameter in critic.parameters():
                    parameter.mul_(1.5)
    assert weights[0] == weights[1] != weights[2] == weights[3]
    assert int(network.steps) == 4
    network.eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        loss = network.loss(images_of())
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    with torch.inference_mode():
        torch.testing.assert_close(loss, network.score(images_of()).image.mean())  # in evaluation the loss is L_rec


def test_a_scaled_gradient_leaves_the_value() -> None:
    x = torch.tensor([0.1, 0.7], requires_grad=True)
    y = scale_gradient(x, torch.tensor(3.0))
    assert torch.equal(y, x)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.full((2,), 3.0))


def test_each_loss_teaches_its_own_side_only_and_the_optimisers_share_nothing() -> None:
    network, images = built().train(), images_of()
    assert isinstance(network, LearnsAgainstCritic)
    assert isinstance(network, PreparesOnTraining)
    critics = set(network.critics.parameters())
    learning = {parameter for parameter in network.parameters() if parameter.requires_grad}
    network.loss(images).backward()
    assert all((parameter.grad is None) == (parameter in critics) for parameter in learning)
    network.zero_grad()
    network.critic_loss(images).backward()
    assert all(parameter.grad is None for parameter in learning - critics)
    others, against = network.build_optimizer(), network.build_critic_optimizer()
    assert set(against.param_groups[0]["params"]) == critics
    assert set(others.param_groups[0]["params"]) == learning - critics
    assert (others.defaults["lr"], others.defaults["betas"]) == (2e-4, (0.5, 0.99))
    assert (against.defaults["lr"], against.defaults["betas"]) == (5e-4, (0.5, 0.99))


def test_the_critics_see_every_sample_by_itself() -> None:
    network = built()
    for critic, samples in ((network.critics["image"], images_of()), (network.critics["latent"], torch.randn(4, 4, 1, 1))):
        assert critic(samples).shape == (4,)
        sizes = torch.autograd.functional.jacobian(critic, samples).flatten(2).norm(dim=2)
        assert (sizes.diagonal() > 0).all()
        assert torch.equal(sizes, sizes.diagonal().diag())


def test_the_defaults_are_the_public_codes() -> None:
    config = PIADConfig(backbone=SHALLOW)
    network = PIAD(config)
    assert network.encoder(torch.rand(1, 3, 64, 64)).shape == (1, 128, 1, 1)
    widths = [network.encoder.halvings[str(size)][0].body[2].out_channels for size in (64, 32, 16, 8)]
    assert widths == [64, 128, 128, 128]
    linear = [module for module in network.critics["latent"].modules() if isinstance(module, nn.Linear)]
    assert [(module.in_features, module.out_features) for module in linear] == [(128, 1024), (1024, 1024), (1024, 1)]
    assert len(layer_weights(network.encoder)) == len([name for name, _ in network.encoder.named_parameters() if "bias" not in name])
    assert (network.critic_steps, network.training_batch_size, config.balance_every, config.gradient_penalty) == (2, 32, 100, 10)


class _KilledError(Exception):
    pass


class _Mortal(PIAD):
    dies_at = 0

    def critic_loss(self, images: Tensor) -> Tensor:
        self.dies_at -= 1
        if self.dies_at == 0:
            raise _KilledError
        return super().critic_loss(images)


def test_of_two_layers_the_score_is_the_mean_of_both_and_both_are_learnt_from() -> None:
    layers, images, seen = ("block2", "block4"), images_of(size_px=32), images_of(8, seed=1, size_px=32)
    network = PIAD(TINY.model_copy(update={"input_size_px": 32, "backbone": BackboneConfig(layers=layers)}))
    network.prepare([seen])
    with torch.inference_mode():
        x_hat, scores = network._generate(network._encode(images)), network.score(images)
        own = []
        for layer in layers:
            difference = PerceptualDifference(BackboneConfig(layers=(layer,)), size_px=32)
            difference.fit_statistics([seen])
            own.append(difference(images, x_hat).mean((1, 2)))
    torch.testing.assert_close(scores.image, (own[0] + own[1]) / 2)
    assert scores.pixel is not None
    assert scores.pixel.shape == (4, 32, 32)
    network.train().loss(images).backward()
    assert all(parameter.grad is not None for parameter in layer_weights(network.encoder))


def test_a_training_that_was_killed_goes_on_to_the_same_weights_and_balance(tmp_path: Path) -> None:
    config, images = TINY.model_copy(update={"epochs": 4, "balance_every": 3}), images_of(8)

    def mortal(dies_at: int = 0) -> _Mortal:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = _Mortal(config)
        network.dies_at = dies_at
        return network

    unbroken, killed, resumed = mortal(), mortal(dies_at=6), mortal()
    fit(unbroken, images, validation=None, seed=5, threads=1)  # type: ignore[arg-type]
    with pytest.raises(_KilledError):
        fit(killed, images, validation=None, seed=5, threads=1, checkpoints=str(tmp_path), checkpoint_every_s=0)  # type: ignore[arg-type]
    fit(resumed, images, validation=None, seed=5, threads=1, checkpoints=str(tmp_path))  # type: ignore[arg-type]
    assert all(torch.equal(resumed.state_dict()[name], tensor) for name, tensor in unbroken.state_dict().items())


def test_bad_input_is_refused() -> None:
    with pytest.raises(DetectorError, match="expected images"):
        built().score(images_of(size_px=32))
    with pytest.raises(ValidationError, match="power of two"):
        PIADConfig(input_size_px=48)
