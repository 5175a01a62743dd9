"""A one-class support vector machine on the latents of a VAE, which Lu & Xu 2018 propose at the end of their paper and do not try.

First the VAE is trained as it is by itself; then a machine is fitted to the means μ(x) of the training images. The epoch is chosen by the
VAE's loss, before there is a machine. The score is minus the machine's decision function: above 0 is outside. ν and the bandwidth are ours.
"""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from methods.detectors.interface import Scores, SelectionRule, check_images
from methods.detectors.networks.one_class_machine import OneClassMachine
from methods.detectors.vae import VAE, VAEConfig


class VAEOneClassSVMConfig(BaseModel):
    """Hyperparameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vae-ocsvm"] = "vae-ocsvm"
    vae: VAEConfig = VAEConfig()
    nu: float = Field(default=0.1, gt=0, lt=1, description="ν, upper bound on the share of training images outside")
    gamma: Annotated[float, Field(gt=0)] | Literal["scale"] = Field(
        default="scale", description="γ; scale for 1 / (dimensions × variance of all latents)"
    )
    max_images: int = Field(default=5000, ge=2, description="training images that are fitted, drawn at random if there are more")

    @property
    def input_size_px(self) -> int:
        """Height and width of its input: the VAE's."""
        return self.vae.input_size_px

    @property
    def batch_size(self) -> int:
        """Images scored at once: the VAE's."""
        return self.vae.batch_size

    @property
    def map_size_px(self) -> int | None:
        """None: it has no maps."""
        return None


class VAEOneClassSVM(nn.Module):
    """Learns a VAE, then a region of its latents; what lies outside is anomalous."""

    selected_by: SelectionRule = "loss"

    def __init__(self, config: VAEOneClassSVMConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.epochs = config.vae.epochs
        self.training_batch_size = config.vae.training_batch_size
        self.vae = VAE(config.vae)
        self.machine = OneClassMachine(config.vae.latent)
        self._observed: list[Tensor] = []

    def loss(self, images: Tensor) -> Tensor:
        """The VAE's."""
        return self.vae.loss(images)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """The VAE's."""
        return self.vae.build_optimizer()

    def observe(self, images: Tensor) -> None:
        """Keep the latents of a batch of normal images; when the VAE is trained."""
        check_images(images, input_size_px=self.input_size_px)
        self._observed.append(self.vae.latents(images).cpu())

    def conclude(self, generator: torch.Generator) -> None:
        """Fit the machine; `OneClassMachine.fit`."""
        latents = torch.cat(self._observed) if self._observed else torch.empty(0)
        self._observed = []
        self.machine.fit(latents, nu=self.config.nu, gamma=self.config.gamma, most=self.config.max_images, generator=generator)

    def score(self, images: Tensor) -> Scores:
        """Image: −f, above 0 outside what was learnt; no map."""
        check_images(images, input_size_px=self.input_size_px)
        return Scores(image=-self.machine.decision(self.vae.latents(images)).float(), pixel=None)
