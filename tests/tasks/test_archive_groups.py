import threading
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.archive_groups import Scoring, ShardGroup, artifact_key, cut_groups
from tasks.archive_scoring import Work
from tasks.score_shard import Limits


def slot(rows_of_shard: int) -> Any:
    """Only what is asked of it: how long its shards are, and where they go."""
    store = SimpleNamespace(shard_rows=rows_of_shard, uri=f"store-{rows_of_shard}", rows_of=lambda shard: range(rows_of_shard))
    return SimpleNamespace(store=store, model={"uri": "m", "digest": "d", "kind": "ae"})


def work_of(*shards: tuple[int, Any]) -> Work:
    archive: Any = SimpleNamespace(uri="archive", digest="0")
    return Work(archive, [], [(number, [one]) for number, one in shards], Limits())


class Counter:
    """In place of a progress bar."""

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total

    def advance(self, rows: int) -> None:
        self.done += rows


def scoring_of(work: Work) -> Scoring:
    return Scoring(work, None, None, Counter(work.rows), threading.Event())  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is."""
    now = [1000.0]
    monkeypatch.setattr("tasks.archive_groups.time.monotonic", lambda: now[0])
    return now


def test_the_first_groups_are_small_and_later_ones_take_ten_seconds_at_the_rate_since_models_are_loaded(clock: list[float]) -> None:
    one = slot(10)
    scoring = scoring_of(work_of(*((shard, one) for shard in range(100))))
    groups = cut_groups(scoring)
    assert [next(groups).title, next(groups).title] == ["shards 0-7", "shards 8-15"]
    clock[0] += 100  # imports and models
    scoring.advance(10)
    clock[0] += 1
    scoring.advance(20)
    assert next(groups).title == "shards 16-35"
    clock[0] += 3
    scoring.advance(20)
    assert next(groups).title == "shards 36-45"


def test_a_long_run_is_not_cut_into_more_tasks_than_the_server_bears(clock: list[float]) -> None:
    one = slot(1)
    scoring = scoring_of(work_of(*((shard, one) for shard in range(100_000))))
    scoring.advance(1)
    clock[0] += 1000
    scoring.advance(1)
    assert len(list(cut_groups(scoring))) == 500


def test_stores_that_are_cut_differently_are_never_in_one_group() -> None:
    small, large = slot(2), slot(4)
    scoring = scoring_of(work_of(*((shard, small) for shard in range(4)), *((shard, large) for shard in range(2))))
    assert [group.title for group in cut_groups(scoring)] == ["shards 0-3", "shards 0-1"]


def test_a_cancelled_run_begins_no_group() -> None:
    scoring = scoring_of(work_of(*((shard, slot(2)) for shard in range(40))))
    groups = cut_groups(scoring)
    next(groups)
    scoring.cancelled.set()
    assert list(groups) == []


def test_a_group_that_is_tried_again_does_only_what_is_left() -> None:
    group = ShardGroup(work_of(*((shard, slot(2)) for shard in (3, 5, 8))), 0, 2)
    outcome: Any = {"shard": 5, "rows": 2, "targets": [{"scored": 1, "copied": 0, "failed": ["damaged"]}]}
    assert group.note(outcome) == 2
    assert group.counts == {"scored": 1, "failed": 1}
    assert [job["shard"] for job in group.jobs()] == [3, 8]


def test_the_ui_gets_keys_of_small_letters_digits_and_dashes() -> None:
    assert artifact_key("s3://Bucket/An Archive_1/") == "bucket-an-archive-1"
