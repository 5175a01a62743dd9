"""Archives through the flow, in this process: what is scored, when, into which slot, and what the UI is told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.score_archive import score_archive
from storage.archives import open_archive
from storage.heatmaps import read_attributes
from storage.manifest import read_manifest, write_named
from storage.models import read_bundle, write_bundle
from storage.scores import FAILED, SCORED, open_store
from storage.slides import write_pyramid
from tasks.archive_groups import artifact_key
from tasks.archive_scoring import ArchiveScoringConfig, SlotTakenError, find_finished, name_models, reference_rows
from tasks.curation import CurationConfig, TilingConfig
from tasks.execution import ExecutionConfig
from tasks.references import ItemReference, ModelReference, RowsReference
from tasks.rows import SEARCH_COLUMNS, to_table
from tasks.slide_rows import tabulate_slide
from tests.archives import write_archive_pictures, write_manifest_of, write_small_bundle

pytestmark = pytest.mark.usefixtures("prefect_server")

HERE = ExecutionConfig(kind="process")
SCORING = ArchiveScoringConfig(shard_rows=8, batch_size=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelReference:
    return write_small_bundle(tmp_path_factory.mktemp("model") / "ae")


@pytest.fixture
def rows(tmp_path: Path) -> RowsReference:
    """Twenty pictures: two shards and a half."""
    return manifest_of(write_archive_pictures(tmp_path / "pictures", 20))


def manifest_of(folder: Path) -> RowsReference:
    uri, digest = write_manifest_of(folder)
    return RowsReference(uri=uri, digest=digest)


def score(archive: Path, rows: RowsReference, models: dict[str, ModelReference], **options: Any) -> Any:
    return score_archive(str(archive), rows, models, scoring=SCORING.model_copy(update=options), execution=HERE)


def artifacts(key: str) -> list[Any]:
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))


def files_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def another(model: ModelReference, folder: Path) -> ModelReference:
    """The same weights in a bundle of another digest."""
    bundle = read_bundle(model["uri"])
    digest = write_bundle(str(folder), replace(bundle, card={**bundle.card, "training": {"seed": 1}}))
    return ModelReference(uri=str(folder), digest=digest, kind=model["kind"])


def test_every_sample_is_scored_or_failed_with_a_reason_and_the_ui_is_told(tmp_path: Path, model: ModelReference) -> None:
    pictures = write_archive_pictures(tmp_path / "pictures", 20)
    rows = manifest_of(pictures)
    (pictures / "picture-0000007-normal.png").write_bytes(b"no picture")
    archive = tmp_path / "archive"
    summary = score(archive, rows, {"ae": model})
    (slot,) = summary["slots"]
    assert (slot["slot"], slot["scored"], slot["failed"], slot["samples"], summary["rows"]) == ("ae v1", 19, 1, 20, 20)
    store = open_store(str(archive / "scores" / "ae" / "v1"))
    assert (store.status() == FAILED).nonzero()[0].tolist() == [7]
    (progress,) = artifacts(f"progress-{archive_key(archive)}")
    assert progress.data == 100
    assert progress.description.startswith("20 of 20 images in ")
    (failures,) = artifacts(f"failures-{archive_key(archive)}")
    (shown,) = json.loads(failures.data)
    assert (shown["slot"], shown["row"]) == ("ae v1", 7)
    assert "picture-0000007-normal.png: unreadable picture" in shown["reason"]


def archive_key(archive: Path) -> str:
    return artifact_key(str(archive))


def test_a_finished_archive_is_known_without_prefect_and_a_lost_shard_is_found(
    tmp_path: Path, rows: RowsReference, model: ModelReference
) -> None:
    archive = tmp_path / "archive"
    assert find_finished(str(archive), rows["digest"], {"ae": model}) is None
    score(archive, rows, {"ae": model})
    before = files_of(archive / "scores")
    (slot,) = find_finished(str(archive), rows["digest"], {"ae": model}) or []
    assert slot.title == "ae v1"
    lost = archive / "scores" / "ae" / "v1" / "anomaly_map" / "c.1.0.0"
    content = lost.read_bytes()
    lost.unlink()
    assert find_finished(str(archive), rows["digest"], {"ae": model}) is None
    assert score(archive, rows, {"ae": model})["rows"] == 8
    assert lost.read_bytes() == content
    after = files_of(archive / "scores")
    assert {name for name in after if after[name] != before[name]} == {
        name for name in before if name.split("/c.")[-1].split(".")[0] == "1" or "shard-00000001" in name
    }


def test_a_manifest_that_has_grown_has_only_its_new_samples_scored(tmp_path: Path, model: ModelReference) -> None:
    pictures, archive = write_archive_pictures(tmp_path / "pictures", 20), tmp_path / "archive"
    score(archive, manifest_of(pictures), {"ae": model})
    store = open_store(str(archive / "scores" / "ae" / "v1"))
    image, maps = store.image_scores(), store.read_maps(range(20))
    rows = manifest_of(write_archive_pictures(pictures, 10, first=20))
    assert find_finished(str(archive), rows["digest"], {"ae": model}) is None
    assert score(archive, rows, {"ae": model})["rows"] == 14  # those that share a shard with old ones are copied
    store = open_store(str(archive / "scores" / "ae" / "v1"))
    assert (store.status() == SCORED).sum() == open_archive(str(archive)).rows == 30
    np.testing.assert_array_equal(store.image_scores()[:20], image)
    np.testing.assert_array_equal(store.read_maps(range(20)), maps)


def test_another_model_is_refused_with_both_digests_and_gets_a_version_or_a_slot_of_its_own(
    tmp_path: Path, rows: RowsReference, model: ModelReference
) -> None:
    archive, other = tmp_path / "archive", another(model, tmp_path / "other")
    score(archive, rows, {"ae": model})
    before = files_of(archive / "scores" / "ae" / "v1")
    with pytest.raises(SlotTakenError, match=f"{model['digest'][:12]}.*{other['digest'][:12]}.*--new-version begins v2.*--model NAME="):
        score(archive, rows, {"ae": other})
    score(archive, rows, {"ae": other}, new_version=True)
    assert open_archive(str(archive)).slots() == {"ae": [1, 2]}
    (slot,) = find_finished(str(archive), rows["digest"], {"ae": other}) or []
    assert slot.title == "ae v2"
    assert score(archive, rows, {"ae": other}, new_version=True)["rows"] == 0  # the same command once more begins no third
    assert score(archive, rows, {"second": other})["rows"] == 20
    assert open_archive(str(archive)).slots() == {"ae": [1, 2], "second": [1]}
    assert files_of(archive / "scores" / "ae" / "v1") == before


def test_several_models_fill_their_slots_in_one_run(tmp_path: Path, rows: RowsReference, model: ModelReference) -> None:
    models = {"one": model, "two": another(model, tmp_path / "other")}
    summary = score(tmp_path / "archive", rows, models)
    assert summary["rows"] == 20
    assert [(slot["slot"], slot["scored"]) for slot in summary["slots"]] == [("one v1", 20), ("two v1", 20)]


def test_a_manifest_that_lacks_what_the_archive_holds_is_refused_and_nothing_is_touched(
    tmp_path: Path, rows: RowsReference, model: ModelReference
) -> None:
    archive = tmp_path / "archive"
    score(archive, rows, {"ae": model})
    before = {name: time for name, time in files_of(archive).items() if "lease" not in name}
    less = write_named(str(tmp_path / "less"), read_manifest(rows["uri"]).iloc[1:].reset_index(drop=True), manifest=slice(None))["manifest"]
    with pytest.raises(ValueError, match="does not continue the archive"):
        score(archive, RowsReference(uri=less[0], digest=less[1]), {"ae": model})
    assert {name: time for name, time in files_of(archive).items() if "lease" not in name} == before


def test_slides_get_their_maps_when_their_tiles_are_scored(tmp_path: Path, model: ModelReference) -> None:
    picture = np.random.default_rng(0).normal(150, 20, (512, 640, 3)).clip(0, 255).astype(np.uint8)
    write_pyramid(tmp_path / "slide.svs", picture, spacing_um=0.5)
    item: Any = dict.fromkeys(ItemReference.__annotations__) | {
        **{
            "uri": str(tmp_path / "slide.svs"),
            "sha256": "ab" * 32,
            "dataset": "d",
            "subject_id": "s",
            "slide_id": "one",
            "partly_annotated": False,
        }
    }
    tiles = to_table([tabulate_slide(item, TilingConfig(size_px=128, tissue_share=0.01), CurationConfig(), stain=None)])
    table = tiles.drop_columns(list(SEARCH_COLUMNS)).to_pandas().assign(group_id="s")
    uri, digest = write_named(str(tmp_path), table, manifest=slice(None))["manifest"]
    score(tmp_path / "archive", RowsReference(uri=uri, digest=digest), {"ae": model})
    maps = tmp_path / "archive" / "slides" / "ae" / "v1"
    (heatmap,) = maps.glob("one-*.ome.zarr")
    assert read_attributes(str(heatmap))["tiles"] == len(table)  # type: ignore[index]
    assert len(list(maps.glob("one-*.geojson"))) == 1
    assert find_finished(str(tmp_path / "archive"), digest, {"ae": model})
    (maps / "slides.json").unlink()  # as of a run that was killed before its last slide
    assert find_finished(str(tmp_path / "archive"), digest, {"ae": model}) is None


def test_two_models_of_one_kind_need_names(tmp_path: Path, model: ModelReference) -> None:
    other = another(model, tmp_path / "other")
    with pytest.raises(ValueError, match=r"--model first=.* --model second="):
        name_models([model["uri"], other["uri"]])
    assert name_models([model["uri"], f"newer={other['uri']}"]) == {"ae": model, "newer": other}


def test_a_manifest_is_referred_to_by_its_content(rows: RowsReference) -> None:
    assert reference_rows(rows["uri"]) == rows
