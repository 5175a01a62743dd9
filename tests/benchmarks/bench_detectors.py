"""Detectors against the bare network: `pytest -m benchmark -s tests/benchmarks/bench_detectors.py`, or run it as a script.

Ratios of one run, medians with the range of the middle four fifths. What is compared takes turns: each step of training is followed by
one of the bare loop, each scored batch by one that only passes the network. Everything runs in one process on one thread and waits for
nothing, so it is the processor's seconds that are counted: the clock's say more about what else the machine does. Three minutes.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from statistics import median

import pytest
import torch
from torch import Tensor, nn

from methods.detectors.anoddpm import AnoDDPM, AnoDDPMConfig, strided_steps
from methods.detectors.anovaegan import AnoVAEGAN, AnoVAEGANConfig
from methods.detectors.autoencoder import Autoencoder, AutoencoderConfig
from methods.detectors.cevae import ContextEncodingVAE, ContextEncodingVAEConfig
from methods.detectors.networks.score_unet import ScoreUNetConfig
from methods.detectors.ocsvm import OneClassSVMConfig, OneClassSVMDetector
from methods.detectors.patchcore import PatchCore, PatchCoreConfig
from methods.detectors.registry import NAMES, DetectorConfig, build_detector
from methods.detectors.sano import Sano, SanoConfig
from methods.detectors.vae import VAE, VAEConfig, gaussian_kl, half_squared_error, log_mean_exp, log_normal, reparameterise
from methods.detectors.vqvae import VQVAE, VQVAEConfig
from methods.training.fit import fit
from methods.training.selection import score_all
from tasks.execution import keep_freed_memory

TARGET, SIX_SCORES_TARGET = 1.05, 1.3
TRAINED_STEPS, TURNS, BATCHES = 24, 11, 3
UNET = ScoreUNetConfig(widths=(32, 64, 64), attention_levels=(2,), head_channels=32)

TRAINED: list[DetectorConfig] = [  # a step takes 50 to 500 ms
    AutoencoderConfig(training_batch_size=16),
    VAEConfig(width=32, training_batch_size=8),
    SanoConfig(input_size_px=32, unet=UNET, training_batch_size=4),
]
SCORED: list[DetectorConfig] = [
    AutoencoderConfig(),
    VAEConfig(width=32, batch_size=4),
    ContextEncodingVAEConfig(batch_size=2),
    VQVAEConfig(input_size_px=128, batch_size=4),
    AnoVAEGANConfig(batch_size=4),
    SanoConfig(input_size_px=64, unet=UNET),
    AnoDDPMConfig(input_size_px=32, unet=UNET, reverse_steps=4, eta=0),
    OneClassSVMConfig(batch_size=4),
]


# ---- measuring


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def in_turns(turns: int, ours: Callable[[], object], bare: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Seconds of both, turn by turn; who comes first alternates. A first turn does not count."""
    ours(), bare()
    measured: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns):
        for side in (0, 1) if turn % 2 else (1, 0):
            measured[side].append(seconds((ours, bare)[side]))
    return measured


def show(title: str, ours: Sequence[float], bare: Sequence[float], *, target: float | None = TARGET) -> None:
    """Print the ratio of neighbouring measurements."""
    ratios = sorted(one / other for one, other in zip(ours, bare, strict=True))
    low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
    verdict = "" if target is None else f"target {target}: {'met' if median(ratios) <= target else 'NOT MET'}"
    print(f"  {title:<50} {median(ratios):6.3f} ({low:.3f} to {high:.3f})  bare {1000 * median(bare):6.0f} ms  {verdict}")  # noqa: T201
    numbers = {"ratio": round(median(ratios), 4), "low": round(low, 4), "high": round(high, 4), "bare_ms": round(1000 * median(bare), 1)}
    print(json.dumps({"benchmark": f"detectors: {title}", "load": os.getloadavg()[0], **numbers}))  # noqa: T201


def images_of(config: DetectorConfig, count: int) -> Tensor:
    return torch.rand(count, 3, config.input_size_px, config.input_size_px, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def quiet_process() -> None:
    """As a scoring or training process is."""
    keep_freed_memory()
    torch.set_num_threads(1)


# ---- training


def time_training(config: DetectorConfig) -> tuple[list[float], list[float]]:
    """Seconds of each step through `fit` and of a step of a bare loop after it, over the same network and stacked batches."""
    trained, twin = (build_detector(config.model_copy(update={"epochs": 1})) for _ in range(2))
    size = config.training_batch_size  # type: ignore[union-attr]
    images = images_of(config, size * TRAINED_STEPS)
    batch, optimizer = images[:size].clone(), twin.build_optimizer()  # type: ignore[attr-defined]
    twin.train()  # type: ignore[attr-defined]
    ours: list[float] = []
    bare: list[float] = []
    ended = 0.0

    def step() -> None:
        optimizer.zero_grad()
        twin.loss(batch).backward()  # type: ignore[attr-defined]
        optimizer.step()

    def on_step(count: int) -> None:
        nonlocal ended
        ours.append(time.process_time() - ended)  # from loss to loss: a whole step
        bare.append(seconds(step))
        ended = time.process_time()

    fit(trained, images, validation=None, seed=0, threads=1, on_step=on_step)  # type: ignore[arg-type]
    return ours[4:], bare[4:]  # the first one has no beginning, the next ones warm up


@pytest.mark.benchmark
@pytest.mark.parametrize("config", TRAINED, ids=lambda config: config.kind)
def test_print_a_training_step_against_a_bare_loop(config: DetectorConfig) -> None:
    print()  # noqa: T201
    show(f"training step, {NAMES[config.kind]}", *time_training(config))


# ---- scoring


def bare_pass(detector: nn.Module, images: Tensor) -> Callable[[], object]:
    """What the network has to be passed for a score of these images, and nothing else."""
    x, L = 2 * images - 1, len(images)
    match detector:
        case Autoencoder():
            return lambda: detector.decoder(detector.encoder(images))
        case VAE():
            z = torch.randn(detector.config.samples, L, detector.config.latent)
            return lambda: (detector.encoder(x), [detector.decoder(z_l) for z_l in z])
        case ContextEncodingVAE():
            return lambda: pass_with_gradient(detector, images)
        case VQVAE():
            return lambda: detector.decoder(detector.quantizer(detector.encoder(x))[0])
        case AnoVAEGAN():
            return lambda: detector.decoder(detector.encoder(images)[0])
        case Sano():
            t = torch.full((L,), 0.1)
            return lambda: detector.unet(x, t)
        case AnoDDPM():
            steps = strided_steps(detector.config.partial_steps, count=detector.config.reverse_steps or 1)[:-1]
            return lambda: [detector.unet(x, torch.full((L,), step / 1000)) for step in steps]
        case OneClassSVMDetector() | PatchCore():
            return lambda: detector.backbone(images)
    raise TypeError(f"no bare pass of a {type(detector).__name__} is known here")


def pass_with_gradient(detector: ContextEncodingVAE, images: Tensor) -> Tensor:
    """Forward and back to the image, which this score is made of."""
    with torch.inference_mode(False):
        x = images.clone().requires_grad_()
        mean, log_variance = detector.encoder(x)
        (gradient,) = torch.autograd.grad((detector.decoder(mean) - x).square().sum() + gaussian_kl(mean, log_variance).sum(), x)
    return gradient


def ready(config: DetectorConfig) -> nn.Module:
    torch.manual_seed(0)
    detector = build_detector(config)
    if isinstance(detector, PatchCore | OneClassSVMDetector):
        with torch.inference_mode():
            detector.observe(images_of(config, 16))
            detector.conclude(torch.Generator().manual_seed(0))
    return detector  # type: ignore[return-value]


@pytest.mark.benchmark
@pytest.mark.parametrize("config", SCORED, ids=lambda config: config.kind)
def test_print_scoring_against_the_bare_forward_pass(config: DetectorConfig) -> None:
    detector, name = ready(config), NAMES[config.kind]
    batches = images_of(config, BATCHES * config.batch_size).split(config.batch_size)
    passes = [bare_pass(detector, batch) for batch in batches]
    print()  # noqa: T201
    with torch.inference_mode():
        show(f"score, {name}", *in_turns(TURNS, lambda: detector.score(batches[0]), passes[0]))
        every = lambda: [one_pass() for one_pass in passes]  # noqa: E731
        show(f"score_all, {name}", *in_turns(TURNS, lambda: score_all(detector, torch.cat(batches)), every))  # type: ignore[arg-type]


@pytest.mark.benchmark
def test_print_patchcores_search_against_its_backbone() -> None:
    config = PatchCoreConfig(memory_size=2048)
    detector, images = ready(config), images_of(config, config.batch_size)
    print()  # noqa: T201
    with torch.inference_mode():
        show(
            "score, PatchCore: backbone and search",
            *in_turns(TURNS, lambda: detector.score(images), bare_pass(detector, images)),
            target=None,
        )


# ---- six scores of the VAE


def importance_weighted_alone(detector: VAE, images: Tensor) -> Tensor:
    """−log 1/L Σ w_l and nothing else."""
    x, config = 2 * images - 1, detector.config
    mean, log_variance = detector.encoder(x)
    log_w = []
    for noise in torch.randn(config.samples, config.latent):
        z = reparameterise(mean, log_variance, noise)
        log_likelihood = -half_squared_error(x, detector.decoder(z)) / config.kl_weight
        log_w.append(log_likelihood + log_normal(z, torch.zeros_like(z), torch.zeros_like(z)) - log_normal(z, mean, log_variance))
    return -log_mean_exp(torch.stack(log_w, 1))


@pytest.mark.benchmark
def test_print_all_six_scores_against_the_importance_weighted_one_alone() -> None:
    config = VAEConfig(width=32, batch_size=4)
    detector, images = ready(config), images_of(config, config.batch_size)
    assert isinstance(detector, VAE)
    print()  # noqa: T201
    with torch.inference_mode():
        measured = in_turns(TURNS, lambda: detector.all_scores(images), lambda: importance_weighted_alone(detector, images))
        show("all six scores, VAE, against IWAE alone", *measured, target=SIX_SCORES_TARGET)


if __name__ == "__main__":
    raise SystemExit(pytest.main(["-s", "-q", "-m", "benchmark", "--import-mode=importlib", __file__]))
