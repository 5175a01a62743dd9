"""Evaluate a store on a split: exact counts shard by shard, metrics with intervals, curves; written as JSON."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

from methods.evaluation.bootstrap import BootstrapConfig
from methods.evaluation.histograms import SubjectCounts, count_pixels, count_scores, merge_counts
from methods.evaluation.metrics import UndefinedMetricError, precision_recall_curve, roc_curve
from methods.evaluation.thresholds import Threshold
from storage import filesystems
from storage.manifest import read_manifest
from storage.models import read_bundle
from storage.scores import SCORED, open_store
from tasks.caching import cached_task, digest_of
from tasks.execution import ExecutionConfig, executor_for
from tasks.measures import measure
from tasks.progress import show_progress
from tasks.promises import check_nulls, check_points
from tasks.references import EvaluationReference, ManifestReference, ModelReference, StoreReference
from tasks.samples import read_sample_mask

_CURVE_POINTS = 400


class EvaluationConfig(BaseModel):
    """What is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap: BootstrapConfig = BootstrapConfig()


class CountJob(TypedDict):
    """All that a worker needs to count one shard's pixels."""

    store_uri: str
    manifest: ManifestReference
    shard: int
    split: str


@cached_task(
    name="evaluate",
    run_name="evaluate {store[kind]}",
    outputs_exist=lambda evaluation: filesystems.exists(evaluation["uri"]),
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
    """
    rows = read_manifest(manifest["uri"], digest=manifest["digest"])
    opened = open_store(store["uri"], expected={"manifest_digest": manifest["digest"], "model_digest": model["digest"]})
    tested = ((rows["split"] == "test") & (opened.status() == SCORED)).to_numpy()
    labelled = tested & rows["label"].notna().to_numpy()
    scores, labels = opened.image_scores()[labelled], rows["label"][labelled].to_numpy(int)
    if len(np.unique(labels)) < 2:
        raise UndefinedMetricError(
            f"the test split has {int((labels == 0).sum())} normal and {int((labels == 1).sum())} abnormal samples with a score; "
            "metrics need both. Add abnormal pictures, or set paint to paint anomalies into some of the normal ones"
        )
    image = count_scores(scores, labels, rows["subject_id"][labelled].to_numpy(str))
    pixel = count_test_pixels(store, manifest, shards=np.flatnonzero(tested) // opened.shard_rows, execution=execution)
    card = read_bundle(model["uri"], digest=model["digest"]).card
    calibration = card["calibration"]
    thresholds = {level: Threshold(**found) for level, found in calibration.get("thresholds", {}).items()}
    result = {
        "kind": store["kind"],
        "split": "test",
        "subjects": {"all": len(image.subjects), "with anomaly": int((image.abnormal.sum(1) > 0).sum())},
        "samples": outcome,
        "metrics": measure(image, pixel, thresholds=thresholds, bootstrap=evaluation.bootstrap),
        "training": card["training"],
        "trained_on": card["trained_on"],
        "why_no_threshold": calibration.get("why_none", ""),
        "tuned": calibration.get("tuned"),
        "operating_points": check_points(calibration.get("operating_points", []), image, pixel, evaluation.bootstrap),
        "p_values": check_nulls(calibration.get("nulls", []), scores, labels),
        "roc": {level: _thin(roc_curve, counts) for level, counts in (("image", image), ("pixel", pixel)) if counts is not None},
        "pr": {
            level: _thin(precision_recall_curve, counts) for level, counts in (("image", image), ("pixel", pixel)) if counts is not None
        },
        "scores": {"normal": scores[labels == 0].tolist(), "abnormal": scores[labels == 1].tolist()},
        "colour_range": _colour_range(pixel, image),
    }
    digest = digest_of(result)
    uri = filesystems.join(root, "evaluations", f"{store['kind']}-{digest[:16]}.json")
    filesystems.write_json(uri, result)
    return EvaluationReference(uri=uri, kind=store["kind"], digest=digest)


def count_shard(job: CountJob) -> SubjectCounts | None:
    """The pixels of a shard's scored samples of the split, by subject, class and value; None where no mask is known."""
    store = open_store(job["store_uri"])
    span = store.rows_of(job["shard"])
    table = _manifest(job["manifest"]["uri"], job["manifest"]["digest"]).iloc[span.start : span.stop]
    wanted = (table["split"] == job["split"]).to_numpy() & (store.status()[span.start : span.stop] == SCORED)
    size = store.map_size_px
    if size is None:
        return None
    masks = [read_sample_mask(row, size_px=size) if take else None for row, take in zip(table.to_dict("records"), wanted, strict=True)]
    known = np.array([i for i, mask in enumerate(masks) if mask is not None], int)
    if not len(known):
        return None
    maps = store.read_maps(span)[known]
    return count_pixels(maps, np.stack([mask for mask in masks if mask is not None]), table["subject_id"].to_numpy(str)[known])


def count_test_pixels(
    store: StoreReference, manifest: ManifestReference, *, shards: np.ndarray, execution: ExecutionConfig
) -> SubjectCounts | None:
    """The pixels of the test split, by subject, class and value; None for a detector without maps, or where no mask shows an anomaly.

    Args:
        store: of the scores.
        manifest: whose rows they are.
        shards: numbers of those that hold samples of the test split; may repeat.
        execution: where the shards are counted.
    """
    if open_store(store["uri"]).map_size_px is None:
        return None
    jobs = [CountJob(store_uri=store["uri"], manifest=manifest, shard=int(shard), split="test") for shard in np.unique(shards)]
    counts: list[SubjectCounts] = []
    with show_progress(f"count pixels of {store['kind']}", len(jobs)) as bar:
        for found in executor_for(execution).map(count_shard, jobs):
            bar.advance()
            if found is not None:
                counts = [merge_counts([*counts, found])]
    if not counts or not counts[0].abnormal.any():
        return None  # no abnormal sample has a mask: nothing can be said of pixels
    return counts[0]


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
    return [_quantile(counts.values, counts.normal.sum(0), 0.5), _quantile(counts.values, (counts.normal + counts.abnormal).sum(0), 0.999)]


def _quantile(values: np.ndarray, weights: np.ndarray, q: float) -> float:
    total = np.cumsum(weights)
    return float(values[np.searchsorted(total, q * total[-1])])


@lru_cache(maxsize=2)
def _manifest(uri: str, digest: str) -> pd.DataFrame:
    return read_manifest(uri, digest=digest)
