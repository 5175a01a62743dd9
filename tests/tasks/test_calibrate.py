"""What is chosen on validation after training, with a detector whose best choice is known."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from methods.detectors.interface import Scores
from methods.evaluation.bootstrap import BootstrapConfig
from methods.evaluation.histograms import count_scores
from tasks.calibrate import CalibrationConfig, calibrate
from tasks.promises import check_nulls, check_points
from tests.phantoms import write_pictures

BOOTSTRAP = BootstrapConfig(replicates=20)


class Redness:
    """Scores by the distance to stripes' grey, times a number whose sign may be wrong."""

    input_size_px = 32
    batch_size = 8
    tuned = "factor"

    def __init__(self, *candidates: float) -> None:
        self._candidates, self.factor = candidates, 0.0

    def candidates(self) -> tuple[float, ...]:
        return self._candidates

    def use(self, value: float) -> None:
        self.factor = value

    def training_threshold(self, batches: Iterable[Tensor], *, deviations: float) -> float:
        return deviations * float(torch.cat([self.score(batch).pixel for batch in batches]).std())

    def score(self, images: Tensor) -> Scores:
        pixel = self.factor * (images[:, 0] - images[:, 1])
        return Scores(image=pixel.mean((1, 2)), pixel=pixel)

    def state_dict(self) -> dict[str, Tensor]:
        return {}


def rows_of(folder: Path, kind: str) -> pd.DataFrame:
    files = sorted((folder / kind).iterdir())
    text = {name: pd.array([None] * len(files), "string") for name in ("frame", "transform")}
    masks = [str(folder / "masks" / file.name) if kind == "abnormal" else None for file in files]
    return pd.DataFrame(
        {
            "uri": [str(file) for file in files],
            "sha256": [file.name for file in files],
            "mask_uri": pd.array(masks, "string"),
            "mask_sha256": pd.array(masks, "string"),
            "label": pd.array([int(kind == "abnormal")] * len(files), "Int8"),
            "subject_id": [file.stem for file in files],
            "level": 0,
            **{"x_px": 0, "y_px": 0, "width_px": 64, "height_px": 64},
            **text,
        }
    )


@pytest.fixture(scope="module")
def normal_and_abnormal(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, pd.DataFrame]:
    folder = write_pictures(tmp_path_factory.mktemp("pictures"), normal=30, abnormal=6)
    return rows_of(folder, "normal"), rows_of(folder, "abnormal")


def calibrated(model: Redness, normal: pd.DataFrame, validation: pd.DataFrame, **changes: object) -> dict:
    return calibrate(model, normal=normal, validation=validation, config=CalibrationConfig(**changes), bootstrap=BOOTSTRAP)


def test_the_number_that_is_best_on_validation_is_set_and_what_was_tried_is_kept(normal_and_abnormal) -> None:
    normal, abnormal = normal_and_abnormal
    model = Redness(-1.0, 2.0, 1.0)
    found = calibrated(model, normal, pd.concat([normal, abnormal], ignore_index=True))
    assert model.factor == 2.0  # as good as 1.0, and named before it
    assert found["tuned"]["value"] == 2.0
    assert found["tuned"]["by"] == "highest pixel average precision on validation"
    tried = dict(found["tuned"]["tried"])
    assert tried[2.0] == tried[1.0] > tried[-1.0]


def test_each_level_has_its_operating_points_the_preferred_one_first(normal_and_abnormal) -> None:
    normal, abnormal = normal_and_abnormal
    found = calibrated(Redness(1.0), normal, pd.concat([normal, abnormal], ignore_index=True), deviations=2, deviation_samples=7)
    assert [(point["level"], point["split"], point["rule"]) for point in found["operating_points"]] == [
        ("image", "validation", "highest Youden index"),
        ("image", "validation", "highest Dice"),
        ("image", "validation", "conformal false-positive rate of at most 0.05"),
        ("image", "validation", "false-positive rate of at most 0.1 on normals"),
        ("image", "validation", "false-positive rate of at most 0.05 on normals"),
        ("image", "validation", "2 standard deviations above the mean of normals"),
        ("pixel", "validation", "highest Dice"),
        ("pixel", "train", "2 standard deviations of training scores"),
        ("pixel", "validation", "false-positive rate of at most 0.05 on normals"),
    ]
    assert found["operating_points"][7]["detail"] == "7 images"
    assert {level: point["rule"] for level, point in found["thresholds"].items()} == {
        "image": "highest Youden index",
        "pixel": "highest Dice",
    }
    assert "why_none" not in found
    assert {row["name"] for row in found["metrics"]} >= {"AUROC", "Dice", "sensitivity"}


def test_without_anomalies_the_thresholds_that_need_none_are_taken_and_it_is_said(normal_and_abnormal) -> None:
    normal, _ = normal_and_abnormal
    model = Redness(-1.0, 1.0)
    found = calibrated(model, normal, normal)
    assert found["tuned"] == {"name": "factor", "value": -1.0, "by": "configuration: the first candidate, as validation lacks a class"}
    assert found["thresholds"]["image"]["rule"] == "conformal false-positive rate of at most 0.05"
    assert found["thresholds"]["pixel"]["rule"] == "3 standard deviations of training scores"
    assert found["metrics"] == []
    assert "30 normal and 0 abnormal" in found["why_none"]
    assert calibrated(model, normal, normal.iloc[:0]) == {"why_none": "there is no validation split"}


def test_anomalies_without_masks_give_image_metrics_and_pixel_thresholds_that_need_no_anomaly(normal_and_abnormal) -> None:
    normal, abnormal = normal_and_abnormal
    validation = pd.concat([normal, abnormal.assign(mask_uri=pd.NA, mask_sha256=pd.NA)], ignore_index=True)
    found = calibrated(Redness(-1.0, 1.0), normal, validation)
    assert found["tuned"]["by"] == "highest image AUROC on validation"
    assert {row["level"] for row in found["metrics"]} == {"image"}
    assert found["thresholds"]["pixel"]["rule"] == "3 standard deviations of training scores"
    assert "why_none" not in found


def test_too_few_normals_for_a_promise_are_named_and_nothing_is_invented(normal_and_abnormal) -> None:
    normal, abnormal = normal_and_abnormal
    found = calibrated(Redness(1.0), normal, pd.concat([normal.iloc[:9], abnormal], ignore_index=True))
    assert "at least 19 calibration scores, got 9" in found["why_none"]
    kinds = {null["kind"]: null for null in found["nulls"]}
    assert "at least 10 normal scores, got 9" in kinds["gamma"]["why_none"]
    assert len(kinds["empirical"]["scores"]) == 9


def test_what_came_is_counted_on_the_split_that_is_given() -> None:
    scores, labels = np.arange(10, dtype=np.float32), np.array([0, 0, 0, 0, 0, 0, 1, 0, 1, 1])
    counts = count_scores(scores, labels, np.arange(10).astype(str))
    points = [{"level": "image", "split": "validation", "value": 6.0, "rule": "r", "detail": "d"}, {"level": "pixel", "value": 1.0}]
    first, second = check_points(points, counts, None, BOOTSTRAP)
    assert {row["name"]: row["value"] for row in first["came"]} == pytest.approx(
        {"sensitivity": 1.0, "specificity": 6 / 7, "balanced accuracy": 13 / 14, "F1": 6 / 7}
    )
    assert second["came"] == []

    rows = check_nulls([{"kind": "empirical", "scores": list(range(19))}, {"kind": "tail", "why_none": "few"}], scores + 15, labels)
    assert rows[1] == {"kind": "empirical", "rate": 0.05, "normal": pytest.approx(3 / 7), "abnormal": 1.0}
    assert rows[-1] == {"kind": "tail", "why_none": "few"}
