"""From a source to a manifest: fingerprint, tabulate each picture or slide, split by subject, validate, write."""

import hashlib
import logging
from collections import Counter
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from methods.curation.splits import SplitConfig, leaking_subjects, split_subjects
from methods.curation.tissue import TissueConfig, find_tissue, tile_grid, tissue_share
from storage import filesystems
from storage.datasets.folder import FolderSource, list_folder
from storage.datasets.source import SourceError, SourceItem
from storage.images import picture_size, read_mask
from storage.manifest import sample_id, write_manifest
from storage.slides import is_slide, open_slide
from tasks.caching import cached_task
from tasks.execution import ExecutionConfig, executor_for
from tasks.references import ItemReference, ManifestReference, TableReference
from tasks.samples import READ_ERRORS

logger = logging.getLogger(__name__)

_THUMBNAIL_PX = 1024


class TilingConfig(BaseModel):
    """How slides, and pictures when asked, are cut into samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_px: int = Field(default=256, ge=16, description="height and width of a tile at full resolution")
    stride_px: int | None = Field(default=None, ge=1, description="from tile to tile; the tile's size when not given")
    pictures: Literal["whole", "tiled"] = Field(default="whole", description="ordinary pictures: one sample each, or tiles")
    tissue_share: float = Field(default=0.5, ge=0, le=1, description="least share of tissue in a slide's tile")
    abnormal_share: float = Field(
        default=0.01, gt=0, le=1, description="least share of the mask in a tile that is labelled abnormal; between none and this: unknown"
    )
    tissue: TissueConfig = TissueConfig()


class TooManyFailuresError(RuntimeError):
    """More samples failed than the configuration allows."""


def survey(source: FolderSource, *, store: str) -> list[ItemReference]:
    """List a source and take the digest of each file; what is missing is listed with the reason."""
    book = filesystems.FingerprintBook(filesystems.join(store, "fingerprints.parquet"))
    references = [_refer(item, book) for item in list_folder(source)]
    book.save()
    return references


@cached_task(
    name="tabulate", run_name="tabulate {item[uri]}", outputs_exist=lambda table: filesystems.exists(table["uri"]), ignore=("execution",)
)
def tabulate(item: ItemReference, *, tiling: TilingConfig, store: str, execution: ExecutionConfig) -> TableReference:
    """Write the rows of one picture or slide."""
    return executor_for(execution).run(tabulate_item, item, tiling, store)


@cached_task(
    name="write manifest",
    run_name="write manifest",
    outputs_exist=lambda manifest: filesystems.exists(manifest["uri"]) and filesystems.exists(manifest["development_uri"]),
)
def assemble_manifest(tables: list[TableReference], *, split: SplitConfig, failed_share_max: float, store: str) -> ManifestReference:
    """Put the tables together, split by subject and write the manifest and its development part.

    Raises:
        TooManyFailuresError: more than `failed_share_max` of the pictures cannot be used.
        SourceError: nothing usable, or a subject in two splits.
    """
    rows = pd.concat([filesystems.read_table(table["uri"]) for table in tables], ignore_index=True)
    check_failures(failed=rows["excluded"].dropna().tolist(), total=len(tables), failed_share_max=failed_share_max, what="pictures")
    rows = _without_doubles(rows)
    usable = rows["excluded"].isna().to_numpy()
    if not usable.any():
        raise SourceError("no sample is left after curation; " + "; ".join(f"{table['name']}: {table['note']}" for table in tables))
    rows["split"] = _split(rows, usable, split)
    if leaks := leaking_subjects(rows["subject_id"][usable].to_numpy(), rows["split"][usable].to_numpy()):
        raise SourceError(f"these subjects are in more than one split: {', '.join(leaks[:5])}; give all of a subject's rows one split")
    # each named by its own content: a change in the test split alone leaves the development manifest, and so the models, as they are
    development = rows[usable & rows["split"].isin(["train", "validation"])]
    uri, digest = _write_by_content(rows, filesystems.join(store, "manifests"), "manifest")
    development_uri, development_digest = _write_by_content(development, filesystems.join(store, "manifests"), "development")
    return ManifestReference(uri=uri, digest=digest, rows=len(rows), development_uri=development_uri, development_digest=development_digest)


def _write_by_content(rows: pd.DataFrame, folder: str, name: str) -> tuple[str, str]:
    content = hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()[:16]
    uri = filesystems.join(folder, f"{name}-{content}.parquet")
    return uri, write_manifest(uri, rows)


def tabulate_item(item: ItemReference, tiling: TilingConfig, store: str) -> TableReference:
    """The rows of one picture or slide as a table named by its content; what cannot be read becomes one excluded row."""
    try:
        if item["unreadable"] is not None:
            raise FileNotFoundError(item["unreadable"])
        slide = is_slide(item["uri"])
        rows, note = _tabulate_slide(item, tiling) if slide else _tabulate_picture(item, tiling)
    except (*READ_ERRORS, SourceError, ValueError) as error:
        rows, note = [_row(item, 0, 0, 0, 0, excluded=f"unusable: {error}")], f"unusable: {error}"
        logger.warning("%s is unusable: %s", item["uri"], error)
    table = pd.DataFrame(rows, columns=list(_row(item, 0, 0, 0, 0)))
    content = table.to_parquet(index=False)
    uri = filesystems.join(store, "tables", hashlib.sha256(content).hexdigest()[:32] + ".parquet")
    filesystems.write_bytes(uri, content)
    excluded = int(table["excluded"].notna().sum())
    return TableReference(uri=uri, name=filesystems.name_of(item["uri"]), rows=len(table), excluded=excluded, note=note)


def check_failures(*, failed: list[str], total: int, failed_share_max: float, what: str) -> None:
    """Stop when more than the allowed share failed; say how many failed and why otherwise.

    Raises:
        TooManyFailuresError: counts and the most frequent reasons.
    """
    if not failed:
        return
    reasons = "; ".join(f"{count} × {reason}" for reason, count in Counter(failed).most_common(3))
    message = f"{len(failed)} of {total} {what} failed ({reasons})"
    if len(failed) > failed_share_max * total:
        raise TooManyFailuresError(f"{message}; more than failed_share_max = {failed_share_max:.0%}. Mend the source or raise it")
    logger.warning(message)


def _refer(item: SourceItem, book: filesystems.FingerprintBook) -> ItemReference:
    sha256, mask_sha256, unreadable = None, None, None
    try:
        sha256 = book.fingerprint(item.uri)
        mask_sha256 = book.fingerprint(item.mask_uri) if item.mask_uri is not None else None
    except OSError as error:
        unreadable = f"{type(error).__name__}: {error}"
    return ItemReference(**asdict(item), sha256=sha256, mask_sha256=mask_sha256, unreadable=unreadable)  # type: ignore[typeddict-item]


def _tabulate_picture(item: ItemReference, tiling: TilingConfig) -> tuple[list[dict[str, Any]], str]:
    with filesystems.open_for_reading(item["uri"]) as file:
        width_px, height_px = picture_size(file)
    mask = _read_mask(item, width_px, height_px)
    if tiling.pictures == "whole":
        return [_row(item, 0, 0, width_px, height_px, label=_label(item, _share(mask), tiling))], "1 picture"
    corners = tile_grid(width_px, height_px, tile_px=tiling.size_px, stride_px=tiling.stride_px or tiling.size_px)
    rows = _tile_rows(item, corners, tiling, mask=mask, tissue=None)
    return rows, f"{len(rows)} tiles" if rows else f"no tile: {width_px} × {height_px} px is smaller than tiling.size_px = {tiling.size_px}"


def _tabulate_slide(item: ItemReference, tiling: TilingConfig) -> tuple[list[dict[str, Any]], str]:
    with open_slide(item["uri"]) as slide:
        spacing_um = item["spacing_um"] or slide.spacing_um
        if spacing_um is None:
            raise SourceError("the slide does not say its µm per pixel; list it in a CSV with the column spacing_um")
        width_px, height_px = slide.width_px, slide.height_px
        thumbnail = slide.thumbnail(_THUMBNAIL_PX)
    tissue_mask = find_tissue(thumbnail, spacing_um=spacing_um * width_px / thumbnail.shape[1], config=tiling.tissue)
    corners = tile_grid(width_px, height_px, tile_px=tiling.size_px, stride_px=tiling.stride_px or tiling.size_px)
    scale = np.array([thumbnail.shape[1] / width_px, thumbnail.shape[0] / height_px])
    tissue = tissue_share(tissue_mask, np.hstack([corners * scale, (corners + tiling.size_px) * scale]))
    kept = tissue >= tiling.tissue_share
    named = ItemReference(**{**item, "spacing_um": spacing_um, "slide_id": item["slide_id"] or filesystems.name_of(item["uri"])})
    rows = _tile_rows(named, corners[kept], tiling, mask=_read_mask(item, width_px, height_px), tissue=tissue[kept])
    if not rows:
        return rows, f"no tile: of {len(corners)} none has {tiling.tissue_share:.0%} tissue"
    return rows, f"{len(rows)} of {len(corners)} tiles hold {tiling.tissue_share:.0%} tissue or more"


def _tile_rows(
    item: ItemReference, corners: np.ndarray, tiling: TilingConfig, *, mask: np.ndarray | None, tissue: np.ndarray | None
) -> list[dict[str, Any]]:
    boxes = np.hstack([corners, corners + tiling.size_px])
    shares = tissue_share(mask, boxes) if mask is not None else [None] * len(corners)
    rows = []
    for i, (x, y) in enumerate(corners.tolist()):
        row = _row(item, x, y, tiling.size_px, tiling.size_px, label=_label(item, shares[i], tiling))
        rows.append(row | {"tissue_share": None if tissue is None else float(tissue[i])})
    return rows


def _label(item: ItemReference, abnormal_share: float | None, tiling: TilingConfig) -> int | None:
    """A sample's label from its picture's and from the share of the mask in it; a tile of an abnormal picture without mask: unknown."""
    if item["label"] != 1:
        return item["label"]
    if tiling.pictures == "whole" and item["slide_id"] is None:
        return 1
    if abnormal_share is None:
        return None
    return 0 if abnormal_share == 0 else 1 if abnormal_share >= tiling.abnormal_share else None


def _row(
    item: ItemReference, x: int, y: int, width: int, height: int, *, label: int | None = None, excluded: str | None = None
) -> dict[str, Any]:
    sha256 = item["sha256"] or f"unreadable:{item['uri']}"
    return {
        "sample_id": sample_id(sha256, level=0, x_px=x, y_px=y, width_px=width, height_px=height),
        "uri": item["uri"],
        "sha256": item["sha256"],
        "dataset": item["dataset"],
        "subject_id": item["subject_id"],
        "lesion_id": item["lesion_id"],
        "slide_id": item["slide_id"],
        "label": label,
        "finding": item["finding"] if label != 0 else None,
        "mask_uri": item["mask_uri"],
        "mask_sha256": item["mask_sha256"],
        "split": item["split"],
        "level": 0,
        "x_px": x,
        "y_px": y,
        "width_px": width,
        "height_px": height,
        "spacing_um": item["spacing_um"],
        "tissue_share": None,
        "excluded": excluded,
    }


def _read_mask(item: ItemReference, width_px: int, height_px: int) -> np.ndarray | None:
    if item["mask_uri"] is None:
        return None
    with filesystems.open_for_reading(item["mask_uri"]) as file:
        mask = read_mask(file)
    if mask.shape != (height_px, width_px):
        raise SourceError(f"the mask {item['mask_uri']} has {mask.shape[1]} × {mask.shape[0]} px, its picture {width_px} × {height_px}")
    return mask


def _share(mask: np.ndarray | None) -> float | None:
    return None if mask is None else float(mask.mean())


def _without_doubles(rows: pd.DataFrame) -> pd.DataFrame:
    """The same pixels twice: the first row stays, the others are excluded and get an identity of their own."""
    double = rows.duplicated("sample_id") & rows["excluded"].isna()
    first = rows.drop_duplicates("sample_id").set_index("sample_id")["uri"]
    rows.loc[double, "excluded"] = [f"duplicate of {first[sample]}" for sample in rows.loc[double, "sample_id"]]
    again = rows.duplicated("sample_id")
    rows.loc[again, "sample_id"] = [f"{sample}-{number}" for number, sample in enumerate(rows.loc[again, "sample_id"], start=1)]
    return rows


def _split(rows: pd.DataFrame, usable: np.ndarray, config: SplitConfig) -> pd.Series:
    """The source's split where it gives one, ours by subject elsewhere, archive for subjects of whom nothing is known."""
    split = rows["split"].astype("string").where(usable)
    known = rows["label"].notna().groupby(rows["subject_id"]).transform("any").to_numpy()
    split[usable & ~known & split.isna().to_numpy()] = "archive"
    ours = usable & split.isna().to_numpy()
    if ours.any():
        chosen = rows[ours]
        split[ours] = split_subjects(chosen["subject_id"].to_numpy(), (chosen["label"] == 1).to_numpy(), config=config)
    return split
