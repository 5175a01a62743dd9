"""11k Hands: 11,076 photographs of 190 people's hands on white, with the jewellery masks of SANO.

Papers: Afifi: 11K Hands: gender recognition and biometric identification using a large dataset of hand images, Multimedia Tools and
Applications, 2019; Gonzalez-Jimenez et al.: SANO, 2022 (3,179 masks). Where: https://sites.google.com/view/11khands (Hands.zip,
HandInfo.csv); masks: "Jewelry segmentation masks for the 11k Hands dataset", Gonzalez-Jimenez et al., 2022.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from storage import filesystems
from storage.datasets.source import SourceError, SourceItem, index_pictures, rows_by_name, stem_of, without_row

DATASET = "11k-hands"
_TABLE = "HandInfo.csv"
Choice = Literal["normal", "abnormal", "excluded"]
Row = dict[str, str | None]


class HandsSource(BaseModel):
    """Where 11k Hands is, and what counts as abnormal besides outlined jewellery."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["11k-hands"] = "11k-hands"
    path: str = Field(description="folder with Hands/Hand_*.jpg and HandInfo.csv")
    masks: str | None = Field(
        default="masks",
        description="folder of jewellery masks named like their pictures, below path; none to do without: then no jewellery is known",
    )
    unmasked_accessories: Literal["unknown", "abnormal"] = Field(
        default="unknown", description="label of a hand with accessories that no mask outlines"
    )
    nail_polish: Choice = Field(default="normal", description="what a hand with nail polish is; no mask shows it")
    irregularities: Choice = Field(default="normal", description="what a hand with irregularities is; no mask shows them")


def list_hands(source: HandsSource) -> list[SourceItem]:
    """One item a row of HandInfo.csv in its order; then pictures and masks without a row, excluded.

    Normal: no accessories and no mask. Abnormal: a mask; the mask decides where HandInfo.csv says otherwise. The finding is the first of
    jewellery, irregularity, nail polish that makes a hand abnormal.

    Raises:
        SourceError: no Hands/ or HandInfo.csv, no folder of masks, masks of which none is named like a picture, an indicator not 0 or 1.
    """
    root = filesystems.absolute(source.path)
    folder, table = filesystems.join(root, "Hands"), filesystems.join(root, _TABLE)
    if not (filesystems.exists(folder) and filesystems.exists(table)):
        raise SourceError(f"{source.path} is not 11k Hands: expected Hands/Hand_*.jpg and {_TABLE} in it")
    indicators = ("accessories", "nailPolish", "irregularities")
    named = rows_by_name(table, "imageName", needed=["id", "skinColor", "aspectOfHand", *indicators])
    rows = {stem_of(name): row for name, row in named.items()}
    pictures, masks = index_pictures(folder), _index_masks(root, source)
    if masks and not masks.keys() & rows.keys():
        raise SourceError(f"{source.path}: no mask is named like a picture, e.g. {next(iter(masks))}; expected {next(iter(rows))}")
    items = [_to_item(name, row, source, pictures.get(name, filesystems.join(folder, f"{name}.jpg")), masks) for name, row in rows.items()]
    return items + without_row(pictures, rows, dataset=DATASET, table=table) + without_row(masks, rows, dataset=DATASET, table=table)


def _to_item(name: str, row: Row, source: HandsSource, uri: str, masks: dict[str, str]) -> SourceItem:
    accessories, nail_polish, irregular = (_flag(row, column) for column in ("accessories", "nailPolish", "irregularities"))
    marked = ((irregular, source.irregularities, "irregularity"), (nail_polish, source.nail_polish, "nail polish"))
    unmasked = accessories is not False and name not in masks
    abnormal = ["jewellery"] if name in masks or (accessories and source.unmasked_accessories == "abnormal") else []
    abnormal += [word for is_there, choice, word in marked if is_there and choice == "abnormal"]
    doubtful = unmasked or any(is_there is None and choice == "abnormal" for is_there, choice, _ in marked)
    return SourceItem(
        uri=uri,
        dataset=DATASET,
        subject_id=row["id"] or name,
        label=1 if abnormal else None if doubtful else 0,
        finding=abnormal[0] if abnormal else None,
        mask_uri=masks.get(name),
        site=row["aspectOfHand"],
        skin_tone=row["skinColor"],
        excluded=next((f"{word} (left out by choice)" for is_there, choice, word in marked if is_there and choice == "excluded"), None),
    )


def _index_masks(root: str, source: HandsSource) -> dict[str, str]:
    if source.masks is None:
        return {}
    folder = filesystems.join(root, source.masks)
    if not filesystems.exists(folder):
        raise SourceError(
            f"{source.path}: there is no {source.masks}/ with jewellery masks named like their pictures; get them, or say masks: null "
            "and take only hands without accessories for normal"
        )
    return index_pictures(folder)


def _flag(row: Row, column: str) -> bool | None:
    value = row[column]
    if value not in (None, "0", "1"):
        raise SourceError(f"{_TABLE}: {row['imageName']} has {column} {value!r}; expected 0 or 1")
    return None if value is None else value == "1"
