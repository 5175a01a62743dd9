"""Deep IF (Ouardini et al. 2019, "Towards Practical Unsupervised Anomaly Detection on Retinal Images"): an isolation forest on the pooled
features of a pretrained network.

A tree of the forest (Liu, Ting & Zhou 2008, "Isolation Forest") splits its samples at random values of random features until each is alone
or the tree is ⌈log₂ samples⌉ deep. What is soon alone is anomalous (eq. 2):
    s(x) = 2^(−E[h(x)] / c(samples)),   h = edges to x's leaf + c(training samples in the leaf),   c(n) = 2 H(n − 1) − 2 (n − 1) / n.

Forest as in that paper and in scikit-learn, which grows it here: 100 trees of 256 samples. The forest sees normal images only, and features
are not scaled, by the tested images least of all. Ours: the bundled backbone. What is kept are the nodes as arrays, so that a bundle needs
no pickle and scoring no scikit-learn.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from methods.detectors.interface import DetectorError, Scores, check_images
from methods.detectors.networks.backbones import BackboneConfig, build_backbone
from methods.detectors.networks.grids import pool_places
from methods.detectors.networks.lengths import load_any_length


class DeepIFConfig(BaseModel):
    """Hyperparameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["deep-if"] = "deep-if"
    input_size_px: int = Field(default=224, ge=32, multiple_of=32)
    backbone: BackboneConfig = BackboneConfig(layers=("block14",))
    trees: int = Field(default=100, ge=1)
    samples: int = Field(default=256, ge=2, description="that each tree is grown on, drawn without replacement; all if there are no more")
    batch_size: int = Field(default=16, ge=1, description="images scored at once")

    @property
    def map_size_px(self) -> int | None:
        """None: it has no maps."""
        return None


class DeepIF(nn.Module):
    """Random trees over normal features; what few splits set apart is anomalous."""

    roots: Tensor
    feature: Tensor
    threshold: Tensor
    below: Tensor
    above: Tensor
    path_length: Tensor
    normaliser: Tensor

    def __init__(self, config: DeepIFConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.backbone = build_backbone(config.backbone)
        # the nodes of all trees in a row; the numbers of nodes count along it, and a leaf is its own child
        for name in ("roots", "feature", "below", "above"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64))
        for name in ("threshold", "path_length"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))
        self.register_buffer("normaliser", torch.ones(1, dtype=torch.float64))
        load_any_length(self, "roots", "feature", "threshold", "below", "above", "path_length")
        self._observed: list[Tensor] = []

    def features(self, images: Tensor) -> Tensor:
        """Latents (N, C) float32 of images (N, 3, H, W) in [0, 1]: each layer's mean over the places, joined."""
        return pool_places(self.backbone(images)).float()

    def observe(self, images: Tensor) -> None:
        """Keep the latents of a batch of normal images."""
        check_images(images, input_size_px=self.input_size_px)
        self._observed.append(self.features(images).cpu())

    def conclude(self, generator: torch.Generator) -> None:
        """Grow the forest.

        Raises:
            DetectorError: fewer than two images.
        """
        from sklearn.ensemble import IsolationForest  # here, because it takes seconds to import and scoring does without

        latents = torch.cat(self._observed) if self._observed else torch.empty(0)
        self._observed = []
        if len(latents) < 2:
            raise DetectorError(f"an isolation forest needs at least 2 training images, got {len(latents)}")
        samples, seed = min(self.config.samples, len(latents)), int(torch.randint(2**31 - 1, (1,), generator=generator))
        forest = IsolationForest(n_estimators=self.config.trees, max_samples=samples, random_state=seed).fit(latents.numpy())
        self._keep([estimator.tree_ for estimator in forest.estimators_], samples=samples)

    def _keep(self, trees: list, *, samples: int) -> None:
        """Take over scikit-learn's trees."""
        counts = np.array([tree.node_count for tree in trees])
        roots = counts.cumsum() - counts
        own = np.arange(counts.sum())
        split = np.concatenate([tree.children_left for tree in trees]) >= 0
        first = roots.repeat(counts)  # of each node's tree
        nodes = {
            "roots": roots,
            "feature": np.where(split, np.concatenate([tree.feature for tree in trees]), 0),
            "threshold": np.where(split, np.concatenate([tree.threshold for tree in trees]), 0.0),
            "below": np.where(split, first + np.concatenate([tree.children_left for tree in trees]), own),
            "above": np.where(split, first + np.concatenate([tree.children_right for tree in trees]), own),
            "path_length": np.concatenate(
                [tree.compute_node_depths() - 1 + average_path_length(tree.n_node_samples) for tree in trees]  # its root is 1 deep
            ),
            "normaliser": average_path_length(np.array([samples])),
        }
        with torch.inference_mode(False):  # tensors that a later training may load over
            for name, values in nodes.items():
                room = self.get_buffer(name)
                setattr(self, name, torch.from_numpy(values).to(room.device, room.dtype))

    def score(self, images: Tensor) -> Scores:
        """Image: s in (0, 1), about ½ where nothing is set apart sooner than else; no map."""
        check_images(images, input_size_px=self.input_size_px)
        if not len(self.roots):
            raise DetectorError("Deep IF has no forest yet: train it, or load a bundle")
        return Scores(image=self.isolate(self.features(images)).float(), pixel=None)

    def isolate(self, x: Tensor) -> Tensor:
        """s (N,) float64 of features (N, C): minus scikit-learn's `score_samples`."""
        node = self.roots.expand(len(x), -1)  # (N, trees)
        for _ in range((self.config.samples - 1).bit_length()):  # ⌈log₂ samples⌉
            goes_below = x.gather(1, self.feature[node]) <= self.threshold[node]  # compared in float64
            node = torch.where(goes_below, self.below[node], self.above[node])
        return torch.exp2(-self.path_length[node].mean(1) / self.normaliser)


def average_path_length(samples: np.ndarray) -> np.ndarray:
    """c(n), the mean length of an unsuccessful search in a binary tree of n samples; H(n − 1) ≈ ln(n − 1) + γ, but exact for n ≤ 2.

    Args:
        samples: (...) numbers of samples, at least 1.

    Returns:
        (...) float64.
    """
    n = np.maximum(samples, 2).astype(float)
    long = 2 * (np.log(n - 1) + np.euler_gamma) - 2 * (n - 1) / n
    return np.where(samples > 2, long, samples - 1.0)
