"""What a report holds: plain numbers, texts and pictures, checked where they are put in."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from storage.reports import curves, figures

Level = Literal["image", "pixel"]
LEVELS: tuple[Level, ...] = ("image", "pixel")
OVERVIEW_PX = 768  # longest side of a slide's overview


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
        if self.level not in LEVELS:
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
        if max(self.overview.shape[:2]) > OVERVIEW_PX:
            raise ValueError(f"overview of slide {self.slide_id!r}: expected at most {OVERVIEW_PX} px, got {self.overview.shape[:2]}")


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


def _check_picture(what: str, image: np.ndarray, mask: np.ndarray | None, maps: dict[str, np.ndarray]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{what}: expected a uint8 picture (H, W, 3), got {image.dtype} {image.shape}")
    if mask is not None and (mask.dtype != np.bool_ or mask.shape != image.shape[:2]):
        raise ValueError(f"{what}: expected a bool mask {image.shape[:2]} like its picture, got {mask.dtype} {mask.shape}")
    for name, values in maps.items():
        if values.ndim != 2 or not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"{what}: expected a float map (H, W) of {name!r}, got {values.dtype} {values.shape}")
