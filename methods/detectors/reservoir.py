"""A stream of vectors in bounded memory: all of them while they are few, then as many drawn at random; and the moments of all."""

import torch
from torch import Tensor

_ROWS_AT_ONCE = 8192  # in float64


class Reservoir:
    """Keeps `most` vectors of a stream of any length, each of those that came with the same probability (Vitter 1985, algorithm R).

    Room for all is asked for at once, on the CPU: what is never written takes no memory, and nothing is copied as the vectors become more.

    Args:
        most: vectors kept.
        dims: their length.
    """

    def __init__(self, most: int, dims: int) -> None:
        self.count = 0  # that came
        with torch.inference_mode(False):  # may be written to in every mode
            self._room = torch.empty(most, dims)

    @property
    def kept(self) -> Tensor:
        """(min(count, most), dims) float32 on the CPU; all that came in their order, while there are no more."""
        return self._room[: self.count]

    @property
    def is_complete(self) -> bool:
        """Whether all that came are kept."""
        return self.count <= len(self._room)

    def add(self, vectors: Tensor) -> None:
        """Take in vectors (n, dims) on the CPU; draws from torch's global generator as soon as not all can be kept."""
        fitting = max(0, len(self._room) - self.count)
        first, others = vectors[:fitting], vectors[fitting:]
        self._room[self.count : self.count + len(first)] = first
        self.count += len(first)
        if not len(others):
            return
        ranks = torch.arange(self.count + 1, self.count + 1 + len(others))  # the i-th to come is kept with probability most / i
        place = (torch.rand(len(others), dtype=torch.float64) * ranks).long()
        self.count += len(others)
        accepted = (place < len(self._room)).nonzero()[:, 0]
        last = dict(zip(place[accepted].tolist(), accepted.tolist(), strict=True))  # of several for a place
        if last:
            self._room[list(last)] = others[list(last.values())]


class Moments:
    """Mean and covariance of a stream of vectors, summed up in float64.

    Args:
        dims: length of the vectors.
    """

    def __init__(self, dims: int) -> None:
        self._count = 0
        with torch.inference_mode(False):
            self._sum = torch.zeros(dims, dtype=torch.float64)
            self._products = torch.zeros(dims, dims, dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Take in vectors (n, dims) on the CPU."""
        for part in vectors.split(_ROWS_AT_ONCE):
            x = part.double()
            self._count += len(x)
            self._sum += x.sum(0)
            self._products.addmm_(x.T, x)

    @property
    def mean(self) -> Tensor:
        """(dims,) float64."""
        return self._sum / self._count

    @property
    def covariance(self) -> Tensor:
        """(dims, dims) float64, over n, not n − 1."""
        return self._products / self._count - torch.outer(self.mean, self.mean)
