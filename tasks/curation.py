"""How curation is done: the part of a run's configuration that decides which pixels become samples."""

from collections.abc import Iterable
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from methods.curation.quality import Check, QualityConfig
from methods.curation.skin import SkinConfig
from methods.curation.stain import StainConfig
from methods.curation.tissue import TissueConfig

PictureCut = Literal["whole", "tiled", "patches"]
Flag = Literal[Check, "stain-failed"]


class TilingConfig(BaseModel):
    """How slides, and pictures when asked, are cut into samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_px: int = Field(default=256, ge=16, description="height and width of a tile, at spacing_um where that is given")
    stride_px: int | None = Field(default=None, ge=1, description="from tile to tile; the tile's size when not given, less for overlap")
    spacing_um: float | None = Field(
        default=None, gt=0, description="µm per pixel of a slide's tile: 0.25 is about 40×, 0.5 20×, 1 10×; as scanned when not given"
    )
    spacing_tolerance: float = Field(default=0.05, ge=0, lt=0.5, description="a level this near to spacing_um is read as it is")
    pictures: PictureCut = Field(default="whole", description="ordinary pictures: one sample each, tiles, or patches of skin")
    by_dataset: dict[str, PictureCut] = Field(default={}, description="the same for the pictures of single data sets, by their names")
    tissue_share: float = Field(default=0.5, ge=0, le=1, description="least share of tissue in a slide's tile")
    abnormal_tissue_share: float = Field(default=0.5, ge=0, le=1, description="the same for tiles that are labelled abnormal")
    abnormal_share: float = Field(
        default=0.01, gt=0, le=1, description="least share of the mask in a tile that is labelled abnormal; between none and this: unknown"
    )
    dense: bool = Field(
        default=False,
        description="for scoring: every tile of a slide with any tissue at all, and more tiles that end at its right and lower border",
    )
    tiles_max: int | None = Field(default=None, ge=1, description="most tiles of a slide, drawn of each label; all when not given")
    seed: int = Field(default=0, ge=0, description="of that draw")
    tissue: TissueConfig = TissueConfig()

    @model_validator(mode="after")
    def _all_or_some(self) -> Self:
        if self.dense and self.tiles_max is not None:
            raise ValueError("dense asks for every tile and tiles_max for some of them: leave one out")
        return self


class StainNormalisation(StainConfig):
    """Slides and pictures of tissue are given the stains of one target picture."""

    target: str = Field(description="a picture of well stained tissue; its digest is kept with every sample")


class DuplicateConfig(BaseModel):
    """Which pictures count as the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    radius_bits: int = Field(default=8, ge=0, le=16, description="perceptual hashes that differ in no more bits are candidates")
    least_similarity: float = Field(
        default=0.8, ge=-1, le=1, description="structural similarity of the reduced pictures from which candidates are duplicates"
    )
    turned: bool = Field(default=False, description="also find mirrored and quarter-turned copies")
    semantic_cosine: float | None = Field(
        default=None, ge=0, le=1, description="also compare pictures whose pretrained features are this near, such as 0.9: zoomed, cropped"
    )
    semantic_neighbours: int = Field(default=5, ge=1, description="of each picture that are compared so")
    least_inliers: int = Field(default=12, ge=4, description="keypoints that one rotation, scale and shift must carry over to verify them")
    on_contradiction: Literal["exclude", "error"] = Field(
        default="exclude", description="files of one content that are labelled both normal and abnormal: exclude them, or stop"
    )


class TileQualityConfig(BaseModel):
    """From which values on a slide's tile is flagged; measured at 2 µm per pixel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    least_sharpness: float = Field(default=0.06, ge=0, description="blurred below; sharp tissue has 0.5 and more")
    most_ink: float = Field(default=0.05, ge=0, le=1, description="share of pixels in the colours of ink above which a tile is marked pen")

    def flags(self, sharpness: np.ndarray, ink: np.ndarray) -> dict[str, np.ndarray]:
        """By flag, for which of n tiles it is raised, (n,) bool; none for tiles whose values are NaN."""
        return {"blurred": sharpness < self.least_sharpness, "pen": ink > self.most_ink}


class CurationConfig(BaseModel):
    """What is measured, marked and refused, besides how samples are cut."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quality: QualityConfig = Field(default=QualityConfig(), description="of ordinary pictures")
    tiles: TileQualityConfig = Field(default=TileQualityConfig(), description="of slides")
    exclude: tuple[Flag, ...] = Field(
        default=(), description="flags that exclude a sample, such as blurred, near-constant, screenshot, pen"
    )
    skin: SkinConfig = Field(default=SkinConfig(), description="patches of skin, where tiling says so")
    crop_share: float | None = Field(default=None, gt=0, le=1, description="whole pictures: the central part of each side that is used")
    equalise: bool = Field(default=False, description="ordinary pictures: equalise the histogram of their grey levels, as for radiographs")
    stain: StainNormalisation | None = None
    duplicates: DuplicateConfig | None = Field(default=DuplicateConfig(), description="null: only the same content twice is noticed")

    @model_validator(mode="after")
    def _one_transform(self) -> Self:
        if self.equalise and self.stain is not None:
            raise ValueError("equalise and stain are both asked for; radiographs have no stain, tissue is not equalised")
        return self

    def refuse(self, flags: Iterable[str]) -> str | None:
        """Why a sample with these flags is excluded, or None."""
        refused = [flag for flag in flags if flag in self.exclude]
        return f"flagged {', '.join(refused)}" if refused else None
