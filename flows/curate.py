"""Sources → manifest."""

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.config import RunConfig
from storage import filesystems
from tasks.curate import assemble_manifest, count_rows, describe_tables, prepare_stain, tabulate, tell_troubles
from tasks.paint import paint_items
from tasks.progress import show_progress
from tasks.references import ManifestReference
from tasks.survey import deal_batches, survey


@flow(name="curate", flow_run_name="curate {config.name}", task_runner=ThreadPoolTaskRunner(max_workers=8))  # type: ignore[arg-type]
def curate(config: RunConfig) -> ManifestReference:
    """Fingerprint every file, tabulate slides and pictures, find duplicates, split by group, write the manifest."""
    items = survey(config.source, store=config.store, named=config.tiling.by_dataset)
    if config.paint is not None:
        items = paint_items(items, paint=config.paint, store=config.store)
    batches = deal_batches(items, store=config.store)
    del items  # of a large archive as much as its manifest and more
    stain = prepare_stain(config.curation)
    futures = [
        tabulate.submit(batch, tiling=config.tiling, curation=config.curation, stain=stain, store=config.store, execution=config.execution)
        for batch in batches
    ]
    with show_progress("curate", sum(batch["items"] for batch in batches)) as bar:
        for future in as_completed(futures):
            bar.advance(future.result()["items"])
    tables = [future.result() for future in futures]
    tell_troubles(tables)
    create_table_artifact(
        key="curation-by-file",
        table=describe_tables(tables),
        description=f"{config.name}: what became of each slide and each batch of pictures",
    )
    manifest: ManifestReference = assemble_manifest(
        tables,
        split=config.split,
        curation=config.curation,
        previous_manifest=config.previous_manifest,
        previous_digest=filesystems.sha256_of(config.previous_manifest) if config.previous_manifest is not None else None,
        failed_share_max=config.failed_share_max,
        store=config.store,
    )
    counts, flags = count_rows(manifest)
    create_table_artifact(
        key="curation-counts", table=counts, description=f"{config.name}: samples by data set, split, label and reason; {flags}"
    )
    return manifest
