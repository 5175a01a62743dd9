"""The detectors by kind: a new one is written in a file of its own and named here."""

from typing import Annotated, Any

from pydantic import Field
from torch import nn

from methods.detectors.anoddpm import AnoDDPM, AnoDDPMConfig
from methods.detectors.anovaegan import AnoVAEGAN, AnoVAEGANConfig
from methods.detectors.autoencoder import Autoencoder, AutoencoderConfig
from methods.detectors.cevae import ContextEncodingVAE, ContextEncodingVAEConfig
from methods.detectors.deep_geo import DeepGeo, DeepGeoConfig
from methods.detectors.deep_if import DeepIF, DeepIFConfig
from methods.detectors.deep_svdd import DeepSVDD, DeepSVDDConfig
from methods.detectors.dpa import DeepPerceptualAutoencoder, DeepPerceptualAutoencoderConfig
from methods.detectors.ganomaly import GANomaly, GANomalyConfig
from methods.detectors.interface import Detector
from methods.detectors.ocsvm import OneClassSVMConfig, OneClassSVMDetector
from methods.detectors.padim import PaDiM, PaDiMConfig
from methods.detectors.patchcore import PatchCore, PatchCoreConfig
from methods.detectors.piad import PIAD, PIADConfig
from methods.detectors.sano import Sano, SanoConfig
from methods.detectors.simclr import SimCLR, SimCLRConfig
from methods.detectors.simclr_knn import SimCLRNeighbours, SimCLRNeighboursConfig
from methods.detectors.simplenet import SimpleNet, SimpleNetConfig
from methods.detectors.vae import VAE, VAEConfig
from methods.detectors.vae_ocsvm import VAEOneClassSVM, VAEOneClassSVMConfig
from methods.detectors.vqvae import VQVAE, VQVAEConfig

DetectorConfig = Annotated[
    AutoencoderConfig
    | VAEConfig
    | ContextEncodingVAEConfig
    | VQVAEConfig
    | AnoVAEGANConfig
    | SanoConfig
    | AnoDDPMConfig
    | PatchCoreConfig
    | PaDiMConfig
    | DeepIFConfig
    | SimpleNetConfig
    | OneClassSVMConfig
    | VAEOneClassSVMConfig
    | GANomalyConfig
    | DeepPerceptualAutoencoderConfig
    | PIADConfig
    | DeepGeoConfig
    | DeepSVDDConfig
    | SimCLRConfig
    | SimCLRNeighboursConfig,
    Field(discriminator="kind"),
]

_DETECTORS: dict[type, type[nn.Module]] = {
    AutoencoderConfig: Autoencoder,
    VAEConfig: VAE,
    ContextEncodingVAEConfig: ContextEncodingVAE,
    VQVAEConfig: VQVAE,
    AnoVAEGANConfig: AnoVAEGAN,
    PatchCoreConfig: PatchCore,
    SanoConfig: Sano,
    AnoDDPMConfig: AnoDDPM,
    PaDiMConfig: PaDiM,
    DeepIFConfig: DeepIF,
    SimpleNetConfig: SimpleNet,
    OneClassSVMConfig: OneClassSVMDetector,
    VAEOneClassSVMConfig: VAEOneClassSVM,
    GANomalyConfig: GANomaly,
    DeepPerceptualAutoencoderConfig: DeepPerceptualAutoencoder,
    PIADConfig: PIAD,
    DeepGeoConfig: DeepGeo,
    DeepSVDDConfig: DeepSVDD,
    SimCLRConfig: SimCLR,
    SimCLRNeighboursConfig: SimCLRNeighbours,
}
NAMES = {
    "ae": "Autoencoder",
    "vae": "VAE",
    "cevae": "ceVAE",
    "vqvae": "VQ-VAE",
    "anovaegan": "AnoVAEGAN",
    "patchcore": "PatchCore",
    "sano": "SANO",
    "anoddpm": "AnoDDPM",
    "padim": "PaDiM",
    "deep-if": "Deep IF",
    "simplenet": "SimpleNet",
    "ocsvm": "One-class SVM (pretrained features)",
    "vae-ocsvm": "One-class SVM (VAE)",
    "ganomaly": "GANomaly",
    "dpa": "Deep perceptual autoencoder",
    "piad": "PIAD",
    "deep-geo": "Deep GEO",
    "deep-svdd": "Deep SVDD",
    "simclr": "SimCLR + cross-entropy (classifier)",
    "simclr-knn": "Nearest neighbours (SimCLR)",
}


def build_detector(config: Any) -> Detector:
    """An untrained detector of a `DetectorConfig`."""
    detector = _DETECTORS[type(config)](config)
    detector.eval()
    return detector  # type: ignore[return-value]


def learns_from_labels(config: Any) -> bool:
    """Whether the detector of a `DetectorConfig` is trained on both labels: `LearnsFromLabels`, which only an instance can be asked for."""
    return hasattr(_DETECTORS[type(config)], "labelled_loss")


def trains_alike(one: Any, other: Any) -> bool:
    """Whether two `DetectorConfig`s train the same weights, all else equal and the epoch chosen by the loss.

    They are of one kind and differ in nothing but the fields that it names in `scoring_only`: those that scoring alone reads.
    """
    unread: frozenset[str] = getattr(type(one), "scoring_only", frozenset())
    return type(one) is type(other) and bool(one.model_dump(exclude=unread) == other.model_dump(exclude=unread))
