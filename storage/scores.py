"""The score store: one Zarr v3 group for the rows of a manifest and one model, written shard by shard and resumed at the first missing one.

Arrays: `image_score` (N,) float32; `anomaly_map` (N, H, W) float16; `status` (N,) uint8. A shard is `shard_rows` consecutive rows of
all three; it has one writer, who writes it whole: maps, image scores, status, and last the shard's record. A record,
`records/shard-00000012.json`, says which rows it covers, which of them failed and why, the SHA-256 of the values and the bytes of the
files; a shard that has none is done again. The record of a last shard that is not full has its number of rows in its name
(`shard-00000012-37.json`): when the store grows, this is no longer the shard's name, and so the shard is pending although nothing was
touched. Higher scores are more anomalous; rows that could not be scored hold NaN.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import obstore
import pandas as pd
import zarr
from zarr.codecs import BloscCodec
from zarr.core.buffer import Buffer
from zarr.storage import FsspecStore, LocalStore, ObjectStore

from storage import conditional, filesystems, object_stores
from storage.patience import patiently

SCHEMA_VERSION = 2
PENDING, SCORED, FAILED = 0, 1, 2

# float16 maps: bit shuffling before zstd takes a third to a half off; zstd's level 3 takes twice as long for 2 % less
_MAP_CODEC = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
_CHUNK_BYTES = 1 << 20
# all files of an array in one folder: servers that keep folders list them ten times as fast as a folder a shard
_KEYS: Any = {"name": "default", "separator": "."}
_SHARD_BYTES = 32 << 20
_FEWEST_SHARD_ROWS, _MOST_SHARD_ROWS = 64, 1024
_PATIENCE_S = 120
_ASKED_AT_ONCE = 8
_PIECE_BYTES, _PIECES_AT_ONCE = 5 << 20, 4  # of one file on its way to a bucket
_METADATA = "zarr.json"


class ScoreStoreError(ValueError):
    """A store that does not belong to the run, or is not finished."""


@dataclass(frozen=True)
class Failure:
    """A sample that could not be scored."""

    row: int
    sample_id: str
    reason: str


@dataclass(frozen=True)
class Tail:
    """The rows at the begin of a grown shard that are final: image (n,) float32, maps (n, H, W) float16 or None, and those that failed."""

    image: np.ndarray
    maps: np.ndarray | None
    failures: list[Failure]


class ScoreStore:
    """An opened score store. Make one with `create_store` or `open_store`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._load()

    def _load(self) -> None:
        with object_stores.explained(self.uri):
            group = zarr.open_group(_zarr_store(self.uri), mode="r+", zarr_format=3)
            self.attributes: dict[str, Any] = dict(group.attrs)
            # in the order in which a shard is written
            names = [*(["anomaly_map"] if self.map_size_px is not None else []), "image_score", "status"]
            self.arrays = {name: _array(group, name) for name in names}
        self.rows = int(self.attributes["rows"])
        self.shard_rows = int(self.attributes["shard_rows"])

    @property
    def map_size_px(self) -> int | None:
        """Height and width of the maps, or None where the detector has none."""
        size_px: int | None = self.attributes["map_size_px"]
        return size_px

    @property
    def shard_count(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.shard_rows)

    def rows_of(self, shard: int) -> range:
        """The rows of one shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))

    def status(self) -> np.ndarray:
        """(N,) uint8: 0 pending, 1 scored, 2 failed; a shard without a record is pending, whatever its writer left."""
        status = self._read("status", slice(0, self.rows))
        for shard in self.pending_shards():
            rows = self.rows_of(shard)
            status[rows.start : rows.stop] = PENDING
        return status

    def pending_shards(self) -> list[int]:
        """Shards that are to be scored: never finished, grown since, or with a file gone. Only listings are read."""
        files = self.list_files()
        recorded = set(files.pop("records"))
        written = set.intersection(*({int(path.split(".")[1]) for path in paths if path.startswith("c.")} for paths in files.values()))
        return [shard for shard in range(self.shard_count) if shard not in written or self.record_name(shard) not in recorded]

    def list_files(self) -> dict[str, dict[str, int]]:
        """Bytes of the files of each array and of `records`, by their paths in its folder."""
        names = [*self.arrays, "records"]

        def list_one(name: str) -> dict[str, int]:
            # a listing that breaks off in the middle is not asked for again by obstore
            return patiently(lambda: filesystems.list_sizes(filesystems.join(self.uri, name)), patience_s=_PATIENCE_S, what=self.uri)

        with ThreadPoolExecutor(len(names)) as pool:
            return dict(zip(names, pool.map(list_one, names), strict=True))

    def write_shard(
        self, shard: int, *, image: np.ndarray, maps: np.ndarray | None, failures: list[Failure], patience_s: float = _PATIENCE_S
    ) -> None:
        """Write one shard whole; the rows in `failures` become failed, all others scored.

        Args:
            shard: its number.
            image: (n,) float32 for the n rows of the shard; finite except where failed.
            maps: (n, H, W) float16 or None as the store was created.
            failures: rows that could not be scored, with their reasons.
            patience_s: how long a store that does not answer is asked again.

        Raises:
            ScoreStoreError: a scored row lacks a finite score or map, a failure is of another shard; nothing is written.
            ConnectionError: the store did not answer in time; the shard is pending.
        """
        rows = self.rows_of(shard)
        if len({failure.row for failure in failures} & set(rows)) != len(failures):
            raise ScoreStoreError(f"shard {shard} is rows {rows.start} to {rows.stop - 1}: a failure is of another row, or given twice")
        status = np.full(len(rows), SCORED, np.uint8)
        status[[failure.row - rows.start for failure in failures]] = FAILED
        image = np.ascontiguousarray(image, np.float32)
        if not np.isfinite(image[status == SCORED]).all():
            raise ScoreStoreError(f"shard {shard}: a scored row holds NaN or an infinite image score")
        content = {"image_score": image, "status": status}
        if self.map_size_px is not None:
            maps = None if maps is None else np.ascontiguousarray(maps, np.float16)
            if maps is None or not are_finite(maps)[status == SCORED].all():
                raise ScoreStoreError(f"shard {shard}: a scored row holds no map, or one that float16 cannot hold")
            content = {"anomaly_map": maps, **content}
        record = {
            "rows": [rows.start, rows.stop],
            "scored": len(rows) - len(failures),
            "failed": len(failures),
            "failures": [asdict(failure) for failure in sorted(failures, key=lambda failure: failure.row)],
            "sha256": digests_of(content),
        }
        patiently(lambda: self._write(shard, content, record), patience_s=patience_s, what=f"shard {shard} of {self.uri}")

    def record_name(self, shard: int) -> str:
        """The file in `records` that makes a shard complete; other names are of shards that have grown since."""
        rows = self.rows_of(shard)
        return f"shard-{shard:08d}.json" if len(rows) == self.shard_rows else f"shard-{shard:08d}-{len(rows)}.json"

    def chunk_path(self, name: str, shard: int) -> str:
        """The file of a shard in the folder of an array."""
        return ".".join(["c", str(shard), *["0"] * (self.arrays[name].ndim - 1)])

    def read_record(self, shard: int) -> dict[str, Any]:
        """Of a finished shard: rows [first, stop), scored, failed, failures, and by array sha256 of the values and bytes of the file."""
        return self._read_record(self.record_name(shard))

    def find_record(self, shard: int) -> dict[str, Any] | None:
        """The record of a finished shard; None where it is pending. One request for a shard that nobody has written."""
        try:
            record = self.read_record(shard)
        except FileNotFoundError:
            return None
        files = [filesystems.join(self.uri, name, self.chunk_path(name, shard)) for name in self.arrays]
        return record if all(filesystems.exists(file) for file in files) else None

    def read_tail(self, shard: int) -> Tail | None:
        """What a shard held before the store grew, proved by the record of that time; None where there is nothing, or it does not hold.

        These rows are final: whoever scores the shard copies them and computes the others.
        """
        first, stop = self.rows_of(shard).start, self.rows_of(shard).stop
        for rows in reversed(self.attributes.get("grown_from", [])):
            if not first < rows < stop:
                continue
            try:
                record = self._read_record(f"shard-{shard:08d}-{rows - first}.json")
            except FileNotFoundError:  # it grew again before this shard was written
                continue
            content = {name: self.read_range(name, first, rows) for name in self.arrays}
            if digests_of(content) == record["sha256"]:
                return Tail(content["image_score"], content.get("anomaly_map"), [Failure(**failure) for failure in record["failures"]])
        return None

    def grow(self, rows: int, *, notes: dict[str, Any] | None = None) -> None:
        """Make room for more rows; only metadata is written. A last shard that was not full becomes pending (see `read_tail`).

        The number of rows in the group's attributes is written last and is the one that counts: cut short before, the store is as it was.

        Args:
            rows: of the grown manifest.
            notes: attributes that are not compared and change with it, such as the manifest's digest.

        Raises:
            ScoreStoreError: fewer rows than there are.
            storage.conditional.ConflictError: somebody else changes the store at this moment.
        """
        if rows < self.rows:
            raise ScoreStoreError(f"{self.uri} holds {self.rows} rows and cannot shrink to {rows}")
        uri = filesystems.join(self.uri, _METADATA)
        content, version = conditional.read(uri)
        with object_stores.explained(self.uri):
            for array in self.arrays.values():
                if array.shape[0] < rows:
                    array.resize((rows, *array.shape[1:]))
        metadata = json.loads(content)
        grown_from = [*metadata["attributes"].get("grown_from", []), self.rows]  # where `read_tail` finds rows that are final
        metadata["attributes"] |= {**(notes or {}), "rows": rows, "grown_from": grown_from}
        conditional.replace(uri, _encode(metadata), version)
        self._load()

    def image_scores(self) -> np.ndarray:
        """(N,) float32, NaN where not scored."""
        return self._read("image_score", slice(0, self.rows))

    def read_range(self, name: str, first: int, stop: int) -> np.ndarray:
        """Rows first … stop - 1 of an array as its files have them, those of pending shards too."""
        return self._read(name, slice(first, min(stop, self.rows)))

    def read_maps(self, rows: range | np.ndarray) -> np.ndarray:
        """(n, H, W) float16 maps of rows, in their order."""
        if self.map_size_px is None:
            raise ScoreStoreError(f"{self.uri} holds no anomaly maps: its detector scores whole images only")
        wanted = np.asarray(rows, dtype=np.int64)
        if len(wanted) and (np.diff(wanted) == 1).all():  # a slice is read several times faster
            return self._read("anomaly_map", slice(int(wanted[0]), int(wanted[-1]) + 1))
        with object_stores.explained(self.uri):
            return np.asarray(self.arrays["anomaly_map"].oindex[wanted])

    def failures(self) -> pd.DataFrame:
        """Columns row, sample_id, reason of all failed samples, in row order."""
        shards = sorted({int(row) // self.shard_rows for row in np.flatnonzero(self.status() == FAILED)})
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            found = [failure for record in pool.map(self.read_record, shards) for failure in record["failures"]]
        return pd.DataFrame(found, columns=["row", "sample_id", "reason"])

    def _read(self, name: str, where: slice) -> np.ndarray:
        def read() -> np.ndarray:
            with object_stores.explained(self.uri):
                return np.array(self.arrays[name][where])

        return patiently(read, patience_s=_PATIENCE_S, what=self.uri)

    def _read_record(self, name: str) -> dict[str, Any]:
        return dict(filesystems.read_json(filesystems.join(self.uri, "records", name)))

    def _write(self, shard: int, content: dict[str, np.ndarray], record: dict[str, Any]) -> None:
        rows, sizes = self.rows_of(shard), {}
        with object_stores.explained(self.uri):
            for name, values in content.items():
                self.arrays[name][rows.start : rows.stop] = values
                sizes[name] = filesystems.settle(filesystems.join(self.uri, name, self.chunk_path(name, shard)))
        # last: this is what makes the shard complete
        filesystems.write_json(filesystems.join(self.uri, "records", self.record_name(shard)), {**record, "bytes": sizes})


def default_shard_rows(map_size_px: int | None) -> int:
    """Rows of a shard for archives: maps of at most 32 MiB, from 64 to 1024 rows, a power of two.

    A million finished rows are then a few thousand files, which are listed in a second, and a killed shard costs seconds.
    """
    if map_size_px is None:
        return _MOST_SHARD_ROWS
    rows = max(1, _SHARD_BYTES // (2 * map_size_px**2))
    return min(max(1 << (rows.bit_length() - 1), _FEWEST_SHARD_ROWS), _MOST_SHARD_ROWS)


def digests_of(content: dict[str, np.ndarray]) -> dict[str, str]:
    """SHA-256 of the values of each array."""
    return {name: hashlib.sha256(np.ascontiguousarray(values).data).hexdigest() for name, values in content.items()}


def create_store(
    uri: str, *, rows: int, map_size_px: int | None, shard_rows: int, attributes: dict[str, Any], notes: dict[str, Any] | None = None
) -> ScoreStore:
    """Make an empty store with every row pending, or open the one that is there when it belongs to the same run.

    Two processes that do so at once get the same store: nothing that is there is overwritten.

    Args:
        uri: folder or s3:// prefix.
        rows: samples of the manifest, for a new store; one that is there keeps its own (see `ScoreStore.grow`).
        map_size_px: height and width of the maps; None for a detector without maps.
        shard_rows: rows of a shard, the unit of work, retry and resume.
        attributes: what identifies the run: digests of manifest and model, `detector`, `arithmetic`; compared with those of a store that
            is there.
        notes: kept beside them and not compared, such as where manifest and model lie, or the code that wrote it.

    Raises:
        ScoreStoreError: a store of another manifest, model or configuration is there.
    """
    if rows < 1:
        raise ScoreStoreError("a score store needs at least one row: the manifest is empty")
    expected = {**attributes, "schema_version": SCHEMA_VERSION, "shard_rows": shard_rows, "map_size_px": map_size_px}

    def make() -> None:
        if _is_complete(uri):
            return
        documents = _draw(rows, map_size_px, shard_rows, {**(notes or {}), **expected, "rows": rows})
        group = documents.pop(_METADATA)
        for path, document in documents.items():
            filesystems.write_bytes(filesystems.join(uri, path), document)
        with suppress(FileExistsError):  # another process was faster
            conditional.create(filesystems.join(uri, _METADATA), group)  # last: without it there is no store

    patiently(make, patience_s=_PATIENCE_S, what=uri)
    return open_store(uri, expected=expected)


def open_store(uri: str, *, expected: dict[str, Any] | None = None) -> ScoreStore:
    """Open a store for reading and for writing shards.

    Raises:
        ScoreStoreError: nothing there, another schema, or attributes that differ from `expected`.
    """
    attributes = patiently(lambda: _read_attributes(uri), patience_s=_PATIENCE_S, what=uri)
    if "schema_version" not in attributes:
        raise ScoreStoreError(f"no score store at {uri}; run `normascope score` first")
    wanted = {"schema_version": SCHEMA_VERSION, **(expected or {})}
    differing = {name: (value, attributes.get(name)) for name, value in wanted.items() if _differs(value, attributes.get(name))}
    if differing:
        lines = "; ".join(f"{name}: this run has {ours}, the store {theirs}" for name, (ours, theirs) in sorted(differing.items()))
        raise ScoreStoreError(f"the score store {uri} belongs to another run ({lines}). Scores are never mixed: use another store")
    return patiently(lambda: ScoreStore(uri), patience_s=_PATIENCE_S, what=uri)


def list_stores(uri: str) -> list[str]:
    """URIs of the score stores of this schema right below a folder, sorted."""
    return [folder for folder in filesystems.list_folders(uri) if _read_attributes(folder).get("schema_version") == SCHEMA_VERSION]


def _is_complete(uri: str) -> bool:
    return "schema_version" in _read_attributes(uri)


def _read_attributes(uri: str) -> dict[str, Any]:
    """Of the group; empty where there is none."""
    try:
        return dict(filesystems.read_json(filesystems.join(uri, _METADATA))["attributes"])
    except FileNotFoundError:
        return {}


def _draw(rows: int, map_size_px: int | None, shard_rows: int, attributes: dict[str, Any]) -> dict[str, bytes]:
    """The metadata of an empty store by path, made by Zarr in memory, so that it can be put in place without deleting anything."""
    documents: dict[str, Any] = {}
    group = zarr.open_group(documents, mode="w", zarr_format=3, attributes=attributes)
    flat: Any = {"shape": (rows,), "chunks": (shard_rows,), "compressors": None, "chunk_key_encoding": _KEYS}
    group.create_array("image_score", dtype="float32", fill_value=np.nan, **flat)
    group.create_array("status", dtype="uint8", fill_value=PENDING, **flat)
    if map_size_px is not None:
        group.create_array(
            "anomaly_map",
            shape=(rows, map_size_px, map_size_px),
            chunks=(_rows_per_chunk(shard_rows, map_size_px), map_size_px, map_size_px),
            shards=(shard_rows, map_size_px, map_size_px),
            dtype="float16",
            fill_value=np.nan,
            compressors=_MAP_CODEC,
            chunk_key_encoding=_KEYS,
        )
    return {path: buffer.to_bytes() for path, buffer in documents.items()}


def _rows_per_chunk(shard_rows: int, map_size_px: int) -> int:
    """The largest divisor of a shard's rows whose maps stay below a mebibyte: a reader of one map decodes one chunk."""
    most = max(1, _CHUNK_BYTES // (2 * map_size_px**2))
    return max(n for n in range(1, shard_rows + 1) if shard_rows % n == 0 and n <= most)


def are_finite(maps: np.ndarray) -> np.ndarray:
    """(n,) bool of maps (n, H, W) float16: whether no exponent is all ones. NumPy's own test takes ten times as long for this type."""
    return ~((maps.view(np.uint16) & 0x7C00) == 0x7C00).any(axis=(1, 2))


def _differs(ours: Any, theirs: Any) -> bool:
    return bool(json.dumps(ours, sort_keys=True) != json.dumps(theirs, sort_keys=True))


def _encode(value: Any) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def _array(group: zarr.Group, name: str) -> Any:
    # an all-NaN shard is a result: without this it is not written, and an existing one is deleted
    return group[name].with_config({"write_empty_chunks": True})  # type: ignore[union-attr]


class _BucketStore(ObjectStore[Any]):
    """Zarr's store over obstore, with a client of its own for what is written."""

    def __init__(self, bucket: object_stores.Bucket, *, read_only: bool = False) -> None:
        super().__init__(bucket.reader, read_only=read_only)
        self._bucket = bucket

    def with_read_only(self, read_only: bool = False) -> Self:
        return type(self)(self._bucket, read_only=read_only)

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        await obstore.put_async(self._bucket.writer, key, value.as_buffer_like(), chunk_size=_PIECE_BYTES, max_concurrency=_PIECES_AT_ONCE)


def _zarr_store(uri: str) -> Any:
    if object_stores.is_object_store(uri):
        return _BucketStore(object_stores.open_bucket(uri))
    path = filesystems.local_path(uri)
    return LocalStore(path) if path is not None else FsspecStore.from_url(uri)
