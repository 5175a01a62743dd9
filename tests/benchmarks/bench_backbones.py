"""Backbones against the bare truncated network: `pytest -m benchmark -s tests/benchmarks/bench_backbones.py`, or run it as a script.

Bare is the same network cut by torchvision's own feature extractor, as it is shipped (with its sums and ReLUs in place) and in the same
memory format, on images that are normalised already; for the bundled one the package's blocks one after the other, not folded. Ratios of
one run, medians with the range of the middle four fifths; both take turns, and it is the processor's seconds that are counted. On a GPU,
where there is one, the clock's, until all is done. The last network has activations other than ReLU: ours takes its images one by one on
a CPU, which is the price of features that do not depend on the place in the batch; it has no target. Two minutes.
"""

import json
import os
import time
from collections.abc import Callable
from statistics import median

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from methods.detectors.networks import backbones, efficientnet_lite
from methods.detectors.networks.backbones import BUNDLED, BackboneConfig, build_backbone
from methods.detectors.networks.weights import architecture_only
from tasks.execution import keep_freed_memory

TARGET, TURNS = 1.05, 15
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
MEASURED = [
    BackboneConfig(layers=("block2", "block4")),
    BackboneConfig(name="torchvision/resnet18", layers=("layer2", "layer3")),
    BackboneConfig(name="torchvision/wide_resnet50_2", layers=("layer2", "layer3")),
    BackboneConfig(name="timm/mobilenetv3_large_100", layers=("blocks.2", "blocks.4")),
]


def seconds(work: Callable[[], object], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def bare_network(config: BackboneConfig) -> nn.Module:
    """The network, cut and nothing else."""
    if config.name == BUNDLED:
        whole, last = efficientnet_lite.build(None), int(config.layers[-1].removeprefix("block"))
        return nn.Sequential(whole._conv_stem, whole._bn0, nn.ReLU6(), *whole._blocks[: last + 1])
    return create_feature_extractor(backbones._find(config.name).build(None), list(config.layers))


@pytest.mark.benchmark
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", MEASURED, ids=lambda config: config.name)
def test_print_a_backbone_against_the_bare_truncated_network(config: BackboneConfig, device: str) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    images: Tensor = torch.rand(4 if device == "cpu" else 64, 3, 224, 224, device=device)
    with architecture_only():
        backbone = build_backbone(config)
    bare = bare_network(config)
    if config.name != BUNDLED:  # the same numbers: what stands in memory may be slow ones
        backbone.network[1].load_state_dict(bare.state_dict(), strict=False)  # type: ignore[index]
    backbone, bare = backbone.to(device), bare.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    normalised = ((images - 0.45) / 0.22).contiguous(memory_format=torch.channels_last)
    sides = (lambda: backbone(images), lambda: bare(normalised))
    ratios, bares = [], []
    with torch.inference_mode():
        for turn in range(TURNS + 2):
            measured = {side: seconds(sides[side], device) for side in ((0, 1) if turn % 2 else (1, 0))}
            if turn >= 2:  # the first ones warm up
                ratios.append(measured[0] / measured[1])
                bares.append(measured[1])
    ratios.sort()
    low, high = ratios[TURNS // 10], ratios[-1 - TURNS // 10]
    verdict = "" if backbone._one_by_one else f"target {TARGET}: {'met' if median(ratios) <= TARGET else 'NOT MET'}"
    title = f"{config.name} {', '.join(config.layers)}, {device}"
    print(f"\n  {title:<60} {median(ratios):6.3f} ({low:.3f} to {high:.3f})  bare {1000 * median(bares):6.0f} ms  {verdict}")  # noqa: T201
    numbers = {"ratio": round(median(ratios), 4), "low": round(low, 4), "high": round(high, 4), "bare_ms": round(1000 * median(bares), 1)}
    print(json.dumps({"benchmark": f"backbone: {title}", "load": os.getloadavg()[0], **numbers}))  # noqa: T201


if __name__ == "__main__":
    raise SystemExit(pytest.main(["-s", "-q", "-m", "benchmark", "--import-mode=importlib", __file__]))
