"""Greedy k-centre selection: the few vectors from which none of the others is far."""

import torch
from torch import Tensor


def select_coreset(vectors: Tensor, *, size: int, generator: torch.Generator, projection_dims: int | None = None) -> Tensor:
    """Indices of a coreset by the farthest-first traversal.

    Starts at a random vector and takes, again and again, the vector farthest from all taken so far; a 2-approximation of the
    k-centre optimum (Gonzalez 1985). Used by PatchCore (Roth et al. 2022, algorithm 1), as there optionally on a random projection,
    which keeps distances approximately (Johnson and Lindenstrauss).

    Args:
        vectors: (n, d) float32.
        size: how many to take; all of them when there are no more.
        generator: of the starting point and the projection.
        projection_dims: dimensions to project to before selecting; None selects in the full space.

    Returns:
        (min(size, n),) int64 indices in the order in which they were taken.
    """
    n = len(vectors)
    if size >= n:
        return torch.arange(n)
    if projection_dims is not None and projection_dims < vectors.shape[1]:
        vectors = vectors @ torch.randn(vectors.shape[1], projection_dims, generator=generator)
    squared_norms = vectors.square().sum(1)
    taken = torch.empty(size, dtype=torch.int64)
    farthest = int(torch.randint(n, (1,), generator=generator))
    nearest = torch.full((n,), torch.inf)
    for i in range(size):
        taken[i] = farthest
        distance = squared_norms - 2 * (vectors @ vectors[farthest]) + squared_norms[farthest]  # squared; rounding may go below 0
        torch.minimum(nearest, distance, out=nearest)
        nearest[farthest] = -torch.inf  # never again, also among equal vectors
        farthest = int(nearest.argmax())
    return taken
