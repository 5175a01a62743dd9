"""Development manifest → model bundles."""

from prefect import flow

from flows.config import RunConfig
from tasks.derive import derive_model, find_base
from tasks.references import ManifestReference, ModelReference
from tasks.train import train_detector


@flow(name="train", flow_run_name="train {config.name}")
def train(config: RunConfig, manifest: ManifestReference) -> list[ModelReference]:
    """Train and calibrate every detector, one after the other; none is told of the test split. What trains alike is trained once."""
    models: list[ModelReference] = []
    for position, detector in enumerate(config.detectors):
        base = find_base(config.detectors, position, config.training)
        step = train_detector if base is None else derive_model
        models.append(
            step(
                *(() if base is None else (models[base],)),
                manifest["development_uri"],
                manifest["development_digest"],
                detector=detector,
                training=config.training,
                calibration=config.calibration,
                bootstrap=config.evaluation.bootstrap,
                store=config.store,
            )
        )
    return models
