"""Score every sample of a manifest into a store, shard by shard; what an earlier store of the same model holds is copied, not computed."""

import logging
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from methods.detectors.interface import Detector
from storage import filesystems
from storage.manifest import ManifestError, read_manifest
from storage.scores import FAILED, SCORED, Failure, ScoreStore, create_store, list_stores, open_store
from tasks.caching import cached_task, code_fingerprint, digest_of
from tasks.curate import check_failures
from tasks.execution import ExecutionConfig, executor_for
from tasks.models import detector_config, load_detector
from tasks.progress import Bar
from tasks.references import ManifestReference, ModelReference, StoreReference
from tasks.samples import READ_ERRORS, read_sample, to_tensor

logger = logging.getLogger(__name__)


class ScoringConfig(BaseModel):
    """How the work is cut."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard_rows: int = Field(default=64, ge=1, description="samples of a shard: the unit of work, of retry and of resume")
    shards_per_task: int = Field(default=8, ge=1, description="shards of one Prefect task; 5 s of work and more keep the UI light")


class ShardJob(TypedDict):
    """All that a worker needs to score one shard."""

    store_uri: str
    manifest: ManifestReference
    model: ModelReference
    shard: int
    donors: list[str]


class ShardOutcome(TypedDict):
    """What became of a shard's rows."""

    scored: int
    copied: int
    failed: list[str]


def prepare_store(
    manifest: ManifestReference, model: ModelReference, *, scoring: ScoringConfig, threads: int, store: str
) -> StoreReference:
    """Make the score store of a manifest and a model, or open the one that is there.

    Raises:
        ScoreStoreError: the place is taken by a store of another run.
    """
    code = code_fingerprint(__name__)
    identity = digest_of(manifest["digest"], model["digest"], scoring, threads, code)
    uri = filesystems.join(store, "scores", f"{model['kind']}-{identity[:16]}.zarr")
    detector = detector_config(model)
    create_store(
        uri,
        rows=manifest["rows"],
        map_size_px=detector.map_size_px,
        shard_rows=scoring.shard_rows,
        attributes={
            "manifest_digest": manifest["digest"],
            "model_digest": model["digest"],
            "detector": model["kind"],
            "batch_size": detector.batch_size,
            "threads": threads,
            "code": code,
        },
        notes={"manifest_uri": manifest["uri"], "model_uri": model["uri"]},
    )
    return StoreReference(uri=uri, manifest_digest=manifest["digest"], model_digest=model["digest"], kind=model["kind"])


@cached_task(
    name="score",
    run_name="score {model[kind]} shards {first}-{last}",
    outputs_exist=lambda outcome: not set(range(outcome["first"], outcome["last"] + 1)) & set(open_store(outcome["uri"]).pending_shards()),
    ignore=("execution", "bar"),
)
def score_shards(
    store: StoreReference,
    manifest: ManifestReference,
    model: ModelReference,
    *,
    first: int,
    last: int,
    execution: ExecutionConfig,
    bar: Bar,
) -> dict[str, Any]:
    """Score the pending ones of the shards first…last."""
    opened = open_store(store["uri"])
    pending = [shard for shard in opened.pending_shards() if first <= shard <= last]
    bar.advance(sum(len(opened.rows_of(shard)) for shard in range(first, last + 1) if shard not in pending))
    donors = find_donors(opened)
    jobs = [ShardJob(store_uri=store["uri"], manifest=manifest, model=model, shard=shard, donors=donors) for shard in pending]
    outcome: dict[str, Any] = {"uri": store["uri"], "first": first, "last": last, "scored": 0, "copied": 0, "failed": 0}
    for done in executor_for(execution).map(score_shard, jobs):
        rows = done["scored"] + done["copied"] + len(done["failed"])
        outcome = outcome | {
            "scored": outcome["scored"] + done["scored"],
            "copied": outcome["copied"] + done["copied"],
            "failed": outcome["failed"] + len(done["failed"]),
        }
        bar.advance(rows)
    logger.info("shards %d-%d: %s scored, %s copied, %s failed", first, last, outcome["scored"], outcome["copied"], outcome["failed"])
    return outcome


def shard_groups(store: StoreReference, scoring: ScoringConfig) -> list[tuple[int, int]]:
    """First and last shard of each Prefect task."""
    count = open_store(store["uri"]).shard_count
    return [(first, min(first + scoring.shards_per_task, count) - 1) for first in range(0, count, scoring.shards_per_task)]


def conclude_scoring(store: StoreReference, *, failed_share_max: float) -> dict[str, int]:
    """Count what became of every row.

    Raises:
        TooManyFailuresError: more than the allowed share of the samples failed; the store keeps what was scored.
    """
    opened = open_store(store["uri"])
    status = opened.status()
    failures = opened.failures()
    unexpected = failures[~failures["reason"].str.startswith("excluded")]
    check_failures(failed=unexpected["reason"].tolist(), total=len(status), failed_share_max=failed_share_max, what="samples")
    return {"scored": int((status == SCORED).sum()), "failed": int((status == FAILED).sum()), "samples": len(status)}


def find_donors(store: ScoreStore) -> list[str]:
    """Other stores of the same model, code and arithmetic: the score of the same pixels in them is the same to the bit."""
    same = ("model_digest", "detector", "batch_size", "threads", "code")
    folder = store.uri.rsplit("/", 1)[0]
    others = (open_store(uri) for uri in list_stores(folder) if uri != store.uri)
    return [other.uri for other in others if all(other.attributes.get(name) == store.attributes[name] for name in same)]


def score_shard(job: ShardJob) -> ShardOutcome:
    """Read, score and write one shard. Runs anywhere, any number of times, with the same bits as result."""
    store = open_store(job["store_uri"])
    rows = store.rows_of(job["shard"])
    table = _manifest(job["manifest"]["uri"], job["manifest"]["digest"]).iloc[rows.start : rows.stop]
    detector = _detector(job["model"]["uri"], job["model"]["digest"], job["model"]["kind"])
    image = np.full(len(rows), np.nan, np.float32)
    size = store.map_size_px
    maps = None if size is None else np.full((len(rows), size, size), np.nan, np.float16)
    copied = _copy_from_donors(job["donors"], table, image, maps)
    failures = _score_rows(detector, table, image, maps, skip=copied, first_row=rows.start)
    store.write_shard(job["shard"], image=image, maps=maps, failures=failures)
    return ShardOutcome(scored=len(rows) - len(copied) - len(failures), copied=len(copied), failed=[failure.reason for failure in failures])


def _score_rows(
    detector: Detector, table: pd.DataFrame, image: np.ndarray, maps: np.ndarray | None, *, skip: set[int], first_row: int
) -> list[Failure]:
    """Fill `image` and `maps` in place; returns the rows that could not be read."""
    failures, readable, pixels = [], [], []
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
    for start in range(0, len(readable), detector.batch_size):
        chosen = readable[start : start + detector.batch_size]
        batch = np.stack(pixels[start : start + detector.batch_size])
        # every batch is full, so that the arithmetic, to the last bit, does not depend on who the neighbours are
        batch = np.concatenate([batch, np.repeat(batch[-1:], detector.batch_size - len(batch), 0)])
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
