"""Nearest neighbours by looking at all: exact, and as fast as the products are.

|x − m|² = |x|² − 2 (x·m − |m|²/2), so that the nearest is where x·m − |m|²/2 is largest. The products are computed block by block, small
enough to be reduced to their maxima before they leave the processor's cache; the matrix of all distances never exists.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_CPU_BLOCK = (1024, 512)  # queries × memory: 2 MiB of products
_GPU_BLOCK = (8192, 16384)  # 512 MiB, large enough that launching the work costs nothing


class Neighbours(NamedTuple):
    """The nearest vector of a memory to each query.

    Attributes:
        distances: (n,) Euclidean, of the memory's type.
        indices: (n,) int64, which vector.
    """

    distances: Tensor
    indices: Tensor


def find_nearest(queries: Tensor, memory: Tensor) -> Neighbours:
    """The nearest of the memory's vectors to each query.

    The distance is that to the vector of `indices`, computed from the differences: no digits are lost, however near it is. Of vectors whose
    squared distances to the query differ by less than the rounding of |x|² + |m|² any may be found.

    Args:
        queries: (n, C) float.
        memory: (m, C) of the same type, m at least 1.
    """
    rows, columns = _CPU_BLOCK if memory.device.type == "cpu" else _GPU_BLOCK
    offset = -0.5 * memory.square().sum(1)  # −|m|²/2
    blocks = torch.cat([_find_block(x, memory, offset, columns=columns) for x in queries.split(rows)])
    index = torch.empty_like(blocks)
    for block in blocks.unique().tolist():  # a maximum is found faster than its place: that is looked for in its block alone
        own = (blocks == block).nonzero()[:, 0]
        part = slice(block * columns, (block + 1) * columns)
        index[own] = block * columns + torch.addmm(offset[part], queries[own], memory[part].T).argmax(1)
    return Neighbours(distances=(queries - memory[index]).square().sum(1).sqrt(), indices=index)


def _find_block(x: Tensor, memory: Tensor, offset: Tensor, *, columns: int) -> Tensor:
    """In which block (n,) of the memory x·m − |m|²/2 is largest, for few queries x (n, C)."""
    best, best_block = x.new_full((len(x),), -torch.inf), torch.zeros(len(x), dtype=torch.int64, device=x.device)
    room = x.new_empty(len(x) * min(columns, len(memory)))
    for block, (m, o) in enumerate(zip(memory.split(columns), offset.split(columns), strict=True)):
        products = torch.addmm(o, x, m.T, out=room[: len(x) * len(m)].view(len(x), len(m)))
        found = products.amax(1)
        best_block = torch.where(found > best, block, best_block)
        torch.maximum(best, found, out=best)
    return best_block
