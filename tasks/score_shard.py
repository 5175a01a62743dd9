"""What a worker does: read one shard's samples once, score them with every model that is asked for, write the shard of each store."""

from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from methods.detectors.interface import Detector
from storage.manifest import ManifestError, read_manifest
from storage.scores import SCORED, Failure, ScoreStore, open_store
from tasks.arithmetic import Arithmetic
from tasks.models import load_detector
from tasks.references import ModelReference, RowsReference
from tasks.samples import READ_ERRORS, read_sample, to_tensor


class Limits(BaseModel):
    """How far a worker reads ahead and how long one step may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    readers: int = Field(default=4, ge=1, description="threads that read and decode for one shard")
    ahead_mb: int = Field(default=256, ge=1, description="most that one shard holds of decoded pictures, in MiB")
    read_s: float | None = Field(default=None, gt=0, description="longest time for one picture; past it the process is killed")
    score_s: float | None = Field(default=None, gt=0, description="longest time for one batch; past it the process is killed")


class Target(TypedDict):
    """A store to fill and the model that fills it; `donors` are stores whose scores of the same pixels are copied."""

    store_uri: str
    model: ModelReference
    donors: list[str]


class ShardJob(TypedDict):
    """All that a worker needs to score one shard of rows into stores of one cut.

    `isolate`: workers died of this shard; its samples are taken one at a time until the one that kills is found.
    """

    rows: RowsReference
    shard: int
    targets: list[Target]
    isolate: bool
    limits: Limits


class TargetOutcome(TypedDict):
    """What became of a shard's rows in one store."""

    scored: int
    copied: int
    failed: list[str]


class ShardOutcome(TypedDict):
    """What became of a shard, by target in the job's order."""

    shard: int
    rows: int
    targets: list[TargetOutcome]


def score_shard(job: ShardJob) -> ShardOutcome:
    """Read, score and write one shard. Runs anywhere, any number of times, with the same bits as result."""
    outcomes = [_score_target(job, target) for target in job["targets"]]
    rows = outcomes[0]["scored"] + outcomes[0]["copied"] + len(outcomes[0]["failed"])
    return ShardOutcome(shard=job["shard"], rows=rows, targets=outcomes)


def _score_target(job: ShardJob, target: Target) -> TargetOutcome:
    store = open_store(target["store_uri"])
    rows = store.rows_of(job["shard"])
    table = _manifest(job["rows"]["uri"], job["rows"]["digest"]).iloc[rows.start : rows.stop]
    model = target["model"]
    detector = _detector(model["uri"], model["digest"], model["kind"])
    image = np.full(len(rows), np.nan, np.float32)
    size = store.map_size_px
    maps = None if size is None else np.full((len(rows), size, size), np.nan, np.float16)
    copied = _copy_from_donors(target["donors"], table, image, maps)
    failures = _score_rows(detector, store, table, image, maps, copied, rows.start)
    store.write_shard(job["shard"], image=image, maps=maps, failures=failures)
    reasons = [failure.reason for failure in failures]
    return TargetOutcome(scored=len(rows) - len(copied) - len(failures), copied=len(copied), failed=reasons)


def arithmetic_of(store: ScoreStore) -> Arithmetic:
    """The arithmetic that a store was begun with."""
    return Arithmetic.model_validate(store.attributes["arithmetic"])


def _score_rows(
    detector: Detector,
    store: ScoreStore,
    table: pd.DataFrame,
    image: np.ndarray,
    maps: np.ndarray | None,
    skip: set[int],
    first_row: int,
) -> list[Failure]:
    """Fill `image` and `maps` in place; returns the rows that could not be read."""
    failures, readable, pixels = [], [], []
    batch_size = arithmetic_of(store).batch_size
    for position, row in enumerate(table.to_dict("records")):
        if position in skip:
            continue
        try:
            if not pd.isna(row["excluded"]):
                raise FileNotFoundError(f"excluded by curation: {row['excluded']}")
            pixels.append(read_sample(row, size_px=detector.input_size_px))
            readable.append(position)
        except READ_ERRORS as error:
            failures.append(Failure(row=first_row + position, sample_id=row["sample_id"], reason=str(error)))
    for start in range(0, len(readable), batch_size):
        chosen = readable[start : start + batch_size]
        batch = np.stack(pixels[start : start + batch_size])
        # every batch is full, so that the arithmetic, to the last bit, does not depend on who the neighbours are
        batch = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), 0)])
        with torch.inference_mode():
            scores = detector.score(to_tensor(batch))
        image[chosen] = scores.image[: len(chosen)].numpy()
        if maps is not None and scores.pixel is not None:
            maps[chosen] = scores.pixel[: len(chosen)].numpy().astype(np.float16)
    return failures


def _copy_from_donors(donors: list[str], table: pd.DataFrame, image: np.ndarray, maps: np.ndarray | None) -> set[int]:
    """Fill rows whose pixels an earlier store has scored; returns their positions."""
    copied: set[int] = set()
    for uri in donors:
        positions = [i for i, sample in enumerate(table["sample_id"]) if i not in copied and sample in _scored_rows(uri)]
        if not positions:
            continue
        donor = open_store(uri)
        rows = np.array([_scored_rows(uri)[table["sample_id"].iloc[i]] for i in positions])
        image[positions] = donor.image_scores()[rows]
        if maps is not None:
            maps[positions] = donor.read_maps(rows)
        copied.update(positions)
    return copied


@lru_cache(maxsize=4)
def _scored_rows(store_uri: str) -> dict[str, int]:
    """Row by sample of what a store has scored; empty when its manifest is gone."""
    store = open_store(store_uri)
    try:
        samples = read_manifest(store.attributes["manifest_uri"], digest=store.attributes["manifest_digest"])["sample_id"]
    except (OSError, ManifestError):
        return {}
    pending = {row for shard in store.pending_shards() for row in store.rows_of(shard)}
    return {samples.iloc[row]: int(row) for row in np.flatnonzero(store.status() == SCORED) if row not in pending}


@lru_cache(maxsize=2)
def _manifest(uri: str, digest: str) -> pd.DataFrame:
    return read_manifest(uri, digest=digest)


@lru_cache(maxsize=2)
def _detector(uri: str, digest: str, kind: str) -> Detector:
    return load_detector(ModelReference(uri=uri, digest=digest, kind=kind))
