"""One detector of one experiment of a reproduced paper: what became of it, what is measured of it, and which number a column takes."""

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from methods.evaluation.bootstrap import BootstrapConfig
from methods.evaluation.histograms import SubjectCounts, count_scores
from methods.evaluation.metrics import UndefinedMetricError, average_precision, roc_auc
from methods.evaluation.repeats import draw_weights, replicate, summarise
from methods.evaluation.thresholds import Threshold
from storage import filesystems
from storage.manifest import read_manifest
from storage.models import read_card
from storage.scores import SCORED, open_store
from tasks.benchmark import true_classes
from tasks.caching import cached_task, digest_of
from tasks.evaluate import count_test_pixels
from tasks.execution import ExecutionConfig
from tasks.measures import measure
from tasks.references import EvaluationReference, ManifestReference, ModelReference, ReportReference, StoreReference
from tasks.reproduce import ColumnPlan, RowPlan, View, find_view
from tasks.subgroups import stratify

_REASON_LENGTH = 300
POOLED = {"AUROC": roc_auc, "average precision": average_precision}


class ViewReference(TypedDict):
    """Metrics beside an evaluation, as a JSON file."""

    uri: str
    digest: str


class Cell(TypedDict):
    """A detector of an experiment: everything, or why there is nothing. A view that failed is its reason."""

    model: ModelReference | None
    store: StoreReference | None
    evaluation: EvaluationReference | None
    views: dict[str, ViewReference | str]
    failed: str | None


class Experiment(TypedDict):
    """A run with one class normal and one seed; its cells are in the order of its detectors. What failed of the whole, if anything."""

    run: str
    title: str
    normal: str | None
    seed: int
    manifest: ManifestReference | None
    tested: ManifestReference | None
    cells: list[Cell]
    report: ReportReference | None
    failed: str | None


class NotMeasuredError(Exception):
    """There is no such number; the message says why."""


@dataclass(frozen=True)
class Found:
    """A number with its interval and the standard deviation of the resamples, where there are any."""

    value: float
    low: float | None
    high: float | None
    deviation: float | None


def explain(error: BaseException) -> str:
    """The reason that a table gives for a cell that failed."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", _REASON_LENGTH, placeholder=" …")


@cached_task(
    name="measure view",
    run_name="measure {store[kind]}: {view.key}",
    outputs_exist=lambda view: filesystems.exists(view["uri"]),
    ignore=("execution",),
)
def measure_view(
    store: StoreReference,
    tested: ManifestReference,
    model: ModelReference,
    *,
    view: View,
    bootstrap: BootstrapConfig,
    execution: ExecutionConfig,
    root: str,
) -> ViewReference:
    """Metrics of a level at a threshold, of all test samples or of the abnormal ones alone, on the resamples of the evaluation's kind.

    Raises:
        UndefinedMetricError: a class is missing, or no abnormal sample has a mask.
        NotMeasuredError: the model has no such threshold.
    """
    rows = read_manifest(tested["uri"], digest=tested["digest"])
    opened = open_store(store["uri"], expected={"manifest_digest": tested["digest"], "model_digest": model["digest"]})
    used = pd.Series(opened.status() == SCORED, rows.index)
    if view.samples == "abnormal":
        used &= rows["label"] == 1
    image = pixel = None
    if view.level == "image":
        image = count_scores(opened.image_scores()[used], rows["label"][used].to_numpy(int), rows["subject_id"][used].to_numpy(str))
    else:
        names = rows["subject_id"].astype(object).where(used, None)
        pixel = count_test_pixels(store, tested, names=names, execution=execution)
        if pixel is None:
            raise UndefinedMetricError("there are no maps, or no abnormal test sample has a mask")
    found = measure(
        image,
        pixel,
        thresholds=_choose_threshold(model, view),
        bootstrap=bootstrap,
        strata=stratify(rows[used], bootstrap),
    ).rows
    uri = filesystems.join(root, "evaluations", f"view-{store['kind']}-{digest_of(found, view)[:16]}.json")
    filesystems.write_json(uri, found)
    return ViewReference(uri=uri, digest=digest_of(found))


def read_found(experiment: Experiment, position: int, column: ColumnPlan, row: RowPlan) -> Found:
    """The number that a column takes of a cell.

    Raises:
        NotMeasuredError: the cell failed, or there is no such number.
    """
    cell = experiment["cells"][position]
    if cell["evaluation"] is None or cell["model"] is None:
        raise NotMeasuredError(f"failed: {cell['failed']}")
    for found in _read_rows(cell, cell["evaluation"], cell["model"], column, row):
        if (found["level"], found["name"]) == (column.level, column.metric):
            return Found(found["value"], found.get("low"), found.get("high"), found.get("sd"))
    raise NotMeasuredError(f"no {column.level} {column.metric}")


def pool_cells(
    experiments: list[Experiment], position: int, column: ColumnPlan, *, bootstrap: BootstrapConfig
) -> tuple[float, float] | None:
    """The interval of an image metric's mean over experiments: every class with every seed, subjects and seeds resampled.

    Subjects are resampled within their true class where classes take turns at being normal, otherwise by whether they carry anomaly.

    Args:
        experiments: whose cells have scores.
        position: of the detector.
        column: which metric, and of which finding.
        bootstrap: replicates, seed and level.

    Returns:
        Low and high; None where a stratum has a single subject.
    """
    seeds = sorted({experiment["seed"] for experiment in experiments})
    classes = list(dict.fromkeys(experiment["normal"] for experiment in experiments))
    at = {(experiment["seed"], str(experiment["normal"])): experiment for experiment in experiments}
    tables = {key: _tested_rows(experiment, column.finding) for key, experiment in at.items()}
    strata = true_classes(tables) if len(classes) > 1 else _carriers(pd.concat(tables.values()))
    try:
        weights = draw_weights(strata, seeds=len(seeds), replicates=bootstrap.replicates, rng=np.random.default_rng(bootstrap.seed))
        counts = {key: _count(tables[key], experiment["cells"][position]) for key, experiment in at.items()}
        values = [[replicate(counts[seed, str(each)], POOLED[column.metric], weights) for each in classes] for seed in seeds]
    except UndefinedMetricError:
        return None
    found = summarise(np.moveaxis(np.array(values), -1, 0), weights, level=bootstrap.level)
    return found.low, found.high


def can_pool(column: ColumnPlan, row: RowPlan) -> bool:
    """Whether the mean over experiments of a column has an interval."""
    at = column.level == "image" and column.metric in POOLED
    return at and row.constant is None and column.split == "test"


def _choose_threshold(model: ModelReference, view: View) -> dict[str, Threshold]:
    if isinstance(view.at, float):
        return {view.level: Threshold(view.at, "fixed", "")}
    points = read_card(model["uri"], digest=model["digest"])["calibration"].get("operating_points", [])
    points = [point for point in points if point["level"] == view.level]
    if view.at is None:  # metrics over all thresholds need none
        return {view.level: Threshold(points[0]["value"], points[0]["rule"], points[0]["detail"])} if points else {}
    for point in points:
        if view.at in point["rule"]:
            return {view.level: Threshold(point["value"], point["rule"], point["detail"])}
    raise NotMeasuredError(f"the model's card has no {view.level} threshold by {view.at!r}")


def _read_rows(cell: Cell, reference: EvaluationReference, model: ModelReference, column: ColumnPlan, row: RowPlan) -> list[dict[str, Any]]:
    """Rows of metrics among which a column's is."""
    if column.split == "validation":
        return list(read_card(model["uri"], digest=model["digest"])["calibration"].get("metrics", []))
    view = find_view(row, column)
    if view is not None:
        found = cell["views"].get(view.key, "was not measured")
        if isinstance(found, str):
            raise NotMeasuredError(f"failed: {found}")
        return list(filesystems.read_json(found["uri"]))
    evaluation = filesystems.read_json(reference["uri"])
    if row.constant is not None:
        return list(evaluation["constant"][row.constant])
    if column.finding is None:
        return list(evaluation["metrics"])
    for group in evaluation["subgroups"]:
        if (group["grouping"], group["group"]) == ("finding", column.finding):
            if not group["metrics"]:
                raise NotMeasuredError(group["note"])
            return list(group["metrics"])
    raise NotMeasuredError(f"no test sample has the finding {column.finding}, or all have it")


def _tested_rows(experiment: Experiment, finding: str | None) -> pd.DataFrame:
    assert experiment["tested"] is not None  # its cells have scores
    rows = read_manifest(experiment["tested"]["uri"], digest=experiment["tested"]["digest"])
    return rows if finding is None else rows[(rows["label"] == 0) | (rows["finding"] == finding)]


def _carriers(rows: pd.DataFrame) -> dict[str, str]:
    """Of each subject whether it carries anomaly."""
    carries = rows["label"].eq(1).groupby(rows["subject_id"].astype(str)).any()
    return {str(subject): str(int(found)) for subject, found in carries.items()}


def _count(rows: pd.DataFrame, cell: Cell) -> SubjectCounts:
    assert cell["store"] is not None
    opened = open_store(cell["store"]["uri"], expected={"manifest_digest": cell["store"]["manifest_digest"]})
    scored = rows[opened.status()[rows.index] == SCORED]
    return count_scores(opened.image_scores()[scored.index], scored["label"].to_numpy(int), scored["subject_id"].to_numpy(str))
