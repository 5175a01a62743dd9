"""A scored archive against a reference → how far its scores have drifted."""

from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from methods.evaluation.drift import DriftConfig
from storage import filesystems
from tasks.drift import DriftReference, describe_drift, measure_drift, tabulate_groups
from tasks.drift_sides import find_sides


@flow(name="drift", flow_run_name="drift {archive}")
def drift(
    archive: str,
    reference: str,
    *,
    slot: str | None = None,
    rows: tuple[int, int | None] = (0, None),
    config: DriftConfig = DriftConfig(),
) -> DriftReference:
    """Compare what of an archive is scored with a reference; nothing that was compared before is compared again."""
    of_reference, of_archive = find_sides(archive, reference, slot=slot, rows=rows)
    found: DriftReference = measure_drift(of_reference, of_archive, config=config, root=archive)
    create_markdown_artifact(
        key="drift", markdown="\n".join(f"* {line}" for line in describe_drift(found)), description=of_archive["title"]
    )
    if groups := tabulate_groups(found):
        create_table_artifact(key="drift-by-source", table=groups, description=of_archive["title"])
    create_link_artifact(key="drift-page", link=str(filesystems.as_link(found["html_uri"])), link_text="HTML page")
    return found
