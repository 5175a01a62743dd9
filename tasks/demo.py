"""The demo's data set: slides of real stained tissue in an invented arrangement, with painted anomalies whose mask is known."""

import io

import numpy as np
import pandas as pd
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from skimage import data
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from methods.curation.tissue import TissueConfig, find_tissue
from methods.painting import FINDINGS, Finding, paint_anomalies
from methods.specimens import assemble_specimen
from storage import filesystems
from storage.images import write_mask
from storage.slides import write_pyramid
from tasks.caching import cached_task
from tasks.execution import ExecutionConfig, executor_for

SPACING_UM = 0.5  # by declaration: the source picture does not say its own
NOTICE = (
    "The anomalies in these slides are PAINTED, and the slides are assembled: their tissue is real (one immunohistochemistry picture, "
    "512 × 512, that scikit-image ships), its arrangement, outline and glass are generated, and 0.5 µm per pixel is declared. Training, "
    "validation and test slides show disjoint parts of that picture. The figures say that the machine works; they say nothing about "
    "diagnosis."
)
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


def plan_slides(*, quick: bool) -> list[SlidePlan]:
    """Fifteen slides of 4,096², or nine of 2,048²; each its own subject, each painted one with regions of one finding."""
    size_px = 2048 if quick else 4096
    validation: list[str | None] = [None, "pen"] if quick else [None, "fold", "foreign texture"]
    test: list[str | None] = [None, None, "fold", "stain change"] if quick else [None, None, *FINDINGS]
    wanted = (
        [("train", None)] * (3 if quick else 5)
        + [("validation", finding) for finding in validation]
        + [("test", finding) for finding in test]
    )
    return [
        SlidePlan(name=f"slide-{number:02d}", split=split, finding=finding, seed=number, size_px=size_px)
        for number, (split, finding) in enumerate(wanted, start=1)
    ]


@cached_task(
    name="build slide",
    run_name="build {plan.name} ({plan.finding})",
    outputs_exist=lambda files: all(uri is None or filesystems.exists(uri) for uri in files.values()),
    ignore=("execution",),
)
def build_slide(plan: SlidePlan, *, folder: str, execution: ExecutionConfig) -> SlideFiles:
    """Make one slide and its mask."""
    return executor_for(execution).run(make_slide, plan, folder)


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


def list_slides(plans: list[SlidePlan], files: list[SlideFiles], *, folder: str) -> str:
    """Write the table of the slides, as a user would for an archive of his own; returns its URI."""
    rows = [
        {
            "uri": made["uri"],
            "dataset": "demo (painted anomalies)",
            "subject_id": plan.name.replace("slide", "subject"),
            "slide_id": plan.name,
            "label": int(plan.finding is not None),
            "finding": f"painted {plan.finding}" if plan.finding else "",
            "mask_uri": made["mask_uri"] or "",
            "split": plan.split,
        }
        for plan, made in zip(plans, files, strict=True)
    ]
    uri = filesystems.join(folder, "slides.csv")
    filesystems.write_bytes(uri, pd.DataFrame(rows).to_csv(index=False).encode())
    return uri


def _paint(slide: np.ndarray, finding: Finding, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    reduction = 4
    thumbnail = np.asarray(Image.fromarray(slide).reduce(reduction))
    tissue = find_tissue(thumbnail, spacing_um=SPACING_UM * reduction, config=TissueConfig())
    tissue = np.kron(tissue, np.ones((reduction, reduction), bool))
    sizes = (slide.shape[0] // 12, slide.shape[0] // 6)
    painted = paint_anomalies(slide, tissue, findings=[finding] * _REGIONS_A_SLIDE, size_px=sizes, rng=rng, foreign=data.gravel())
    return painted.image, painted.mask
