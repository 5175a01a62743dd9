"""`normascope score --model --into` as a person gives it: once, again, and cancelled in the UI."""

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.score_checks import verify_store
from storage.scores import open_store
from tests.archives import write_archive_pictures, write_manifest_of, write_small_bundle
from tests.command import NORMASCOPE, Workplace, workers_of
from tests.faults.harness import ON_PATH

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SAMPLES = 200
ARCHIVE = ("--into", "archive", "--workers", "2", "--shard-rows", "4", "--batch-size", "4")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """Pictures, their manifest and a model."""
    folder = tmp_path_factory.mktemp("archive-command")
    manifest, _ = write_manifest_of(write_archive_pictures(folder / "pictures", SAMPLES))
    Path(manifest).rename(folder / "manifest.parquet")
    write_small_bundle(folder / "model", "patchcore")
    yield (place := Workplace(folder))
    assert place.call("ui", "--stop").returncode == 0


def ask(address: str, path: str, content: dict[str, Any] | None = None) -> Any:
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(f"{address}/api/{path}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def test_a_run_that_is_cancelled_in_the_ui_stops_its_workers_and_the_same_command_finishes(workplace: Workplace) -> None:
    log = workplace.folder / "first.log"
    slow = workplace.folder / "slow.json"  # reading takes its time, so that the run has a middle on any machine
    (journal := workplace.folder / "journal").mkdir()
    slow.write_text(json.dumps({"journal": str(journal), "delay_s": 0.2}))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*NORMASCOPE, "score", "manifest.parquet", "--model", "model", *ARCHIVE],
            env={**workplace.environment, "NORMASCOPE_FAULTS": str(slow), "PYTHONPATH": ON_PATH},
            cwd=workplace.folder,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    records = workplace.folder / "archive" / "scores" / "patchcore" / "v1" / "records"
    while not (records.is_dir() and len(list(records.iterdir())) >= 3):
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    workers = workers_of(process)
    address = re.search(r"Prefect UI: (\S+)", log.read_text())[1]  # type: ignore[index]
    (run,) = ask(address, "flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}})
    ask(address, f"flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})  # what the button sends
    assert process.wait(timeout=300) == 130
    assert "the same command goes on from there" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert ask(address, f"flow_runs/{run['id']}")["state"]["type"] == "CANCELLED"
    assert workers
    assert not [worker for worker in workers if worker.is_running()]
    before = {path.name: path.stat().st_mtime_ns for path in records.iterdir()}
    assert 3 <= len(before) < SAMPLES // 4

    done = workplace.call("score", "manifest.parquet", "--model", "model", *ARCHIVE)
    assert done.returncode == 0, done.stderr
    assert f"patchcore v1: {SAMPLES} scored, 0 failed of {SAMPLES} samples" in done.stdout
    assert f"this run: {SAMPLES - 4 * len(before)} images in " in done.stdout
    assert {name: time for name, time in ((path.name, path.stat().st_mtime_ns) for path in records.iterdir()) if name in before} == before
    assert verify_store(open_store(str(records.parent))).problems == []

    again = workplace.call("score", "manifest.parquet", "--model", "model", *ARCHIVE)
    assert again.returncode == 0
    assert again.stdout.startswith(f"patchcore v1: all {SAMPLES} samples are done, nothing to do: ")
    assert "Prefect UI" not in again.stderr


def test_options_that_belong_together_are_asked_for_together(workplace: Workplace) -> None:
    for wrong in (["--model", "model"], ["--into", "archive"], ["--workers", "2"]):
        refused = workplace.call("score", "manifest.parquet", *wrong)
        assert refused.returncode == 2
        assert "--model and" in " ".join(refused.stderr.replace("│", " ").split())


def test_a_bundle_that_is_not_there_is_named(workplace: Workplace) -> None:
    refused = workplace.call("score", "manifest.parquet", "--model", "nowhere", *ARCHIVE)
    assert refused.returncode == 1
    assert "nowhere" in refused.stderr
    assert "Traceback" not in refused.stderr
