"""What a retraining tells: the name of its run, tables and a summary in the UI, events for automations, lines for the terminal."""

from collections.abc import Sequence
from typing import Any, Literal
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.runtime import flow_run
from typing_extensions import TypedDict

from storage import filesystems
from storage.champions import Champion
from tasks.archive_groups import artifact_key
from tasks.assets import tell_made
from tasks.references import ModelReference
from tasks.retrain import ArchivePlan, Listing, describe_listing
from tasks.retrain_decision import Comparison, as_markdown


class RetrainSummary(TypedDict):
    """What a retraining came to; of one that found nothing new the last three are None."""

    outcome: Literal["nothing new", "promoted", "kept"]
    reason: str
    data: str
    champion: ModelReference | None
    report_uri: str | None
    archive_uri: str | None
    drift_uri: str | None


def name_run(name: str, listing: Listing) -> None:
    """Give the flow run a name that says on which data it is, and tags to filter by."""
    tags = {*flow_run.get_tags(), "retrain", artifact_key(name)}
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.get_id()), name=f"retrain {name} on {describe_listing(listing)}", tags=sorted(tags))


def show_comparison(comparison: Comparison, *, name: str) -> None:
    """A table of champion against challenger, with intervals."""
    create_table_artifact(
        key="champion-against-challenger",
        table=comparison["table"],
        description=f"{name}: frozen test set; intervals over subjects, differences paired",
    )


def tell_promoted(store: str, champion: Champion) -> None:
    """An event, for automations, and the lineage of what is in use."""
    payload = {"uri": champion.uri, "digest": champion.digest, "kind": champion.kind, "by": champion.by}
    _emit("normascope.champion.promoted", store, {**payload, "reason": champion.evidence["reason"]})
    made_of = [champion.uri, champion.evidence["report"]]
    tell_made(filesystems.join(store, "champion.json"), name="champion", of=made_of, digest=champion.digest, by=champion.by)


def tell_drift(store: str, archive: ArchivePlan, found: Any) -> None:
    """An event where the stability index is beyond doubt above the plan's alarm, for automations."""
    if found["psi_low"] > archive.drift_above:
        _emit("normascope.drift.seen", store, {"archive": archive.into, "alarm": archive.drift_above, **found})


def tell_end(
    store: str, name: str, summary: RetrainSummary, comparison: Comparison | None = None, lineage: Sequence[str] = ()
) -> RetrainSummary:
    """The summary as Markdown and as an event.

    Args:
        store: of the retraining.
        name: of its configuration.
        summary: what it came to.
        comparison: champion against challenger; none where nothing was new.
        lineage: URIs in the order in which one was made of the other.
    """
    if summary["outcome"] == "nothing new":
        _emit("normascope.retrain.nothing-new", store, {"data": summary["data"]})
    else:
        _emit("normascope.retrain.finished", store, dict(summary))
    lines = [f"**{summary['outcome']}**: {summary['reason']}", "", f"* data: {summary['data']}"]
    if summary["champion"] is not None:
        lines.append(f"* in use: {_name(summary['champion'])}")
    links = {"report": summary["report_uri"], "drift of the archive": summary["drift_uri"]}
    # the path as text too: a browser opens no file from a page that came over http
    lines += [f"* [{what}]({filesystems.as_link(uri)}): {_as_code(_place(uri))}" for what, uri in links.items() if uri is not None]
    if lineage:
        made = " → ".join(_as_code(uri.removeprefix(store).lstrip("/")) for uri in lineage)
        lines.append(f"* lineage, in {_as_code(_place(store))}: {made}")
    if summary["archive_uri"] is not None:
        lines.append(f"* look at the archive: `normascope view {summary['archive_uri']}`")
    if comparison is not None:
        lines += ["", as_markdown(comparison)]
    create_markdown_artifact(key="retrain-summary", markdown="\n".join(lines), description=f"retrain {name}")
    return summary


def describe_retraining(summary: RetrainSummary) -> list[str]:
    """Lines for the terminal."""
    lines = [f"{summary['outcome']}: {summary['reason']}", f"data:       {summary['data']}"]
    if summary["champion"] is not None:
        lines.append(f"in use:     {_name(summary['champion'])}, {summary['champion']['uri']}")
    links = {"report": summary["report_uri"], "archive": summary["archive_uri"], "drift": summary["drift_uri"]}
    return lines + [f"{f'{what}:':<11} {filesystems.local_path(uri) or uri}" for what, uri in links.items() if uri is not None]


def _place(uri: str) -> str:
    return str(filesystems.local_path(uri) or uri)


def _as_code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"


def _name(model: ModelReference) -> str:
    return f"{model['kind']} {model['digest'][:12]}"


def _emit(event: str, store: str, payload: dict[str, Any]) -> None:
    resource = {"prefect.resource.id": f"normascope.store.{artifact_key(store)}", "prefect.resource.name": store}
    emit_event(event, resource=resource, payload=payload)
