"""What a retraining is told and what it remembers: its plan, what the sources list, the data that were looked at last."""

import logging
from typing import Any, Literal

import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from typing_extensions import TypedDict

from methods.curation.leaks import check_splits
from methods.evaluation.drift import DriftConfig
from storage import filesystems
from storage.archives import open_archive
from storage.champions import Champion
from storage.datasets.registry import AnySource
from storage.manifest import ManifestError, read_manifest, write_named
from storage.models import read_card
from tasks.archive_scoring import ArchiveScoringConfig
from tasks.assets import tell_made
from tasks.caching import digest_of
from tasks.references import ManifestReference, ModelReference, RowsReference
from tasks.survey import survey

logger = logging.getLogger(__name__)

_FOLDER = "retrain"
_LEAKS_NAMED = 3


class RetrainError(ValueError):
    """A challenger and a champion that cannot be compared, or a memory of earlier runs that cannot be read."""


class PromotionConfig(BaseModel):
    """When the challenger takes the champion's place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = Field(default="image/AUROC", pattern=r"^(image|pixel)/.+$", description="level/name, as in the report; higher is better")
    rule: Literal["better", "not worse"] = Field(
        default="better",
        description="better: the interval of challenger - champion lies above the margin; not worse: above its negative (non-inferiority)",
    )
    margin: float = Field(default=0.0, ge=0, lt=1, description="in units of the metric")
    decided_by: Literal["evidence", "person"] = Field(
        default="evidence", description="a person: the run pauses, shows the evidence and waits for an answer in the Prefect UI"
    )
    answer_within_h: float = Field(default=24, gt=0, description="hours that a person has; then the run fails and the champion stays")

    @model_validator(mode="after")
    def _check_rule(self) -> "PromotionConfig":
        if self.rule == "not worse" and not self.margin:
            raise ValueError("rule: `not worse` needs a margin above 0: how much worse is still good enough")
        if self.metric.endswith("Brier score"):
            raise ValueError("metric: of the Brier score lower is better; choose one of which higher is")
        return self


class ArchivePlan(BaseModel):
    """What the champion scores: every sample of the run's manifest, a new model in a version of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    into: str = Field(description="folder or s3://bucket/prefix of the archive's scores")
    slot: str = Field(default="champion", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="of the archive; each champion is a version")
    scoring: ArchiveScoringConfig = ArchiveScoringConfig(new_version=True)
    drift: DriftConfig = DriftConfig()
    drift_above: float = Field(
        default=0.25, ge=0, description="an event tells of drift when the stability index's interval lies above; 0.25: a major shift"
    )


class RetrainPlan(BaseModel):
    """What a retraining does beside what a run does: the section `retrain` of the run's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    promotion: PromotionConfig = PromotionConfig()
    archive: ArchivePlan | None = Field(default=None, description="none is scored when not given")


class Listing(TypedDict):
    """What the sources list: a table of pictures and their fingerprints, and how it differs from the one before."""

    uri: str
    digest: str
    items: int
    new: int
    changed: int
    gone: int


class Memory(TypedDict):
    """What the last run left: its settings, how it dealt the splits, whether it came to its end; the listing is of the last that did."""

    listing: Listing | None
    settings: str
    manifest: ManifestReference
    concluded: bool


_MEMORY: TypeAdapter[Memory] = TypeAdapter(Memory)


@task(name="look for new data", cache_policy=NO_CACHE, persist_result=False)
def look_for_data(sources: tuple[AnySource, ...], *, store: str, before: Listing | None) -> Listing:
    """List the sources with the fingerprint of every file, and compare with an earlier listing.

    Raises:
        SourceError: a source that cannot be used.
    """
    found = [(f"{item['uri']}#{item['frame'] or ''}", digest_of(item)) for item in survey(sources, store=store)]
    table = pd.DataFrame(sorted(found), columns=["picture", "fingerprint"])
    digest = digest_of(table["picture"].tolist(), table["fingerprint"].tolist())
    uri = filesystems.join(store, _FOLDER, f"listing-{digest[:16]}.parquet")
    if not filesystems.exists(uri):
        filesystems.write_table(uri, table)
    has_before = before is not None and filesystems.exists(before["uri"])
    old = filesystems.read_table(before["uri"]) if before is not None and has_before else table.iloc[:0]
    both = table.merge(old, on="picture", how="outer", suffixes=("", "_before"))
    now, then = both["fingerprint"], both["fingerprint_before"]
    listing = Listing(
        uri=uri,
        digest=digest,
        items=len(table),
        new=int(then.isna().sum()),
        changed=int((now.notna() & then.notna() & (now != then)).sum()),
        gone=int(now.isna().sum()),
    )
    logger.info("%s", describe_listing(listing))
    return listing


def describe_listing(listing: Listing) -> str:
    """In one line."""
    return f"{listing['items']} pictures: {listing['new']} new, {listing['changed']} changed, {listing['gone']} gone"


def digest_settings(settings: dict[str, Any], plan: RetrainPlan) -> str:
    """The digest of what decides how a challenger is made and judged, and of what is scored: a change of these is worth a run, too.

    Args:
        settings: a run's configuration as `model_dump` gives it.
        plan: of the retraining.
    """
    aside = ("name", "notice", "execution", "store", "scoring")
    return digest_of({name: value for name, value in settings.items() if name not in aside}, plan)


def read_memory(store: str) -> Memory | None:
    """What the last run left; None before the first.

    Raises:
        RetrainError: the file is not what a run writes.
    """
    uri = filesystems.join(store, _FOLDER, "memory.json")
    try:
        return _MEMORY.validate_json(filesystems.read_bytes(uri))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise RetrainError(f"{uri} is not what a retraining remembers: put it back from a copy; without it splits are dealt anew") from None


def write_memory(store: str, memory: Memory) -> None:
    """Keep it for the next run."""
    filesystems.write_json(filesystems.join(store, _FOLDER, "memory.json"), memory)


def is_nothing_new(memory: Memory | None, listing: Listing, settings: str) -> bool:
    """Whether a run with these settings on these data came to its end."""
    if memory is None or memory["listing"] is None or not memory["concluded"]:
        return False
    return (memory["listing"]["digest"], memory["settings"]) == (listing["digest"], settings)


def hold_out(manifest: ManifestReference, *, store: str) -> ManifestReference:
    """The labelled validation and test samples as a manifest of their own, which champion and challenger score."""
    rows = read_manifest(manifest["uri"], digest=manifest["digest"])
    kept = (rows["excluded"].isna() & rows["label"].notna() & rows["split"].isin(["validation", "test"])).to_numpy(bool)
    uri, digest = write_named(filesystems.join(store, "manifests"), rows, **{"held-out": kept})["held-out"]
    tell_made(uri, name=f"held-out manifest {digest[:12]}", of=[manifest["uri"]], rows=int(kept.sum()))
    return ManifestReference(**{**manifest, "uri": uri, "digest": digest, "rows": int(kept.sum())})


def gather_archive(archive_uri: str, manifest: ManifestReference, *, store: str) -> RowsReference:
    """The rows that an archive is given: the manifest's, and those that the archive holds and the sources do not list any more.

    An archive only grows: a picture that is gone or has changed keeps its row, and is scored as long as its file can be read.
    """
    if not filesystems.exists(filesystems.join(archive_uri, "archive.json")):
        return RowsReference(uri=manifest["uri"], digest=manifest["digest"])
    rows = read_manifest(manifest["uri"], digest=manifest["digest"])
    listed = set(rows["sample_id"])
    lost = [held[~held["sample_id"].isin(listed)] for held in open_archive(archive_uri).iterate_rows()]
    if not any(map(len, lost)):
        return RowsReference(uri=manifest["uri"], digest=manifest["digest"])
    uri, digest = write_named(filesystems.join(store, "manifests"), pd.concat([rows, *lost], ignore_index=True), archive=slice(None))[
        "archive"
    ]
    tell_made(uri, name=f"manifest of the archive {digest[:12]}", of=[manifest["uri"]])
    return RowsReference(uri=uri, digest=digest)


def check_challenger(model: ModelReference, manifest: ManifestReference) -> None:
    """Refuse a challenger that was trained on other samples than those of a manifest.

    Raises:
        RetrainError: its card names another one.
        BundleError: no such bundle.
    """
    named = read_card(model["uri"], digest=model["digest"])["trained_on"]["manifest_digest"]
    if named != manifest["development_digest"]:
        raise RetrainError(
            f"the challenger {model['uri']} was trained on the development manifest {named[:12]}, and it would be compared on the test set "
            f"of {manifest['digest'][:12]}, whose own is {manifest['development_digest'][:12]}: compare models of one division of the data"
        )


def check_champion(champion: Champion, manifest: ManifestReference) -> None:
    """Refuse a champion that has seen the test set, and a challenger's samples that the champion was tested on.

    A test sample counts as seen when it, its subject, lesion, slide or group was trained on or chosen or calibrated by.

    Args:
        champion: with the manifest that it was trained on.
        manifest: of the challenger.

    Raises:
        RetrainError: names what is on both sides; or what the champion was trained on cannot be read.
    """
    theirs = _read_theirs(champion)
    ours = read_manifest(manifest["uri"], digest=manifest["digest"])
    learnt = theirs[theirs["split"].isin(["train", "validation"])]
    # as they are now: what joined the group of a sample that the champion knows is known with it
    known = ours[ours["sample_id"].isin(learnt["sample_id"])]
    _check_apart(
        pd.concat([learnt, known]), ours[ours["split"] == "test"], f"the champion {champion.uri} was trained", "the frozen test set"
    )
    developed = ours[ours["split"].isin(["train", "validation"])]
    _check_apart(developed, theirs[theirs["split"] == "test"], "the challenger is trained", "the champion's test set")


def _check_apart(learnt: pd.DataFrame, tested: pd.DataFrame, who: str, where: str) -> None:
    sides = [
        rows[rows["excluded"].isna().to_numpy(bool)].assign(split=split) for rows, split in ((learnt, "trained on"), (tested, "tested"))
    ]
    if leaks := check_splits(pd.concat(sides, ignore_index=True)):
        named = "; ".join(f"{leak.kind} {leak.key}" for leak in leaks[:_LEAKS_NAMED])
        raise RetrainError(
            f"{who} on samples of {where}: {len(leaks)} found, such as {named}. Their comparison would be no test; keep the split "
            "of these pictures (previous_manifest, or a split column in the source's table), or begin with a new store"
        )


def _read_theirs(champion: Champion) -> pd.DataFrame:
    trained_on = read_card(champion.uri, digest=champion.digest)["trained_on"]["manifest_digest"]
    if trained_on != champion.manifest.get("development_digest"):
        raise RetrainError(
            f"champion.json says that {champion.uri} was trained on the development manifest "
            f"{str(champion.manifest.get('development_digest'))[:12]}, its card says {trained_on[:12]}: one of them was changed"
        )
    try:
        return read_manifest(champion.manifest["uri"], digest=champion.manifest["digest"])
    except (ManifestError, FileNotFoundError, KeyError) as error:
        raise RetrainError(
            f"what the champion {champion.uri} was trained on cannot be read, and so not whether it has seen the test set: {error}. "
            "Put its manifest back from a copy"
        ) from None
