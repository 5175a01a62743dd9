"""Modes of a network that last for a block of code."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Normalisation by the statistics that were learnt, whatever mode the network was in; afterwards it is in that mode again."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Gradients pass through the network, its weights get none."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
