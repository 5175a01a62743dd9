"""The convolutional autoencoder of the first paper (Burgert et al. 2025, "Autoencoder").

Four stride-2 convolutions, the first of width C0 and each next one twice as wide, each followed by ReLU; flattened, a fully connected
layer to the d latent numbers; a mirrored decoder with a sigmoid at the end. Trained on the mean squared error with Adam.
The paper does not give kernel sizes; ours are 4 with padding 1, which halve and double exactly, so that the decoder is the mirror.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from methods.detectors.interface import Scores, SelectionRule, check_images


class AutoencoderConfig(BaseModel):
    """Hyperparameters; the defaults are the paper's best (its grid: C0 in {16, 32} times d in {16, 32, 64})."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ae"] = "ae"
    C0: int = Field(default=32, ge=1, description="channels of the first convolution")
    d: int = Field(default=64, ge=1, description="length of the latent vector")
    input_size_px: int = Field(default=128, ge=16, multiple_of=16)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-5, ge=0)
    epochs: int = Field(default=200, ge=1)
    training_batch_size: int = Field(default=8, ge=1)
    batch_size: int = Field(default=16, ge=1, description="images scored at once")

    @property
    def map_size_px(self) -> int | None:
        """Height and width of its anomaly maps; None for a detector without maps."""
        return self.input_size_px


class Autoencoder(nn.Module):
    """Reconstructs what it has learnt; what it cannot reconstruct is anomalous."""

    selected_by: SelectionRule = "auroc"

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.input_size_px = config.input_size_px
        self.batch_size = config.batch_size
        self.epochs = config.epochs
        self.training_batch_size = config.training_batch_size
        C = [config.C0 * 2**i for i in range(4)]
        side = config.input_size_px // 16
        self.encoder = nn.Sequential(
            *(layer for i, o in zip([3, *C[:-1]], C, strict=True) for layer in (nn.Conv2d(i, o, 4, 2, 1), nn.ReLU())),
            nn.Flatten(),
            nn.Linear(C[-1] * side**2, config.d),
        )
        self.decoder = nn.Sequential(
            nn.Linear(config.d, C[-1] * side**2),
            nn.ReLU(),
            nn.Unflatten(1, (C[-1], side, side)),
            *(layer for i, o in zip(C[:0:-1], C[-2::-1], strict=True) for layer in (nn.ConvTranspose2d(i, o, 4, 2, 1), nn.ReLU())),
            nn.ConvTranspose2d(C[0], 3, 4, 2, 1),
            nn.Sigmoid(),
        )

    def reconstruct(self, images: Tensor) -> Tensor:
        """The reconstruction (N, 3, H, W) in [0, 1] of images of the same shape."""
        x: Tensor = self.decoder(self.encoder(images))
        return x

    def loss(self, images: Tensor) -> Tensor:
        """Mean squared error of a batch, a scalar."""
        return nn.functional.mse_loss(self.reconstruct(images), images)

    def score(self, images: Tensor) -> Scores:
        """Pixel: squared error averaged over the channels; image: its mean. Both in [0, 1]."""
        check_images(images, input_size_px=self.input_size_px)
        error = (self.reconstruct(images) - images).square().mean(1)  # (N, H, W)
        return Scores(image=error.mean((1, 2)), pixel=error)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Adam with the paper's learning rate and weight decay."""
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay)
