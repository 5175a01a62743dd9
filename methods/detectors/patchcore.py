"""PatchCore (Roth et al. 2022, "Towards Total Recall in Industrial Anomaly Detection").

A memory M of locally aggregated features of normal images; the score of a place is its distance to the nearest of them. With
`image_score: reweighted` an image scores the largest distance s* of its patches, less where the memory is sparse (eq. 6 and 7):
    s = (1 − exp |m_test − m*| / Σ_{m ∈ N_b(m*)} exp |m_test − m|) s*,   s* = |m_test − m*|,
m_test being that patch, m* the nearest of the memory and N_b(m*) the b nearest of the memory to m*, itself among them.

Paper: WideResNet-50-2, layers 2 and 3; 3 × 3 averages; a memory of a tenth of all patches (also a hundredth); 224 px; Gaussian of σ 4
over the map. deploy/configs/papers/patchcore-roth-2022.yaml sets all that. The paper does not say b; public implementations take 9 or 3,
the authors' own code the largest distance alone. That code also averages the joined features over neighbouring channels to 1,024
dimensions and chooses the memory in a projection to 128; of these only the projection is done here.

Ours, where the defaults depart from the paper: the backbone and its early blocks, which see texture and stain
rather than objects, on one grid whatever their strides; features
whitened with the mean and covariance of the training set, so that the distance is Mahalanobis's and no direction of large normal
variation hides a small abnormal one (`whiten`); the memory has a fixed size, found among a random share of all patches; the image score is
the mean of a share of the largest distances. Always: distances are over √C, which changes no order; the weight of eq. 7 is of distances as
they are. Of more patches than `candidates_max` as many drawn at random stand for all, but in the mean and covariance.
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
from methods.detectors.reservoir import Moments, Reservoir

_RIDGE = 1e-2  # added to the covariance, as a share of the mean variance: directions that hardly vary are noise


class PatchCoreConfig(BaseModel):
    """Hyperparameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["patchcore"] = "patchcore"
    input_size_px: int = Field(default=256, ge=64, multiple_of=32)
    backbone: BackboneConfig = BackboneConfig(layers=("block2", "block4"))
    grid_px: int = Field(default=8, ge=1, description="pixels, each way, between the places that are compared")
    whiten: bool = Field(default=True, description="whether distances are Mahalanobis's; else, as in the paper, Euclid's of the features")
    memory_size: int = Field(default=2048, ge=1, description="feature vectors kept")
    memory_share: float | None = Field(
        default=None, gt=0, le=1, description="share of all patches that are kept, in place of memory_size (paper: 0.1)"
    )
    candidates: int | None = Field(
        default=40_000, ge=1, description="patches, drawn at random from all, among which the memory is chosen; null for all (paper)"
    )
    candidates_max: int = Field(
        default=500_000, ge=1, description="patches held while training, at least `candidates`; of more, as many drawn at random"
    )
    projection_dims: int | None = Field(default=64, ge=1, description="dimensions in which the memory is chosen; null for all")
    smoothing_sigma_px: float = Field(default=4.0, ge=0, description="of the Gaussian over the map, at input size (paper: 4)")
    image_score: Literal["share", "reweighted"] = Field(
        default="share", description="mean of the largest distances, or the largest one reweighted (paper, eq. 7)"
    )
    image_share: float = Field(default=0.03, gt=0, le=1, description="share of places whose highest mean is the image score")
    neighbours: int = Field(default=9, ge=2, description="b, vectors of the memory that a reweighted score looks at")
    batch_size: int = Field(default=4, ge=1, description="images scored at once; four stay in a CPU's cache")

    @model_validator(mode="after")
    def _fits(self) -> "PatchCoreConfig":
        if self.input_size_px % self.grid_px:
            raise ValueError(f"expected grid_px to divide input_size_px {self.input_size_px}, got {self.grid_px}")
        if self.image_score == "reweighted" and self.memory_share is None and self.memory_size < 2:
            raise ValueError("a reweighted image score compares vectors of the memory: expected memory_size of at least 2, got 1")
        return self

    @property
    def map_size_px(self) -> int | None:
        """Height and width of its anomaly maps; None for a detector without maps."""
        return self.input_size_px


class PatchCore(nn.Module):
    """Nearest-neighbour distance to a memory of normal features."""

    mean: Tensor
    whitening: Tensor
    memory: Tensor

    def __init__(self, config: PatchCoreConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.backbone = build_backbone(config.backbone)
        self.dims = sum(self.backbone.channels)
        if config.whiten:
            self.register_buffer("mean", torch.zeros(self.dims))
            self.register_buffer("whitening", torch.eye(self.dims))
        self.register_buffer("memory", torch.empty(0, self.dims))
        load_any_length(self, "memory")
        self._observed: tuple[Reservoir, Moments] | None = None

    def features(self, images: Tensor) -> Tensor:
        """Locally aware patch features (N, h, w, C): 3 × 3 averages of each layer on one grid, joined (paper, section 3.1)."""
        layers = [average_neighbours(layer) for layer in self.backbone(images)]
        return join_on_grid(layers, side=self.input_size_px // self.config.grid_px)

    def observe(self, images: Tensor) -> None:
        """Keep the features of a batch of normal images, or some of them; then it draws from torch's global generator."""
        check_images(images, input_size_px=self.input_size_px)
        patches = self.features(images).flatten(0, 2).cpu()
        if self._observed is None:
            most = max(self.config.candidates_max, self.config.candidates or 0)
            self._observed = Reservoir(most, self.dims), Moments(self.dims)
        reservoir, moments = self._observed
        reservoir.add(patches)
        if self.config.whiten:
            moments.add(patches)

    def conclude(self, generator: torch.Generator) -> None:
        """Whiten, draw candidates and choose the memory among them.

        Raises:
            DetectorError: nothing was observed, or too little for the image score.
        """
        if self._observed is None:
            raise DetectorError("PatchCore has seen no training image; the training split is empty")
        (reservoir, moments), self._observed = self._observed, None
        patches, config, device = reservoir.kept, self.config, self.memory.device  # (n, C)
        if config.whiten:
            mean, whitening = _centre_and_whiten(patches, None if reservoir.is_complete else moments)
        if config.candidates is not None:
            patches = patches[torch.randperm(len(patches), generator=generator)[: config.candidates]]
        if config.whiten:
            patches = patches @ whitening
        size = config.memory_size if config.memory_share is None else max(1, round(config.memory_share * reservoir.count))
        chosen = select_coreset(patches, size=size, generator=generator, projection_dims=config.projection_dims)
        if config.image_score == "reweighted" and len(chosen) < 2:
            raise DetectorError(f"a reweighted image score needs a memory of at least 2 vectors; {reservoir.count} patches gave 1")
        with torch.inference_mode(False):  # tensors that a later training may load over
            self.memory = patches[chosen].to(device)
            if config.whiten:
                self.mean, self.whitening = mean.clone().to(device), whitening.clone().to(device)

    def score(self, images: Tensor) -> Scores:
        """Pixel: distance to the memory over √C, bilinear and smoothed; image: as `image_score` says, of the patches' distances."""
        check_images(images, input_size_px=self.input_size_px)
        if not len(self.memory):
            raise DetectorError("PatchCore has no memory yet: train it, or load a bundle")
        patches = self.features(images)  # (N, h, w, C)
        if self.config.whiten:
            patches = (patches - self.mean) @ self.whitening
        nearest = find_nearest(patches.flatten(0, 2), self.memory)
        distance = (nearest.distances / self.dims**0.5).view(patches.shape[:3])  # (N, h, w)
        places = distance.flatten(1)
        if self.config.image_score == "share":
            image = places.topk(max(1, round(self.config.image_share * places.shape[1])), dim=1).values.mean(1)
        else:
            largest, where = places.max(1)
            own = torch.arange(len(where), device=where.device), where
            m_test, m_star = patches.flatten(1, 2)[own], nearest.indices.view_as(places)[own]
            image = largest * weigh_by_neighbours(m_test, self.memory, m_star, neighbours=self.config.neighbours)
        pixel = nn.functional.interpolate(distance[:, None], images.shape[-2:], mode="bilinear", align_corners=False)
        return Scores(image=image, pixel=smooth(pixel, sigma_px=self.config.smoothing_sigma_px)[:, 0])


def weigh_by_neighbours(m_test: Tensor, memory: Tensor, m_star: Tensor, *, neighbours: int) -> Tensor:
    """The factor of eq. 7: 1 less the share of m* in the softmax of the distances to it and its neighbours.

    Args:
        m_test: (N, C) the patch of each image that is farthest from the memory.
        memory: (m, C) M, at least 2.
        m_star: (N,) int64, which of the memory is nearest to each.
        neighbours: b; all of the memory where it has no more.

    Returns:
        (N,) at least 1 − 1 / b, as m* is the nearest, and below 1.
    """
    weights = []
    for patch, star in zip(m_test, memory[m_star], strict=True):  # one at a time: nothing depends on the batch
        # from the differences: the products of large vectors would not tell m* from its neighbours
        from_star = torch.cdist(star[None], memory, compute_mode="donot_use_mm_for_euclid_dist")[0]
        around = memory[from_star.topk(min(neighbours, len(memory)), largest=False).indices]  # N_b(m*)
        distances = (around - patch).square().sum(1).sqrt()
        nearest = (star - patch).square().sum().sqrt()
        weights.append(-torch.expm1(nearest - distances.logsumexp(0)))
    return torch.stack(weights) if weights else m_test.new_empty(0)


def _centre_and_whiten(patches: Tensor, moments: Moments | None) -> tuple[Tensor, Tensor]:
    """The mean (C,), which is taken off the patches (n, C) where they are, and the whitening; by moments where patches lack."""
    if moments is None:  # in single precision, to the bit what it was before there were moments
        mean = patches.mean(0)
        patches -= mean
        return mean, _whitening(patches.T @ patches / len(patches))
    mean = moments.mean.float()
    patches -= mean
    return mean, _whitening(moments.covariance).float()


def _whitening(covariance: Tensor) -> Tensor:
    """The matrix (C, C) after which features of mean 0 and this covariance (C, C) have, but for the ridge, unit covariance."""
    ridge = _RIDGE * covariance.diagonal().mean()
    values, vectors = torch.linalg.eigh(covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype))
    return vectors / values.clamp_min(1e-12).sqrt()
