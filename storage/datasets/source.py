"""What every reader of a data set gives: one item a picture or slide, with what the source says of it, before a pixel was read."""

import csv
import io
import logging
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from storage import filesystems

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".dcm"})
SLIDE_SUFFIXES = frozenset({".tif", ".tiff", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".svslide"})
SPLITS = ("train", "validation", "test", "archive")
_UNKNOWN = frozenset({"", "nan", "na", "n/a", "none", "null", "unknown"})
_FOLDERS_LISTED = 100  # of an object store, to see what lies beside the files that a table names


Row = dict[str, str | None]  # of a source's table, by column

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table of text as it is read.

    Attributes:
        columns: the names in its header, in their order.
        rows: a cell that means "unknown" (empty, nan, n/a, unknown) is None.
        lines: the line of the file that each row begins on; the header's is 1.
    """

    columns: list[str]
    rows: list[Row]
    lines: list[int]


def read_text_table(uri: str, *, only: Collection[str] | None = None) -> TextTable:
    """Read a table of text in UTF-8 whose cells are separated by commas, semicolons or tabs, whichever its header has most of.

    A row with fewer cells than the header is unknown in the others; cells beyond the header's may be there if they are empty.

    Args:
        uri: the table.
        only: columns to keep in the rows; all where not given.

    Raises:
        SourceError: no such table, an empty one, one without a row, not UTF-8, a quote that is not closed, a column that is there twice, or
            a row with more cells than columns; with the line.
    """
    if not filesystems.exists(uri):
        raise SourceError(f"there is no table {uri}")
    found = _iterate_lines(uri)
    _, header = next(found, (0, []))
    if not header:
        raise SourceError(f"{uri} is empty: expected a line of column names and a line a picture")
    columns = _columns(uri, header)
    kept = [(place, name) for place, name in enumerate(columns) if only is None or name in only]
    rows, lines = list[Row](), list[int]()
    for line, cells in found:
        if len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
            raise SourceError(
                f"{uri}, line {line}: {len(cells)} cells, but the header names {len(columns)} columns; "
                "put quotes around a cell that holds the separator"
            )
        cells += [""] * (len(columns) - len(cells))
        rows.append({name: known(cells[place]) for place, name in kept})
        lines.append(line)
    if not rows:
        raise SourceError(f"{uri} has column names and no row: add a line a picture")
    return TextTable(columns, rows, lines)


def _columns(uri: str, header: list[str]) -> list[str]:
    """The names of a header, without those at its end that are empty: spreadsheets leave them behind."""
    columns = [name.strip() for name in header]
    while columns and not columns[-1]:
        columns.pop()
    if twice := next((name for place, name in enumerate(columns) if name and name in columns[:place]), None):
        raise SourceError(f"{uri}: the column {twice!r} is there twice; keep one")
    return columns


def _iterate_lines(uri: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of a table's lines, but for empty ones, each with the number of the line that it begins on."""
    with filesystems.open_for_reading(uri) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        begins, head = 1, list[str]()
        try:
            for line in text:
                head.append(line)
                if line.strip():
                    break
            first = re.sub(r'"[^"]*"', "", head[-1]) if head else ""
            separator = max(",;\t", key=first.count)  # of equally many the first
            reader = csv.reader(chain(head, text), delimiter=separator, strict=True)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield begins, cells
                begins = reader.line_num + 1
        except UnicodeDecodeError:
            raise SourceError(f"{uri}, line {_line_not_utf8(uri)}: not UTF-8; save the table as UTF-8 (Excel: CSV UTF-8)") from None
        except csv.Error as error:
            raise SourceError(f"{uri}, line {begins}: {error}; is a quote not closed there, or not doubled within a cell?") from None


def _line_not_utf8(uri: str) -> int:
    with filesystems.open_for_reading(uri) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def read_rows(uri: str, *, needed: Iterable[str]) -> list[Row]:
    """The rows of a table; see `read_needed`."""
    return read_needed(uri, needed).rows


def read_needed(uri: str, needed: Iterable[str]) -> TextTable:
    """A table with the columns that are needed.

    Raises:
        SourceError: as `read_text_table`, or a needed column is missing.
    """
    table = read_text_table(uri)
    if missing := [name for name in needed if name not in table.columns]:
        raise SourceError(f"{uri}: expected the column(s) {missing}, found {table.columns}")
    return table


def rows_by_name(uri: str, column: str, *, needed: Iterable[str] = ()) -> dict[str, Row]:
    """The rows of a table by the picture that `column` names, in their order.

    Raises:
        SourceError: as `read_needed`; a row without a name, or two rows of one name: which of them holds is not to be known.
    """
    rows: dict[str, Row] = {}
    table = read_needed(uri, [column, *needed])
    for line, row in zip(table.lines, table.rows, strict=True):
        name = row[column]
        if name is None or name in rows:
            raise SourceError(f"{uri}, line {line}: {column} is {name or 'empty'}{', which an earlier line names too' if name else ''}")
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


def list_beside(uris: Iterable[str], *, suffixes: Iterable[str]) -> list[str]:
    """The pictures in the very folders of these files, not below them, sorted; none of a folder that cannot be listed.

    In an object store, where each folder is a request, only if they are few.
    """
    wanted, found = tuple(suffixes), list[str]()
    folders = sorted({uri.rpartition("/")[0] for uri in uris})
    remote = sum(filesystems.local_path(folder) is None for folder in folders)
    for folder in folders:
        if remote <= _FOLDERS_LISTED or filesystems.local_path(folder) is not None:
            try:
                found += [uri for uri in filesystems.list_right_in(folder) if uri.lower().endswith(wanted)]
            except (OSError, NotImplementedError):  # who may read files may not always list them
                continue
    return sorted(found)


def resolve(folder: str, uri: str) -> str:
    """What a table in a folder means by a URI: an absolute one itself, a path the file below the folder."""
    return uri if "://" in uri or uri.startswith("/") else filesystems.join(folder, uri.removeprefix("./"))


def path_in(folder: str, uri: str) -> str:
    """A file's path in a folder without its suffix; of a file that is elsewhere its URI without suffix."""
    above, slash, name = uri.removeprefix(f"{folder.rstrip('/')}/").rpartition("/")
    return f"{above}{slash}{stem_of(name) or name}"


def tell_of_nobody(pictures: int, *, where: str) -> None:
    """Say of how many pictures the person is not known: their ids are their files' names."""
    if pictures:
        logger.warning("%s: %d picture(s) without a known person count as a person each", where, pictures)


def stem_of(uri: str) -> str:
    """A file's name without its suffix."""
    return filesystems.name_of(uri).rsplit(".", 1)[0]
