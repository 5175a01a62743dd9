"""A folder of DICOM files, such as a PACS exports: labels from subfolders or a table, the rest from the headers."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from storage import filesystems
from storage.datasets.source import SourceError, SourceItem, list_pictures, read_rows, stem_of, without_row
from storage.dicom import DicomHeader, read_dicom_header
from storage.dicom_slides import keep_one_file_a_slide
from storage.images import UnreadableImageError

_SUFFIXES = (".dcm", ".dicom")
_HEADER_BYTES = 1 << 18  # pixels begin before that in all but a few files
_HEADERS_AT_ONCE = 16  # object stores answer slowly, but many at a time
Row = dict[str, str | None]
_Entry = TypeVar("_Entry")


class DicomFolderSource(BaseModel):
    """Where the DICOM files are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["dicom"] = "dicom"
    path: str = Field(
        description="a folder of .dcm files, subfolders too, or a CSV of uri (relative to it), label (0, 1 or none), finding, subject_id"
    )
    normal: str = Field(default="normal", description="subfolder of normal pictures")
    abnormal: str = Field(default="abnormal", description="subfolder of abnormal pictures; what is in neither has no label")
    burned_in: Literal["exclude", "allow"] = Field(
        default="exclude", description="pictures whose header says that text, which may be a name, is part of the pixels"
    )
    salt: str = Field(
        default="", description="key of the patients' pseudonyms; without one they can be found out by trying all patient IDs"
    )
    dataset: str | None = Field(default=None, description="name of the data set; the folder's or the table's name when not given")


def list_dicom_folder(source: DicomFolderSource) -> list[SourceItem]:
    """One item a file, and one a whole slide, by name (of a CSV: a row in its order, then files beside it without a row, excluded).

    The subject is the pseudonym of the patient ID, or the table's; where neither knows one, the file. Damaged files are excluded, files
    that are not there are listed. Of a file of many frames the first is meant.

    Raises:
        SourceError: nothing there, no .dcm files, or an unusable table.
    """
    root = filesystems.absolute(source.path)
    if not filesystems.exists(root):
        raise SourceError(f"there is nothing at {source.path}: correct source.path")
    if root.lower().endswith(".csv"):
        return _from_table(source, root)
    files = keep_one_file_a_slide(list_pictures(root, suffixes=_SUFFIXES))
    if not files:
        raise SourceError(
            f"no DICOM files in {source.path}: expected *.dcm, in {source.normal}/ and {source.abnormal}/ for their labels, or a CSV"
        )
    labels = {source.normal: 0, source.abnormal: 1}
    dataset = source.dataset or filesystems.name_of(root)

    def to_item(uri: str) -> SourceItem:
        inside = uri.removeprefix(root).strip("/")
        return _to_item(uri, source, dataset, label=labels.get(inside.split("/", 1)[0]), subject_id=None, finding=None, name=inside)

    return _map(to_item, files)


def _from_table(source: DicomFolderSource, table: str) -> list[SourceItem]:
    rows = read_rows(table, needed=["uri", "label"])
    folder = table.rsplit("/", 1)[0]
    dataset = source.dataset or stem_of(table)
    uris = [_locate(row, folder, table) for row in rows]
    files = keep_one_file_a_slide(list_pictures(folder, suffixes=_SUFFIXES), named=uris)

    def to_item(place: tuple[str, Row]) -> SourceItem:
        uri, row = place
        label = None if row["label"] is None else int(row["label"])
        name = uri.removeprefix(folder).strip("/")
        return _to_item(uri, source, dataset, label=label, subject_id=row.get("subject_id"), finding=row.get("finding"), name=name)

    items = _map(to_item, list(zip(uris, rows, strict=True)))
    return items + without_row(
        {uri.removeprefix(folder).strip("/"): uri for uri in files if uri not in set(uris)}, (), dataset=dataset, table=table
    )


def _locate(row: Row, folder: str, table: str) -> str:
    uri = row["uri"]
    if uri is None:
        raise SourceError(f"{table}: a row has no uri; expected the path of a .dcm file")
    if row["label"] not in (None, "0", "1"):
        raise SourceError(f"{table}: {uri} has label {row['label']!r}; expected 0 (normal), 1 (abnormal) or nothing (unknown)")
    return uri if "://" in uri or uri.startswith("/") else filesystems.join(folder, uri)


def _to_item(
    uri: str, source: DicomFolderSource, dataset: str, *, label: int | None, subject_id: str | None, finding: str | None, name: str
) -> SourceItem:
    file = name.rsplit(".", 1)[0]
    try:
        header = _read_header(uri, source.salt)
    except FileNotFoundError:
        return SourceItem(uri=uri, dataset=dataset, subject_id=subject_id or file, label=label, finding=finding)
    except UnreadableImageError:  # whose message may quote a damaged field, and so a name
        return SourceItem(
            uri=uri, dataset=dataset, subject_id=subject_id or file, label=label, finding=finding, excluded="unreadable DICOM file"
        )
    return SourceItem(
        uri=uri,
        dataset=dataset,
        subject_id=subject_id or header.patient_key or file,
        label=label,
        finding=finding if label == 1 else None,
        spacing_um=header.spacing_um,
        site=header.body_part,
        projection=header.projection,
        excluded="burned-in annotation" if header.burned_in_annotation and source.burned_in == "exclude" else None,
    )


def _read_header(uri: str, salt: str) -> DicomHeader:
    """Read no more of a file than its header, where that is as short as headers are."""
    start = io.BytesIO(filesystems.read_ranges(uri, [(0, _HEADER_BYTES)])[0])
    start.name = uri  # for the error
    try:
        header = read_dicom_header(start, salt=salt)
        if start.tell() < _HEADER_BYTES:  # the pixels, or the file's end, were reached
            return header
    except UnreadableImageError:
        if len(start.getbuffer()) < _HEADER_BYTES:
            raise
    with filesystems.open_for_reading(uri) as file:
        return read_dicom_header(file, salt=salt)


def _map(function: Callable[[_Entry], SourceItem], entries: list[_Entry]) -> list[SourceItem]:
    with ThreadPoolExecutor(_HEADERS_AT_ONCE) as pool:
        return list(pool.map(function, entries))
