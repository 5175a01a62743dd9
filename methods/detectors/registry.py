"""The detectors by kind: a new one is written in a file of its own and named here."""

from typing import Annotated

from pydantic import Field
from torch import nn

from methods.detectors.autoencoder import Autoencoder, AutoencoderConfig
from methods.detectors.interface import Detector
from methods.detectors.patchcore import PatchCore, PatchCoreConfig

DetectorConfig = Annotated[AutoencoderConfig | PatchCoreConfig, Field(discriminator="kind")]

_DETECTORS: dict[type, type[nn.Module]] = {AutoencoderConfig: Autoencoder, PatchCoreConfig: PatchCore}
NAMES = {"ae": "Autoencoder", "patchcore": "PatchCore (EfficientNet-lite0)"}


def build_detector(config: AutoencoderConfig | PatchCoreConfig) -> Detector:
    """An untrained detector."""
    detector = _DETECTORS[type(config)](config)
    detector.eval()
    return detector  # type: ignore[return-value]
