"""The pending shards of an archive as Prefect tasks, each a group that takes seconds, and what the UI is shown of them."""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.events import emit_event
from prefect.futures import PrefectFuture, as_completed, wait
from prefect.tasks import Task, exponential_backoff

from storage.leases import Lease
from tasks.archive_scoring import Slot, Work, count_rows, first_failures
from tasks.assets import tell_made
from tasks.caching import can_pass, steps
from tasks.execution import ExecutionConfig
from tasks.metrics import Reading
from tasks.progress import Bar
from tasks.references import ArchiveSummary, SlotSummary
from tasks.score import map_shards
from tasks.score_shard import ShardJob, ShardOutcome

logger = logging.getLogger(__name__)

_GROUP_S = 10.0  # of work of the whole cluster; two groups at once, each takes twice as long
_GROUPS_AT_ONCE = 2
_FIRST_SHARDS = 8  # of a group, while no rate is known
_GROUPS_MAX = 500  # of a run: more tasks make the server and its pages slow
_FAILURES_SHOWN = 500


@dataclass
class Scoring:
    """A run on an archive: what all of its tasks share."""

    work: Work
    execution: ExecutionConfig
    lease: Lease
    bar: Bar
    cancelled: threading.Event
    started: float = field(default_factory=time.monotonic)
    failed: int = 0
    _warm: tuple[float, int] | None = None  # when the first shard was done, and its rows: what was before is loading

    def advance(self, rows: int, *, failed: int = 0) -> None:
        """So many rows are done, and so many of them failed."""
        self.bar.advance(rows)
        self.failed += failed
        if self._warm is None:
            self._warm = time.monotonic(), self.bar.done

    def rate(self) -> float:
        """Rows a second since the first shard was done; 0 while it is not known."""
        if self._warm is None or self.bar.done <= self._warm[1]:
            return 0
        return (self.bar.done - self._warm[1]) / (time.monotonic() - self._warm[0])

    def rows_per_group(self) -> float:
        """At the rate so far; 0 while none is known."""
        rate = self.rate()
        return max(_GROUP_S * rate, self.bar.total / _GROUPS_MAX) if rate else 0

    def read(self) -> Reading:
        """For Prometheus; of several models the one counts that fails most in a shard."""
        return Reading(done=self.bar.done, failed=self.failed, total=self.bar.total, per_second=self.rate())


class ShardGroup:
    """Neighbouring pending shards that are one task; those that are done are not done again when it is retried."""

    def __init__(self, work: Work, first: int, last: int) -> None:
        self.title = f"shards {work.shards[first][0]}-{work.shards[last][0]}"
        self._work = work
        self._left = {work.shards[index][0]: index for index in range(first, last + 1)}
        self.counts = {"scored": 0, "failed": 0}

    def jobs(self) -> Iterator[ShardJob]:
        """Those that are left."""
        return (self._work.job(index) for index in list(self._left.values()))

    def note(self, outcome: ShardOutcome) -> int:
        """Take note of a shard that is done; returns its rows."""
        del self._left[outcome["shard"]]
        for target in outcome["targets"]:
            self.counts["scored"] += target["scored"] + target["copied"]
            self.counts["failed"] += len(target["failed"])
        return outcome["rows"]


def _retry(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and can_pass(error)


@task(
    name="score shards",
    task_run_name="{group.title}",
    cache_policy=NO_CACHE,
    retries=6,
    retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=1,
    retry_condition_fn=_retry,
)
def score_group(group: ShardGroup, scoring: Scoring) -> dict[str, int]:
    """Score what is left of a group.

    Raises:
        LeaseLostError: another run has taken the archive over.
    """
    try:
        for outcome in map_shards(group.jobs(), execution=scoring.execution):
            scoring.advance(group.note(outcome), failed=max(len(target["failed"]) for target in outcome["targets"]))
            scoring.lease.check()
            if scoring.cancelled.is_set():
                break
    except ConnectionError:
        if not scoring.cancelled.is_set():  # else it is the cluster that was stopped
            raise
    logger.info("%s: %s scored, %s failed", group.title, group.counts["scored"], group.counts["failed"])
    return group.counts


def score_groups(scoring: Scoring) -> None:
    """Hand the pending shards to tasks, group by group; the first error is raised when the group beside it is done."""

    def submit(group: ShardGroup) -> PrefectFuture[Any]:
        for done in (False, True):  # asked for, and not taken from the cache
            steps.count("score shards", done=done)
        return score_group.submit(group, scoring)

    with submit_few((partial(submit, group) for group in cut_groups(scoring)), at_once=_GROUPS_AT_ONCE) as futures:
        for future in futures:
            future.result()


@contextmanager
def submit_few(calls: Iterable[Callable[[], PrefectFuture[Any]]], *, at_once: int) -> Iterator[Iterator[PrefectFuture[Any]]]:
    """Futures as they are done, of calls that submit a task; no more than so many are under way, and none when the context ends."""
    running: list[PrefectFuture[Any]] = []

    def follow() -> Iterator[PrefectFuture[Any]]:
        for call in calls:
            running.append(call())
            if len(running) == at_once:
                done = next(as_completed(running))
                running.remove(done)
                yield done
        yield from as_completed(running)

    try:
        yield follow()
    finally:
        wait(running)


def show_failures(slots: list[Slot], *, key: str) -> None:
    """A table of the first failed samples of each slot in the UI; none where nothing failed."""
    failures = [failure for slot in slots for failure in first_failures(slot, most=_FAILURES_SHOWN)]
    if failures:
        shown = f"Samples that could not be scored, the first {_FAILURES_SHOWN} of each slot; `normascope scores export` has all."
        create_table_artifact(failures, key=key, description=shown)


def conclude(scoring: Scoring) -> ArchiveSummary:
    """Count what became of every row, and say in an event that the archive is scored.

    Raises:
        RuntimeError: shards are pending although all were done: files were taken away meanwhile.
    """
    work, slots = scoring.work, []
    for slot in work.slots:
        if pending := slot.store.pending_shards():
            raise RuntimeError(f"{len(pending)} shards of {slot.store.uri} are gone since they were written; give the same command again")
        counts = count_rows(slot)
        made_of = [work.archive.manifests[-1]["uri"], slot.model["uri"]]
        tell_made(slot.store.uri, name=f"{slot.title} of {work.archive.uri}", of=made_of, **counts)
        slots.append(SlotSummary(slot=slot.title, uri=slot.store.uri, **counts))  # type: ignore[typeddict-item]
    summary = ArchiveSummary(archive=work.archive.uri, slots=slots, rows=scoring.bar.done, seconds=time.monotonic() - scoring.started)
    name = artifact_key(work.archive.uri)
    resource = {"prefect.resource.id": f"normascope.archive.{name}", "prefect.resource.name": work.archive.uri}
    emit_event("normascope.archive.scored", resource=resource, payload=dict(summary))
    return summary


def describe_summary(summary: ArchiveSummary) -> Iterator[str]:
    """Lines for the terminal."""
    for slot in summary["slots"]:
        yield f"{slot['slot']}: {slot['scored']} scored, {slot['failed']} failed of {slot['samples']} samples: {slot['uri']}"
    yield f"this run: {summary['rows']} images in {summary['seconds']:.1f} s, {summary['rows'] / summary['seconds']:.3g} images/s"


def artifact_key(uri: str) -> str:
    """Of small letters, digits and dashes, as Prefect asks for."""
    return re.sub(r"[^a-z0-9]+", "-", uri.rpartition("://")[2].lower()).strip("-")[-80:].strip("-")


def cut_groups(scoring: Scoring) -> Iterator[ShardGroup]:
    """Groups, each cut when its turn comes, by the rate of those before."""
    work, first = scoring.work, 0
    while first < len(work.shards) and not scoring.cancelled.is_set():
        wanted, rows, last = scoring.rows_per_group(), work.rows_of(first), first
        while last + 1 < len(work.shards) and (rows < wanted if wanted else last + 1 - first < _FIRST_SHARDS):
            if work.shards[last + 1][0] < work.shards[last][0]:  # stores that are cut otherwise begin
                break
            last += 1
            rows += work.rows_of(last)
        yield ShardGroup(work, first, last)
        first = last + 1
