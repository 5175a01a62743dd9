"""The demo's data set: slides of real stained tissue in an invented arrangement, with painted anomalies whose mask is known.

How a slide is made is in `tasks.make_slide`.
"""

import pandas as pd

from methods.painting import FINDINGS
from storage import filesystems
from tasks.caching import cached_task
from tasks.execution import ExecutionConfig, executor_for
from tasks.make_slide import SlideFiles, SlidePlan, make_slide

NOTICE = (
    "The anomalies in these slides are PAINTED, and the slides are assembled: their tissue is real (one immunohistochemistry picture, "
    "512 × 512, that scikit-image ships), its arrangement, outline and glass are generated, and 0.5 µm per pixel is declared. Training, "
    "validation and test slides show disjoint parts of that picture. The figures say that the machine works; they say nothing about "
    "diagnosis."
)


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
