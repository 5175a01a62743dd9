"""Train a detector on the development manifest, calibrate it on validation, and write its bundle with its card."""

import platform
import shutil
from dataclasses import asdict
from importlib.metadata import version
from typing import NamedTuple

import pandas as pd

from methods.detectors.interface import Detector, Learner
from methods.detectors.registry import DetectorConfig
from methods.evaluation.bootstrap import BootstrapConfig
from methods.training.outcome import FitReport
from methods.training.ranks import Rank
from storage import filesystems
from storage.models import Bundle, bundle_digest, bundle_is_complete, write_bundle
from tasks.assets import tell_made
from tasks.caching import cached_task, code_fingerprint, digest_of
from tasks.calibrate import CalibrationConfig, calibrate
from tasks.execution import ExecutionConfig, executor_for, keep_freed_memory, take_gpu
from tasks.gpu_slots import hold_gpu_slot
from tasks.progress import show_progress
from tasks.references import ModelReference
from tasks.server import home
from tasks.torchrun import fit_by_torchrun
from tasks.training import TrainingConfig, TrainingJob, build_untrained, count_processes, fit_rows, select_rows
from tasks.training_pictures import draw_training, show_training


def is_there(model: ModelReference) -> bool:
    """Whether the bundle that a step ended with is still the one."""
    return bundle_is_complete(model["uri"]) and bundle_digest(model["uri"]) == model["digest"]


@cached_task(name="train", run_name="train {detector.kind}", outputs_exist=is_there, ignore=("execution",))
def train_detector(
    manifest_uri: str,
    manifest_digest: str,
    *,
    detector: DetectorConfig,
    training: TrainingConfig,
    calibration: CalibrationConfig,
    bootstrap: BootstrapConfig,
    store: str,
    execution: ExecutionConfig | None = None,
) -> ModelReference:
    """Train one detector. It is given the development manifest only: no row of the test split can be read from it.

    Args:
        manifest_uri: of the development manifest.
        manifest_digest: its digest.
        detector: what is trained.
        training: what is the same for every detector.
        calibration: how its scores become decisions.
        bootstrap: of the intervals in its card.
        store: where its bundle goes.
        execution: a worker trains there, beside others; None for this process.
    """
    name = f"{detector.kind}-{digest_of(manifest_digest, detector, training, calibration, bootstrap, code_fingerprint(__name__))[:16]}"
    checkpoints = home() / "training" / name  # on this machine, whatever the store is: a killed training goes on from its last epoch
    job = TrainingJob(
        manifest_uri=manifest_uri, manifest_digest=manifest_digest, detector=detector, training=training, checkpoints=str(checkpoints)
    )
    uri = filesystems.join(store, "models", name)
    work = (fit_bundle, job, calibration, bootstrap, uri)
    with hold_gpu_slot(execution):
        trained = fit_bundle(*work[1:]) if execution is None else executor_for(execution).run(*work)
    show_training(detector.kind, trained.report, trained.pictures)
    tell_made(uri, name=f"model {detector.kind} {trained.digest[:12]}", of=[manifest_uri], digest=trained.digest, seed=training.seed)
    return ModelReference(uri=uri, digest=trained.digest, kind=detector.kind)


class Trained(NamedTuple):
    """A bundle's digest, and what of its training the UI shows."""

    digest: str
    report: FitReport
    pictures: dict[str, bytes]


def fit_bundle(job: TrainingJob, calibration: CalibrationConfig, bootstrap: BootstrapConfig, uri: str) -> Trained:
    """Train, calibrate and write a bundle, here; on a worker, with a GPU of its own where there are several."""
    take_gpu()
    keep_freed_memory()
    train, validation = select_rows(job)
    model = build_untrained(job)
    report = _fit(model, train, validation, job)
    normal = train[train["label"] == 0]
    card = {
        "trained_on": {
            "manifest_digest": job.manifest_digest,
            "samples": len(train),
            "abnormal": len(train) - len(normal),
            "subjects": int(train["subject_id"].nunique()),
        },
        "training": {**asdict(report), "seed": job.training.seed},
        "calibration": calibrate(model, normal=normal, validation=validation, config=calibration, bootstrap=bootstrap),
        "code": describe_code(__name__),
        "packages": {name: version(name) for name in ("torch", "lightning", "numpy")} | {"python": platform.python_version()},
    }
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    pictures = draw_training(model, validation, seed=job.training.seed)
    digest = write_bundle(uri, Bundle(tensors=tensors, config=job.detector.model_dump(mode="json"), card=card, pictures=pictures))
    shutil.rmtree(job.checkpoints, ignore_errors=True)
    return Trained(digest, report, pictures)


def describe_code(module: str) -> dict[str, str]:
    """Version and fingerprint of the code of a task's module, for a card."""
    return {"normascope": version("normascope"), "fingerprint": code_fingerprint(module)}


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
