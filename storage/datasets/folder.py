"""A folder of a user's own pictures or slides: `normal/`, `abnormal/` and `masks/`, or a CSV with the manifest's columns."""

import logging
import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from storage import filesystems
from storage.datasets.dicom_headers import NOTHING, BurnedIn, Said, Salt, read_headers
from storage.datasets.source import (
    PICTURE_SUFFIXES,
    SLIDE_SUFFIXES,
    SPLITS,
    Row,
    SourceError,
    SourceItem,
    list_beside,
    list_pictures,
    path_in,
    read_text_table,
    resolve,
    stem_of,
    tell_of_nobody,
)
from storage.dicom_slides import keep_one_file_a_slide
from storage.pictures import is_dicom

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

logger = logging.getLogger(__name__)


class FolderSource(BaseModel):
    """Where the pictures are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["folder"] = "folder"
    path: str = Field(description="a folder, or a CSV file whose uri and mask_uri are relative to it")
    normal: str = Field(default="normal", description="subfolder of normal pictures; '.' for the folder itself")
    abnormal: str = Field(default="abnormal", description="subfolder of abnormal pictures")
    masks: str = Field(default="masks", description="subfolder of masks, each named like its picture (any image suffix)")
    dataset: str | None = Field(default=None, description="name of the data set; the folder's name when not given")
    burned_in: BurnedIn = "exclude"
    salt: Salt = ""


def list_folder(source: FolderSource) -> list[SourceItem]:
    """The items of a source in the order of their names (of a CSV: in its order); a slide of several DICOM files is one item.

    The subject is the table's, or the pseudonym of a DICOM file's patient ID; where there is neither, the file, by its path below the
    folder. Headers of DICOM files also fill in spacing, site and projection, and hold back pictures with burned-in annotation.

    Raises:
        SourceError: nothing there, an unusable CSV, a row of nobody in a CSV that names subjects, or two files that one mask name means.
    """
    root = filesystems.absolute(source.path)
    if not filesystems.exists(root):
        raise SourceError(f"there is nothing at {source.path}: correct source.path")
    items = _from_csv(source, root) if root.lower().endswith((".csv", ".tsv")) else _from_subfolders(source, root)
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
    listed = _list_labelled(source, root)
    mask_of = _give_masks(masks, listed)
    headers = _read_headers(source, [uri for uri, _ in listed])
    dataset = source.dataset or filesystems.name_of(root)
    items = []
    for uri, label in listed:
        said = headers.get(uri, NOTHING)
        items.append(
            SourceItem(
                uri=uri,
                dataset=dataset,
                subject_id=said.person or path_in(root, uri),
                label=label,
                mask_uri=mask_of.get(uri),
                spacing_um=said.spacing_um,
                site=said.site,
                projection=said.projection,
                excluded=said.excluded,
            )
        )
    named = sum(said.person is not None or said.excluded is not None for said in headers.values())
    tell_of_nobody(len(listed) - named, where=source.path)
    if lost := sorted(set(masks.values()) - set(mask_of.values())):
        logger.warning("%s: %d mask(s) are named like no picture and are not used, such as %s", source.path, len(lost), lost[0])
    return items


def _give_masks(masks: dict[str, str], listed: Sequence[tuple[str, int]]) -> dict[str, str]:
    """The mask of each picture that has one; of a normal and an abnormal picture of one name the abnormal one's.

    Raises:
        SourceError: two pictures of one label that a mask is named like.
    """
    given: dict[str, tuple[int, str]] = {}
    for uri, label in listed:
        stem = stem_of(uri)
        if stem not in masks:
            continue
        other, picture = given.get(stem, (-1, ""))
        if other == label:
            raise SourceError(f"{masks[stem]} may be the mask of {picture} or of {uri}: rename one, or list them in a CSV with mask_uri")
        given[stem] = max((other, picture), (label, uri))
    return {picture: masks[stem] for stem, (_, picture) in given.items()}


def _list_labelled(source: FolderSource, root: str) -> list[tuple[str, int]]:
    listed = []
    for label, subfolder in ((0, source.normal), (1, source.abnormal)):
        folder = root if subfolder == "." else filesystems.join(root, subfolder)
        subfolders = {filesystems.join(root, name) for name in (source.normal, source.abnormal, source.masks)}
        others = tuple(f"{other}/" for other in subfolders - {folder})
        files = keep_one_file_a_slide(list_pictures(folder, suffixes=_SUFFIXES))
        listed += [(uri, label) for uri in files if not uri.startswith(others)]
    return listed


def _read_headers(source: FolderSource, uris: Sequence[str]) -> dict[str, Said]:
    return read_headers(filter(is_dicom, uris), burned_in=source.burned_in, salt=source.salt)


def _from_csv(source: FolderSource, uri: str) -> list[SourceItem]:
    table = read_text_table(uri)
    if unknown := sorted(set(table.columns) - set(_CSV_COLUMNS)):
        raise SourceError(f"{source.path}: unknown columns {unknown}; a source table has {list(_CSV_COLUMNS)}")
    if "uri" not in table.columns:
        raise SourceError(f"{source.path}: the column uri is missing; it names each row's picture, relative to the table")
    folder = uri.rsplit("/", 1)[0]
    uris = [_picture_of(source, folder, line, row) for line, row in zip(table.lines, table.rows, strict=True)]
    headers = _read_headers(source, uris)
    dataset = source.dataset or stem_of(uri)
    items, nobody = [], list[int]()
    for line, row, picture in zip(table.lines, table.rows, uris, strict=True):
        said = headers.get(picture, NOTHING)
        items.append(_from_row(source, line, row, picture, said, folder, dataset))
        if row.get("subject_id") is None and said.person is None and said.excluded is None and not said.missing:
            nobody.append(line)
    if nobody and "subject_id" in table.columns:
        raise SourceError(
            f"{source.path}, line {nobody[0]}: subject_id is empty ({len(nobody)} such row(s)): fill it, or leave the column out, so that "
            "every picture counts as a person of its own"
        )
    tell_of_nobody(len(nobody), where=source.path)
    _tell_of_files_without_row(source, items)
    return items


def _picture_of(source: FolderSource, folder: str, line: int, row: Row) -> str:
    uri = row["uri"]
    if uri is None:
        raise SourceError(f"{source.path}, line {line}: uri is empty")
    return resolve(folder, uri)


def _from_row(source: FolderSource, line: int, row: Row, uri: str, said: Said, folder: str, dataset: str) -> SourceItem:
    where = f"{source.path}, line {line}"
    label = row.get("label")
    if label not in (None, "0", "1"):
        raise SourceError(f"{where}: label is {label!r}; expected 0 (normal), 1 (abnormal) or nothing (unknown)")
    if row.get("split") not in (None, *SPLITS):
        raise SourceError(f"{where}: split is {row['split']!r}; expected train, validation, test, archive or nothing")
    spacing_um = _to_number(row.get("spacing_um"))
    if spacing_um is not None and not 0 < spacing_um < math.inf:
        raise SourceError(f"{where}: spacing_um is {row['spacing_um']!r}; expected micrometres per pixel, e.g. 0.5")
    mask_uri, annotation_uri = row.get("mask_uri"), row.get("annotation_uri")
    return SourceItem(
        uri=uri,
        dataset=row.get("dataset") or dataset,
        subject_id=row.get("subject_id") or said.person or path_in(folder, uri),
        label=None if label is None else int(label),
        lesion_id=row.get("lesion_id"),
        slide_id=row.get("slide_id"),
        finding=row.get("finding"),
        mask_uri=resolve(folder, mask_uri) if mask_uri else None,
        split=row.get("split"),
        spacing_um=said.spacing_um if spacing_um is None else spacing_um,
        annotation_uri=resolve(folder, annotation_uri) if annotation_uri else None,
        site=row.get("site") or said.site,
        skin_tone=row.get("skin_tone"),
        projection=row.get("projection") or said.projection,
        excluded=said.excluded,
    )


def _tell_of_files_without_row(source: FolderSource, items: Sequence[SourceItem]) -> None:
    uris = [item.uri for item in items]
    named = {*uris, *(uri for item in items for uri in (item.mask_uri, item.annotation_uri) if uri)}
    beside = [uri for uri in list_beside(uris, suffixes=_SUFFIXES) if uri not in named]
    if any(map(is_dicom, beside)):  # of a slide one of its files has a row
        beside = [uri for uri in keep_one_file_a_slide([*uris, *beside], named=uris) if uri not in named]
    if beside:
        logger.warning(
            "%s: %d picture(s) beside those listed have no row and are not used, such as %s", source.path, len(beside), beside[0]
        )


def _to_number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return math.nan
