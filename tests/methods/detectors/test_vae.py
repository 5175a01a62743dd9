"""The VAE and its six scores, against distributions that are known in closed form."""

from itertools import pairwise
from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, distributions, nn

from methods.detectors.interface import DetectorError
from methods.detectors.vae import VAE, Score, VAEConfig, gaussian_kl, log_mean_exp, log_normal, reparameterise, six_scores

TINY = VAEConfig(input_size_px=16, width=4, latent=3, samples=5, kl_weight=0.1, batch_size=4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_of(config: VAEConfig, count: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, config.input_size_px, config.input_size_px, generator=generator(seed))


def seasoned(config: VAEConfig) -> VAE:
    """A VAE that is off its initial weights and whose normalisation has seen a few batches."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = VAE(config)
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        network.train()
        for _ in range(3):
            network.loss(images_of(config))
    return network.eval()


class LinearGaussian(nn.Module):
    """p(z) = N(0, I), p(x|z) = N(W z, λ I) with orthogonal columns of W, for which p(x) and p(z|x) are Gaussians; x in [-1, 1]."""

    def __init__(self, config: VAEConfig, *, length: float = 1.5) -> None:
        super().__init__()
        self.shape = (3, config.input_size_px, config.input_size_px)
        D = 3 * config.input_size_px**2
        self.W = length * torch.linalg.qr(torch.randn(D, config.latent, generator=generator(7))).Q
        self.noise, self.length = config.kl_weight, length

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.flatten(1) @ self.W / (self.length**2 + self.noise)
        return mean, torch.full_like(mean, self.noise / (self.length**2 + self.noise)).log()

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.W.T).unflatten(1, self.shape)

    def log_p(self, x: Tensor) -> Tensor:
        """log p(x) without the likelihood's constant D/2 log 2πλ, which the scores leave out."""
        D = len(self.W)
        marginal = distributions.LowRankMultivariateNormal(torch.zeros(D).double(), self.W.double(), torch.full((D,), self.noise).double())
        return marginal.log_prob(x.flatten(1).double()) + 0.5 * D * torch.tensor(2 * torch.pi * self.noise).double().log()


class TruePosterior(nn.Module):
    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encode(x)


def linear_gaussian(config: VAEConfig) -> tuple[VAE, LinearGaussian]:
    network, model = VAE(config), LinearGaussian(config)
    network.encoder, network.decoder = TruePosterior(model), model
    return network, model


def test_kl_is_that_of_torch_distributions() -> None:
    mean, log_variance = torch.randn(6, 9, generator=generator(1)), torch.randn(6, 9, generator=generator(2))
    q = distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = distributions.kl_divergence(q, distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)
    assert gaussian_kl(torch.zeros(1, 9), torch.zeros(1, 9)).item() == 0


def test_log_density_is_that_of_torch_distributions() -> None:
    x, mean, log_variance = torch.randn(3, 6, 9, generator=generator(1)).unbind()
    expected = distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(x).sum(1)
    torch.testing.assert_close(log_normal(x, mean, log_variance), expected)


def test_log_mean_exp_neither_overflows_nor_stays_in_half_precision() -> None:
    x = torch.tensor([[-1e6, -1e6 - 1], [1e6, 1e6]])
    torch.testing.assert_close(log_mean_exp(x), torch.tensor([-1e6 + 0.5 * (1 + torch.tensor(-1.0).exp()).log(), 1e6]))
    assert log_mean_exp(torch.zeros(2, 3, dtype=torch.float16)).dtype == torch.float32


def test_one_importance_sample_gives_the_single_sample_lower_bound() -> None:
    config = TINY.model_copy(update={"samples": 1})
    network, images = seasoned(config), images_of(config)
    x = 2 * images - 1
    with torch.inference_mode():
        scores = network.all_scores(images)
        mean, log_variance = network.encoder(x)
        q = distributions.Normal(mean, (0.5 * log_variance).exp())
        z = mean + q.scale * torch.randn(1, config.latent, generator=generator(config.noise_seed))
        likelihood = distributions.Normal(network.decoder(z), config.kl_weight**0.5)
        log_likelihood = likelihood.log_prob(x).flatten(1).sum(1) + 0.5 * x[0].numel() * torch.tensor(2 * torch.pi * config.kl_weight).log()
        log_ratio = distributions.Normal(0.0, 1.0).log_prob(z).sum(1) - q.log_prob(z).sum(1)
    torch.testing.assert_close(scores["iwae"], -(log_likelihood + log_ratio))
    torch.testing.assert_close(scores["iwae-reconstruction"], -log_likelihood)
    torch.testing.assert_close(scores["iwae-kl"], -log_ratio, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(scores["vae-reconstruction"], -log_likelihood)


def test_with_the_true_posterior_the_importance_weighted_score_is_minus_log_p_of_x() -> None:
    for samples in (1, 7):
        network, model = linear_gaussian(TINY.model_copy(update={"samples": samples}))
        images = images_of(TINY)
        scores = network.all_scores(images)
        torch.testing.assert_close(scores["iwae"].double(), -model.log_p(2 * images - 1), atol=5e-3, rtol=1e-5)


def test_the_lower_bound_is_minus_log_p_of_x_in_expectation_for_the_true_posterior() -> None:
    network, model = linear_gaussian(TINY.model_copy(update={"samples": 20_000, "input_size_px": 8, "batch_size": 2}))
    images = images_of(TINY.model_copy(update={"input_size_px": 8}), 2)
    torch.testing.assert_close(network.all_scores(images)["vae"].double(), -model.log_p(2 * images - 1), atol=0.05, rtol=0)


def test_the_importance_weighted_score_falls_to_minus_log_p_of_x_as_samples_grow() -> None:
    d, D, variance, count, random = 4, 8, 0.5, 1000, generator(11)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    W = draw(D, d)
    x = draw(count, d) @ W.T + variance**0.5 * draw(count, D)
    log_p = distributions.MultivariateNormal(torch.zeros(D).double(), W @ W.T + variance * torch.eye(D)).log_prob(x)
    covariance = torch.linalg.inv(torch.eye(d) + W.T @ W / variance)  # of p(z|x)
    # a diagonal q(z|x) beside the true posterior
    mean, log_variance = x @ W @ covariance / variance + 0.1, (1.5 * covariance.diagonal()).log().expand(count, d)
    scores, gaps = {}, []
    for L in (1, 4, 16, 64, 512):
        z = reparameterise(mean[:, None], log_variance[:, None], draw(count, L, d))
        log_likelihood = distributions.Normal(z @ W.T, variance**0.5).log_prob(x[:, None]).sum(2)
        log_prior = log_normal(z, torch.zeros_like(z), torch.zeros_like(z))
        log_posterior = log_normal(z, mean[:, None], log_variance[:, None])
        scores = six_scores(log_likelihood, log_prior, log_posterior, gaussian_kl(mean, log_variance))
        gaps.append((scores["iwae"] + log_p).mean().item())
    assert gaps[0] > 1
    assert all(later < 0.75 * earlier for earlier, later in pairwise(gaps[:4])), gaps
    assert abs(gaps[-1]) < 0.01, gaps
    torch.testing.assert_close((scores["vae"] + log_p).mean().item(), gaps[0], rtol=0.1, atol=0)  # the bound that one sample gives


def test_scores_are_the_stated_sums_with_the_half_and_over_all_pixels() -> None:
    network, images = seasoned(TINY), images_of(TINY)
    x = 2 * images - 1
    with torch.inference_mode():
        scores, pixel = network.all_scores(images), network.score(images).pixel
        mean, log_variance = network.encoder(x)
        noise = torch.randn(TINY.samples, TINY.latent, generator=generator(TINY.noise_seed))
        f = torch.stack([network.decoder(reparameterise(mean, log_variance, noise_l)) for noise_l in noise], 1)  # (N, L, 3, H, W)
    half_squares = 0.5 * (x[:, None] - f).square().sum((2, 3, 4))  # (N, L)
    torch.testing.assert_close(TINY.kl_weight * scores["vae-reconstruction"], half_squares.mean(1))
    torch.testing.assert_close(scores["vae-kl"], gaussian_kl(mean, log_variance))
    torch.testing.assert_close(scores["vae"], scores["vae-reconstruction"] + scores["vae-kl"])
    torch.testing.assert_close(scores["iwae-reconstruction"], -log_mean_exp(-half_squares / TINY.kl_weight))
    assert (scores["iwae-reconstruction"] <= scores["vae-reconstruction"]).all()  # Jensen
    torch.testing.assert_close(pixel, ((f.mean(1) - x) / 2).square().mean(1))


def test_six_scores_of_equal_samples_are_those_of_one() -> None:
    one = torch.tensor([[-3.0], [2.0]])
    kl = torch.tensor([0.5, 0.1])
    scores = six_scores(one.expand(2, 9), one.expand(2, 9) + 1, one.expand(2, 9) - 1, kl)
    assert set(scores) == set(get_args(Score))
    torch.testing.assert_close(scores["iwae"], -(one[:, 0] + 2))
    torch.testing.assert_close(scores["iwae-kl"], torch.tensor([-2.0, -2.0]))
    torch.testing.assert_close(scores["vae"], -one[:, 0] + kl)


def test_the_loss_is_the_papers() -> None:
    network, images = seasoned(TINY), images_of(TINY)
    x = 2 * images - 1
    torch.manual_seed(3)
    loss = network.loss(images)
    torch.manual_seed(3)
    mean, log_variance = network.encoder(x)
    z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    expected = 0.5 * (x - network.decoder(z)).square().sum((1, 2, 3)) + TINY.kl_weight * gaussian_kl(mean, log_variance)
    torch.testing.assert_close(loss, expected.mean())


def test_every_one_of_the_six_can_be_the_image_score() -> None:
    images, every = images_of(TINY), seasoned(TINY).all_scores(images_of(TINY))
    for name, expected in every.items():
        network = seasoned(TINY.model_copy(update={"score": name}))
        assert torch.equal(network.score(images).image, expected)
    assert len({tuple(scores.tolist()) for scores in every.values()}) == 6


def test_all_six_cost_the_decoder_as_many_passes_as_one() -> None:
    network, passes = seasoned(TINY), []
    network.decoder.register_forward_hook(lambda *_: passes.append(1))
    network.all_scores(images_of(TINY))
    assert len(passes) == TINY.samples


def test_scoring_is_in_evaluation_mode_and_changes_nothing() -> None:
    network, images = seasoned(TINY), images_of(TINY)
    expected, state = network.score(images), {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    random_state = torch.get_rng_state()
    scores = network.score(images)
    assert network.training
    assert network.encoder.training
    assert torch.equal(scores.image, expected.image)
    assert torch.equal(scores.pixel, expected.pixel)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_a_score_does_not_depend_on_its_neighbours() -> None:
    network, images = seasoned(TINY), images_of(TINY)
    order = torch.tensor([2, 0, 3, 1])
    with torch.inference_mode():
        scores, permuted, alone = network.all_scores(images), network.all_scores(images[order]), network.all_scores(images[:1])
    for name in get_args(Score):
        assert torch.equal(scores[name][order], permuted[name])
        torch.testing.assert_close(scores[name][:1], alone[name])


def test_the_noise_follows_its_seed_alone() -> None:
    images = images_of(TINY)
    first, again = seasoned(TINY).all_scores(images)["iwae"], seasoned(TINY).all_scores(images)["iwae"]
    other = seasoned(TINY.model_copy(update={"noise_seed": 1})).all_scores(images)["iwae"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_preset_is_the_papers() -> None:
    config = VAEConfig()
    network = VAE(config)
    down = [layer for layer in network.encoder.modules() if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)]
    up = [layer for layer in network.decoder.modules() if isinstance(layer, nn.ConvTranspose2d) and layer.stride == (2, 2)]
    assert (len(down), len(up)) == (5, 5)
    assert not any(isinstance(layer, nn.Linear) for layer in network.modules())
    mean, log_variance = network.eval().encoder(torch.zeros(1, 3, 128, 128))
    assert mean.shape == log_variance.shape == (1, 300)
    image = network.decoder(10 * torch.randn(1, 300, generator=generator()))
    assert image.shape == (1, 3, 128, 128)
    assert image.min() < 0
    assert image.abs().max() <= 1
    assert (config.kl_weight, config.samples, config.training_batch_size, config.epochs) == (0.01, 15, 32, 40)
    optimizer = network.build_optimizer()
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["lr"] == 1e-4


def test_what_it_has_learnt_scores_lower_than_what_it_has_not() -> None:
    torch.manual_seed(0)
    config = VAEConfig(input_size_px=16, width=8, latent=4, samples=5, learning_rate=3e-3)
    network, x = VAE(config).train(), torch.linspace(0, 1, 16)
    normal = (0.2 + 0.6 * x[:, None] * x).expand(8, 3, 16, 16) + 0.05 * torch.randn(8, 3, 16, 16, generator=generator())
    optimizer, losses = network.build_optimizer(), []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(network.loss(normal.clamp(0, 1)))
        losses[-1].backward()
        optimizer.step()
    odd = normal[:1].clamp(0, 1).clone()
    odd[..., 2:6, 2:6] = 1.0
    scores = network.score(torch.cat([odd, normal[1:4].clamp(0, 1)]))
    assert losses[-1] < 0.3 * losses[0]
    assert scores.image[0] > 1.5 * scores.image[1:].max()
    y, column = divmod(int(scores.pixel[0].argmax()), 16)  # type: ignore[index]
    assert 2 <= y < 6
    assert 2 <= column < 6


def test_latents_are_the_posterior_means() -> None:
    network, images = seasoned(TINY), images_of(TINY)
    assert torch.equal(network.train().latents(images), network.eval().encoder(2 * images - 1)[0])


def test_bad_input_is_refused() -> None:
    network = seasoned(TINY)
    with pytest.raises(DetectorError, match="expected images"):
        network.all_scores(torch.rand(1, 3, 32, 32))
    with pytest.raises(ValidationError, match="power of two"):
        VAEConfig(input_size_px=96)
    with pytest.raises(ValidationError):
        VAEConfig.model_validate({"score": "elbo"})
