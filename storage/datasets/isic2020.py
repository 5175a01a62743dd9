"""ISIC 2020 (SIIM-ISIC): 33,126 dermoscopic pictures of 2,056 patients, 584 of them malignant; 425 published pairs of duplicates.

Paper: Rotemberg et al.: A patient-centric dataset of images and metadata for identifying melanomas using clinical context,
Scientific Data 8:34, 2021. Where: https://challenge.isic-archive.com/data/#2020 (JPEG or DICOM, GroundTruth_v2, Duplicates).
"""

from collections.abc import Collection
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from storage import filesystems
from storage.datasets.source import SourceError, SourceItem, index_pictures, read_rows, rows_by_name, without_row

DATASET = "isic-2020"
# the challenge's own names first; train.csv and jpeg/train are Kaggle's
_TABLES = ("ISIC_2020_Training_GroundTruth_v2.csv", "ISIC_2020_Training_GroundTruth.csv", "train.csv")
_FOLDERS = ("jpeg/train", "ISIC_2020_Training_JPEG/train", "train", "jpeg")
_DUPLICATES = "ISIC_2020_Training_Duplicates.csv"


class Isic2020Source(BaseModel):
    """Where the training part of ISIC 2020 is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["isic-2020"] = "isic-2020"
    path: str = Field(
        description="folder with train/ (or jpeg/train/) and ISIC_2020_Training_GroundTruth_v2.csv (or without _v2, or Kaggle's)"
    )
    duplicates: Literal["excluded", "kept"] = Field(
        default="excluded", description=f"of published duplicates ({_DUPLICATES}, where it is there) keep the first only, or all"
    )


def list_isic2020(source: Isic2020Source) -> list[SourceItem]:
    """One item a row of the ground truth in its order; then the pictures without a row, excluded.

    Benign is normal, malignant abnormal; the subject is the patient, where none is known the lesion (v2 of the table), then the picture.

    Raises:
        SourceError: no pictures' folder or table, a row without a name of its own, or target and benign_malignant contradict each other.
    """
    root = filesystems.absolute(source.path)
    table = next((uri for name in _TABLES if filesystems.exists(uri := filesystems.join(root, name))), None)
    folder = next((uri for name in _FOLDERS if filesystems.exists(uri := filesystems.join(root, name))), None)
    if table is None or folder is None:
        raise SourceError(
            f"{source.path} is not ISIC 2020's training part: expected a table ({' or '.join(_TABLES)}) "
            f"and ISIC_*.jpg in {'/ or '.join(_FOLDERS)}/"
        )
    rows = rows_by_name(table, "image_name", needed=["patient_id", "target"])
    pictures = index_pictures(folder)
    duplicates = _read_duplicates(root, pictures) if source.duplicates == "excluded" else {}
    items = [
        _to_item(name, row, pictures.get(name, filesystems.join(folder, f"{name}.jpg")), _label(row, table), duplicates.get(name))
        for name, row in rows.items()
    ]
    return items + without_row(pictures, rows, dataset=DATASET, table=table)


def _to_item(name: str, row: dict[str, str | None], uri: str, label: int | None, original: str | None) -> SourceItem:
    return SourceItem(
        uri=uri,
        dataset=DATASET,
        subject_id=row["patient_id"] or row.get("lesion_id") or name,
        label=label,
        lesion_id=row.get("lesion_id"),
        finding=row.get("diagnosis") if label == 1 else None,
        site=row.get("anatom_site_general_challenge"),
        excluded=f"duplicate of {original} ({_DUPLICATES})" if original else None,
    )


def _label(row: dict[str, str | None], table: str) -> int | None:
    if row["target"] not in (None, "0", "1"):
        raise SourceError(f"{table}: {row['image_name']} has target {row['target']!r}; expected 0 or 1")
    label = None if row["target"] is None else int(row["target"])
    word = {"benign": 0, "malignant": 1}.get(row.get("benign_malignant") or "")
    if label is not None and word is not None and label != word:
        raise SourceError(f"{table}: {row['image_name']} has target {label} and is called {row['benign_malignant']}; correct the row")
    return word if label is None else label


def _read_duplicates(root: str, present: Collection[str]) -> dict[str, str]:
    """For each picture to leave out the one that stays: of a chain of pairs the first named, or else the first that has a file."""
    table = filesystems.join(root, _DUPLICATES)
    if not filesystems.exists(table):
        return {}
    groups: dict[str, frozenset[str]] = {}  # in the order in which the pairs name them
    for row in read_rows(table, needed=["image_name_1", "image_name_2"]):
        names = [name for name in (row["image_name_1"], row["image_name_2"]) if name is not None]
        merged = frozenset[str]().union(*(groups.get(name, {name}) for name in names))
        groups.update(dict.fromkeys([*names, *merged], merged))
    first_of: dict[frozenset[str], str] = {}
    for name in sorted(groups, key=lambda name: name not in present):  # stable: those with a file first, else as named
        first_of.setdefault(groups[name], name)
    return {name: first_of[group] for name, group in groups.items() if name != first_of[group]}
