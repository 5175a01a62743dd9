"""Evaluate a store on a split: exact counts shard by shard, metrics with intervals, subgroups, curves; written as JSON.

How a worker counts a shard is in `tasks.count_shard`.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from methods.evaluation.bands import find_bands
from methods.evaluation.bootstrap import BootstrapConfig
from methods.evaluation.histograms import SubjectCounts, count_scores, gather_counts
from methods.evaluation.metrics import UndefinedMetricError, precision_recall_curve, roc_curve
from methods.evaluation.probabilities import bin_probabilities
from methods.evaluation.thresholds import Threshold
from storage import filesystems
from storage.manifest import read_manifest
from storage.models import read_bundle
from storage.scores import FAILED, SCORED, ScoreStoreError, open_store
from tasks.caching import cached_task, digest_of
from tasks.count_shard import CountJob, count_shard
from tasks.execution import ExecutionConfig, executor_for
from tasks.measures import CONSTANT_ANSWERS, Measured, measure, measure_constant
from tasks.progress import Bar, show_progress
from tasks.promises import check_nulls, check_points
from tasks.references import EvaluationReference, ManifestReference, ModelReference, StoreReference
from tasks.subgroups import assign_cells, measure_subgroups, stratify

_CURVE_POINTS = 400


class EvaluationConfig(BaseModel):
    """What is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap: BootstrapConfig = BootstrapConfig()
    unscored: Literal["refuse", "count"] = Field(
        default="refuse", description="test samples that scoring has not reached: an error, or left out and counted"
    )


@cached_task(
    name="evaluate",
    run_name="evaluate {store[kind]}",
    outputs_exist=lambda evaluation: filesystems.exists(evaluation["uri"]) and filesystems.exists(_resampled_uri(evaluation["uri"])),
    ignore=("execution",),
)
def evaluate_store(
    store: StoreReference,
    manifest: ManifestReference,
    model: ModelReference,
    outcome: dict[str, int],
    *,
    evaluation: EvaluationConfig,
    execution: ExecutionConfig,
    root: str,
) -> EvaluationReference:
    """Metrics, curves and image scores on the test split, at the thresholds that the model's card fixed on validation.

    Raises:
        UndefinedMetricError: the test split lacks a class.
        ScoreStoreError: scores of another manifest or model, or samples that are not scored.
    """
    rows = read_manifest(manifest["uri"], digest=manifest["digest"])
    opened = open_store(store["uri"], expected={"manifest_digest": manifest["digest"], "model_digest": model["digest"]})
    status = opened.status()
    tested, unscored = _choose_rows(rows, status, evaluation, store["uri"])
    labelled = rows[tested & rows["label"].notna().to_numpy()]
    scores, labels = opened.image_scores()[labelled.index], labelled["label"].to_numpy(int)
    _check_labels(labels)
    cells = assign_cells(labelled)
    image_cells = count_scores(scores, labels, cells.names)
    names = pd.Series(None, rows.index, dtype=object)
    names[labelled.index] = cells.names
    pixel_cells = count_test_pixels(store, manifest, names=names, execution=execution)
    image, pixel = cells.by_subject(image_cells), None if pixel_cells is None else cells.by_subject(pixel_cells)
    bundle = read_bundle(model["uri"], digest=model["digest"])
    card = bundle.card
    calibration = card["calibration"]
    thresholds = {level: Threshold(**found) for level, found in calibration.get("thresholds", {}).items()}
    strata = stratify(labelled, evaluation.bootstrap)
    probabilities = bool(card["trained_on"].get("abnormal")) and scores.min() >= 0 and scores.max() <= 1
    options: dict[str, Any] = {
        "thresholds": thresholds,
        "bootstrap": evaluation.bootstrap,
        "strata": strata,
        "probabilities": probabilities,
    }
    measured = measure(image, pixel, **options)
    result = {
        "kind": store["kind"],
        "detector": bundle.config,
        "split": "test",
        "subjects": {"all": len(image.subjects), "with anomaly": int(image.carries_anomaly.sum())},
        "samples": outcome,
        "unscored": unscored,
        "metrics": measured.rows,
        "constant": {answer: measure_constant(image, pixel, answer, probabilities=probabilities) for answer in CONSTANT_ANSWERS},
        "subgroups": measure_subgroups(cells, image_cells, pixel_cells, **options),
        "reliability": [found._asdict() for found in bin_probabilities(image)] if probabilities else None,
        "training": card["training"],
        "trained_on": card["trained_on"],
        "why_no_threshold": calibration.get("why_none", ""),
        "tuned": calibration.get("tuned"),
        "operating_points": check_points(calibration.get("operating_points", []), image, pixel, evaluation.bootstrap, strata),
        "p_values": check_nulls(calibration.get("nulls", []), scores, labels),
        **_draw_curves({"image": image, "pixel": pixel}, measured, evaluation.bootstrap),
        "scores": {"normal": scores[labels == 0].tolist(), "abnormal": scores[labels == 1].tolist()},
        "colour_range": _colour_range(pixel, image),
        # the same samples under the same resamples: only then may the differences of two detectors be taken
        "paired_by": digest_of(labelled["sample_id"].tolist(), evaluation.bootstrap),
    }
    digest = digest_of(result)
    uri = filesystems.join(root, "evaluations", f"{store['kind']}-{digest[:16]}.json")
    filesystems.write_bytes(_resampled_uri(uri), _encode_values(measured))
    filesystems.write_json(uri, result)
    return EvaluationReference(uri=uri, kind=store["kind"], digest=digest)


@dataclass(frozen=True)
class Resampled:
    """A detector's metrics under every resample: "level/name" -> (1 + R + G,), and level -> the stratum of each left-out group (G,)."""

    metrics: dict[str, np.ndarray]
    groups: dict[str, np.ndarray]


def read_resampled(evaluation: EvaluationReference) -> Resampled:
    """What intervals of differences are made of; empty where there are no intervals."""
    with filesystems.open_for_reading(_resampled_uri(evaluation["uri"])) as file, np.load(file, allow_pickle=False) as arrays:
        metrics = {name: arrays[name] for name in arrays.files if not name.startswith("groups/")}
        groups = {name.removeprefix("groups/"): arrays[name] for name in arrays.files if name.startswith("groups/")}
    return Resampled(metrics, groups)


def _resampled_uri(evaluation_uri: str) -> str:
    return evaluation_uri.removesuffix(".json") + ".npz"


def count_test_pixels(
    store: StoreReference, manifest: ManifestReference, *, names: pd.Series, execution: ExecutionConfig
) -> SubjectCounts | None:
    """The pixels of named rows by name, class and value; None for a detector without maps, or where no mask shows an anomaly.

    Args:
        store: of the scores.
        manifest: whose rows they are.
        names: (N,) under which name each row is counted, such as its subject; None for rows that are not.
        execution: where the shards are counted.
    """
    opened = open_store(store["uri"])
    if opened.map_size_px is None:
        return None
    asked = np.flatnonzero(names.notna())
    wanted = [name if isinstance(name, str) else None for name in names]
    jobs = [
        CountJob(store_uri=store["uri"], manifest=manifest, shard=int(shard), names=wanted[rows.start : rows.stop])
        for shard in np.unique(asked // opened.shard_rows)
        for rows in [opened.rows_of(int(shard))]
    ]
    with show_progress(f"count pixels of {store['kind']}", len(jobs)) as bar:
        counts = gather_counts(_advance(executor_for(execution).map(count_shard, jobs, together=2), bar))
    if counts is None or not counts.carries_anomaly.any():
        return None  # no abnormal sample has a mask: nothing can be said of pixels
    return counts


def _advance(counted: Iterable[SubjectCounts | None], bar: Bar) -> Iterator[SubjectCounts | None]:
    for counts in counted:
        bar.advance()
        yield counts


def _choose_rows(rows: pd.DataFrame, status: np.ndarray, config: EvaluationConfig, uri: str) -> tuple[np.ndarray, dict[str, int]]:
    """Which rows are tested (N,), and how many of the split have no score, by why."""
    if len(status) != len(rows):
        raise ScoreStoreError(f"{uri} holds {len(status)} rows, the manifest {len(rows)}: these are the scores of another manifest")
    split = ((rows["split"] == "test") & rows["excluded"].isna()).to_numpy()
    unscored = {"pending": int((split & (status != SCORED) & (status != FAILED)).sum()), "failed": int((split & (status == FAILED)).sum())}
    if unscored["pending"] and config.unscored == "refuse":
        raise ScoreStoreError(
            f"{unscored['pending']} of {int(split.sum())} test samples are not scored yet: finish scoring, or set evaluation.unscored to "
            "count, which leaves them out and says how many"
        )
    return split & (status == SCORED), unscored


def _check_labels(labels: np.ndarray) -> None:
    if len(np.unique(labels)) < 2:
        raise UndefinedMetricError(
            f"the test split has {int((labels == 0).sum())} normal and {int((labels == 1).sum())} abnormal samples with a score; "
            "metrics need both. Add abnormal pictures, or set paint to paint anomalies into some of the normal ones"
        )


def _encode_values(measured: Measured) -> bytes:
    content = io.BytesIO()
    groups = {f"groups/{level}": resamples.groups.astype(str) for level, resamples in measured.resamples.items()}
    arrays: dict[str, Any] = {**measured.values, **groups}
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def _draw_curves(levels: dict[str, SubjectCounts | None], measured: Measured, bootstrap: BootstrapConfig) -> dict[str, Any]:
    """By level: points of both curves, their bands from the resamples of the intervals, and the share of abnormal items."""
    known = {level: counts for level, counts in levels.items() if counts is not None}
    bands = {
        level: find_bands(counts, measured.resamples[level], level=bootstrap.level)
        for level, counts in known.items()
        if level in measured.resamples
    }
    return {
        "roc": {level: _thin(roc_curve, counts) for level, counts in known.items()},
        "pr": {level: _thin(precision_recall_curve, counts) for level, counts in known.items()},
        "bands": {level: {kind: [each.tolist() for each in band] for kind, band in of._asdict().items()} for level, of in bands.items()},
        "prevalence": {
            level: float(counts.abnormal.sum() / (counts.normal.sum() + counts.abnormal.sum())) for level, counts in known.items()
        },
    }


def _thin(curve: Callable[..., tuple[np.ndarray, ...]], counts: SubjectCounts) -> list[list[float]]:
    """The curve's points, so many of them, evenly along both axes, that a plot shows no difference."""
    x, y = curve(counts.normal.sum(0), counts.abnormal.sum(0))[:2]
    if len(x) > _CURVE_POINTS:
        travelled = np.concatenate([[0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
        chosen = np.unique(np.searchsorted(travelled, np.linspace(0, travelled[-1], _CURVE_POINTS)).clip(max=len(x) - 1))
        x, y = x[chosen], y[chosen]
    return [np.asarray(x, float).tolist(), np.asarray(y, float).tolist()]


def _colour_range(pixel: SubjectCounts | None, image: SubjectCounts) -> list[float]:
    """One fixed scale for a detector's maps: from the median of normal pixels to the 99.9th percentile of all."""
    counts = pixel if pixel is not None else image
    normal = counts.normal.sum(0)
    return [_quantile(counts.values, normal, 0.5), _quantile(counts.values, normal + counts.abnormal.sum(0), 0.999)]


def _quantile(values: np.ndarray, weights: np.ndarray, q: float) -> float:
    total = np.cumsum(weights)
    return float(values[np.searchsorted(total, q * total[-1])])
