"""Which rows are compared, what is left out, drift source by source, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from methods.evaluation.distributions import ks_distance
from methods.evaluation.drift import KS, PSI, DriftConfig
from methods.evaluation.histograms import count_scores
from methods.evaluation.metrics import UndefinedMetricError
from storage import archives, filesystems
from storage.archives import Archive, ArchiveError, append_manifest
from storage.manifest import ManifestError, sample_id, write_manifest
from storage.models import Bundle, write_bundle
from storage.scores import Failure, ScoreStore, ScoreStoreError, create_store, open_store
from tasks.drift import describe_drift, measure_drift, tabulate_groups
from tasks.drift_sides import find_sides, parse_rows, read_side

QUICK = DriftConfig(replicates=60, permutations=60)
POINT = {"level": "image", "split": "validation", "value": 1.5, "rule": "conformal <rate>", "detail": "guaranteed 0.05"}
SHARD_ROWS = 16
BOX = {"level": 0, "x_px": 0, "y_px": 0, "width_px": 8, "height_px": 8}


def write_rows(folder: Path, name: str, rows: list[dict[str, Any]]) -> tuple[str, str, list[str]]:
    """A manifest; gives its URI, digest and sample ids."""
    whole = [
        {
            "sample_id": sample_id(f"{name}{number:060d}", **BOX),  # type: ignore[arg-type]
            "uri": f"{number}.png",
            "sha256": f"{number:064d}",
            "subject_id": f"subject-{number // 3}",
            **BOX,
            **row,
        }
        for number, row in enumerate(rows)
    ]
    uri = str(folder / f"{name}.parquet")
    return uri, write_manifest(uri, pd.DataFrame(whole)), [row["sample_id"] for row in whole]


def fill(store: ScoreStore, scores: np.ndarray, samples: list[str], *, failed: tuple[int, ...] = (), shards: int | None = None) -> None:
    for shard in range(store.shard_count if shards is None else shards):
        rows = store.rows_of(shard)
        failures = [Failure(row, samples[row], "torn") for row in failed if row in rows]
        store.write_shard(shard, image=scores[rows.start : rows.stop].astype(np.float32), maps=None, failures=failures)


def make_store(uri: str, rows: int, model: dict[str, str], **attributes: str) -> ScoreStore:
    notes = {"model_uri": model["uri"], **attributes}
    return create_store(uri, rows=rows, map_size_px=None, shard_rows=SHARD_ROWS, attributes={"model_digest": model["digest"]}, notes=notes)


@pytest.fixture
def model(tmp_path: Path) -> dict[str, str]:
    return make_model(tmp_path, "model")


def make_model(folder: Path, name: str) -> dict[str, str]:
    card = {"calibration": {"operating_points": [POINT, {**POINT, "level": "pixel", "value": 9.0}]}, "name": name}
    uri = str(folder / name)
    return {"uri": uri, "digest": write_bundle(uri, Bundle(tensors={"w": np.zeros(1)}, config={}, card=card))}


@pytest.fixture
def reference(tmp_path: Path, model: dict[str, str]) -> str:
    """Rows 0 … 59 are validation normals of two clinics, one failed and one excluded; the others are no normals of validation."""
    rows = [{"dataset": f"clinic {number // 3 % 2}", "label": 0, "split": "validation"} for number in range(60)]
    rows[59]["excluded"] = "blurred"
    rows += [{"dataset": "clinic 0", "label": number % 2, "split": "validation" if number % 2 else "test"} for number in range(30)]
    uri, digest, samples = write_rows(tmp_path, "a", rows)
    store = make_store(str(tmp_path / "ae.zarr"), len(rows), model, manifest_uri=uri, manifest_digest=digest)
    scores = np.random.default_rng(0).normal(size=len(rows))
    scores[60:] += 50
    fill(store, scores, samples, failed=(3, 59))
    return store.uri


@pytest.fixture
def archive(tmp_path: Path, model: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Archive:
    """Rows 0 … 119 of two clinics as in the reference, 120 … 179 of a new scanner that scores 4 higher; row 5 failed, 176 … are pending."""
    monkeypatch.setattr(archives, "PART_ROWS", 50)
    rows = [{"dataset": f"clinic {number // 3 % 2}" if number < 120 else "scanner </td>"} for number in range(180)]
    uri, digest, samples = write_rows(tmp_path, "b", rows)
    archive = append_manifest(str(tmp_path / "archive"), uri, digest)
    scores = np.random.default_rng(1).normal(size=180)
    scores[120:] += 4
    store = make_store(archive.scores_uri("ae", 1), 180, model)
    fill(store, scores, samples, failed=(5,), shards=11)
    return archive


def measure(reference: Any, archive: Any, root: str) -> dict[str, Any]:
    found = measure_drift.fn(reference, archive, config=QUICK, root=root)
    content: dict[str, Any] = filesystems.read_json(found["json_uri"])
    assert (found["psi"], found["psi_low"]) == (content["figures"][1]["value"], content["figures"][1]["low"])
    return {"reference": found, **content}


def test_the_normals_of_validation_are_the_reference_and_a_new_scanner_shows(reference: str, archive: Archive) -> None:
    found = measure(*find_sides(archive.uri, reference), archive.uri)
    assert [(side["images"], side["left_out"]) for side in found["sides"]] == [
        (58, {"excluded": 1, "failed": 1, "pending": 0}),
        (175, {"excluded": 0, "failed": 1, "pending": 4}),
    ]
    assert [figure["name"] for figure in found["figures"][:2]] == [KS, PSI]
    assert found["figures"][0]["p"] < 0.05
    assert found["figures"][-1]["name"] == "share from 1.5 on: conformal <rate>"
    groups = {row["group"]: row for row in found["groups"]}
    assert list(groups) == ["clinic 0", "clinic 1", "scanner </td>"]
    assert {row["grouping"] for row in groups.values()} == {"source"}
    new = groups["scanner </td>"]
    assert new["images"] == [0, 56]
    assert new["against"] == "all of the reference"
    assert new["note"].startswith("new")
    assert new["figures"][0]["low"] > 0.2
    for clinic in ("clinic 0", "clinic 1"):
        assert groups[clinic]["against"] == "the same group"
        assert groups[clinic]["figures"][0]["low"] == 0
        assert groups[clinic]["figures"][0]["p"] > 0.05


def test_the_distance_is_that_of_the_scores_that_are_there(reference: str, archive: Archive) -> None:
    sides = find_sides(archive.uri, reference)
    first, second = (read_side(side) for side in sides)
    expected = open_store(reference).image_scores()
    np.testing.assert_array_equal(first.scores, np.delete(expected[:59], 3))
    scores = np.concatenate([first.scores, second.scores])
    counts = count_scores(scores, np.repeat([0, 1], [len(first.scores), len(second.scores)]), np.arange(len(scores)))
    assert measure(*sides, archive.uri)["figures"][0]["value"] == ks_distance(counts, np.ones((1, len(scores))))[0]


def test_an_archive_is_compared_with_its_own_earlier_rows(archive: Archive) -> None:
    reference, later = find_sides(archive.uri, archive.uri, rows=(120, None))
    assert (reference["first"], reference["stop"], later["first"], later["stop"]) == (0, 120, 120, 180)
    found = measure(reference, later, archive.uri)
    assert [side["images"] for side in found["sides"]] == [119, 56]
    gone = next(row for row in found["groups"] if row["group"] == "clinic 0")
    assert gone["note"] == "undefined: the archive has no image of it"
    assert gone["figures"] == []
    with pytest.raises(ValueError, match="its own earlier rows: give --rows"):
        find_sides(archive.uri, archive.uri)
    with pytest.raises(ArchiveError, match="holds rows 0 to 179, asked for 170 to 189"):
        find_sides(archive.uri, archive.uri, rows=(170, 190))


def test_what_was_found_is_said_in_lines_and_as_a_table(reference: str, archive: Archive) -> None:
    found = measure(*find_sides(archive.uri, reference), archive.uri)["reference"]
    lines = describe_drift(found)
    assert lines[0].startswith("reference: 58 images of 20 subjects")
    assert lines[2].startswith(f"{KS}: 0.")
    table = tabulate_groups(found)
    assert [row["archive"] for row in table] == [60, 59, 56]
    assert "&lt;/td&gt;" in filesystems.read_bytes(found["html_uri"]).decode()
    assert measure(*find_sides(archive.uri, reference), archive.uri)["reference"] == found


def test_scores_of_another_model_are_refused(reference: str, archive: Archive, tmp_path: Path) -> None:
    other = make_model(tmp_path, "other")
    store = make_store(archive.scores_uri("other", 1), 180, other)
    fill(store, np.zeros(180), [""] * 180)
    assert find_sides(archive.uri, reference)[1]["store_uri"].endswith("/ae/v1")
    with pytest.raises(ValueError, match=r"different models are not compared: .* has other v1 of model .* Score the archive with"):
        find_sides(archive.uri, reference, slot="other")
    with pytest.raises(ArchiveError, match="no scores of vae; there are ae, other"):
        find_sides(archive.uri, reference, slot="vae")
    with pytest.raises(ValueError, match=r"choose one with --slot \(ae, other\)"):
        find_sides(archive.uri, archive.uri, rows=(90, None))
    assert find_sides(archive.uri, archive.uri, slot="other", rows=(90, None))[0]["store_uri"] == store.uri
    reread = find_sides(archive.uri, reference)[0] | {"model_digest": "0" * 64}
    with pytest.raises(ScoreStoreError, match="model_digest"):
        read_side(reread)  # type: ignore[arg-type]


def test_a_changed_manifest_is_refused(reference: str, archive: Archive, tmp_path: Path) -> None:
    sides = find_sides(archive.uri, reference)
    manifest = tmp_path / "a.parquet"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with pytest.raises(ManifestError, match="is not the manifest that was scored"):
        read_side(sides[0])


def test_a_side_without_scores_is_named_with_the_reason(archive: Archive) -> None:
    sides = find_sides(archive.uri, archive.uri, rows=(177, None))
    with pytest.raises(UndefinedMetricError, match=r"rows 177 to 179 has no scored item \(0 excluded, 0 failed, 3 pending\)"):
        measure(*sides, archive.uri)


def test_a_card_that_is_gone_is_said_and_costs_the_shares(reference: str, archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "model").rename(tmp_path / "moved")
    found = measure(*find_sides(archive.uri, reference), archive.uri)
    assert found["notes"] == ["No shares at thresholds: the model's card cannot be read (FileNotFoundError)."]
    assert not [figure for figure in found["figures"] if figure["name"].startswith("share")]


def test_scores_that_come_later_are_another_comparison(reference: str, archive: Archive) -> None:
    before = find_sides(archive.uri, reference)[1]
    store = open_store(archive.scores_uri("ae", 1))
    store.write_shard(11, image=np.zeros(4, np.float32), maps=None, failures=[])
    after = find_sides(archive.uri, reference)[1]
    assert before["finished"] != after["finished"]
    assert before | {"finished": ""} == after | {"finished": ""}


@pytest.mark.parametrize(("text", "rows"), [(":", (0, None)), ("5:", (5, None)), (":7", (0, 7)), ("5:7", (5, 7))])
def test_rows_are_first_and_stop(text: str, rows: tuple[int, int | None]) -> None:
    assert parse_rows(text) == rows


@pytest.mark.parametrize("text", ["", "5", "7:5", "5:5", "a:b", "-1:5", "1:2:3"])
def test_other_rows_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected rows as FIRST:STOP"):
        parse_rows(text)
