"""Drift through the flow on an archive that is scored for it, and as a schedule asks for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.drift import drift
from flows.score_archive import score_archive
from methods.evaluation.drift import DriftConfig
from storage import filesystems
from tasks.archive_scoring import ArchiveScoringConfig
from tasks.caching import steps
from tasks.execution import ExecutionConfig
from tasks.references import RowsReference
from tests.archives import write_archive_pictures, write_manifest_of, write_small_bundle
from tests.command import Workplace

PICTURES = 48


def write_archive(folder: Path) -> str:
    """An archive of small pictures, scored with a small model."""
    uri, digest = write_manifest_of(write_archive_pictures(folder / "pictures", PICTURES))
    model = write_small_bundle(folder / "model")
    scoring = ArchiveScoringConfig(shard_rows=16, batch_size=8)
    score_archive(
        str(folder / "archive"),
        RowsReference(uri=uri, digest=digest),
        {"ae": model},
        scoring=scoring,
        execution=ExecutionConfig(kind="process"),
    )
    return str(folder / "archive")


@pytest.mark.usefixtures("prefect_server")
def test_a_scored_archive_is_compared_once_and_the_ui_is_told(tmp_path: Path) -> None:
    archive = write_archive(tmp_path)
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
