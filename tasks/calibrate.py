"""What a trained detector's scores mean: thresholds and metrics, from the validation split and never from the test split."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from methods.detectors.interface import Detector
from methods.evaluation.bootstrap import BootstrapConfig
from methods.evaluation.histograms import SubjectCounts, count_pixels, count_scores, merge_counts
from methods.evaluation.metrics import UndefinedMetricError
from methods.evaluation.thresholds import best_dice_threshold, best_youden_threshold
from tasks.measures import measure
from tasks.progress import show_progress
from tasks.samples import SampleDataset, read_sample_mask


def calibrate(model: Detector, validation: pd.DataFrame, bootstrap: BootstrapConfig) -> dict[str, Any]:
    """Thresholds and metrics on the whole validation split, or why there are none."""
    if not len(validation):
        return {"why_none": "there is no validation split"}
    with show_progress(f"calibrate {type(model).__name__}", len(validation)) as bar:
        image, pixel = _count_validation(model, validation, bar.advance)
    try:
        thresholds = {"image": best_youden_threshold(image)} | ({"pixel": best_dice_threshold(pixel)} if pixel is not None else {})
        metrics = measure(image, pixel, thresholds=thresholds, bootstrap=bootstrap)
    except UndefinedMetricError as error:
        return {"why_none": f"no threshold: on validation {error}"}
    return {"thresholds": {level: asdict(threshold) for level, threshold in thresholds.items()}, "metrics": metrics, "split": "validation"}


def _count_validation(model: Detector, validation: pd.DataFrame, advance: Any) -> tuple[SubjectCounts, SubjectCounts | None]:
    from methods.training.fit import score_all

    subjects = validation["subject_id"].to_numpy(str)
    records = validation.to_dict("records")
    scores, pixel_counts = [], []
    for start in range(0, len(records), 64):
        part = slice(start, start + 64)
        batch = score_all(model, SampleDataset(validation.iloc[part], size_px=model.input_size_px))
        scores.append(batch.image.numpy())
        if batch.pixel is not None:
            masks = [read_sample_mask(row, size_px=model.input_size_px) for row in records[part]]
            known = [i for i, mask in enumerate(masks) if mask is not None]
            if known:
                maps = batch.pixel.numpy()[known].astype(np.float16)
                pixel_counts.append(count_pixels(maps, np.stack([mask for mask in masks if mask is not None]), subjects[part][known]))
        advance(len(records[part]))
    image = count_scores(np.concatenate(scores), validation["label"].to_numpy(int), subjects)
    return image, merge_counts(pixel_counts) if pixel_counts else None
