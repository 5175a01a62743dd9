"""The evaluation of a small store: what is counted, and what is refused with which words."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from PIL import Image

from methods.evaluation.bootstrap import BootstrapConfig
from methods.evaluation.metrics import UndefinedMetricError
from storage import filesystems
from storage.manifest import ManifestError, read_manifest, validate_manifest, write_manifest
from storage.models import Bundle
from storage.scores import Failure, ScoreStoreError, create_store
from tasks import evaluate as evaluated
from tasks.evaluate import EvaluationConfig, evaluate_store, read_resampled
from tasks.execution import ExecutionConfig
from tasks.references import EvaluationReference, ManifestReference, ModelReference, StoreReference
from tests.archives import write_archive_pictures, write_manifest_of

SIZE, ROWS, SHARD = 16, 40, 8
CARD = {
    "trained_on": {"abnormal": 0},
    "training": {},
    "calibration": {
        "thresholds": {level: {"value": 1.0, "rule": "r", "detail": "d"} for level in ("image", "pixel")},
        "operating_points": [{"level": "image", "split": "validation", "value": 1.0, "rule": "r", "detail": "d"}],
    },
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures, all tested, every fourth abnormal with a mask."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = read_manifest(write_manifest_of(write_archive_pictures(folder / "pictures", ROWS, size_px=32))[0])
    mask = np.zeros((32, 32), np.uint8)
    mask[:16] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    rows["split"], rows["label"] = "test", (np.arange(ROWS) // 2 % 4 == 0).astype(int)
    rows["mask_uri"] = pd.array([str(folder / "mask.png") if label else None for label in rows["label"]], "string")
    rows["mask_sha256"] = pd.array(
        [filesystems.sha256_of(str(folder / "mask.png")) if label else None for label in rows["label"]], "string"
    )
    write_manifest(str(folder / "manifest.parquet"), rows)
    return folder


class Case:
    """A manifest and a store of its rows; `rows` may be changed before `evaluate`."""

    def __init__(self, folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.rows = read_manifest(str(pictures / "manifest.parquet"))
        rng = np.random.default_rng(0)
        labels = self.rows["label"].to_numpy(float)
        self.image = (rng.normal(size=ROWS) + labels).astype(np.float32)
        self.maps = rng.integers(0, 9, (ROWS, SIZE, SIZE)).astype(np.float16)
        self.failures: list[int] = []
        self.shards = range(ROWS // SHARD)
        self.scored_with = ""  # another manifest's digest
        monkeypatch.setattr(evaluated, "read_bundle", lambda *_, **__: Bundle(tensors={}, config={"kind": "ae", "d": 4}, card=CARD))

    def evaluate(self, **config: object) -> EvaluationReference:
        uri = str(self.folder / "manifest.parquet")
        digest = write_manifest(uri, self.rows)
        attributes = {"manifest_digest": self.scored_with or digest, "model_digest": "m"}
        store = create_store(str(self.folder / "s.zarr"), rows=ROWS, map_size_px=SIZE, shard_rows=SHARD, attributes=attributes)
        for shard in self.shards:
            rows = store.rows_of(shard)
            failed = [Failure(row, str(row), "torn") for row in self.failures if row in rows]
            store.write_shard(shard, image=self.image[rows], maps=self.maps[rows], failures=failed)
        reference: EvaluationReference = evaluate_store.fn(
            StoreReference(uri=store.uri, manifest_digest=digest, model_digest="m", kind="ae"),
            ManifestReference(uri=uri, digest=digest, rows=ROWS, development_uri="", development_digest=""),
            ModelReference(uri="", digest="m", kind="ae"),
            {"scored": ROWS},
            evaluation=EvaluationConfig(bootstrap=BootstrapConfig(replicates=20), **config),  # type: ignore[arg-type]
            execution=ExecutionConfig(kind="process"),
            root=str(self.folder),
        )
        return reference


@pytest.fixture
def case(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(tmp_path, pictures, monkeypatch)


def result_of(reference: EvaluationReference) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(Path(reference["uri"]).read_text())
    return found


def test_image_and_pixel_metrics_are_those_of_the_scores_and_masks(case: Case) -> None:
    reference = case.evaluate()
    result = result_of(reference)
    found = {(row["level"], row["name"]): row["value"] for row in result["metrics"]}  # type: ignore[index]
    labels = case.rows["label"].to_numpy(int)
    assert found["image", "AUROC"] == pytest.approx(sklearn.metrics.roc_auc_score(labels, case.image.astype(float)), abs=1e-12)
    masks = np.zeros(case.maps.shape, bool)
    masks[labels == 1, : SIZE // 2] = True
    pixels = masks.ravel(), case.maps.ravel().astype(float)
    assert found["pixel", "AUROC"] == pytest.approx(sklearn.metrics.roc_auc_score(*pixels), abs=1e-12)
    assert found["pixel", "average precision"] == pytest.approx(sklearn.metrics.average_precision_score(*pixels), abs=1e-12)
    assert found["pixel", "Dice"] == pytest.approx(sklearn.metrics.f1_score(pixels[0], pixels[1] >= 1), abs=1e-12)
    assert {row["group"] for row in result["subgroups"]} >= {"arm", "back", "clinic", "ward"}  # type: ignore[index]
    resampled = read_resampled(reference)
    assert resampled.metrics["image/AUROC"][0] == pytest.approx(found["image", "AUROC"])
    assert len(resampled.metrics["pixel/AUROC"]) == 1 + 20 + len(resampled.groups["pixel"])
    assert result["prevalence"] == {"image": labels.mean(), "pixel": masks.mean()}
    assert result["detector"] == {"kind": "ae", "d": 4}
    for level in ("image", "pixel"):
        for curve in ("roc", "pr"):
            at, low, high = np.array(result["bands"][level][curve])  # type: ignore[call-overload]
            assert (at[0], at[-1], len(at)) == (0, 1, 101)
            assert (low <= high).all()
            assert (high - low).max() > 0


def test_one_subject_of_a_class_has_curves_without_bands(case: Case) -> None:
    case.rows["subject_id"] = np.where(case.rows["label"] == 1, "p1", case.rows["subject_id"])
    result = result_of(case.evaluate())
    assert (result["bands"], set(result["roc"])) == ({}, {"image", "pixel"})


def test_samples_that_scoring_has_not_reached_are_refused_and_left_out_and_counted_when_asked(case: Case) -> None:
    case.shards = range(4)
    with pytest.raises(ScoreStoreError, match="8 of 40 test samples are not scored yet"):
        case.evaluate()
    assert result_of(case.evaluate(unscored="count"))["unscored"] == {"pending": 8, "failed": 0}


def test_failed_samples_are_in_no_metric_and_counted(case: Case) -> None:
    case.failures = [3, 9]
    case.image[[3, 9]] = np.nan
    result = result_of(case.evaluate())
    assert result["unscored"] == {"pending": 0, "failed": 2}
    assert len(result["scores"]["normal"]) + len(result["scores"]["abnormal"]) == ROWS - 2  # type: ignore[arg-type]


def test_scores_of_one_manifest_are_not_read_with_the_labels_of_another(case: Case) -> None:
    case.scored_with = "f" * 64
    with pytest.raises(ScoreStoreError, match="manifest_digest"):
        case.evaluate()


def test_a_test_split_of_one_class_is_refused(case: Case) -> None:
    case.rows["label"] = 0
    with pytest.raises(UndefinedMetricError, match="40 normal and 0 abnormal samples"):
        case.evaluate()


def test_samples_that_occur_twice_and_samples_without_subject_are_refused_by_the_manifest(case: Case) -> None:
    for column, value, message in (("sample_id", case.rows["sample_id"][1], "sample_id"), ("subject_id", None, "subject_id")):
        rows = case.rows.copy()
        rows.loc[0, column] = value
        with pytest.raises(ManifestError, match=message):
            validate_manifest(rows)


def test_a_mask_with_three_values_is_refused_by_name(case: Case) -> None:
    grey = np.zeros((32, 32), np.uint8)
    grey[:4], grey[4:8] = 255, 128
    path = case.folder / "grey.png"
    Image.fromarray(grey).save(path)
    case.rows["mask_uri"] = case.rows["mask_uri"].where(case.rows["mask_uri"].isna(), str(path))
    case.rows["mask_sha256"] = case.rows["mask_sha256"].where(case.rows["mask_uri"].isna(), filesystems.sha256_of(str(path)))
    with pytest.raises(ValueError, match=r"a mask has two values .* this one has 3: 0, 128, 255"):
        case.evaluate()


def test_a_mask_that_is_smaller_than_its_picture_is_refused(case: Case) -> None:
    path = case.folder / "small.png"
    Image.fromarray(np.eye(20, dtype=np.uint8) * 255).save(path)
    case.rows["mask_uri"] = case.rows["mask_uri"].where(case.rows["mask_uri"].isna(), str(path))
    case.rows["mask_sha256"] = case.rows["mask_sha256"].where(case.rows["mask_uri"].isna(), filesystems.sha256_of(str(path)))
    with pytest.raises(ValueError, match="20 × 20 px, its sample reaches to 32 × 32"):
        case.evaluate()
