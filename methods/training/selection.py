"""Which epoch is kept: what is measured after each one on validation, which is never the test split."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from methods.detectors.interface import Detector, Learner, LearnsFromLabels, Scores, SelectionRule
from methods.evaluation.histograms import count_scores
from methods.evaluation.metrics import roc_auc
from methods.training.batches import mix_seeds
from methods.training.labels import LabelledImages, batch_loss, images_of
from methods.training.ranks import Rank, gather


@dataclass(frozen=True)
class Validation:
    """Labelled images on which the best epoch is chosen: never the test split.

    Attributes:
        images: dataset of (3, H, W) float32 in [0, 1].
        labels: (n,) 0 normal, 1 abnormal.
    """

    images: Dataset[Tensor]
    labels: np.ndarray


def score_all(detector: Detector, images: Dataset[Tensor]) -> Scores:
    """Scores of a dataset in its order, in batches of the detector's size, on the CPU: image (n,), pixel (n, H, W)."""
    device = device_of(detector)
    batches = []
    with torch.inference_mode():
        for batch in DataLoader(images, batch_size=detector.batch_size):
            batches.append(detector.score(batch.to(device)))
    maps = [scores.pixel.cpu() for scores in batches if scores.pixel is not None]
    return Scores(image=torch.cat([scores.image.cpu() for scores in batches]), pixel=torch.cat(maps) if maps else None)


def device_of(detector: Detector) -> torch.device:
    """Where its weights are."""
    return next((tensor.device for tensor in detector.state_dict().values()), torch.device("cpu"))  # a GPU while it is trained


class Selection:
    """Keeps the weights of the best epoch; all ranks measure together and choose the same."""

    def __init__(
        self, detector: Learner, validation: Validation | None, patience: int | None, rank: Rank, *, rule: SelectionRule, seed: int
    ) -> None:
        self._detector = detector
        self._validation = validation
        self._by_labels = isinstance(detector, LearnsFromLabels)
        labels = validation.labels if validation is not None else np.empty(0, int)
        self._measured = np.flatnonzero((labels == 0) | self._by_labels)  # images whose loss is measured
        self._by_auroc = rule == "auroc" and validation is not None and len(np.unique(validation.labels)) == 2
        self.rule = self._describe(rule)
        self._patience = patience
        self._rank = rank
        self._seed = seed
        self._best = -math.inf
        self.best_epoch = 0
        self.best_state: dict[str, Tensor] = {}
        self.curve: list[dict[str, float]] = []

    def _describe(self, rule: SelectionRule) -> str:
        if self._by_auroc:
            return "highest image AUROC on validation"
        which = "" if self._by_labels else "normal "
        if not len(self._measured):
            return f"lowest training loss (no {which}images in validation)"
        return f"lowest loss on {which}validation images{' (validation lacks a class)' if rule == 'auroc' else ''}"

    def end_epoch(self, epoch: int, loss: float, *, is_complete: bool) -> None:
        """Measure and, when it is the best so far, keep; one before the last stage has its training loss written down, no more."""
        entry = {"epoch": float(epoch), "loss": loss}
        self.curve.append(entry)
        if not is_complete:
            return
        quality = -loss
        if self._validation is not None and self._by_auroc:
            scores = self._score(self._validation)
            counts = count_scores(scores, self._validation.labels, np.zeros(len(scores), int))
            quality = entry["validation_auroc"] = float(roc_auc(counts.normal.sum(0), counts.abnormal.sum(0)))
        elif self._validation is not None and len(self._measured):
            entry["validation_loss"] = self._measure_loss(self._validation)
            quality = -entry["validation_loss"]
        if quality > self._best:
            self._best, self.best_epoch = quality, epoch
            self.best_state = {name: copy.deepcopy(tensor) for name, tensor in self._detector.state_dict().items()}

    def _score(self, validation: Validation) -> np.ndarray:
        """Image scores (n,) of validation; each rank scores every `count`-th image."""
        n, ranks = len(validation.labels), self._rank.count
        own = range(self._rank.index, n, ranks)
        scores = torch.full((-(-n // ranks),), torch.nan)
        if own:
            scores[: len(own)] = score_all(self._detector, Subset(validation.images, own)).image
        return gather(scores, device_of(self._detector)).T.flatten()[:n].numpy()  # (ranks, n / ranks) to the images' order

    def _measure_loss(self, validation: Validation) -> float:
        """Mean loss of the measured images, with the same noise after every epoch; each rank measures every `count`-th image."""
        device, total = device_of(self._detector), torch.zeros(2)  # sum of losses, images
        own = self._measured[self._rank.index :: self._rank.count].tolist()
        images = LabelledImages(validation.images, validation.labels) if self._by_labels else validation.images
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(mix_seeds(self._seed, self._rank.index))
            for batch in DataLoader(Subset(images, own), batch_size=self._detector.training_batch_size) if own else ():
                batch = [part.to(device) for part in batch] if self._by_labels else batch.to(device)
                count = len(images_of(batch))
                total += torch.tensor([float(batch_loss(self._detector, batch)) * count, count])
        loss, count = gather(total, device).sum(0).tolist()
        return float(loss / count)

    @property
    def is_out_of_patience(self) -> bool:
        """Whether too many epochs have passed since the best; none before the last stage counts."""
        return self._patience is not None and self.best_epoch > 0 and len(self.curve) - self.best_epoch >= self._patience

    def state(self) -> dict[str, Any]:
        """What a training that is taken up again must know."""
        return {"best": self._best, "best_epoch": self.best_epoch, "best_state": self.best_state, "curve": self.curve}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self._best, self.best_epoch = state["best"], state["best_epoch"]
        self.best_state, self.curve = state["best_state"], list(state["curve"])
