"""Train a detector on the development manifest, calibrate it on validation, and write its bundle with its card."""

import platform
import shutil
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field

from methods.detectors.interface import Detector
from methods.detectors.registry import DetectorConfig, build_detector
from methods.evaluation.bootstrap import BootstrapConfig
from storage import filesystems
from storage.manifest import read_manifest
from storage.models import Bundle, bundle_digest, bundle_is_complete, write_bundle
from tasks.caching import cached_task, code_fingerprint, digest_of
from tasks.calibrate import CalibrationConfig, calibrate
from tasks.execution import available_cores, keep_freed_memory
from tasks.progress import show_progress
from tasks.references import ModelReference
from tasks.samples import SampleDataset
from tasks.server import home
from tasks.training_pictures import draw_training, show_training

if TYPE_CHECKING:
    from methods.training.fit import FitReport


class TrainingConfig(BaseModel):
    """What is the same for every detector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    samples_per_subject: int | None = Field(
        default=None, ge=1, description="most training samples of one subject, drawn by the seed; null: all"
    )
    selection_samples: int | None = Field(
        default=None, ge=2, description="most validation samples, half of each class, on which epochs are compared; null: all"
    )
    patience: int | None = Field(default=None, ge=1, description="epochs without a better one after which training stops; null: never")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field(default="32-true", description="mixed ones halve memory on GPUs")
    threads: int | None = Field(default=None, ge=1, description="computing threads; one a core when not given")


@cached_task(
    name="train",
    run_name="train {detector.kind}",
    outputs_exist=lambda model: bundle_is_complete(model["uri"]) and bundle_digest(model["uri"]) == model["digest"],
)
def train_detector(
    manifest_uri: str,
    manifest_digest: str,
    *,
    detector: DetectorConfig,
    training: TrainingConfig,
    calibration: CalibrationConfig = CalibrationConfig(),
    bootstrap: BootstrapConfig,
    store: str,
) -> ModelReference:
    """Train one detector. It is given the development manifest only: no row of the test split can be read from it."""
    keep_freed_memory()
    rows = read_manifest(manifest_uri, digest=manifest_digest)
    rows = rows[rows["label"].notna()]
    validation = rows[rows["split"] == "validation"]
    normal = _cap_per_subject(rows[(rows["split"] == "train") & (rows["label"] == 0)], training)
    name = f"{detector.kind}-{digest_of(manifest_digest, detector, training, calibration, bootstrap, code_fingerprint(__name__))[:16]}"
    checkpoints = home() / "training" / name  # on this machine, whatever the store is: a killed training goes on from its last epoch
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        model = build_detector(detector)
        report = _fit(model, normal, validation, training, str(checkpoints))
    card = {
        "trained_on": {"manifest_digest": manifest_digest, "samples": len(normal), "subjects": int(normal["subject_id"].nunique())},
        "training": {**asdict(report), "seed": training.seed},
        "calibration": calibrate(model, normal=normal, validation=validation, config=calibration, bootstrap=bootstrap),
        "code": {"normascope": version("normascope"), "fingerprint": code_fingerprint(__name__)},
        "packages": {name: version(name) for name in ("torch", "lightning", "numpy")} | {"python": platform.python_version()},
    }
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    uri = filesystems.join(store, "models", name)
    pictures = draw_training(model, validation, seed=training.seed)
    digest = write_bundle(uri, Bundle(tensors=tensors, config=detector.model_dump(mode="json"), card=card, pictures=pictures))
    show_training(detector.kind, report, pictures)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return ModelReference(uri=uri, digest=digest, kind=detector.kind)


def _fit(model: Detector, normal: pd.DataFrame, validation: pd.DataFrame, training: TrainingConfig, checkpoints: str) -> "FitReport":
    from methods.training.fit import Validation, fit, training_images  # here, because Lightning takes seconds to import

    train_images = SampleDataset(normal, size_px=model.input_size_px)
    compared = _cap_per_class(validation, training)
    held_out = Validation(SampleDataset(compared, size_px=model.input_size_px), compared["label"].to_numpy(int)) if len(compared) else None
    with show_progress(f"train {type(model).__name__}", training_images(model, len(train_images))) as bar:
        threads = training.threads or available_cores()
        return fit(
            model,
            train_images,
            validation=held_out,
            seed=training.seed,
            threads=threads,
            checkpoints=checkpoints,
            patience=training.patience,
            precision=training.precision,
            on_step=bar.advance,
        )


def _cap_per_subject(rows: pd.DataFrame, training: TrainingConfig) -> pd.DataFrame:
    if training.samples_per_subject is None:
        return rows
    shuffled = rows.sample(frac=1, random_state=training.seed)
    return shuffled.groupby("subject_id", sort=False).head(training.samples_per_subject).sort_index()


def _cap_per_class(rows: pd.DataFrame, training: TrainingConfig) -> pd.DataFrame:
    if training.selection_samples is None:
        return rows
    shuffled = rows.sample(frac=1, random_state=training.seed)
    return shuffled.groupby("label", sort=False).head(training.selection_samples // 2).sort_index()
