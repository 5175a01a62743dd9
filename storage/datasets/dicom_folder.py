"""A folder of DICOM files, such as a PACS exports: labels from subfolders or a table, the rest from the headers."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from storage import filesystems
from storage.datasets.dicom_headers import BurnedIn, Said, Salt, read_headers
from storage.datasets.source import (
    Row,
    SourceError,
    SourceItem,
    TextTable,
    list_pictures,
    path_in,
    read_needed,
    resolve,
    stem_of,
    tell_of_nobody,
    without_row,
)
from storage.dicom_slides import keep_one_file_a_slide

_SUFFIXES = (".dcm", ".dicom")


class DicomFolderSource(BaseModel):
    """Where the DICOM files are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["dicom"] = "dicom"
    path: str = Field(
        description="a folder of .dcm files, subfolders too, or a CSV of uri (relative to it), label (0, 1 or none), finding, subject_id"
    )
    normal: str = Field(default="normal", description="subfolder of normal pictures")
    abnormal: str = Field(default="abnormal", description="subfolder of abnormal pictures; what is in neither has no label")
    burned_in: BurnedIn = "exclude"
    salt: Salt = ""
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
    folders = [uri.removeprefix(root).strip("/").split("/", 1)[0] for uri in files]
    rows: list[Row] = [{"label": str(label) if (label := labels.get(folder)) is not None else None} for folder in folders]
    return _to_items(source, files, rows, root, source.dataset or filesystems.name_of(root))


def _from_table(source: DicomFolderSource, uri: str) -> list[SourceItem]:
    table = read_needed(uri, ["uri", "label"])
    folder = uri.rsplit("/", 1)[0]
    dataset = source.dataset or stem_of(uri)
    uris = _locate(table, folder, uri)
    listed = set(uris)
    files = keep_one_file_a_slide(list_pictures(folder, suffixes=_SUFFIXES), named=uris)
    beside = {file.removeprefix(folder).strip("/"): file for file in files if file not in listed}
    return _to_items(source, uris, table.rows, folder, dataset) + without_row(beside, (), dataset=dataset, table=uri)


def _locate(table: TextTable, folder: str, uri: str) -> list[str]:
    for line, row in zip(table.lines, table.rows, strict=True):
        if row["uri"] is None:
            raise SourceError(f"{uri}, line {line}: a row has no uri; expected the path of a .dcm file")
        if row["label"] not in (None, "0", "1"):
            expected = "expected 0 (normal), 1 (abnormal) or nothing (unknown)"
            raise SourceError(f"{uri}, line {line}: {row['uri']} has label {row['label']!r}; {expected}")
    return [resolve(folder, str(row["uri"])) for row in table.rows]


def _to_items(source: DicomFolderSource, uris: list[str], rows: list[Row], folder: str, dataset: str) -> list[SourceItem]:
    headers = read_headers(uris, burned_in=source.burned_in, salt=source.salt)
    found = [(uri, row, headers[uri]) for uri, row in zip(uris, rows, strict=True)]
    nobody = sum((row.get("subject_id") or said.person or said.excluded) is None for _, row, said in found)
    tell_of_nobody(nobody, where=source.path)
    return [_to_item(uri, row, said, path_in(folder, uri), dataset) for uri, row, said in found]


def _to_item(uri: str, row: Row, said: Said, file: str, dataset: str) -> SourceItem:
    label = None if row["label"] is None else int(row["label"])
    return SourceItem(
        uri=uri,
        dataset=dataset,
        subject_id=row.get("subject_id") or said.person or file,
        label=label,
        finding=row.get("finding") if label == 1 else None,
        spacing_um=said.spacing_um,
        site=said.site,
        projection=said.projection,
        excluded=said.excluded,
    )
