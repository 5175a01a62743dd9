"""From a bundle to a detector that scores."""

import textwrap

import torch
from pydantic import TypeAdapter, ValidationError

from methods.detectors.interface import Detector
from methods.detectors.networks.weights import architecture_only
from methods.detectors.registry import DetectorConfig, build_detector
from storage.models import Bundle, BundleError, bundle_digest, read_bundle
from tasks.references import ModelReference

_CONFIG: TypeAdapter[DetectorConfig] = TypeAdapter(DetectorConfig)


def load_detector(model: ModelReference) -> Detector:
    """The trained detector of a bundle, verified and ready to score.

    Raises:
        BundleError: incomplete, changed, or of another detector.
    """
    bundle = read_bundle(model["uri"], digest=model["digest"])
    config = _config_of(bundle, model["uri"])
    with architecture_only():  # the bundle holds every weight; where a backbone's came from need not exist here
        detector = build_detector(config)
    try:
        detector.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in bundle.tensors.items()})  # type: ignore[attr-defined]
    except RuntimeError as error:  # names that lack or are too many, shapes that differ
        reason = textwrap.shorten(str(error), 600, placeholder=" …")
        raise BundleError(f"the tensors in {model['uri']} are not those of the {config.kind} in its config.json: {reason}") from None
    return detector


def detector_config(model: ModelReference) -> DetectorConfig:
    """The configuration a bundle was trained with.

    Raises:
        BundleError: as of `load_detector`, but for the tensors, which are not looked at.
    """
    return _config_of(read_bundle(model["uri"], digest=model["digest"]), model["uri"])


def reference_model(uri: str) -> ModelReference:
    """A bundle as it is there now.

    Raises:
        BundleError: as of `detector_config`.
    """
    bundle = read_bundle(uri)
    return ModelReference(uri=uri, digest=bundle_digest(uri), kind=_config_of(bundle, uri).kind)


def _config_of(bundle: Bundle, uri: str) -> DetectorConfig:
    try:
        return _CONFIG.validate_python(bundle.config)
    except ValidationError as error:
        raise BundleError(f"config.json of {uri} is not the configuration of a detector of this version: {error}") from None
