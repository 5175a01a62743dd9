"""What a worker does: read one shard's samples once, score them with every model that is asked for, write the shard of each store.

Reader threads run ahead of the model within a budget; one batch is computed at a time in a process, whatever threads it has, so that a
second shard in the same process is read while the first is computed, and computed while the first is written.
"""

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from storage.manifest import ManifestError
from storage.patience import patiently
from storage.scores import SCORED, Failure, ScoreStore, are_finite, open_store
from tasks.arithmetic import Arithmetic, Scorer
from tasks.models import load_detector
from tasks.readers import PATIENCE_S, Piece, Record, Sample, count_readers, cut_pieces, join_pieces, read_ahead, read_piece, read_records
from tasks.references import ModelReference, RowsReference
from tasks.watchdog import time_limit

logger = logging.getLogger(__name__)

_PORTION_ROWS = 16  # that a reader takes at once
Take = Callable[[str, list[int]], None]  # told what is begun, "read" or "scored", with which positions in the shard

_computing = threading.Lock()
_loading = threading.Lock()


class Limits(BaseModel):
    """How far a worker reads ahead, and how long one step may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    readers: int | None = Field(
        default=None,
        ge=1,
        description="threads that read and decode for one shard; if not given, by where pictures lie",
    )
    ahead_mb: int = Field(default=256, ge=1, description="most that one shard holds of pictures read ahead, in MiB")
    memory_mb: int | None = Field(default=None, ge=1, description="most memory of an isolating process, in MiB; not given: a Dask worker's")
    read_s: float | None = Field(default=600, gt=0, description="longest time to read a picture; past it the process is killed")
    score_s: float | None = Field(default=3600, gt=0, description="longest time to compute a batch; past it the process is killed")


class Target(TypedDict):
    """A store to fill and the model that fills it; `donors` are stores whose scores of the same pixels are copied."""

    store_uri: str
    model: ModelReference
    donors: list[str]


class ShardJob(TypedDict):
    """All that a worker needs to score one shard of rows into stores of one cut.

    `isolate`: workers died of this shard; a process of its own looks for the sample that kills (`tasks.isolation`).
    """

    rows: RowsReference
    shard: int
    targets: list[Target]
    isolate: bool
    limits: Limits


class TargetOutcome(TypedDict):
    """What became of a shard's rows in one store; `failed` holds the reasons."""

    scored: int
    copied: int
    failed: list[str]


class ShardOutcome(TypedDict):
    """What became of a shard, by target in the job's order."""

    shard: int
    rows: int
    targets: list[TargetOutcome]


def score_shard(job: ShardJob) -> ShardOutcome:
    """Read, score and write one shard. Runs anywhere, any number of times, with the same bits as result.

    Raises:
        ManifestError, ArchiveError, BundleError, ScoreStoreError: what the job names is not there or was changed.
        OSError: a store did not answer for two minutes; the shard is pending.
    """
    if not job["isolate"]:
        try:
            return fill_shard(job)
        except MemoryError as error:
            logger.warning("shard %d: out of memory (%s); its samples are tried one at a time", job["shard"], error)
    from tasks.isolation import score_isolated  # which imports this module

    return score_isolated(job)


def fill_shard(
    job: ShardJob,
    *,
    take: Take | None = None,
    alone: Collection[int] = (),
    condemned: Mapping[int, str] | None = None,
) -> ShardOutcome:
    """Score a shard in this process.

    Args:
        job: what to score.
        take: is told of every step; then nothing runs ahead of anything.
        alone: positions that are read and scored alone.
        condemned: positions that are not touched, with the reasons for which they fail.
    """
    stores, found = zip(*(_open(target, job["shard"]) for target in job["targets"]), strict=True)
    rows = stores[0].rows_of(job["shard"])
    records = read_records(job["rows"], rows.start, rows.stop)
    missing = [number for number, outcome in enumerate(found) if outcome is None]
    fillings = [_Filling(job, job["targets"][number], stores[number], records, take) for number in missing]
    for position, reason in (condemned or {}).items():
        for filling in fillings:
            filling.fail(position, reason)
    needed = [position for position in range(len(rows)) if any(filling.needs(position) for filling in fillings)]
    sizes_px = sorted({filling.scorer.input_size_px for filling in fillings})
    read = partial(_read, records, sizes_px, job["limits"], take)
    pieces = cut_pieces(records, needed, sizes_px, alone=alone)
    readers = job["limits"].readers or count_readers(records, on_gpu=any(filling.scorer.arithmetic.device != "cpu" for filling in fillings))
    budget_bytes = job["limits"].ahead_mb << 20 if take is None else 0
    portions = join_pieces(pieces, rows=_PORTION_ROWS, held_bytes=budget_bytes // (2 * readers))
    for portion, samples in read_ahead(portions, read, readers=readers, budget_bytes=budget_bytes, held_bytes=_held_bytes):
        positions = [position for piece in portion for position in piece.positions]
        for position, sample in zip(positions, samples, strict=True):
            for filling in fillings:
                filling.put(position, sample, alone=position in alone)
    written = {number: filling.write() for number, filling in zip(missing, fillings, strict=True)}
    outcomes = [written.get(number) or outcome for number, outcome in enumerate(found)]
    return ShardOutcome(shard=job["shard"], rows=len(rows), targets=outcomes)


def _open(target: Target, shard: int) -> tuple[ScoreStore, TargetOutcome | None]:
    """The store, and what became of the shard where it is finished: a worker that died before it could say so has written it."""

    def look() -> tuple[ScoreStore, TargetOutcome | None]:
        store = open_store(target["store_uri"])
        record = store.find_record(shard)
        if record is None:
            return store, None
        return store, TargetOutcome(scored=0, copied=record["scored"], failed=[failure["reason"] for failure in record["failures"]])

    return patiently(look, patience_s=PATIENCE_S, what=target["store_uri"])


def _held_bytes(portion: list[Piece]) -> int:
    return sum(piece.held_bytes for piece in portion)


def _read(records: list[Record], sizes_px: list[int], limits: Limits, take: Take | None, portion: list[Piece]) -> list[Sample]:
    samples: list[Sample] = []
    for piece in portion:
        if take is not None:
            take("read", piece.positions)
        with time_limit(limits.read_s, f"reading {records[piece.positions[0]]['uri']}"):
            samples += read_piece(records, piece, sizes_px)
    return samples


class _Filling:
    """The shard of one store while it is filled."""

    def __init__(self, job: ShardJob, target: Target, store: ScoreStore, records: list[Record], take: Take | None) -> None:
        self._shard, self._records, self._take, self._score_s = job["shard"], records, take, job["limits"].score_s
        self._store = store
        model = target["model"]
        with _loading:
            self.scorer = _scorer(model["uri"], model["digest"], model["kind"], arithmetic_of(self._store))
        size = self._store.map_size_px
        self._image = np.full(len(records), np.nan, np.float32)
        self._maps = None if size is None else np.full((len(records), size, size), np.nan, np.float16)
        self._failures: dict[int, str] = {}
        self._waiting: list[tuple[int, np.ndarray]] = []
        self._copied = self._copy_tail()
        for donor in target["donors"]:
            self._copied |= self._copy_from(donor)

    def needs(self, position: int) -> bool:
        """Whether the row is neither known nor failed."""
        return position not in self._copied and position not in self._failures

    def fail(self, position: int, reason: str) -> None:
        """The row has no score, for a reason."""
        self._failures[position] = reason

    def put(self, position: int, sample: Sample, *, alone: bool) -> None:
        """Take a sample, and score when a batch is full."""
        if not self.needs(position):
            return
        if isinstance(sample, str):
            self.fail(position, sample)
        elif alone:
            self._score([(position, sample[self.scorer.input_size_px])])
        else:
            self._waiting.append((position, sample[self.scorer.input_size_px]))
            if len(self._waiting) == self.scorer.arithmetic.batch_size:
                self._score_waiting()

    def write(self) -> TargetOutcome:
        """Score what still waits and write the shard."""
        self._score_waiting()
        first = self._store.rows_of(self._shard).start
        failures = [Failure(first + position, self._records[position]["sample_id"], reason) for position, reason in self._failures.items()]
        self._image[list(self._failures)] = np.nan
        if self._maps is not None:
            self._maps[list(self._failures)] = np.nan
        self._store.write_shard(self._shard, image=self._image, maps=self._maps, failures=failures)
        scored = len(self._records) - len(self._copied) - len(failures)
        return TargetOutcome(scored=scored, copied=len(self._copied), failed=list(self._failures.values()))

    def _copy_tail(self) -> set[int]:
        """Fill the rows that were final before the store grew; returns their positions."""
        tail = self._store.read_tail(self._shard)
        if tail is None:
            return set()
        count, first = len(tail.image), self._store.rows_of(self._shard).start
        self._image[:count] = tail.image
        if self._maps is not None:
            self._maps[:count] = tail.maps
        for failure in tail.failures:
            self.fail(failure.row - first, failure.reason)
        return set(range(count)) - self._failures.keys()

    def _copy_from(self, donor_uri: str) -> set[int]:
        """Fill rows whose pixels an earlier store has scored; returns their positions."""
        with _loading:
            donor = _donor(donor_uri)
        samples = [record["sample_id"] for record in self._records]
        positions = [position for position, sample in enumerate(samples) if self.needs(position) and sample in donor.rows]
        if positions:
            rows = np.array([donor.rows[samples[position]] for position in positions])
            self._image[positions] = donor.image[rows]
            if self._maps is not None:
                self._maps[positions] = donor.store.read_maps(rows)
        return set(positions)

    def _score_waiting(self) -> None:
        batch, self._waiting = self._waiting, []
        if batch:
            self._score(batch)

    def _score(self, batch: list[tuple[int, np.ndarray]]) -> None:
        positions = [position for position, _ in batch]
        if self._take is not None:
            self._take("scored", positions)
        # every batch is full, so that the arithmetic, to the last bit, does not depend on who the neighbours are
        pixels = [pixels for _, pixels in batch]
        images = self.scorer.to_device(np.stack(pixels + pixels[-1:] * (self.scorer.arithmetic.batch_size - len(batch))))
        with _computing, time_limit(self._score_s, f"scoring {len(batch)} samples"):
            image, maps = self.scorer.score(images)
        self._image[positions] = image[: len(batch)]
        finite = np.isfinite(self._image[positions])
        if self._maps is not None and maps is not None:
            self._maps[positions] = maps[: len(batch)]
            finite &= are_finite(maps[: len(batch)])
        for position in np.array(positions)[~finite].tolist():
            self.fail(position, "its score is not finite, or its map beyond what float16 holds")


def arithmetic_of(store: ScoreStore) -> Arithmetic:
    """The arithmetic that a store was begun with."""
    return Arithmetic.model_validate(store.attributes["arithmetic"])


@dataclass(frozen=True)
class _Donor:
    """A store of the same model and arithmetic: the scores of the same pixels in it are the same to the bit."""

    store: ScoreStore
    rows: dict[str, int]  # by sample, of what it has scored
    image: np.ndarray


@lru_cache(maxsize=4)
def _donor(store_uri: str) -> _Donor:
    """It has nothing to give when its manifest is gone."""
    store = open_store(store_uri)
    try:
        rows = RowsReference(uri=store.attributes["manifest_uri"], digest=store.attributes["manifest_digest"])
        samples = [record["sample_id"] for record in read_records(rows, 0, store.rows)]
    except (OSError, ManifestError):
        samples = []
    scored = np.flatnonzero(store.status()[: len(samples)] == SCORED).tolist()
    return _Donor(store, {samples[row]: row for row in scored}, store.image_scores())


@lru_cache(maxsize=4)
def _scorer(uri: str, digest: str, kind: str, arithmetic: Arithmetic) -> Scorer:
    return Scorer(load_detector(ModelReference(uri=uri, digest=digest, kind=kind)), arithmetic)
