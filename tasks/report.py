"""Gather what the report shows and write it: one HTML file, and the same numbers as JSON and CSV."""

import hashlib
import itertools
import platform
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import yaml

from methods.evaluation.bootstrap import BootstrapConfig
from storage import filesystems
from storage.manifest import read_manifest
from storage.models import Bundle, read_bundle
from storage.reports.contents import (
    ConstantRow,
    CountRow,
    DetectorResult,
    DifferenceRow,
    Extremes,
    MetricRow,
    PValueRow,
    Report,
    SubgroupRow,
    Threshold,
)
from storage.reports.figures import LearningCurve
from storage.reports.numbers import metrics_as_csv, metrics_as_json
from storage.reports.page import head_notice, render_html
from storage.scores import FAILED, ScoreStore, open_store
from tasks.assets import tell_made
from tasks.caching import cached_task, code_fingerprint
from tasks.evaluate import read_resampled
from tasks.labels import label_detectors
from tasks.measures import measure_difference
from tasks.progress import show_progress
from tasks.references import EvaluationReference, ManifestReference, ModelReference, ReportReference, StoreReference
from tasks.report_pictures import Shown, choose_extremes, choose_gallery, choose_slides, show_slide

_SPLITS = ("train", "validation", "test", "archive")


@cached_task(
    name="write report",
    run_name="write report {name}",
    outputs_exist=lambda report: all(filesystems.exists(uri) for uri in report.values()),
)
def write_report(
    name: str,
    manifest: ManifestReference,
    models: list[ModelReference],
    stores: list[StoreReference],
    evaluations: list[EvaluationReference],
    *,
    notice: str | None,
    configuration: dict[str, Any],
    bootstrap: BootstrapConfig,
    store: str,
) -> ReportReference:
    """Write the report on the evaluations of all detectors of a run."""
    rows = read_manifest(manifest["uri"], digest=manifest["digest"])
    measured = [filesystems.read_json(evaluation["uri"]) for evaluation in evaluations]
    bundles = [read_bundle(model["uri"], digest=model["digest"]) for model in models]
    labels = label_detectors([bundle.config for bundle in bundles])
    shown = {
        label: Shown(open_store(reference["uri"]), model, _pixel_threshold(result))
        for label, reference, model, result in zip(labels, stores, models, measured, strict=True)
    }
    slides, left_out = choose_slides(rows)
    with show_progress("write report", 2 + len(slides)) as bar:
        gallery = choose_gallery(rows, shown)
        bar.advance()
        report = Report(
            title=name,
            painted=notice is not None,
            generated_note=notice,
            run=_describe_run(manifest) | _describe_models(labels, models, bundles) | _say_how_to_repeat(configuration),
            counts=_count(rows, shown[labels[0]].store),
            detectors=[
                _describe_detector(label, result, bundle.pictures, choose_extremes(rows, shown[label].store))
                for label, result, bundle in zip(labels, measured, bundles, strict=True)
            ],
            gallery=gallery,
            gallery_by=labels[0],
            slides=[show_slide(group, shown, bar) for group in slides],
            slides_left_out=left_out,
            n_subjects=measured[0]["subjects"]["all"],
            constants=[ConstantRow(answer=answer, **row) for answer, found in measured[0]["constant"].items() for row in found],
            differences=_subtract(labels, evaluations, measured, coverage=bootstrap.level),
            level=bootstrap.level,
            interval=bootstrap.interval,
            unpaired=_explain_unpaired(labels, measured),
            n_resamples=bootstrap.replicates if any(metric["low"] is not None for metric in measured[0]["metrics"]) else None,
        )
        contents = {
            "report.html": render_html(report),
            "metrics.json": metrics_as_json(report),
            "metrics.csv": metrics_as_csv(report),
            "run.yaml": _as_yaml(configuration),
        }
        bar.advance()
    folder = filesystems.join(
        store, "reports", f"{name}-{hashlib.sha256(contents['report.html'].encode()).hexdigest()[:12]}".replace(" ", "-")
    )
    uris = {file: filesystems.join(folder, file) for file in contents}
    for file, text in contents.items():
        filesystems.write_bytes(uris[file], text.encode())
    tell_made(uris["report.html"], name=f"report of {name}", of=[reference["uri"] for reference in (*stores, *models)])
    return ReportReference(html_uri=uris["report.html"], json_uri=uris["metrics.json"], csv_uri=uris["metrics.csv"])


def _pixel_threshold(result: dict[str, Any]) -> float | None:
    """The one that the metrics use: the first of its level."""
    return next((float(point["value"]) for point in result["operating_points"] if point["level"] == "pixel"), None)


def _subtract(
    labels: list[str], evaluations: list[EvaluationReference], measured: list[dict[str, Any]], *, coverage: float
) -> list[DifferenceRow]:
    """Differences of all pairs of detectors that were measured on the same samples under the same resamples."""
    found = []
    of_detector = zip(labels, evaluations, measured, strict=True)
    for (one_label, first, one), (other_label, second, other) in itertools.combinations(of_detector, 2):
        if one["paired_by"] != other["paired_by"]:
            continue
        values, others = read_resampled(first), read_resampled(second)
        for name in (name for name in values.metrics if name in others.metrics):
            level, metric = name.split("/", 1)
            row = measure_difference(level, metric, values.metrics[name], others.metrics[name], values.groups[level], coverage=coverage)
            found.append(DifferenceRow(one_label, other_label, MetricRow(**row)))
    return found


def _explain_unpaired(labels: list[str], measured: list[dict[str, Any]]) -> str:
    alone = [label for label, one in zip(labels, measured, strict=True) if one["paired_by"] != measured[0]["paired_by"]]
    if not alone:
        return ""
    return f"Measured on other samples than {labels[0]}, and therefore not compared with it: {', '.join(alone)}."


def summarise(evaluations: list[EvaluationReference], *, notice: str | None) -> str:
    """The metrics as a Markdown table, for the Prefect UI."""
    lines = [f"> **{head_notice(notice)}** {notice}", ""] if notice else []
    lines += ["| detector | level | metric | value | interval over subjects |", "|---|---|---|---|---|"]
    measured = [filesystems.read_json(evaluation["uri"]) for evaluation in evaluations]
    for label, result in zip(label_detectors([result["detector"] for result in measured]), measured, strict=True):
        for row in result["metrics"]:
            interval = f"{row['low']:.3f} to {row['high']:.3f}" if row["low"] is not None else row["note"]
            lines.append(f"| {label} | {row['level']} | {row['name']} | {row['value']:.3f} | {interval} |")
    for answer, rows in measured[0]["constant"].items() if measured else ():
        lines += [f"| *constant: {answer}* | {row['level']} | {row['name']} | {row['value']:.3f} | |" for row in rows]
    return "\n".join(lines)


def _describe_run(manifest: ManifestReference) -> dict[str, str]:
    return {
        "manifest digest": manifest["digest"],
        "code": f"normascope {version('normascope')}, fingerprint {code_fingerprint(__name__)[:16]}",
        "packages": ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scikit-learn", "zarr", "prefect", "dask")),
        "python": platform.python_version(),
    }


def _describe_models(labels: list[str], models: list[ModelReference], bundles: list[Bundle]) -> dict[str, str]:
    """What each detector was trained on, and with what."""
    trained = zip(labels, models, bundles, strict=True)
    return {label: f"model {model['digest']}. {_describe_training(bundle.card)}" for label, model, bundle in trained}


def _describe_training(card: dict[str, Any]) -> str:
    data, training, code = card["trained_on"], card["training"], card["code"]
    epoch = f", epoch {training['best_epoch']} of {len(training['curve'])} kept" if training["curve"] else ""
    packages = ", ".join(f"{name} {number}" for name, number in card["packages"].items())
    subjects = f"{data['subjects']:,} subject{'' if data['subjects'] == 1 else 's'}"
    return (
        f"Trained on {data['samples']:,} samples ({data['abnormal']:,} abnormal) of {subjects} in manifest "
        f"{data['manifest_digest']}, seed {training['seed']}{epoch}, by normascope {code['normascope']}, fingerprint "
        f"{code['fingerprint'][:16]}, with {packages}."
    )


def _say_how_to_repeat(configuration: dict[str, Any]) -> dict[str, str]:
    return {
        "to run it again": "normascope run run.yaml, with the configuration below, which lies beside this page as run.yaml",
        "run.yaml": _as_yaml(configuration),
    }


def _as_yaml(configuration: dict[str, Any]) -> str:
    return yaml.safe_dump(configuration, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def _describe_detector(label: str, result: dict[str, Any], pictures: dict[str, bytes], extremes: list[Extremes]) -> DetectorResult:
    thresholds = [
        Threshold(
            level=point["level"],
            name=f"{point['level']} threshold",
            value=point["value"],
            chosen_by=point["rule"],
            promised=point["detail"],
            split=point["split"],
            came=[MetricRow(**row) for row in point["came"]],
        )
        for point in result["operating_points"]
    ]
    training = result["training"]
    low, high = result["colour_range"]
    return DetectorResult(
        name=label,
        kind=result["kind"],
        metrics=[MetricRow(**row) for row in result["metrics"]],
        thresholds=thresholds,
        roc={level: (np.array(x), np.array(y)) for level, (x, y) in result["roc"].items()},
        pr={level: (np.array(x), np.array(y)) for level, (x, y) in result["pr"].items()},
        roc_bands={level: _as_band(bands["roc"]) for level, bands in result["bands"].items()},
        pr_bands={level: _as_band(bands["pr"]) for level, bands in result["bands"].items()},
        prevalence=result["prevalence"],
        scores_normal=np.array(result["scores"]["normal"]),
        scores_abnormal=np.array(result["scores"]["abnormal"]),
        colour_range=(low, high if high > low else low + 1e-6),
        operating=". ".join(text for text in (result["why_no_threshold"], _describe_tuned(result["tuned"])) if text),
        learning=LearningCurve.of(training["curve"], best_epoch=training["best_epoch"]) if training["curve"] else None,
        p_values=[
            PValueRow(row["kind"], row.get("rate"), row.get("normal"), row.get("abnormal"), row.get("why_none", ""))
            for row in result["p_values"]
        ],
        training_samples=pictures.get("samples"),
        trained_on_abnormal=result["trained_on"].get("abnormal", 0),
        subgroups=[SubgroupRow(**{**row, "metrics": [MetricRow(**metric) for metric in row["metrics"]]}) for row in result["subgroups"]],
        reliability=[(found["items"], found["mean_probability"], found["abnormal"]) for found in result["reliability"] or ()],
        unscored=result["unscored"],
        extremes=extremes,
    )


def _as_band(ends: list[list[float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    at, low, high = map(np.array, ends)
    return at, low, high


def _describe_tuned(tuned: dict[str, Any] | None) -> str:
    if tuned is None:
        return ""
    tried = "".join(f", {value:g}: {found:.3f}" for value, found in tuned.get("tried", []))
    return f"{tuned['name']} = {tuned['value']:g}, by {tuned['by']}{f' (tried{tried[1:]})' if tried else ''}"


def _count(rows: pd.DataFrame, store: ScoreStore) -> list[CountRow]:
    """Samples and subjects by split and label; failures are those of the first detector, which all read the same files."""
    failures = store.failures().set_index("row")["reason"] if (store.status() == FAILED).any() else pd.Series(dtype=str)
    names = {0: "normal", 1: "abnormal"}
    table = rows.assign(
        split=rows["split"].fillna("none"),
        label=rows["label"].map(names).astype("string").fillna("unknown"),
        failed=failures.reindex(range(len(rows))).where(rows["excluded"].isna().to_numpy()).to_numpy(),
    )
    counts = [
        CountRow(
            split=str(split),
            label=str(label),
            samples=len(group),
            subjects=int(group["subject_id"].nunique()),
            excluded={str(reason): int(n) for reason, n in group["excluded"].value_counts().items()},
            failed={str(reason): int(n) for reason, n in group["failed"].value_counts().items()},
        )
        for (split, label), group in table.groupby(["split", "label"])
    ]
    order = {split: position for position, split in enumerate((*_SPLITS, "none"))}
    return sorted(counts, key=lambda row: (order[row.split], row.label != "normal"))
