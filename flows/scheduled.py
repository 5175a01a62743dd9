"""Flows as deployments start them: their parameters are what a person writes in a file or in the UI, names and paths."""

from prefect import flow
from prefect.events import emit_event
from prefect.runtime import flow_run

from flows.drift import drift
from flows.score_archive import score_archive
from storage import filesystems
from tasks.archive_groups import describe_summary
from tasks.archive_scoring import find_finished, name_models, reference_rows
from tasks.drift import describe_drift
from tasks.drift_sides import parse_rows
from tasks.execution import parse_execution
from tasks.heartbeats import no_heartbeats
from tasks.logs import log_as_set

DRIFT_SEEN = "normascope.drift.seen"


@flow(name="score archive on schedule", flow_run_name="score {archive} on schedule")
def score_archive_scheduled(archive: str, manifest: str, models: list[str], *, execution: str = "local") -> list[str]:
    """Score what an archive lacks of a manifest.

    Args:
        archive: folder or s3://bucket/prefix of the archive's scores.
        manifest: Parquet or CSV, ours or not.
        models: `BUNDLE` or `NAME=BUNDLE`, each a trained model.
        execution: `local`, `process`, or tcp://host:port of a Dask scheduler.

    Returns:
        One line a model: what is scored, what failed.

    Raises:
        ValueError: no such manifest, model or execution.
    """
    log_as_set()
    place, rows, named = filesystems.absolute(archive), reference_rows(filesystems.absolute(manifest)), name_models(models)
    if finished := find_finished(place, rows["digest"], named):
        return [f"{slot.title}: all {slot.store.rows} samples are done, nothing to do: {slot.store.uri}" for slot in finished]
    with no_heartbeats():
        summary = score_archive(place, rows, named, execution=parse_execution(execution))
    return list(describe_summary(summary))


@flow(name="drift on schedule", flow_run_name="drift {archive} on schedule")
def drift_scheduled(archive: str, reference: str, *, slot: str | None = None, rows: str = ":", alarm_above: float = 0.25) -> list[str]:
    """Compare an archive's scores with a reference, and emit `normascope.drift.seen` where they have drifted.

    Args:
        archive: what `normascope score --into` wrote.
        reference: a score store, an archive, or the same archive.
        slot: of the archive, where several have a model of the reference.
        rows: FIRST:STOP of the archive.
        alarm_above: the event is emitted where the lower end of the stability index's interval is above; 0.25 is the customary
            "major shift".

    Returns:
        The lines that `normascope drift` prints.
    """
    log_as_set()
    place = filesystems.absolute(archive)
    with no_heartbeats():
        found = drift(place, filesystems.absolute(reference), slot=slot, rows=parse_rows(rows))
    if found["psi_low"] > alarm_above:
        emit_event(
            DRIFT_SEEN,
            resource={"prefect.resource.id": f"normascope.archive.{place}", "prefect.resource.name": place},
            related=[{"prefect.resource.id": f"prefect.flow-run.{flow_run.get_id()}", "prefect.resource.role": "flow-run"}],
            payload={"psi": found["psi"], "psi_low": found["psi_low"], "alarm_above": alarm_above},
        )
    return list(describe_drift(found))
