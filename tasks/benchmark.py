"""One-class benchmarks: which experiments there are, what of each is scored, and one table over all of them."""

import io
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from methods.evaluation.bootstrap import BootstrapConfig
from methods.evaluation.histograms import SubjectCounts, count_scores
from methods.evaluation.metrics import average_precision, roc_auc
from methods.evaluation.repeats import Summary, Weights, draw_weights, rank_detectors, replicate, summarise
from storage import filesystems
from storage.manifest import read_manifest, write_manifest
from storage.scores import SCORED, open_store
from tasks.caching import cached_task, digest_of
from tasks.evaluate import count_test_pixels
from tasks.execution import ExecutionConfig
from tasks.labels import label_stores
from tasks.progress import show_progress
from tasks.references import ManifestReference, StoreReference

_METRICS = {"AUROC": roc_auc, "average precision": average_precision}
_RANK = "rank by AUROC"
_LEVELS = {"image": "", "pixel": "pixel "}  # before the metric's name


class BenchmarkPlan(BaseModel):
    """Every class in turn is normal, with every seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str = Field(description="file with the run's configuration, of which class and seed are replaced; relative to this one")
    classes: dict[str, tuple[int | str | tuple[int, ...], ...]] = Field(
        description="the source's key that says what is normal, and the values it takes: `normal_digit: [0, 1, 2]`"
    )
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1, description="each draws the split and the training anew")
    bootstrap: BootstrapConfig = BootstrapConfig()

    @field_validator("classes")
    @classmethod
    def _one_key(cls, classes: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        if len(classes) != 1 or not all(classes.values()):
            raise ValueError(f"expected one key of the source with one value or more, got {list(classes)}")
        return classes


class Experiment(TypedDict):
    """One class with one seed: the tested samples and the scores of each detector, in the order of the configuration."""

    normal: str
    seed: int
    tested: ManifestReference
    stores: list[StoreReference]


class BenchmarkReference(TypedDict):
    """The table, and the same as files for people and programs."""

    json_uri: str
    csv_uri: str
    markdown_uri: str


def keep_test(manifest: ManifestReference, *, store: str) -> ManifestReference:
    """The manifest's test split as a manifest of its own: a benchmark scores nothing else."""
    rows = read_manifest(manifest["uri"], digest=manifest["digest"])
    rows = rows[(rows["split"] == "test") & rows["excluded"].isna() & rows["label"].notna()]
    uri = filesystems.join(store, "manifests", f"test-of-{manifest['digest'][:16]}.parquet")
    return ManifestReference(**{**manifest, "uri": uri, "digest": write_manifest(uri, rows), "rows": len(rows)})


@cached_task(
    name="write benchmark",
    run_name="write benchmark {name}",
    outputs_exist=lambda reference: all(filesystems.exists(uri) for uri in reference.values()),
    ignore=("execution",),
)
def write_benchmark(
    name: str, experiments: list[Experiment], *, bootstrap: BootstrapConfig, store: str, execution: ExecutionConfig
) -> BenchmarkReference:
    """Mean, interval and deviation of every detector's metrics over all experiments, as JSON, CSV and Markdown.

    Image metrics, and pixel metrics of the detectors that have maps where every experiment has masks; and the mean over experiments of the
    rank that a detector's image AUROC has among all (1 is the highest).

    Args:
        name: of the benchmark.
        experiments: every class with every seed.
        bootstrap: of the intervals.
        store: where the files go.
        execution: where pixels are counted.

    Raises:
        UndefinedMetricError: an experiment tests one class alone, or a class has a single subject.
    """
    seeds = sorted({experiment["seed"] for experiment in experiments})
    classes = list(dict.fromkeys(experiment["normal"] for experiment in experiments))
    at = {(experiment["seed"], experiment["normal"]): experiment for experiment in experiments}
    tables = {key: read_manifest(found["tested"]["uri"], digest=found["tested"]["digest"]) for key, found in at.items()}
    rng = np.random.default_rng(bootstrap.seed)
    weights = draw_weights(true_classes(tables), seeds=len(seeds), replicates=bootstrap.replicates, rng=rng)
    stores = experiments[0]["stores"]
    rows: list[dict[str, Any]] = []
    compared = []  # image AUROC of each detector, under all resamples
    with show_progress("summarise the benchmark", len(stores) * len(experiments)) as bar:
        for position, (scored, label) in enumerate(zip(stores, label_stores(stores), strict=True)):
            row: dict[str, Any] = {"detector": label, "kind": scored["kind"], "metrics": {}}
            for level, prefix in _LEVELS.items():
                counts = {key: counted for key in at if (counted := _count(tables[key], at[key], position, level, execution)) is not None}
                for metric, statistic in _METRICS.items() if len(counts) == len(at) else ():
                    values = [[replicate(counts[seed, each], statistic, weights) for each in classes] for seed in seeds]
                    moved = np.moveaxis(np.array(values), -1, 0)
                    if prefix + metric == "AUROC":
                        compared.append(moved)
                    row["metrics"][prefix + metric] = _as_row(summarise(moved, weights, level=bootstrap.level), classes)
            rows.append(row)
            bar.advance(len(experiments))
    for row, found in zip(rows, rank_detectors(np.array(compared), weights, level=bootstrap.level), strict=True):
        row["metrics"][_RANK] = _as_row(found, classes)
    result = {
        "name": name,
        "classes": classes,
        "seeds": seeds,
        "tested": _describe(tables),
        "interval": _explain(bootstrap, weights, seeds),
        "detectors": rows,
    }
    return _write(result, store)


def flatten(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a detector and metric: for the CSV and the UI."""
    return [
        {"detector": row["detector"], "metric": metric, **{key: value for key, value in found.items() if key != "by_class"}}
        | {f"normal: {name}": value for name, value in found["by_class"].items()}
        for row in result["detectors"]
        for metric, found in row["metrics"].items()
    ]


def as_markdown(result: dict[str, Any]) -> str:
    """The same for people: means with intervals, then AUROC by class; images first, then pixels where there are any."""
    parts = [
        _tabulate(result, prefix) for prefix in _LEVELS.values() if any(prefix + "AUROC" in row["metrics"] for row in result["detectors"])
    ]
    return "\n".join([*(line for part in parts for line in [*part, ""]), result["interval"]["covers"], ""])


def _tabulate(result: dict[str, Any], prefix: str) -> list[str]:
    level = f"{result['interval']['level']:.0%} interval"
    ranked = not prefix
    head = f"| | {prefix}AUROC | {level} | SD over seeds | {prefix}average precision | {level} |" + (
        f" mean rank | {level} |" if ranked else ""
    )
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    rows = [row for row in result["detectors"] if prefix + "AUROC" in row["metrics"]]
    for row in rows:
        auroc, precision = (row["metrics"][prefix + metric] for metric in _METRICS)
        deviation = "–" if auroc["sd_over_seeds"] is None else f"{auroc['sd_over_seeds']:.3f}"
        rank = row["metrics"][_RANK]
        lines.append(
            f"| {row['detector']} | {auroc['mean']:.3f} | {auroc['low']:.3f} to {auroc['high']:.3f} | {deviation} "
            f"| {precision['mean']:.3f} | {precision['low']:.3f} to {precision['high']:.3f} |"
            + (f" {rank['mean']:.1f} | {rank['low']:.1f} to {rank['high']:.1f} |" if ranked else "")
        )
    lines += [
        "",
        f"{prefix}AUROC by normal class:",
        "",
        f"| | {' | '.join(result['classes'])} |",
        "|---" * (1 + len(result["classes"])) + "|",
    ]
    for row in rows:
        by_class = row["metrics"][prefix + "AUROC"]["by_class"].values()
        lines.append(f"| {row['detector']} | {' | '.join(f'{value:.3f}' for value in by_class)} |")
    return lines


def true_classes(tables: dict[tuple[int, str], pd.DataFrame]) -> dict[str, str]:
    """What each tested subject truly is: its finding, or the class that is normal where it is normal."""
    strata: dict[str, str] = {}
    for (_, normal), table in sorted(tables.items(), key=lambda item: item[0]):
        strata |= dict(zip(table["subject_id"].astype(str), table["finding"].fillna(normal).astype(str), strict=True))
    return dict(sorted(strata.items()))


def _count(table: pd.DataFrame, experiment: Experiment, position: int, level: str, execution: ExecutionConfig) -> SubjectCounts | None:
    """Image scores or pixels of one detector in one experiment; None where it has no maps or the experiment no masks."""
    store = experiment["stores"][position]
    if level == "pixel":
        if table["mask_uri"].isna().all():
            return None
        scored = open_store(store["uri"]).status() == SCORED
        names = table["subject_id"].astype(object).where(scored, None)
        return count_test_pixels(store, experiment["tested"], names=names, execution=execution)
    scores = open_store(store["uri"], expected={"manifest_digest": store["manifest_digest"]}).image_scores()
    return count_scores(scores, table["label"].to_numpy(int), table["subject_id"].to_numpy(str))


def _as_row(found: Summary, classes: list[str]) -> dict[str, Any]:
    return {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "sd_over_seeds": found.deviation,
        "by_class": dict(zip(classes, found.by_class, strict=True)),
    }


def _describe(tables: dict[tuple[int, str], pd.DataFrame]) -> list[dict[str, Any]]:
    return [
        {"seed": seed, "normal_class": normal, "normal": int((table["label"] == 0).sum()), "abnormal": int((table["label"] == 1).sum())}
        for (seed, normal), table in tables.items()
    ]


def _explain(bootstrap: BootstrapConfig, weights: Weights, seeds: list[int]) -> dict[str, Any]:
    over_seeds = (
        f" and over the {len(seeds)} seeds, each of which draws split and training anew"
        if len(seeds) > 1
        else "; there is one seed, so that neither the draw of the split nor that of the training is covered"
    )
    return {
        "level": bootstrap.level,
        "replicates": bootstrap.replicates,
        "covers": f"Intervals: {bootstrap.replicates} replicates over the {len(weights.subjects)} tested subjects, resampled within their "
        f"true class with one weight in all experiments{over_seeds}. The classes are all there are and are not resampled.",
    }


def _write(result: dict[str, Any], store: str) -> BenchmarkReference:
    folder = filesystems.join(store, "benchmarks", f"{result['name']}-{digest_of(result)[:12]}".replace(" ", "-"))
    reference = BenchmarkReference(
        json_uri=filesystems.join(folder, "benchmark.json"),
        csv_uri=filesystems.join(folder, "benchmark.csv"),
        markdown_uri=filesystems.join(folder, "benchmark.md"),
    )
    filesystems.write_json(reference["json_uri"], result)
    buffer = io.StringIO()
    pd.DataFrame(flatten(result)).to_csv(buffer, index=False)
    filesystems.write_bytes(reference["csv_uri"], buffer.getvalue().encode())
    filesystems.write_bytes(reference["markdown_uri"], as_markdown(result).encode())
    return reference
