"""Scores that are there: whole or not, and as a table with p-values."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from flows.cli import app
from methods.evaluation.calibration import conformal_p_values, fit_empirical, fit_gamma, null_to_dict
from storage import archives, filesystems
from storage.archives import Archive, ArchiveError, append_manifest, open_archive
from storage.manifest import read_manifest, sample_id, write_manifest
from storage.models import Bundle, write_bundle
from storage.scores import Failure, ScoreStore, create_store, open_store
from tasks.score_tools import export_archive, verify_archive
from tests.servers import s3_server

ROWS, SHARD_ROWS, SIDE_PX = 11, 4, 8
NORMAL = np.linspace(0.5, 4, 40).astype(np.float32)
BOX = {"level": 0, "x_px": 0, "y_px": 0, "width_px": 8, "height_px": 8}


def write_rows(folder: str, count: int) -> tuple[str, str]:
    rows = [
        {
            "sample_id": sample_id(f"{number:064d}", **BOX),  # type: ignore[arg-type]
            "uri": f"/pictures/{number}.png",
            "sha256": f"{number:064d}",
            "dataset": "clinic",
            "subject_id": f"subject-{number // 2}",
            "slide_id": f"slide-{number}" if number % 2 else None,
            "label": None if number % 3 == 2 else number % 3,
            "split": "archive",
            **BOX,
        }
        for number in range(count)
    ]
    uri = filesystems.join(folder, f"manifest-{count}.parquet")
    return uri, write_manifest(uri, pd.DataFrame(rows))


def make_archive(folder: str) -> Archive:
    return append_manifest(filesystems.join(folder, "archive"), *write_rows(folder, ROWS))


def make_bundle(folder: str, *, nulls: list[dict[str, Any]]) -> dict[str, str]:
    uri = filesystems.join(folder, "bundle")
    card = {"calibration": {"nulls": nulls}}
    return {"model_uri": uri, "model_digest": write_bundle(uri, Bundle(tensors={"w": np.zeros(1)}, config={}, card=card))}


def score(archive: Archive, slot: str, model: dict[str, str], *, version: int = 1, rows: int = ROWS) -> ScoreStore:
    """Rows score half their number plus one; row 5 has failed."""
    uri = archive.scores_uri(slot, version)
    notes = {"model_uri": model["model_uri"], "archive_digest": archive.digest_at(rows)}
    attributes = {"model_digest": model["model_digest"]}
    store = create_store(uri, rows=rows, map_size_px=SIDE_PX, shard_rows=SHARD_ROWS, attributes=attributes, notes=notes)
    samples = archive.read_rows(0, rows)["sample_id"]
    for shard in store.pending_shards():
        numbers = np.array(store.rows_of(shard))
        image = np.where(numbers == 5, np.nan, numbers / 2 + 1).astype(np.float32)
        failures = [Failure(row=5, sample_id=samples[5], reason="a torn file")] if 5 in numbers else []
        store.write_shard(shard, image=image, maps=np.zeros((len(numbers), SIDE_PX, SIDE_PX), np.float16), failures=failures)
    return store


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "PART_ROWS", 6)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Eleven rows in two parts, scored in two slots; a model's card has two distributions of three."""
    archive = make_archive(str(tmp_path))
    nulls = [null_to_dict(fit_empirical(NORMAL)), null_to_dict(fit_gamma(NORMAL)), {"kind": "tail", "why_none": "too few"}]
    model = make_bundle(str(tmp_path), nulls=nulls)
    score(archive, "ae", model)
    score(archive, "patchcore", model)
    return archive


def problems_of(uri: str, **options: Any) -> list[str]:
    return [str(problem) for problem in verify_archive(uri, **options).problems]


def test_a_whole_archive_is_verified_and_what_was_looked_at_is_said(archive: Archive) -> None:
    found = verify_archive(archive.uri)
    assert found.problems == []
    looked_at = "every value decoded and its SHA-256 compared"
    assert found.summary == [
        f"ae v1: 11 rows, 10 scored, 1 failed, 0 not finished; 3 shards, {looked_at}",
        f"patchcore v1: 11 rows, 10 scored, 1 failed, 0 not finished; 3 shards, {looked_at}",
        "11 rows in 2 files, the SHA-256 of each compared",
    ]


def test_a_quick_look_says_what_it_did_not_look_at(archive: Archive) -> None:
    part = next(Path(archive.uri, "rows").glob("part-000000000006*"))
    part.write_bytes(b"")
    found = verify_archive(archive.uri, slots=("ae",), quick=True)
    assert found.problems == []
    assert found.summary[0].endswith("files and records compared, values not decoded")
    assert found.summary[1] == "11 rows in 2 files, which were listed and not read"
    part.unlink()
    assert problems_of(archive.uri, quick=True) == [f"rows: {part} is missing"]


def test_one_slot_is_looked_at_where_one_is_named(archive: Archive) -> None:
    Path(archive.scores_uri("ae", 1), "status/c.1").unlink()
    assert problems_of(archive.uri, slots=("patchcore",)) == []
    assert problems_of(archive.uri) == ["ae v1, shard 1 (rows 4 to 7): status/c.1 is missing"]
    with pytest.raises(ArchiveError, match="no scores of vae; there are ae, patchcore"):
        verify_archive(archive.uri, slots=("vae",))


def test_an_altered_part_of_the_rows_is_named(archive: Archive) -> None:
    part = next(Path(archive.uri, "rows").glob("part-000000000006*"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    [problem] = problems_of(archive.uri)
    assert "rows 6 to 10 of the archive were changed" in problem
    assert part.name in problem


def test_a_store_whose_metadata_is_gone_is_named(archive: Archive) -> None:
    Path(archive.scores_uri("ae", 1), "zarr.json").unlink()
    [problem] = problems_of(archive.uri)
    assert problem.startswith("ae v1: cannot be opened (no score store at")


def test_another_model_other_rows_and_missing_rows_are_named(archive: Archive, tmp_path: Path) -> None:
    make_bundle(str(tmp_path), nulls=[])  # trained again to the same place
    store = open_store(archive.scores_uri("ae", 1))
    store.grow(ROWS, notes={"archive_digest": "another" * 9})
    problems = problems_of(archive.uri, slots=("ae",))
    assert len(problems) == 2
    assert "ae v1: the bundle at" in problems[0]
    assert "it names anotheranoth" in problems[1]
    append_manifest(archive.uri, *write_rows(str(tmp_path), ROWS + 3))
    assert any("covers 11 of the archive's 14 rows" in problem for problem in problems_of(archive.uri, slots=("patchcore",)))


def test_a_failure_of_another_sample_is_named(archive: Archive) -> None:
    record = Path(archive.scores_uri("ae", 1), "records/shard-00000001.json")
    record.write_text(record.read_text().replace(archive.read_rows(5, 6)["sample_id"][5], "somebody"))
    [problem] = problems_of(archive.uri)
    assert "its record calls row 5 'somebody'" in problem


def test_a_bundle_that_cannot_be_reached_is_said_and_no_problem(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "bundle").rename(tmp_path / "moved")
    found = verify_archive(archive.uri)
    assert found.problems == []
    assert any("its model was not compared" in line for line in found.summary)


def test_an_archive_without_scores_is_a_problem(tmp_path: Path) -> None:
    assert problems_of(make_archive(str(tmp_path)).uri) == [f"{tmp_path}/archive: holds no scores yet"]


def test_a_single_store_is_verified_against_its_manifest(tmp_path: Path) -> None:
    manifest_uri, digest = write_rows(str(tmp_path), 6)
    samples = read_manifest(manifest_uri)["sample_id"]
    model = make_bundle(str(tmp_path), nulls=[])
    attributes = {"manifest_digest": digest, "model_digest": model["model_digest"]}
    notes = {"manifest_uri": manifest_uri, "model_uri": model["model_uri"]}
    store = create_store(str(tmp_path / "ae.zarr"), rows=6, map_size_px=None, shard_rows=4, attributes=attributes, notes=notes)
    assert problems_of(store.uri) == ["ae.zarr, shards 0 to 1 (rows 0 to 5): pending"]
    for shard in (0, 1):
        rows = store.rows_of(shard)
        failures = [Failure(row=5, sample_id=samples[5], reason="torn")] if shard else []
        store.write_shard(shard, image=np.zeros(len(rows), np.float32), maps=None, failures=failures)
    assert problems_of(store.uri) == []
    Path(manifest_uri).write_bytes(Path(manifest_uri).read_bytes() + b" ")
    [problem] = problems_of(store.uri)
    assert "is not the one that was scored" in problem


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_an_export_holds_every_row_of_every_slot_with_its_p_values(archive: Archive, tmp_path: Path, suffix: str) -> None:
    into = str(tmp_path / f"scores.{suffix}")
    lines = export_archive(archive.uri, into)
    assert lines == ["ae v1: 11 rows; no p_tail: too few", "patchcore v1: 11 rows; no p_tail: too few", f"written to {into}"]
    table = pd.read_parquet(into) if suffix == "parquet" else pd.read_csv(into)
    assert table["slot"].tolist() == ["ae"] * ROWS + ["patchcore"] * ROWS
    one = table[table["slot"] == "ae"].set_index("row")
    rows = open_archive(archive.uri).read_rows(0, ROWS)
    for name in ("sample_id", "subject_id", "slide_id", "dataset", "split"):
        assert one[name].fillna("").tolist() == rows[name].fillna("").tolist()
    assert one["label"].fillna(-1).tolist() == rows["label"].fillna(-1).tolist()
    scored = one.index != 5
    assert one["status"].tolist() == ["scored"] * 5 + ["failed"] + ["scored"] * 5
    assert one["reason"][5] == "a torn file"
    assert one["reason"][scored].isna().all()
    scores = (np.arange(ROWS) / 2 + 1)[scored]
    np.testing.assert_array_equal(one["image_score"][scored], scores)
    np.testing.assert_array_equal(one["p_conformal"][scored], conformal_p_values(NORMAL, scores))
    np.testing.assert_allclose(one["p_gamma"][scored], fit_gamma(NORMAL).p_values(scores), rtol=1e-12)
    assert one["p_tail"].isna().all()
    assert one.loc[5, ["image_score", "p_conformal", "p_gamma"]].isna().all()


def test_of_a_slot_the_newest_version_is_exported_and_what_is_pending_is_said(archive: Archive, tmp_path: Path) -> None:
    store = score(archive, "ae", {"model_uri": str(tmp_path / "gone"), "model_digest": "x"}, version=2)
    Path(store.uri, "records/shard-00000000.json").unlink()
    lines = export_archive(archive.uri, str(tmp_path / "scores.parquet"), slots=("ae",))
    assert "ae v2: 11 rows; no p-values: its model" in lines[0]
    table = pd.read_parquet(tmp_path / "scores.parquet")
    assert table["version"].unique().tolist() == [2]
    assert table["status"].tolist() == ["pending"] * 4 + ["scored", "failed"] + ["scored"] * 5
    assert table["image_score"].isna().sum() == 5


def test_an_archive_that_was_appended_is_exported_as_far_as_it_was_scored(archive: Archive, tmp_path: Path) -> None:
    append_manifest(archive.uri, *write_rows(str(tmp_path), 20))
    export_archive(archive.uri, str(tmp_path / "scores.parquet"), slots=("ae",))
    assert pd.read_parquet(tmp_path / "scores.parquet")["row"].tolist() == list(range(ROWS))


def test_rows_are_written_part_by_part(archive: Archive, tmp_path: Path) -> None:
    export_archive(archive.uri, str(tmp_path / "scores.parquet"))
    file = parquet.ParquetFile(tmp_path / "scores.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [6, 5, 6, 5]


def test_an_export_that_fails_leaves_no_file(archive: Archive, tmp_path: Path) -> None:
    next(Path(archive.uri, "rows").glob("part-000000000006*")).unlink()
    with pytest.raises(ArchiveError, match="rows 6 to 10 of the archive are missing"):
        export_archive(archive.uri, str(tmp_path / "out" / "scores.csv"))
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(ValueError, match=r"written as .parquet or .csv"):
        export_archive(archive.uri, str(tmp_path / "scores.xlsx"))
    with pytest.raises(ArchiveError, match="no scores of vae"):
        export_archive(archive.uri, str(tmp_path / "scores.csv"), slots=("vae",))


def test_the_commands_say_what_they_found_and_exit_with_1_where_something_is_wrong(archive: Archive, tmp_path: Path) -> None:
    runner = CliRunner()
    whole = runner.invoke(app, ["scores", "verify", archive.uri])
    assert whole.exit_code == 0
    assert "verified: no problem" in whole.output
    exported = runner.invoke(app, ["scores", "export", archive.uri, str(tmp_path / "t.csv"), "--slot", "ae"])
    assert exported.exit_code == 0
    assert len((tmp_path / "t.csv").read_text().splitlines()) == ROWS + 1
    Path(archive.scores_uri("ae", 1), "records/shard-00000001.json").unlink()
    damaged = runner.invoke(app, ["scores", "verify", archive.uri, "--quick"])
    assert damaged.exit_code == 1
    assert "PROBLEM ae v1, shard 1 (rows 4 to 7)" in damaged.output
    nothing = runner.invoke(app, ["scores", "verify", str(tmp_path / "nothing")])
    assert nothing.exit_code == 1
    assert "no score store at" in nothing.output


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[str]:
    with s3_server(tmp_path / "s3") as server:
        yield server.bucket


@pytest.mark.slow
def test_an_archive_in_a_bucket_is_verified_and_exported_to_it(bucket: str) -> None:
    archive = make_archive(bucket)
    model = make_bundle(bucket, nulls=[null_to_dict(fit_empirical(NORMAL))])
    store = score(archive, "ae", model)
    assert problems_of(archive.uri) == []
    export_archive(archive.uri, f"{bucket}/scores.parquet")
    assert filesystems.read_table(f"{bucket}/scores.parquet")["p_conformal"].notna().sum() == ROWS - 1
    chunk = f"{store.uri}/anomaly_map/c.1.0.0"
    filesystems.write_bytes(chunk, filesystems.read_bytes(chunk)[:-1])
    [problem] = problems_of(archive.uri)
    assert problem.startswith("ae v1, shard 1 (rows 4 to 7): anomaly_map/c.1.0.0 holds")
