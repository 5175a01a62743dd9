"""The task that trains a detector on the development manifest; what a worker does for it is in `tasks.fit_bundle`."""

from methods.detectors.registry import DetectorConfig
from methods.evaluation.bootstrap import BootstrapConfig
from storage import filesystems
from storage.models import bundle_digest, bundle_is_complete
from tasks.assets import tell_made
from tasks.caching import cached_task
from tasks.calibrate import CalibrationConfig
from tasks.execution import ExecutionConfig, executor_for
from tasks.fingerprints import code_fingerprint, digest_of
from tasks.fit_bundle import fit_bundle
from tasks.gpu_slots import hold_gpu_slot
from tasks.references import ModelReference
from tasks.server import home
from tasks.training import TrainingConfig, TrainingJob
from tasks.training_pictures import show_training


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
