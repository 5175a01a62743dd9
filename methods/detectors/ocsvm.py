"""A one-class support vector machine (Schölkopf et al. 2001, "Estimating the Support of a High-Dimensional Distribution") on latents.

The latents are spatial means of blocks of EfficientNet-lite0, standardised with the training images' mean and deviation. What is kept are
the support vectors z_i, their coefficients α_i, the offset ρ and γ; the decision function f(z) = Σ α_i exp(−γ |z − z_i|²) − ρ is computed
from them here, so that a bundle needs no pickle and no scikit-learn. The score is −f: above 0 is outside.
Which latents, ν and the bandwidth are ours: Lu & Xu 2018 propose the method and try none.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from methods.detectors.interface import DetectorError, Scores, check_images
from methods.detectors.networks.efficientnet_lite import CHANNELS_OF_BLOCK, EfficientNetLite0Features

_AS_LONG_AS_FITTED = ("support_vectors", "dual_coefficients")


class OneClassSVMConfig(BaseModel):
    """Hyperparameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ocsvm"] = "ocsvm"
    input_size_px: int = Field(default=224, ge=32, multiple_of=32)
    blocks: tuple[Literal[2, 4, 10, 14], ...] = Field(default=(4, 10), min_length=1, description="blocks of the backbone, ascending")
    nu: float = Field(default=0.1, gt=0, lt=1, description="ν, upper bound on the share of training images outside")
    gamma: float | Literal["scale"] = Field(default="scale", description="γ; scale for 1 / (dimensions × variance of all features)")
    max_images: int = Field(default=5000, ge=2, description="training images that are fitted, drawn at random if there are more")
    batch_size: int = Field(default=16, ge=1, description="images scored at once")

    @field_validator("blocks")
    @classmethod
    def _ascending(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        if list(blocks) != sorted(set(blocks)):
            raise ValueError(f"expected different blocks in ascending order, got {blocks}")
        return blocks

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

    mean: Tensor
    std: Tensor
    support_vectors: Tensor
    dual_coefficients: Tensor
    offset: Tensor
    gamma: Tensor

    def __init__(self, config: OneClassSVMConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.backbone = EfficientNetLite0Features(config.blocks)
        dims = sum(CHANNELS_OF_BLOCK[block] for block in config.blocks)
        # float64: f is a difference of nearly equal sums
        self.register_buffer("mean", torch.zeros(dims, dtype=torch.float64))
        self.register_buffer("std", torch.ones(dims, dtype=torch.float64))
        self.register_buffer("support_vectors", torch.empty(0, dims, dtype=torch.float64))
        self.register_buffer("dual_coefficients", torch.empty(0, dtype=torch.float64))
        self.register_buffer("offset", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("gamma", torch.ones(1, dtype=torch.float64))
        self.register_load_state_dict_pre_hook(_take_lengths)
        self._observed: list[Tensor] = []

    def features(self, images: Tensor) -> Tensor:
        """Latents (N, C) float64 of images (N, 3, H, W) in [0, 1]: each block's mean over the places, joined; not standardised."""
        return torch.cat([layer.double().mean((2, 3)) for layer in self.backbone(images)], 1)

    def observe(self, images: Tensor) -> None:
        """Keep the latents of a batch of normal images."""
        check_images(images, input_size_px=self.input_size_px)
        self._observed.append(self.features(images).cpu())

    def conclude(self, generator: torch.Generator) -> None:
        """Standardise, draw `max_images` of them if there are more, and fit.

        Raises:
            DetectorError: fewer than two images, or no two different ones.
        """
        from sklearn.svm import OneClassSVM  # here, because it takes seconds to import and scoring does without

        latents = torch.cat(self._observed) if self._observed else torch.empty(0)  # (n, C)
        self._observed = []
        if len(latents) < 2:
            raise DetectorError(f"a one-class SVM needs at least 2 training images, got {len(latents)}")
        device = self.mean.device
        mean, std = latents.mean(0), latents.std(0, correction=0)
        if not std.any():
            raise DetectorError(f"the latents of all {len(latents)} training images are the same: there is nothing to learn")
        std[std == 0] = 1  # a feature that never varies stays 0
        z = (latents - mean) / std
        if len(z) > self.config.max_images:
            z = z[torch.randperm(len(z), generator=generator)[: self.config.max_images]]
        gamma = 1 / (z.shape[1] * float(z.var(correction=0))) if self.config.gamma == "scale" else self.config.gamma
        machine = OneClassSVM(kernel="rbf", nu=self.config.nu, gamma=gamma).fit(z.numpy())
        self.mean, self.std = mean.to(device), std.to(device)
        self.support_vectors = torch.from_numpy(machine.support_vectors_).to(device)
        self.dual_coefficients = torch.from_numpy(machine.dual_coef_[0].copy()).to(device)
        self.offset = torch.tensor([-machine.intercept_[0]], dtype=torch.float64, device=device)
        self.gamma = torch.tensor([gamma], dtype=torch.float64, device=device)

    def decision(self, z: Tensor) -> Tensor:
        """f (N,) float64 of standardised latents (N, C) float64: above 0 inside; scikit-learn's `decision_function`."""
        # one image at a time: differences lose no digits, and nothing depends on the batch
        kernels = [torch.exp(-self.gamma * (self.support_vectors - one).square().sum(1)) for one in z]
        return torch.stack([self.dual_coefficients @ kernel for kernel in kernels]) - self.offset

    def score(self, images: Tensor) -> Scores:
        """Image: −f, above 0 outside what was learnt; no map."""
        check_images(images, input_size_px=self.input_size_px)
        if not len(self.support_vectors):
            raise DetectorError("the one-class SVM has learnt nothing yet: train it, or load a bundle")
        if not len(images):
            return Scores(image=images.new_empty(0), pixel=None)
        return Scores(image=-self.decision((self.features(images) - self.mean) / self.std).float(), pixel=None)


def _take_lengths(module: nn.Module, state: dict[str, Tensor], prefix: str, *_unused: object) -> None:
    """The number of support vectors is known only to the bundle: make room for them before they are loaded."""
    for name in _AS_LONG_AS_FITTED:
        if prefix + name in state:
            room = module.get_buffer(name)
            setattr(module, name, room.new_empty(state[prefix + name].shape[:1] + room.shape[1:]))
