"""PatchCore (Roth et al. 2022, "Towards Total Recall in Industrial Anomaly Detection").

A memory of locally aggregated features of normal images; the score of a place is its distance to the nearest of them.

Ours, where it departs from the paper (WideResNet-50-2, layers 2 and 3): the backbone and its early blocks, which see texture and stain
rather than objects, on one grid whatever their strides; features
whitened with the mean and covariance of the training set, so that the distance is Mahalanobis's and no direction of large normal
variation hides a small abnormal one; the memory has a fixed size, found among a random share of all patches; the image score is the
mean of a share of the largest distances, not the reweighted maximum.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from methods.detectors.coreset import select_coreset
from methods.detectors.interface import DetectorError, Scores, check_images
from methods.detectors.nearest import find_nearest
from methods.detectors.networks.backbones import BackboneConfig, build_backbone
from methods.detectors.networks.grids import average_neighbours, join_on_grid
from methods.detectors.networks.lengths import load_any_length
from methods.detectors.networks.smoothing import smooth

_RIDGE = 1e-2  # added to the covariance, as a share of the mean variance: directions that hardly vary are noise


class PatchCoreConfig(BaseModel):
    """Hyperparameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["patchcore"] = "patchcore"
    input_size_px: int = Field(default=256, ge=64, multiple_of=32)
    backbone: BackboneConfig = BackboneConfig(layers=("block2", "block4"))
    grid_px: int = Field(default=8, ge=1, description="pixels, each way, between the places that are compared")
    memory_size: int = Field(default=2048, ge=1, description="feature vectors kept")
    candidates: int = Field(default=40_000, ge=1, description="patches, drawn at random from all, among which the memory is chosen")
    projection_dims: int | None = Field(default=64, ge=1, description="dimensions in which the memory is chosen; null for all")
    smoothing_sigma_px: float = Field(default=4.0, ge=0, description="of the Gaussian over the map, at input size (paper: 4)")
    image_share: float = Field(default=0.03, gt=0, le=1, description="share of places whose highest mean is the image score")
    batch_size: int = Field(default=4, ge=1, description="images scored at once; four stay in a CPU's cache")

    @model_validator(mode="after")
    def _fits(self) -> "PatchCoreConfig":
        if self.input_size_px % self.grid_px:
            raise ValueError(f"expected grid_px to divide input_size_px {self.input_size_px}, got {self.grid_px}")
        return self

    @property
    def map_size_px(self) -> int | None:
        """Height and width of its anomaly maps; None for a detector without maps."""
        return self.input_size_px


class PatchCore(nn.Module):
    """Nearest-neighbour distance to a memory of normal features."""

    def __init__(self, config: PatchCoreConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.backbone = build_backbone(config.backbone)
        dims = sum(self.backbone.channels)
        self.register_buffer("mean", torch.zeros(dims))
        self.register_buffer("whitening", torch.eye(dims))
        self.register_buffer("memory", torch.empty(0, dims))
        load_any_length(self, "memory")
        self._observed: list[Tensor] = []

    def features(self, images: Tensor) -> Tensor:
        """Locally aware patch features (N, h, w, C): 3 × 3 averages of each layer on one grid, joined (paper, section 3.1)."""
        layers = [average_neighbours(layer) for layer in self.backbone(images)]
        return join_on_grid(layers, side=self.input_size_px // self.config.grid_px)

    def observe(self, images: Tensor) -> None:
        """Keep the features of a batch of normal images."""
        check_images(images, input_size_px=self.input_size_px)
        self._observed.append(self.features(images).flatten(0, 2).contiguous())

    def conclude(self, generator: torch.Generator) -> None:
        """Whiten, draw candidates and choose the memory among them."""
        if not self._observed:
            raise DetectorError("PatchCore has seen no training image; the training split is empty")
        patches = torch.cat(self._observed)  # (n, C)
        self._observed = []
        self.mean = patches.mean(0)
        self.whitening = _whitening(patches - self.mean)
        drawn = torch.randperm(len(patches), generator=generator)[: self.config.candidates]
        candidates = (patches[drawn] - self.mean) @ self.whitening
        chosen = select_coreset(candidates, size=self.config.memory_size, generator=generator, projection_dims=self.config.projection_dims)
        self.memory = candidates[chosen].contiguous()

    def score(self, images: Tensor) -> Scores:
        """Pixel: Mahalanobis distance to the memory over √C, bilinear and smoothed; image: mean of the largest patch distances."""
        check_images(images, input_size_px=self.input_size_px)
        if not len(self.memory):
            raise DetectorError("PatchCore has no memory yet: train it, or load a bundle")
        patches = (self.features(images) - self.mean) @ self.whitening  # (N, h, w, C)
        distance = self._nearest(patches.flatten(0, 2)).view(patches.shape[:3])  # (N, h, w)
        places = distance.flatten(1)
        worst = places.topk(max(1, round(self.config.image_share * places.shape[1])), dim=1).values
        pixel = nn.functional.interpolate(distance[:, None], images.shape[-2:], mode="bilinear", align_corners=False)
        return Scores(image=worst.mean(1), pixel=smooth(pixel, sigma_px=self.config.smoothing_sigma_px)[:, 0])

    def _nearest(self, patches: Tensor) -> Tensor:
        """Root mean squared difference (n,) of patches (n, C) to the nearest memory vector."""
        return find_nearest(patches, self.memory).distances / patches.shape[1] ** 0.5


def _whitening(centred: Tensor) -> Tensor:
    """The matrix (C, C) after which features (n, C) of mean 0 have, but for the ridge, unit covariance."""
    covariance = centred.T @ centred / len(centred)
    ridge = _RIDGE * covariance.diagonal().mean()
    values, vectors = torch.linalg.eigh(covariance + ridge * torch.eye(len(covariance)))
    return vectors / values.clamp_min(1e-12).sqrt()
