"""Contrastive learning of two views (SimCLR; Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations")."""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from methods.detectors.networks.resnet import ResNet, ResNetConfig
from methods.detectors.networks.views import ViewConfig, draw_views

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ContrastiveConfig(BaseModel):
    """What a detector that learns from two views has in common with the others of its kind.

    Aggarwal et al. 2024 give ResNet-18, the views, AdamW's rate and decay, epochs and batch; temperature and width of the projection are
    those of SimCLR's public code; the size of the images is ours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_size_px: int = Field(default=224, ge=32)
    encoder: ResNetConfig = ResNetConfig()
    views: ViewConfig = ViewConfig()
    projection_dims: int = Field(default=128, ge=1, description="in which views are compared")
    temperature: float = Field(default=0.1, gt=0, description="τ of NT-Xent")
    learning_rate: float = Field(default=1e-3, gt=0, description="at first; it falls to 0 along half a cosine over all steps")
    weight_decay: float = Field(default=1e-4, ge=0)
    epochs: int = Field(default=20, ge=1)
    training_batch_size: int = Field(default=64, ge=2, description="images, each in two views; all others of a batch are negatives")
    batch_size: int = Field(default=16, ge=1, description="images scored at once")

    @property
    def map_size_px(self) -> int | None:
        """None: it has no maps."""
        return None


def nt_xent(first: Tensor, second: Tensor, *, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy (Chen et al. 2020, eq. 1 and algorithm 1), a scalar.

    The mean over all 2N projections z of −log(exp(sim(z, z⁺)/τ) / Σ exp(sim(z, z')/τ)), z⁺ the other view of the same image, z' every
    projection but z itself, sim the cosine.

    Args:
        first, second: (N, D) projections of two views of N images.
        temperature: τ.
    """
    z = nn.functional.normalize(torch.cat([first, second]).float(), dim=1)  # (2N, D)
    with torch.autocast(z.device.type, enabled=False):  # τ magnifies what half precision would round
        similarity = z @ z.T / temperature
    similarity = similarity.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(first))
    return nn.functional.cross_entropy(similarity, partner)


class ContrastiveNetwork(nn.Module):
    """An encoder f and a projection head g = W₂ ReLU(W₁ ·), which only the contrastive loss looks through."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ResNet(config.encoder)
        dims = self.encoder.dims
        self.projection = nn.Sequential(nn.Linear(dims, dims), nn.ReLU(), nn.Linear(dims, config.projection_dims))
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """h = f(x), (N, dims), of images (N, 3, H, W) in [0, 1]."""
        return self.encoder((images - self.mean) / self.std)

    def features_of_views(self, images: Tensor) -> Tensor:
        """(2N, dims): of one random view of each image, then of another; the encoder normalises over both together."""
        return self.features(torch.cat([draw_views(images, self.config.views), draw_views(images, self.config.views)]))

    def contrast(self, features: Tensor) -> Tensor:
        """NT-Xent of features (2N, dims) as of `features_of_views`, a scalar."""
        first, second = self.projection(features).chunk(2)
        return nt_xent(first, second, temperature=self.config.temperature)


def anneal(optimizer: torch.optim.Optimizer, *, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Half a cosine from the optimiser's rate to 0, without restarts."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
