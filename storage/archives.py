"""An archive to score: its own manifest, which only grows, and beside it the score stores and slide maps of every model.

    archive.json                      rows, parts and where they came from; replaced only by who has read what it replaces
    rows/part-000000008192-….parquet  at most 8192 rows each, named by the first of them and their digest; never changed
    scores/SLOT/v1/                   a score store (`storage.scores`); v2 … beside it
    slides/SLOT/v1/                   whole-slide maps

A row's number is its index in every array of every slot, for ever. An appended manifest must hold every sample that the archive holds; old
rows keep their place and content, new ones follow in the order of the manifest. Parts are written before archive.json says that they are
there: an append that was cut short leaves the archive as it was, and the next one writes the same files again.
"""

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as arrow

from storage import conditional, filesystems
from storage.manifest import (
    ManifestError,
    count_manifest,
    decode_manifest,
    encode_manifest,
    iterate_manifest,
    read_manifest,
    validate_manifest,
)
from storage.patience import patiently
from storage.scores import list_stores

SCHEMA_VERSION = 1
PART_ROWS = 8192
_PARTS_KEPT = 2
_PATIENCE_S = 120
_NAMED = 5  # missing samples in a message
_AT_ONCE = 1 << 16  # hashes
_KEYS = 1000
_PARTS_VALIDATED = 4  # at once
_DOCUMENT = "archive.json"
_SLOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"v([1-9]\d*)")


class ArchiveError(ValueError):
    """No archive, one that was changed, or a manifest that does not continue it."""


class Archive:
    """An opened archive. Make one with `open_archive` or `append_manifest`.

    Attributes:
        uri: its folder or prefix.
        rows: N.
        parts: first row, number of rows and sha256 of each file of rows.
        manifests: URI and digest of what was appended, and the rows there were then.
        digest: SHA-256 over the parts' digests: names this content.
    """

    def __init__(self, uri: str, document: dict[str, Any]) -> None:
        self.uri = uri
        self.rows = int(document["rows"])
        self.parts: list[dict[str, Any]] = document["parts"]
        self.manifests: list[dict[str, Any]] = document["manifests"]
        self.digest = _digest_of(self.parts)
        self._firsts = np.array([part["first"] for part in self.parts], np.int64)
        self._kept: OrderedDict[int, pd.DataFrame] = OrderedDict()
        self._lock = threading.Lock()

    def read_rows(self, first: int, stop: int) -> pd.DataFrame:
        """Rows first … stop - 1 in the manifest's types, their numbers as index; two parts stay in memory.

        Raises:
            ArchiveError: a part is missing or was changed.
        """
        if not 0 <= first <= stop <= self.rows:
            raise ArchiveError(f"{self.uri} holds rows 0 to {self.rows - 1}, asked for {first} to {stop - 1}")
        if first == stop:
            return self.read_rows(0, 1).iloc[:0]
        touched = range(int(np.searchsorted(self._firsts, first, side="right")) - 1, int(np.searchsorted(self._firsts, stop, side="left")))
        return pd.concat([self._keep_part(part).loc[first : stop - 1] for part in touched])

    def iterate_rows(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """All rows part by part, or some of their columns, row numbers as index."""
        for part in range(len(self.parts)):
            yield self.read_part(part, columns=columns)

    def read_part(self, part: int, *, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The rows of one file, row numbers as index.

        Raises:
            ArchiveError: it is missing or was changed.
        """
        first, rows, sha256 = (self.parts[part][name] for name in ("first", "rows", "sha256"))
        uri = self.part_uri(part)
        try:
            content = patiently(lambda: filesystems.read_bytes(uri), patience_s=_PATIENCE_S, what=uri)
        except FileNotFoundError:
            raise ArchiveError(f"rows {first} to {first + rows - 1} of the archive are missing: there is no {uri}") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ArchiveError(f"rows {first} to {first + rows - 1} of the archive were changed: {uri} is not what was written")
        return decode_manifest(content, columns=columns).set_index(pd.RangeIndex(first, first + rows))

    def part_uri(self, part: int) -> str:
        """Where the file of a part is."""
        return filesystems.join(self.uri, *_part_path(self.parts[part]))

    def digest_at(self, rows: int) -> str | None:
        """The digest it had when it held so many rows; None if it never did."""
        before = [part for part in self.parts if part["first"] < rows]
        return _digest_of(before) if before and before[-1]["first"] + before[-1]["rows"] == rows else None

    def slots(self) -> dict[str, list[int]]:
        """Versions, ascending, of the score stores by slot."""

        def look() -> dict[str, list[str]]:
            folders = filesystems.list_folders(filesystems.join(self.uri, "scores"))
            return {filesystems.name_of(folder): list_stores(folder) for folder in folders}

        found = patiently(look, patience_s=_PATIENCE_S, what=self.uri)
        numbers = {
            slot: sorted(int(match[1]) for uri in uris if (match := _VERSION.fullmatch(filesystems.name_of(uri))))
            for slot, uris in found.items()
        }
        return {slot: versions for slot, versions in numbers.items() if versions}

    def scores_uri(self, slot: str, version: int) -> str:
        """Where the score store of a slot is or would be."""
        return filesystems.join(self.uri, "scores", _check_slot(slot), f"v{version}")

    def slides_uri(self, slot: str, version: int) -> str:
        """Where the slide maps of a slot are or would be."""
        return filesystems.join(self.uri, "slides", _check_slot(slot), f"v{version}")

    def _keep_part(self, part: int) -> pd.DataFrame:
        with self._lock:  # threads that read ahead ask for the same part at once
            if part not in self._kept:
                self._kept[part] = self.read_part(part)
                if len(self._kept) > _PARTS_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(part)
            return self._kept[part]


class ManifestRows:
    """A manifest in memory, whose rows are read as an archive's are: all of them are its one part.

    Attributes:
        digest: of its file.
        parts: first row of each part.
    """

    def __init__(self, uri: str, digest: str) -> None:
        """Read it.

        Raises:
            ManifestError: as `storage.manifest.read_manifest`.
        """
        self._table = read_manifest(uri, digest=digest)
        self.digest = digest
        self.parts: list[dict[str, Any]] = [{"first": 0}]

    def read_rows(self, first: int, stop: int) -> pd.DataFrame:
        """Rows first … stop - 1."""
        return self._table.iloc[first:stop]

    def read_part(self, part: int, *, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """All rows."""
        return self._table[list(columns or self._table.columns)]

    def iterate_rows(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """All rows at once."""
        yield self.read_part(0, columns=columns)


def open_rows(uri: str, digest: str) -> Archive | ManifestRows:
    """The rows of a manifest (a .parquet file) or of an archive.

    Raises:
        ManifestError, ArchiveError: another content than the digest names.
    """
    return ManifestRows(uri, digest) if uri.endswith(".parquet") else open_archive(uri, digest=digest)


def open_archive(uri: str, *, digest: str | None = None) -> Archive:
    """Open an archive.

    Raises:
        ArchiveError: none is there, another schema, or another content than `digest` names.
    """
    found = _read_document(uri)
    if found is None:
        raise ArchiveError(f"no archive at {uri}: it lacks archive.json; `normascope score MANIFEST --model BUNDLE --into {uri}` makes one")
    archive = Archive(uri, found[0])
    if digest is not None and archive.digest != digest:
        raise ArchiveError(f"the archive {uri} has changed: expected digest {digest[:12]}, found {archive.digest[:12]}")
    return archive


def append_manifest(archive_uri: str, manifest_uri: str, digest: str) -> Archive:
    """Append the samples of a manifest that an archive does not hold yet; makes the archive where there is none.

    The manifest is read in batches; in memory stand 16 bytes a sample of it and 8 of the archive's.

    Args:
        archive_uri: folder or s3:// prefix.
        manifest_uri: a manifest (`storage.manifest`) that holds all of the archive's samples, in any order, and new ones.
        digest: of the manifest. One that was appended last is not read again.

    Raises:
        ArchiveError: the manifest lacks samples of the archive; names the first.
        ManifestError: not the manifest that the digest names, or not a valid one.
        storage.conditional.ConflictError: another process appended at the same time; the archive is as that one left it.
    """
    found = _read_document(archive_uri)
    document, version = found or ({"schema_version": SCHEMA_VERSION, "rows": 0, "parts": [], "manifests": []}, None)
    archive = Archive(archive_uri, document)
    if archive.manifests and archive.manifests[-1]["digest"] == digest:
        return archive
    if (actual := filesystems.sha256_of(manifest_uri)) != digest:
        raise ManifestError(f"{manifest_uri} is not the manifest this was made for: expected digest {digest[:12]}, found {actual[:12]}")
    is_new = _find_new(archive, manifest_uri)
    parts = [*archive.parts, *_write_parts(archive_uri, manifest_uri, is_new, first=archive.rows)]
    rows = archive.rows + int(is_new.sum())
    if not rows:
        raise ArchiveError(f"{manifest_uri} holds no sample: there is nothing to score")
    appended = {"uri": manifest_uri, "digest": digest, "rows": rows}
    content = json.dumps({**document, "rows": rows, "parts": parts, "manifests": [*archive.manifests, appended]}).encode() + b"\n"
    uri = filesystems.join(archive_uri, _DOCUMENT)
    conditional.create(uri, content) if version is None else conditional.replace(uri, content, version)
    return open_archive(archive_uri)


def _read_document(uri: str) -> tuple[dict[str, Any], str] | None:
    """What archive.json says, and its version; None where there is none."""
    try:
        content, version = patiently(lambda: conditional.read(filesystems.join(uri, _DOCUMENT)), patience_s=_PATIENCE_S, what=uri)
    except FileNotFoundError:
        return None
    document = json.loads(content)
    if document.get("schema_version") != SCHEMA_VERSION:
        raise ArchiveError(f"the archive {uri} has the schema {document.get('schema_version')}, this normascope reads {SCHEMA_VERSION}")
    return document, version


def _find_new(archive: Archive, manifest_uri: str) -> np.ndarray:
    """(M,) bool: which samples of the manifest the archive lacks."""
    key, hashes, ordered = _hash_distinctly(manifest_uri)
    held = _gather_hashes((rows["sample_id"] for rows in archive.iterate_rows(["sample_id"])), archive.rows, key)
    held.sort()
    missing = held[~_contains(ordered, held)]
    if len(missing):
        raise ArchiveError(_describe_missing(archive, manifest_uri, missing, key))
    return ~_contains(held, hashes)


def _contains(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(n,) bool: which of the values (n,) are among the ordered ones; NumPy's isin needs several times their memory."""
    found = np.zeros(len(values), bool)
    for start in range(0, len(values) if len(ordered) else 0, _AT_ONCE):
        part = values[start : start + _AT_ONCE]
        found[start : start + _AT_ONCE] = ordered[np.minimum(np.searchsorted(ordered, part), len(ordered) - 1)] == part
    return found


def _describe_missing(archive: Archive, manifest_uri: str, missing: np.ndarray, key: str) -> str:
    named: list[str] = []
    for rows in archive.iterate_rows(["sample_id"]):
        lost = rows["sample_id"][_contains(missing, _gather_hashes([rows["sample_id"]], len(rows), key))]
        named += [f"{sample} (row {row})" for row, sample in lost.items()]
        if len(named) >= _NAMED:
            break
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    return (
        f"{manifest_uri} does not continue the archive {archive.uri}: it lacks {', '.join(named[:_NAMED])}{more} of its {archive.rows} "
        "samples. A manifest to append holds all of them and new ones; for other samples use another archive"
    )


def _hash_distinctly(manifest_uri: str) -> tuple[str, np.ndarray, np.ndarray]:
    """A key, and the (M,) uint64 hashes under it of the manifest's sample ids, no two of which are the same; in its order, and ascending.

    Raises:
        ManifestError: a sample is there twice.
    """
    rows = count_manifest(manifest_uri)
    for attempt in range(_KEYS):
        key = f"normascope {attempt:05d}"  # 16 bytes
        hashes = _gather_hashes((batch["sample_id"] for batch in iterate_manifest(manifest_uri, columns=["sample_id"])), rows, key)
        ordered = np.sort(hashes)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if not len(twice):
            return key, hashes, ordered
        _refuse_duplicates(manifest_uri, np.flatnonzero(_contains(twice, hashes)))
    raise ManifestError(f"{manifest_uri}: its sample ids cannot be told apart")


def _gather_hashes(parts: Iterable[Any], rows: int, key: str) -> np.ndarray:
    """(rows,) uint64 of the sample ids of all parts."""
    hashes, start = np.empty(rows, np.uint64), 0
    for part in parts:
        hashes[start : start + len(part)] = pd.util.hash_array(np.asarray(part, dtype=object), hash_key=key, categorize=False)
        start += len(part)
    return hashes


def _refuse_duplicates(manifest_uri: str, suspects: np.ndarray) -> None:
    """Raise for a sample that is there twice among some rows."""
    first_row: dict[str, int] = {}
    start = 0
    for batch in iterate_manifest(manifest_uri, columns=["sample_id"]):
        for row in suspects[(suspects >= start) & (suspects < start + len(batch))].tolist():
            sample = batch["sample_id"][row - start].as_py()
            if sample in first_row:
                raise ManifestError(f"{manifest_uri}: rows {first_row[sample]} and {row} hold the same sample {sample}")
            first_row[sample] = row
        start += len(batch)


def _write_parts(archive_uri: str, manifest_uri: str, is_new: np.ndarray, *, first: int) -> Iterator[dict[str, Any]]:
    """Write the new rows of a manifest in files of at most PART_ROWS; yields what archive.json says of each."""
    for block in _gather_new(manifest_uri, is_new):
        rows = validate_manifest(block.to_pandas())
        for start in range(0, len(rows), PART_ROWS):
            part = _write_part(archive_uri, rows.iloc[start : start + PART_ROWS], first)
            first += part["rows"]
            yield part


def _write_part(archive_uri: str, rows: pd.DataFrame, first: int) -> dict[str, Any]:
    content = encode_manifest(rows)
    part = {"first": first, "rows": len(rows), "sha256": hashlib.sha256(content).hexdigest()}
    uri = filesystems.join(archive_uri, *_part_path(part))
    patiently(lambda: filesystems.write_bytes(uri, content), patience_s=_PATIENCE_S, what=uri)
    return part


def _gather_new(manifest_uri: str, is_new: np.ndarray) -> Iterator[arrow.Table]:
    """The new rows of a manifest, several parts at a time: validating takes a moment for any number of rows."""
    start, most, waiting = 0, _PARTS_VALIDATED * PART_ROWS, arrow.table({})
    for batch in iterate_manifest(manifest_uri, rows=PART_ROWS):
        chosen = arrow.table(batch.filter(arrow.array(is_new[start : start + len(batch)])))
        start += len(batch)
        waiting = arrow.concat_tables([waiting, chosen]) if len(waiting) else chosen
        while len(waiting) >= most:
            yield waiting.slice(0, most)
            waiting = waiting.slice(most)
    if len(waiting):
        yield waiting


def _digest_of(parts: Sequence[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps([part["sha256"] for part in parts]).encode()).hexdigest()


def _part_path(part: dict[str, Any]) -> tuple[str, str]:
    # with the digest in the name, two processes that append different rows at once never write the same file
    return "rows", f"part-{part['first']:012d}-{part['sha256'][:8]}.parquet"


def _check_slot(slot: str) -> str:
    if not _SLOT.fullmatch(slot):
        raise ArchiveError(f"{slot!r} cannot name a slot: use letters, digits, dot, dash and underscore")
    return slot
