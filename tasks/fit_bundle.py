"""What a worker does to train: fit on the development manifest, calibrate on validation, write the bundle. Knows no Prefect."""

import platform
import shutil
from dataclasses import asdict
from importlib.metadata import version
from typing import NamedTuple

import pandas as pd

from methods.detectors.interface import Detector, Learner
from methods.evaluation.bootstrap import BootstrapConfig
from methods.training.outcome import FitReport
from methods.training.ranks import Rank
from storage.models import Bundle, BundleError, bundle_digest, bundle_is_complete, read_bundle, write_bundle
from tasks.calibrate import CalibrationConfig, calibrate
from tasks.execution import keep_freed_memory, take_gpu
from tasks.fingerprints import describe_code
from tasks.progress import show_progress
from tasks.torchrun import fit_by_torchrun
from tasks.training import TrainingJob, build_untrained, count_processes, fit_rows, select_rows
from tasks.training_pictures import draw_training


class Trained(NamedTuple):
    """A bundle's digest, and what of its training the UI shows."""

    digest: str
    report: FitReport
    pictures: dict[str, bytes]


def fit_bundle(job: TrainingJob, calibration: CalibrationConfig, bootstrap: BootstrapConfig, uri: str) -> Trained:
    """Train, calibrate and write a bundle, here; on a worker, with a GPU of its own where there are several.

    A whole bundle that is there is taken over: its name says all that the training follows from, and another run of the store, which has a
    cache of its own, may be reading it. Of two that train at the same time the first to end has its bundle kept: a second one's digest
    would differ by the seconds in its card.
    """
    if (finished := _read_finished(uri)) is not None:
        return finished
    take_gpu()
    keep_freed_memory()
    before = _digest_there(uri)
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
    bundle = Bundle(tensors=tensors, config=job.detector.model_dump(mode="json"), card=card, pictures=pictures)
    there = _digest_there(uri)
    digest = write_bundle(uri, bundle) if there is None or there == before else there
    shutil.rmtree(job.checkpoints, ignore_errors=True)
    return Trained(digest, report, pictures)


def _read_finished(uri: str) -> Trained | None:
    """What an earlier training of this name has written, if every file is as it was written."""
    if not bundle_is_complete(uri):
        return None
    try:
        digest = bundle_digest(uri)
        bundle = read_bundle(uri, digest=digest)
    except BundleError:
        return None
    told = {name: value for name, value in bundle.card["training"].items() if name != "seed"}
    return Trained(digest, FitReport(**told), bundle.pictures)


def _digest_there(uri: str) -> str | None:
    return bundle_digest(uri) if bundle_is_complete(uri) else None


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
