"""The score, its loss and its noising process against Gaussians, whose score is known in closed form."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from methods.detectors.interface import DetectorError
from methods.detectors.networks.score_unet import ScoreUNet, ScoreUNetConfig, embed_time
from methods.detectors.sano import Sano, SanoConfig, VariancePreservingSDE, denoising_score_matching, deviation_threshold

SDE = VariancePreservingSDE(beta_min=0.1, beta_max=20.0)  # the paper's, as a rate
TINY = ScoreUNetConfig(widths=(8, 16), attention_levels=(1,), residual_blocks=1, head_channels=8, norm_groups=4)
CONFIG = SanoConfig(input_size_px=16, unet=TINY, smoothing_sigma_px=1.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks lose more to waiting threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(config: SanoConfig) -> Sano:
    """With random weights throughout: the layers that begin at zero would hide everything."""
    detector = Sano(config).eval()
    generator = seeded(0)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return detector


def gaussian_score(mu: float, variance: float):
    """∇ log p_t for data N(μ, variance)."""

    def s(x: Tensor, t: Tensor) -> Tensor:
        m, sigma = (factor.view(-1, *[1] * (x.ndim - 1)) for factor in SDE.kernel(t))
        return -(x - m * mu) / (m**2 * variance + sigma**2)

    return s


class TestNoisingProcess:
    def test_the_kernel_is_what_simulating_eq_2_gives(self) -> None:
        x, dt = torch.full((40_000,), 1.5), 1e-3
        generator = seeded(0)
        for step in range(400):
            beta = SDE.beta(torch.tensor((step + 0.5) * dt))
            x = x - 0.5 * beta * x * dt + (beta * dt).sqrt() * torch.randn(x.shape, generator=generator)
            if step + 1 in (50, 200, 400):
                m, sigma = SDE.kernel(torch.tensor((step + 1) * dt))
                assert x.mean() == pytest.approx(1.5 * float(m), abs=0.02)
                assert x.var() == pytest.approx(float(sigma) ** 2, rel=0.03)

    def test_the_kernel_is_the_limit_of_the_papers_thousand_steps(self) -> None:
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        discrete = (1 - betas).cumprod(0).sqrt()
        sde = Sano(CONFIG).sde
        m, sigma = sde.kernel(torch.arange(1, 1001, dtype=torch.float64) / 1000)
        torch.testing.assert_close(m, discrete, atol=2e-3, rtol=0)
        torch.testing.assert_close(m.square() + sigma.square(), torch.ones_like(m))  # variance-preserving

    def test_small_times_keep_their_digits_in_float32(self) -> None:
        _, sigma = SDE.kernel(torch.tensor([1e-6, 1e-3]))
        exact = [math.sqrt(-math.expm1(-(t * 0.1 + t * t * 19.9 / 2))) for t in (1e-6, 1e-3)]
        np.testing.assert_allclose(sigma, exact, rtol=1e-5)


class TestLoss:
    def test_it_vanishes_for_the_score_of_a_single_point_at_every_time_and_weighting(self) -> None:
        t = torch.linspace(1e-3, 1, 50)
        x_0, z = torch.full((50, 3, 4, 4), 0.7), torch.randn(50, 3, 4, 4, generator=seeded(0))
        for weighting in ("variance", "likelihood", "uniform"):
            loss = denoising_score_matching(gaussian_score(0.7, 0.0), x_0, sde=SDE, t=t, z=z, weighting=weighting)
            scale = {"variance": 1.0, "likelihood": 1e3, "uniform": 1e4}[weighting]  # λ/σ² at the smallest time
            assert loss.max() < 1e-6 * scale

    @pytest.mark.parametrize("time", [0.01, 0.1, 0.4, 1.0])
    def test_at_the_score_of_a_gaussian_it_is_the_constant_and_more_for_any_other(self, time: float) -> None:
        mu, variance, n = 0.3, 0.25, 200_000
        t, generator = torch.full((n,), time), seeded(1)
        x_0 = mu + variance**0.5 * torch.randn(n, 2, generator=generator)
        z = torch.randn(n, 2, generator=generator)
        s = gaussian_score(mu, variance)
        m, sigma = (float(factor) for factor in SDE.kernel(torch.tensor(time)))
        total = m**2 * variance + sigma**2
        least = 1 / sigma**2 - 1 / total
        weights = {"variance": sigma**2, "likelihood": float(SDE.beta(torch.tensor(time))), "uniform": 1.0}
        for weighting, weight in weights.items():
            loss = denoising_score_matching(s, x_0, sde=SDE, t=t, z=z, weighting=weighting)
            assert loss.shape == (n,)
            assert float(loss.mean()) == pytest.approx(0.5 * weight * least, rel=0.01, abs=1e-6 * weight)
        for other, excess in (
            (lambda x, t: 1.2 * s(x, t), 0.04 / total),
            (lambda x, t: s(x, t) + 0.5, 0.25),
            (lambda x, t: -s(x, t), 4 / total),
        ):
            loss = denoising_score_matching(other, x_0, sde=SDE, t=t, z=z)
            expected = 0.5 * sigma**2 * (least + excess)  # Fisher divergence to the true score on top of the constant
            assert float(loss.mean()) == pytest.approx(expected, rel=0.02)

    def test_it_is_one_half_at_first_when_the_network_says_nothing(self) -> None:
        detector = Sano(CONFIG)
        torch.manual_seed(0)
        losses = torch.stack([detector.loss(torch.rand(8, 3, 16, 16)) for _ in range(4)])
        assert losses.mean().item() == pytest.approx(0.5, abs=0.02)

    def test_its_times_are_uniform_from_the_smallest_step_to_one_and_drawn_for_each_image(self) -> None:
        class Silent(nn.Module):
            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                self.t = t
                return torch.zeros_like(x)

        detector = Sano(CONFIG.model_copy(update={"steps": 10, "beta_max": 0.5}))
        detector.unet = Silent()
        torch.manual_seed(0)
        detector.loss(torch.zeros(2000, 3, 16, 16))
        t = detector.unet.t.sort().values
        torch.testing.assert_close(t, torch.linspace(0.1, 1, 2000), atol=0.03, rtol=0)
        assert t[0] >= 0.1

    def test_its_draws_follow_torchs_seed(self) -> None:
        detector, images = filled(CONFIG), torch.rand(4, 3, 16, 16)
        losses = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            losses.append(detector.loss(images).item())
        assert losses[0] == losses[1] != losses[2]


class TestTrained:
    def test_it_recovers_the_score_of_a_mixture_in_the_plane(self) -> None:
        torch.manual_seed(0)
        means, variance = torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.1
        network = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

        def s(x: Tensor, t: Tensor) -> Tensor:
            m, sigma = SDE.kernel(t)
            return -network(torch.cat([x, m[:, None], sigma[:, None]], 1)) / sigma[:, None]

        def sample(n: int) -> Tensor:
            return means[torch.randint(2, (n,))] + variance**0.5 * torch.randn(n, 2)

        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
        for _ in range(600):
            x_0 = sample(1024)
            loss = denoising_score_matching(s, x_0, sde=SDE, t=0.02 + 0.98 * torch.rand(1024), z=torch.randn_like(x_0)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        for time, allowed in ((0.1, 0.1), (0.25, 0.02), (0.6, 0.02)):
            t = torch.full((2000,), time)
            m, sigma = SDE.kernel(t[0])
            x = (m * sample(2000) + sigma * torch.randn(2000, 2)).requires_grad_()
            component = torch.distributions.MultivariateNormal(m * means, (m**2 * variance + sigma**2) * torch.eye(2))
            mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(2)), component)
            (true,) = torch.autograd.grad(mixture.log_prob(x).sum(), x)
            with torch.no_grad():
                assert (s(x, t) - true).square().mean() < allowed * true.square().mean(), time

    def test_the_detector_learns_the_score_of_noisy_grey_images_with_its_sign_and_scale(self) -> None:
        torch.manual_seed(0)
        unet = ScoreUNetConfig(widths=(8, 8), attention_levels=(), residual_blocks=1, head_channels=8, norm_groups=1)
        detector = Sano(SanoConfig(input_size_px=16, unet=unet, learning_rate=5e-3, score_time=0.1))
        optimizer = detector.build_optimizer()
        for _ in range(100):
            loss = detector.loss((0.5 + 0.1 * torch.randn(8, 3, 16, 16)).clamp(0, 1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        detector.eval()
        x_0 = 0.2 * torch.randn(8, 3, 16, 16)  # a deviation of 0.1 in [0, 1]
        for time in (0.1, 0.3):
            m, sigma = (float(factor) for factor in detector.sde.kernel(torch.tensor(time)))
            x_t = m * x_0 + sigma * torch.randn_like(x_0)
            true = -x_t / (m**2 * 0.2**2 + sigma**2)
            with torch.inference_mode():
                found = detector.s(x_t, torch.full((8,), time))
            assert 0.8 < float((found * true).sum() / true.square().sum()) < 1.2
            assert float(torch.corrcoef(torch.stack([found.flatten(), true.flatten()]))[0, 1]) > 0.95
        odd, inside = (x_0 + 1) / 2, torch.zeros(16, 16, dtype=torch.bool)
        inside[5:11, 5:11] = True
        odd[..., inside] = 0.95
        with torch.inference_mode():
            pixel = detector.score(odd.clamp(0, 1)).pixel
        assert pixel[:, inside].mean() > 2 * pixel[:, ~inside].mean()


class TestScore:
    def test_the_map_is_the_smoothed_channel_mean_of_the_magnitude_of_minus_the_noise_over_sigma(self) -> None:
        config = CONFIG.model_copy(update={"score_time": 0.2})
        detector, images = filled(config), torch.rand(2, 3, 16, 16, generator=seeded(1))
        with torch.inference_mode():
            noise = detector.unet(2 * images - 1, torch.full((2,), 0.2))
            sigma = detector.sde.kernel(torch.tensor(0.2))[1]
            torch.testing.assert_close(detector.component_scores(images), -noise / sigma)
            pixel = detector.score(images).pixel
        expected = [gaussian_filter(one, 1.0, mode="mirror", truncate=4) for one in (noise / sigma).abs().mean(1).numpy()]
        np.testing.assert_allclose(pixel, np.stack(expected), rtol=1e-4)

    def test_time_defaults_to_the_first_step_and_smoothing_to_the_papers_two_pixels(self) -> None:
        detector, images = filled(CONFIG), torch.rand(2, 3, 16, 16, generator=seeded(1))
        explicit = filled(CONFIG.model_copy(update={"score_time": 1e-3}))
        with torch.inference_mode():
            assert torch.equal(detector.score(images).image, explicit.score(images).image)
        assert SanoConfig().smoothing_sigma_px == 2

    def test_the_image_score_is_the_mean_or_a_quantile_of_the_map(self) -> None:
        images = torch.rand(3, 3, 16, 16, generator=seeded(1))
        with torch.inference_mode():
            mean = filled(CONFIG).score(images)
            high = filled(CONFIG.model_copy(update={"image_quantile": 0.95})).score(images)
            highest = filled(CONFIG.model_copy(update={"image_quantile": 1.0})).score(images)
        torch.testing.assert_close(mean.image, mean.pixel.mean((1, 2)))
        torch.testing.assert_close(high.image, high.pixel.flatten(1).quantile(0.95, dim=1, interpolation="nearest"))
        assert torch.equal(highest.image, highest.pixel.amax((1, 2)))

    def test_an_image_costs_one_forward_pass_and_no_random_number(self) -> None:
        detector, passed = filled(CONFIG), []
        detector.unet.register_forward_hook(lambda module, inputs, output: passed.append(len(inputs[0])))
        before = torch.get_rng_state()
        with torch.inference_mode():
            first, again = (detector.score(torch.full((5, 3, 16, 16), 0.3)) for _ in range(2))
        assert passed == [5, 5]
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(first.pixel, again.pixel)

    def test_a_score_does_not_depend_on_its_neighbours_to_the_bit(self) -> None:
        detector, images = filled(CONFIG), torch.rand(4, 3, 16, 16, generator=seeded(1))
        order = torch.tensor([2, 0, 3, 1])
        others = torch.cat([images[:1], torch.rand(3, 3, 16, 16, generator=seeded(2))])
        with torch.inference_mode():
            one, permuted, among_others = detector.score(images), detector.score(images[order]), detector.score(others)
        assert one.image.std() > 0
        assert torch.equal(one.pixel[order], permuted.pixel)
        assert torch.equal(one.image[order], permuted.image)
        assert torch.equal(one.pixel[:1], among_others.pixel[:1])

    def test_the_state_restores_the_scores(self) -> None:
        detector, other, images = filled(CONFIG), Sano(CONFIG).eval(), torch.rand(2, 3, 16, 16, generator=seeded(1))
        other.load_state_dict({name: tensor.clone() for name, tensor in detector.state_dict().items()})
        with torch.inference_mode():
            assert torch.equal(detector.score(images).image, other.score(images).image)

    def test_wrong_images_are_refused(self) -> None:
        for images in (torch.rand(1, 3, 16, 32), torch.rand(1, 1, 16, 16), torch.rand(1, 3, 16, 16) * 255):
            with pytest.raises(DetectorError, match="expected"):
                Sano(CONFIG).score(images)


class TestThreshold:
    def test_it_is_three_deviations_of_all_components_however_they_are_dealt(self) -> None:
        scores = 5 + 2 * torch.randn(7, 3, 9, 9, generator=seeded(3))
        expected = 3 * float(scores.double().numpy().std())
        assert deviation_threshold([scores]) == pytest.approx(expected)
        assert deviation_threshold(scores.split([1, 4, 2])) == pytest.approx(expected)
        assert deviation_threshold(iter(scores.split(3)), deviations=1.5) == pytest.approx(expected / 2)

    def test_scores_that_say_nothing_are_refused(self) -> None:
        for batches in ([], [torch.zeros(2, 3, 4, 4)], [torch.tensor([[[[1.0, torch.nan]]]])], [torch.empty(0, 3, 4, 4)]):
            with pytest.raises(DetectorError, match="different finite training scores"):
                deviation_threshold(batches)
        with pytest.raises(ValueError, match="above 0, got 0"):
            deviation_threshold([torch.rand(1, 3, 4, 4)], deviations=0)


class TestNetwork:
    def test_it_depends_on_time_everywhere_and_on_far_pixels_through_attention(self) -> None:
        network = filled(CONFIG).unet
        x = torch.rand(1, 3, 16, 16, generator=seeded(1)).requires_grad_()
        early, late = network(x, torch.tensor([0.1])), network(x, torch.tensor([0.9]))
        assert ((early - late).abs() > 1e-6).float().mean() > 0.99
        (gradient,) = torch.autograd.grad(early[0, :, 0, 0].sum(), x)
        assert gradient[0, :, 15, 15].abs().min() > 0

    def test_it_begins_as_the_estimate_zero_and_takes_any_multiple_of_its_reduction(self) -> None:
        network = ScoreUNet(ScoreUNetConfig(widths=(8, 8, 16), attention_levels=(), residual_blocks=2, head_channels=8, norm_groups=4))
        assert network.config.reduction == 4
        assert torch.equal(network(torch.rand(2, 3, 12, 20), torch.rand(2)), torch.zeros(2, 3, 12, 20))

    def test_times_are_embedded_as_steps(self) -> None:
        embedded = embed_time(torch.tensor([0.0, 0.25]), dims=4)
        expected = [[1, 1, 0, 0], [math.cos(250), math.cos(2.5), math.sin(250), math.sin(2.5)]]
        torch.testing.assert_close(embedded, torch.tensor(expected), atol=1e-4, rtol=0)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"widths": (8, 12)}, "multiples of head_channels"),
            ({"widths": (6, 16)}, "multiples of norm_groups"),
            ({"attention_levels": (2,)}, "from 0 to 1"),
            ({"norm_groups": 3}, "multiples of norm_groups"),
            ({"width": 8}, "extra"),
        ],
    )
    def test_widths_that_do_not_fit_are_refused(self, change: dict, message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            ScoreUNetConfig.model_validate({**TINY.model_dump(), **change})


def test_the_preset_is_the_papers() -> None:
    config = SanoConfig()
    assert (config.input_size_px, config.steps, config.beta_min, config.beta_max) == (256, 1000, 1e-4, 0.02)
    assert config.training_batch_size == 64
    detector = Sano(config.model_copy(update={"unet": TINY}))
    optimizer = detector.build_optimizer()
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["lr"] == 2e-4
    assert (detector.sde.beta_min, detector.sde.beta_max) == pytest.approx((0.1, 20.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size_px": 17}, "multiple of 2"),
        ({"score_time": 1e-4}, "below which nothing is trained"),
        ({"score_times": (0.1, 0.0)}, r"score_times in \(0, 1\]"),
        ({"beta_max": 1e-5}, "beta_min <= beta_max"),
        ({"smoothing_sigma_px": 4.0}, "below a quarter"),
        ({"sigma": 2.0}, "extra"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SanoConfig.model_validate({**CONFIG.model_dump(), **change})


def test_the_inference_time_is_one_of_the_candidates_and_goes_with_the_state() -> None:
    config = CONFIG.model_copy(update={"steps": 100, "score_times": (0.001, 0.005, 0.1)})
    detector = filled(config)
    assert detector.candidates() == (0.01, 0.1)  # none below 1 / steps, and each once
    images = torch.rand(3, 3, 16, 16, generator=seeded(1))
    first = detector.score(images).image
    detector.use(0.1)
    assert not torch.equal(detector.score(images).image, first)
    other = Sano(config)
    other.load_state_dict(detector.state_dict())
    assert torch.equal(other.eval().score(images).image, detector.score(images).image)
    assert Sano(config.model_copy(update={"score_time": 0.3})).candidates() == (0.3,)


@torch.no_grad()
def test_the_training_threshold_is_the_deviation_of_component_scores() -> None:
    detector, images = filled(CONFIG), torch.rand(3, 3, 16, 16, generator=seeded(1))
    expected = 2 * detector.component_scores(images).double().std(correction=0)
    assert detector.training_threshold(images.split(1), deviations=2) == pytest.approx(float(expected), rel=1e-6)
