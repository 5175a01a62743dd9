"""Which images come in which order, and which of them a rank takes."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from methods.training.ranks import Rank


def mix_seeds(*numbers: int) -> int:
    """A seed from several numbers; trailing zeros make no difference."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class EpochSampler(Sampler[int]):
    """A new order each epoch that depends on the seed and the number of the epoch alone, not on the epochs before.

    The epoch is asked for: Lightning announces (`set_epoch`) the first one after a resume too late.

    Args:
        count: of images.
        seed: of the order.
        epoch: tells the number of the epoch.
        weights: how often, in proportion, each image is drawn, (count,) float64: `count` draws with replacement, as those of torch's
            `WeightedRandomSampler`; None: every image once.
    """

    def __init__(self, count: int, *, seed: int, epoch: Callable[[], int], weights: Tensor | None = None) -> None:
        self._count, self._seed, self._epoch, self._weights = count, seed, epoch, weights

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(mix_seeds(self._seed, self._epoch()))
        if self._weights is None:
            yield from torch.randperm(self._count, generator=generator).tolist()
        else:
            yield from torch.multinomial(self._weights, self._count, replacement=True, generator=generator).tolist()


class SharedBatches(Sampler[list[int]]):
    """A rank's share of every batch of an order: the same images make up a step whatever the number of ranks.

    Shares differ by one image at most. A last batch of fewer images than ranks is taken whole by each.

    Args:
        order: of all images.
        size: of a batch of all ranks together.
        rank: whose shares these are.
    """

    def __init__(self, order: EpochSampler, *, size: int, rank: Rank) -> None:
        self._order, self._size, self._rank = order, size, rank

    def __len__(self) -> int:
        return -(-len(self._order) // self._size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self._order)
        for first in range(0, len(order), self._size):
            batch = order[first : first + self._size]
            yield batch[self._rank.index :: self._rank.count] if len(batch) >= self._rank.count else batch

    def images(self, batch_index: int) -> int:
        """How many images all ranks together take in a batch."""
        return min(self._size, len(self._order) - batch_index * self._size)

    def weight(self, batch_index: int) -> float:
        """What a rank's mean loss counts for, so that the average over the ranks is the mean over the images."""
        images, ranks = self.images(batch_index), self._rank.count
        if images < ranks:
            return 1.0
        return len(range(self._rank.index, images, ranks)) * ranks / images
