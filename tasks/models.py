"""From a bundle to a detector that scores."""

import torch
from pydantic import TypeAdapter

from methods.detectors.interface import Detector
from methods.detectors.registry import DetectorConfig, build_detector
from storage.models import read_bundle
from tasks.references import ModelReference

_CONFIG: TypeAdapter[DetectorConfig] = TypeAdapter(DetectorConfig)


def load_detector(model: ModelReference) -> Detector:
    """The trained detector of a bundle, verified and ready to score.

    Raises:
        BundleError: incomplete, changed, or of another detector.
    """
    bundle = read_bundle(model["uri"], digest=model["digest"])
    detector = build_detector(_CONFIG.validate_python(bundle.config))
    detector.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in bundle.tensors.items()})  # type: ignore[attr-defined]
    return detector


def detector_config(model: ModelReference) -> DetectorConfig:
    """The configuration a bundle was trained with."""
    return _CONFIG.validate_python(read_bundle(model["uri"], digest=model["digest"]).config)
