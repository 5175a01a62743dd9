"""ROC and precision-recall curves with their bands, as SVG through matplotlib."""

import math
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from skimage.measure import approximate_polygon

from storage.reports.figures import STYLE, as_svg, style_of

Curve = tuple[np.ndarray, np.ndarray]
Band = tuple[np.ndarray, np.ndarray, np.ndarray]  # abscissae (n,), and the lower and upper end at each

_CURVE_TOLERANCE = 5e-4  # a tenth of a pixel on the page
_TOGETHER = 2  # detectors whose bands are legible over each other


def thin_curve(curve: Curve) -> Curve:
    """The points of a curve in the unit square without which it would move by more than 0.0005 (Douglas & Peucker 1973)."""
    points = approximate_polygon(np.column_stack(curve).astype(np.float64), _CURVE_TOLERANCE)
    return points[:, 0], points[:, 1]


def step_precision(curve: Curve) -> Curve:
    """(recall, precision) with its corners: precision holds from one recall to the next, as average precision sums it."""
    recall, precision = (values[::-1] if curve[0][0] > curve[0][-1] else values for values in curve)
    return np.repeat(recall, 2)[:-1], np.repeat(precision, 2)[1:]


@dataclass(frozen=True)
class LevelCurves:
    """ROC and precision-recall curves of one level, by detector.

    Attributes:
        roc: (false positive rate, true positive rate).
        pr: (recall, precision), corners included.
        roc_bands, pr_bands: about them; of detectors that have intervals.
        prevalence: share of positives, drawn as the precision of chance.
    """

    roc: dict[str, Curve]
    pr: dict[str, Curve]
    roc_bands: dict[str, Band] = field(default_factory=dict)
    pr_bands: dict[str, Band] = field(default_factory=dict)
    prevalence: float | None = None


def draw_curves(curves: LevelCurves, *, names: list[str], prefix: str) -> str:
    """ROC and precision-recall curves of all detectors side by side, as inline SVG; of many detectors without their bands.

    Args:
        curves: of one level.
        names: all detectors of the report; a detector's place in it is its line style.
        prefix: of the SVG's element ids, unique in the page.
    """
    few = len(names) <= _TOGETHER
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 4.1 + 0.16 * max(0, math.ceil(len(names) / 4) - 1)), layout="constrained")
        left, right = figure.subplots(1, 2)
        _prepare_roc(left)
        _prepare_pr(right, curves.prevalence)
        for place, name in enumerate(names):
            _draw_curve(left, name, place, curves.roc, curves.roc_bands if few else {})
            _draw_curve(right, name, place, curves.pr, curves.pr_bands if few else {})
        left.set_title("ROC")
        right.set_title("Precision–recall")
        handles, labels = left.get_legend_handles_labels() if curves.roc else right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=4 if max(map(len, names)) < 24 else 2, handlelength=2.8)
        return as_svg(figure, prefix)


def draw_band_panels(curves: LevelCurves, *, names: list[str], prefix: str) -> str | None:
    """The curves with their bands, a row a detector, ROC left and precision-recall right; None where one picture shows all or none."""
    shown = [name for name in names if name in curves.roc_bands or name in curves.pr_bands]
    if not shown or len(names) <= _TOGETHER:
        return None
    rows = math.ceil(len(shown) / 2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 0.2 + 2.25 * rows), layout="constrained")
        panels = figure.subplots(rows, 4, squeeze=False).ravel()
        for panel in panels[2 * len(shown) :]:
            panel.set_axis_off()
        for place, name in enumerate(shown):
            left, right = panels[2 * place : 2 * place + 2]
            _prepare_roc(left)
            _prepare_pr(right, curves.prevalence)
            _draw_curve(left, name, names.index(name), curves.roc, curves.roc_bands)
            _draw_curve(right, name, names.index(name), curves.pr, curves.pr_bands)
            left.set_title(name)
        return as_svg(figure, prefix)


def _prepare_roc(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color="#999999", lw=0.8, ls=(0, (2, 2)))
    _prepare_unit_square(axes, "False positive rate", "True positive rate")


def _prepare_pr(axes: Axes, prevalence: float | None) -> None:
    if prevalence is not None:
        axes.axhline(prevalence, color="#999999", lw=0.8, ls=(0, (2, 2)))
    _prepare_unit_square(axes, "Recall", "Precision")


def _prepare_unit_square(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.grid(color="#e4e4e4", lw=0.6)
    axes.set_axisbelow(True)


def _draw_curve(axes: Axes, name: str, place: int, curves: dict[str, Curve], bands: dict[str, Band]) -> None:
    colour, line, _ = style_of(place)
    if name in bands:
        at, low, high = bands[name]
        axes.fill_between(at, low, high, color=colour, alpha=0.13, lw=0)
        for end in (low, high):
            axes.plot(at, end, color=colour, lw=0.5, alpha=0.6)
    if name in curves:
        axes.plot(*curves[name], color=colour, ls=line, lw=1.5, label=name, clip_on=False)
