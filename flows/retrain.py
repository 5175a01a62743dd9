"""New data → challenger → against the champion on a frozen test set → promoted or not → the archive scored, its drift."""

from pathlib import Path
from typing import Any

from prefect import flow, tags
from prefect.runtime import flow_run

from flows.approve import approve
from flows.config import ConfigError, RunConfig, load_config, read_yaml
from flows.curate import curate
from flows.drift import drift
from flows.evaluate import evaluate, measure_model
from flows.score import score
from flows.score_archive import score_archive
from flows.train import train
from storage import filesystems
from storage.champions import Champion, Found, check_bundle, find_champion, promote, was_rolled_back
from storage.leases import hold_lease
from tasks.heartbeats import no_heartbeats
from tasks.logs import log_as_set
from tasks.references import ManifestReference, ModelReference
from tasks.retrain import (
    ArchivePlan,
    Listing,
    Memory,
    RetrainPlan,
    check_challenger,
    check_champion,
    describe_listing,
    digest_settings,
    gather_archive,
    hold_out,
    is_nothing_new,
    look_for_data,
    read_memory,
    write_memory,
)
from tasks.retrain_decision import Judged, Verdict, compare, conclude_answer, decide, describe_evidence, first_metric
from tasks.retrain_story import RetrainSummary, name_run, show_comparison, tell_drift, tell_end, tell_promoted


@flow(name="retrain", flow_run_name="retrain {config.name}")
def retrain(config: RunConfig, plan: RetrainPlan) -> RetrainSummary:
    """Train a challenger where there are new data, promote it where evidence or a person says so, score the archive.

    One run at a time works on a store. Where a step fails the champion stays, and the next run goes on from the steps that are done.
    """
    return _retrain(config, plan)


@flow(name="scheduled retrain", flow_run_name="retrain {config}")
def retrain_scheduled(config: str) -> RetrainSummary:
    """What a schedule starts: `retrain` with the YAML file at a path, as it is then."""
    log_as_set()
    return _retrain(*load_retrain(Path(config)))


def load_retrain(path: Path) -> tuple[RunConfig, RetrainPlan]:
    """Read a run's YAML file and its section `retrain`; paths are relative to the file.

    Raises:
        ConfigError: no file, no YAML, an unknown key, a wrong value, several detectors.
    """
    plan = read_yaml(path, RetrainPlan, prepare=lambda values: _place_archive(path.parent, values.get("retrain") or {}))
    config = load_config(path)
    if len(config.detectors) != 1:
        raise ConfigError(f"{path}: a store has one champion; `detectors` has {len(config.detectors)}, choose one")
    return config, plan


def _place_archive(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    archive = values.get("archive")
    if not isinstance(archive, dict) or not isinstance(into := archive.get("into"), str) or "://" in into:
        return values
    return {**values, "archive": {**archive, "into": str((folder / Path(into).expanduser()).resolve())}}


def _retrain(config: RunConfig, plan: RetrainPlan) -> RetrainSummary:
    store = config.store
    with hold_lease(filesystems.join(store, "retrain", "lease.json"), {"run": flow_run.get_name()}), no_heartbeats():
        before = find_champion(store)
        if before is not None:
            check_bundle(before.pointer.champion)
        memory, settings = read_memory(store), digest_settings(config.model_dump(mode="json"), plan)
        listing = look_for_data(config.source, store=store, before=memory["listing"] if memory else None)
        name_run(config.name, listing)
        if is_nothing_new(memory, listing, settings):
            return tell_end(store, config.name, _summarise("nothing new", "the last run was on the same data", listing, before))
        manifest, challenger = _train(config, memory, before)
        judged = _judge(config, plan, manifest, challenger, before)
        verdict = _decide(config, plan, judged, challenger, before)
        # before the champion changes: whatever happens next, no later run deals the samples that it was trained on anew
        write_memory(store, Memory(listing=memory["listing"] if memory else None, settings=settings, manifest=manifest, concluded=False))
        if verdict.promote:
            _promote(config, plan, verdict, judged, challenger, manifest, listing, before)
        summary = _summarise("promoted" if verdict.promote else "kept", verdict.reason, listing, find_champion(store))
        summary["report_uri"] = judged.report["html_uri"]
        if plan.archive is not None and summary["champion"] is not None:
            summary["archive_uri"] = plan.archive.into
            summary["drift_uri"] = _rescore(config, plan.archive, manifest, summary["champion"], judged)
        write_memory(store, Memory(listing=listing, settings=settings, manifest=manifest, concluded=True))
        lineage = (manifest["uri"], challenger["uri"], judged.stores[0]["uri"], judged.report["html_uri"])
        return tell_end(store, config.name, summary, judged.comparison, lineage)


def _train(config: RunConfig, memory: Memory | None, before: Found | None) -> tuple[ManifestReference, ModelReference]:
    """Curate what is there, old samples in their old splits, prove that the champion has not seen the test set, train the challenger."""
    grown = config if memory is None else config.model_copy(update={"previous_manifest": memory["manifest"]["uri"]})
    manifest = curate(grown)
    if before is not None:
        check_champion(before.pointer.champion, manifest)
    (challenger,) = train(grown, manifest)
    check_challenger(challenger, manifest)
    return manifest, challenger


def _judge(config: RunConfig, plan: RetrainPlan, manifest: ManifestReference, challenger: ModelReference, before: Found | None) -> Judged:
    """Score validation and test with both, and compare them on the test set; a challenger that is the champion is scored alone."""
    models = [challenger]
    if before is not None and before.pointer.champion.digest != challenger["digest"]:
        champion = before.pointer.champion
        models.append(ModelReference(uri=champion.uri, digest=champion.digest, kind=champion.kind))
    held_out = hold_out(manifest, store=config.store)
    stores = score(config, held_out, models)
    report = evaluate(config, held_out, models, stores)
    evaluations = [  # from the cache: the report's
        measure_model(config, store, held_out, model) for store, model in zip(stores, models, strict=True)
    ]
    metric = plan.promotion.metric if before is not None else first_metric(plan.promotion)
    other = evaluations[1] if len(models) == 2 else None
    comparison = compare(evaluations[0], other, metric=metric, coverage=config.evaluation.bootstrap.level)
    show_comparison(comparison, name=config.name)
    return Judged(comparison, report, [evaluation["uri"] for evaluation in evaluations], stores)


def _decide(config: RunConfig, plan: RetrainPlan, judged: Judged, challenger: ModelReference, before: Found | None) -> Verdict:
    if before is not None and before.pointer.champion.digest == challenger["digest"]:
        return Verdict(False, "the challenger is the champion: no training sample and no setting has changed since it was trained")
    verdict = decide(judged.comparison, plan.promotion)
    if before is not None and was_rolled_back(before.pointer, challenger["digest"]):
        verdict = Verdict(False, f"this model was in use and was rolled back; {verdict.reason}")
    if plan.promotion.decided_by == "evidence":
        return verdict
    question = f"{config.name}: put {challenger['kind']} {challenger['digest'][:12]} into use?"
    with tags("approval"):
        answer = approve(
            question,
            describe_evidence(judged.comparison, verdict),
            recommended=verdict.promote,
            answer_within_h=plan.promotion.answer_within_h,
        )
    return conclude_answer(answer, verdict)


def _promote(
    config: RunConfig,
    plan: RetrainPlan,
    verdict: Verdict,
    judged: Judged,
    challenger: ModelReference,
    manifest: ManifestReference,
    listing: Listing,
    before: Found | None,
) -> None:
    evidence = {
        "reason": verdict.reason,
        **{name: judged.comparison[name] for name in ("metric", "challenger", "champion", "difference")},
        "rule": plan.promotion.model_dump(mode="json"),
        "evaluations": judged.evaluations,
        "report": judged.report["html_uri"],
        "data": describe_listing(listing),
    }
    champion = Champion(**challenger, manifest=dict(manifest), by=plan.promotion.decided_by, evidence=evidence)
    tell_promoted(config.store, promote(config.store, champion, over=before).champion)


def _rescore(config: RunConfig, archive: ArchivePlan, manifest: ManifestReference, champion: ModelReference, judged: Judged) -> str:
    """Score what the archive lacks with the model in use, a new one in a version of its own; gives the drift page's URI."""
    (reference,) = (store["uri"] for store in judged.stores if store["model_digest"] == champion["digest"])
    rows = gather_archive(archive.into, manifest, store=config.store)
    scoring = archive.scoring.model_copy(update={"new_version": True})
    score_archive(archive.into, rows, {archive.slot: champion}, scoring=scoring, execution=config.execution)
    found = drift(archive.into, reference, slot=archive.slot, config=archive.drift)
    tell_drift(config.store, archive, found)
    return str(found["html_uri"])


def _summarise(outcome: Any, reason: str, listing: Listing, found: Found | None) -> RetrainSummary:
    champion = None if found is None else found.pointer.champion
    return RetrainSummary(
        outcome=outcome,
        reason=reason,
        data=describe_listing(listing),
        champion=None if champion is None else ModelReference(uri=champion.uri, digest=champion.digest, kind=champion.kind),
        report_uri=None,
        archive_uri=None,
        drift_uri=None,
    )
