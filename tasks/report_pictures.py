"""The pictures of a report: the same samples as every detector sees them, each detector's extremes, and slides under their maps."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from PIL import Image

from methods.detectors.interface import Reconstructs
from storage import filesystems
from storage.reports.contents import Extremes, ExtremeSample, GallerySample, SlideOverview
from storage.scores import SCORED, ScoreStore
from storage.slides import open_slide
from tasks.models import load_detector
from tasks.progress import Bar
from tasks.references import ModelReference
from tasks.samples import read_sample, read_sample_mask, read_whole_mask, to_tensor

SAMPLES_AN_END = 4  # the first paper shows so many of the highest and of the lowest scores of each class
MOST_SLIDES = 24
_MOST_FINDINGS = 8  # that are shown besides, when none of the extremes has them
_GALLERY_PX, _EXTREME_PX, _OVERVIEW_PX = 256, 160, 768
_RECONSTRUCTION_S = 60.0  # for a detector; a diffusion model takes minutes for a few pictures
_LABELS = {1: "abnormal", 0: "normal"}
_SPLIT_ORDER = ("test", "validation", "train")


@dataclass(frozen=True)
class Shown:
    """A detector of the report: its scores, its model, and its first pixel threshold, if it has one."""

    store: ScoreStore
    model: ModelReference
    pixel_threshold: float | None


def choose_gallery(rows: pd.DataFrame, detectors: Mapping[str, Shown]) -> list[GallerySample]:
    """From the test split: of each class the highest and the lowest scores of the first detector, and findings that are not among them.

    Args:
        rows: the manifest.
        detectors: by name, in the report's order.
    """
    chosen = list(_choose_samples(rows, next(iter(detectors.values())).store))
    table = rows.iloc[[position for _, position, _ in chosen]]
    reconstructions = {name: _reconstruct(one.model, table) for name, one in detectors.items()}
    return [
        _show(rows.iloc[position], position, group, caption, detectors, {name: found[i] for name, found in reconstructions.items()})
        for i, (group, position, caption) in enumerate(chosen)
    ]


def choose_extremes(rows: pd.DataFrame, store: ScoreStore) -> list[Extremes]:
    """What one detector scores highest and lowest in each class of the test split."""
    score = store.image_scores()

    def show(positions: np.ndarray) -> list[ExtremeSample]:
        return [
            ExtremeSample(row["sample_id"], _finding(row), float(score[position]), read_sample(row, size_px=_EXTREME_PX))
            for position, row in ((position, rows.iloc[position]) for position in positions.tolist())
        ]

    return [
        Extremes(_LABELS[label], end, show(positions)) for label, ranked in _rank(rows, store).items() for end, positions in _ends(ranked)
    ]


def choose_slides(rows: pd.DataFrame) -> tuple[list[pd.DataFrame], int]:
    """The rows of the slides that are shown, in the manifest's order, and how many slides are not: the tested ones go first.

    Normal and abnormal slides take turns.
    """
    slides = rows[rows["slide_id"].notna() & rows["excluded"].isna()]
    groups = [group for _, group in slides.groupby("slide_id", sort=False)]
    found = pd.DataFrame(
        {
            "split": [_SPLIT_ORDER.index(split) if (split := group["split"].iloc[0]) in _SPLIT_ORDER else 9 for group in groups],
            "abnormal": [bool((group["label"] == 1).any()) for group in groups],
        }
    )
    found["turn"] = found.groupby(["split", "abnormal"]).cumcount()
    kept = sorted(found.sort_values(["split", "turn", "abnormal"], kind="stable").index[:MOST_SLIDES])
    return [groups[place] for place in kept], len(groups) - len(kept)


def show_slide(group: pd.DataFrame, detectors: Mapping[str, Shown], bar: Bar) -> SlideOverview:
    """A slide with every detector's maps in its coordinates."""
    first = group.iloc[0]
    with open_slide(first["uri"]) as slide:
        width_px, height_px = slide.width_px, slide.height_px
        level = int(first["level"])
        level_size, downsample = slide.level_dimensions[level], slide.level_downsamples[level]
        overview = slide.thumbnail(_OVERVIEW_PX)
    mask = read_whole_mask(first, max_px=4 * _OVERVIEW_PX)
    if mask is not None:
        size = (overview.shape[1], overview.shape[0])
        mask = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) >= 128
    findings = sorted(set(group["finding"].dropna()))
    bar.advance()
    return SlideOverview(
        slide_id=str(first["slide_id"]),
        subject_id=str(first["subject_id"]),
        split=str(first["split"]),
        label=_LABELS[int((group["label"] == 1).any())],
        finding=", ".join(findings),
        spacing_um=None if pd.isna(first["spacing_um"]) else float(first["spacing_um"]) / downsample,
        width_px=width_px,
        height_px=height_px,
        overview=overview,
        mask=mask,
        heat={name: _heat(group, one.store, level_size, overview.shape[:2]) for name, one in detectors.items() if one.store.map_size_px},
    )


def _rank(rows: pd.DataFrame, store: ScoreStore) -> dict[int, np.ndarray]:
    """By label, abnormal first: positions of the tested samples, the highest score first."""
    tested = np.flatnonzero((rows["split"] == "test") & rows["label"].notna() & (store.status() == SCORED))
    score, labels = store.image_scores(), rows["label"].to_numpy(float, na_value=np.nan)
    return {label: of[np.argsort(-score[of], kind="stable")] for label in _LABELS if len(of := tested[labels[tested] == label])}


def _ends(ranked: np.ndarray) -> Iterator[tuple[Literal["highest", "lowest"], np.ndarray]]:
    """Both ends, the most extreme first; where there are few, no sample is in both."""
    yield "highest", ranked[:SAMPLES_AN_END]
    if len(lowest := ranked[SAMPLES_AN_END:][::-1][:SAMPLES_AN_END]):
        yield "lowest", lowest


def _choose_samples(rows: pd.DataFrame, store: ScoreStore) -> Iterator[tuple[str, int, str]]:
    """Heading, position and caption of each sample of the gallery."""
    seen = set()
    ranks = _rank(rows, store)
    for label, ranked in ranks.items():
        place = {int(position): i for i, position in enumerate(ranked, 1)}
        for end, positions in _ends(ranked):
            for position in map(int, positions):
                seen.add(_finding(rows.iloc[position]))
                yield f"{_LABELS[label].capitalize()}, {end} scores", position, f"score {place[position]} of {len(ranked)} from the top"
    for i, position in enumerate(map(int, ranks.get(1, ())), 1):
        if (finding := _finding(rows.iloc[position])) not in seen and len(seen) < _MOST_FINDINGS:
            seen.add(finding)
            yield "Other findings, the highest score of each", position, f"score {i} of {len(ranks[1])} from the top"


def _finding(row: pd.Series) -> str:
    return str(row["finding"]) if pd.notna(row["finding"]) else _LABELS[int(row["label"])]


def _show(
    row: pd.Series,
    position: int,
    group: str,
    caption: str,
    detectors: Mapping[str, Shown],
    reconstructions: Mapping[str, np.ndarray | None],
) -> GallerySample:
    where = f", x {row['x_px']} y {row['y_px']}" if pd.notna(row["slide_id"]) or row["x_px"] or row["y_px"] else ""
    mask = read_sample_mask(row, size_px=_GALLERY_PX) if row["label"] == 1 else None
    maps = {name: one.store.read_maps(range(position, position + 1))[0] for name, one in detectors.items() if one.store.map_size_px}
    thresholds = {name: one.pixel_threshold for name, one in detectors.items() if mask is not None and mask.any()}
    return GallerySample(
        sample_id=row["sample_id"],
        caption=f"{filesystems.name_of(row['uri'])}{where}; {caption}",
        label=_LABELS[int(row["label"])],
        finding=_finding(row),
        image=read_sample(row, size_px=_GALLERY_PX),
        mask=mask,
        maps=maps,
        group=group,
        reconstructions={name: found for name, found in reconstructions.items() if found is not None},
        called={name: maps[name] >= value for name, value in thresholds.items() if name in maps and value is not None},
    )


def _reconstruct(model: ModelReference, rows: pd.DataFrame) -> list[np.ndarray | None]:
    """What a detector takes samples for, (h, w, 3) uint8 each; None of a detector that does not reconstruct, and when its time is over."""
    detector = load_detector(model)
    if not isinstance(detector, Reconstructs):
        return [None] * len(rows)
    started, found = time.monotonic(), list[np.ndarray | None]()
    for row in rows.to_dict("records"):
        if time.monotonic() - started > _RECONSTRUCTION_S:
            found.append(None)
            continue
        with torch.inference_mode():
            image = detector.reconstruct(to_tensor(read_sample(row, size_px=detector.input_size_px)[None]))[0]
        found.append(np.round(255 * image.clamp(0, 1).permute(1, 2, 0).numpy()).astype(np.uint8))  # (h, w, 3)
    return found


def _heat(group: pd.DataFrame, store: ScoreStore, level_size: tuple[int, int], size: tuple[int, ...]) -> np.ndarray:
    """The maps of a slide's tiles in the overview's coordinates, (h, w) float32, NaN where nothing was scored.

    `level_size` is width and height of the level that the tiles' boxes count in.
    """
    heat = np.full(size, np.nan, np.float32)
    status = store.status()[group.index]
    maps = store.read_maps(group.index.to_numpy())
    scale_x, scale_y = size[1] / level_size[0], size[0] / level_size[1]
    for row, one_map, state in zip(group.to_dict("records"), maps, status, strict=True):
        if state == SCORED:
            x0, x1 = round(row["x_px"] * scale_x), round((row["x_px"] + row["width_px"]) * scale_x)
            y0, y1 = round(row["y_px"] * scale_y), round((row["y_px"] + row["height_px"]) * scale_y)
            reduced = Image.fromarray(one_map.astype(np.float32)).resize((max(1, x1 - x0), max(1, y1 - y0)), Image.Resampling.BOX)
            heat[y0 : y0 + reduced.height, x0 : x0 + reduced.width] = np.asarray(reduced)[: size[0] - y0, : size[1] - x0]
    return heat
