"""A one-class support vector machine on pretrained latents: spatial means of layers of a backbone.

The score is minus the decision function: above 0 is outside. Which latents, ν and the bandwidth are ours; on the latents of a VAE, as Lu &
Xu 2018 propose, it is `vae_ocsvm`.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from methods.detectors.interface import Scores, check_images
from methods.detectors.networks.backbones import BackboneConfig, build_backbone
from methods.detectors.networks.grids import pool_places
from methods.detectors.networks.one_class_machine import OneClassMachine


class OneClassSVMConfig(BaseModel):
    """Hyperparameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ocsvm"] = "ocsvm"
    input_size_px: int = Field(default=224, ge=32, multiple_of=32)
    backbone: BackboneConfig = BackboneConfig(layers=("block4", "block10"))
    nu: float = Field(default=0.1, gt=0, lt=1, description="ν, upper bound on the share of training images outside")
    gamma: float | Literal["scale"] = Field(default="scale", description="γ; scale for 1 / (dimensions × variance of all features)")
    max_images: int = Field(default=5000, ge=2, description="training images that are fitted, drawn at random if there are more")
    batch_size: int = Field(default=16, ge=1, description="images scored at once")

    @field_validator("gamma")
    @classmethod
    def _positive(cls, gamma: float | str) -> float | str:
        if isinstance(gamma, float) and not 0 < gamma < float("inf"):
            raise ValueError(f"expected gamma above 0 and finite, or scale, got {gamma}")
        return gamma

    @property
    def map_size_px(self) -> int | None:
        """None: it has no maps."""
        return None


class OneClassSVMDetector(nn.Module):
    """Learns a region that holds most normal latents; what lies outside is anomalous."""

    def __init__(self, config: OneClassSVMConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.backbone = build_backbone(config.backbone)
        self.machine = OneClassMachine(sum(self.backbone.channels))
        self._observed: list[Tensor] = []

    def features(self, images: Tensor) -> Tensor:
        """Latents (N, C) float64 of images (N, 3, H, W) in [0, 1]: each layer's mean over the places, joined; not standardised."""
        return pool_places(self.backbone(images))

    def observe(self, images: Tensor) -> None:
        """Keep the latents of a batch of normal images."""
        check_images(images, input_size_px=self.input_size_px)
        self._observed.append(self.features(images).cpu())

    def conclude(self, generator: torch.Generator) -> None:
        """Fit the machine; `OneClassMachine.fit`."""
        latents = torch.cat(self._observed) if self._observed else torch.empty(0)
        self._observed = []
        self.machine.fit(latents, nu=self.config.nu, gamma=self.config.gamma, most=self.config.max_images, generator=generator)

    def score(self, images: Tensor) -> Scores:
        """Image: −f, above 0 outside what was learnt; no map."""
        check_images(images, input_size_px=self.input_size_px)
        return Scores(image=-self.machine.decision(self.features(images)).float(), pixel=None)
