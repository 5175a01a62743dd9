"""ISIC 2018 challenge, task 3 (HAM10000): 10,015 dermoscopic pictures of 7,470 lesions in seven classes.

Papers: Codella et al., arXiv:1902.03368; Tschandl, Rosendahl, Kittler: The HAM10000 dataset, Scientific Data 5:180161, 2018.
Where: https://challenge.isic-archive.com/data/#2018 (Training_Input.zip, Training_GroundTruth.zip and the supplement LesionGroupings.csv).
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage import filesystems
from storage.datasets.source import SourceError, SourceItem, index_pictures, rows_by_name, without_row

DATASET = "isic-2018"
Class = Literal["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
Part = Literal["Training", "Validation", "Test"]
CLASSES: tuple[Class, ...] = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
_SPLITS: dict[Part, str] = {"Training": "train", "Validation": "validation", "Test": "test"}


class Isic2018Source(BaseModel):
    """Where ISIC 2018 task 3 is, and what its classes count as."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["isic-2018"] = "isic-2018"
    path: str = Field(description="the folder in which the archives were unpacked: ISIC2018_Task3_Training_Input/, …_GroundTruth/, …")
    normal: tuple[Class, ...] = Field(default=("NV",), min_length=1, description="classes that are normal")
    left_out: tuple[Class, ...] = Field(default=(), description="classes that are not listed; all others are abnormal")
    parts: tuple[Part, ...] = Field(
        default=("Training",), min_length=1, description="parts of the challenge; only Training has published lesions"
    )
    official_split: bool = Field(default=False, description="keep the challenge's parts as splits; else they are split anew")
    lesions_required: bool = Field(
        default=True, description="refuse Training without the lesion supplement: pictures of one lesion in two splits inflate every number"
    )

    @model_validator(mode="after")
    def _a_class_is_named_once(self) -> Self:
        if both := sorted(set(self.normal) & set(self.left_out)):
            raise ValueError(f"normal and left_out both name {both}")
        return self


def list_isic2018(source: Isic2018Source) -> list[SourceItem]:
    """One item a row of the ground truth, part by part, in its order; then the pictures without a row, excluded.

    Persons are not published: the subject is the lesion where it is known, else the picture.

    Raises:
        SourceError: a part's folder, table or lesion supplement is missing, a row is not one-hot or has no name of its own.
    """
    root = filesystems.absolute(source.path)
    return [item for part in source.parts for item in _list_part(part, root, source)]


def _list_part(part: Part, root: str, source: Isic2018Source) -> list[SourceItem]:
    folder, table = filesystems.join(root, f"ISIC2018_Task3_{part}_Input"), _find_table(root, f"ISIC2018_Task3_{part}_GroundTruth")
    if table is None or not filesystems.exists(folder):
        raise SourceError(
            f"{source.path} is not ISIC 2018 task 3, {part}: expected ISIC2018_Task3_{part}_Input/ISIC_*.jpg and "
            f"ISIC2018_Task3_{part}_GroundTruth/ISIC2018_Task3_{part}_GroundTruth.csv in it"
        )
    class_of = {name: _class(row, table) for name, row in rows_by_name(table, "image", needed=CLASSES).items()}
    lesions = _read_lesions(root, source) if part == "Training" else {}
    pictures = index_pictures(folder)
    items = []
    for name, class_name in class_of.items():
        if class_name in source.left_out:
            continue
        label = int(class_name not in source.normal)
        items.append(
            SourceItem(
                uri=pictures.get(name, filesystems.join(folder, f"{name}.jpg")),
                dataset=DATASET,
                subject_id=lesions.get(name) or name,
                label=label,
                lesion_id=lesions.get(name),
                finding=class_name if label else None,
                split=_SPLITS[part] if source.official_split else None,
            )
        )
    return items + without_row(pictures, class_of, dataset=DATASET, table=table)


def _find_table(root: str, name: str) -> str | None:
    """The archive's own folder of that name, or the table right in the root."""
    places = (filesystems.join(root, name, f"{name}.csv"), filesystems.join(root, f"{name}.csv"))
    return next((place for place in places if filesystems.exists(place)), None)


def _read_lesions(root: str, source: Isic2018Source) -> dict[str, str | None]:
    table = filesystems.join(root, "ISIC2018_Task3_Training_LesionGroupings.csv")
    if filesystems.exists(table):
        return {name: row["lesion_id"] for name, row in rows_by_name(table, "image", needed=["lesion_id"]).items()}
    if source.lesions_required:
        raise SourceError(
            f"{source.path}: the supplement ISIC2018_Task3_Training_LesionGroupings.csv is missing; get it from "
            "https://challenge.isic-archive.com/data/#2018: without it pictures of one lesion land in two splits. "
            "To go on without it: lesions_required: false"
        )
    return {}


def _class(row: dict[str, str | None], table: str) -> Class:
    hot = [name for name in CLASSES if row[name] in ("1.0", "1")]
    if len(hot) != 1:
        raise SourceError(f"{table}: {row['image']} belongs to {hot or 'no class'}; expected 1.0 in exactly one of {', '.join(CLASSES)}")
    return hot[0]
