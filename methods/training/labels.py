"""Training on images of both labels."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from methods.detectors.interface import Learner, LearnsFromLabels
from methods.training.outcome import TrainingError

Batch = Tensor | list[Tensor]  # images (N, 3, H, W), or those and their labels (N,) int64
_FEWEST_OF_A_CLASS = 2


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Images (3, H, W), each with its label, 0 normal, 1 abnormal."""

    def __init__(self, images: Dataset[Tensor], labels: np.ndarray) -> None:
        self._images, self._labels = images, labels.astype(int).tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._images[index], self._labels[index]


def check_classes(labels: np.ndarray) -> None:
    """Refuse training labels (n,) from which nothing can be told apart.

    Raises:
        TrainingError: one that is neither 0 nor 1, or a class with fewer than two samples.
    """
    if unknown := sorted(set(np.unique(labels).tolist()) - {0, 1}):
        raise TrainingError(f"training labels must be 0 (normal) or 1 (abnormal), got {unknown}")
    counts = {name: int((labels == label).sum()) for label, name in enumerate(("normal", "abnormal"))}
    if few := [name for name, count in counts.items() if count < _FEWEST_OF_A_CLASS]:
        there = " and ".join(f"{count} {name} {'sample' if count == 1 else 'samples'}" for name, count in counts.items())
        # a single abnormal one says that the split already trains on both
        more = f"give more {' and '.join(few)} samples"
        mend = more if counts["abnormal"] else "set `split.train_on: both`, with abnormal samples to deal"
        raise TrainingError(
            f"the training split has {there}; a detector that learns from labels needs at least {_FEWEST_OF_A_CLASS} of each: {mend}, or "
            "choose one that learns from normal samples alone"
        )


def batch_loss(detector: Learner, batch: Batch) -> Tensor:
    """The mean training loss of a batch, a scalar; of images and labels for a detector that learns from labels."""
    if isinstance(detector, LearnsFromLabels):
        images, labels = batch
        return detector.labelled_loss(images, labels)
    assert isinstance(batch, Tensor)
    return detector.loss(batch)


def images_of(batch: Batch) -> Tensor:
    """The images (N, 3, H, W) of a batch."""
    return batch if isinstance(batch, Tensor) else batch[0]


def draw_weights(detector: Learner, labels: np.ndarray | None) -> Tensor | None:
    """How often, in proportion, each training image is drawn, (n,) float64; None: each once an epoch."""
    if not isinstance(detector, LearnsFromLabels) or labels is None:
        return None
    weights = detector.weigh_samples(torch.from_numpy(labels.astype(np.int64))).double()
    return None if bool((weights == weights[0]).all()) else weights
