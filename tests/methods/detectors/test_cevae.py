"""The context-encoding VAE: what it is asked to restore, and the gradient that weighs its errors."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from methods.detectors.cevae import ContextEncodingVAE, ContextEncodingVAEConfig, cut_patches
from methods.detectors.interface import DetectorError
from methods.detectors.vae import gaussian_kl

TINY = ContextEncodingVAEConfig(input_size_px=16, latent=4, smoothing_sigma_px=1.0, batch_size=4)


def images_of(count: int = 4, seed: int = 0, size_px: int = 16) -> Tensor:
    return torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(seed))


def seasoned(config: ContextEncodingVAEConfig = TINY) -> ContextEncodingVAE:
    """A network whose normalisation has seen a few batches."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ContextEncodingVAE(config).train()
        for seed in range(3):
            network.loss(images_of(8, seed))
    return network.eval()


class Recorder(nn.Module):
    """An encoder that keeps what it is given and says that it knows nothing: the prior."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(x)
        return torch.zeros(len(x), 4), torch.zeros(len(x), 4)


class Constant(nn.Module):
    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = image

    def forward(self, z: Tensor) -> Tensor:
        return self.image.expand(len(z), *self.image.shape)


def test_patches_are_squares_within_the_image_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    images = images_of(200) * 0.9 + 0.1
    kept = images.clone()
    cut = cut_patches(images, size_px=5, min_patches=1, max_patches=1)
    assert torch.equal(images, kept)
    is_cut = (cut == 0).all(1)  # (N, H, W)
    assert torch.equal(cut[~is_cut[:, None].expand_as(cut)], images[~is_cut[:, None].expand_as(cut)])
    assert (is_cut.any(2).sum(1) == 5).all()
    assert (is_cut.any(1).sum(1) == 5).all()
    assert (is_cut.sum((1, 2)) == 25).all()
    corners = is_cut.flatten(1).int().argmax(1)
    assert set((corners // 16).tolist()) == set((corners % 16).tolist()) == set(range(12))


def test_from_one_to_three_patches_are_cut() -> None:
    torch.manual_seed(0)
    areas = (cut_patches(torch.ones(3000, 1, 64, 64), size_px=2, min_patches=1, max_patches=3) == 0).sum((1, 2, 3))
    # hardly any overlap at this size
    shares = [((areas > 4 * (number - 1)) & (areas <= 4 * number)).float().mean().item() for number in (1, 2, 3)]
    np.testing.assert_allclose(shares, 1 / 3, atol=0.05)
    assert (areas > 0).all()
    assert (areas <= 12).all()
    assert (cut_patches(torch.ones(50, 1, 64, 64), size_px=2, min_patches=3, max_patches=3) == 0).sum((1, 2, 3)).min() > 8


def test_the_target_of_a_masked_image_is_the_unmasked_one() -> None:
    torch.manual_seed(0)
    network, images = ContextEncodingVAE(TINY), images_of(1).expand(4, -1, -1, -1) * 0.9 + 0.1
    recorder = Recorder()
    network.encoder, network.decoder = recorder, Constant(images[0])
    assert network.loss(images).item() == 0  # it restores what was cut out
    whole, masked = recorder.seen
    assert torch.equal(whole, images)
    assert ((masked == 0).sum((1, 2, 3)) > 0).all()
    network.decoder = Constant(masked[0])
    assert network.loss(images).item() > 1


def test_the_loss_is_the_stated_sum() -> None:
    config = TINY.model_copy(update={"kl_weight": 0.3, "context_weight": 0.7})
    network, images = seasoned(config), images_of()
    torch.manual_seed(5)
    loss = network.loss(images)
    torch.manual_seed(5)
    mean, log_variance = network.encoder(images)
    x_hat = network.decoder(mean + (0.5 * log_variance).exp() * torch.randn_like(mean))
    filled_in = network.decoder(network.encoder(cut_patches(images, size_px=2, min_patches=1, max_patches=3))[0])
    errors = [0.5 * (reconstruction - images).square().sum((1, 2, 3)) for reconstruction in (x_hat, filled_in)]
    torch.testing.assert_close(loss, (errors[0] + 0.7 * errors[1] + 0.3 * gaussian_kl(mean, log_variance)).mean())


def test_the_gradient_is_that_of_finite_differences() -> None:
    network, images = seasoned().double(), images_of(2).double()
    gradient, step = network.deviation(images).gradient, 1e-6
    rng = np.random.default_rng(0)
    for n, c, y, x in zip(*(rng.integers(0, high, 40) for high in images.shape), strict=True):
        shift = torch.zeros_like(images)
        shift[n, c, y, x] = step
        ahead, behind = network.deviation(images + shift).bound, network.deviation(images - shift).bound
        slope = (ahead - behind) / (2 * step)
        torch.testing.assert_close(slope[n], gradient[n, c, y, x], rtol=1e-4, atol=1e-6)
        assert slope[1 - n] == 0


def test_the_gradient_within_inference_mode_is_the_one_outside() -> None:
    network, images = seasoned(), images_of()
    outside = network.score(images)
    with torch.inference_mode():
        inside = network.score(images.clone())  # an inference tensor
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        without = network.score(images)
    for scores in (inside, without):
        assert torch.equal(scores.image, outside.image)
        assert torch.equal(scores.pixel, outside.pixel)  # type: ignore[arg-type]
        assert not scores.image.requires_grad
        assert not scores.pixel.requires_grad  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not images.requires_grad


def test_the_map_is_the_error_times_the_smoothed_gradient_and_the_image_score_the_bound() -> None:
    network, images = seasoned(), images_of()
    scores, (bound, gradient, reconstruction) = network.score(images), network.deviation(images)
    with torch.inference_mode():
        mean, log_variance = network.encoder(images)
        x_hat = network.decoder(mean)
    assert torch.equal(reconstruction, x_hat)
    torch.testing.assert_close(bound, 0.5 * (images - x_hat).square().sum((1, 2, 3)) + gaussian_kl(mean, log_variance))
    assert torch.equal(scores.image, bound)
    for pixel, slope, image, restored in zip(scores.pixel, gradient, images, x_hat, strict=True):  # type: ignore[arg-type]
        smooth = gaussian_filter(slope.abs().mean(0).numpy(), 1.0, mode="mirror", truncate=4)
        np.testing.assert_allclose(pixel, (restored - image).square().mean(0).numpy() * smooth, rtol=1e-4, atol=1e-6)


def test_a_score_does_not_depend_on_its_neighbours_nor_on_the_mode() -> None:
    network, images = seasoned(), images_of()
    order = torch.tensor([2, 0, 3, 1])
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.inference_mode():
        scores, permuted = network.score(images), network.score(images[order])
        one, training = network.score(images[:1]), network.train().score(images)
    assert network.training
    assert torch.equal(scores.image[order], permuted.image)
    assert torch.equal(scores.pixel[order], permuted.pixel)  # type: ignore[index]
    assert torch.equal(scores.pixel, training.pixel)  # type: ignore[arg-type]
    torch.testing.assert_close(scores.pixel[:1], one.pixel)  # type: ignore[index]
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_what_was_never_seen_stands_out() -> None:
    torch.manual_seed(0)
    config = ContextEncodingVAEConfig(input_size_px=16, latent=4, learning_rate=3e-3, smoothing_sigma_px=1.0, kl_weight=0.1)
    network, x = ContextEncodingVAE(config).train(), torch.linspace(0, 1, 16)
    noise = 0.05 * torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    normal = (0.2 + 0.6 * x[:, None] * x + noise).clamp(0, 1)
    optimizer = network.build_optimizer()
    for _ in range(80):
        optimizer.zero_grad()
        network.loss(normal).backward()
        optimizer.step()
    odd = normal[:1].clone()
    odd[..., 2:6, 2:6] = 1.0
    scores = network.score(torch.cat([odd, normal[1:4]]))
    assert scores.image[0] > 1.5 * scores.image[1:].max()
    y, column = divmod(int(scores.pixel[0].argmax()), 16)  # type: ignore[index]
    assert 1 <= y < 7
    assert 1 <= column < 7


def test_the_preset_has_the_studys_widths() -> None:
    config = ContextEncodingVAEConfig()
    network = ContextEncodingVAE(config)
    down = [layer for layer in network.encoder.modules() if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)]
    up = [layer for layer in network.decoder.modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert [layer.out_channels for layer in down] == [32, 64, 128, 128, 128]
    assert [layer.out_channels for layer in up] == [128, 64, 32, 32, 32]
    assert {layer.kernel_size for layer in (*down, *up)} == {(5, 5)}
    assert network.eval().encoder(torch.zeros(1, 3, 256, 256))[0].shape == (1, 128)
    assert network.reconstruct(torch.zeros(1, 3, 256, 256)).shape == (1, 3, 256, 256)
    assert config.patch_size_px == 40
    assert network.build_optimizer().defaults["lr"] == 1e-4


def test_bad_input_is_refused() -> None:
    with pytest.raises(DetectorError, match="expected images"):
        seasoned().score(images_of(size_px=32))
    with pytest.raises(ValidationError, match="power of two"):
        ContextEncodingVAEConfig(input_size_px=48)
    with pytest.raises(ValidationError, match="min_patches <= max_patches"):
        ContextEncodingVAEConfig(min_patches=4)
    with pytest.raises(ValidationError, match="quarter of input_size_px"):
        ContextEncodingVAEConfig(input_size_px=16, smoothing_sigma_px=4)
