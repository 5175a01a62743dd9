"""The two lessons of a one-class SVM on latents: the VAE's as by itself, then the machine's on what that gives."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.svm import OneClassSVM

from methods.detectors.interface import DetectorError, LearnsByGradient, LearnsByMemory
from methods.detectors.vae import VAE, VAEConfig
from methods.detectors.vae_ocsvm import VAEOneClassSVM, VAEOneClassSVMConfig
from methods.training.fit import fit
from methods.training.outcome import FitReport
from methods.training.selection import Validation

TINY = VAEConfig(input_size_px=8, width=4, latent=5, epochs=3, training_batch_size=4, batch_size=4)
IMAGES = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ODD = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def learnt(**options: object) -> tuple[VAEOneClassSVM, FitReport]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = VAEOneClassSVM(VAEOneClassSVMConfig(vae=TINY, nu=0.3)).eval()
    return detector, fit(detector, IMAGES, validation=None, seed=0, threads=1, **options)  # type: ignore[arg-type]


def test_its_vae_is_trained_as_one_by_itself() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        alone = VAE(TINY)
    report = fit(alone, IMAGES, validation=None, seed=0, threads=1)  # type: ignore[arg-type]
    detector, own_report = learnt()
    assert isinstance(detector, LearnsByGradient)
    assert isinstance(detector, LearnsByMemory)
    assert own_report.curve == report.curve
    for name, tensor in alone.state_dict().items():
        assert torch.equal(detector.state_dict()[f"vae.{name}"], tensor), name


def test_the_score_is_minus_scikit_learns_decision_function_of_the_trained_means() -> None:
    detector, _ = learnt()
    with torch.inference_mode():
        latents, new = detector.vae.latents(IMAGES).double().numpy(), detector.vae.latents(ODD).double().numpy()
        scores = detector.score(ODD)
    mean, std = latents.mean(0), latents.std(0)
    machine = OneClassSVM(nu=0.3, gamma="scale").fit((latents - mean) / std)
    np.testing.assert_allclose(scores.image.numpy(), -machine.decision_function((new - mean) / std), rtol=0, atol=1e-5)
    assert scores.pixel is None


def test_the_epoch_is_chosen_by_loss_whatever_is_configured() -> None:
    validation = Validation(images=torch.cat([IMAGES[:2], ODD[:2]]), labels=np.array([0, 0, 1, 1]))  # type: ignore[arg-type]
    detector = VAEOneClassSVM(VAEOneClassSVMConfig(vae=TINY))
    report = fit(detector, IMAGES, validation=validation, seed=0, threads=1, selection="auroc")  # type: ignore[arg-type]
    assert report.selected_by == "lowest loss on normal validation images"


def test_without_a_machine_it_does_not_score() -> None:
    with pytest.raises(DetectorError, match="learnt nothing yet"):
        VAEOneClassSVM(VAEOneClassSVMConfig(vae=TINY)).score(IMAGES)


def test_a_configuration_that_does_not_fit_is_refused() -> None:
    for wrong in ({"nu": 0}, {"gamma": "auto"}, {"gamma": -1.0}, {"vae": {"input_size_px": 10}}, {"input_size_px": 8}):
        with pytest.raises(ValidationError):
            VAEOneClassSVMConfig.model_validate(wrong)
