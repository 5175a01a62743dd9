"""Detectors on pretrained features: `pytest -m benchmark -s tests/benchmarks/bench_features.py`, or run it as a script.

Scoring against the bare pass of the backbone followed by the arithmetic that the score cannot do without, written out; nearest neighbours
against NumPy. Measured as in `bench_detectors.py`: ratios of one run, in turns, on one thread, the processor's seconds. Two minutes.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.detectors.coreset import select_coreset
from methods.detectors.deep_if import DeepIF, DeepIFConfig
from methods.detectors.nearest import find_nearest
from methods.detectors.networks.grids import average_neighbours, join_on_grid, pool_places
from methods.detectors.networks.smoothing import smooth
from methods.detectors.ocsvm import OneClassSVMConfig, OneClassSVMDetector
from methods.detectors.padim import PaDiM, PaDiMConfig
from methods.detectors.patchcore import PatchCore, PatchCoreConfig
from methods.detectors.registry import NAMES, DetectorConfig, build_detector
from methods.detectors.simplenet import SimpleNet, SimpleNetConfig
from tasks.execution import keep_freed_memory

TARGET, NEAREST_TARGET = 1.05, 10
TURNS, BATCH = 15, 4
MEMORY, QUERIES, SLOW_QUERIES, DIMS = 100_000, 1024, 16, 64  # the plain loop is timed on few queries

SCORED: list[DetectorConfig] = [
    PatchCoreConfig(batch_size=BATCH),
    PaDiMConfig(batch_size=BATCH),
    SimpleNetConfig(batch_size=BATCH),
    DeepIFConfig(batch_size=BATCH),
    OneClassSVMConfig(batch_size=BATCH),
]


# ---- measuring


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def in_turns(turns: int, *works: Callable[[], object]) -> list[list[float]]:
    """Seconds of each, turn by turn; who comes first rotates. A first turn does not count."""
    for work in works:
        work()
    measured: list[list[float]] = [[] for _ in works]
    for turn in range(turns):
        for i in range(len(works)):
            which = (turn + i) % len(works)
            measured[which].append(seconds(works[which]))
    return measured


def show(title: str, over: Sequence[float], under: Sequence[float], *, verdict: Callable[[float], str] = lambda ratio: "") -> None:
    """Print the ratio of neighbouring measurements: median, and the range of the middle four fifths."""
    ratios = sorted(one / other for one, other in zip(over, under, strict=True))
    low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
    print(f"  {title:<66} {median(ratios):7.3f} ({low:.3f} to {high:.3f})  {1000 * median(under):6.0f} ms  {verdict(median(ratios))}")  # noqa: T201
    numbers = {"ratio": round(median(ratios), 4), "low": round(low, 4), "high": round(high, 4), "ms": round(1000 * median(under), 1)}
    print(json.dumps({"benchmark": f"features: {title}", "load": os.getloadavg()[0], **numbers}))  # noqa: T201


def at_most(target: float) -> Callable[[float], str]:
    return lambda ratio: f"target at most {target}: {'met' if ratio <= target else 'NOT MET'}"


def at_least(target: float) -> Callable[[float], str]:
    return lambda ratio: f"target at least {target}: {'met' if ratio >= target else 'NOT MET'}"


def images_of(config: DetectorConfig, count: int) -> Tensor:
    return torch.rand(count, 3, config.input_size_px, config.input_size_px, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def quiet_process() -> None:
    """As a scoring process is."""
    keep_freed_memory()
    torch.set_num_threads(1)


# ---- scoring


def ready(config: DetectorConfig) -> nn.Module:
    torch.manual_seed(0)
    detector = build_detector(config)
    if not isinstance(detector, SimpleNet):
        with torch.inference_mode():
            for seen in images_of(config, 16).split(BATCH):
                detector.observe(seen)  # type: ignore[attr-defined]
            detector.conclude(torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    return detector  # type: ignore[return-value]


def arithmetic(detector: nn.Module, layers: list[Tensor], size_px: int) -> object:
    """What must be computed from the backbone's features for a score, and nothing else."""
    match detector:
        case PatchCore():
            averaged = [average_neighbours(layer) for layer in layers]
            x = (join_on_grid(averaged, side=size_px // detector.config.grid_px) - detector.mean) @ detector.whitening
            squared = torch.cdist(x.flatten(0, 2), detector.memory, compute_mode="use_mm_for_euclid_dist").amin(1)
            return to_map(squared.view(x.shape[:3]), size_px)
        case PaDiM():
            x = join_on_grid(layers, side=detector.side, upsampling="nearest").flatten(1, 2)[..., detector.chosen]
            whitened = torch.bmm(x.transpose(0, 1) - detector.mean[:, None], detector.whitening.transpose(1, 2))
            return to_map(whitened.norm(dim=2).T.unflatten(1, (detector.side, detector.side)), size_px)
        case SimpleNet():
            o = join_on_grid([average_neighbours(layer) for layer in layers], side=layers[0].shape[-1])
            return to_map(detector.discriminator(detector.adaptor(o.flatten(0, 2))).view(o.shape[:3]), size_px)
        case DeepIF():
            return detector.isolate(pool_places(layers).float())
        case OneClassSVMDetector():
            return detector.machine.decision(pool_places(layers))
    raise TypeError(f"no arithmetic of a {type(detector).__name__} is known here")


def to_map(places: Tensor, size_px: int) -> Tensor:
    return smooth(nn.functional.interpolate(places[:, None], (size_px, size_px), mode="bilinear", align_corners=False), sigma_px=4)


@pytest.mark.benchmark
@pytest.mark.parametrize("config", SCORED, ids=lambda config: config.kind)
def test_print_scoring_against_the_backbone_and_its_arithmetic(config: DetectorConfig) -> None:
    detector, images = ready(config), images_of(config, BATCH)
    name, backbone = NAMES[config.kind], detector.backbone  # type: ignore[attr-defined]
    print()  # noqa: T201
    with torch.inference_mode():
        ours, bare, alone = in_turns(
            TURNS,
            lambda: detector.score(images),  # type: ignore[operator]
            lambda: arithmetic(detector, backbone(images), config.input_size_px),
            lambda: backbone(images),
        )
    show(f"score, {name}: over backbone and arithmetic", ours, bare, verdict=at_most(TARGET))
    show(f"score, {name}: over the backbone alone", ours, alone)


# ---- nearest neighbours


@pytest.mark.benchmark
def test_print_nearest_neighbours_in_a_large_memory_against_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, memory = torch.randn(QUERIES, DIMS, generator=generator), torch.randn(MEMORY, DIMS, generator=generator)
    x, m = queries.numpy(), memory.numpy()

    def by_differences() -> np.ndarray:
        return np.sqrt(np.stack([np.square(m - one).sum(1).min() for one in x[:SLOW_QUERIES]]))

    def by_products() -> np.ndarray:
        return np.sqrt(((x * x).sum(1)[:, None] - 2 * x @ m.T + (m * m).sum(1)).min(1))

    found = find_nearest(queries, memory).distances.numpy()
    np.testing.assert_allclose(found[:SLOW_QUERIES], by_differences(), rtol=1e-5)
    np.testing.assert_allclose(found, by_products(), rtol=1e-5)
    print()  # noqa: T201
    ours, loop, products = in_turns(5, lambda: find_nearest(queries, memory), by_differences, by_products)
    loop = [QUERIES / SLOW_QUERIES * each for each in loop]
    title = f"{QUERIES} nearest of {MEMORY:,} × {DIMS}"
    show(f"{title}: NumPy's differences over ours", loop, ours, verdict=at_least(NEAREST_TARGET))
    show(f"{title}: NumPy with BLAS over ours", products, ours)


@pytest.mark.benchmark
def test_print_the_coreset_against_its_plain_form() -> None:
    vectors = torch.randn(20_000, DIMS, generator=torch.Generator().manual_seed(0))

    def plain() -> list[int]:
        taken = [int(torch.randint(len(vectors), (1,), generator=torch.Generator().manual_seed(0)))]
        nearest = torch.full((len(vectors),), torch.inf)
        while len(taken) < 256:
            nearest = torch.minimum(nearest, (vectors - vectors[taken[-1]]).square().sum(1))
            taken.append(int(nearest.argmax()))
        return taken

    def ours() -> list[int]:
        return select_coreset(vectors, size=256, generator=torch.Generator().manual_seed(0)).tolist()

    assert ours() == plain()
    print()  # noqa: T201
    measured = in_turns(5, plain, ours)
    show("coreset, 256 of 20,000 × 64: plain greedy over ours", *measured)


if __name__ == "__main__":
    raise SystemExit(pytest.main(["-s", "-q", "-m", "benchmark", "--import-mode=importlib", __file__]))
