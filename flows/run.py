"""The whole pipeline: curate → train → score → evaluate."""

from prefect import flow

from flows.config import RunConfig
from flows.curate import curate
from flows.evaluate import evaluate
from flows.score import score
from flows.train import train
from tasks.heartbeats import no_heartbeats
from tasks.references import ReportReference


@flow(name="run", flow_run_name="run {config.name}")
def run(config: RunConfig) -> ReportReference:
    """Run the four flows."""
    with no_heartbeats():
        manifest = curate(config)
        models = train(config, manifest)
        stores = score(config, manifest, models)
        return evaluate(config, manifest, models, stores)
