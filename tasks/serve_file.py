"""The file of deployments that `normascope serve` reads: a `prefect.yaml`, with what Prefect's has no place for under `normascope:`.

Stricter than Prefect, which ignores the keys that it does not know and finds a wrong schedule only when it is stored.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self

from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.events import DeploymentTriggerTypes
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

_TRIGGER: TypeAdapter[DeploymentTriggerTypes] = TypeAdapter(DeploymentTriggerTypes)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScheduleSpec(_Part):
    """When a deployment runs: one of `cron`, `interval` (seconds) and `rrule`, in a time zone."""

    cron: str | None = None
    interval: timedelta | None = None
    rrule: str | None = None
    timezone: str | None = None
    anchor_date: datetime | None = None
    day_or: bool | None = None
    active: bool = True
    parameters: dict[str, Any] = Field(default_factory=dict)
    slug: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(rule is not None for rule in (self.cron, self.interval, self.rrule)) != 1:
            raise ValueError("a schedule has exactly one of `cron`, `interval` and `rrule`")
        built = self.build()
        if self.active and isinstance(built, RRuleSchedule):
            _refuse_expired(built)
        return self

    def build(self) -> CronSchedule | IntervalSchedule | RRuleSchedule:
        """As Prefect's own schedule.

        Raises:
            ValueError: the rule, the time zone or the interval cannot be read; the message says what was given.
        """
        try:
            if self.cron is not None:
                return CronSchedule(cron=self.cron, timezone=self.timezone or "UTC", day_or=True if self.day_or is None else self.day_or)
            if self.interval is not None:
                anchor = {} if self.anchor_date is None else {"anchor_date": self.anchor_date}
                return IntervalSchedule(interval=self.interval, timezone=self.timezone or "UTC", **anchor)
            return RRuleSchedule(rrule=str(self.rrule), timezone=self.timezone or "UTC")
        except ValidationError as error:
            why = "; ".join(str(found["msg"]).removeprefix("Value error, ") for found in error.errors())
            raise ValueError(f"not a schedule: {self.cron or self.interval or self.rrule}: {why}") from None

    @property
    def shown(self) -> str:
        """For people: the rule and its time zone."""
        rule = f"cron {self.cron}" if self.cron else f"every {self.interval}" if self.interval else str(self.rrule)
        return f"{rule} ({self.timezone or 'UTC'})"


def _refuse_expired(schedule: RRuleSchedule) -> None:
    """Prefect takes a rule that has ended without a word, and never runs; one that it cannot read it takes too, and fails for ever."""
    try:
        coming = schedule.to_rrule().after(datetime.now(UTC))
    except ValueError as error:
        raise ValueError(f"not a schedule: {schedule.rrule}: {error}; an UNTIL without Z is in `timezone`") from None
    if coming is None:
        raise ValueError(f"the schedule has expired, nothing would ever run: {schedule.rrule}: give a later end, or set `active: false`")


class PoolSpec(_Part):
    """The work pool, and what its job template is given."""

    name: str = Field(min_length=1)
    work_queue_name: str | None = None
    job_variables: dict[str, Any] = Field(default_factory=dict)


class LimitSpec(_Part):
    """How many runs of a deployment at once, and what becomes of one more."""

    limit: int = Field(ge=1)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"
    grace_period_seconds: int | None = Field(default=None, ge=60)


class DeploymentSpec(_Part):
    """One deployment, with Prefect's keys."""

    name: str = Field(min_length=1)
    entrypoint: str = Field(pattern=r"^[\w./ -]+(:\w+|\.\w+)$", description="package.module.flow, or folder/file.py:flow")
    description: str | None = None
    version: str | None = None
    tags: tuple[str, ...] = ()
    parameters: dict[str, Any] = Field(default_factory=dict)
    schedules: tuple[ScheduleSpec, ...] = ()
    paused: bool = False
    concurrency_limit: LimitSpec | None = None
    triggers: tuple[dict[str, Any], ...] = Field(default=(), description="events that start a run, as Prefect writes them")
    work_pool: PoolSpec

    @field_validator("concurrency_limit", mode="before")
    @classmethod
    def _read_limit(cls, value: Any) -> Any:
        return {"limit": value} if isinstance(value, int) else value

    @field_validator("triggers")
    @classmethod
    def _check_triggers(cls, triggers: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for trigger in triggers:
            _TRIGGER.validate_python(dict(trigger))
        return triggers

    def build_triggers(self) -> list[DeploymentTriggerTypes]:
        """As Prefect's own triggers, those without a name named by what they wait for and what they start."""
        return [_TRIGGER.validate_python({"name": self._name_trigger(trigger), **trigger}) for trigger in self.triggers]

    def _name_trigger(self, trigger: dict[str, Any]) -> str:
        awaited = trigger.get("expect") or ["its trigger"]
        return f"normascope: {self.name} on {' or '.join([awaited] if isinstance(awaited, str) else awaited)}"


class OperationSpec(_Part):
    """What `normascope serve` sets up besides deployments.

    Attributes:
        limits: slots of global concurrency limits, by name.
        notify: `block type/block name` of a notification block that is told of failed and crashed runs; none when not given.
        lost_after: seconds without a heartbeat after which a running flow run counts as crashed; 0 leaves such runs alone. Flow runs
            send one every 180 s where Prefect's settings do not say otherwise, and whatever works on the server counts.
    """

    limits: dict[str, int] = Field(default_factory=lambda: {"gpu": 1})
    notify: str | None = Field(default=None, pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")
    lost_after: int = Field(default=600, ge=0)

    @field_validator("limits")
    @classmethod
    def _check_limits(cls, limits: dict[str, int]) -> dict[str, int]:
        if wrong := [name for name, slots in limits.items() if slots < 1]:
            raise ValueError(f"a limit has at least one slot: {', '.join(wrong)}")
        return limits

    @field_validator("lost_after")
    @classmethod
    def _check_lost_after(cls, seconds: int) -> int:
        if 0 < seconds < 10:
            raise ValueError("Prefect waits for what does not come at least 10 s")
        return seconds


class ServeFile(_Part):
    """The whole file; keys of Prefect's that `serve` does not need may stand there empty."""

    name: str | None = None
    definitions: Any = Field(default=None, description="for YAML anchors")
    build: None = None
    push: None = None
    pull: None = None
    deployments: tuple[DeploymentSpec, ...] = Field(min_length=1)
    normascope: OperationSpec = OperationSpec()

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [deployment.name for deployment in self.deployments]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two deployments have the same name: {', '.join(twice)}")
        if len(pools := sorted({deployment.work_pool.name for deployment in self.deployments})) > 1:
            raise ValueError(f"`serve` works for one work pool, and the deployments name several: {', '.join(pools)}")
        return self

    @property
    def pool(self) -> str:
        """Name of the work pool."""
        return self.deployments[0].work_pool.name
