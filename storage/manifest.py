"""The manifest: a Parquet table in which one row is one sample, and the row's number its index in every score array."""

import hashlib
import io
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as arrow
from numpy.typing import NDArray
from pyarrow import ipc, parquet

from storage import filesystems
from storage.manifest_schema import ARROW_TYPES, COLUMNS, TEXT_COLUMNS, ManifestError, validate_manifest

__all__ = [
    "ARROW_TYPES",
    "COLUMNS",
    "TEXT_COLUMNS",
    "ManifestError",
    "validate_manifest",
]

SCHEMA_VERSION = 2
_VERSION_KEY = b"normascope.manifest"
_BUFFER_BYTES, _AHEAD_BYTES = 1 << 18, 4 << 20  # of a long manifest: a column's, and what is fetched from an object store
_JOINED_ROWS = 1 << 13  # of small parts that are read
_ROWS_ENCODED = 1 << 14  # at once: a group of rows of the file, which Parquet gathers in memory
_FILE_IN_MEMORY_BYTES = 1 << 24  # a longer manifest is gathered on the disk until its name, its digest, is known
_READ_AT_ONCE = 8  # object stores answer slowly, but many at a time


def sample_id(sha256: str, *, level: int, x_px: int, y_px: int, width_px: int, height_px: int, frame: str | None = None) -> str:
    """The identity of a sample's pixels: 32 hexadecimal digits of the file's digest, the frame and the box at its reading level."""
    return hashlib.sha256(f"{_picture(sha256, frame)}:{level}:{x_px}:{y_px}:{width_px}:{height_px}".encode()).hexdigest()[:32]


def sample_ids(sha256: str, corners: NDArray[np.integer], *, level: int, width_px: int, height_px: int, frame: str | None) -> list[str]:
    """`sample_id` of many boxes of one size, given by their (n, 2) upper left corners."""
    start, size = f"{_picture(sha256, frame)}:{level}:", f":{width_px}:{height_px}"
    return [hashlib.sha256(f"{start}{x}:{y}{size}".encode()).hexdigest()[:32] for x, y in corners.tolist()]


def _picture(sha256: str, frame: str | None) -> str:
    return sha256 if frame is None else f"{sha256}#{frame}"


def write_manifest(uri: str, table: pd.DataFrame) -> str:
    """Validate and write; returns the digest (SHA-256 of the file), which names this manifest everywhere."""
    with _encoded(_to_arrow(validate_manifest(table))) as (file, digest):
        _copy(file, uri)
    return digest


def write_named(folder: str, rows: pd.DataFrame, **parts: Any) -> dict[str, tuple[str, str]]:
    """Validate a table once and write parts of it as manifests that are named by their content.

    Args:
        folder: where.
        rows: (N,) a manifest.
        **parts: by the name that the file's begins with, the rows that it holds: (N,) bool, or slice(None) for all.

    Returns:
        URI and digest of each part.

    Raises:
        ManifestError: as `validate_manifest`.
    """
    valid = _to_arrow(validate_manifest(rows))
    written = {}
    for name, part in parts.items():
        with _encoded(valid, part) as (file, digest):
            written[name] = filesystems.join(folder, f"{name}-{digest[:16]}.parquet"), digest
            _copy(file, written[name][0])
    return written


@contextmanager
def _encoded(rows: arrow.Table, part: Any = slice(None)) -> Iterator[tuple[IO[bytes], str]]:
    """The file of a part of the rows, at its start, and its digest; neither the part nor a long file is in memory as a whole."""
    with tempfile.SpooledTemporaryFile(_FILE_IN_MEMORY_BYTES) as file:
        _encode(rows, part, file)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        yield file, digest


def _copy(file: IO[bytes], uri: str) -> None:
    with filesystems.open_for_writing(uri) as target:
        shutil.copyfileobj(file, target, _FILE_IN_MEMORY_BYTES)


def write_rows(folder: str, rows: arrow.Table) -> str:
    """Write rows of a manifest to be, as a file that is named by its content, for `read_parts`; gives its URI.

    Arrow's own format: of a hundred rows a Parquet file is read five times as slowly, into twice the memory.
    """
    sink = arrow.BufferOutputStream()
    with ipc.new_file(sink, rows.schema, options=ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(rows)
    content = sink.getvalue().to_pybytes()
    uri = filesystems.join(folder, f"{hashlib.sha256(content).hexdigest()[:32]}.arrow")
    filesystems.write_bytes(uri, content)
    return uri


def read_rows(uri: str) -> arrow.Table:
    """The rows of a file of `write_rows`."""
    return ipc.open_file(arrow.BufferReader(filesystems.read_bytes(uri))).read_all()


def read_parts(uris: Sequence[str], *, beside: Mapping[str, arrow.DataType]) -> pd.DataFrame:
    """Tables of `write_rows` over the manifest's columns, one after the other, in the manifest's types; not validated.

    Columns that hold nothing are left out of it, and none is in memory twice when all are joined.

    Args:
        uris: of the tables.
        beside: columns that the tables have beside the manifest's, and their types.
    """
    types = {**ARROW_TYPES, **beside}
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        joined = _concatenate(list(_join_small(pool.map(_read_filled, uris))))
    columns = {}
    for name, kind in types.items():
        if name in joined.column_names:
            place = joined.column_names.index(name)
            column, joined = joined.column(place), joined.remove_column(place)
            columns[name] = arrow.chunked_array([column.cast(kind).combine_chunks()], kind)
            del column
            _release()
        else:
            columns[name] = arrow.chunked_array([arrow.nulls(len(joined), kind)])
    return _to_pandas(arrow.table(columns))


def _read_filled(uri: str) -> arrow.Table:
    """The columns that hold something; those that do not may be of any type."""
    table = read_rows(uri)
    return table.select([name for name in table.column_names if table[name].null_count < len(table)])


def _join_small(parts: Iterable[arrow.Table]) -> Iterator[arrow.Table]:
    """The parts in fewer: freed memory of a hundred rows' columns is too small to hold the columns of all."""
    waiting: list[arrow.Table] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= _JOINED_ROWS:
            yield _concatenate(waiting).combine_chunks()
            waiting = []
            _release()
    yield from waiting


def _release() -> None:
    """Give freed columns back at once: Arrow's allocator keeps them for a while, beside those that come next."""
    arrow.default_memory_pool().release_unused()


def _concatenate(parts: Sequence[arrow.Table]) -> arrow.Table:
    return arrow.concat_tables(parts, promote_options="permissive")


def encode_manifest(valid: pd.DataFrame) -> bytes:
    """The file of rows that `validate_manifest` has returned; equal rows are equal bytes."""
    sink = io.BytesIO()
    _encode(_to_arrow(valid), slice(None), sink)
    return sink.getvalue()


def _to_arrow(valid: pd.DataFrame) -> arrow.Table:
    """The same columns, not copied, and the version."""
    rows = arrow.Table.from_pandas(valid, preserve_index=False)
    return rows.replace_schema_metadata({**(rows.schema.metadata or {}), _VERSION_KEY: str(SCHEMA_VERSION).encode()})


def _encode(rows: arrow.Table, part: Any, into: IO[bytes]) -> None:
    """Without Parquet's dictionaries: of identities, digests and measured numbers they make a tenth more bytes in 1.5 times the time."""
    places = np.arange(len(rows))[part]
    with parquet.ParquetWriter(into, rows.schema, compression="zstd", use_dictionary=False) as writer:
        for start in range(0, max(len(places), 1), _ROWS_ENCODED):
            writer.write_table(rows.take(places[start : start + _ROWS_ENCODED]))
            _release()


def decode_manifest(content: bytes, *, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of a file of `encode_manifest`, or some of their columns, in the manifest's types; not validated again."""
    file = parquet.ParquetFile(arrow.BufferReader(content))
    return file.read(columns=None if columns is None else list(columns), use_threads=False).to_pandas()


def iterate_manifest(uri: str, *, columns: Sequence[str] | None = None, rows: int = 8192) -> Iterator[arrow.RecordBatch]:
    """A manifest in batches, or some of its columns, however long it is: a batch and a buffer a column are in memory. Not validated.

    Raises:
        ManifestError: another schema.
    """
    with filesystems.open_for_reading(uri, ahead_bytes=_AHEAD_BYTES) as source:
        file = parquet.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        _check_version(uri, file.schema_arrow)
        for batch in file.iter_batches(rows, columns=columns, use_threads=False):
            yield batch.replace_schema_metadata()


def _to_pandas(rows: arrow.Table) -> pd.DataFrame:
    types = {arrow.large_string(): pd.StringDtype("pyarrow"), arrow.int8(): pd.Int8Dtype()}
    return rows.to_pandas(types_mapper=types.get, split_blocks=True, self_destruct=True)


def count_manifest(uri: str) -> int:
    """Rows of a manifest, from the end of its file alone."""
    with filesystems.open_for_reading(uri, ahead_bytes=_AHEAD_BYTES) as source:
        return int(parquet.ParquetFile(source).metadata.num_rows)


def read_manifest(uri: str, *, digest: str | None = None) -> pd.DataFrame:
    """Read a manifest and check it, against its digest too where one is given.

    Raises:
        ManifestError: another content than the digest says, or a broken rule of the schema.
    """
    if digest is not None and (found := filesystems.sha256_of(uri)) != digest:
        raise ManifestError(f"{uri} is not the manifest this was made for: expected digest {digest[:12]}, found {found[:12]}")
    with filesystems.open_for_reading(uri) as file:
        rows = parquet.read_table(file)
    _check_version(uri, rows.schema)
    return validate_manifest(rows.to_pandas())


def _check_version(uri: str, schema: arrow.Schema) -> None:
    version = (schema.metadata or {}).get(_VERSION_KEY, b"none").decode()
    if version != str(SCHEMA_VERSION):
        raise ManifestError(f"{uri} has the manifest schema {version}, this normascope reads {SCHEMA_VERSION}: curate again")
