"""Camelyon16: 270 + 129 slides of sentinel lymph nodes, H&E, two hospitals; metastases are outlined in ASAP's XML.

Paper: Ehteshami Bejnordi et al.: Diagnostic assessment of deep learning algorithms for detection of lymph node metastases in women with
breast cancer, JAMA 318(22), 2017; data: Litjens et al., GigaScience 7(6), 2018. Where: https://camelyon17.grand-challenge.org/Data (GigaDB
100439, or s3://camelyon-dataset/CAMELYON16).
"""

import csv
import io
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from storage import filesystems
from storage.datasets.source import SourceError, SourceItem, stem_of

DATASET = "camelyon16"
# Data set's README: there may be metastases in these slides that nobody outlined, so what lies outside is not surely normal
NOT_EXHAUSTIVELY_ANNOTATED = frozenset(
    [f"tumor_{number:03d}" for number in (10, 15, 18, 20, 25, 29, 33, 34, 44, 46, 51, 54, 55, 56, 67, 79, 85, 92, 95, 110)] + ["test_114"]
)
_TULUPTCEVA = "left out by the published code of Tuluptceva et al. 2020"
EXCLUSIONS = {
    **{f"normal_{number:03d}": _TULUPTCEVA for number in (27, 45, 108, 144, 150, 158)},
    "normal_086": "holds a metastasis: renamed to tumor_111 (data set's README)",
    "test_049": "duplicate of another slide (data set's README)",
    "test_114": "not exhaustively annotated (data set's README)",
}
_SLIDE = re.compile(r"(normal|tumor|test)_(\d+)", re.IGNORECASE)
_WHERE = {"normal": "training/normal", "tumor": "training/tumor", "test": "testing/images"}
_REFERENCE = "reference.csv"
_LAYOUT = (
    "expected training/normal/normal_001.tif, training/tumor/tumor_001.tif, training/lesion_annotations/tumor_001.xml, "
    "testing/images/test_001.tif, testing/lesion_annotations/test_001.xml and testing/reference.csv, "
    "or images/, annotations/ and evaluation/reference.csv"
)


class Camelyon16Source(BaseModel):
    """Where Camelyon16 is, and which of its slides are wanted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["camelyon16"] = "camelyon16"
    path: str = Field(
        description="folder with training/ and testing/ (lesion_annotations.zip unpacked), or with images/, annotations/ and evaluation/"
    )
    parts: tuple[Literal["training", "testing"], ...] = Field(
        default=("training", "testing"), min_length=1, description="of the slides; testing needs reference.csv"
    )
    exclusions: Literal["excluded", "kept"] = Field(
        default="excluded", description="the published exclusions: normal_027, 045, 086, 108, 144, 150, 158, test_049, test_114"
    )


def list_camelyon16(source: Camelyon16Source) -> list[SourceItem]:
    """One item a slide by name, normal, tumor, test; a slide is a subject, as patients are not published.

    Listed, too: slides that only an annotation or a row of reference.csv names, with the URI where they should be; and test slides without
    a row, excluded. The split of test slides is test. Slides know their spacing themselves. A slide with a metastasis is abnormal as a
    whole: which of its tiles are is in `annotation_uri`; of those in `NOT_EXHAUSTIVELY_ANNOTATED` the rest is not surely normal.

    Raises:
        SourceError: no slides, two files of one name, no outlines at all, or testing without reference.csv or with an unusable one.
    """
    root = filesystems.absolute(source.path)
    files = filesystems.list_files(root) if filesystems.exists(root) else []
    slides, outlines = _index(files, ".tif"), _index(files, ".xml")
    if not slides:
        raise SourceError(f"{source.path} is not Camelyon16: there are no slides in it; {_LAYOUT}")
    classes = _read_reference(files, source.path, slides) if "testing" in source.parts else {}
    kinds = {kind for kind in _WHERE if ("testing" if kind == "test" else "training") in source.parts}
    # an annotation of a test slide is no row: reference.csv is
    named = sorted({*slides, *classes, *(name for name in outlines if _kind(name) == "tumor")}, key=_order)
    wanted = [name for name in named if _kind(name) in kinds]
    if any(_kind(name) == "tumor" for name in wanted) and not outlines:
        raise SourceError(f"{source.path} holds tumor slides but no outlines: unpack lesion_annotations.zip beside itself; {_LAYOUT}")
    folders = _folders(slides)
    return [_to_item(name, slides.get(name) or _place(name, root, folders), outlines.get(name), classes, source) for name in wanted]


def _to_item(name: str, uri: str, outlines: str | None, classes: dict[str, int], source: Camelyon16Source) -> SourceItem:
    kind = _kind(name)
    without_row = kind == "test" and name not in classes
    label = classes.get(name) if kind == "test" else int(kind == "tumor")
    excluded = f"no row in {_REFERENCE}" if without_row else None
    if source.exclusions == "excluded":
        excluded = EXCLUSIONS.get(name, excluded)
    return SourceItem(
        uri=uri,
        dataset=DATASET,
        subject_id=name,
        slide_id=name,
        label=label,
        finding="metastasis" if label == 1 else None,
        annotation_uri=outlines,
        partly_annotated=name in NOT_EXHAUSTIVELY_ANNOTATED,
        split="test" if kind == "test" else None,
        excluded=excluded,
    )


def _index(files: list[str], suffix: str) -> dict[str, str]:
    """Files by the name of the slide they belong to, in one spelling (early downloads say Tumor_001); masks and others are passed over."""
    found: dict[str, str] = {}
    for uri in files:
        if uri.lower().endswith(suffix) and (match := _SLIDE.fullmatch(stem_of(uri))):
            name = _spell(match)
            if found.setdefault(name, uri) != uri:
                raise SourceError(f"two files are named {name}: {found[name]} and {uri}; keep one")
    return found


def _read_reference(files: list[str], path: str, slides: dict[str, str]) -> dict[str, int]:
    """Label by name of test slide; the table comes with a header or without, its names with .tif or without."""
    tables = [uri for uri in files if filesystems.name_of(uri).lower() == _REFERENCE]
    if not tables and not any(_kind(name) == "test" for name in slides):
        return {}
    if len(tables) != 1:
        raise SourceError(f"{path}: expected one {_REFERENCE} for the test slides, found {len(tables)}; or say parts: [training]")
    rows = csv.reader(io.StringIO(filesystems.read_bytes(tables[0]).decode("utf-8-sig")))
    classes = {}
    for row in rows:
        match = _SLIDE.fullmatch(row[0].strip().removesuffix(".tif")) if len(row) > 1 else None
        if match is None:
            continue  # the header, or an empty line
        word = row[1].strip().lower()
        if word not in ("tumor", "normal"):
            raise SourceError(f"{tables[0]}: {row[0]} is of class {row[1]!r}; expected Tumor or Normal")
        classes[_spell(match)] = int(word == "tumor")
    if not classes:
        raise SourceError(f"{tables[0]}: expected rows like test_001,Tumor; found none")
    return classes


def _folders(slides: dict[str, str]) -> dict[str, str]:
    return {_kind(name): uri.rsplit("/", 1)[0] for name, uri in slides.items()}


def _place(name: str, root: str, folders: dict[str, str]) -> str:
    """Where a slide that is not there should be: beside those of its kind."""
    return filesystems.join(folders.get(_kind(name)) or filesystems.join(root, _WHERE[_kind(name)]), f"{name}.tif")


def _spell(match: re.Match[str]) -> str:
    return f"{match[1].lower()}_{int(match[2]):03d}"


def _kind(name: str) -> str:
    return name.split("_", 1)[0]


def _order(name: str) -> tuple[int, str]:
    return list(_WHERE).index(_kind(name)), name
