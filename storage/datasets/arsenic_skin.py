"""ArsenicSkinImageBD: 741 smartphone photographs of arsenic-affected and 741 of other people's skin in Bangladesh.

Paper: Emu et al.: ArsenicSkinImageBD: A comprehensive image dataset to classify affected and healthy skin of arsenic-affected people,
Data in Brief 52:110016, 2024. Where: Mendeley Data (https://data.mendeley.com, search the data set's name; the paper links it).
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from storage import filesystems
from storage.datasets.source import SourceError, SourceItem, list_pictures, stem_of

DATASET = "arsenic-skin"
Condition = Literal["not_infected", "infected"]
# the folders of the originals are published with a slip of the pen; those of the augmented copies without
_FOLDERS: dict[Condition, tuple[str, str]] = {"not_infected": ("not_infacted", "not_infected"), "infected": ("infacted", "infected")}


class ArsenicSkinSource(BaseModel):
    """Where ArsenicSkinImageBD is, and which of its two conditions are wanted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["arsenic-skin"] = "arsenic-skin"
    path: str = Field(
        description="the unpacked ArsenicSkinImageBD folder (Original/not_infacted and Original/infacted, sic), or its Original"
    )
    conditions: tuple[Condition, ...] = Field(
        default=("not_infected", "infected"), min_length=1, description="not_infected is normal, infected (arsenicosis) abnormal"
    )


def list_arsenic_skin(source: ArsenicSkinSource) -> list[SourceItem]:
    """One item an original photograph, first in the order of `conditions`; the augmented copies (Augmented/) are never listed.

    Persons are not known (37 affected and 76 others gave about 13 photographs each): the subject is the photograph, so near-duplicates must
    be grouped before a split.

    Raises:
        SourceError: the folder of a wanted condition is not there or holds no picture, or two folders claim to be it.
    """
    root = filesystems.absolute(source.path)
    originals = _named(root, ("original",)) or root
    return [item for condition in source.conditions for item in _list_condition(condition, originals, source.path)]


def _list_condition(condition: Condition, originals: str, path: str) -> list[SourceItem]:
    folder = _named(originals, _FOLDERS[condition])
    pictures = list_pictures(folder) if folder else []
    if not pictures:
        raise SourceError(
            f"{path} holds no {condition} photographs of ArsenicSkinImageBD: expected pictures in "
            f"Original/{' or Original/'.join(_FOLDERS[condition])} (the augmented copies alone cannot be used)"
        )
    label = int(condition == "infected")
    return [
        SourceItem(
            uri=uri,
            dataset=DATASET,
            subject_id=f"{condition}/{stem_of(uri)}",  # two phones count from IMG_0001
            label=label,
            finding="arsenicosis" if label else None,
        )
        for uri in pictures
    ]


def _named(folder: str, names: tuple[str, ...]) -> str | None:
    found = [child for child in filesystems.list_folders(folder) if filesystems.name_of(child).lower() in names]
    if len(found) > 1:
        raise SourceError(f"{folder} has {' and '.join(filesystems.name_of(child) for child in found)}; keep one")
    return found[0] if found else None
