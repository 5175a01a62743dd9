"""What every reader of a data set gives: one item a picture or slide, with what the source says of it, before a pixel was read."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from storage import filesystems

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".dcm"})
SLIDE_SUFFIXES = frozenset({".tif", ".tiff", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".svslide"})
SPLITS = ("train", "validation", "test", "archive")
_UNKNOWN = frozenset({"", "nan", "na", "n/a", "none", "null", "unknown"})


Row = dict[str, str | None]  # of a source's table, by column


class SourceError(ValueError):
    """A source that cannot be used as it is; the message says what to do."""


@dataclass(frozen=True, slots=True)
class SourceItem:
    """A picture or slide of a source, before anything of it was read.

    Attributes:
        uri: the file.
        dataset: the data set's name.
        subject_id: the person; where the source does not know persons, the most that it knows to belong together (lesion, slide, file).
        label: 0 normal, 1 abnormal, None unknown; of the whole picture.
        frame: which picture of a file that holds many ("train_images:17": array and index); None for a file that is one picture.
        finding: the source's own word for what is abnormal.
        mask_uri: a picture of the abnormal pixels.
        annotation_uri: outlines of what is abnormal (ASAP XML), in pixels of the slide's level 0.
        partly_annotated: the mask or the outlines do not show all that is abnormal: what lies outside of them is unknown, not normal.
        split: where the source prescribes one.
        spacing_um: µm per pixel, where the source says it.
        site: the part of the body, in the source's words.
        skin_tone: Fitzpatrick's type or the source's own scale.
        projection: of a radiograph: PA, AP, LL.
        excluded: why this item must not be used (a published exclusion, no row in the table); None if it may.
    """

    uri: str
    dataset: str
    subject_id: str
    label: int | None
    frame: str | None = None
    lesion_id: str | None = None
    slide_id: str | None = None
    finding: str | None = None
    mask_uri: str | None = None
    annotation_uri: str | None = None
    partly_annotated: bool = False
    split: str | None = None
    spacing_um: float | None = None
    site: str | None = None
    skin_tone: str | None = None
    projection: str | None = None
    excluded: str | None = None


def read_rows(uri: str, *, needed: Iterable[str], sep: str = ",") -> list[Row]:
    """The rows of a CSV table as text; what means "unknown" (an empty cell, nan, n/a, unknown) is None.

    Raises:
        SourceError: no such table, an empty one, or a needed column is missing.
    """
    if not filesystems.exists(uri):
        raise SourceError(f"there is no table {uri}")
    with filesystems.open_for_reading(uri) as file:
        try:
            table = pd.read_csv(file, dtype=str, keep_default_na=False, sep=sep, encoding="utf-8-sig")
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise SourceError(f"{uri} is not a readable table: {error}") from None
    if missing := [name for name in needed if name not in table.columns]:
        raise SourceError(f"{uri}: expected the column(s) {missing}, found {list(table.columns)}")
    return [{str(name): known(value) for name, value in row.items()} for row in table.to_dict("records")]


def rows_by_name(table: str, column: str, *, needed: Iterable[str] = ()) -> dict[str, Row]:
    """The rows of a table by the picture that `column` names, in their order.

    Raises:
        SourceError: as `read_rows`; a row without a name, or two rows of one name: which of them holds is not to be known.
    """
    rows: dict[str, Row] = {}
    for line, row in enumerate(read_rows(table, needed=[column, *needed]), start=2):
        name = row[column]
        if name is None or name in rows:
            raise SourceError(f"{table}, line {line}: {column} is {name or 'empty'}{', which an earlier line names too' if name else ''}")
        rows[name] = row
    return rows


def known(value: Any) -> str | None:
    """A cell's text without blanks around it, or None where it means "unknown"."""
    text = "" if value is None else str(value).strip()
    return None if text.lower() in _UNKNOWN else text


def index_pictures(folder: str, *, suffixes: Iterable[str] = PICTURE_SUFFIXES) -> dict[str, str]:
    """The pictures below a folder (subfolders too) by their name without suffix, in the order of their URIs.

    Raises:
        SourceError: two files of one name (a.jpg and a.png, or the same name in two subfolders): which one a row means is not to be known.
    """
    pictures: dict[str, str] = {}
    for uri in list_pictures(folder, suffixes=suffixes):
        if pictures.setdefault(stem_of(uri), uri) != uri:
            raise SourceError(f"two files are named {stem_of(uri)!r}: {pictures[stem_of(uri)]} and {uri}; keep one")
    return pictures


def list_pictures(folder: str, *, suffixes: Iterable[str] = PICTURE_SUFFIXES) -> list[str]:
    """The URIs of the pictures below a folder, sorted; none where there is no folder."""
    wanted = tuple(suffixes)
    if not filesystems.exists(folder):
        return []
    return [uri for uri in filesystems.list_files(folder) if uri.lower().endswith(wanted)]


def without_row(pictures: dict[str, str], named: Iterable[str], *, dataset: str, table: str) -> list[SourceItem]:
    """Files that no row of the table names: listed as excluded, so that they are counted and not lost."""
    listed = set(named)
    return [
        SourceItem(uri=uri, dataset=dataset, subject_id=name, label=None, excluded=f"no row in {filesystems.name_of(table)}")
        for name, uri in pictures.items()
        if name not in listed
    ]


def stem_of(uri: str) -> str:
    """A file's name without its suffix."""
    return filesystems.name_of(uri).rsplit(".", 1)[0]
