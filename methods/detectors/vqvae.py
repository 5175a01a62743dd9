"""VQ-VAE (van den Oord et al. 2017, "Neural Discrete Representation Learning"), scored by its reconstruction error.

Every place z_e of the encoder's grid is replaced by the nearest code e of a codebook that has seen normal images only:
    L = (x − f(z_e + sg[e − z_e]))² + β |z_e − sg[e]|²,   each averaged over components (eq. 3),
where sg stops the gradient; the codes follow by moving averages (`networks/vector_quantizer.py`).

Paper: two stride-2 convolutions of 4 × 4, two residual blocks (ReLU, 3 × 3, ReLU, 1 × 1), mirrored; K = 512; β = 0.25. From its authors'
public example: widths 64 and 128, 32 within residual blocks, codes of 64 numbers, γ = 0.99, Adam 3e-4, batch 32. Ours: 256 × 256, as
SANO's comparison has it (which cites the two-level VQ-VAE-2; this has one level); images in [-1, 1]; the error not divided by the variance
of the data; idle codes restarted; the number of epochs.
"""

from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from methods.detectors.interface import Scores, SelectionRule, check_images
from methods.detectors.networks.modes import evaluation_mode
from methods.detectors.networks.vector_quantizer import VectorQuantizer


class VQVAEConfig(BaseModel):
    """Hyperparameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vqvae"] = "vqvae"
    input_size_px: int = Field(default=256, ge=4)
    width: int = Field(
        default=128, ge=2, multiple_of=2, description="channels before the codebook; the first convolutions have half as many"
    )
    halvings: int = Field(default=2, ge=1, description="stride-2 convolutions on the way down: places of the grid are 2 to this apart")
    residual_blocks: int = Field(default=2, ge=0)
    residual_width: int = Field(default=32, ge=1, description="channels within a residual block")
    codes: int = Field(default=512, ge=1, description="K, length of the codebook")
    code_dims: int = Field(default=64, ge=1, description="numbers in a code")
    commitment_weight: float = Field(default=0.25, ge=0, description="β, weight of the encoder's distance to the codes")
    decay: float = Field(default=0.99, ge=0, lt=1, description="γ of the moving averages that the codes follow")
    restart_below: float = Field(default=1.0, ge=0, description="mean uses a batch below which a code is put elsewhere; 0 never does")
    learning_rate: float = Field(default=3e-4, gt=0)
    epochs: int = Field(default=100, ge=1)
    training_batch_size: int = Field(default=32, ge=1)
    batch_size: int = Field(default=8, ge=1, description="images scored at once")

    @property
    def map_size_px(self) -> int | None:
        """Height and width of its anomaly maps; None for a detector without maps."""
        return self.input_size_px

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.input_size_px % (1 << self.halvings):
            raise ValueError(f"expected input_size_px to be a multiple of 2^halvings = {1 << self.halvings}, got {self.input_size_px}")
        return self


class VQVAE(nn.Module):
    """Rebuilds images from a vocabulary of normal parts; what it has no word for is anomalous."""

    selected_by: SelectionRule = "loss"

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.epochs = config.epochs
        self.training_batch_size = config.training_batch_size
        half, width = config.width // 2, config.width
        widths = [half] * (config.halvings - 1) + [width]
        self.encoder = nn.Sequential(
            *(layer for i, o in zip([3, *widths], widths, strict=False) for layer in (nn.Conv2d(i, o, 4, 2, 1), nn.ReLU())),
            nn.Conv2d(width, width, 3, padding=1),
            *(_Residual(width, config.residual_width) for _ in range(config.residual_blocks)),
            nn.ReLU(),
            nn.Conv2d(width, config.code_dims, 1),
        )
        self.quantizer = VectorQuantizer(codes=config.codes, dims=config.code_dims, decay=config.decay, restart_below=config.restart_below)
        up = [width] + [half] * (config.halvings - 1)
        self.decoder = nn.Sequential(
            nn.Conv2d(config.code_dims, width, 3, padding=1),
            *(_Residual(width, config.residual_width) for _ in range(config.residual_blocks)),
            *(layer for i, o in zip(up, [*up[1:], 3], strict=True) for layer in (nn.ReLU(), nn.ConvTranspose2d(i, o, 4, 2, 1))),
        )

    def loss(self, images: Tensor) -> Tensor:
        """L of a batch, a scalar; in training mode it moves the codebook too, and draws from torch's global generator."""
        x = 2 * images - 1
        e, commitment = self.quantizer(self.encoder(x))
        return nn.functional.mse_loss(self.decoder(e), x) + self.config.commitment_weight * commitment

    def reconstruct(self, images: Tensor) -> Tensor:
        """The reconstruction (N, 3, H, W), clipped to [0, 1], of images of the same shape."""
        with evaluation_mode(self):
            x: Tensor = self.decoder(self.quantizer(self.encoder(2 * images - 1))[0])
        return ((x + 1) / 2).clamp(0, 1)

    def score(self, images: Tensor) -> Scores:
        """Pixel: squared error averaged over the channels; image: its mean. Both in [0, 1]."""
        check_images(images, input_size_px=self.input_size_px)
        error = (self.reconstruct(images) - images).square().mean(1)  # (N, H, W)
        return Scores(image=error.mean((1, 2)), pixel=error)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Adam with the public example's learning rate, over everything but the codebook."""
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate)


class _Residual(nn.Module):
    """x plus (ReLU, 3 × 3, ReLU, 1 × 1) of it."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), nn.Conv2d(width, inner, 3, padding=1), nn.ReLU(), nn.Conv2d(inner, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = x + self.layers(x)
        return h
