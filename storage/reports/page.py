"""The report as one HTML file. Plain data in, text out.

`render_html` draws what `Report` holds and computes nothing: every number of the page stands in the report, and again in the page's
`<script type="application/json" id="normascope-data">`, which is `metrics_as_json`.
"""

import base64
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from storage.reports import curves, figures
from storage.reports.contents import (
    LEVELS,
    OVERVIEW_PX,
    ConstantRow,
    CountRow,
    DetectorResult,
    DifferenceRow,
    Extremes,
    GallerySample,
    Level,
    Report,
    SlideOverview,
    SubgroupRow,
)
from storage.reports.numbers import metrics_as_csv, metrics_as_json

_COMPARED: dict[Level, tuple[str, ...]] = {
    "image": ("AUROC", "average precision", "balanced accuracy", "sensitivity", "specificity"),
    "pixel": ("AUROC", "average precision", "AUPRO", "Dice"),
}
_GALLERY_PX = 256  # of a gallery's photograph; its maps and reconstructions are smaller
_TILE_PX = 160


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


def _tabulate_metrics(detectors: list[DetectorResult]) -> dict[str, Any]:
    """Metrics as rows by level with one cell a detector, and the notes that the cells point at by number."""
    notes = list(dict.fromkeys(row.note for detector in detectors for row in detector.metrics if row.note))
    found = [{(row.level, row.name): row for row in detector.metrics} for detector in detectors]
    keys = list(dict.fromkeys(key for of_detector in found for key in of_detector))
    levels = {
        level: [(name, [of_detector.get((level, name)) for of_detector in found]) for of, name in keys if of == level]
        for level in LEVELS
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
    for detector, level in itertools.product(detectors, LEVELS):
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
    for level in LEVELS:
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
        "photograph": figures.encode_photograph(slide.overview, max_px=OVERVIEW_PX),
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
