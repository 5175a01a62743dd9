"""Score stores → metrics with intervals and the report."""

from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact

from flows.config import RunConfig
from storage import filesystems
from tasks.evaluate import evaluate_store
from tasks.references import EvaluationReference, ManifestReference, ModelReference, ReportReference, StoreReference
from tasks.report import summarise, write_report
from tasks.score import conclude_scoring


@flow(name="evaluate", flow_run_name="evaluate {config.name}")
def evaluate(config: RunConfig, manifest: ManifestReference, models: list[ModelReference], stores: list[StoreReference]) -> ReportReference:
    """Measure every detector on the test split and write the report."""
    evaluations = [measure_model(config, store, manifest, model) for store, model in zip(stores, models, strict=True)]
    report: ReportReference = write_report(
        config.name,
        manifest,
        models,
        stores,
        evaluations,
        notice=config.shown_notice,
        configuration=config.model_dump(mode="json"),
        bootstrap=config.evaluation.bootstrap,
        store=config.store,
    )
    create_markdown_artifact(
        key="summary", markdown=summarise(evaluations, notice=config.shown_notice), description=f"{config.name}: test split"
    )
    place = str(filesystems.local_path(report["html_uri"]) or report["html_uri"])  # shown: browsers open no file from a page of http
    create_link_artifact(
        key="report", link=filesystems.as_link(report["html_uri"]), link_text=place, description=f"{config.name}: where the report is"
    )
    return report


def measure_model(config: RunConfig, store: StoreReference, manifest: ManifestReference, model: ModelReference) -> EvaluationReference:
    """Prove that the test split is scored as far as the configuration asks, then measure it; steps of the flow that calls."""
    outcome = conclude_scoring(store, failed_share_max=config.failed_share_max)
    evaluation: EvaluationReference = evaluate_store(
        store, manifest, model, outcome, evaluation=config.evaluation, execution=config.execution, root=config.store
    )
    return evaluation
