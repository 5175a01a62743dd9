"""Source → manifest."""

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.config import RunConfig
from tasks.curate import assemble_manifest, survey, tabulate
from tasks.paint import paint_items
from tasks.progress import show_progress
from tasks.references import ManifestReference


@flow(name="curate", flow_run_name="curate {config.name}", task_runner=ThreadPoolTaskRunner(max_workers=8))  # type: ignore[arg-type]
def curate(config: RunConfig) -> ManifestReference:
    """Fingerprint every file, tabulate each picture or slide, split by subject, write the manifest."""
    items = survey(config.source, store=config.store)
    if config.paint is not None:
        items = paint_items(items, paint=config.paint, store=config.store)
    futures = [tabulate.submit(item, tiling=config.tiling, store=config.store, execution=config.execution) for item in items]
    with show_progress("curate", len(futures)) as bar:
        for _ in as_completed(futures):
            bar.advance()
    tables = [future.result() for future in futures]
    create_table_artifact(
        key="curation",
        table=[{name: table[name] for name in ("name", "rows", "excluded", "note")} for table in tables],
        description="Rows by picture",
    )
    manifest: ManifestReference = assemble_manifest(
        tables, split=config.split, failed_share_max=config.failed_share_max, store=config.store
    )
    return manifest
