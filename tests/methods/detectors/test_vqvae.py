"""VQ-VAE: the codebook against a slow twin, and the gradients that pass it."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from methods.detectors.interface import DetectorError
from methods.detectors.networks import vector_quantizer
from methods.detectors.networks.vector_quantizer import VectorQuantizer
from methods.detectors.vqvae import VQVAE, VQVAEConfig

TINY = VQVAEConfig(input_size_px=16, width=8, residual_width=4, codes=12, code_dims=5, batch_size=4)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images_of(count: int = 4, seed: int = 0, size_px: int = 16) -> Tensor:
    return torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(seed))


def quantizer(*, codes: int = 6, dims: int = 3, decay: float = 0.9, restart_below: float = 0.0) -> VectorQuantizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VectorQuantizer(codes=codes, dims=dims, decay=decay, restart_below=restart_below)


def seasoned(config: VQVAEConfig = TINY) -> VQVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = VQVAE(config).train()
        for seed in range(3):
            network.loss(images_of(seed=seed))
    return network.eval()


def vectors(z: Tensor) -> np.ndarray:
    """The vectors (n, d) float64 of a grid (N, d, H, W)."""
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).double().numpy()


class SlowTwin:
    """Appendix A.1, one vector and one code after another."""

    def __init__(self, codes: Tensor, *, decay: float, epsilon: float) -> None:
        self.e = codes.double().numpy().copy()
        self.N, self.m = np.ones(len(self.e)), self.e.copy()
        self.decay, self.epsilon = decay, epsilon

    def nearest(self, z: np.ndarray) -> list[int]:
        return [min(range(len(self.e)), key=lambda i, v=v: float(((v - self.e[i]) ** 2).sum())) for v in z]  # type: ignore[misc]

    def follow(self, z: np.ndarray) -> None:
        nearest = self.nearest(z)
        for i in range(len(self.e)):
            mine = [v for v, code in zip(z, nearest, strict=True) if code == i]
            self.N[i] = self.decay * self.N[i] + (1 - self.decay) * len(mine)
            self.m[i] = self.decay * self.m[i] + (1 - self.decay) * sum(mine, np.zeros(self.e.shape[1]))
        for i in range(len(self.e)):
            smoothed = (self.N[i] + self.epsilon) / (self.N.sum() + len(self.e) * self.epsilon) * self.N.sum()
            self.e[i] = self.m[i] / smoothed


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_the_codebook_follows_as_its_slow_twin_does(epsilon: float) -> None:
    torch.manual_seed(0)
    fast = VectorQuantizer(codes=6, dims=3, decay=0.9, restart_below=0.0, epsilon=epsilon).train()
    slow = SlowTwin(fast.codes, decay=0.9, epsilon=epsilon)
    for step in range(6):
        z = draw(2, 3, 4, 5, seed=step) + 0.3 * step
        assert fast.nearest(z).flatten().tolist() == slow.nearest(vectors(z))
        fast(z)
        slow.follow(vectors(z))
        np.testing.assert_allclose(fast.codes, slow.e, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(fast.counts, slow.N, rtol=1e-5)
        np.testing.assert_allclose(fast.sums, slow.m, rtol=1e-4, atol=1e-5)


def test_several_processes_follow_the_vectors_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        """Two processes that were given the same batch."""

        is_available = is_initialized = staticmethod(lambda: True)
        all_reduce = staticmethod(lambda tensor: tensor.mul_(2))
        broadcast = staticmethod(lambda tensor, source: None)

    one, two, z = quantizer().train(), quantizer().train(), draw(2, 3, 4, 4)
    one(torch.cat([z, z]))
    monkeypatch.setattr(vector_quantizer, "distributed", Two)
    two(z)
    torch.testing.assert_close(one.codes, two.codes)
    torch.testing.assert_close(one.counts, two.counts)


def test_the_codes_settle_in_the_middle_of_what_they_replace() -> None:
    centres = torch.tensor([[4.0, 0, 0], [0, 4, 0], [0, 0, 4], [-4, -4, -4]])
    codebook = quantizer(codes=4, decay=0.8, restart_below=1).train()
    torch.manual_seed(0)
    for step in range(60):
        z = centres.repeat(16, 1) + 0.1 * draw(64, 3, seed=step)
        codebook(z.T.reshape(1, 3, 8, 8))
    assert sorted(torch.cdist(centres, codebook.codes).argmin(1).tolist()) == [0, 1, 2, 3]
    assert torch.cdist(centres, codebook.codes).amin(1).max() < 0.05


def test_a_code_without_vectors_stays_where_it_is() -> None:
    codebook = quantizer(decay=0.9).train()
    codebook.codes[0] = codebook.sums[0] = 50.0
    before = codebook.codes[0].clone()
    for step in range(20):
        codebook(draw(2, 3, 4, 4, seed=step))
    torch.testing.assert_close(codebook.codes[0], before, rtol=1e-3, atol=0)


def test_an_idle_code_is_put_on_a_vector_of_the_batch_and_a_used_one_is_not() -> None:
    codebook = quantizer(codes=3, decay=0.5, restart_below=1).train()
    codebook.codes.copy_(torch.tensor([[0.0, 0, 0], [1, 1, 1], [90, 90, 90]]))
    codebook.sums.copy_(codebook.codes)
    z = torch.cat([0.01 * draw(8, 3), 1 + 0.01 * draw(8, 3, seed=1)])
    codebook(z.T.reshape(1, 3, 4, 4))
    assert torch.cdist(codebook.codes[2:], z).min() < 1e-3
    torch.testing.assert_close(codebook.codes[0], 0.5 * z[:8].sum(0) / 4.5, rtol=1e-3, atol=1e-5)  # N: half of 1 and of 8
    torch.testing.assert_close(codebook.codes[1], (0.5 + 0.5 * z[8:].sum(0)) / 4.5, rtol=1e-3, atol=1e-5)


def test_restarts_bring_the_codebook_into_use() -> None:
    used = {}
    for restart_below in (0.0, 1.0):
        torch.manual_seed(0)
        codebook = quantizer(codes=16, dims=8, decay=0.9, restart_below=restart_below).train()
        for step in range(20):
            codebook(0.05 * draw(4, 8, 8, 8, seed=step))  # an untrained encoder's
        used[restart_below] = len(codebook.nearest(0.05 * draw(4, 8, 8, 8, seed=99)).unique())
    assert used[0.0] <= 4
    assert used[1.0] >= 12


def test_the_gradient_passes_straight_through_and_the_commitment_pulls_at_the_vectors_only() -> None:
    codebook, z = quantizer().eval(), draw(2, 3, 4, 4).requires_grad_()
    out, commitment = codebook(z)
    nearest = codebook.codes[codebook.nearest(z)].permute(0, 3, 1, 2)
    torch.testing.assert_close(out, nearest)
    weights = draw(2, 3, 4, 4, seed=8)
    (slope,) = torch.autograd.grad((out * weights).sum(), z)
    torch.testing.assert_close(slope, weights)
    torch.testing.assert_close(commitment, (z - nearest).square().mean())
    (slope,) = torch.autograd.grad(commitment, z)
    torch.testing.assert_close(slope, 2 * (z - nearest).detach() / z.numel())
    assert not list(codebook.parameters())


def test_only_training_moves_the_codebook() -> None:
    network, images = seasoned(), images_of()
    before = {name: tensor.clone() for name, tensor in network.quantizer.state_dict().items()}
    assert set(before) == {"codes", "counts", "sums"}
    network.loss(images)
    network.train().score(images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.quantizer.state_dict().items())
    assert network.training
    network.loss(images)
    assert not torch.equal(network.quantizer.codes, before["codes"])


def test_the_loss_is_the_papers() -> None:
    network, images = seasoned(), images_of()
    x = 2 * images - 1
    z = network.encoder(x)
    assert z.shape == (4, TINY.code_dims, 4, 4)
    e = network.quantizer.codes[network.quantizer.nearest(z)].permute(0, 3, 1, 2)
    expected = (network.decoder(e) - x).square().mean() + 0.25 * (z - e).square().mean()
    torch.testing.assert_close(network.loss(images), expected)


def test_the_score_is_the_squared_error_of_the_reconstruction() -> None:
    network, images = seasoned(), images_of()
    with torch.inference_mode():
        scores, restored = network.score(images), network.reconstruct(images)
        z = network.encoder(2 * images - 1)
        e = network.quantizer.codes[network.quantizer.nearest(z)].permute(0, 3, 1, 2)
        torch.testing.assert_close(restored, ((network.decoder(e) + 1) / 2).clamp(0, 1))
    torch.testing.assert_close(scores.pixel, (restored - images).square().mean(1))
    torch.testing.assert_close(scores.image, (restored - images).square().mean((1, 2, 3)))


def test_a_score_does_not_depend_on_its_neighbours() -> None:
    network, images = seasoned(), images_of()
    order = torch.tensor([2, 0, 3, 1])
    with torch.inference_mode():
        scores, permuted = network.score(images), network.score(images[order])
    assert torch.equal(scores.image[order], permuted.image)
    assert torch.equal(scores.pixel[order], permuted.pixel)  # type: ignore[index]


def test_what_was_never_seen_stands_out() -> None:
    torch.manual_seed(0)
    config = VQVAEConfig(input_size_px=16, width=16, residual_width=8, codes=16, code_dims=8, learning_rate=3e-3)
    network, x = VQVAE(config).train(), torch.linspace(0, 1, 16)
    noise = 0.03 * torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    normal = (0.2 + 0.6 * x[:, None] * x + noise).clamp(0, 1)
    optimizer = network.build_optimizer()
    for _ in range(120):
        optimizer.zero_grad()
        network.loss(normal).backward()
        optimizer.step()
    odd = normal[:1].clone()
    odd[..., 2:6, 2:6] = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    scores = network.score(torch.cat([odd, normal[1:4]]))
    assert scores.image[0] > 2 * scores.image[1:].max()
    y, column = divmod(int(scores.pixel[0].argmax()), 16)  # type: ignore[index]
    assert 1 <= y < 7
    assert 1 <= column < 7


def test_the_preset_is_the_papers_with_the_public_examples_widths() -> None:
    config = VQVAEConfig()
    network = VQVAE(config)
    down = [layer for layer in network.encoder if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)]
    assert [(layer.out_channels, layer.kernel_size) for layer in down] == [(64, (4, 4)), (128, (4, 4))]
    assert network.encoder(torch.zeros(1, 3, 64, 64)).shape == (1, 64, 16, 16)
    assert network.quantizer.codes.shape == (512, 64)
    assert (config.commitment_weight, config.decay, network.build_optimizer().defaults["lr"]) == (0.25, 0.99, 3e-4)


def test_bad_input_is_refused() -> None:
    with pytest.raises(DetectorError, match="expected images"):
        seasoned().score(images_of(size_px=32))
    with pytest.raises(ValidationError, match="multiple of 2\\^halvings = 8"):
        VQVAEConfig(input_size_px=20, halvings=3)
