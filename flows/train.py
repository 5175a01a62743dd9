"""Development manifest → model bundles."""

from prefect import flow

from flows.config import RunConfig
from tasks.references import ManifestReference, ModelReference
from tasks.train import train_detector


@flow(name="train", flow_run_name="train {config.name}")
def train(config: RunConfig, manifest: ManifestReference) -> list[ModelReference]:
    """Train and calibrate every detector, one after the other; none is told of the test split."""
    return [
        train_detector(
            manifest["development_uri"],
            manifest["development_digest"],
            detector=detector,
            training=config.training,
            calibration=config.calibration,
            bootstrap=config.evaluation.bootstrap,
            store=config.store,
        )
        for detector in config.detectors
    ]
