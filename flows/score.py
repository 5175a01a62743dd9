"""Manifest and models → score stores."""

from prefect import flow
from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.config import RunConfig
from tasks.progress import show_progress
from tasks.references import ManifestReference, ModelReference, StoreReference
from tasks.score import conclude_scoring, prepare_store, score_shards, shard_groups


@flow(name="score", flow_run_name="score {config.name}", task_runner=ThreadPoolTaskRunner(max_workers=4))  # type: ignore[arg-type]
def score(config: RunConfig, manifest: ManifestReference, models: list[ModelReference]) -> list[StoreReference]:
    """Score every sample with every model; shards that are there are not scored again."""
    stores = []
    for model in models:
        store = prepare_store(manifest, model, scoring=config.scoring, threads=config.execution.threads, store=config.store)
        with show_progress(f"score with {model['kind']}", manifest["rows"]) as bar:
            futures = [
                score_shards.submit(store, manifest, model, first=first, last=last, execution=config.execution, bar=bar)
                for first, last in shard_groups(store, config.scoring)
            ]
            for future in as_completed(futures):
                future.result()
        conclude_scoring(store, failed_share_max=config.failed_share_max)
        stores.append(store)
    return stores
