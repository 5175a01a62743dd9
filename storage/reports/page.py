"""The report as one HTML file, as JSON and as CSV. Plain data in, text out.

`render_html` draws what `Report` holds and computes nothing: every number of the page stands in the report, and again in the page's
`<script type="application/json" id="normascope-data">`, which is `metrics_as_json`.
"""

import base64
import csv
import io
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from storage.reports import curves, figures

Level = Literal["image", "pixel"]
_LEVELS: tuple[Level, ...] = ("image", "pixel")
_COLUMNS = ("section", "detector", "level", "name", "group", "value", "low", "high", "sd", "method", "note")
_COMPARED: dict[Level, tuple[str, ...]] = {
    "image": ("AUROC", "average precision", "balanced accuracy", "sensitivity", "specificity"),
    "pixel": ("AUROC", "average precision", "AUPRO", "Dice"),
}
_OVERVIEW_PX = 768
_GALLERY_PX = 256  # of a gallery's photograph; its maps and reconstructions are smaller
_TILE_PX = 160


@dataclass(frozen=True)
class MetricRow:
    """One metric with its interval. `value`, `low` and `high` are None where there is none; `note` then says why.

    `sd` is the standard deviation of the replicates; `method` is how the interval was made.
    """

    level: Level
    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""
    sd: float | None = None
    method: str = ""

    def __post_init__(self) -> None:
        if self.level not in _LEVELS:
            raise ValueError(f"level of metric {self.name!r}: expected 'image' or 'pixel', got {self.level!r}")
        if (self.value is None or self.low is None or self.high is None) and not self.note:
            raise ValueError(f"metric {self.name!r} has no value or no interval: say why in its note")
        if not all(np.isfinite(number) for number in (self.value, self.low, self.high) if number is not None):
            raise ValueError(f"metric {self.name!r} is not finite: give None and say why in its note")


@dataclass(frozen=True)
class Threshold:
    """A threshold on image or pixel scores: how it was chosen, on which split, what it promised there and what came on the test split."""

    level: Level
    name: str
    value: float
    chosen_by: str
    split: str
    came: list[MetricRow] = field(default_factory=list)
    promised: str = ""


@dataclass(frozen=True)
class PValueRow:
    """Shares of the test split's normal and abnormal samples, in [0, 1], with a p-value of at most `rate` under a fitted distribution.

    All None where the distribution could not be fitted; `note` then says why.
    """

    null: str
    rate: float | None
    normal: float | None
    abnormal: float | None
    note: str = ""


@dataclass(frozen=True)
class SubgroupRow:
    """The tested samples of one subgroup (of "site", "hand") and a detector's metrics on them; none with a note that says why."""

    grouping: str
    group: str
    subjects: int
    normal: int
    abnormal: int
    metrics: list[MetricRow]
    note: str = ""

    def __post_init__(self) -> None:
        if not self.metrics and not self.note:
            raise ValueError(f"subgroup {self.grouping} {self.group!r} has no metrics: say why in its note")


@dataclass(frozen=True)
class DifferenceRow:
    """`first` minus `second` in one metric, paired: both on the same samples under the same resamples."""

    first: str
    second: str
    metric: MetricRow


@dataclass(frozen=True)
class ConstantRow:
    """What a metric comes to when every answer is the same: "everything normal"."""

    answer: str
    level: Level
    name: str
    value: float


@dataclass(frozen=True)
class ExtremeSample:
    """A tested picture uint8 (H, W, 3) and its image score."""

    sample_id: str
    finding: str
    score: float
    image: np.ndarray

    def __post_init__(self) -> None:
        _check_picture(f"extreme sample {self.sample_id!r}", self.image, None, {})


@dataclass(frozen=True)
class Extremes:
    """The samples of a class ("normal") that one detector scores highest or lowest (`end`), the most extreme first."""

    label: str
    end: Literal["highest", "lowest"]
    samples: list[ExtremeSample]


@dataclass(frozen=True)
class DetectorResult:
    """What one detector did on the test split.

    Attributes:
        roc: level -> (false positive rate, true positive rate), each (n,), in [0, 1].
        pr: level -> (recall, precision), each (n,), in [0, 1], sorted by recall either way.
        roc_bands, pr_bands: level -> pointwise band: false positive rates or recalls, lower and upper ends, each (n,), in [0, 1]; only
            where there are intervals.
        prevalence: level -> share of abnormal items.
        scores_normal, scores_abnormal: image scores, (n,), higher is more anomalous.
        colour_range: (low, high) of its maps, the same for every picture; values outside are clipped.
        operating: what could not be had of thresholds, and why; and what else was chosen on validation.
        learning: how its training went; None for a detector that looks at the data once.
        p_values: what p-values promised and what came.
        training_samples: PNG of `figures.draw_samples`; None for a detector without maps.
        trained_on_abnormal: abnormal samples that it learned from: more than none for a classifier.
        subgroups: by what the manifest says of the samples.
        reliability: of a detector whose scores are probabilities: (samples, their mean probability, how many are abnormal) a bin.
        unscored: test samples without a score, by why; they are in no metric.
        extremes: of each class, what it scores highest and lowest.
    """

    name: str
    kind: str
    metrics: list[MetricRow]
    thresholds: list[Threshold]
    roc: dict[Level, curves.Curve]
    pr: dict[Level, curves.Curve]
    scores_normal: np.ndarray
    scores_abnormal: np.ndarray
    colour_range: tuple[float, float]
    operating: str = ""
    learning: figures.LearningCurve | None = None
    p_values: list[PValueRow] = field(default_factory=list)
    training_samples: bytes | None = None
    trained_on_abnormal: int = 0
    subgroups: list[SubgroupRow] = field(default_factory=list)
    reliability: list[tuple[int, float, int]] = field(default_factory=list)
    unscored: dict[str, int] = field(default_factory=dict)
    roc_bands: dict[Level, curves.Band] = field(default_factory=dict)
    pr_bands: dict[Level, curves.Band] = field(default_factory=dict)
    prevalence: dict[Level, float] = field(default_factory=dict)
    extremes: list[Extremes] = field(default_factory=list)

    def __post_init__(self) -> None:
        low, high = self.colour_range
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError(f"colour_range of detector {self.name!r}: expected finite low < high, got ({low}, {high})")
        for scores in (self.scores_normal, self.scores_abnormal):
            if scores.ndim != 1 or not np.isfinite(scores).all():
                raise ValueError(f"scores of detector {self.name!r}: expected a finite 1-D array; leave failed images out")


@dataclass(frozen=True)
class GallerySample:
    """One tested picture as every detector sees it.

    Attributes:
        caption: what it is and how it ranks.
        group: heading under which it stands; samples of one group follow each other.
        image: uint8 (H, W, 3).
        mask: bool (H, W), or None where it is unknown.
        maps: detector -> float (h, w), of the same field.
        reconstructions: detector -> uint8 (h, w, 3), of detectors that reconstruct.
        called: detector -> bool (h, w), where its map reaches its pixel threshold; only of samples with a mask to compare it with.
    """

    sample_id: str
    caption: str
    label: str
    finding: str
    image: np.ndarray
    mask: np.ndarray | None
    maps: dict[str, np.ndarray]
    group: str = ""
    reconstructions: dict[str, np.ndarray] = field(default_factory=dict)
    called: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_picture(f"gallery sample {self.sample_id!r}", self.image, self.mask, self.maps)
        for name, picture in self.reconstructions.items():
            _check_picture(f"reconstruction of {self.sample_id!r} by {name!r}", picture, None, {})


@dataclass(frozen=True)
class SlideOverview:
    """One slide of width_px × height_px at spacing_um: an overview uint8 (H, W, 3) of at most 768 px, its mask bool (H, W) or None,

    and detector -> heat float (h, w) over the same field, NaN where nothing was scored. `spacing_um` None: no scale bar.
    """

    slide_id: str
    subject_id: str
    split: str
    label: str
    finding: str
    spacing_um: float | None
    width_px: int
    height_px: int
    overview: np.ndarray
    mask: np.ndarray | None
    heat: dict[str, np.ndarray]

    def __post_init__(self) -> None:
        _check_picture(f"slide {self.slide_id!r}", self.overview, self.mask, self.heat)
        if max(self.overview.shape[:2]) > _OVERVIEW_PX:
            raise ValueError(f"overview of slide {self.slide_id!r}: expected at most {_OVERVIEW_PX} px, got {self.overview.shape[:2]}")


@dataclass(frozen=True)
class CountRow:
    """How many samples and subjects of one split and label there are, and of them, reason -> how many excluded and how many failed."""

    split: str
    label: str
    samples: int
    subjects: int
    excluded: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All that a report shows.

    Attributes:
        painted: the anomalies are painted, not diagnosed, or the data generated altogether; the page says so in a banner with
            `generated_note`, which has PAINTED or GENERATED in it.
        run: what was run on what: configuration, digests, code version, seed, package versions, how to run it again.
        n_subjects, n_resamples: of the bootstrap that gave the intervals; None where there was none.
        level: coverage of the intervals.
        constants: what the constant answers come to on the same samples.
        differences: of pairs of detectors.
        unpaired: why some differences are missing.
        interval: how the intervals were made: "bca" or "percentile".
        gallery_by: the detector whose scores rank the gallery.
        slides_left_out: how many slides are not shown, to keep the page small.
    """

    title: str
    painted: bool
    generated_note: str | None
    run: dict[str, str]
    counts: list[CountRow]
    detectors: list[DetectorResult]
    gallery: list[GallerySample]
    slides: list[SlideOverview]
    n_subjects: int | None = None
    n_resamples: int | None = None
    level: float = 0.95
    constants: list[ConstantRow] = field(default_factory=list)
    differences: list[DifferenceRow] = field(default_factory=list)
    unpaired: str = ""
    interval: Literal["bca", "percentile"] = "bca"
    gallery_by: str = ""
    slides_left_out: int = 0

    def __post_init__(self) -> None:
        names = [detector.name for detector in self.detectors]
        if len(set(names)) < len(names):
            raise ValueError(f"expected detectors of different names, got {names}")
        if self.painted and not self.generated_note:
            raise ValueError("a report on painted anomalies needs a generated_note that says what was painted into what")
        shown = {name for sample in self.gallery for name in sample.maps} | {name for slide in self.slides for name in slide.heat}
        if unknown := sorted(shown - set(names)):
            raise ValueError(f"maps of {unknown}, which are no detectors of this report ({names})")


def head_notice(notice: str) -> str:
    """What a reader must know of the data, in two words."""
    return "GENERATED data." if "GENERATED" in notice else "Painted anomalies."


def render_html(report: Report) -> str:
    """The report as one HTML page with its style, script and pictures inside; the same report gives the same text."""
    room = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(room), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["sig"] = lambda value: f"{value:.4g}"
    numbers = metrics_as_json(report)
    return environment.get_template("report.html.j2").render(
        report=report,
        heading=head_notice(report.generated_note or ""),
        css=Markup((room / "report.css").read_text("utf-8")),
        js=Markup((room / "report.js").read_text("utf-8")),
        data=Markup(numbers.replace("<", "\\u003c")),  # a name must not close the script element
        csv_uri="data:text/csv;base64," + base64.b64encode(metrics_as_csv(report).encode()).decode(),
        tables=_tabulate_metrics(report.detectors),
        constant={(row.answer, row.level, row.name): row.value for row in report.constants},
        points=_tabulate_thresholds(report.detectors),
        p_values=_tabulate_p_values(report.detectors),
        answers=list(dict.fromkeys(row.answer for row in report.constants)),
        majority=_choose_constant(report.constants),
        differences=_tabulate_differences(report.differences),
        subgroups=[(one, _tabulate_subgroups(one)) for one in report.detectors if one.subgroups],
        forest=_draw_forest(report.detectors),
        reliability=_draw_reliability(report.detectors),
        curves=_draw_curves(report.detectors),
        banded=any(one.roc_bands or one.pr_bands for one in report.detectors),
        learning=_draw_learning(report.detectors),
        samples=[(one, figures.as_uri(one.training_samples, "PNG")) for one in report.detectors if one.training_samples],
        histograms=_draw_histograms(report.detectors),
        colour_bar=figures.paint_colour_bar(),
        mapped=_find_mapped(report.detectors, (sample.maps for sample in report.gallery)),
        gallery=_group_gallery(report),
        extremes=[(one, [_show_extremes(each) for each in one.extremes]) for one in report.detectors if one.extremes],
        heated=_find_mapped(report.detectors, (slide.heat for slide in report.slides)),
        slides=[_show_slide(slide, report.detectors) for slide in report.slides],
        reasons=_list_reasons(report.counts),
    )


def metrics_as_json(report: Report) -> str:
    """All numbers of the report: keys sorted, metrics and thresholds exact, scores and curves to six significant digits.

    Curves are thinned to the points without which they would move by more than 0.0005.
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
        "scores": {"normal": _round(detector.scores_normal), "abnormal": _round(detector.scores_abnormal)},
        "colour_range": [float(end) for end in detector.colour_range],
        "operating": detector.operating,
        "subgroups": [vars(row) | {"metrics": [vars(metric) for metric in row.metrics]} for row in detector.subgroups],
        "reliability": [dict(zip(("samples", "mean_probability", "abnormal"), row, strict=True)) for row in detector.reliability],
        "unscored": detector.unscored,
    }


def _tabulate_metrics(detectors: list[DetectorResult]) -> dict[str, Any]:
    """Metrics as rows by level with one cell a detector, and the notes that the cells point at by number."""
    notes = list(dict.fromkeys(row.note for detector in detectors for row in detector.metrics if row.note))
    found = [{(row.level, row.name): row for row in detector.metrics} for detector in detectors]
    keys = list(dict.fromkeys(key for of_detector in found for key in of_detector))
    levels = {
        level: [(name, [of_detector.get((level, name)) for of_detector in found]) for of, name in keys if of == level]
        for level in _LEVELS
        if any(of == level for of, _ in keys)
    }
    return {"levels": levels, "notes": notes}


def _choose_constant(constants: list[ConstantRow]) -> str | None:
    """The constant answer with the higher accuracy; the first where none has one."""
    accuracy = {row.answer: row.value for row in constants if row.name == "accuracy"}
    return max(accuracy, key=lambda answer: accuracy[answer]) if accuracy else next((row.answer for row in constants), None)


def _tabulate_thresholds(detectors: list[DetectorResult]) -> dict[str, Any]:
    """What came of every threshold as columns, and by detector and level one line a threshold."""
    columns = list(dict.fromkeys(row.name for detector in detectors for threshold in detector.thresholds for row in threshold.came))
    groups = []
    for detector, level in itertools.product(detectors, _LEVELS):
        found = [(threshold, {row.name: row for row in threshold.came}) for threshold in detector.thresholds if threshold.level == level]
        if found:
            groups.append((detector, level, [(threshold, [came.get(name) for name in columns]) for threshold, came in found]))
    return {"columns": columns, "groups": groups}


def _tabulate_p_values(detectors: list[DetectorResult]) -> dict[str, Any]:
    """One line a detector and distribution, with a row for each rate, or the note that says why there is none."""
    rates = sorted({row.rate for detector in detectors for row in detector.p_values if row.rate is not None})
    lines = []
    for detector in detectors:
        for null in dict.fromkeys(row.null for row in detector.p_values):
            of_null = {row.rate: row for row in detector.p_values if row.null == null}
            lines.append((detector.name, null, [of_null.get(rate) for rate in rates], of_null[None].note if None in of_null else ""))
    return {"rates": rates, "lines": lines}


def _tabulate_differences(rows: list[DifferenceRow]) -> dict[str, Any]:
    """The metrics that are compared on the page as columns, and one line a pair; the files hold all."""
    found = {(row.first, row.second, row.metric.level, row.metric.name): row.metric for row in rows}
    measured = {key[2:] for key in found}
    columns = [(level, name) for level, names in _COMPARED.items() for name in names if (level, name) in measured]
    pairs = dict.fromkeys(key[:2] for key in found)
    lines = [(first, second, [found.get((first, second, level, name)) for level, name in columns]) for first, second in pairs]
    return {"columns": columns, "pairs": lines}


def _tabulate_subgroups(detector: DetectorResult) -> dict[str, Any]:
    """One line a subgroup, with those of the compared metrics that the whole split has; the files hold all."""
    columns = [(row.level, row.name) for row in detector.metrics if row.name in _COMPARED[row.level]]
    lines = []
    for row in detector.subgroups:
        of_row = {(metric.level, metric.name): metric for metric in row.metrics}
        lines.append((row, [of_row.get(key) for key in columns]))
    return {"columns": columns, "lines": lines}


def _draw_forest(detectors: list[DetectorResult]) -> Markup | None:
    """AUROC of images, of every subgroup and, first, of all."""
    first = next((one for one in detectors if one.subgroups), None)
    if first is None:
        return None
    lines = [figures.ForestLine("", "all test samples", f"{len(first.scores_normal)} / {len(first.scores_abnormal)}", {})]
    lines += [figures.ForestLine(row.grouping, row.group, f"{row.normal} / {row.abnormal}", {}) for row in first.subgroups]
    at = {(line.grouping, line.group): line for line in lines}
    for detector in detectors:
        whole = SubgroupRow("", "all test samples", 0, 0, 0, detector.metrics, "all")
        for row in [whole, *detector.subgroups]:
            found = next((metric for metric in row.metrics if (metric.level, metric.name) == ("image", "AUROC")), None)
            if (row.grouping, row.group) in at and found is not None and found.value is not None:
                at[row.grouping, row.group].points[detector.name] = (found.value, found.low, found.high)
    return Markup(figures.draw_forest(lines, names=[one.name for one in detectors], prefix="forest"))


def _draw_reliability(detectors: list[DetectorResult]) -> Markup | None:
    bins = {one.name: one.reliability for one in detectors if one.reliability}
    return Markup(figures.draw_reliability(bins, prefix="reliability")) if bins else None


def _draw_curves(detectors: list[DetectorResult]) -> dict[Level, list[Markup]]:
    """Of each level one picture of all detectors, and of many detectors a second one with their bands."""
    names = [detector.name for detector in detectors]
    drawn: dict[Level, list[Markup]] = {}
    for level in _LEVELS:
        found = curves.LevelCurves(
            roc={one.name: curves.thin_curve(one.roc[level]) for one in detectors if level in one.roc},
            pr={one.name: curves.thin_curve(curves.step_precision(one.pr[level])) for one in detectors if level in one.pr},
            roc_bands={one.name: one.roc_bands[level] for one in detectors if level in one.roc_bands},
            pr_bands={one.name: one.pr_bands[level] for one in detectors if level in one.pr_bands},
            prevalence=next((one.prevalence[level] for one in detectors if level in one.prevalence), None),
        )
        if found.roc or found.pr:
            panels = curves.draw_band_panels(found, names=names, prefix=f"{level}-bands")
            together = curves.draw_curves(found, names=names, prefix=f"{level}-curves")
            drawn[level] = [Markup(svg) for svg in (together, panels) if svg is not None]
    return drawn


def _draw_histograms(detectors: list[DetectorResult]) -> Markup | None:
    scores = [(one.name, one.scores_normal, one.scores_abnormal) for one in detectors if len(one.scores_normal) or len(one.scores_abnormal)]
    thresholds = {one.name: [threshold.value for threshold in one.thresholds if threshold.level == "image"] for one in detectors}
    return Markup(figures.draw_score_histograms(scores, thresholds=thresholds, prefix="histograms")) if scores else None


def _draw_learning(detectors: list[DetectorResult]) -> Markup | None:
    learning = {detector.name: detector.learning for detector in detectors if detector.learning is not None}
    return Markup(figures.draw_learning(learning, prefix="learning")) if learning else None


def _find_mapped(detectors: list[DetectorResult], maps: Iterable[dict[str, np.ndarray]]) -> list[DetectorResult]:
    named = {name for of_picture in maps for name in of_picture}
    return [detector for detector in detectors if detector.name in named]


def _group_gallery(report: Report) -> list[tuple[str, list[dict[str, Any]]]]:
    """The samples under their headings."""
    groups = dict.fromkeys(sample.group for sample in report.gallery)
    return [(group, [_show_sample(one, report.detectors) for one in report.gallery if one.group == group]) for group in groups]


def _show_sample(sample: GallerySample, detectors: list[DetectorResult]) -> dict[str, Any]:
    reduced = {name: _reduce(values) for name, values in sample.maps.items()}
    return {
        "sample": sample,
        "photograph": figures.encode_photograph(sample.image, max_px=_GALLERY_PX),
        "outline": None if sample.mask is None else figures.outline_mask(sample.mask),
        "mask": figures.paint_mask(sample.mask) if sample.mask is not None and sample.called else None,
        "maps": _paint_maps(reduced, detectors, fading=False),
        "reconstructions": {name: figures.encode_photograph(one, max_px=_TILE_PX) for name, one in sample.reconstructions.items()},
        "called": {name: figures.paint_mask(one) for name, one in sample.called.items()},
        "size": sample.image.shape[:2],
    }


def _show_extremes(found: Extremes) -> dict[str, Any]:
    return {
        "label": found.label,
        "end": found.end,
        "samples": [(one, figures.encode_photograph(one.image, max_px=_TILE_PX), one.image.shape[:2]) for one in found.samples],
    }


def _reduce(values: np.ndarray) -> np.ndarray:
    """A map with no side longer than a tile of the gallery."""
    if max(values.shape) <= _TILE_PX:
        return values
    height, width = (max(1, round(side * _TILE_PX / max(values.shape))) for side in values.shape)
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BOX))


def _show_slide(slide: SlideOverview, detectors: list[DetectorResult]) -> dict[str, Any]:
    width_mm = None if slide.spacing_um is None else slide.width_px * slide.spacing_um / 1000
    return {
        "slide": slide,
        "photograph": figures.encode_photograph(slide.overview, max_px=_OVERVIEW_PX),
        "outline": None if slide.mask is None else figures.outline_mask(slide.mask),
        "maps": _paint_maps(slide.heat, detectors, fading=True),
        "size": slide.overview.shape[:2],
        "width_mm": width_mm,
        "bar_mm": None if width_mm is None else figures.choose_scale_bar(width_mm),
    }


def _paint_maps(maps: dict[str, np.ndarray], detectors: list[DetectorResult], *, fading: bool) -> dict[str, str]:
    shown = [detector for detector in detectors if detector.name in maps]
    return {one.name: figures.paint_map(maps[one.name], colour_range=one.colour_range, fading=fading) for one in shown}


def _list_reasons(counts: list[CountRow]) -> list[tuple[str, str, str, str, int]]:
    """(state, reason, split, label, samples) of all that was excluded or failed, failures first."""
    states = [("failed", row, row.failed) for row in counts] + [("excluded", row, row.excluded) for row in counts]
    return [(state, reason, row.split, row.label, number) for state, row, reasons in states for reason, number in sorted(reasons.items())]


def _check_picture(what: str, image: np.ndarray, mask: np.ndarray | None, maps: dict[str, np.ndarray]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{what}: expected a uint8 picture (H, W, 3), got {image.dtype} {image.shape}")
    if mask is not None and (mask.dtype != np.bool_ or mask.shape != image.shape[:2]):
        raise ValueError(f"{what}: expected a bool mask {image.shape[:2]} like its picture, got {mask.dtype} {mask.shape}")
    for name, values in maps.items():
        if values.ndim != 2 or not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"{what}: expected a float map (H, W) of {name!r}, got {values.dtype} {values.shape}")


def _round(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _as_plain(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"expected plain numbers and text in a report, got {type(value).__name__}: {value!r}")
