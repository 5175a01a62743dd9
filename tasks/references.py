"""What tasks hand to each other: where something is and the digest of its content. Plain JSON, so that results are kept without pickle."""

from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12


class ItemReference(TypedDict):
    """A picture or slide of a source with the digest of its content; sha256 is None with a reason where it cannot be read."""

    uri: str
    frame: str | None
    sha256: str | None
    mask_sha256: str | None
    unreadable: str | None
    dataset: str
    subject_id: str
    label: int | None
    lesion_id: str | None
    slide_id: str | None
    finding: str | None
    mask_uri: str | None
    partly_annotated: bool
    split: str | None
    spacing_um: float | None
    site: str | None
    skin_tone: str | None
    projection: str | None
    excluded: str | None


class BatchReference(TypedDict):
    """Items that one task tabulates: a slide, or up to a hundred pictures, in a file named by its content."""

    uri: str
    name: str
    items: int


class TableReference(TypedDict):
    """The rows of a batch, its previews, and a line for each file that gave none to use."""

    uri: str
    name: str
    items: int
    unusable: int
    rows: int
    excluded: int
    note: str
    preview_uris: list[str]
    troubles: list[str]


class ManifestReference(TypedDict):
    """A manifest, and the part of it that training may see: `development_uri` holds no row of the test split."""

    uri: str
    digest: str
    rows: int
    development_uri: str
    development_digest: str


class RowsReference(TypedDict):
    """Rows to score: a manifest (a .parquet file) or the rows of an archive."""

    uri: str
    digest: str


class ModelReference(TypedDict):
    """A model bundle."""

    uri: str
    digest: str
    kind: str


class StoreReference(TypedDict):
    """A score store and what it was made from."""

    uri: str
    manifest_digest: str
    model_digest: str
    kind: str


class EvaluationReference(TypedDict):
    """Metrics, curves and scores of one detector on one split."""

    uri: str
    kind: str
    digest: str


class ReportReference(TypedDict):
    """The report and the same numbers as files."""

    html_uri: str
    json_uri: str
    csv_uri: str


class SlotSummary(TypedDict):
    """What became of all samples of an archive with one model."""

    slot: str
    uri: str
    scored: int
    failed: int
    samples: int


class ArchiveSummary(TypedDict):
    """An archive after a run, which scored `rows` of it in `seconds`."""

    archive: str
    slots: list[SlotSummary]
    rows: int
    seconds: float
