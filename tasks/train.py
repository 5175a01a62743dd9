"""Train a detector on the development manifest, calibrate it on validation, and write its bundle with its card."""

import platform
import shutil
from dataclasses import asdict
from importlib.metadata import version

import pandas as pd

from methods.detectors.interface import Detector, Learner
from methods.detectors.registry import DetectorConfig
from methods.evaluation.bootstrap import BootstrapConfig
from methods.training.outcome import FitReport
from methods.training.ranks import Rank
from storage import filesystems
from storage.models import Bundle, bundle_digest, bundle_is_complete, write_bundle
from tasks.caching import cached_task, code_fingerprint, digest_of
from tasks.calibrate import CalibrationConfig, calibrate
from tasks.execution import keep_freed_memory
from tasks.progress import show_progress
from tasks.references import ModelReference
from tasks.server import home
from tasks.torchrun import fit_by_torchrun
from tasks.training import TrainingConfig, TrainingJob, build_untrained, count_processes, fit_rows, select_rows
from tasks.training_pictures import draw_training, show_training


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
    calibration: CalibrationConfig,
    bootstrap: BootstrapConfig,
    store: str,
) -> ModelReference:
    """Train one detector. It is given the development manifest only: no row of the test split can be read from it."""
    keep_freed_memory()
    name = f"{detector.kind}-{digest_of(manifest_digest, detector, training, calibration, bootstrap, code_fingerprint(__name__))[:16]}"
    checkpoints = home() / "training" / name  # on this machine, whatever the store is: a killed training goes on from its last epoch
    job = TrainingJob(
        manifest_uri=manifest_uri, manifest_digest=manifest_digest, detector=detector, training=training, checkpoints=str(checkpoints)
    )
    train, validation = select_rows(job)
    model = build_untrained(job)
    report = _fit(model, train, validation, job)
    normal = train[train["label"] == 0]
    card = {
        "trained_on": {
            "manifest_digest": manifest_digest,
            "samples": len(train),
            "abnormal": len(train) - len(normal),
            "subjects": int(train["subject_id"].nunique()),
        },
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


def _fit(model: Detector, train: pd.DataFrame, validation: pd.DataFrame, job: TrainingJob) -> FitReport:
    """Train in this process, or in several that torchrun starts."""
    processes = count_processes(model, job.training)
    passes = model.epochs if isinstance(model, Learner) else 1
    with show_progress(f"train {type(model).__name__}", len(train) * passes) as bar:
        if processes == 1:
            return fit_rows(model, train, validation, job, rank=Rank(), on_step=bar.advance)
        tensors, report = fit_by_torchrun(job, processes=processes, on_step=bar.advance)
        model.load_state_dict(tensors)  # type: ignore[attr-defined]
        return report
