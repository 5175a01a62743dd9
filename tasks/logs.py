"""Logs as JSON lines on stderr, each with the run, the task and the shard that it is of, for programs that gather them."""

import json
import logging
import sys
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from tasks.settings import load_settings

R = TypeVar("R")

ROOMS = ("flows", "tasks", "methods", "storage")
_carried: ContextVar[dict[str, Any] | None] = ContextVar("_carried", default=None)  # on a worker, which knows no run


class JsonLines(logging.Formatter):
    """A record as one line: time, level, logger, message, then flow_run, task_run and shard where they are known, and an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **current_ids(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def write_json_lines() -> None:
    """From now on the four rooms' records, from INFO on, go to stderr as JSON lines; a second call changes nothing."""
    for room in ROOMS:
        logger = logging.getLogger(room)
        if any(isinstance(handler.formatter, JsonLines) for handler in logger.handlers):
            continue
        handler = logging.StreamHandler()
        handler.setFormatter(JsonLines())
        logger.addHandler(handler)
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)


def log_as_set() -> bool:
    """The four rooms' records, from INFO on, go to the pages of their runs; whether they go to stderr as JSON lines as well."""
    for room in ROOMS:
        logger = logging.getLogger(room)
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)
    as_json = load_settings().log_format == "json"
    if as_json:
        write_json_lines()
    return as_json


def current_ids() -> dict[str, Any]:
    """Ids of the flow run and the task run here, or those that were carried here with the shard."""
    if (carried := _carried.get()) is not None:
        return carried
    if "prefect" not in sys.modules:  # as on workers: not imported for the question alone
        return {}
    from prefect.context import FlowRunContext, TaskRunContext

    task, flow = TaskRunContext.get(), FlowRunContext.get()
    found = {
        "flow_run": task.task_run.flow_run_id if task else flow.flow_run.id if flow and flow.flow_run else None,
        "task_run": task.task_run.id if task else None,
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def carry_ids(function: Callable[..., R]) -> Callable[..., R]:
    """The function to call on a worker so that what it logs there says whose it is; itself where logs are text."""
    return partial(_call_with, current_ids(), function) if load_settings().log_format == "json" else function


def _call_with(ids: dict[str, Any], function: Callable[..., R], *arguments: Any) -> R:
    write_json_lines()
    job = arguments[0] if arguments else None
    token = _carried.set(ids | ({"shard": job["shard"]} if isinstance(job, dict) and "shard" in job else {}))
    try:
        return function(*arguments)
    finally:
        _carried.reset(token)
