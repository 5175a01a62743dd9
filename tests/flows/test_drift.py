"""Drift through the flow on an archive that is scored for it, and both as a schedule asks for them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.events.filters import EventFilter, EventNameFilter

from flows.drift import drift
from flows.scheduled import DRIFT_SEEN, drift_scheduled, score_archive_scheduled
from methods.evaluation.drift import DriftConfig
from storage import filesystems
from tasks.caching import steps
from tests.archives import write_archive_pictures, write_manifest_of, write_small_bundle
from tests.command import Workplace

PICTURES = 48


def score_on_schedule(folder: Path) -> str:
    """Score small pictures with a small model, and once more when nothing is left; the archive."""
    manifest, _ = write_manifest_of(write_archive_pictures(folder / "pictures", PICTURES))
    write_small_bundle(folder / "model")
    asked = str(folder / "archive"), manifest, [f"ae={folder / 'model'}"]
    with pytest.raises(ValueError, match="nowhere"):
        score_archive_scheduled(*asked[:2], [str(folder / "nowhere")], execution="process")
    assert score_archive_scheduled(*asked, execution="process")[0].startswith(f"ae v1: {PICTURES} scored, 0 failed of {PICTURES} samples")
    (again,) = score_archive_scheduled(*asked, execution="process")
    assert again.startswith(f"ae v1: all {PICTURES} samples are done, nothing to do")
    return asked[0]


def events_of(archive: str) -> list[dict[str, Any]]:
    """What the server was told of the archive's drift; waits for it, since events go their own way."""
    asked = EventFilter(event=EventNameFilter(name=[DRIFT_SEEN]))
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while not (events := [each for each in client.read_events(asked, limit=50).events if each.resource.id.endswith(archive)]):
            assert time.monotonic() < deadline, "no event came"
            time.sleep(0.2)
    return [each.payload for each in events]


@pytest.mark.usefixtures("prefect_server")
def test_a_scored_archive_is_compared_once_and_the_ui_is_told_of_it_and_of_an_alarm(tmp_path: Path) -> None:
    archive = score_on_schedule(tmp_path)
    config = DriftConfig(replicates=50, permutations=50)
    found = drift(archive, archive, rows=(24, None), config=config)
    content = filesystems.read_json(found["json_uri"])
    assert [side["images"] for side in content["sides"]] == [24, 24]
    assert {row["grouping"] for row in content["groups"]} == {"source", "site"}
    assert any(figure["name"].startswith("share from") for figure in content["figures"])
    assert found["html_uri"].startswith(f"{archive}/drift/")
    done = steps.done.total()
    assert drift(archive, archive, rows=(24, None), config=config) == found
    assert steps.done.total() == done
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["drift", "drift-by-source"])))
    assert {artifact.key for artifact in artifacts} == {"drift", "drift-by-source"}
    lines = drift_scheduled(archive, archive, rows="24:", alarm_above=1000)
    assert any("KS distance" in line for line in lines)
    assert drift_scheduled(archive, archive, rows="24:", alarm_above=-1) == lines  # an index is at least 0
    (told,) = events_of(archive)
    assert (told["alarm_above"], told["psi"] >= told["psi_low"] >= 0) == (-1, True)


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    yield (place := Workplace(tmp_path))
    assert place.call("ui", "--stop").returncode == 0


@pytest.mark.slow
def test_the_command_fails_above_an_index_and_says_what_it_compared(workplace: Workplace) -> None:
    manifest, _ = write_manifest_of(write_archive_pictures(workplace.folder / "pictures", PICTURES))
    write_small_bundle(workplace.folder / "model")
    scored = workplace.call("score", manifest, "--model", "model", "--into", "archive", "--execution", "process")
    assert scored.returncode == 0, scored.stderr
    asked = ("drift", "archive", "--reference", "archive", "--rows", "24:")
    passed = workplace.call(*asked, "--fail-above", "1000")
    assert passed.returncode == 0, passed.stderr
    assert "KS distance: 0." in passed.stdout
    assert "drift.html" in passed.stdout
    failed = workplace.call(*asked, "--fail-above=-1")  # an index is at least 0
    assert failed.returncode == 1
    assert "is above -1" in failed.stderr
    assert "all cached" in failed.stderr
