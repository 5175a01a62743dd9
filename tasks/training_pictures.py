"""What a training looked like: sample reconstructions kept with the bundle, and the learning curve, both shown in the Prefect UI."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from methods.detectors.interface import Detector, Reconstructs
from methods.detectors.registry import NAMES
from tasks.samples import SampleDataset

if TYPE_CHECKING:
    from methods.training.fit import FitReport

GENERATED = "GENERATED"  # tag of the runs whose data are
_SAMPLES_A_CLASS = 3
_NAMES = {0: "normal", 1: "abnormal"}


def draw_training(model: Detector, validation: pd.DataFrame, *, seed: int) -> dict[str, bytes]:
    """Pictures for the bundle: `samples`, a few drawn validation samples as the detector sees them; none for a detector without maps."""
    from storage.reports import figures  # here, because Matplotlib takes a second to import

    drawn = (
        validation.sample(frac=1, random_state=seed).groupby("label", sort=True).head(_SAMPLES_A_CLASS).sort_values("label", kind="stable")
    )
    if not len(drawn):
        return {}
    images = torch.cat(list(DataLoader(SampleDataset(drawn, size_px=model.input_size_px, cache_bytes=0))))
    reconstructions, maps = [], []
    with torch.inference_mode():
        for batch in images.split(model.batch_size):
            scores = model.score(batch)
            if scores.pixel is None:
                return {}
            maps.append(scores.pixel)
            if isinstance(model, Reconstructs):
                reconstructions.append(model.reconstruct(batch))
    picture = figures.draw_samples(
        [_NAMES[int(label)] for label in drawn["label"]],
        _as_pictures(images),
        _as_pictures(torch.cat(reconstructions)) if reconstructions else None,
        torch.cat(maps).float().numpy(),
    )
    return {"samples": picture}


def show_training(kind: str, report: "FitReport", pictures: dict[str, bytes]) -> None:
    """An artifact of the task that is running: learning curve, pictures, epochs. Nothing outside of a task."""
    from prefect.artifacts import create_markdown_artifact  # here, because workers draw pictures and know no Prefect
    from prefect.context import TaskRunContext

    context = TaskRunContext.get()
    if context is None:
        return
    from storage.reports import figures

    name = NAMES[kind] + (f", {GENERATED} data" if GENERATED in context.task_run.tags else "")
    parts = [f"**{name}.** {report.images_per_s:.3g} training images a second; epoch {report.best_epoch} kept ({report.selected_by})."]
    if report.curve:
        curve = figures.LearningCurve.of(report.curve, best_epoch=report.best_epoch)
        svg = figures.draw_learning({name: curve}, prefix="learning")
        parts.append(f"![loss and what was measured on validation by epoch]({figures.as_uri(svg.encode(), 'SVG+XML')})")
    for picture in pictures.values():
        parts += [
            "Drawn validation samples: the image, its reconstruction where the detector makes one, the anomaly map.",
            f"![validation samples]({figures.as_uri(picture, 'PNG')})",
        ]
    parts += [_tabulate(report)] if report.curve else []
    create_markdown_artifact(key=f"training-{kind}", markdown="\n\n".join(parts), description=f"training of {name}")


def _tabulate(report: "FitReport") -> str:
    names = [name for name in ("loss", "validation_loss", "validation_auroc") if any(name in entry for entry in report.curve)]
    lines = [f"| epoch | {' | '.join(name.replace('_', ' ') for name in names)} |", "|---" * (1 + len(names)) + "|"]
    for entry in report.curve:
        kept = " (kept)" if int(entry["epoch"]) == report.best_epoch else ""
        lines.append(f"| {int(entry['epoch'])}{kept} | {' | '.join(f'{entry[name]:.5g}' if name in entry else '' for name in names)} |")
    return "\n".join(lines)


def _as_pictures(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()  # (n, H, W, 3)
