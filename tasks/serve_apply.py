"""What a file of deployments says, made so on a Prefect server: work pool, limits, deployments, automations. Twice is as once."""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect.automations import EventTrigger, Posture, ResourceSpecification
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.callables import parameter_schema
from prefect.utilities.templating import apply_values

from tasks.serve_file import DeploymentSpec, OperationSpec, ServeFile

FAILED_AUTOMATION = "normascope: tell of failed runs"
LOST_AUTOMATION = "normascope: runs killed without a trace have crashed"
_POOL_TYPE = "process"
_ENDED = ("Completed", "Failed", "Cancelled", "Crashed")


class ApplyError(ValueError):
    """What the file names does not exist, or does not fit the server; the message says what to do."""


@dataclass(frozen=True)
class Applied:
    """What now stands on the server.

    Attributes:
        lines: for people, one a deployment and an automation.
        strangers: deployments of the same work pool that the file does not name.
    """

    lines: tuple[str, ...]
    strangers: tuple[str, ...]


class _InFolder:
    """Prefect's storage protocol for code and data that are here already: a run works in the folder where `serve` was called."""

    pull_interval = None

    def __init__(self, folder: Path) -> None:
        self.destination = folder

    def set_base_path(self, path: Path) -> None:
        self.destination = path

    async def pull_code(self) -> None:
        return

    def to_pull_step(self) -> list[dict[str, Any]]:
        return [{"prefect.deployments.steps.set_working_directory": {"directory": str(self.destination)}}]


def apply_file(file: ServeFile, *, api_url: str, folder: Path) -> Applied:
    """Create or update on a server all that the file says.

    Args:
        file: the deployments.
        api_url: of the server; Prefect has read the environment when it was imported, which may have been before there was one.
        folder: where runs work, to which relative paths in parameters and entry points refer.

    Raises:
        ApplyError: no such flow, parameter or block, or a work pool of another type.
    """
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        _make_pool(client, file.pool)
        for name, slots in file.normascope.limits.items():
            client.upsert_global_concurrency_limit_by_name(name, slots)  # who asks strictly for a slot fails where there is no limit
        lines = [_apply_deployment(client, deployment, folder) for deployment in file.deployments]
        lines += [f"at once:    {name} {slots}" for name, slots in file.normascope.limits.items()]
        lines += _apply_automations(client, file.normascope)
        in_pool = client.read_deployments(work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[file.pool])))
    known = {deployment.name for deployment in file.deployments}
    return Applied(tuple(lines), tuple(sorted(found.name for found in in_pool if found.name not in known)))


def _make_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        client.create_work_pool(WorkPoolCreate(name=name, type=_POOL_TYPE))
    except ObjectAlreadyExists:
        kind = client.read_work_pool(name).type
        if kind != _POOL_TYPE:
            raise ApplyError(
                f"the work pool {name} is of type {kind}, and serve's worker of type {_POOL_TYPE}: name another pool"
            ) from None


def _apply_deployment(client: SyncPrefectClient, spec: DeploymentSpec, folder: Path) -> str:
    try:
        flow: Any = load_flow_from_entrypoint(_entrypoint(spec, folder), use_placeholder_flow=False)
    except Exception as error:  # whatever importing somebody's file raises
        raise ApplyError(f"deployment {spec.name}: cannot load the flow {spec.entrypoint}: {type(error).__name__}: {error}") from error
    parameters = _fill_in(spec.name, spec.parameters)
    schema = parameter_schema(flow)
    if unknown := sorted(set(parameters) - set(schema.properties)):
        known = ", ".join(schema.properties)
        raise ApplyError(f"deployment {spec.name}: {spec.entrypoint} has no parameter {', '.join(unknown)}; it has {known}")
    limit = spec.concurrency_limit
    deployment = RunnerDeployment(
        name=spec.name,
        flow_name=flow.name,
        entrypoint=spec.entrypoint,
        description=spec.description or flow.description,
        version=spec.version or flow.version,
        tags=list(spec.tags),
        parameters=parameters,
        paused=spec.paused,
        concurrency_limit=limit.limit if limit else None,
        concurrency_options=_options(spec),
        triggers=list(spec.build_triggers()),
        storage=_InFolder(folder),
        work_pool_name=spec.work_pool.name,
        work_queue_name=spec.work_pool.work_queue_name,
        job_variables=_fill_in(spec.name, spec.work_pool.job_variables),
    )
    deployment._parameter_openapi_schema = schema  # as `prefect deploy` sets it
    identifier: Any = deployment.apply(schedules=[_schedule(schedule) for schedule in spec.schedules])
    if not spec.schedules:  # Prefect takes none as "leave them"
        for schedule in client.read_deployment_schedules(identifier):
            client.delete_deployment_schedule(identifier, schedule.id)
    when = "; ".join(schedule.shown + ("" if schedule.active else ", off") for schedule in spec.schedules) or "by hand or event"
    return f"deployment: {flow.name}/{spec.name}: {when}" + (", paused" if spec.paused else "")


def _entrypoint(spec: DeploymentSpec, folder: Path) -> str:
    return str(folder / spec.entrypoint) if ":" in spec.entrypoint else spec.entrypoint


def _fill_in(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """`{{ $NAME }}` is the environment's NAME, as for Prefect; here one that is not set is an error."""
    filled: Any = apply_values(values, dict(os.environ), remove_notset=False)
    if "{{ $" in str(filled):
        raise ApplyError(f"deployment {name}: a variable of the environment is not set: {filled}")
    return dict(filled)


def _options(spec: DeploymentSpec) -> ConcurrencyOptions | None:
    limit = spec.concurrency_limit
    if limit is None:
        return None
    return ConcurrencyOptions(
        collision_strategy=ConcurrencyLimitStrategy(limit.collision_strategy), grace_period_seconds=limit.grace_period_seconds
    )


def _schedule(spec: Any) -> dict[str, Any]:
    extra = {key: value for key, value in (("parameters", spec.parameters), ("slug", spec.slug)) if value}
    return {"schedule": spec.build(), "active": spec.active, **extra}


def _apply_automations(client: SyncPrefectClient, spec: OperationSpec) -> list[str]:
    wanted = {FAILED_AUTOMATION: tell_of_failed(client, spec.notify), LOST_AUTOMATION: _close_lost(spec.lost_after)}
    lines = []
    for name, automation in wanted.items():
        found = client.read_automations_by_name(name)
        for superfluous in found[1:] if automation else found:
            client.delete_automation(superfluous.id)
        if automation is None:
            continue
        if found:
            client.update_automation(found[0].id, automation)
        else:
            client.create_automation(automation)
        lines.append(f"automation: {name.removeprefix('normascope: ')}")
    return lines


def tell_of_failed(client: SyncPrefectClient, block: str | None) -> AutomationCore | None:
    """An automation that sends failed and crashed runs to a notification block, `type/name`; none without a block.

    Raises:
        ApplyError: no such block on the server.
    """
    if block is None:
        return None
    kind, name = block.split("/")
    try:
        document = client.read_block_document_by_name(name, kind)
    except ObjectNotFound:
        raise ApplyError(
            f"no block {block} on the server, which `notify` names: make it in the UI under Blocks, or leave `notify` out"
        ) from None
    return AutomationCore(
        name=FAILED_AUTOMATION,
        description="Also of paused ones, which wait for an answer. Made by `normascope serve` from `notify` of its file.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.Paused"},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            SendNotification(
                block_document_id=document.id,
                subject="normascope: {{ flow_run.name }}: {{ flow_run.state.name }}",
                body="{{ flow.name }}: {{ flow_run.name }}: {{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
            )
        ],
    )


def _close_lost(lost_after: int) -> AutomationCore | None:
    """Prefect's "zombie" automation: a run that has sent a heartbeat, and then neither another one nor its end."""
    if lost_after == 0:
        return None
    beat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name=LOST_AUTOMATION,
        description="Made by `normascope serve` from `lost_after` of its file.",
        trigger=EventTrigger(
            after={beat},
            expect={beat, *(f"prefect.flow-run.{name}" for name in _ENDED)},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=lost_after),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                force=False,
                message=f"no heartbeat for {lost_after} s: the process was killed, or its machine",
            )
        ],
    )
