"""The numbers of a report as JSON and as CSV: every number of the page stands in both."""

import csv
import io
import json
from typing import Any

import numpy as np

from storage.reports import curves
from storage.reports.contents import DetectorResult, Report

_COLUMNS = ("section", "detector", "level", "name", "group", "value", "low", "high", "sd", "method", "note")
_SCORES_MAX = 10_000  # of a class and a detector in the page, which must open when a million were tested


def metrics_as_json(report: Report) -> str:
    """All numbers of the report: keys sorted, metrics and thresholds exact, scores and curves to six significant digits.

    Curves are thinned to the points without which they would move by more than 0.0005, more than 10,000 scores of a class to as many
    order statistics at even steps of rank; `scored` counts them all.
    """
    numbers = {
        "title": report.title,
        "painted": report.painted,
        "generated_note": report.generated_note,
        "run": report.run,
        "bootstrap": {
            "n_subjects": report.n_subjects,
            "n_resamples": report.n_resamples,
            "level": report.level,
            "interval": report.interval,
        },
        "counts": [vars(row) for row in report.counts],
        "constants": [vars(row) for row in report.constants],
        "differences": [vars(row) | {"metric": vars(row.metric)} for row in report.differences],
        "unpaired": report.unpaired,
        "detectors": [_describe_detector(detector) for detector in report.detectors],
        "gallery": [
            {key: getattr(sample, key) for key in ("sample_id", "group", "caption", "label", "finding")} for sample in report.gallery
        ],
        "slides": [
            {key: value for key, value in vars(slide).items() if key not in ("overview", "mask", "heat")} for slide in report.slides
        ],
    }
    return json.dumps(numbers, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False, default=_as_plain) + "\n"


def metrics_as_csv(report: Report) -> str:
    """Metrics, differences, subgroups, thresholds and what they came to, constant answers, p-values and counts as one table.

    Columns: section, detector, level, name, group, value, low, high, sd, method, note; empty where None.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, _COLUMNS, lineterminator="\n", restval=None)
    table.writeheader()
    for detector in report.detectors:
        of = {"detector": detector.name}
        table.writerows({"section": "metric"} | of | vars(row) for row in detector.metrics)
        for part in detector.subgroups:
            of_group = of | {"section": "subgroup", "group": f"{part.grouping}: {part.group}"}
            counted = {"subjects": part.subjects, "normal samples": part.normal, "abnormal samples": part.abnormal}
            table.writerows(of_group | {"name": name, "value": number, "note": part.note} for name, number in counted.items())
            table.writerows(of_group | vars(row) for row in part.metrics)
        for threshold in detector.thresholds:
            found: dict[str, Any] = {"section": "threshold", "level": threshold.level, "name": threshold.name, "value": threshold.value}
            promise = f"; promised: {threshold.promised}" if threshold.promised else ""
            table.writerow(of | found | {"note": f"{threshold.chosen_by} ({threshold.split}){promise}"})
            table.writerows(of | vars(row) | {"section": "at threshold", "note": threshold.chosen_by} for row in threshold.came)
        for share in (one for one in detector.p_values if one.rate is not None):
            for label, value in (("normal", share.normal), ("abnormal", share.abnormal)):
                found = {"section": "p-value", "level": "image", "name": f"{label} at {share.rate:g}", "value": value}
                table.writerow(of | found | {"note": share.null})
    table.writerows({"section": "difference", "detector": f"{row.first} - {row.second}"} | vars(row.metric) for row in report.differences)
    table.writerows(
        {"section": "constant answer", "detector": row.answer, "level": row.level, "name": row.name, "value": row.value}
        for row in report.constants
    )
    for count in report.counts:
        place = f"{count.split} {count.label}"
        numbers: list[tuple[str, int, str | None]] = [("samples", count.samples, None), ("subjects", count.subjects, None)]
        for state, reasons in (("excluded", count.excluded), ("failed", count.failed)):
            numbers += [(state, number, reason) for reason, number in sorted(reasons.items())]
        table.writerows({"section": "count", "name": f"{place} {what}", "value": value, "note": note} for what, value, note in numbers)
    return text.getvalue()


def _describe_detector(detector: DetectorResult) -> dict[str, Any]:
    drawn = {"roc": detector.roc, "pr": {level: curves.step_precision(curve) for level, curve in detector.pr.items()}}
    axes = {"roc": ("false_positive_rate", "true_positive_rate"), "pr": ("recall", "precision")}
    thinned = {
        kind: {level: dict(zip(axes[kind], map(_round, curves.thin_curve(curve)), strict=True)) for level, curve in of_level.items()}
        for kind, of_level in drawn.items()
    }
    bands = {
        kind: {level: dict(zip((axes[kind][0], "low", "high"), map(_round, band), strict=True)) for level, band in of_level.items()}
        for kind, of_level in (("roc", detector.roc_bands), ("pr", detector.pr_bands))
    }
    return {
        "name": detector.name,
        "kind": detector.kind,
        "metrics": [vars(row) for row in detector.metrics],
        "thresholds": [vars(threshold) | {"came": [vars(row) for row in threshold.came]} for threshold in detector.thresholds],
        "p_values": [vars(row) for row in detector.p_values],
        "curves": thinned,
        "bands": bands,
        "prevalence": detector.prevalence,
        "extremes": [
            {"label": one.label, "end": one.end, "samples": [{"sample_id": each.sample_id, "score": each.score} for each in one.samples]}
            for one in detector.extremes
        ],
        "scores": {"normal": _round(_thin(detector.scores_normal)), "abnormal": _round(_thin(detector.scores_abnormal))},
        "scored": {"normal": len(detector.scores_normal), "abnormal": len(detector.scores_abnormal)},
        "colour_range": [float(end) for end in detector.colour_range],
        "operating": detector.operating,
        "subgroups": [vars(row) | {"metrics": [vars(metric) for metric in row.metrics]} for row in detector.subgroups],
        "reliability": [dict(zip(("samples", "mean_probability", "abnormal"), row, strict=True)) for row in detector.reliability],
        "unscored": detector.unscored,
    }


def _thin(scores: np.ndarray) -> np.ndarray:
    """The scores, or of a great many the order statistics at even steps of rank, lowest and highest among them."""
    if len(scores) <= _SCORES_MAX:
        return scores
    return np.sort(scores)[np.linspace(0, len(scores) - 1, _SCORES_MAX).round().astype(int)]


def _round(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _as_plain(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"expected plain numbers and text in a report, got {type(value).__name__}: {value!r}")
