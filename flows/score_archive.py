"""Manifest and trained models → an archive of scores, and the maps of its slides."""

from prefect import flow
from prefect.runtime import flow_run
from prefect.states import Cancelled
from prefect.task_runners import ThreadPoolTaskRunner

from storage import filesystems
from storage.leases import hold_lease
from tasks.archive_groups import Scoring, artifact_key, conclude, score_groups, show_failures
from tasks.archive_scoring import ArchiveScoringConfig, place_work, prepare_work
from tasks.archive_slides import assemble_slides
from tasks.cancel import watch_for_cancel
from tasks.execution import ExecutionConfig, stop_executor
from tasks.metrics import serve_metrics
from tasks.progress import publish_progress, show_progress
from tasks.references import ArchiveSummary, ModelReference, RowsReference
from tasks.settings import load_settings
from tasks.slide_maps import SlideMapConfig


@flow(name="score archive", flow_run_name="score {archive}", task_runner=ThreadPoolTaskRunner(max_workers=8))  # type: ignore[arg-type]
def score_archive(
    archive: str,
    manifest: RowsReference,
    models: dict[str, ModelReference],
    *,
    scoring: ArchiveScoringConfig = ArchiveScoringConfig(),
    slide_maps: SlideMapConfig = SlideMapConfig(),
    execution: ExecutionConfig = ExecutionConfig(),
) -> ArchiveSummary:
    """Score what of the manifest an archive lacks, with every model by its slot; one run at a time works on an archive.

    Cancelled in the UI it stops its workers and ends as cancelled, which for who called it here is `CancelledRun`.
    """
    key = artifact_key(archive)
    with hold_lease(filesystems.join(archive, "lease.json"), {"run": flow_run.get_name()}) as lease:
        work = prepare_work(archive, manifest, models, scoring, execution=execution)
        execution = place_work(work, execution)
        with (
            show_progress(f"score {', '.join(models)}", work.rows) as bar,
            publish_progress(bar, key=f"progress-{key}", what="images"),
            watch_for_cancel(str(flow_run.get_id()), lambda: stop_executor(execution)) as cancelled,
        ):
            run = Scoring(work, execution, lease, bar, cancelled)
            with serve_metrics(load_settings().metrics_port, run.read):
                score_groups(run)
                if not cancelled.is_set():
                    assemble_slides(work.archive, work.slots, slide_maps, execution=execution)
        show_failures(work.slots, key=f"failures-{key}")
        if cancelled.is_set():
            message = f"{bar.done:,} of {bar.total:,} images were done; the same command goes on from there"
            return Cancelled(message=message)  # type: ignore[return-value]
        return conclude(run)
