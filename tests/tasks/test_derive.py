"""One training for several scores: the derived model is the one that a training of its own would have given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from methods.detectors.registry import DetectorConfig, trains_alike
from methods.evaluation.bootstrap import BootstrapConfig
from storage.manifest import read_manifest, write_manifest
from storage.models import read_bundle
from tasks.calibrate import CalibrationConfig
from tasks.derive import DeriveError, derive_model, find_base
from tasks.train import train_detector
from tasks.training import TrainingConfig
from tests.archives import write_archive_pictures, write_manifest_of

_CONFIG: TypeAdapter[DetectorConfig] = TypeAdapter(DetectorConfig)
VAE = {"kind": "vae", "input_size_px": 16, "width": 4, "latent": 4, "samples": 2, "epochs": 1, "training_batch_size": 4}


def config(**changes: Any) -> DetectorConfig:
    return _CONFIG.validate_python(VAE | changes)


def test_a_derived_model_is_equal_to_one_that_was_trained_for_its_score(tmp_path: Path) -> None:
    rows = read_manifest(write_manifest_of(write_archive_pictures(tmp_path / "pictures", 16, size_px=16))[0])
    rows["split"], rows["label"] = ["train"] * 8 + ["validation"] * 8, [0] * 12 + [1] * 4
    uri = str(tmp_path / "development.parquet")
    manifest = uri, write_manifest(uri, rows)
    options: dict[str, Any] = {
        "training": TrainingConfig(threads=1),
        "calibration": CalibrationConfig(),
        "bootstrap": BootstrapConfig(replicates=10),
        "store": str(tmp_path / "store"),
    }
    base = train_detector.fn(*manifest, detector=config(), **options)
    wanted = config(score="iwae", samples=3)
    derived = read_bundle(derive_model.fn(base, *manifest, detector=wanted, **options)["uri"])
    trained = read_bundle(train_detector.fn(*manifest, detector=wanted, **options)["uri"])
    assert derived.config == trained.config == wanted.model_dump(mode="json")
    assert derived.card["calibration"] == trained.card["calibration"] != read_bundle(base["uri"]).card["calibration"]
    assert derived.card["derived_from"] == base["digest"]
    assert all(np.array_equal(derived.tensors[name], tensor) for name, tensor in trained.tensors.items())
    with pytest.raises(DeriveError, match="wants a training of its own"):
        derive_model.fn(base, *manifest, detector=config(latent=5), **options)


def test_only_what_differs_in_scoring_alone_shares_a_training() -> None:
    detectors = [config(latent=5), config(), config(score="iwae"), config(epochs=2), _CONFIG.validate_python({"kind": "ae"})]
    by_loss = [find_base(detectors, position, TrainingConfig()) for position in range(len(detectors))]
    assert by_loss == [None, None, 1, None, None]
    assert find_base(detectors, 2, TrainingConfig(selection="auroc")) is None  # the score chooses the epoch
    assert trains_alike(_CONFIG.validate_python({"kind": "sano", "score_time": 0.001}), _CONFIG.validate_python({"kind": "sano"}))
