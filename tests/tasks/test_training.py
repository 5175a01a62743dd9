"""Which rows train a detector, and which it may not see."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter

from methods.detectors.registry import DetectorConfig
from methods.training.outcome import TrainingError
from methods.training.ranks import Rank
from storage.manifest import write_manifest
from tasks.torchrun import fit_by_torchrun
from tasks.training import TrainingConfig, TrainingJob, build_untrained, fit_rows, select_rows
from tests.phantoms import write_pictures

_CONFIG: TypeAdapter[DetectorConfig] = TypeAdapter(DetectorConfig)
SIMCLR = {"kind": "simclr", "input_size_px": 32, "epochs": 2, "training_batch_size": 4, "encoder": {"width": 4, "blocks": (1, 1, 1, 1)}}
AUTOENCODER = {"kind": "ae", "input_size_px": 16}


def make_job(folder: Path, detector: dict[str, Any], *, abnormal: int = 4, **training: Any) -> TrainingJob:
    """Eight normal samples and `abnormal` ones in train, two of each in validation, one without a label; two samples a subject."""
    write_pictures(folder / "pictures", normal=10, abnormal=6)
    normal, odd = (sorted((folder / "pictures" / name).iterdir()) for name in ("normal", "abnormal"))
    kinds = [(0, "train")] * 8 + [(0, "validation")] * 2 + [(1, "train")] * abnormal + [(1, "validation")] * 2 + [(None, "train")]
    files = [*normal, *odd[:abnormal], *odd[4:], normal[0]]
    rows = [
        {
            "sample_id": f"{number:032x}",
            "uri": str(path),
            "sha256": "0" * 64,
            "dataset": "d",
            "subject_id": str(number // 2),
            "label": label,
            "split": split,
            **dict(zip(("level", "x_px", "y_px", "width_px", "height_px"), (0, 0, 0, 64, 64), strict=True)),
        }
        for number, (path, (label, split)) in enumerate(zip(files, kinds, strict=True))
    ]
    uri = str(folder / "manifest.parquet")
    return TrainingJob(
        manifest_uri=uri,
        manifest_digest=write_manifest(uri, pd.DataFrame(rows)),
        detector=_CONFIG.validate_python(detector),
        training=TrainingConfig(threads=1, **training),
        checkpoints=str(folder / "checkpoints"),
    )


@pytest.mark.parametrize(("detector", "labels"), [(AUTOENCODER, [0] * 8), (SIMCLR, [0] * 8 + [1] * 4)])
def test_a_detector_trains_on_normal_samples_and_a_classifier_on_both_labels(
    tmp_path: Path, detector: dict[str, Any], labels: list[int]
) -> None:
    train, validation = select_rows(make_job(tmp_path, detector))
    assert train["label"].tolist() == labels
    assert set(train["split"]) == {"train"}
    assert (validation["label"].tolist(), set(validation["split"])) == ([0, 0, 1, 1], {"validation"})


@pytest.mark.parametrize(
    ("abnormal", "said"),
    [
        (0, r"0 abnormal samples; .* 2 of each: set `split\.train_on: both`"),
        (1, "1 abnormal sample; .* 2 of each: give more abnormal samples"),
    ],
)
def test_a_class_with_fewer_than_two_samples_is_refused_for_a_classifier_alone(tmp_path: Path, abnormal: int, said: str) -> None:
    with pytest.raises(TrainingError, match=f"8 normal samples and {said}"):
        select_rows(make_job(tmp_path, SIMCLR, abnormal=abnormal))
    train, _ = select_rows(make_job(tmp_path, AUTOENCODER, abnormal=abnormal))
    assert len(train) == 8


def test_a_cap_on_samples_of_a_subject_holds_for_both_labels(tmp_path: Path) -> None:
    train, _ = select_rows(make_job(tmp_path, SIMCLR, samples_per_subject=1))
    assert train["subject_id"].is_unique
    assert np.bincount(train["label"].astype(int)).tolist() == [4, 2]


def test_a_classifier_learns_from_rows_with_their_labels(tmp_path: Path) -> None:
    job, steps = make_job(tmp_path, SIMCLR), list[int]()
    train, validation = select_rows(job)
    report = fit_rows(build_untrained(job), train, validation, job, rank=Rank(), on_step=steps.append)
    assert sum(steps) == 2 * 12
    assert report.selected_by == "highest image AUROC on validation"
    assert len(report.curve) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_classifier_is_trained_by_two_processes(tmp_path: Path) -> None:
    job, steps = make_job(tmp_path, SIMCLR), list[int]()
    tensors, report = fit_by_torchrun(job, processes=2, on_step=steps.append)
    assert (report.processes, len(report.curve), sum(steps)) == (2, 2, 2 * 12)
    untrained = build_untrained(job).state_dict()
    assert tensors.keys() == untrained.keys()
    assert not all(np.array_equal(tensor.numpy(), untrained[name].numpy()) for name, tensor in tensors.items())
