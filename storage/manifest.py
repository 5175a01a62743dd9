"""The manifest: a Parquet table in which one row is one sample, and the row's number its index in every score array."""

import hashlib
from typing import Any

import pandas as pd
import pandera.pandas as pa

from storage import filesystems

SCHEMA_VERSION = 1
SPLITS = ("train", "validation", "test", "archive")


class ManifestError(ValueError):
    """A table that is no manifest; the message names row and column."""


def _text(**options: Any) -> pa.Column:
    return pa.Column("string", coerce=True, **options)


_SCHEMA = pa.DataFrameSchema(
    {
        "sample_id": _text(unique=True),
        "uri": _text(),
        "sha256": _text(nullable=True),  # null when the file could not be read
        "dataset": _text(),
        "subject_id": _text(checks=pa.Check(lambda column: column.str.len() > 0, error="must not be empty")),
        "lesion_id": _text(nullable=True),
        "slide_id": _text(nullable=True),
        "label": pa.Column("Int8", pa.Check.isin([0, 1]), nullable=True, coerce=True),
        "finding": _text(nullable=True),
        "mask_uri": _text(nullable=True),
        "mask_sha256": _text(nullable=True),
        "split": _text(checks=pa.Check.isin(SPLITS), nullable=True),
        "level": pa.Column("int32", pa.Check.ge(0), coerce=True),
        "x_px": pa.Column("int64", pa.Check.ge(0), coerce=True),
        "y_px": pa.Column("int64", pa.Check.ge(0), coerce=True),
        "width_px": pa.Column("int64", pa.Check.ge(0), coerce=True),  # 0 when the file could not be read
        "height_px": pa.Column("int64", pa.Check.ge(0), coerce=True),
        "spacing_um": pa.Column("float64", pa.Check.gt(0), nullable=True, coerce=True),
        "tissue_share": pa.Column("float64", pa.Check.in_range(0, 1), nullable=True, coerce=True),
        "phash": _text(nullable=True),
        "excluded": _text(nullable=True),
    },
    strict=True,
    ordered=True,
)
COLUMNS = tuple(_SCHEMA.columns)


def sample_id(sha256: str, *, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> str:
    """The identity of a sample's pixels: 32 hexadecimal digits of the file's digest and the box at its reading level."""
    return hashlib.sha256(f"{sha256}:{level}:{x_px}:{y_px}:{width_px}:{height_px}".encode()).hexdigest()[:32]


def validate_manifest(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the schema's types and columns in order; columns that may be null may be missing.

    Raises:
        ManifestError: names the first bad row and column of each broken rule.
    """
    missing = [name for name, column in _SCHEMA.columns.items() if name not in table.columns and column.nullable]
    complete = table.assign(**dict.fromkeys(missing)).reset_index(drop=True)
    unknown = [name for name in complete.columns if name not in COLUMNS]
    if unknown:
        raise ManifestError(f"unknown manifest columns {unknown}; a manifest has {list(COLUMNS)}")
    absent = [name for name in COLUMNS if name not in complete.columns]
    if absent:
        raise ManifestError(f"manifest columns are missing: {absent}")
    try:
        return _SCHEMA.validate(complete[list(COLUMNS)], lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases.drop_duplicates(["column", "check"])
        lines = [
            f"row {_row(case.index)}, column {case.column!r}: {case.failure_case!r} breaks {case.check}" for case in cases.itertuples()
        ]
        raise ManifestError("not a valid manifest: " + "; ".join(lines)) from None


def write_manifest(uri: str, table: pd.DataFrame) -> str:
    """Validate and write; returns the digest (SHA-256 of the file), which names this manifest everywhere."""
    content = validate_manifest(table).to_parquet(index=False, compression="zstd")
    filesystems.write_bytes(uri, content)
    return hashlib.sha256(content).hexdigest()


def read_manifest(uri: str, *, digest: str | None = None) -> pd.DataFrame:
    """Read a manifest and check it, against its digest too where one is given.

    Raises:
        ManifestError: another content than the digest says, or a broken rule of the schema.
    """
    if digest is not None and (found := filesystems.sha256_of(uri)) != digest:
        raise ManifestError(f"{uri} is not the manifest this was made for: expected digest {digest[:12]}, found {found[:12]}")
    return validate_manifest(filesystems.read_table(uri))


def _row(index: Any) -> str:
    return "(all)" if pd.isna(index) else str(index)
