"""One trial on one fold: train on the other folds, score this fold, its pseudo-anomalies and all anomalies, and keep the scores.

What is imported here is part of the cache's key and is imported by each worker: no Prefect, no report, no space, no Optuna.
"""

import shutil
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

from methods.detectors.interface import Detector, DetectorError
from methods.detectors.registry import DetectorConfig
from methods.pseudo_anomalies import PseudoAnomalies
from methods.training.outcome import FitReport, TrainingError
from methods.training.ranks import Rank
from methods.training.selection import score_all
from storage import filesystems
from storage.manifest import read_manifest
from tasks.execution import take_gpu
from tasks.fingerprints import code_fingerprint, digest_of
from tasks.samples import SampleDataset
from tasks.server import home
from tasks.training import TrainingConfig, TrainingJob, build_untrained, fit_rows, select_rows

_KEPT_BYTES = 1 << 30  # of decoded images of one kind


class Part(TypedDict):
    """A manifest that training may see."""

    uri: str
    digest: str


class FoldScores(TypedDict):
    """The scores of one trial on one fold as JSON: normal (n,), pseudo (n,), anomalies (m,), loss, and what the loss is; or why none."""

    uri: str
    digest: str
    failed: str | None


class FoldJob(BaseModel):
    """All that a worker needs to know.

    Attributes:
        fold: manifest of the normal samples, split into training and validation.
        anomalies: manifest of all anomalies of the validation split, which are scored and have no part in the training.
        seed: of the pseudo-anomalies.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fold: Part
    anomalies: Part
    detector: DetectorConfig
    training: TrainingConfig
    seed: int
    store: str


def fit_and_score(job: FoldJob) -> FoldScores:
    """Run anywhere, any number of times, with the same result."""
    take_gpu()
    name = digest_of(job, code_fingerprint(__name__))[:32]
    uri = filesystems.join(job.store, "search", "trials", f"{name}.json")
    if filesystems.exists(uri):  # written whole, by a search that was killed before it took note, or by an equal trial
        return FoldScores(uri=uri, digest=digest_of(filesystems.read_json(uri)), failed=None)
    checkpoints = home() / "training" / f"trial-{name}"  # a killed one goes on from its last kept epoch
    training = TrainingJob(
        manifest_uri=job.fold["uri"],
        manifest_digest=job.fold["digest"],
        detector=job.detector,
        training=job.training,
        checkpoints=str(checkpoints),
    )
    normal, validation = select_rows(training)
    try:
        model = build_untrained(training)
        report = fit_rows(model, normal, validation, training, rank=Rank(), on_step=lambda count: None)
        content = _score(model, report, validation, job)
    except (TrainingError, DetectorError) as error:
        shutil.rmtree(checkpoints, ignore_errors=True)
        return FoldScores(uri="", digest="", failed=f"{type(error).__name__}: {error}")
    filesystems.write_json(uri, content)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return FoldScores(uri=uri, digest=digest_of(content), failed=None)


def _score(model: Detector, report: FitReport, validation: Any, job: FoldJob) -> dict[str, Any]:
    if torch.cuda.is_available() and isinstance(model, torch.nn.Module):
        model.cuda()
    images = SampleDataset(validation, size_px=model.input_size_px, cache_bytes=_KEPT_BYTES)
    anomalies = read_manifest(job.anomalies["uri"], digest=job.anomalies["digest"])
    sets = {
        "normal": images,
        "pseudo": PseudoAnomalies(images, seed=job.seed),
        "anomalies": SampleDataset(anomalies, size_px=model.input_size_px, cache_bytes=0),
    }
    scores = {name: score_all(model, images).image.numpy() for name, images in sets.items()}
    if bad := [name for name, values in scores.items() if not np.isfinite(values).all()]:
        raise TrainingError(f"scores of {bad[0]} images are not finite")
    kept = report.curve[report.best_epoch - 1] if report.curve else {}
    loss = kept.get("validation_loss")
    return {
        **{name: values.astype(float).tolist() for name, values in scores.items()},
        "loss": float(scores["normal"].mean()) if loss is None else loss,
        "loss_is": "mean score of normal images" if loss is None else "loss of normal images",
        "best_epoch": report.best_epoch,
    }
