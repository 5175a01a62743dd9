"""The score store: one Zarr v3 group per manifest and model, written shard by shard and resumed at the first missing one.

Arrays: `image_score` (N,) float32; `anomaly_map` (N, H, W) float16; `status` (N,) uint8. A shard is `shard_rows` consecutive rows of
all three; it has one writer, who writes it whole: maps, then image scores, then failures, and the status last. A shard whose status
is on disk is therefore complete, and one that was cut short is done again. Higher scores are more anomalous; rows that could not be
scored hold NaN.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import FsspecStore, LocalStore

from storage import filesystems

SCHEMA_VERSION = 1
PENDING, SCORED, FAILED = 0, 1, 2

# float16 maps: bit shuffling before zstd halves them, at 180 MB/s on one core
_MAP_CODEC = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle")
_CHUNK_BYTES = 1 << 20


class ScoreStoreError(ValueError):
    """A store that does not belong to the run, or is not finished."""


@dataclass(frozen=True)
class Failure:
    """A sample that could not be scored."""

    row: int
    sample_id: str
    reason: str


class ScoreStore:
    """An opened score store. Make one with `create_store` or `open_store`."""

    def __init__(self, uri: str, group: zarr.Group) -> None:
        self.uri = uri
        self._group = group
        self.attributes: dict[str, Any] = dict(group.attrs)
        self._image_score = _array(group, "image_score")
        self._anomaly_map = _array(group, "anomaly_map") if "anomaly_map" in group else None
        self._status = _array(group, "status")
        self.rows = int(self._status.shape[0])
        self.shard_rows = int(self.attributes["shard_rows"])

    @property
    def map_size_px(self) -> int | None:
        """Height and width of the maps, or None where the detector has none."""
        return int(self._anomaly_map.shape[1]) if self._anomaly_map is not None else None

    @property
    def shard_count(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.shard_rows)

    def rows_of(self, shard: int) -> range:
        """The rows of one shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))

    def status(self) -> np.ndarray:
        """(N,) uint8: 0 pending, 1 scored, 2 failed."""
        return np.asarray(self._status[:])

    def pending_shards(self) -> list[int]:
        """Shards that are to be scored: never finished, or with a file gone since."""
        done = np.logical_and.reduceat(self.status() != PENDING, np.arange(0, self.rows, self.shard_rows))
        present = set.intersection(*(self._chunks_on_disk(name) for name in self._array_names()))
        return [shard for shard in range(self.shard_count) if not done[shard] or shard not in present]

    def write_shard(self, shard: int, *, image: np.ndarray, maps: np.ndarray | None, failures: list[Failure]) -> None:
        """Write one shard whole; the rows in `failures` become failed, all others scored.

        Args:
            shard: its number.
            image: (n,) float32 for the n rows of the shard; finite except where failed.
            maps: (n, H, W) float16 or None as the store was created.
            failures: rows that could not be scored, with their reasons.
        """
        rows = self.rows_of(shard)
        status = np.full(len(rows), SCORED, np.uint8)
        status[[failure.row - rows.start for failure in failures]] = FAILED
        if not np.isfinite(image[status == SCORED]).all():
            raise ScoreStoreError(f"shard {shard}: a scored row holds NaN or an infinite image score")
        where = slice(rows.start, rows.stop)
        if self._anomaly_map is not None:
            if maps is None or not np.isfinite(maps[status == SCORED]).all():
                raise ScoreStoreError(f"shard {shard}: a scored row holds no map, or one that float16 cannot hold")
            self._anomaly_map[where] = maps
        self._image_score[where] = image
        if failures:
            table = pd.DataFrame([(f.row, f.sample_id, f.reason) for f in failures], columns=["row", "sample_id", "reason"])
            filesystems.write_table(self._failures_uri(shard), table)
        self._status[where] = status  # last: this is what makes the shard complete

    def image_scores(self) -> np.ndarray:
        """(N,) float32, NaN where not scored."""
        return np.asarray(self._image_score[:])

    def read_maps(self, rows: range | np.ndarray) -> np.ndarray:
        """(n, H, W) float16 maps of rows, in their order."""
        if self._anomaly_map is None:
            raise ScoreStoreError(f"{self.uri} holds no anomaly maps: its detector scores whole images only")
        wanted = np.asarray(rows, dtype=np.int64)
        if len(wanted) and (np.diff(wanted) == 1).all():  # a slice is read several times faster
            return np.asarray(self._anomaly_map[int(wanted[0]) : int(wanted[-1]) + 1])
        return np.asarray(self._anomaly_map.oindex[wanted])

    def failures(self) -> pd.DataFrame:
        """Columns row, sample_id, reason of all failed samples, in row order."""
        failed = np.flatnonzero(self.status() == FAILED)
        shards = sorted({int(row) // self.shard_rows for row in failed})
        tables = [filesystems.read_table(self._failures_uri(shard)) for shard in shards]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["row", "sample_id", "reason"])

    def _failures_uri(self, shard: int) -> str:
        return filesystems.join(self.uri, "failures", f"shard-{shard:06d}.parquet")

    def _array_names(self) -> list[str]:
        return ["image_score", "status"] + (["anomaly_map"] if self._anomaly_map is not None else [])

    def _chunks_on_disk(self, name: str) -> set[int]:
        folder = filesystems.join(self.uri, name, "c")
        if not filesystems.exists(folder):
            return set()
        return {int(uri[len(folder) :].strip("/").split("/")[0]) for uri in filesystems.list_files(folder)}


def create_store(
    uri: str, *, rows: int, map_size_px: int | None, shard_rows: int, attributes: dict[str, Any], notes: dict[str, Any] | None = None
) -> ScoreStore:
    """Make an empty store with every row pending, or open the one that is there when it belongs to the same run.

    Args:
        uri: folder or object store prefix.
        rows: samples of the manifest.
        map_size_px: height and width of the maps; None for a detector without maps.
        shard_rows: rows of a shard, the unit of work, retry and resume.
        attributes: what identifies the run: `manifest_digest`, `model_digest`, configuration, code version.
        notes: kept beside them and not compared, such as where manifest and model lie.

    Raises:
        ScoreStoreError: a store of another manifest, model or configuration is there.
    """
    if rows < 1:
        raise ScoreStoreError("a score store needs at least one row: the manifest is empty")
    expected = {**attributes, "schema_version": SCHEMA_VERSION, "shard_rows": shard_rows}
    if _is_complete(uri):
        return open_store(uri, expected=expected)
    group = zarr.open_group(_zarr_store(uri), mode="w", zarr_format=3)
    group.create_array("image_score", shape=(rows,), chunks=(shard_rows,), dtype="float32", fill_value=np.nan, compressors=None)
    group.create_array("status", shape=(rows,), chunks=(shard_rows,), dtype="uint8", fill_value=PENDING, compressors=None)
    if map_size_px is not None:
        group.create_array(
            "anomaly_map",
            shape=(rows, map_size_px, map_size_px),
            chunks=(_rows_per_chunk(shard_rows, map_size_px), map_size_px, map_size_px),
            shards=(shard_rows, map_size_px, map_size_px),
            dtype="float16",
            fill_value=np.nan,
            compressors=_MAP_CODEC,
        )
    group.attrs.update({**(notes or {}), **expected})  # last: a group without them was cut short and is made again
    return open_store(uri)


def open_store(uri: str, *, expected: dict[str, Any] | None = None) -> ScoreStore:
    """Open a store for reading and for writing shards.

    Raises:
        ScoreStoreError: nothing there, another schema, or attributes that differ from `expected`.
    """
    if not _is_complete(uri):
        raise ScoreStoreError(f"no score store at {uri}; run `normascope score` first")
    store = ScoreStore(uri, zarr.open_group(_zarr_store(uri), mode="r+"))
    wanted = {"schema_version": SCHEMA_VERSION, **(expected or {})}
    differing = {name: (value, store.attributes.get(name)) for name, value in wanted.items() if _differs(value, store.attributes.get(name))}
    if differing:
        lines = "; ".join(f"{name}: this run has {ours}, the store {theirs}" for name, (ours, theirs) in sorted(differing.items()))
        raise ScoreStoreError(f"the score store {uri} belongs to another run ({lines}). Scores are never mixed: use another store")
    return store


def list_stores(uri: str) -> list[str]:
    """URIs of the score stores right below a folder, sorted."""
    return [folder for folder in filesystems.list_folders(uri) if _is_complete(folder)]


def _is_complete(uri: str) -> bool:
    metadata = filesystems.join(uri, "zarr.json")
    return filesystems.exists(metadata) and "schema_version" in filesystems.read_json(metadata)["attributes"]


def _rows_per_chunk(shard_rows: int, map_size_px: int) -> int:
    """The largest divisor of a shard's rows whose maps stay below a mebibyte: a reader of one map decodes one chunk."""
    most = max(1, _CHUNK_BYTES // (2 * map_size_px**2))
    return max(n for n in range(1, shard_rows + 1) if shard_rows % n == 0 and n <= most)


def _differs(ours: Any, theirs: Any) -> bool:
    return bool(json.dumps(ours, sort_keys=True) != json.dumps(theirs, sort_keys=True))


def _array(group: zarr.Group, name: str) -> Any:
    # an all-NaN shard is a result: without this it is not written, and an existing one is deleted
    return group[name].with_config({"write_empty_chunks": True})  # type: ignore[union-attr]


def _zarr_store(uri: str) -> Any:
    path = filesystems.local_path(uri)
    return LocalStore(path) if path is not None else FsspecStore.from_url(uri)
