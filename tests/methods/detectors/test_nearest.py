"""Nearest neighbours against all differences in float64."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.detectors import nearest
from methods.detectors.nearest import find_nearest


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products lose more to waiting threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def vectors(count: int, dims: int, seed: int) -> Tensor:
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed))


def brute_force(queries: Tensor, memory: Tensor) -> tuple[np.ndarray, np.ndarray]:
    squared = np.stack([((memory.double().numpy() - x) ** 2).sum(1) for x in queries.double().numpy()])
    return np.sqrt(squared.min(1)), squared.argmin(1)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 3), (300, 512), (1100, 1025), (50, 5000)])
@pytest.mark.parametrize("dims", [1, 5, 64])
def test_they_are_those_of_brute_force(n: int, m: int, dims: int) -> None:
    queries, memory = vectors(n, dims, 0), vectors(m, dims, 1)
    found, (distance, index) = find_nearest(queries, memory), brute_force(queries, memory)
    assert found.indices.dtype == torch.int64
    rounding = 4 * np.finfo(np.float32).eps * float(queries.square().sum(1).max())
    np.testing.assert_allclose(found.distances.double().square(), distance**2, rtol=1e-6, atol=rounding)
    if dims == 64:  # where no two are equally near
        np.testing.assert_array_equal(found.indices, index)
        np.testing.assert_allclose(found.distances, distance, rtol=1e-6)


@pytest.mark.parametrize("block", [(3, 4), (64, 7), (5, 1000)])
def test_they_do_not_depend_on_how_the_work_is_cut(monkeypatch: pytest.MonkeyPatch, block: tuple[int, int]) -> None:
    queries, memory = vectors(50, 8, 0), vectors(333, 8, 1)
    whole = find_nearest(queries, memory)
    monkeypatch.setattr(nearest, "_CPU_BLOCK", block)
    cut = find_nearest(queries, memory)
    assert torch.equal(whole.indices, cut.indices)
    assert torch.equal(whole.distances, cut.distances)


def test_what_is_in_the_memory_is_at_no_distance_and_near_duplicates_lose_no_digits() -> None:
    memory = 10 + vectors(2000, 64, 1)  # |x|² is 6,500: its rounding alone is 4e-4
    assert find_nearest(memory[700:800], memory).indices.tolist() == list(range(700, 800))
    assert not find_nearest(memory[700:800], memory).distances.any()
    near = memory[700:800] + 1e-3 * vectors(100, 64, 2)
    np.testing.assert_allclose(find_nearest(near, memory).distances, brute_force(near, memory)[0], rtol=1e-5)


def test_no_query_finds_nothing() -> None:
    found = find_nearest(torch.empty(0, 4), vectors(3, 4, 0))
    assert found.distances.shape == found.indices.shape == (0,)
