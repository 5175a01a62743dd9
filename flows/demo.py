"""Build the demo's slides (painted anomalies in assembled slides of real tissue), then run the whole pipeline on them."""

from prefect import flow
from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.config import RunConfig
from flows.run import run
from methods.detectors.autoencoder import AutoencoderConfig
from methods.detectors.patchcore import PatchCoreConfig
from storage import filesystems
from storage.datasets.folder import FolderSource
from tasks.demo import NOTICE, build_slide, list_slides, plan_slides
from tasks.execution import ExecutionConfig
from tasks.heartbeats import no_heartbeats
from tasks.make_slide import SlidePlan
from tasks.progress import show_progress
from tasks.references import ReportReference
from tasks.train import TrainingConfig


@flow(name="demo (painted anomalies)", flow_run_name="{config.name}", task_runner=ThreadPoolTaskRunner(max_workers=8))  # type: ignore[arg-type]
def demo(config: RunConfig, plans: list[SlidePlan]) -> ReportReference:
    """Build what is missing of the slides and run the pipeline."""
    folder = filesystems.join(config.store, "slides")
    futures = [build_slide.submit(plan, folder=folder, execution=config.execution) for plan in plans]
    with show_progress("build slides", len(futures)) as bar:
        for _ in as_completed(futures):
            bar.advance()
    list_slides(plans, [future.result() for future in futures], folder=folder)
    with no_heartbeats():
        return run(config)


def demo_config(*, store: str, quick: bool, execution: ExecutionConfig) -> tuple[RunConfig, list[SlidePlan]]:
    """The demo's configuration and the slides it is about; small enough for three minutes on two cores, with `quick` for one."""
    config = RunConfig(
        name="demo quick - painted anomalies" if quick else "demo - painted anomalies",
        store=filesystems.absolute(store),
        source=(FolderSource(path=filesystems.join(filesystems.absolute(store), "slides", "slides.csv")),),
        detectors=(PatchCoreConfig(memory_size=1024 if quick else 2048), AutoencoderConfig(epochs=2 if quick else 3)),
        training=TrainingConfig(samples_per_subject=16 if quick else 40, selection_samples=32 if quick else 100),
        execution=execution,
        notice=NOTICE,
    )
    return config, plan_slides(quick=quick)
