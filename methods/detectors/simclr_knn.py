"""Nearest neighbours in the features of SimCLR, where there are no labels.

The network of `simclr.py` learns by NT-Xent alone from normal images; then the features h of all training images are kept, as they are seen
without a random view. The score is the mean cosine distance 1 − cos(h, h') to the k nearest of them (Bergman et al. 2020, "Deep Nearest
Neighbor Anomaly Detection", with k = 2, on features that others learnt and with the Euclidean distance). Ours: the cosine, which is what
NT-Xent compares by, and the frozen encoder's features rather than their projection, as Chen et al. 2020 (section 4.2) find them better.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from methods.detectors.interface import DetectorError, Scores, SelectionRule, check_images
from methods.detectors.networks.contrastive import ContrastiveConfig, ContrastiveNetwork, anneal
from methods.detectors.networks.lengths import load_any_length
from methods.detectors.networks.modes import evaluation_mode


class SimCLRNeighboursConfig(ContrastiveConfig):
    """Hyperparameters."""

    kind: Literal["simclr-knn"] = "simclr-knn"
    neighbours: int = Field(default=2, ge=1, description="k, nearest training images whose mean distance is the score")
    max_images: int = Field(default=100_000, ge=1, description="training images whose features are kept, drawn at random if there are more")


class SimCLRNeighbours(nn.Module):
    """Learns features by which views of one image are alike, then keeps those of the training images."""

    selected_by: SelectionRule = "loss"
    memory: Tensor

    def __init__(self, config: SimCLRNeighboursConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.epochs = config.epochs
        self.training_batch_size = config.training_batch_size
        self.network = ContrastiveNetwork(config)
        self.register_buffer("memory", torch.empty(0, self.network.encoder.dims))  # rows of length 1
        load_any_length(self, "memory")
        self._observed: list[Tensor] = []

    def loss(self, images: Tensor) -> Tensor:
        """NT-Xent of two random views of each image, a scalar; draws from torch's global generator."""
        return self.network.contrast(self.network.features_of_views(images))

    def build_optimizer(self) -> torch.optim.Optimizer:
        """AdamW over all weights."""
        return torch.optim.AdamW(self.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay)

    def build_scheduler(self, optimizer: torch.optim.Optimizer, *, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        """Cosine annealing over all steps."""
        return anneal(optimizer, steps=steps)

    def observe(self, images: Tensor) -> None:
        """Keep the features of a batch of normal images; when the network is trained."""
        check_images(images, input_size_px=self.input_size_px)
        self._observed.append(self._directions(images).cpu())

    def conclude(self, generator: torch.Generator) -> None:
        """Make the memory, of a random choice where there are too many."""
        features = torch.cat(self._observed) if self._observed else self.memory[:0].cpu()
        self._observed = []
        if len(features) < self.config.neighbours:
            raise DetectorError(f"{self.config.neighbours} nearest neighbours need as many training images, got {len(features)}")
        if len(features) > self.config.max_images:
            features = features[torch.randperm(len(features), generator=generator)[: self.config.max_images]]
        with torch.inference_mode(False):  # tensors that a later training may load over
            self.memory = features.clone().to(self.memory.device)

    def score(self, images: Tensor) -> Scores:
        """Image: mean cosine distance, in [0, 2], to the nearest training images; no map."""
        check_images(images, input_size_px=self.input_size_px)
        if not len(self.memory):
            raise DetectorError("SimCLR's nearest neighbours have no memory yet: train it, or load a bundle")
        similarity = self._directions(images) @ self.memory.T  # (N, n)
        return Scores(image=1 - similarity.topk(self.config.neighbours, dim=1).values.mean(1), pixel=None)

    def _directions(self, images: Tensor) -> Tensor:
        """Features (N, dims) of length 1."""
        with evaluation_mode(self):
            return nn.functional.normalize(self.network.features(images).float(), dim=1)
