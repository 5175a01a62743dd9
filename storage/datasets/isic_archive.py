"""The ISIC archive as `isic image download FOLDER` (isic-cli) leaves it: ISIC_*.jpg with one metadata.csv beside them.

Where: https://www.isic-archive.com; client: https://github.com/ImageMarkup/isic-cli. Total body photographs are chosen by `image_types`.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage import filesystems
from storage.datasets.source import Row, SourceError, SourceItem, index_pictures, rows_by_name, without_row

DATASET = "isic-archive"
_TABLE = "metadata.csv"
_LEVELS = range(1, 6)


class IsicArchiveSource(BaseModel):
    """Where a download of the ISIC archive is, and which of its pictures are wanted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["isic-archive"] = "isic-archive"
    path: str = Field(description="the folder given to `isic image download`: metadata.csv and ISIC_*.jpg")
    image_types: tuple[str, ...] | None = Field(
        default=None,
        description="pictures whose image_type is one of these, e.g. 'TBP tile: overview' and 'clinical: overview' for "
        "total body photographs; every type when not given",
    )
    sites: tuple[str, ...] | None = Field(
        default=None,
        description="pictures whose site has one of these names at any level, e.g. 'posterior torso' (older tables, anatom_site_general), "
        "'Posterior trunk' (newer ones, anatom_site_2); every site, and unknown ones, when not given",
    )
    normal: tuple[str, ...] = Field(
        default=("Benign",), description="diagnoses, at any level, that are normal; the most specific one decides"
    )
    abnormal: tuple[str, ...] = Field(default=("Malignant",), description="diagnoses, at any level, that are abnormal")
    undiagnosed: Literal["unknown", "normal"] = Field(
        default="unknown",
        description="label of a picture without a diagnosis: unknown, or normal (a total body photograph of healthy skin)",
    )

    @model_validator(mode="after")
    def _diagnoses_are_one_or_the_other(self) -> Self:
        if both := _lower(self.normal) & _lower(self.abnormal):
            raise ValueError(f"normal and abnormal both name {sorted(both)}")
        return self


def list_isic_archive(source: IsicArchiveSource) -> list[SourceItem]:
    """One item a row of metadata.csv that is chosen, in its order; then the pictures without a row, excluded.

    Both generations of the table are read: `benign_malignant` with `diagnosis`, and `diagnosis_1` … `diagnosis_5`; `anatom_site_general`
    with `anatom_site_special`, and `anatom_site_1` … `anatom_site_5`. Levels of a site are joined by ":". The subject is the patient,
    where none is known the lesion, then the picture.

    Raises:
        SourceError: not such a download, no row is chosen, a type that no row has, only sites that no row has, or a picture without a name
            or named twice.
    """
    root = filesystems.absolute(source.path)
    table = filesystems.join(root, _TABLE)
    if not filesystems.exists(table):
        raise SourceError(
            f"{source.path} is no download of the ISIC archive: expected {_TABLE} with ISIC_*.jpg beside it, "
            "as `isic image download` leaves them"
        )
    rows = rows_by_name(table, "isic_id", needed=["image_type"] if source.image_types else [])
    _check_choices(source, rows.values())
    pictures = index_pictures(root)
    chosen = {name: row for name, row in rows.items() if _is_chosen(row, source)}
    items = [_to_item(name, row, source, pictures.get(name, filesystems.join(root, f"{name}.jpg"))) for name, row in chosen.items()]
    if not items:
        raise SourceError(f"{source.path}: of {len(rows)} rows none has the image_types and sites of the configuration together")
    return items + without_row(pictures, rows, dataset=DATASET, table=table)


def _to_item(name: str, row: Row, source: IsicArchiveSource, uri: str) -> SourceItem:
    diagnoses, label = list(_diagnoses(row)), _label(row, source)
    return SourceItem(
        uri=uri,
        dataset=DATASET,
        subject_id=row.get("patient_id") or row.get("lesion_id") or name,
        label=label,
        lesion_id=row.get("lesion_id"),
        finding=diagnoses[-1] if diagnoses and label != 0 else None,
        site=":".join(_sites(row)) or None,
        skin_tone=row.get("fitzpatrick_skin_type"),
    )


def _label(row: Row, source: IsicArchiveSource) -> int | None:
    for diagnosis in reversed(list(_diagnoses(row))):
        if diagnosis.lower() in _lower(source.abnormal):
            return 1
        if diagnosis.lower() in _lower(source.normal):
            return 0
    return 0 if source.undiagnosed == "normal" and not any(_diagnoses(row)) else None


def _diagnoses(row: Row) -> Iterator[str]:
    """From general to specific; of a table with both generations of columns the newer."""
    hierarchy = [row.get(f"diagnosis_{level}") for level in _LEVELS]
    yield from filter(None, hierarchy if any(hierarchy) else [row.get("benign_malignant"), row.get("diagnosis")])


def _sites(row: Row) -> Iterator[str]:
    hierarchy = [row.get(f"anatom_site_{level}") for level in _LEVELS]
    yield from filter(None, hierarchy if any(hierarchy) else [row.get("anatom_site_general"), row.get("anatom_site_special")])


def _is_chosen(row: Row, source: IsicArchiveSource) -> bool:
    sites = _lower(_sites(row))
    return (source.image_types is None or (row["image_type"] or "").lower() in _lower(source.image_types)) and (
        source.sites is None or bool(sites & _lower(source.sites))
    )


def _check_choices(source: IsicArchiveSource, rows: Collection[Row]) -> None:
    """A misspelt type must not silently choose less; of sites one may be an older and one a newer table's word."""
    types = Counter(row["image_type"] or "unknown" for row in rows) if source.image_types else Counter[str]()
    if absent := [name for name in source.image_types or () if name.lower() not in _lower(types)]:
        raise SourceError(f"{source.path}: no row has {absent} of image_types; the table has {dict(types.most_common(20))}")
    sites = Counter(site for row in rows for site in _sites(row))
    if source.sites and not _lower(source.sites) & _lower(sites):
        raise SourceError(f"{source.path}: no row has any of sites {list(source.sites)}; the table has {dict(sites.most_common(20))}")


def _lower(names: Iterable[str]) -> set[str]:
    return {name.lower() for name in names}
