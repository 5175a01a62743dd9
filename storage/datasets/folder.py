"""A folder of a user's own pictures or slides: `normal/`, `abnormal/` and `masks/`, or a CSV with the manifest's columns."""

import math
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from storage import filesystems
from storage.datasets.source import PICTURE_SUFFIXES, SLIDE_SUFFIXES, SPLITS, SourceError, SourceItem, known, list_pictures, stem_of
from storage.dicom_slides import keep_one_file_a_slide

_CSV_COLUMNS = (
    "uri",
    "dataset",
    "subject_id",
    "lesion_id",
    "slide_id",
    "label",
    "finding",
    "mask_uri",
    "split",
    "spacing_um",
    "annotation_uri",
    "site",
    "skin_tone",
    "projection",
)
_SUFFIXES = PICTURE_SUFFIXES | SLIDE_SUFFIXES


class FolderSource(BaseModel):
    """Where the pictures are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["folder"] = "folder"
    path: str = Field(description="a folder, or a CSV file whose uri and mask_uri are relative to it")
    normal: str = Field(default="normal", description="subfolder of normal pictures; '.' for the folder itself")
    abnormal: str = Field(default="abnormal", description="subfolder of abnormal pictures")
    masks: str = Field(default="masks", description="subfolder of masks, each named like its picture (any image suffix)")
    dataset: str | None = Field(default=None, description="name of the data set; the folder's name when not given")


def list_folder(source: FolderSource) -> list[SourceItem]:
    """The items of a source in the order of their names (of a CSV: in its order); a slide of several DICOM files is one item.

    Raises:
        SourceError: nothing there, an unusable CSV, or two files that one mask name means.
    """
    root = filesystems.absolute(source.path)
    if not filesystems.exists(root):
        raise SourceError(f"there is nothing at {source.path}: correct source.path")
    items = _from_csv(source, root) if root.endswith(".csv") else _from_subfolders(source, root)
    if not items:
        raise SourceError(
            f"no pictures in {source.path}: expected {source.normal}/ and {source.abnormal}/ "
            f"with {', '.join(sorted(_SUFFIXES))} in them, or a CSV"
        )
    return items


def _from_subfolders(source: FolderSource, root: str) -> list[SourceItem]:
    masks: dict[str, str] = {}
    for uri in list_pictures(filesystems.join(root, source.masks), suffixes=_SUFFIXES):
        if masks.setdefault(stem_of(uri), uri) != uri:
            raise SourceError(f"two masks are named {stem_of(uri)!r}: {masks[stem_of(uri)]} and {uri}; keep one")
    dataset = source.dataset or filesystems.name_of(root)
    items = []
    for label, subfolder in ((0, source.normal), (1, source.abnormal)):
        folder = root if subfolder == "." else filesystems.join(root, subfolder)
        subfolders = {filesystems.join(root, name) for name in (source.normal, source.abnormal, source.masks)}
        others = tuple(f"{other}/" for other in subfolders - {folder})
        for uri in keep_one_file_a_slide(list_pictures(folder, suffixes=_SUFFIXES)):
            if not uri.startswith(others):
                # without a table every picture is taken for a subject of its own
                stem = stem_of(uri)
                items.append(SourceItem(uri=uri, dataset=dataset, subject_id=stem, label=label, mask_uri=masks.get(stem)))
    return items


def _from_csv(source: FolderSource, uri: str) -> list[SourceItem]:
    with filesystems.open_for_reading(uri) as file:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    if unknown := sorted(set(table.columns) - set(_CSV_COLUMNS)):
        raise SourceError(f"{source.path}: unknown columns {unknown}; a source table has {list(_CSV_COLUMNS)}")
    if "uri" not in table.columns:
        raise SourceError(f"{source.path}: the column uri is missing")
    folder = uri.rsplit("/", 1)[0]
    dataset = source.dataset or stem_of(uri)
    return [_from_row(source, number, row, folder, dataset) for number, row in enumerate(table.to_dict("records"), start=2)]


def _from_row(source: FolderSource, line: int, row: dict[Any, str], folder: str, dataset: str) -> SourceItem:
    values = {name: known(value) for name, value in row.items()}
    where = f"{source.path}, line {line}"
    uri = values.get("uri")
    if uri is None:
        raise SourceError(f"{where}: uri is empty")
    if values.get("label") not in (None, "0", "1"):
        raise SourceError(f"{where}: label is {values['label']!r}; expected 0 (normal), 1 (abnormal) or nothing (unknown)")
    if values.get("split") not in (None, *SPLITS):
        raise SourceError(f"{where}: split is {values['split']!r}; expected train, validation, test, archive or nothing")
    spacing_um = _to_number(values.get("spacing_um"))
    if spacing_um is not None and not 0 < spacing_um < math.inf:
        raise SourceError(f"{where}: spacing_um is {values['spacing_um']!r}; expected micrometres per pixel, e.g. 0.5")
    mask_uri = values.get("mask_uri")
    return SourceItem(
        uri=_resolve(folder, uri),
        dataset=values.get("dataset") or dataset,
        subject_id=values.get("subject_id") or stem_of(uri),
        label=int(values["label"]) if values.get("label") else None,  # type: ignore[arg-type]
        lesion_id=values.get("lesion_id"),
        slide_id=values.get("slide_id"),
        finding=values.get("finding"),
        mask_uri=_resolve(folder, mask_uri) if mask_uri else None,
        split=values.get("split"),
        spacing_um=spacing_um,
        annotation_uri=_resolve(folder, annotation_uri) if (annotation_uri := values.get("annotation_uri")) else None,
        site=values.get("site"),
        skin_tone=values.get("skin_tone"),
        projection=values.get("projection"),
    )


def _to_number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return math.nan


def _resolve(folder: str, uri: str) -> str:
    return uri if "://" in uri or uri.startswith("/") else filesystems.join(folder, uri)
