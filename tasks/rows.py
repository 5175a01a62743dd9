"""A row of the manifest from what the source said of a picture and what was found in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as arrow

from methods.curation.hashing import dihedral_hashes, hash_to_text, perceptual_hash
from storage.datasets.source import SourceError
from storage.manifest import ARROW_TYPES, sample_id
from tasks.curation import DuplicateConfig
from tasks.features import describe_picture
from tasks.references import ItemReference


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of a reading level."""

    x_px: int
    y_px: int
    width_px: int
    height_px: int
    level: int = 0


SEARCH_COLUMNS = {"phash_turns": arrow.large_string(), "features": arrow.binary()}  # of the tables, not of the manifest
NOWHERE = Box(0, 0, 0, 0)  # of a picture that was not read
_TABLE = arrow.schema({**ARROW_TYPES, **SEARCH_COLUMNS})


@dataclass(frozen=True)
class Tabulated:
    """The rows of one picture or slide, a line about them, and a picture of what was done where there is one."""

    rows: list[dict[str, Any]] | arrow.Table  # of a slide's tens of thousands of tiles columns
    note: str
    preview: bytes | None = None


def to_table(tabulated: Sequence[Tabulated]) -> arrow.Table:
    """The rows of a batch over the columns of the manifest and of the search for duplicates; empty ones are of the type null."""
    if len(tabulated) == 1 and isinstance(tabulated[0].rows, arrow.Table):
        return tabulated[0].rows
    rows = [found.rows.to_pylist() if isinstance(found.rows, arrow.Table) else found.rows for found in tabulated]
    table = arrow.Table.from_pylist([row for of_one in rows for row in of_one], _TABLE)
    filled = (column if column.null_count < len(table) else arrow.nulls(len(table)) for column in table.columns)
    return arrow.table(list(filled), table.column_names)


def to_columns(rows: int, common: dict[str, Any], columns: dict[str, Any]) -> arrow.Table:
    """As `to_table`, of what all rows have in common, and of columns with a value a row: arrays or lists; None and NaN are null."""
    arrays = {}
    for field in _TABLE:
        if field.name in columns:
            column = arrow.array(columns[field.name], from_pandas=True)
            arrays[field.name] = column.cast(field.type) if column.null_count < rows else arrow.nulls(rows)
        elif common.get(field.name) is not None:
            arrays[field.name] = arrow.repeat(arrow.scalar(common[field.name], field.type), rows)
        else:
            arrays[field.name] = arrow.nulls(rows)
    return arrow.table(arrays)


def make_row(item: ItemReference, box: Box, **found: Any) -> dict[str, Any]:
    """A row as a dictionary over the manifest's columns; `found` adds or replaces values."""
    label = found.get("label")
    row = {
        "sample_id": sample_id(
            item["sha256"] or f"unreadable:{item['uri']}",
            frame=item["frame"],
            level=box.level,
            x_px=box.x_px,
            y_px=box.y_px,
            width_px=box.width_px,
            height_px=box.height_px,
        ),
        "label": label,
        "level": box.level,
        "x_px": box.x_px,
        "y_px": box.y_px,
        "width_px": box.width_px,
        "height_px": box.height_px,
        **{name: item[name] for name in _OF_THE_SOURCE},  # type: ignore[literal-required]
        **found,
    }
    return row | {"finding": item["finding"] if label != 0 else None}


def label_of(item: ItemReference, abnormal_share: float | None, *, whole: bool, least_share: float) -> int | None:
    """A sample's label from its picture's and from the share of the mask in it.

    Args:
        item: whose `label` is of the whole picture.
        abnormal_share: of the mask in the sample; None without a mask.
        whole: the sample is the whole picture.
        least_share: of the mask in a tile that is abnormal; between none and this the label is unknown.

    Returns:
        0, 1, or None: unknown (as for a tile of an abnormal picture without a mask).
    """
    if item["label"] != 1 or whole:
        return item["label"]
    if abnormal_share is None:
        return None
    if abnormal_share == 0:
        return None if item["partly_annotated"] else 0
    return 1 if abnormal_share >= least_share else None


def check_marked(item: ItemReference, mask: np.ndarray) -> None:
    """Refuse a mask that contradicts its picture's label.

    Raises:
        SourceError: an empty one of something abnormal, or one that shows something in what is called normal.
    """
    if item["label"] == 1 and not mask.any():
        what_to_do = "draw what is abnormal, or remove the mask so that it is unknown"
        raise SourceError(f"the mask {item['mask_uri']} of something abnormal is empty: {what_to_do}")
    if item["label"] == 0 and mask.any():
        raise SourceError(f"{item['uri']} is labelled normal, but the mask {item['mask_uri']} shows something: correct one of them")


def search_columns(image: np.ndarray, config: DuplicateConfig | None) -> dict[str, Any]:
    """What duplicates are found by: the perceptual hash; where asked those of flips and quarter turns, and features of a network."""
    turns = dihedral_hashes(image) if config is not None and config.turned else None
    phash = perceptual_hash(image) if turns is None else turns[0]
    return {
        "phash": None if phash is None else hash_to_text(phash),
        "phash_turns": None if turns is None else " ".join(hash_to_text(turn) for turn in turns),
        "features": describe_picture(image) if config is not None and config.semantic_cosine is not None else None,
    }


_OF_THE_SOURCE = (
    "uri", "frame", "sha256", "dataset", "subject_id", "lesion_id", "slide_id", "mask_uri", "mask_sha256", "split", "spacing_um",
    "site", "skin_tone", "projection",
)  # fmt: skip
