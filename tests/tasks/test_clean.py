"""Housekeeping takes away what nothing refers to, and nothing else."""

import json
import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from storage.archives import append_manifest, open_archive
from storage.housekeeping import StoredFile, list_everything, remove
from storage.leases import LeaseHeldError, hold_lease
from storage.models import bundle_digest
from storage.scores import create_store
from tasks import server
from tasks.clean import (
    DAY_S,
    Result,
    Rules,
    Version,
    plan_checkpoints,
    plan_cleaning,
    plan_orphans,
    plan_results,
    plan_strays,
    plan_versions,
    remove_items,
)
from tests.archives import write_archive_pictures, write_manifest_of
from tests.servers import s3_server

NOW = 1e9
KEY = f"train-{'a' * 40}"


def version(number: int, *, complete: bool = True, model: str = "", readable: bool = True) -> Version:
    return Version(
        "skin", number, (f"scores/skin/v{number}", f"slides/skin/v{number}"), 10, complete, model or f"model-{number}", readable=readable
    )


def numbers(versions: list[Version], rules: Rules) -> set[str]:
    return {item.uri for item in plan_versions(versions, rules) if item.goes and item.uri.startswith("scores")}


def test_the_newest_finished_versions_stay_and_those_that_are_being_filled() -> None:
    versions = [version(1), version(2), version(3, complete=False), version(4), version(5, complete=False)]
    assert numbers(versions, Rules(keep=1)) == {"scores/skin/v1", "scores/skin/v2", "scores/skin/v3"}
    assert numbers(versions, Rules(keep=2)) == {"scores/skin/v1", "scores/skin/v3"}
    assert numbers(versions, Rules(keep=9)) == {"scores/skin/v3"}


def test_no_version_goes_while_none_is_finished_and_none_can_be_asked_to_stay() -> None:
    assert plan_versions([version(1, complete=False), version(2, complete=False)], Rules(keep=1)) == []
    with pytest.raises(ValueError, match="at least 1"):
        plan_versions([version(1)], Rules(keep=0))


def test_what_a_champion_names_stays_by_its_model_or_by_its_place() -> None:
    versions = [version(number) for number in (1, 2, 3, 4)]
    assert numbers(versions, Rules(keep=1, champions=frozenset({"model-1", "scores/skin/v2"}))) == {"scores/skin/v3"}


def test_a_store_of_another_schema_is_told_and_stays() -> None:
    (item,) = plan_versions([version(1, complete=False, readable=False), version(2)], Rules(keep=1))
    assert not item.goes
    assert "another schema" in item.why


def test_the_generations_of_a_result_go_together_by_what_the_newest_has_lost() -> None:
    lost, there = ("/store/models/m",), ()
    results = [Result(KEY, 1, NOW, lost), Result(f"{KEY}-1", 1, NOW, there), Result(f"{KEY}-12", 1, NOW, there)]
    assert plan_results("/home", results, Rules(), now=NOW) == []
    results[-1] = Result(f"{KEY}-12", 1, NOW, lost)
    assert {item.uri for item in plan_results("/home", results, Rules(), now=NOW)} == {f"/home/{result.name}" for result in results}


def test_results_go_by_age_only_when_asked() -> None:
    old = [Result(KEY, 1, NOW - 9 * DAY_S, ())]
    assert plan_results("/home", old, Rules(), now=NOW) == []
    assert plan_results("/home", old, Rules(older_than_days=10), now=NOW) == []
    assert [item.uri for item in plan_results("/home", old, Rules(older_than_days=8), now=NOW)] == [f"/home/{KEY}"]


def test_checkpoints_go_by_their_last_file_and_never_within_the_hour() -> None:
    files = [StoredFile("ae-1/last.ckpt", 5, NOW - 40 * DAY_S), StoredFile("ae-1/progress", 1, NOW - 31 * DAY_S)]
    files += [StoredFile("ae-2/last.ckpt", 5, NOW - 40 * DAY_S), StoredFile("ae-2/progress", 1, NOW - 60)]
    assert [(item.uri, item.size_bytes) for item in plan_checkpoints("/training", files, Rules(), now=NOW)] == [("/training/ae-1", 6)]
    assert len(plan_checkpoints("/training", files, Rules(older_than_days=0), now=NOW)) == 1


def test_only_our_own_half_written_files_are_strays_and_only_after_an_hour() -> None:
    old, new = NOW - 2 * 3600, NOW - 60
    mine = ["manifests/a.parquet.123.partial", f"scores/x.zarr/status/c.{'0f' * 16}.partial"]
    files = [StoredFile(path, 1, old) for path in (*mine, "film.partial", ".git.old/HEAD", "models/m/card.json")]
    files.append(StoredFile("tables/b.parquet.7.partial", 1, new))
    assert [item.uri for item in plan_strays("/store", files, now=NOW)] == [f"/store/{path}" for path in mine]
    beside = [StoredFile(".skin.new/a.png", 1, old), StoredFile(".skin.new/b/c.png", 2, old), StoredFile("skin/a.png", 1, old)]
    assert [(item.uri, item.size_bytes) for item in plan_strays("/home", beside, now=NOW, folders=True)] == [("/home/.skin.new", 3)]


def test_what_belongs_to_models_that_are_gone_is_told_and_goes_when_asked() -> None:
    orphans = {"/store/evaluations/e.json": (1, "evaluation")}
    assert [item.goes for rules in (Rules(), Rules(orphans=True)) for item in plan_orphans(orphans, rules)] == [False, True]


def make_archive(folder: Path, uri: str) -> str:
    """Versions 1 to 3 of one slot, all finished; a heatmap, a temporary file and rows that nobody ended."""
    manifest = write_manifest_of(write_archive_pictures(folder / "pictures", 3))
    archive = append_manifest(uri, *manifest)
    for number in (1, 2, 3):
        store = create_store(
            archive.scores_uri("ae", number),
            rows=3,
            map_size_px=None,
            shard_rows=64,
            attributes={"model_digest": f"digest-{number}"},
            notes={"model_uri": str(folder / "store" / "models" / f"ae-{number}")},
        )
        store.write_shard(0, image=[0.5, 1.0, 2.0], maps=None, failures=[])  # type: ignore[arg-type]
    return archive.uri


def test_an_archive_keeps_what_its_champion_names_and_opens_afterwards(tmp_path: Path) -> None:
    archive = make_archive(tmp_path, str(tmp_path / "archive"))
    strays = ["rows/part-000000000003-cut.parquet", "rows/x.parquet.9.partial", "slides/ae/v3/s-1.ome.zarr/0/c/0/0"]
    for path in strays:
        place = Path(archive, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"half")
        os.utime(place, (NOW, NOW))
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "champion.json").write_text(json.dumps({"champion": {"digest": "digest-1"}, "history": [{"digest": "digest-2"}]}))
    before = list_everything(archive)
    items = {item.uri.removeprefix(f"{archive}/") for item in plan_cleaning(archive, Rules(keep=1)) if item.goes}
    assert items == {"scores/ae/v2", strays[0], strays[1], "slides/ae/v3/s-1.ome.zarr"}
    assert sorted(list_everything(archive)) == sorted(before)  # a plan only reads
    with hold_lease(f"{archive}/lease.json", {"run": "score"}), pytest.raises(LeaseHeldError, match="run score"):
        remove_items(archive, Rules(keep=1))
    assert Path(archive, "scores/ae/v2").exists()
    assert {item.uri.removeprefix(f"{archive}/") for item in remove_items(archive, Rules(keep=1))} == items
    assert open_archive(archive).slots() == {"ae": [1, 3]}
    assert not [item for item in plan_cleaning(archive, Rules(keep=1)) if item.goes]


def keep_result(name: str, output: str) -> Path:
    path = server.home() / "prefect" / "storage" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metadata": {}, "result": json.dumps({"uri": output, "kind": "ae"})}))
    return path


def write_report_of(store: Path, name: str, digest: str) -> Path:
    folder = store / "reports" / name
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"run": {"PatchCore": f"model {digest}. Trained on 3 samples", "python": "3.11"}}))
    (folder / "report.html").write_text("a page")
    return folder


def test_the_command_shows_first_and_removes_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMASCOPE_HOME", str(tmp_path / "home"))
    store = tmp_path / "store"
    bundle = store / "models" / "ae-1"
    bundle.mkdir(parents=True)
    (bundle / "checksums.json").write_text("{}")
    (bundle / "card.json").write_text(json.dumps({"training": {"seed": 0}, "trained_on": {"samples": 3}}))
    evaluation = store / "evaluations" / "ae-2.json"
    evaluation.parent.mkdir()
    evaluation.write_text(json.dumps({"training": {"seed": 1}, "trained_on": {"samples": 3}}))
    reports = {name: write_report_of(store, name, digest) for name, digest in (("kept", bundle_digest(str(bundle))), ("lost", "0" * 64))}
    good, lost = keep_result(KEY, str(bundle)), keep_result(f"train-{'b' * 40}", str(store / "models" / "ae-2"))
    other = keep_result(f"train-{'c' * 40}", str(tmp_path / "elsewhere" / "models" / "ae"))
    runner = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"})
    shown = runner.invoke(app, ["clean", str(store)])
    assert shown.exit_code == 0, shown.output
    assert "would go: 1 things" in shown.output
    assert f"{evaluation}  (evaluation of a model that is gone; stays)" in shown.output
    assert f"{reports['lost']}  (report of a model that is gone; stays)" in shown.output
    assert str(reports["kept"]) not in shown.output
    assert lost.exists()
    removed = runner.invoke(app, ["clean", str(store), "--yes"])
    assert "removed: 1 things" in removed.output
    assert [path.exists() for path in (good, lost, other, evaluation)] == [True, False, True, True]
    assert runner.invoke(app, ["clean", str(store), "--yes", "--orphans"]).exit_code == 0
    assert [path.exists() for path in (evaluation, *reports.values())] == [False, True, False]
    wrong = runner.invoke(app, ["clean", str(server.home()), "--yes"])
    assert wrong.exit_code == 1
    assert "neither an archive" in wrong.output


def test_a_link_is_not_followed_and_not_removed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a.partial").write_bytes(b"x")
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "link").symlink_to(tmp_path / "kept")
    assert [file.path for file in list_everything(str(tmp_path / "place"))] == ["link"]
    with pytest.raises(ValueError, match="is a link"):
        remove(str(tmp_path / "place" / "link"))


@pytest.mark.slow
def test_an_archive_in_a_bucket_is_cleaned_as_a_local_one(tmp_path: Path) -> None:
    with s3_server(tmp_path / "server") as s3:
        archive = make_archive(tmp_path, f"{s3.bucket}/archive")
        (item,) = [item for item in plan_cleaning(archive, Rules(keep=2), now=time.time()) if item.goes]
        assert item.uri == f"{archive}/scores/ae/v1"
        assert item.size_bytes > 0
        assert remove_items(archive, Rules(keep=2)) == [item]
        assert open_archive(archive).slots() == {"ae": [2, 3]}
        assert not [file for file in list_everything(archive) if file.path.startswith("scores/ae/v1/")]
