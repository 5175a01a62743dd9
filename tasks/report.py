"""Gather what the report shows and write it: one HTML file, and the same numbers as JSON and CSV."""

import hashlib
import itertools
import platform
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from methods.detectors.registry import NAMES
from methods.evaluation.bootstrap import BootstrapConfig
from storage import filesystems
from storage.manifest import read_manifest
from storage.models import read_bundle
from storage.reports.figures import LearningCurve
from storage.reports.page import (
    ConstantRow,
    CountRow,
    DetectorResult,
    DifferenceRow,
    GallerySample,
    MetricRow,
    PValueRow,
    Report,
    SlideOverview,
    SubgroupRow,
    Threshold,
    metrics_as_csv,
    metrics_as_json,
    render_html,
)
from storage.scores import FAILED, SCORED, ScoreStore, open_store
from storage.slides import open_slide
from tasks.caching import cached_task, code_fingerprint
from tasks.evaluate import read_resampled
from tasks.measures import measure_difference
from tasks.progress import Bar, show_progress
from tasks.references import EvaluationReference, ManifestReference, ModelReference, ReportReference, StoreReference
from tasks.samples import read_sample, read_sample_mask, read_whole_mask

_GALLERY_PX = 256
_SAMPLES_A_KIND = 2
_OVERVIEW_PX = 768
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
    opened = {NAMES[reference["kind"]]: open_store(reference["uri"]) for reference in stores}
    measured = [filesystems.read_json(evaluation["uri"]) for evaluation in evaluations]
    bundles = [read_bundle(model["uri"], digest=model["digest"]) for model in models]
    slides = rows[rows["slide_id"].notna() & rows["excluded"].isna()]
    with show_progress("write report", 2 + slides["slide_id"].nunique()) as bar:
        gallery = _choose_gallery(rows, opened)
        bar.advance()
        report = Report(
            title=name,
            painted=notice is not None,
            generated_note=notice,
            run=_describe_run(manifest, stores, configuration),
            counts=_count(rows, opened),
            detectors=[_describe_detector(result, bundle.pictures) for result, bundle in zip(measured, bundles, strict=True)],
            gallery=gallery,
            slides=[_overview(group, opened, bar) for _, group in slides.groupby("slide_id", sort=False)],
            n_subjects=measured[0]["subjects"]["all"],
            constants=[ConstantRow(answer=answer, **row) for answer, found in measured[0]["constant"].items() for row in found],
            differences=_subtract(evaluations, measured, coverage=bootstrap.level),
            level=bootstrap.level,
            unpaired=_explain_unpaired(measured),
            n_resamples=bootstrap.replicates if any(metric["low"] is not None for metric in measured[0]["metrics"]) else None,
        )
        contents = {"html": render_html(report), "json": metrics_as_json(report), "csv": metrics_as_csv(report)}
        bar.advance()
    folder = filesystems.join(store, "reports", f"{name}-{hashlib.sha256(contents['html'].encode()).hexdigest()[:12]}".replace(" ", "-"))
    uris = {kind: filesystems.join(folder, {"html": "report.html"}.get(kind, f"metrics.{kind}")) for kind in contents}
    for kind, text in contents.items():
        filesystems.write_bytes(uris[kind], text.encode())
    return ReportReference(html_uri=uris["html"], json_uri=uris["json"], csv_uri=uris["csv"])


def _subtract(evaluations: list[EvaluationReference], measured: list[dict[str, Any]], *, coverage: float) -> list[DifferenceRow]:
    """Differences of all pairs of detectors that were measured on the same samples under the same resamples."""
    found = []
    for (first, one), (second, other) in itertools.combinations(zip(evaluations, measured, strict=True), 2):
        if one["paired_by"] != other["paired_by"]:
            continue
        values, others = read_resampled(first), read_resampled(second)
        for name in (name for name in values.metrics if name in others.metrics):
            level, metric = name.split("/", 1)
            row = measure_difference(level, metric, values.metrics[name], others.metrics[name], values.groups[level], coverage=coverage)
            found.append(DifferenceRow(NAMES[one["kind"]], NAMES[other["kind"]], MetricRow(**row)))
    return found


def _explain_unpaired(measured: list[dict[str, Any]]) -> str:
    alone = [NAMES[one["kind"]] for one in measured if one["paired_by"] != measured[0]["paired_by"]]
    if not alone:
        return ""
    return f"Measured on other samples than {NAMES[measured[0]['kind']]}, and therefore not compared with it: {', '.join(alone)}."


def summarise(evaluations: list[EvaluationReference], *, notice: str | None) -> str:
    """The metrics as a Markdown table, for the Prefect UI."""
    lines = [f"> **Painted.** {notice}", ""] if notice else []
    lines += ["| detector | level | metric | value | interval over subjects |", "|---|---|---|---|---|"]
    measured = [filesystems.read_json(evaluation["uri"]) for evaluation in evaluations]
    for evaluation, result in zip(evaluations, measured, strict=True):
        for row in result["metrics"]:
            interval = f"{row['low']:.3f} to {row['high']:.3f}" if row["low"] is not None else row["note"]
            lines.append(f"| {NAMES[evaluation['kind']]} | {row['level']} | {row['name']} | {row['value']:.3f} | {interval} |")
    for answer, rows in measured[0]["constant"].items() if measured else ():
        lines += [f"| *constant: {answer}* | {row['level']} | {row['name']} | {row['value']:.3f} | |" for row in rows]
    return "\n".join(lines)


def _describe_run(manifest: ManifestReference, stores: list[StoreReference], configuration: dict[str, Any]) -> dict[str, str]:
    parts = {f"{key}": str(value) for key, value in configuration.items() if not isinstance(value, dict | list | tuple)}
    nested = {
        f"{key}.{inner}": str(value) for key, part in configuration.items() if isinstance(part, dict) for inner, value in part.items()
    }
    detectors = {
        f"detector {entry['kind']}": ", ".join(f"{key}={value}" for key, value in entry.items()) for entry in configuration["detectors"]
    }
    return {
        "manifest digest": manifest["digest"],
        **{f"model digest, {store['kind']}": store["model_digest"] for store in stores},
        "code": f"normascope {version('normascope')}, fingerprint {code_fingerprint(__name__)[:16]}",
        "packages": ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scikit-learn", "zarr", "prefect", "dask")),
        "python": platform.python_version(),
        **detectors,
        **{key: value for key, value in (parts | nested).items() if value != "None"},
    }


def _describe_detector(result: dict[str, Any], pictures: dict[str, bytes]) -> DetectorResult:
    thresholds = [
        Threshold(
            level=point["level"],
            name=f"{point['level']} threshold",
            value=point["value"],
            chosen_by=f"{point['rule']} ({point['detail']})",
            split=point["split"],
            came=[MetricRow(**row) for row in point["came"]],
        )
        for point in result["operating_points"]
    ]
    training = result["training"]
    low, high = result["colour_range"]
    return DetectorResult(
        name=NAMES[result["kind"]],
        kind=result["kind"],
        metrics=[MetricRow(**row) for row in result["metrics"]],
        thresholds=thresholds,
        roc={level: (np.array(x), np.array(y)) for level, (x, y) in result["roc"].items()},
        pr={level: (np.array(x), np.array(y)) for level, (x, y) in result["pr"].items()},
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
    )


def _describe_tuned(tuned: dict[str, Any] | None) -> str:
    if tuned is None:
        return ""
    tried = "".join(f", {value:g}: {found:.3f}" for value, found in tuned.get("tried", []))
    return f"{tuned['name']} = {tuned['value']:g}, by {tuned['by']}{f' (tried{tried[1:]})' if tried else ''}"


def _count(rows: pd.DataFrame, opened: dict[str, ScoreStore]) -> list[CountRow]:
    """Samples and subjects by split and label; failures are those of the first detector, which all read the same files."""
    store = next(iter(opened.values()))
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


def _choose_gallery(rows: pd.DataFrame, opened: dict[str, ScoreStore]) -> list[GallerySample]:
    """From the test split: of each finding, and of normal samples, the highest and the lowest score of the first detector."""
    store = next(iter(opened.values()))
    tested = rows[(rows["split"] == "test") & rows["label"].notna() & (store.status() == SCORED)]
    score = pd.Series(store.image_scores(), rows.index)
    samples = []
    for (label, finding), group in tested.groupby([tested["label"], tested["finding"].fillna("")], sort=True):
        ranked = group.loc[score[group.index].sort_values(ascending=False).index]
        extremes = pd.concat([ranked.head(_SAMPLES_A_KIND), ranked.tail(min(_SAMPLES_A_KIND, max(0, len(ranked) - _SAMPLES_A_KIND)))])
        samples += [
            _show(int(position), row, int(label), str(finding), opened, len(ranked), ranked.index) for position, row in extremes.iterrows()
        ]
    return samples


def _show(
    position: int, row: pd.Series, label: int, finding: str, opened: dict[str, ScoreStore], of: int, ranked: pd.Index
) -> GallerySample:
    where = f", x {row['x_px']} y {row['y_px']}" if pd.notna(row["slide_id"]) or row["x_px"] or row["y_px"] else ""
    rank = ranked.tolist().index(position) + 1
    return GallerySample(
        sample_id=row["sample_id"],
        caption=f"{filesystems.name_of(row['uri'])}{where}; score {rank} of {of} from the top",
        label="abnormal" if label else "normal",
        finding=finding or ("abnormal" if label else "normal"),
        image=read_sample(row, size_px=_GALLERY_PX),
        mask=read_sample_mask(row, size_px=_GALLERY_PX) if label else None,
        maps={
            name: _resize(store.read_maps(range(position, position + 1))[0], _GALLERY_PX)
            for name, store in opened.items()
            if store.map_size_px
        },
    )


def _overview(group: pd.DataFrame, opened: dict[str, ScoreStore], bar: Bar) -> SlideOverview:
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
        label="abnormal" if (group["label"] == 1).any() else "normal",
        finding=", ".join(findings),
        spacing_um=None if pd.isna(first["spacing_um"]) else float(first["spacing_um"]) / downsample,
        width_px=width_px,
        height_px=height_px,
        overview=overview,
        mask=mask,
        heat={name: _heat(group, store, level_size, overview.shape[:2]) for name, store in opened.items() if store.map_size_px},
    )


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


def _resize(one_map: np.ndarray, size_px: int) -> np.ndarray:
    return np.asarray(Image.fromarray(one_map.astype(np.float32)).resize((size_px, size_px), Image.Resampling.BILINEAR))
