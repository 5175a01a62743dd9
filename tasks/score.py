"""Score every sample of a manifest into a store, shard by shard; what an earlier store of the same model holds is copied, not computed."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from storage import filesystems
from storage.scores import FAILED, SCORED, ScoreStore, create_store, list_stores, open_store
from tasks.arithmetic import Arithmetic
from tasks.assets import tell_made
from tasks.caching import cached_task, code_fingerprint, digest_of
from tasks.execution import ExecutionConfig, executor_for
from tasks.failures import check_failures
from tasks.models import detector_config
from tasks.progress import Bar
from tasks.references import ManifestReference, ModelReference, RowsReference, StoreReference
from tasks.score_shard import Limits, ShardJob, ShardOutcome, Target, score_shard

logger = logging.getLogger(__name__)

_TOGETHER = 2  # shards in one process: one is read or written while the other is computed


class ScoringConfig(BaseModel):
    """How the work is cut."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard_rows: int = Field(default=64, ge=1, description="samples of a shard: the unit of work, of retry and of resume")
    shards_per_task: int = Field(default=8, ge=1, description="shards of one Prefect task; 5 s of work and more keep the UI light")


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
            "arithmetic": Arithmetic(batch_size=detector.batch_size, threads=threads).model_dump(),
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
    rows = RowsReference(uri=manifest["uri"], digest=manifest["digest"])
    target = Target(store_uri=store["uri"], model=model, donors=find_donors(opened))
    jobs = [ShardJob(rows=rows, shard=shard, targets=[target], isolate=False, limits=Limits()) for shard in pending]
    outcome: dict[str, Any] = {"uri": store["uri"], "first": first, "last": last, "scored": 0, "copied": 0, "failed": 0}
    for done in map_shards(jobs, execution=execution):
        (became,) = done["targets"]
        outcome = outcome | {
            "scored": outcome["scored"] + became["scored"],
            "copied": outcome["copied"] + became["copied"],
            "failed": outcome["failed"] + len(became["failed"]),
        }
        bar.advance(done["rows"])
    logger.info("shards %d-%d: %s scored, %s copied, %s failed", first, last, outcome["scored"], outcome["copied"], outcome["failed"])
    tell_made(store["uri"], name=f"scores of {model['kind']} {model['digest'][:12]}", of=[manifest["uri"], model["uri"]], **outcome)
    return outcome


def map_shards(jobs: Iterable[ShardJob], *, execution: ExecutionConfig) -> Iterator[ShardOutcome]:
    """Score shards on the workers; one whose workers died is looked through sample by sample for the one that kills."""
    return executor_for(execution).map(score_shard, jobs, rescue=lambda job: {**job, "isolate": True}, together=_TOGETHER)


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
    same = ("model_digest", "detector", "arithmetic", "code")
    folder = store.uri.rsplit("/", 1)[0]
    others = (open_store(uri) for uri in list_stores(folder) if uri != store.uri)
    return [other.uri for other in others if all(other.attributes.get(name) == store.attributes[name] for name in same)]
