"""A bounded choice of a stream, each vector as likely as any other, and the moments of all of it."""

import numpy as np
import pytest
import torch

from methods.detectors.reservoir import Moments, Reservoir


def numbers(count: int) -> torch.Tensor:
    """Vectors that say when they came."""
    return torch.arange(count, dtype=torch.float32)[:, None].expand(-1, 2)


@pytest.mark.parametrize("sizes", [(10,), (3, 7), (4, 0, 4, 1, 1)])
def test_while_there_is_room_all_are_kept_in_their_order_and_nothing_is_drawn(sizes: tuple[int, ...]) -> None:
    reservoir, before = Reservoir(10, 2), torch.get_rng_state()
    for part in numbers(10).split(list(sizes)):
        reservoir.add(part)
        assert torch.equal(reservoir.kept, numbers(10)[: reservoir.count])
    assert reservoir.is_complete
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch", [1, 7, 60])
def test_beyond_it_each_vector_is_kept_as_often_as_any_other_and_none_twice(batch: int) -> None:
    kept, repeats = np.zeros(60), 3000
    torch.manual_seed(0)
    for _ in range(repeats):
        reservoir = Reservoir(12, 2)
        for part in numbers(60).split(batch):
            reservoir.add(part)
        which = reservoir.kept[:, 0].int().numpy()
        assert len(set(which)) == 12
        kept[which] += 1
    assert not reservoir.is_complete
    assert reservoir.count == 60
    deviation = (repeats * 0.2 * 0.8) ** 0.5
    assert np.abs(kept - repeats * 0.2).max() < 4.5 * deviation  # of 60 draws of a share of a fifth
    assert np.abs(kept.reshape(4, 15).mean(1) - repeats * 0.2).max() < 4 * deviation / 15**0.5  # early or late


def test_the_same_seed_keeps_the_same() -> None:
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        reservoir = Reservoir(20, 2)
        for part in numbers(500).split(50):
            reservoir.add(part)
        found.append(reservoir.kept.clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_it_is_filled_in_every_mode() -> None:
    reservoir = Reservoir(5, 2)
    with torch.inference_mode():
        reservoir.add(numbers(3) + 0)
    reservoir.add(numbers(9))
    assert len(reservoir.kept) == 5


def test_moments_are_numpys_of_the_whole_stream_also_far_from_zero() -> None:
    vectors = torch.randn(20_000, 5, generator=torch.Generator().manual_seed(0)) @ torch.randn(5, 5) + 300
    moments = Moments(5)
    for part in vectors.split(3333):
        moments.add(part)
    x = vectors.double().numpy()
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(x, rowvar=False, bias=True), rtol=1e-6, atol=1e-8)
