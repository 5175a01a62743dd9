"""The way to step λ and back on a Gaussian, where the best estimate of the noise and the true way back are known."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from methods.detectors.anoddpm import (
    AnoDDPM,
    AnoDDPMConfig,
    cumulative_alphas,
    denoise,
    noised,
    simplex_noise,
    strided_steps,
)
from methods.detectors.interface import DetectorError
from methods.detectors.networks.score_unet import ScoreUNetConfig

TINY = ScoreUNetConfig(widths=(8, 16), attention_levels=(1,), residual_blocks=1, head_channels=8, norm_groups=4)
CONFIG = AnoDDPMConfig(input_size_px=16, unet=TINY, reverse_steps=5, wavelength_px=8, octaves=3)
ALPHA_BAR = cumulative_alphas(1000, beta_min=1e-4, beta_max=0.02)
MU, VARIANCE = 0.3, 0.25


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks lose more to waiting threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(config: AnoDDPMConfig) -> AnoDDPM:
    """With random weights throughout: the layers that begin at zero would hide everything."""
    detector, generator = AnoDDPM(config).eval(), seeded(0)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return detector


def best_estimate(x: Tensor, step: int) -> Tensor:
    """E[ε | x_t] for data N(MU, VARIANCE)."""
    a = ALPHA_BAR[step]
    return (1 - a).sqrt() * (x - a.sqrt() * MU) / (a * VARIANCE + 1 - a)


def never() -> Tensor:
    raise AssertionError("no noise is due")


class TestDiffusion:
    def test_the_share_of_the_clean_image_is_the_product_of_ho_et_al(self) -> None:
        betas = np.linspace(1e-4, 0.02, 1000)
        assert len(ALPHA_BAR) == 1001
        assert ALPHA_BAR[0] == 1
        np.testing.assert_allclose(ALPHA_BAR[1:], np.cumprod(1 - betas), rtol=1e-6)
        assert ALPHA_BAR[-1] == pytest.approx(4.04e-5, rel=0.01)

    def test_noising_has_the_mean_and_variance_of_the_step(self) -> None:
        noise = torch.randn(100_000, generator=seeded(0))
        x = noised(torch.full((100_000,), 0.8), noise, ALPHA_BAR[250])
        assert x.mean() == pytest.approx(0.8 * float(ALPHA_BAR[250].sqrt()), abs=0.01)
        assert x.var() == pytest.approx(1 - float(ALPHA_BAR[250]), rel=0.02)

    @pytest.mark.parametrize("step", [50, 250, 800])
    def test_the_deterministic_way_back_keeps_the_standing_of_an_image_among_its_like(self, step: int) -> None:
        """The probability-flow ODE of a Gaussian is linear: so many deviations from the mean at λ, so many at 0."""
        a = ALPHA_BAR[step]
        standing = torch.tensor([-2.0, 0.0, 0.7, 3.0])
        x = a.sqrt() * MU + (a * VARIANCE + 1 - a).sqrt() * standing
        steps = strided_steps(step, count=step)
        found = denoise(best_estimate, x, alpha_bar=ALPHA_BAR, steps=steps, eta=0, draw=never, clips=False)
        torch.testing.assert_close(found, MU + VARIANCE**0.5 * standing, atol=0.03, rtol=0)

    def test_few_strides_are_close_to_all_of_them(self) -> None:
        x = torch.linspace(-2, 2, 9)
        found = [
            denoise(best_estimate, x, alpha_bar=ALPHA_BAR, steps=strided_steps(250, count=count), eta=0, draw=never, clips=False)
            for count in (25, 250)
        ]
        torch.testing.assert_close(found[0], found[1], atol=0.05, rtol=0)

    @pytest.mark.parametrize(("step", "count"), [(250, 250), (100, 100)])
    def test_the_ancestral_way_back_draws_from_the_posterior(self, step: int, count: int) -> None:
        a, n, generator = ALPHA_BAR[step], 20_000, seeded(1)
        x = torch.full((n,), 1.2)
        total = a * VARIANCE + 1 - a
        found = denoise(
            best_estimate,
            x,
            alpha_bar=ALPHA_BAR,
            steps=strided_steps(step, count=count),
            eta=1,
            draw=lambda: torch.randn(n, generator=generator),
            clips=False,
        )
        mean = MU + a.sqrt() * VARIANCE / total * (1.2 - a.sqrt() * MU)
        assert found.mean() == pytest.approx(float(mean), abs=0.02)
        assert found.var() == pytest.approx(float(VARIANCE * (1 - a) / total), rel=0.05)

    def test_one_ancestral_step_is_that_of_ho_et_al(self) -> None:
        """Their eq. 11 for the mean and β̃ for the variance (eq. 7)."""
        x, z, step = torch.tensor([0.4, -0.9]), torch.tensor([1.0, 1.0]), 250
        beta = 1 - ALPHA_BAR[step] / ALPHA_BAR[step - 1]
        noise = best_estimate(x, step)
        mean = (x - beta / (1 - ALPHA_BAR[step]).sqrt() * noise) / (1 - beta).sqrt()
        variance = (1 - ALPHA_BAR[step - 1]) / (1 - ALPHA_BAR[step]) * beta
        found = denoise(best_estimate, x, alpha_bar=ALPHA_BAR, steps=[step, step - 1], eta=1, draw=lambda: z, clips=False)
        torch.testing.assert_close(found, mean + variance.sqrt() * z, atol=1e-5, rtol=0)

    def test_a_clipped_estimate_stays_in_the_range(self) -> None:
        x = torch.tensor([-9.0, 0.1, 9.0])
        steps = strided_steps(250, count=10)
        free, held = (
            denoise(best_estimate, x, alpha_bar=ALPHA_BAR, steps=steps, eta=0, draw=never, clips=clips) for clips in (False, True)
        )
        assert free.abs().max() > 2
        torch.testing.assert_close(held, torch.stack([torch.tensor(-1.0), free[1], torch.tensor(1.0)]))

    def test_strides_end_at_the_clean_image(self) -> None:
        assert strided_steps(4, count=4) == [4, 3, 2, 1, 0]
        assert strided_steps(250, count=4) == [250, 187, 125, 62, 0]
        for last, count in itertools.product((1, 7, 250), (1, 2, 7)):
            if count <= last:
                steps = strided_steps(last, count=count)
                assert (steps[0], steps[-1], len(set(steps))) == (last, 0, count + 1)


class TestSimplexNoise:
    @pytest.mark.parametrize(("octaves", "persistence"), [(1, 0.8), (6, 0.8), (3, 0.5)])
    def test_it_has_mean_zero_and_variance_one(self, octaves: int, persistence: float) -> None:
        calls = [
            simplex_noise(20, 48, wavelength_px=16, octaves=octaves, persistence=persistence, generator=seeded(seed)) for seed in range(20)
        ]
        fields = torch.cat(calls)
        assert fields.dtype == torch.float32
        assert abs(float(fields.mean())) < 0.03
        assert float(fields.var()) == pytest.approx(1, abs=0.05)
        by_pixel = fields.var(0)  # nowhere weaker: no pixel is always a corner of the grid
        assert 0.6 < float(by_pixel.min()) <= float(by_pixel.max()) < 1.5

    def test_it_is_continuous_and_as_wide_as_its_wavelength(self) -> None:
        field = simplex_noise(30, 128, wavelength_px=32, octaves=1, persistence=1, generator=seeded(0))
        for wavelength_px in (32, 256):  # no seams between triangles: differences shrink with the distance
            smooth = simplex_noise(30, 128, wavelength_px=wavelength_px, octaves=1, persistence=1, generator=seeded(0))
            for axis in (1, 2):
                assert smooth.diff(dim=axis).abs().max() < 16 / wavelength_px

        def correlation(shift_px: int) -> float:
            return float((field[..., shift_px:] * field[..., : 128 - shift_px]).mean() / field.square().mean())

        assert correlation(2) > 0.9
        assert abs(correlation(48)) < 0.15

    def test_octaves_are_added_with_their_persistence(self) -> None:
        def draw(octaves: int) -> Tensor:
            return simplex_noise(2, 32, wavelength_px=16, octaves=octaves, persistence=0.5, generator=seeded(4))

        second = draw(2) * math.sqrt(1.25) - draw(1)  # what the second adds to the first, of variance ¼
        assert float(second.var()) == pytest.approx(0.25, rel=0.35)

    def test_gaussian_noise_is_white_and_simplex_noise_is_not(self) -> None:
        spectra = {}
        for noise in ("simplex", "gaussian"):
            config = AnoDDPMConfig(input_size_px=64, unet=TINY, noise=noise)
            drawn = AnoDDPM(config).draw_noise(8, seeded(0), torch.device("cpu"))
            assert drawn.shape == (8, 3, 64, 64)
            power = torch.fft.fft2(drawn).abs().square().mean((0, 1))
            spectra[noise] = float(power[:8, :8].mean() / power[24:40, 24:40].mean())
        assert spectra["gaussian"] == pytest.approx(1, abs=0.3)
        assert spectra["simplex"] > 5

    def test_fields_of_a_call_are_independent_and_the_seed_decides(self) -> None:
        def draw(seed: int) -> Tensor:
            return simplex_noise(200, 16, wavelength_px=8, octaves=2, persistence=0.8, generator=seeded(seed))

        fields = draw(0)
        assert torch.equal(fields, draw(0))
        assert not torch.equal(fields, draw(1))
        assert abs(float((fields[:100] * fields[100:]).mean())) < 0.03


class TestLoss:
    def test_it_is_one_at_first_when_the_network_says_nothing_and_for_the_best_estimate_the_known_constant(self) -> None:
        detector = AnoDDPM(CONFIG.model_copy(update={"noise": "gaussian"}))
        torch.manual_seed(0)
        images = ((MU + VARIANCE**0.5 * torch.randn(256, 3, 16, 16)) + 1) / 2
        assert detector.loss(images).item() == pytest.approx(1, abs=0.02)

        class Best(torch.nn.Module):
            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                a = ALPHA_BAR[(t * 1000).round().long()][:, None, None, None]
                return (1 - a).sqrt() * (x - a.sqrt() * MU) / (a * VARIANCE + 1 - a)

        detector.unet = Best()
        a = ALPHA_BAR[1:801]
        expected = float((a * VARIANCE / (a * VARIANCE + 1 - a)).mean())  # Var[ε | x_t]
        losses = [detector.loss(images).item() for _ in range(20)]
        assert np.mean(losses) == pytest.approx(expected, rel=0.05)

    def test_it_learns(self) -> None:
        torch.manual_seed(0)
        detector = AnoDDPM(CONFIG.model_copy(update={"learning_rate": 5e-3}))
        optimizer = detector.build_optimizer()
        losses = []
        for _ in range(60):
            loss = detector.loss(torch.full((8, 3, 16, 16), 0.5))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])


class TestScore:
    def test_it_is_the_squared_error_to_the_reconstruction(self) -> None:
        detector, images = filled(CONFIG), torch.rand(2, 3, 16, 16, generator=seeded(1))
        with torch.inference_mode():
            back, scores = detector.reconstruct(images), detector.score(images)
        assert back.min() >= 0
        assert back.max() <= 1
        torch.testing.assert_close(scores.pixel, (back - images).square().mean(1))
        torch.testing.assert_close(scores.image, scores.pixel.mean((1, 2)))

    def test_the_reconstruction_is_the_way_to_step_lambda_and_back(self) -> None:
        detector = AnoDDPM(CONFIG.model_copy(update={"eta": 0.0, "clips": False, "noise": "gaussian", "partial_steps": 100}))

        class Best(torch.nn.Module):
            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                assert len(t) == len(x)
                return best_estimate(x, round(float(t[0]) * 1000))

        detector.unet = Best()
        images = torch.rand(2, 3, 16, 16, generator=seeded(1))
        noise = torch.randn(1, 3, 16, 16, generator=seeded(0))
        x = noised(2 * images - 1, noise, ALPHA_BAR[100])
        x = denoise(best_estimate, x, alpha_bar=ALPHA_BAR, steps=[100, 80, 60, 40, 20, 0], eta=0, draw=never, clips=False)
        torch.testing.assert_close(detector.reconstruct(images), ((x + 1) / 2).clamp(0, 1), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("noise", ["simplex", "gaussian"])
    @pytest.mark.parametrize("eta", [0.0, 1.0])
    def test_every_image_gets_the_same_noise_on_every_call_and_torchs_generator_is_left_alone(self, noise: str, eta: float) -> None:
        detector = filled(CONFIG.model_copy(update={"noise": noise, "eta": eta}))
        one = torch.rand(1, 3, 16, 16, generator=seeded(1))
        images = torch.cat([one, torch.rand(2, 3, 16, 16, generator=seeded(2)), one])
        before = torch.get_rng_state()
        with torch.inference_mode():
            first, again = detector.score(images), detector.score(images)
            permuted = detector.score(images[torch.tensor([2, 0, 3, 1])])
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(first.pixel, again.pixel)
        assert torch.equal(first.pixel[0], first.pixel[3])
        assert torch.equal(first.pixel[torch.tensor([2, 0, 3, 1])], permuted.pixel)
        assert first.image[:3].std() > 0

    def test_another_seed_is_another_noise(self) -> None:
        images = torch.rand(1, 3, 16, 16, generator=seeded(1))
        with torch.inference_mode():
            scores = [filled(CONFIG.model_copy(update={"noise_seed": seed})).score(images).image for seed in (0, 1)]
        assert not torch.equal(scores[0], scores[1])

    def test_an_image_costs_as_many_passes_as_steps_on_the_way_back(self) -> None:
        images = torch.rand(2, 3, 16, 16, generator=seeded(1))
        for reverse_steps, passes in ((5, 5), (None, 20)):
            detector, passed = AnoDDPM(CONFIG.model_copy(update={"reverse_steps": reverse_steps, "partial_steps": 20})).eval(), []
            detector.unet.register_forward_hook(lambda module, inputs, output, passed=passed: passed.append(float(inputs[1][0])))
            with torch.inference_mode():
                detector.score(images)
            assert len(passed) == passes
            assert passed[0] == pytest.approx(20 / 1000)

    def test_the_state_restores_the_scores(self) -> None:
        detector, other, images = filled(CONFIG), AnoDDPM(CONFIG).eval(), torch.rand(2, 3, 16, 16, generator=seeded(1))
        other.load_state_dict({name: tensor.clone() for name, tensor in detector.state_dict().items()})
        with torch.inference_mode():
            assert torch.equal(detector.score(images).image, other.score(images).image)

    def test_wrong_images_are_refused(self) -> None:
        for images in (torch.rand(1, 3, 16, 32), torch.rand(1, 1, 16, 16), torch.rand(1, 3, 16, 16) * 255):
            with pytest.raises(DetectorError, match="expected"):
                AnoDDPM(CONFIG).score(images)


def test_the_preset_is_the_papers() -> None:
    config = AnoDDPMConfig()
    assert (config.steps, config.beta_min, config.beta_max, config.partial_steps, config.trained_steps) == (1000, 1e-4, 0.02, 250, 800)
    assert (config.noise, config.octaves, config.persistence, config.wavelength_px) == ("simplex", 6, 0.8, 64)
    assert (config.reverse_steps, config.eta, config.epochs, config.training_batch_size) == (None, 1, 3000, 1)
    assert AnoDDPM(CONFIG).build_optimizer().defaults["lr"] == 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size_px": 17}, "multiple of 2"),
        ({"partial_steps": 900}, "partial_steps <= trained_steps"),
        ({"reverse_steps": 300}, "reverse_steps <= partial_steps"),
        ({"trained_steps": 1200}, "trained_steps <= steps"),
        ({"beta_max": 1e-5}, "beta_min <= beta_max"),
        ({"noise": "perlin"}, "noise"),
        ({"lambda": 250}, "extra"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AnoDDPMConfig.model_validate({**CONFIG.model_dump(), **change})
