"""SIGKILL in the middle of a search, a second run: finished trials are not repeated, and the result is that of an unbroken one."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command import NORMASCOPE, Workplace
from tests.phantoms import write_pictures

pytestmark = pytest.mark.slow


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    place = Workplace(tmp_path)
    write_pictures(tmp_path / "pictures", normal=60, abnormal=20, size_px=32)
    yield place
    place.call("ui", "--stop")


def write(folder: Path, store: str) -> str:
    run = {
        "name": "squares",
        "store": store,
        "source": {"kind": "folder", "path": "pictures"},
        "curation": {"duplicates": None},
        "detectors": [{"kind": "ae", "C0": 4, "d": 2, "input_size_px": 32, "epochs": 4}],
        "training": {"threads": 1},
        "evaluation": {"bootstrap": {"replicates": 20}},
        "execution": {"kind": "local", "workers": 2},
    }
    (folder / f"{store}-run.yaml").write_text(yaml.safe_dump(run))
    search = {"run": f"{store}-run.yaml", "space": {"d": [1, 2, 4, 8]}, "folds": 2, "anomalies": {"count": 4}}
    (folder / f"{store}.yaml").write_text(yaml.safe_dump(search))
    return f"{store}.yaml"


def finished(folder: Path, store: str) -> dict[str, int]:
    """Trials and folds that are kept, with the time they were written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / store / "search" / "trials").glob("*.json")}


def result(folder: Path, store: str) -> dict[str, Any]:
    (path,) = (folder / store / "searches").glob("*/search.json")
    content = json.loads(path.read_text())
    return {name: content[name] for name in ("choices", "trials", "lead")}


@pytest.mark.timeout(1500)
def test_a_search_that_was_killed_goes_on_where_it_was(workplace: Workplace) -> None:
    folder = workplace.folder
    call = [*NORMASCOPE, "search", write(folder, "killed")]
    process = subprocess.Popen(call, env=workplace.environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while len(finished(folder, "killed")) < 2:
        assert process.poll() is None, "the search ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(3)  # its workers notice that they are alone and leave
    before = finished(folder, "killed")
    assert 2 <= len(before) < 8

    again = workplace.call("search", "killed.yaml")
    assert again.returncode == 0, again.stderr
    after = finished(folder, "killed")
    assert len(after) == 8
    assert {name: after[name] for name in before} == before  # not one was done again

    unbroken = workplace.call("search", write(folder, "unbroken"))
    assert unbroken.returncode == 0, unbroken.stderr
    assert result(folder, "killed") == result(folder, "unbroken")
    assert "few anomalies" in unbroken.stdout
