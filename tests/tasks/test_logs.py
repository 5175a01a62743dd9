"""Lines that programs read say whose they are, on workers too."""

import json
import logging
from collections.abc import Callable, Iterator

import pytest
from prefect import flow, task
from prefect.runtime import flow_run, task_run

from flows.retrain import retrain_scheduled
from flows.scheduled import drift_scheduled, score_archive_scheduled
from tasks.execution import ExecutionConfig, ProcessExecutor
from tasks.logs import ROOMS, current_ids, write_json_lines


@pytest.fixture(autouse=True)
def clean_loggers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NORMASCOPE_LOG_FORMAT", "json")
    before = {room: (list(logging.getLogger(room).handlers), logging.getLogger(room).level) for room in ROOMS}
    yield
    for room, (handlers, level) in before.items():
        logging.getLogger(room).handlers[:] = handlers
        logging.getLogger(room).setLevel(level)


def say(job: dict[str, int]) -> dict[str, object]:
    logging.getLogger("tasks.here").info("reading %d", job["shard"])
    return current_ids()


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]


def test_a_line_is_json_with_an_exception_on_it_and_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    write_json_lines()
    write_json_lines()
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("storage.scores").exception("failed")
    (line,) = lines_of(capsys)
    assert (line["level"], line["logger"], line["message"]) == ("ERROR", "storage.scores", "failed")
    assert "ValueError: two\nlines" in line["exception"]
    assert line["time"].endswith("+00:00")


def test_a_worker_says_the_shard_and_the_ids_that_were_carried_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = ProcessExecutor(ExecutionConfig(kind="process")).map(say, [{"shard": 7}])
    assert found == {"shard": 7}
    (line,) = lines_of(capsys)
    assert (line["message"], line["shard"]) == ("reading 7", 7)
    assert current_ids() == {}


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_lines_of_a_run_hold_its_id_and_its_tasks() -> None:
    @task
    def inside() -> tuple[object, object, object]:
        (found,) = ProcessExecutor(ExecutionConfig(kind="process")).map(say, [{"shard": 3}])
        return found, flow_run.get_id(), task_run.get_id()

    @flow
    def around() -> tuple[object, object, object, object]:
        return current_ids(), *inside.submit().result()

    of_flow, carried, flow_id, task_id = around()
    assert of_flow == {"flow_run": flow_id}
    assert carried == {"flow_run": flow_id, "task_run": task_id, "shard": 3}


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    ("begin", "first_step"),
    [
        (lambda: score_archive_scheduled("archive", "manifest.parquet", []), "flows.scheduled.reference_rows"),
        (lambda: drift_scheduled("archive", "scores"), "flows.scheduled.drift"),
        (lambda: retrain_scheduled("weekly.yaml"), "flows.retrain.load_retrain"),
    ],
)
def test_flows_that_a_worker_begins_log_as_the_setting_says(
    begin: Callable[[], object], first_step: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []

    def work(*_: object, **__: object) -> None:
        runs.append(flow_run.get_id())
        logging.getLogger("tasks.here").info("beginning")
        list(ProcessExecutor(ExecutionConfig(kind="process")).map(say, [{"shard": 5}]))
        raise ValueError("far enough")

    monkeypatch.setattr(first_step, work)
    with pytest.raises(ValueError, match="far enough"):
        begin()
    first, second = (line for line in lines_of(capsys) if line["logger"] == "tasks.here")
    assert (first["message"], first["flow_run"]) == ("beginning", runs[0])
    assert (second["message"], second["flow_run"], second["shard"]) == ("reading 5", runs[0], 5)
