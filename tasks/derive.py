"""A model that another one's training serves as well: the same weights, scored in another way, calibrated anew."""

from collections.abc import Sequence

from methods.detectors.networks.weights import architecture_only
from methods.detectors.registry import DetectorConfig, build_detector, trains_alike
from methods.evaluation.bootstrap import BootstrapConfig
from storage import filesystems
from storage.models import Bundle, read_bundle, write_bundle
from tasks.assets import tell_made
from tasks.caching import cached_task
from tasks.calibrate import CalibrationConfig, calibrate
from tasks.execution import keep_freed_memory
from tasks.fingerprints import code_fingerprint, describe_code, digest_of
from tasks.models import detector_config, load_detector
from tasks.references import ModelReference
from tasks.train import is_there
from tasks.training import TrainingConfig, TrainingJob, select_rows


class DeriveError(ValueError):
    """A model that cannot be made from another without training."""


def find_base(detectors: Sequence[DetectorConfig], position: int, training: TrainingConfig) -> int | None:
    """The first detector before a position whose training is also its own; None where it has to be trained.

    Where the epoch is chosen by AUROC, the score takes part in the training, and nothing is shared.
    """
    if training.selection == "auroc":
        return None
    return next((place for place in range(position) if trains_alike(detectors[place], detectors[position])), None)


@cached_task(name="derive", run_name="derive {detector.kind}", outputs_exist=is_there)
def derive_model(
    base: ModelReference,
    manifest_uri: str,
    manifest_digest: str,
    *,
    detector: DetectorConfig,
    training: TrainingConfig,
    calibration: CalibrationConfig,
    bootstrap: BootstrapConfig,
    store: str,
) -> ModelReference:
    """The bundle of a detector with the weights of another; its card says of which, with that one's training and thresholds of its own.

    Args:
        base: trained on this manifest.
        manifest_uri: of the development manifest.
        manifest_digest: its digest.
        detector: as the base's, but for fields that take no part in training.
        training: as of the base.
        calibration: how its scores become decisions.
        bootstrap: of the intervals in its card.
        store: where its bundle goes.

    Raises:
        DeriveError: it differs from the base in more, or the base was trained on another manifest.
    """
    keep_freed_memory()
    bundle = read_bundle(base["uri"], digest=base["digest"])
    if not trains_alike(detector_config(base), detector) or bundle.card["trained_on"]["manifest_digest"] != manifest_digest:
        raise DeriveError(f"the {detector.kind} wants a training of its own: {base['uri']} was trained otherwise, or on other samples")
    with architecture_only():
        model = build_detector(detector)
    model.load_state_dict(load_detector(base).state_dict())  # type: ignore[attr-defined]
    job = TrainingJob(manifest_uri=manifest_uri, manifest_digest=manifest_digest, detector=detector, training=training, checkpoints="")
    train, validation = select_rows(job)
    normal = train[train["label"] == 0]
    card = bundle.card | {
        "derived_from": base["digest"],
        "calibration": calibrate(model, normal=normal, validation=validation, config=calibration, bootstrap=bootstrap),
        "code": describe_code(__name__),
    }
    name = f"{detector.kind}-{digest_of(base['digest'], detector, calibration, bootstrap, code_fingerprint(__name__))[:16]}"
    uri = filesystems.join(store, "models", name)
    derived = Bundle(tensors=bundle.tensors, config=detector.model_dump(mode="json"), card=card, pictures=bundle.pictures)
    digest = write_bundle(uri, derived)
    tell_made(uri, name=f"model {detector.kind} {digest[:12]}", of=[base["uri"], manifest_uri], digest=digest)
    return ModelReference(uri=uri, digest=digest, kind=detector.kind)
