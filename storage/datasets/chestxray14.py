"""NIH ChestX-ray14: 112,120 frontal chest radiographs of 30,805 patients, PNG of 1024 × 1024 px, with 14 findings mined from reports.

Paper: Wang et al.: ChestX-ray8: hospital-scale chest X-ray database and benchmarks, CVPR 2017.
Where: https://nihcc.app.box.com/v/ChestXray-NIHCC (images_001.tar.gz to 012, Data_Entry_2017.csv, train_val_list.txt, test_list.txt).
"""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from storage import filesystems
from storage.datasets.source import SourceError, SourceItem, index_pictures, read_rows, stem_of, without_row

DATASET = "nih-chestxray14"
_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")  # the corrected one first
_TRAIN_VAL, _TEST = "train_val_list.txt", "test_list.txt"
_NORMAL = "No Finding"
# the header's brackets hold commas: "OriginalImage[Width,Height]" are two columns
_WIDTH, _HEIGHT, _SPACING_X, _SPACING_Y = "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]"
Row = dict[str, str | None]


class ChestXray14Source(BaseModel):
    """Where ChestX-ray14 is, and which radiographs are wanted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["nih-chestxray14"] = "nih-chestxray14"
    path: str = Field(
        description="folder with images_001/images/*.png … (or images/), Data_Entry_2017.csv, train_val_list.txt and test_list.txt"
    )
    projection: Literal["PA", "AP", "both"] = Field(
        default="both", description="upright, back to front (PA), or mostly lying and sicker, front to back (AP)"
    )
    lists: Literal["official", "ignored"] = Field(
        default="official", description=f"official: pictures of {_TEST} test, those of {_TRAIN_VAL} do not; ignored: curation splits all"
    )
    side_px: int = Field(default=1024, gt=0, description="width and height of the PNGs; another number for a resized copy")


def list_chestxray14(source: ChestXray14Source) -> list[SourceItem]:
    """One item a row of the table with the wanted projection, in its order; then pictures without a row, excluded.

    Normal is "No Finding"; the finding is the table's word, several joined by | as there. The subject is the patient. The spacing is that
    of the original, scaled as the picture was to a square: the geometric mean of both directions. Age and gender are not carried.

    Raises:
        SourceError: no table, pictures or (official) lists, a picture on both lists, or two pictures of one name.
    """
    root = filesystems.absolute(source.path)
    table = next((uri for name in _TABLES if filesystems.exists(uri := filesystems.join(root, name))), None)
    if table is None:
        raise SourceError(f"{source.path} is not ChestX-ray14: expected Data_Entry_2017.csv and images_001/images/*.png … in it")
    pictures = index_pictures(root, suffixes=(".png",))
    if not pictures:
        raise SourceError(
            f"{source.path} holds no radiographs: expected images_001/images/*.png … (unpack images_*.tar.gz), or images/*.png"
        )
    rows = read_rows(
        table, needed=["Image Index", "Finding Labels", "Patient ID", "View Position", _WIDTH, _HEIGHT, _SPACING_X, _SPACING_Y]
    )
    lists = _read_lists(root, source.path) if source.lists == "official" else None
    wanted = [row for row in rows if source.projection in ("both", row["View Position"])]
    folder = next(iter(pictures.values())).rsplit("/", 1)[0]
    items = [_to_item(row, table, folder, pictures, lists, source.side_px) for row in wanted]
    return items + without_row(pictures, (_name(row, table) for row in rows), dataset=DATASET, table=table)


def _to_item(row: Row, table: str, folder: str, pictures: dict[str, str], lists: dict[str, str] | None, side_px: int) -> SourceItem:
    name = _name(row, table)
    findings = row["Finding Labels"]
    listed = lists.get(name) if lists is not None else None
    return SourceItem(
        uri=pictures.get(name, filesystems.join(folder, f"{name}.png")),
        dataset=DATASET,
        subject_id=_patient(row["Patient ID"] or name.split("_", 1)[0]),
        label=None if findings is None else int(findings != _NORMAL),
        finding=None if findings == _NORMAL else findings,
        split="test" if listed == _TEST else None,
        spacing_um=_spacing_um(row, table, side_px),
        projection=row["View Position"],
        excluded=f"on neither {_TRAIN_VAL} nor {_TEST}" if lists is not None and listed is None else None,
    )


def _read_lists(root: str, path: str) -> dict[str, str]:
    """For each picture's name the list that it is on."""
    found: dict[str, str] = {}
    for name in (_TRAIN_VAL, _TEST):
        uri = filesystems.join(root, name)
        if not filesystems.exists(uri):
            raise SourceError(f"{path}: there is no {name}; get it from the data set's page, or say lists: ignored")
        for picture in filesystems.read_bytes(uri).decode().split():
            if found.setdefault(stem_of(picture), name) != name:
                raise SourceError(f"{path}: {picture} is on both {_TRAIN_VAL} and {_TEST}; keep it on one")
    return found


def _spacing_um(row: Row, table: str, side_px: int) -> float | None:
    cells = [row[column] for column in (_WIDTH, _HEIGHT, _SPACING_X, _SPACING_Y)]
    if None in cells:
        return None
    try:
        area_mm2 = math.prod(float(cell) for cell in cells if cell is not None)
    except ValueError:
        raise SourceError(f"{table}: {row['Image Index']} has size and spacing {cells}; expected numbers") from None
    return 1000 * math.sqrt(area_mm2) / side_px if 0 < area_mm2 < math.inf else None


def _patient(number: str) -> str:
    return number.lstrip("0") or number  # 1 in one edition of the table, 00000001 in another


def _name(row: Row, table: str) -> str:
    if row["Image Index"] is None:
        raise SourceError(f"{table}: a row has no Image Index; expected one like 00000001_000.png")
    return stem_of(row["Image Index"])
