"""The detectors by kind: a new one is written in a file of its own and named here."""

from typing import Annotated, Any

from pydantic import Field
from torch import nn

from methods.detectors.anoddpm import AnoDDPM, AnoDDPMConfig
from methods.detectors.autoencoder import Autoencoder, AutoencoderConfig
from methods.detectors.interface import Detector
from methods.detectors.ocsvm import OneClassSVMConfig, OneClassSVMDetector
from methods.detectors.patchcore import PatchCore, PatchCoreConfig
from methods.detectors.sano import Sano, SanoConfig

DetectorConfig = Annotated[
    AutoencoderConfig | PatchCoreConfig | SanoConfig | AnoDDPMConfig | OneClassSVMConfig,
    Field(discriminator="kind"),
]

_DETECTORS: dict[type, type[nn.Module]] = {
    AutoencoderConfig: Autoencoder,
    PatchCoreConfig: PatchCore,
    SanoConfig: Sano,
    AnoDDPMConfig: AnoDDPM,
    OneClassSVMConfig: OneClassSVMDetector,
}
NAMES = {
    "ae": "Autoencoder",
    "patchcore": "PatchCore (EfficientNet-lite0)",
    "sano": "SANO",
    "anoddpm": "AnoDDPM",
    "ocsvm": "One-class SVM (EfficientNet-lite0)",
}


def build_detector(config: Any) -> Detector:
    """An untrained detector of a `DetectorConfig`."""
    detector = _DETECTORS[type(config)](config)
    detector.eval()
    return detector  # type: ignore[return-value]
