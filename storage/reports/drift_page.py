"""An archive's scores against a reference as one HTML file and as JSON. Plain data in, text out; nothing is computed here."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from storage.reports.figures import ABNORMAL_COLOUR, NORMAL_COLOUR, STYLE, as_svg

_TAIL = 0.005  # of each side, that the axis of scores may leave out
_RANGE_SLACK = 0.03


@dataclass(frozen=True)
class FigureRow:
    """One figure of a comparison; `reference` and `archive` None for a distance, `low` and `high` None where `method` says why."""

    name: str
    reference: float | None
    archive: float | None
    value: float
    low: float | None
    high: float | None
    method: str
    p: float
    unchanged: float


@dataclass(frozen=True)
class SideRow:
    """Who is compared: scored images and their subjects, and how many rows are left out, by why."""

    name: str
    title: str
    images: int
    subjects: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class GroupRow:
    """A group of a grouping: images and subjects of reference and archive, which part of the reference it is compared with, and figures.

    The first figure is the KS distance, the second the population stability index; none, and a note, where there is nothing to compare.
    """

    grouping: str
    group: str
    against: str
    images: tuple[int, int]
    subjects: tuple[int, int]
    figures: list[FigureRow]
    note: str

    def __post_init__(self) -> None:
        if not self.figures and not self.note:
            raise ValueError(f"group {self.grouping} {self.group!r} has no figures: say why in its note")


@dataclass(frozen=True)
class ThresholdRow:
    """A threshold of the model's card: the name of its figure, the score, how it was chosen and what was promised."""

    name: str
    value: float
    rule: str
    promised: str


@dataclass(frozen=True)
class BinRow:
    """Images with a score above `low` and up to `high`, None where open."""

    low: float | None
    high: float | None
    reference: int
    archive: int


@dataclass(frozen=True)
class Curves:
    """Distribution functions: shares (n,) of both sides at or below scores (n,), ascending.

    Attributes:
        farthest: the score at which they are farthest apart.
        bands: half widths of simultaneous bands; None where there are none.
    """

    scores: np.ndarray
    reference: np.ndarray
    archive: np.ndarray
    farthest: float
    bands: tuple[float, float] | None


@dataclass(frozen=True)
class DriftReport:
    """All that the page shows; `level` is the coverage of intervals and bands."""

    title: str
    notes: list[str]
    level: float
    sides: list[SideRow]
    figures: list[FigureRow]
    groups: list[GroupRow]
    thresholds: list[ThresholdRow]
    bins: list[BinRow]
    curves: Curves
    run: dict[str, str]


def render_drift(report: DriftReport) -> str:
    """The page with its style and figures inside; the same report gives the same text."""
    room = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(room), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["sig"] = lambda value: f"{value:.3g}"
    return environment.get_template("drift.html.j2").render(
        report=report,
        names=list(dict.fromkeys(figure.name for row in report.groups for figure in row.figures)),
        css=Markup((room / "report.css").read_text("utf-8")),
        data=Markup(drift_as_json(report).replace("<", "\\u003c")),  # a name must not close the script element
        distributions=Markup(_draw_distributions(report)),
        bins=Markup(_draw_bins(report.bins)),
        groups=Markup(_draw_groups(report.groups)) if any(row.figures for row in report.groups) else None,
    )


def drift_as_json(report: DriftReport) -> str:
    """All numbers of the page, keys sorted; curves to six significant digits."""
    numbers = asdict(report)
    for name in ("scores", "reference", "archive"):
        numbers["curves"][name] = [float(f"{value:.6g}") for value in numbers["curves"][name]]
    return json.dumps(numbers, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _draw_distributions(report: DriftReport) -> str:
    """Both distribution functions as steps with their bands, the widest gap and the thresholds, as inline SVG."""
    curves = report.curves
    with rc_context(STYLE):
        figure = Figure(figsize=(8.2, 4.1), layout="constrained")
        axes = figure.subplots()
        sides = (("reference", curves.reference, NORMAL_COLOUR, "-", ""), ("archive", curves.archive, ABNORMAL_COLOUR, "--", "////"))
        for place, (name, share, colour, line, hatch) in enumerate(sides):
            axes.step(curves.scores, share, where="post", color=colour, ls=line, lw=1.5, label=name)
            if curves.bands is not None:
                low, high = (np.clip(share + sign * curves.bands[place], 0, 1) for sign in (-1, 1))
                axes.fill_between(curves.scores, low, high, step="post", facecolor=colour, alpha=0.16, lw=0)
                if hatch:  # of its own: a hatch takes the colour and the alpha of what it fills
                    axes.fill_between(curves.scores, low, high, step="post", facecolor="none", edgecolor=colour, lw=0, hatch=hatch)
        at = int(np.searchsorted(curves.scores, curves.farthest))
        gap = sorted((float(curves.reference[at]), float(curves.archive[at])))
        axes.plot([curves.farthest] * 2, gap, color="#000000", lw=1.6, marker="_", ms=7, label=f"KS distance {gap[1] - gap[0]:.3f}")
        axes.set(xlim=_choose_range(curves), ylim=(0, 1), xlabel="Image score", ylabel="Share of images up to the score")
        _mark_thresholds(axes, report.thresholds)
        axes.grid(axis="y", color="#e4e4e4", lw=0.6)
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper left", ncols=4, handlelength=2.8)
        return as_svg(figure, "distributions")


def _choose_range(curves: Curves) -> tuple[float, float]:
    """Scores between the lowest and the highest of which each side has all but half a percent at either end."""
    sides = (curves.reference, curves.archive)
    low = min(float(curves.scores[np.searchsorted(side, _TAIL)]) for side in sides)
    high = max(float(curves.scores[np.searchsorted(side, 1 - _TAIL).clip(max=len(side) - 1)]) for side in sides)
    slack = _RANGE_SLACK * (high - low) or 1.0
    return low - slack, high + slack


def _mark_thresholds(axes: Axes, thresholds: list[ThresholdRow]) -> None:
    low, high = axes.get_xlim()
    for place, row in enumerate(row for row in thresholds if low < row.value < high):
        axes.axvline(row.value, color="#000000", lw=0.9, ls=(0, (4, 2)), label="threshold of the card" if place == 0 else None)


def _draw_bins(bins: list[BinRow]) -> str:
    """Share of each side in every bin of the stability index, side by side, as inline SVG."""
    with rc_context(STYLE):
        figure = Figure(figsize=(8.2, 3.0), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(bins))
        for name, offset, colour, hatch in (("reference", -0.2, NORMAL_COLOUR, ""), ("archive", 0.2, ABNORMAL_COLOUR, "////")):
            items = np.array([getattr(row, name) for row in bins], float)
            share = items / items.sum()
            axes.bar(places + offset, share, width=0.4, facecolor=colour, alpha=0.25)
            axes.bar(places + offset, share, width=0.4, facecolor="none", edgecolor=colour, lw=1, hatch=hatch, label=name)
        axes.set(xlabel="Image score, from above to up to", ylabel="Share of images", xlim=(-0.7, len(bins) - 0.3))
        axes.set_xticks(places, [_name_bin(row) for row in bins])
        axes.grid(axis="y", color="#e4e4e4", lw=0.6)
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper left", ncols=2)
        return as_svg(figure, "bins")


def _name_bin(row: BinRow) -> str:
    low, high = ("" if end is None else f"{end:.3g}" for end in (row.low, row.high))
    return f"{low} –\n{high}" if low and high else f"up to\n{high}" if high else f"above\n{low}" if low else "all"


def _draw_groups(groups: list[GroupRow]) -> str:
    """KS distance of every group with its interval, and what it would stay below without drift, as inline SVG."""
    rows = [row for row in groups if row.figures]
    heights, y, last = [], 0.0, None
    for row in rows:
        y += 0.9 if row.grouping != last else 0
        heights.append(y)
        y, last = y + 1, row.grouping
    with rc_context(STYLE):
        figure = Figure(figsize=(8.2, 1.0 + 0.25 * y), layout="constrained")
        axes = figure.subplots()
        side = axes.get_yaxis_transform()
        for place, (row, height) in enumerate(zip(rows, heights, strict=True)):
            found = row.figures[0]
            axes.plot([0, found.unchanged], [height, height], color="#b8bcc2", lw=6, solid_capstyle="butt", zorder=1)
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [height, height], color="#000000", lw=1.4, solid_capstyle="butt")
            axes.plot([found.value], [height], color="#000000", marker="o", ms=5, mfc="#000000" if found.low is not None else "white")
            axes.text(-0.02, height, row.group, transform=side, ha="right", va="center")
            n = f"{row.images[0]:,} / {row.images[1]:,}{'' if row.images[0] else ', new'}"
            axes.text(1.02, height, n, transform=side, ha="left", va="center", color="#5b5f66")
            if place == 0 or rows[place - 1].grouping != row.grouping:
                axes.text(-0.02, height - 0.8, row.grouping, transform=side, ha="right", va="center", weight="bold")
        axes.text(1.02, heights[0] - 0.8, "reference / archive", transform=side, va="center", color="#5b5f66")
        axes.set(xlim=(0, 1), ylim=(y - 0.3, -0.4), yticks=[], xlabel="KS distance with its interval over subjects; grey: without drift")
        axes.grid(axis="x", color="#e4e4e4", lw=0.6)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        return as_svg(figure, "groups")
