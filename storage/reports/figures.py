"""The report's pictures: curves and histograms as SVG through matplotlib; photographs and maps as data URIs through Pillow."""

import base64
import io
import math
import re
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from skimage.measure import approximate_polygon, find_contours

# Okabe & Ito, "Color Universal Design" (2008). Classes and detectors never share a colour.
NORMAL_COLOUR, ABNORMAL_COLOUR = "#0072B2", "#D55E00"
_DETECTOR_STYLES: list[tuple[str, Any]] = [
    ("#000000", "-"),
    ("#009E73", "--"),
    ("#CC79A7", "-."),
    ("#E69F00", ":"),
    ("#56B4E9", (0, (5, 1, 1, 1, 1, 1))),
]
_MARKS = "osD^v"


@dataclass(frozen=True)
class LearningCurve:
    """One value an epoch.

    Attributes:
        epochs: 1, 2, …
        loss: mean training loss of the epoch.
        validation_auroc: of the images of the validation split; NaN for an epoch that was not compared; None where it has no part in the
            choice.
        validation_loss: of its normal images, or of all for a classifier; NaN and None as above.
        best_epoch: the one whose weights were kept.
    """

    epochs: list[int]
    loss: list[float]
    validation_auroc: list[float] | None
    best_epoch: int
    validation_loss: list[float] | None = None

    @classmethod
    def of(cls, entries: list[dict[str, float]], *, best_epoch: int) -> "LearningCurve":
        """From one entry an epoch: epoch, loss and, unless it ended before the last stage, validation_auroc or validation_loss."""
        measured = {
            name: [entry.get(name, math.nan) for entry in entries] if any(name in entry for entry in entries) else None
            for name in ("validation_auroc", "validation_loss")
        }
        return cls(
            epochs=[int(entry["epoch"]) for entry in entries],
            loss=[entry["loss"] for entry in entries],
            best_epoch=best_epoch,
            validation_auroc=measured["validation_auroc"],
            validation_loss=measured["validation_loss"],
        )


_LEVELS = 192  # of a map; palette entry 0 is left for "not scored"
_FAINTEST = 64  # alpha of the lowest level over a slide: the tissue shows through, and still differs from what was not scored
_COLOURS = np.round(255 * matplotlib.colormaps["viridis"](np.linspace(0, 1, _LEVELS))[:, :3]).astype(np.uint8)
_PALETTE = np.vstack([np.zeros((1, 3), np.uint8), _COLOURS])

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "normascope",
    "text.parse_math": False,  # a $ in a detector's name is a $
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#444444",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "hatch.linewidth": 0.5,
}


def encode_photograph(image: np.ndarray, *, max_px: int) -> str:
    """A uint8 (H, W, 3) picture as a JPEG data URI, its longer side at most `max_px`."""
    photograph = Image.fromarray(image)
    photograph.thumbnail((max_px, max_px), Image.Resampling.LANCZOS)
    return _encode(photograph, "JPEG", quality=86, optimize=True)


def as_uri(content: bytes, form: str) -> str:
    """A picture file of a form (PNG, SVG+XML) as a data URI."""
    return f"data:image/{form.lower()};base64,{base64.b64encode(content).decode()}"


def paint_map(values: np.ndarray, *, colour_range: tuple[float, float], fading: bool) -> str:
    """A float (H, W) map as a palette PNG data URI: viridis from low to high, clipped outside, transparent where NaN.

    The palette index is 1 + round(191 (v - low) / (high - low)). Where `fading`, alpha is index + 63 of 255 instead of opaque, so that
    tissue shows through low values and the page can cut by alpha.
    """
    low, high = colour_range
    scored = ~np.isnan(values)
    share = np.clip((np.where(scored, values, low) - low) / (high - low), 0, 1)
    index = np.where(scored, 1 + np.round(share * (_LEVELS - 1)), 0).astype(np.uint8)
    return _encode_palette(index, faintest=_FAINTEST if fading else 255)


def paint_colour_bar() -> str:
    """The colours of `paint_map` from low to high, one pixel a level, as a PNG data URI."""
    return _encode_palette(np.arange(1, _LEVELS + 1, dtype=np.uint8)[None, :], faintest=255)


def paint_mask(mask: np.ndarray) -> str:
    """A bool (H, W) mask as a PNG data URI of one bit a pixel: white where true, black elsewhere."""
    return _encode(Image.fromarray(mask), "PNG", optimize=True)


def outline_mask(mask: np.ndarray) -> str:
    """The border of a bool (H, W) mask as an SVG path in pixels of the mask, (0, 0) its upper left corner; empty for an empty mask."""
    padded = np.pad(mask, 1).astype(np.uint8)  # a region at the picture's edge is closed too
    rings = [approximate_polygon(ring, 0.4) - 0.5 for ring in find_contours(padded, 0.5)]
    return "".join("M" + "L".join(f"{x:.1f},{y:.1f}" for y, x in ring) + "Z" for ring in rings)


def choose_scale_bar(width_mm: float) -> float:
    """The longest of 1, 2, 5 × 10^k mm that covers at most a quarter of `width_mm`."""
    limit = width_mm / 4
    power = 10.0 ** math.floor(math.log10(limit))
    return next(step * power for step in (5, 2, 1) if step * power <= limit)


def draw_score_histograms(scores: list[tuple[str, np.ndarray, np.ndarray]], *, thresholds: dict[str, list[float]], prefix: str) -> str:
    """Histograms of image scores, one panel a detector, normal against abnormal with the thresholds, as inline SVG.

    Args:
        scores: (detector, scores of normals, scores of abnormals); bars are shares of their own class.
        thresholds: detector -> image thresholds.
        prefix: of the SVG's element ids, unique in the page.
    """
    columns = min(2, len(scores))
    rows = math.ceil(len(scores) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 0.3 + 2.8 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, (name, normal, abnormal) in zip(panels, scores, strict=False):
            _draw_histogram(panel, normal, abnormal, thresholds=thresholds.get(name, []))
            panel.set_title(name)
        for panel in panels[len(scores) :]:
            panel.set_axis_off()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3)
        return as_svg(figure, prefix)


def draw_learning(learning: dict[str, LearningCurve], *, prefix: str) -> str:
    """Training loss and what was measured on validation by epoch, one panel a detector, the epoch that was kept marked, as inline SVG."""
    columns = min(2, len(learning))
    rows = math.ceil(len(learning) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 0.3 + 2.6 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, (name, curve) in zip(panels, learning.items(), strict=False):
            panel.plot(curve.epochs, curve.loss, color="#000000", lw=1.3, marker="." if len(curve.epochs) < 30 else "")
            panel.axvline(curve.best_epoch, color="#999999", lw=0.8, ls=(0, (2, 2)))
            panel.set(title=name, xlabel="Epoch (dashed: kept)", ylabel="Training loss, black")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            if curve.validation_loss is not None:
                panel.plot(curve.epochs, curve.validation_loss, color="#0072B2", lw=1.3, ls="--")
                panel.set_ylabel("Loss: training, black; validation, blue")
            if curve.validation_auroc is not None:
                right = panel.twinx()
                right.plot(curve.epochs, curve.validation_auroc, color="#009E73", lw=1.3, ls="--")
                right.set(ylim=(0, 1), ylabel="Validation AUROC, green")
        for panel in panels[len(learning) :]:
            panel.set_axis_off()
        return as_svg(figure, prefix)


@dataclass(frozen=True)
class ForestLine:
    """One subgroup: its grouping, its name, its n in words, and detector -> (value, low, high), ends None where there is no interval."""

    grouping: str
    group: str
    counted: str
    points: dict[str, tuple[float, float | None, float | None]]


def draw_forest(lines: list[ForestLine], *, names: list[str], prefix: str) -> str:
    """AUROC with its interval, one line a subgroup and in it one mark a detector, as inline SVG.

    Args:
        lines: top to bottom; those of one grouping follow each other. A line without points says "undefined".
        names: all detectors of the report; a detector's place in it is its colour and mark.
        prefix: of the SVG's element ids, unique in the page.
    """
    step = max(1.0, 0.5 * len(names))  # room for the marks of a line
    heights, y, last = [], 0.0, ""
    for line in lines:
        y += 1.1 if line.grouping != last else 0
        heights.append(y)
        y, last = y + step, line.grouping
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 1.0 + 0.24 * y), layout="constrained")
        axes = figure.subplots()
        for line, height in zip(lines, heights, strict=True):
            axes.text(-0.02, height, line.group, transform=axes.get_yaxis_transform(), ha="right", va="center")
            counted = line.counted if line.points else f"{line.counted}, undefined"
            axes.text(1.02, height, counted, transform=axes.get_yaxis_transform(), ha="left", va="center", color="#5b5f66")
            for place, name in enumerate(names):
                _mark_interval(axes, line.points.get(name), height + step * (place - (len(names) - 1) / 2) / (len(names) + 0.6), place)
        for line, height in zip(lines, heights, strict=True):
            if line.grouping and line is next(one for one in lines if one.grouping == line.grouping):
                head = height - 0.5 * step - 0.35
                axes.text(-0.02, head, line.grouping, transform=axes.get_yaxis_transform(), ha="right", va="center", weight="bold")
        axes.text(
            1.02, heights[0] - 0.5 * step - 0.5, "normal / abnormal", transform=axes.get_yaxis_transform(), va="center", color="#5b5f66"
        )
        axes.set_ylim(y, -1.3)
        low = min((end for line in lines for point in line.points.values() for end in point if end is not None), default=0.5)
        axes.set(xlim=(min(0.45, low - 0.02), 1.005), xlabel="AUROC of images with its interval over subjects", yticks=[])
        axes.axvline(0.5, color="#999999", lw=0.8, ls=(0, (2, 2)))
        axes.grid(axis="x", color="#e4e4e4", lw=0.6)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        for place, name in enumerate(names):
            colour, _, mark = style_of(place)
            axes.plot([], [], color=colour, marker=mark, lw=1.3, ms=5, label=name)
        figure.legend(loc="outside upper left", ncols=4)
        return as_svg(figure, prefix)


def _mark_interval(axes: Axes, point: tuple[float, float | None, float | None] | None, height: float, place: int) -> None:
    if point is None:
        return
    colour, _, mark = style_of(place)
    value, low, high = point
    if low is not None and high is not None:
        axes.plot([low, high], [height, height], color=colour, lw=1.3, solid_capstyle="butt")
    axes.plot([value], [height], color=colour, marker=mark, ms=5, mfc=colour if low is not None else "white")


def draw_reliability(bins: dict[str, list[tuple[int, float, int]]], *, prefix: str) -> str:
    """Share of abnormal samples against the mean probability of a bin, one panel a detector, as inline SVG.

    Args:
        bins: detector -> (samples, their mean probability, how many are abnormal); a point's area is its share of the samples.
        prefix: of the SVG's element ids, unique in the page.
    """
    columns = min(2, len(bins))
    rows = math.ceil(len(bins) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.1 * columns, 0.2 + 3.9 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, (name, found) in zip(panels, bins.items(), strict=False):
            samples, probability, abnormal = (np.array(column, float) for column in zip(*found, strict=True))
            panel.plot([0, 1], [0, 1], color="#999999", lw=0.8, ls=(0, (2, 2)))
            panel.plot(probability, abnormal / samples, color="#000000", lw=0.8)
            panel.scatter(probability, abnormal / samples, s=15 + 300 * samples / samples.sum(), color="#000000", alpha=0.7, clip_on=False)
            panel.set(title=name, xlabel="Mean probability", ylabel="Share abnormal", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        for panel in panels[len(bins) :]:
            panel.set_axis_off()
        return as_svg(figure, prefix)


@dataclass(frozen=True)
class StudyLine:
    """Test AUROC by the number of anomalies that a configuration was chosen by; one line for each number of types.

    Attributes:
        label: of the line.
        counts: numbers of anomalies, ascending.
        values: of every draw, one tuple a count.
    """

    label: str
    counts: list[int]
    values: list[tuple[float, ...]]


def draw_study(lines: list[StudyLine], *, references: dict[str, float], prefix: str) -> str:
    """Test AUROC of what few anomalies chose, a dot for each draw and a line through the means, as inline SVG.

    The scale is that of the draws and the best reference; one far below is named, with its value, under the plot.

    Args:
        lines: one for each number of types.
        references: name -> test AUROC, drawn as level lines: the best and the worst trial, other criteria's choices.
        prefix: of the SVG's element ids, unique in the page.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 4.2), layout="constrained")
        axes = figure.subplots()
        counts = sorted({count for line in lines for count in line.counts})
        for place, line in enumerate(lines):
            at = [counts.index(count) + 0.14 * (place - (len(lines) - 1) / 2) for count in line.counts]  # side by side, not over each other
            _draw_draws(axes, at, line, place)
        axes.set(xlabel="Anomalies that the choice was made by", ylabel="AUROC on the test split", xlim=(-0.5, len(counts) - 0.5))
        axes.set_xticks(range(len(counts)), [str(count) for count in counts])
        draws = [value for line in lines for values in line.values for value in values]
        axes.set_ylim(_choose_scale(min(draws), max([*draws, *references.values()]), list(references.values())))
        _write_levels(axes, references)
        axes.grid(axis="y", color="#e4e4e4", lw=0.6)
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper left", ncols=4, handlelength=2.8)
        return as_svg(figure, prefix)


def _draw_draws(axes: Axes, at: list[float], line: StudyLine, place: int) -> None:
    """A line through the means, and dots whose area is the number of draws that came to the same."""
    colour, style, _ = style_of(place)
    axes.plot(at, [float(np.mean(values)) for values in line.values], color=colour, ls=style, lw=1.4, label=line.label)
    for x, values in zip(at, line.values, strict=True):
        found, times = np.unique(np.round(values, 6), return_counts=True)
        axes.scatter(np.full(len(found), x), found, s=12 * times, color=colour, alpha=0.45, linewidths=0, zorder=3, clip_on=False)


def _choose_scale(lowest: float, highest: float, references: list[float]) -> tuple[float, float]:
    """From the lowest draw, or a reference that is no further below it than the draws reach, to the highest value; with a margin."""
    reach = max(highest - lowest, 0.02)
    lowest = min([lowest, *(value for value in references if value >= lowest - reach)])
    margin = 0.06 * max(highest - lowest, 0.02)
    return lowest - margin, highest + margin


def _write_levels(axes: Axes, references: dict[str, float]) -> None:
    """Level lines that end where the plot does, and their names and values beside it; equal ones under one name, near ones moved apart."""
    names: dict[float, list[str]] = {}
    for name, value in references.items():
        names.setdefault(round(value, 4), []).append(name)
    low, high = axes.get_ylim()
    shown = sorted(value for value in names if value >= low)
    gap, heights = 0.055 * (high - low), list[float]()
    for value in shown:
        heights.append(max(value, heights[-1] + gap if heights else -math.inf))
    for place in range(len(shown) - 1, -1, -1):  # what was moved beyond the top comes back down
        heights[place] = min(heights[place], high - gap * (len(shown) - 1 - place))
    beside = axes.get_yaxis_transform()
    for value, height in zip(shown, heights, strict=True):
        axes.axhline(value, color="#999999", lw=0.8, ls=(0, (2, 2)), zorder=0)
        axes.annotate(
            f"{', '.join(names[value])} {value:.3f}", (1, value), (1.035, height), va="center", fontsize=8, color="#333333",
            xycoords=beside, textcoords=beside, arrowprops={"arrowstyle": "-", "color": "#999999", "lw": 0.6, "shrinkA": 2, "shrinkB": 0},
        )  # fmt: skip
    if below := [f"{', '.join(names[value])} {value:.3f}" for value in sorted(names, reverse=True) if value < low]:
        text = f"below the scale: {'; '.join(below)}"
        axes.annotate(text, (1, 0), (0, -54), xycoords="axes fraction", textcoords="offset points", ha="right", fontsize=8, color="#333333")


def draw_criteria(panels: dict[str, tuple[np.ndarray, int]], tested: np.ndarray, *, prefix: str) -> str:
    """The test AUROC of every trial against what each criterion says of it, one panel a criterion, its choice ringed, as inline SVG.

    Args:
        panels: criterion -> its values (T,), NaN for trials that failed, and the trial that it chose.
        tested: (T,) AUROC on the test split.
        prefix: of the SVG's element ids, unique in the page.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 2.9), layout="constrained")
        for axes, (name, (values, chosen)) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
            axes.plot(values, tested, "o", color="#000000", ms=3.5, alpha=0.75)
            axes.plot(values[chosen], tested[chosen], "o", ms=10, mfc="none", mec=ABNORMAL_COLOUR, mew=1.6)
            axes.set(title=name, xlabel="Lower is chosen" if name == "loss" else "Higher is chosen")
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.grid(color="#e4e4e4", lw=0.6)
            axes.set_axisbelow(True)
        figure.axes[0].set_ylabel("AUROC on the test split")
        return as_svg(figure, prefix)


def draw_samples(labels: list[str], images: np.ndarray, reconstructions: np.ndarray | None, maps: np.ndarray) -> bytes:
    """Images, below them what a detector takes them for, and its maps, one column a sample, as PNG.

    The maps have one scale, from their 1st to their 99.9th percentile.

    Args:
        labels: n.
        images: (n, H, W, 3) float in [0, 1].
        reconstructions: of the same shape; None for a detector without.
        maps: (n, H, W) float.
    """
    low, high = np.percentile(maps, (1, 99.9))
    rows = [("image", images), *([("reconstruction", reconstructions)] if reconstructions is not None else []), ("map", maps)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.3 + 1.25 * len(labels), 0.3 + 1.25 * len(rows)), dpi=100, layout="constrained")
        panels = figure.subplots(len(rows), len(labels), squeeze=False)
        for row, (name, pictures) in enumerate(rows):
            for column, (label, picture) in enumerate(zip(labels, pictures, strict=True)):
                shown = picture if pictures.ndim == 3 else np.clip(picture, 0, 1)
                panel = panels[row, column]
                panel.imshow(shown, cmap="viridis", vmin=low, vmax=max(high, low + 1e-12))  # a scale only where there are no channels
                panel.set(xticks=[], yticks=[], title=label if row == 0 else "", ylabel=name if column == 0 else "")
                panel.spines[:].set_visible(False)
        content = io.BytesIO()
        figure.savefig(content, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})
    return content.getvalue()


def style_of(place: int) -> tuple[str, Any, str]:
    """Colour, line and mark of a detector by its place among all; 25 differ."""
    turned = (place + place // len(_DETECTOR_STYLES)) % len(_DETECTOR_STYLES)
    return _DETECTOR_STYLES[place % len(_DETECTOR_STYLES)][0], _DETECTOR_STYLES[turned][1], _MARKS[turned]


def _draw_histogram(axes: Axes, normal: np.ndarray, abnormal: np.ndarray, *, thresholds: list[float]) -> None:
    edges = np.histogram_bin_edges(np.concatenate([normal, abnormal]), bins=40)
    for scores, colour, label, hatch in ((normal, NORMAL_COLOUR, "normal", ""), (abnormal, ABNORMAL_COLOUR, "abnormal", "////")):
        share = np.histogram(scores, edges)[0] / max(len(scores), 1)
        axes.stairs(share, edges, fill=True, facecolor=colour, alpha=0.25)
        axes.stairs(share, edges, color=colour, lw=1.2, hatch=hatch, label=label)
    for place, threshold in enumerate(thresholds):
        axes.axvline(threshold, color="#000000", lw=1, ls=(0, (4, 2)), label="threshold" if place == 0 else None)
    axes.set(xlabel="Image score", ylabel="Share of the class")
    axes.set_ylim(bottom=0)


def as_svg(figure: Figure, prefix: str) -> str:
    """The figure as an <svg> element whose ids start with `prefix`, so that several stand in one page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="presentation"', svg, count=1)


def _encode_palette(index: np.ndarray, *, faintest: int) -> str:
    alpha = np.minimum(np.arange(_LEVELS) + faintest, 255).astype(np.uint8)
    picture = Image.fromarray(index)
    picture.putpalette(_PALETTE.tobytes())
    return _encode(picture, "PNG", transparency=bytes([0, *alpha]), compress_level=4)  # the highest doubles the time of a page for 3 % less


def _encode(picture: Image.Image, form: str, **options: object) -> str:
    content = io.BytesIO()
    picture.save(content, form, **options)
    return as_uri(content.getvalue(), form)
