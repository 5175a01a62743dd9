"""Which store of an archive a model fills, and what of it is to be scored. Nothing here asks Prefect or a cluster when there is no work."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from storage import filesystems
from storage.archives import Archive, append_manifest, open_archive
from storage.scores import FAILED, SCORED, ScoreStore, create_store, default_shard_rows, open_store
from tasks.arithmetic import Arithmetic, choose_arithmetic
from tasks.execution import ExecutionConfig, executor_for
from tasks.fingerprints import code_fingerprint
from tasks.models import detector_config, reference_model
from tasks.readers import cut_pieces, read_piece, read_records
from tasks.references import ModelReference, RowsReference
from tasks.score_shard import Limits, ShardJob, Target

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)")
_TRIED_SAMPLES = 64


class SlotTakenError(ValueError):
    """A slot holds the scores of another model."""


class ArchiveScoringConfig(BaseModel):
    """How an archive is scored; what is about a store counts when it is made and is kept in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    new_version: bool = Field(default=False, description="a model that is not the slot's gets a store beside it")
    shard_rows: int | None = Field(default=None, ge=1, description="samples of a shard; by the size of the maps when not given")
    batch_size: int | None = Field(default=None, ge=1, description="images scored at once; when not given, the fastest arithmetic is found")
    limits: Limits = Limits()


@dataclass(frozen=True)
class Slot:
    """A store of an archive and the model that fills it."""

    name: str
    version: int
    store: ScoreStore
    model: ModelReference

    @property
    def title(self) -> str:
        """As people read it."""
        return f"{self.name} v{self.version}"


@dataclass(frozen=True)
class Work:
    """The pending shards of an archive, each with the slots that lack it: (shard, slots), sorted."""

    archive: Archive
    slots: list[Slot]
    shards: list[tuple[int, list[Slot]]]
    limits: Limits

    @property
    def rows(self) -> int:
        """Rows to score; those that several models score count once."""
        return sum(self.rows_of(index) for index in range(len(self.shards)))

    def rows_of(self, index: int) -> int:
        """Rows of one of the shards."""
        shard, slots = self.shards[index]
        return len(slots[0].store.rows_of(shard))

    def job(self, index: int) -> ShardJob:
        """What a worker is told of one of the shards."""
        shard, slots = self.shards[index]
        return ShardJob(
            rows=RowsReference(uri=self.archive.uri, digest=self.archive.digest),
            shard=shard,
            targets=[Target(store_uri=slot.store.uri, model=slot.model, donors=[]) for slot in slots],
            isolate=False,
            limits=self.limits,
        )


def name_models(given: Sequence[str]) -> dict[str, ModelReference]:
    """Models by the slot that each fills, of BUNDLE or NAME=BUNDLE; without a name the detector's kind is it.

    Raises:
        ValueError: two models for one slot.
        BundleError: no complete bundle.
    """
    named: dict[str, ModelReference] = {}
    for text in given:
        match = _NAMED.fullmatch(text)
        model = reference_model(filesystems.absolute(match[2] if match else text))
        name = match[1] if match else model["kind"]
        if name in named:
            raise ValueError(
                f"two models would fill the slot {name}: {named[name]['uri']} and {model['uri']}. Give them names: "
                f"--model first={named[name]['uri']} --model second={model['uri']}"
            )
        named[name] = model
    return named


def reference_rows(manifest_uri: str) -> RowsReference:
    """A manifest as it is there now."""
    return RowsReference(uri=manifest_uri, digest=filesystems.sha256_of(manifest_uri))


def find_finished(archive_uri: str, manifest_digest: str, models: dict[str, ModelReference]) -> list[Slot] | None:
    """The slots of the models, if an archive holds the manifest, nothing is pending and slides have maps; None where there is work.

    Only archive.json, attributes and listings are read.
    """
    if not filesystems.exists(filesystems.join(archive_uri, "archive.json")):
        return None
    archive = open_archive(archive_uri)
    if archive.manifests[-1]["digest"] != manifest_digest:
        return None
    slots = []
    for name, model in models.items():
        version = _find_version(archive, name, model)
        if version is None:
            return None
        slots.append(Slot(name, version, open_store(archive.scores_uri(name, version)), model))
    if any(slot.store.rows != archive.rows or not _has_slides(archive, slot) or slot.store.pending_shards() for slot in slots):
        return None
    return slots


def prepare_work(
    archive_uri: str,
    manifest: RowsReference,
    models: dict[str, ModelReference],
    config: ArchiveScoringConfig,
    *,
    execution: ExecutionConfig,
) -> Work:
    """Append the manifest to the archive, make or grow the stores, and list what is pending. To be called by who holds the lease.

    Raises:
        ArchiveError: the manifest does not continue the archive.
        SlotTakenError: a slot holds the scores of another model, and no new version is asked for.
    """
    versions = _choose_versions(archive_uri, models, config)  # before anything is written
    archive = append_manifest(archive_uri, manifest["uri"], manifest["digest"])
    there = {name: archive.scores_uri(name, version) for name, version in versions.items() if version in archive.slots().get(name, [])}
    stores = {name: open_store(uri) for name, uri in there.items()}
    for store in stores.values():
        if store.rows < archive.rows:
            store.grow(archive.rows, notes={"archive_digest": archive.digest})
    maps_px = {name: detector_config(model).map_size_px for name, model in models.items() if name not in stores}
    # stores of one run are cut alike where they can be, so that each picture is read once
    cuts = [store.shard_rows for store in stores.values()] or [config.shard_rows or min(map(default_shard_rows, maps_px.values()))]
    for name, size_px in maps_px.items():
        uri = archive.scores_uri(name, versions[name])
        arithmetic = _choose_arithmetic(models[name], archive, config, execution)
        stores[name] = _create(uri, archive, models[name], map_size_px=size_px, shard_rows=min(cuts), arithmetic=arithmetic)
    slots = [Slot(name, versions[name], stores[name], model) for name, model in models.items()]
    return Work(archive, slots, _list_pending(slots), config.limits)


def count_rows(slot: Slot) -> dict[str, int]:
    """What became of the rows of a slot."""
    status = slot.store.status()
    return {"scored": int((status == SCORED).sum()), "failed": int((status == FAILED).sum()), "samples": len(status)}


def first_failures(slot: Slot, *, most: int) -> Iterator[dict[str, object]]:
    """The first failed samples of a slot: slot, row, sample_id, reason."""
    failed = np.flatnonzero(slot.store.status() == FAILED)[:most]
    for shard in np.unique(failed // slot.store.shard_rows).tolist():
        for failure in slot.store.read_record(shard)["failures"]:
            if failure["row"] <= failed[-1]:
                yield {"slot": slot.title, **{name: failure[name] for name in ("row", "sample_id", "reason")}}


def note_slides(archive: Archive, slot: Slot, slides: int) -> None:
    """Say that the slides of an archive as it is now, of which there may be none, have their maps."""
    filesystems.write_json(_note_uri(archive, slot), {"archive_digest": archive.digest, "slides": slides})


def place_work(work: Work, execution: ExecutionConfig) -> ExecutionConfig:
    """Where the work runs: as configured, on this machine's GPUs where a store was begun on one."""
    on_gpu = any(slot.store.attributes["arithmetic"]["device"] == "cuda" for slot in work.slots)
    if execution.kind != "local" or execution.resources or not on_gpu:
        return execution
    return execution.model_copy(update={"resources": {"GPU": 1}})


def _has_slides(archive: Archive, slot: Slot) -> bool:
    try:
        return bool(filesystems.read_json(_note_uri(archive, slot))["archive_digest"] == archive.digest)
    except FileNotFoundError:
        return False


def _note_uri(archive: Archive, slot: Slot) -> str:
    return filesystems.join(archive.slides_uri(slot.name, slot.version), "slides.json")


def _list_pending(slots: list[Slot]) -> list[tuple[int, list[Slot]]]:
    """Shards of stores that are cut alike stand together; others are read again."""
    lacking: dict[tuple[int, int], list[Slot]] = {}
    for slot in slots:
        for shard in slot.store.pending_shards():
            lacking.setdefault((slot.store.shard_rows, shard), []).append(slot)
    return [(shard, lacking[cut, shard]) for cut, shard in sorted(lacking)]


def _find_version(archive: Archive, name: str, model: ModelReference) -> int | None:
    """The newest version of a slot that this model has filled or began to."""
    for version in reversed(archive.slots().get(name, [])):
        if open_store(archive.scores_uri(name, version)).attributes["model_digest"] == model["digest"]:
            return version
    return None


def _choose_versions(archive_uri: str, models: dict[str, ModelReference], config: ArchiveScoringConfig) -> dict[str, int]:
    if not filesystems.exists(filesystems.join(archive_uri, "archive.json")):
        return dict.fromkeys(models, 1)
    archive = open_archive(archive_uri)
    return {name: _choose_version(archive, name, model, config) for name, model in models.items()}


def _choose_version(archive: Archive, name: str, model: ModelReference, config: ArchiveScoringConfig) -> int:
    if (version := _find_version(archive, name, model)) is not None:
        return version
    versions = archive.slots().get(name, [])
    if versions and not config.new_version:
        theirs = open_store(archive.scores_uri(name, versions[-1])).attributes
        raise SlotTakenError(
            f"{name} v{versions[-1]} of {archive.uri} holds scores of the model {theirs['model_digest'][:12]} ({theirs['model_uri']}), and "
            f"{model['uri']} is {model['digest'][:12]}. Scores are never mixed: --new-version begins v{versions[-1] + 1} beside them, "
            f"--model NAME={model['uri']} a slot of its own"
        )
    return max(versions, default=0) + 1


def _create(
    uri: str, archive: Archive, model: ModelReference, *, map_size_px: int | None, shard_rows: int, arithmetic: Arithmetic
) -> ScoreStore:
    identity = {"model_digest": model["digest"], "detector": model["kind"], "arithmetic": arithmetic.model_dump(mode="json")}
    # code is noted and not compared: an archive that takes days outlives an upgrade of code that has nothing to do with it
    notes = {
        "model_uri": model["uri"],
        "archive_uri": archive.uri,
        "archive_digest": archive.digest,
        "code": code_fingerprint("tasks.score_shard"),
    }
    return create_store(uri, rows=archive.rows, map_size_px=map_size_px, shard_rows=shard_rows, attributes=identity, notes=notes)


def _choose_arithmetic(model: ModelReference, archive: Archive, config: ArchiveScoringConfig, execution: ExecutionConfig) -> Arithmetic:
    """Tried where the work will run, on the first samples of the archive."""
    if config.batch_size is not None:
        device: Literal["cpu", "cuda"] = "cuda" if "GPU" in execution.resources else "cpu"
        return Arithmetic(batch_size=config.batch_size, threads=execution.threads, device=device)
    if execution.kind == "local" and not execution.resources and torch.cuda.device_count():
        execution = execution.model_copy(update={"resources": {"GPU": 1}})
    rows = RowsReference(uri=archive.uri, digest=archive.digest)
    return executor_for(execution).run(try_arithmetic, model, rows, min(_TRIED_SAMPLES, archive.rows), execution.threads)


def try_arithmetic(model: ModelReference, rows: RowsReference, count: int, threads: int) -> Arithmetic:
    """The fastest arithmetic on this machine for the first rows; the detector's own where none of them can be read."""
    detector = detector_config(model)
    records = read_records(rows, 0, count)
    pieces = cut_pieces(records, range(count), [detector.input_size_px])
    samples = [sample for piece in pieces for sample in read_piece(records, piece, [detector.input_size_px])]
    pixels = [sample[detector.input_size_px] for sample in samples if not isinstance(sample, str)]
    if not pixels:
        return Arithmetic(batch_size=detector.batch_size, threads=threads)
    return choose_arithmetic(model, np.stack(pixels), threads=threads)
