"""What a trained detector's scores mean: thresholds, p-values and metrics, from the validation split and never from the test split."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.utils.data import DataLoader

from methods.detectors.interface import Detector, ThresholdsOnTraining, TunedOnValidation
from methods.evaluation.bootstrap import BootstrapConfig
from methods.evaluation.calibration import (
    CalibrationError,
    Null,
    conformal_threshold,
    fit_empirical,
    fit_gamma,
    fit_tail,
    null_to_dict,
)
from methods.evaluation.histograms import SubjectCounts, count_pixels, count_scores, merge_counts
from methods.evaluation.metrics import UndefinedMetricError, average_precision, roc_auc
from methods.evaluation.thresholds import (
    Threshold,
    best_dice_threshold,
    best_youden_threshold,
    deviation_threshold,
    quantile_threshold,
)
from methods.training.selection import score_all
from tasks.measures import FIXED_SPECIFICITIES, measure
from tasks.progress import show_progress
from tasks.samples import SampleDataset, read_sample_mask

_FITS: dict[str, Callable[[np.ndarray], Null]] = {"empirical": fit_empirical, "gamma": fit_gamma, "tail": fit_tail}


class CalibrationConfig(BaseModel):
    """How scores become decisions and p-values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    false_positive_rate: float = Field(default=0.05, gt=0, lt=1, description="promised by the thresholds that need no anomaly")
    deviations: float = Field(default=3.0, gt=0, description="N of the N σ thresholds")
    deviation_samples: int = Field(
        default=256, ge=1, description="most training samples that σ is measured on, for detectors whose paper does so; else on validation"
    )
    nulls: tuple[Literal["empirical", "gamma", "tail"], ...] = Field(
        default=("empirical", "gamma", "tail"), min_length=1, description="distributions fitted to normal image scores, for p-values"
    )


def calibrate(
    model: Detector, *, normal: pd.DataFrame, validation: pd.DataFrame, config: CalibrationConfig, bootstrap: BootstrapConfig
) -> dict[str, Any]:
    """Choose what is left to choose, then thresholds, p-values and metrics on the whole validation split, or say why there are none.

    The epoch was chosen on the same split, so its metrics are somewhat too good. A promised false-positive rate holds for samples that
    are exchangeable with the normal ones of validation: the same kind of subjects, as many samples of each.

    Args:
        model: trained; a number that is chosen on validation is set in it.
        normal: the training rows.
        validation: the validation rows, of both labels where there are any.
        config: what is promised.
        bootstrap: of the intervals.

    Returns:
        For the card: split; tuned, where there was something to choose; operating_points (level, split, value, rule, detail), the preferred
        one of a level first; thresholds, the preferred one by level; nulls, fitted to normal image scores; metrics; why_none, what
        could not be had.
    """
    if not len(validation):
        return {"why_none": "there is no validation split"}
    tuned = _tune(model, validation)
    with show_progress(f"calibrate {type(model).__name__}", len(validation)) as bar:
        image, pixel = _count_validation(model, validation, bar.advance)
    points, refused = _choose_points(_rules(model, image, pixel, normal, config))
    thresholds: dict[str, Threshold] = {}
    for level, _, point in points:
        thresholds.setdefault(level, point)
    try:
        metrics = measure(image, pixel if _has_masks(pixel) else None, thresholds=thresholds, bootstrap=bootstrap).rows
    except UndefinedMetricError as error:
        metrics = []
        refused.append(str(error))
    return {
        "split": "validation",
        **({"tuned": tuned} if tuned else {}),
        "operating_points": [{"level": level, "split": split, **asdict(point)} for level, split, point in points],
        "thresholds": {level: asdict(point) for level, point in thresholds.items()},
        "nulls": _fit_nulls(image, config),
        "metrics": metrics,
        **({"why_none": f"on validation {'; '.join(dict.fromkeys(refused))}"} if refused else {}),
    }


def _tune(model: Detector, validation: pd.DataFrame) -> dict[str, Any] | None:
    """Set the detector's number to the best on validation: by pixel average precision where there are masks, by image AUROC otherwise."""
    if not isinstance(model, TunedOnValidation):
        return None
    candidates = model.candidates()
    model.use(candidates[0])
    if len(candidates) == 1:
        return {"name": model.tuned, "value": candidates[0], "by": "configuration"}
    if validation["label"].nunique() < 2:
        return {"name": model.tuned, "value": candidates[0], "by": "configuration: the first candidate, as validation lacks a class"}
    found, by = [], ""
    with show_progress(f"choose {model.tuned}", len(candidates) * len(validation)) as bar:
        for value in candidates:
            model.use(value)
            image, pixel = _count_validation(model, validation, bar.advance)
            if pixel is not None and _has_masks(pixel):
                found.append(float(average_precision(pixel.normal.sum(0), pixel.abnormal.sum(0))))
                by = "highest pixel average precision on validation"
            else:
                found.append(float(roc_auc(image.normal.sum(0), image.abnormal.sum(0))))
                by = "highest image AUROC on validation"
    best = candidates[int(np.argmax(found))]
    model.use(best)
    return {"name": model.tuned, "value": best, "by": by, "tried": [list(pair) for pair in zip(candidates, found, strict=True)]}


_Rule = tuple[str, str, Callable[[], Threshold]]  # a level, and what chooses its threshold on which split


def _rules(
    model: Detector, image: SubjectCounts, pixel: SubjectCounts | None, normal: pd.DataFrame, config: CalibrationConfig
) -> Iterator[_Rule]:
    """The preferred ones first; the last ones of a level need no anomaly."""
    rate = config.false_positive_rate
    yield "image", "validation", lambda: best_youden_threshold(image)
    yield "image", "validation", lambda: best_dice_threshold(image)
    yield "image", "validation", lambda: conformal_threshold(_normal_scores(image), rate)
    for at in FIXED_SPECIFICITIES:
        yield "image", "validation", partial(quantile_threshold, image, false_positive_rate=round(1 - at, 9))
    yield "image", "validation", partial(deviation_threshold, image, deviations=config.deviations)
    if pixel is None:
        return
    if _has_masks(pixel):
        yield "pixel", "validation", lambda: best_dice_threshold(pixel)
    if isinstance(model, ThresholdsOnTraining):
        yield "pixel", "train", lambda: _deviation_threshold(model, normal, config)
    yield "pixel", "validation", lambda: quantile_threshold(pixel, false_positive_rate=rate)
    if not isinstance(model, ThresholdsOnTraining):
        yield "pixel", "validation", lambda: deviation_threshold(pixel, deviations=config.deviations)


def _has_masks(pixel: SubjectCounts | None) -> bool:
    """Whether a pixel is known to be abnormal; those of normal samples are known to be normal without a mask."""
    return pixel is not None and bool(pixel.carries_anomaly.any())


def _choose_points(rules: Iterator[_Rule]) -> tuple[list[tuple[str, str, Threshold]], list[str]]:
    """The thresholds that could be chosen, and why others could not."""
    points, refused = [], []
    for level, split, choose in rules:
        try:
            points.append((level, split, choose()))
        except (UndefinedMetricError, CalibrationError) as error:
            refused.append(str(error))
    return points, refused


def _deviation_threshold(model: ThresholdsOnTraining, normal: pd.DataFrame, config: CalibrationConfig) -> Threshold:
    rows = normal.sample(min(len(normal), config.deviation_samples), random_state=0)
    images = SampleDataset(rows, size_px=model.input_size_px, cache_bytes=0)

    def batches() -> Iterator[Tensor]:
        with show_progress("measure σ on training images", len(rows)) as bar, torch.inference_mode():
            for batch in DataLoader(images, batch_size=model.batch_size):
                yield batch
                bar.advance(len(batch))

    value = model.training_threshold(batches(), deviations=config.deviations)
    return Threshold(value, f"{config.deviations:g} standard deviations of training scores", f"{len(rows)} images")


def _fit_nulls(image: SubjectCounts, config: CalibrationConfig) -> list[dict[str, Any]]:
    """The distributions that could be fitted; of the others why not."""
    nulls = []
    for kind in config.nulls:
        try:
            nulls.append(null_to_dict(_FITS[kind](_normal_scores(image))))
        except CalibrationError as error:
            nulls.append({"kind": kind, "why_none": str(error)})
    return nulls


def _normal_scores(image: SubjectCounts) -> np.ndarray:
    """(n,) float32, ascending: counts hold every score exactly."""
    return np.repeat(image.values, image.normal.sum(0)).astype(np.float32)


def _count_validation(model: Detector, validation: pd.DataFrame, advance: Any) -> tuple[SubjectCounts, SubjectCounts | None]:
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
