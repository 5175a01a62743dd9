"""What a worker does for the demo: assemble, paint and write one slide. Knows no Prefect."""

import io

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from skimage import data
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from methods.curation.tissue import TissueConfig, find_tissue
from methods.painting import Finding, paint_anomalies
from methods.specimens import assemble_specimen
from storage import filesystems
from storage.images import write_mask
from storage.slides import write_pyramid

SPACING_UM = 0.5  # by declaration: the source picture does not say its own
# disjoint windows of the picture, so that no test pixel was ever seen in training
_WINDOWS = {"train": np.s_[:, :290], "validation": np.s_[330:, 290:], "test": np.s_[:330, 290:]}
_REGIONS_A_SLIDE = 4


class SlidePlan(BaseModel):
    """One slide to be made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    split: str
    finding: str | None = None
    seed: int
    size_px: int = Field(ge=1024)


class SlideFiles(TypedDict):
    """A slide that was made."""

    uri: str
    mask_uri: str | None


def make_slide(plan: SlidePlan, folder: str) -> SlideFiles:
    """Assemble, paint and write one pyramidal slide, and the exact mask of what was painted."""
    rng = np.random.default_rng(plan.seed)
    slide = assemble_specimen(data.immunohistochemistry()[_WINDOWS[plan.split]], size_px=plan.size_px, rng=rng)
    mask_uri = None
    if plan.finding is not None:
        slide, mask = _paint(slide, plan.finding, rng)  # type: ignore[arg-type]
        mask_uri = filesystems.join(folder, "masks", f"{plan.name}.png")
        buffer = io.BytesIO()
        write_mask(buffer, mask)
        filesystems.write_bytes(mask_uri, buffer.getvalue())
    uri = filesystems.join(folder, f"{plan.name}.tif")
    write_pyramid(uri, slide, spacing_um=SPACING_UM)
    return SlideFiles(uri=uri, mask_uri=mask_uri)


def _paint(slide: np.ndarray, finding: Finding, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    reduction = 4
    thumbnail = np.asarray(Image.fromarray(slide).reduce(reduction))
    tissue = find_tissue(thumbnail, spacing_um=SPACING_UM * reduction, config=TissueConfig())
    tissue = np.kron(tissue, np.ones((reduction, reduction), bool))
    sizes = (slide.shape[0] // 12, slide.shape[0] // 6)
    painted = paint_anomalies(slide, tissue, findings=[finding] * _REGIONS_A_SLIDE, size_px=sizes, rng=rng, foreign=data.gravel())
    return painted.image, painted.mask
