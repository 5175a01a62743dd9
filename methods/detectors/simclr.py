"""A classifier that learns from labels and from two views at once (Aggarwal et al. 2024, SimCLR + cross-entropy on ISIC 2020).

    L = CE(softmax(C f(v)), y) + w NT-Xent(g(f(v₁)), g(f(v₂))),   v₁, v₂ random views of an image, CE the mean over both.
It stands beside the anomaly detectors: it is trained on normal and abnormal images, and its score is the probability of the abnormal class.

Paper: ResNet-18, a projection head, the sum of both losses, the views, a weighted sampler, AdamW 1e-3 with decay 1e-4, cosine annealing,
batch 64, 20 epochs, ImageNet's mean and standard deviation. Not in the paper, and ours: that cross-entropy sees both views and its
classifier C the features f, as NT-Xent does; w = 1; weights of the sampler by which both classes are drawn equally often; a rate that falls
each step; random first weights; the epoch is chosen by validation AUROC. Each of several processes contrasts the views of its own share.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from methods.detectors.interface import Scores, SelectionRule, check_images
from methods.detectors.networks.contrastive import ContrastiveConfig, ContrastiveNetwork, anneal
from methods.detectors.networks.modes import evaluation_mode

_CLASSES = 2


class SimCLRConfig(ContrastiveConfig):
    """Hyperparameters; the defaults are the paper's where it gives any."""

    kind: Literal["simclr"] = "simclr"
    contrastive_weight: float = Field(default=1.0, ge=0, description="w, of NT-Xent beside the cross-entropy")


class SimCLR(nn.Module):
    """Tells abnormal from normal images as it was taught by both."""

    selected_by: SelectionRule = "auroc"

    def __init__(self, config: SimCLRConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.epochs = config.epochs
        self.training_batch_size = config.training_batch_size
        self.network = ContrastiveNetwork(config)
        self.classifier = nn.Linear(self.network.encoder.dims, _CLASSES)

    def labelled_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """L of a batch (N, 3, H, W) in [0, 1] and its labels (N,) int64, a scalar; draws from torch's global generator."""
        features = self.network.features_of_views(images)  # (2N, dims)
        classified = nn.functional.cross_entropy(self.classifier(features), labels.repeat(2))
        return classified + self.config.contrastive_weight * self.network.contrast(features)

    def weigh_samples(self, labels: Tensor) -> Tensor:
        """One over the number of samples of its class: each class is drawn half of the time."""
        return 1 / torch.bincount(labels, minlength=_CLASSES).double()[labels]

    def build_optimizer(self) -> torch.optim.Optimizer:
        """AdamW over all weights."""
        return torch.optim.AdamW(self.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay)

    def build_scheduler(self, optimizer: torch.optim.Optimizer, *, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        """Cosine annealing over all steps."""
        return anneal(optimizer, steps=steps)

    def score(self, images: Tensor) -> Scores:
        """Image: the probability, in [0, 1], that it is abnormal; no map."""
        check_images(images, input_size_px=self.input_size_px)
        with evaluation_mode(self):
            logits = self.classifier(self.network.features(images))
        return Scores(image=logits.float().softmax(1)[:, 1], pixel=None)
