"""With what arithmetic a store's scores are computed: kept in the store and obeyed by every run on it, so that resumed bits are equal."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Arithmetic(BaseModel):
    """All that decides, beside model and pixels, about the bits of a score."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(ge=1, description="images scored at once; every batch is full")
    threads: int = Field(default=1, ge=1, description="computing threads")
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="of convolutions and matrix products")
    channels_last: bool = Field(default=False, description="images lie in memory pixel by pixel")
    compiled: bool = Field(default=False, description="through torch.compile")
