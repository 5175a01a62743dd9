"""Paint anomalies into some of a user's normal pictures, so that a detector can be tried where nothing abnormal is at hand."""

import io
from collections.abc import Sequence
from typing import cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from skimage import data

from methods.painting import FINDINGS, Finding, paint_anomalies
from storage import filesystems
from storage.images import write_image, write_mask
from storage.pictures import read_picture
from storage.slides import is_slide
from tasks.caching import cached_task
from tasks.references import ItemReference

PAINTED_NOTICE = (
    "The anomalies are PAINTED into some of the normal pictures, because no abnormal ones were given. The figures say how well painted "
    "regions are found; they say nothing about diagnosis."
)
DATASET_SUFFIX = " (painted anomalies)"


class PaintConfig(BaseModel):
    """How many pictures, and what is painted into them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(default=0.4, gt=0, lt=1, description="share of the normal subjects whose pictures are painted")
    findings: tuple[Finding, ...] = Field(default=FINDINGS, min_length=1, description="taken in turn, one kind a picture")
    regions: int = Field(default=2, ge=1, description="painted regions of a picture")
    seed: int = 0


def paint_items(items: Sequence[ItemReference], *, paint: PaintConfig, store: str) -> list[ItemReference]:
    """The items with some of the normal pictures replaced by painted ones. Slides stay as they are, and what the source gives to train."""
    normal = sorted({item["subject_id"] for item in items if _may_be_painted(item)})
    rng = np.random.default_rng(paint.seed)
    chosen = {str(subject) for subject in rng.permutation(normal)[: round(paint.share * len(normal))]}
    painted, number = [], 0
    for item in items:
        if item["subject_id"] in chosen and _may_be_painted(item):
            finding = paint.findings[number % len(paint.findings)]
            painted.append(
                cast(ItemReference, paint_item(item, finding=finding, regions=paint.regions, seed=paint.seed + number, store=store))
            )
            number += 1
        else:
            painted.append(item)
    return painted


def _may_be_painted(item: ItemReference) -> bool:
    return item["label"] == 0 and item["split"] != "train" and item["unreadable"] is None and not is_slide(item["uri"])


@cached_task(
    name="paint",
    run_name="paint {finding} into {item[uri]}",
    outputs_exist=lambda item: filesystems.exists(item["uri"]) and filesystems.exists(item["mask_uri"]),
)
def paint_item(item: ItemReference, *, finding: Finding, regions: int, seed: int, store: str) -> ItemReference:
    """Write a painted copy of a picture and its mask; the original is not touched."""
    image = read_picture(item["uri"], frame=item["frame"], sha256=str(item["sha256"]))
    side = min(image.shape[:2])
    painted = paint_anomalies(
        image,
        np.ones(image.shape[:2], bool),
        findings=[finding] * regions,
        size_px=(side // 5, side // 3),
        rng=np.random.default_rng(seed),
        foreign=data.gravel(),
    )
    folder = filesystems.join(store, "painted", str(item["sha256"])[:16], (item["frame"] or "").replace(":", "-"))
    files = {"picture.png": io.BytesIO(), "mask.png": io.BytesIO()}
    write_image(files["picture.png"], painted.image)
    write_mask(files["mask.png"], painted.mask)
    for name, buffer in files.items():
        filesystems.write_bytes(filesystems.join(folder, name), buffer.getvalue())
    uri, mask_uri = (filesystems.join(folder, name) for name in files)
    changed = ItemReference(
        **{
            **item,
            "uri": uri,
            "frame": None,
            "sha256": filesystems.sha256_of(uri),
            "mask_uri": mask_uri,
            "mask_sha256": filesystems.sha256_of(mask_uri),
            "label": 1,
            "finding": f"painted {finding}",
            "dataset": item["dataset"] + DATASET_SUFFIX,
        }
    )
    return changed
