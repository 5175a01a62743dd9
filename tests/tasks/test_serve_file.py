import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from tasks.serve_file import ServeFile
from tasks.yaml_files import ConfigError, read_yaml

SHIPPED = Path(__file__).parents[2] / "deploy" / "prefect.yaml"


def write(folder: Path, **changed: Any) -> Path:
    deployment = {"name": "weekly", "entrypoint": "flows.drift.drift", "work_pool": {"name": "normascope"}, **changed}
    path = folder / "prefect.yaml"
    path.write_text(yaml.safe_dump({"deployments": [deployment]}))
    return path


def test_schedules_are_read_as_prefects_own(tmp_path: Path) -> None:
    schedules = [{"cron": "0 3 * * 0", "timezone": "Europe/Berlin"}, {"interval": 90, "active": False}]
    read = read_yaml(write(tmp_path, schedules=schedules), ServeFile).deployments[0].schedules
    cron, interval = (schedule.build() for schedule in read)
    assert isinstance(cron, CronSchedule)
    assert (cron.cron, cron.timezone) == ("0 3 * * 0", "Europe/Berlin")
    assert isinstance(interval, IntervalSchedule)
    assert interval.interval.total_seconds() == 90


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"schedulles": []}, r"schedulles: unknown key; did you mean schedules\?"),
        ({"schedules": [{"cron": "61 3 * * 0"}]}, r"schedules\.0.*not a schedule: 61 3"),
        ({"schedules": [{"cron": "0 3 * * 0", "interval": 60}]}, r"exactly one of `cron`, `interval` and `rrule`"),
        ({"schedules": [{"interval": 0}]}, r"not a schedule"),
        ({"schedules": [{"cron": "0 3 * * 0", "timezone": "Mars/Olympus"}]}, r"not a schedule.*timezone"),
        ({"schedules": [{"rrule": "FREQ=DAILY;UNTIL=20200301T000000"}]}, r"has expired.*later end, or set `active: false`"),
        ({"schedules": [{"rrule": "DTSTART:20200101T000000\nRRULE:FREQ=DAILY;COUNT=3"}]}, r"has expired"),
        ({"schedules": [{"rrule": "FREQ=DAILY;UNTIL=29990101T000000Z"}]}, r"not a schedule.*UNTIL without Z"),
        ({"entrypoint": "retrain"}, r"entrypoint"),
        ({"triggers": [{"type": "event", "within": "soon"}]}, r"triggers"),
        ({"concurrency_limit": {"limit": 1, "collision_strategy": "WAIT"}}, r"collision_strategy"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        read_yaml(write(tmp_path, **changed), ServeFile)


def test_triggers_are_named_by_what_they_wait_for(tmp_path: Path) -> None:
    triggers = [{"type": "event", "expect": ["normascope.drift.seen"]}, {"type": "event", "name": "ours", "expect": ["x"]}]
    (deployment,) = read_yaml(write(tmp_path, triggers=triggers), ServeFile).deployments
    assert [trigger.name for trigger in deployment.build_triggers()] == ["normascope: weekly on normascope.drift.seen", "ours"]


def test_an_expired_schedule_that_is_off_disturbs_nobody(tmp_path: Path) -> None:
    schedules = [{"rrule": "FREQ=DAILY;UNTIL=20200301T000000", "active": False}, {"rrule": "FREQ=DAILY;UNTIL=29990101T000000"}]
    assert len(read_yaml(write(tmp_path, schedules=schedules), ServeFile).deployments[0].schedules) == 2


def test_the_shipped_file_is_read_by_us_and_by_prefect_and_fits_the_flows() -> None:
    values = yaml.safe_load(SHIPPED.read_text())
    theirs = PrefectYamlModel.model_validate(values)
    ours = read_yaml(SHIPPED, ServeFile)
    assert [deployment.name for deployment in theirs.deployments] == [deployment.name for deployment in ours.deployments]
    assert not any(schedule.active for deployment in ours.deployments for schedule in deployment.schedules)  # the paths in it are nobody's
    for deployment in ours.deployments:
        flow = load_flow_from_entrypoint(deployment.entrypoint, use_placeholder_flow=False)
        assert set(deployment.parameters) <= set(parameter_schema(flow).properties), deployment.name
    assert os.sep * 2 not in SHIPPED.read_text()
