"""What tasks hand to each other: where something is and the digest of its content. Plain JSON, so that results are kept without pickle."""

from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12


class ItemReference(TypedDict):
    """A picture or slide of a source with the digest of its content; sha256 is None with a reason where it cannot be read."""

    uri: str
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
    split: str | None
    spacing_um: float | None


class TableReference(TypedDict):
    """The rows of one item."""

    uri: str
    name: str
    rows: int
    excluded: int
    note: str


class ManifestReference(TypedDict):
    """A manifest, and the part of it that training may see: `development_uri` holds no row of the test split."""

    uri: str
    digest: str
    rows: int
    development_uri: str
    development_digest: str


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
