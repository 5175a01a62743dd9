"""Frozen networks, pretrained on photographs, whose intermediate outputs are features.

By name: the bundled EfficientNet-lite0, whose weights a registry package ships, or a convolutional network of torchvision or timm, whose
weights are downloaded once, or read from a local file with a stated digest. Ours: a torchvision name without a tag means the first weights
published (IMAGENET1K_V1), which the papers' `pretrained=True` loaded, not torchvision's default of today.
"""

import difflib
import operator
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, fx, nn

from methods.detectors.interface import DetectorError
from methods.detectors.networks import efficientnet_lite
from methods.detectors.networks.efficientnet_lite import CHANNELS_OF_BLOCK, STRIDE_PX_OF_BLOCK, EfficientNetLite0Features
from methods.detectors.networks.weights import PublishedWeights, Unfilled, locate_published, read_weights, wants_weights

BUNDLED = "efficientnet-lite0"
_PROBES_PX = (96, 160)  # sides of the images that tell a layer's stride
_NAMES_SHOWN = 8

State = dict[str, Tensor]


class BackboneConfig(BaseModel):
    """Which network, which of its layers, whose weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default=BUNDLED, description="the bundled network, or torchvision/NAME[.WEIGHTS] or timm/NAME[.TAG]")
    layers: tuple[str, ...] = Field(
        min_length=1,
        description="its layers, from shallow to deep; bundled: block2, block4, block10, block14; a VGG's may be called relu3_2 and so on",
    )
    weights: str | None = Field(default=None, description="a local weight file, .safetensors or .pth; null: those that belong to the name")
    weights_sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="SHA-256 of the weight file; a local one wants it, a published one may have it"
    )

    @model_validator(mode="before")
    @classmethod
    def _has_layers(cls, values: Any) -> Any:
        if isinstance(values, dict) and "layers" not in values and isinstance(name := values.get("name", BUNDLED), str):
            raise ValueError(f"expected `layers`, from shallow to deep: {name} has {', '.join(_list_layers(name))}")
        return values

    @model_validator(mode="after")
    def _is_complete(self) -> "BackboneConfig":
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"expected different layers, got {', '.join(self.layers)}")
        if self.weights is not None and self.weights_sha256 is None:
            raise ValueError(f"expected weights_sha256, the digest of {self.weights}; `sha256sum {self.weights}` prints it")
        return self


class Backbone(nn.Module):
    """A frozen network, always in evaluation mode; gradients flow to the images.

    Attributes:
        channels: of each layer's features.
        strides_px: pixels of the image per place of each layer's features.
    """

    channels: tuple[int, ...]
    strides_px: tuple[int, ...]

    def __init__(self, network: nn.Module, *, channels: Sequence[int], strides_px: Sequence[int], one_by_one: bool = False) -> None:
        super().__init__()
        self.network = network
        self.channels = tuple(channels)
        self.strides_px = tuple(strides_px)
        self._one_by_one = one_by_one
        self.requires_grad_(False)
        self.train(False)
        self.to(memory_format=torch.channels_last)  # a third faster on CPUs, more on GPUs

    def train(self, mode: bool = True) -> "Backbone":
        """Frozen: stays in evaluation mode whatever is asked."""
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features [(N, C, H / stride, W / stride)] of the layers, for images (N, 3, H, W) float32 in [0, 1]; without padding, fewer.

        Of a network with other arithmetic than sums and products a CPU takes the images one by one, so that the same image has the same
        features, to the bit, wherever it stands; a seventh to a half slower.
        """
        images = images.contiguous(memory_format=torch.channels_last)
        if self._one_by_one and images.device.type == "cpu" and len(images) > 1:
            return [torch.cat(layer) for layer in zip(*(self.network(image) for image in images.split(1)), strict=True)]
        features: list[Tensor] = self.network(images)
        return features


@dataclass(frozen=True)
class Classifier:
    """A pretrained network whole.

    Attributes:
        network: images (N, 3, H, W) in [0, 1] to logits (N, classes).
        resized_px: shorter side of a photograph before the crop.
        input_size_px: side of the central crop that it is given.
    """

    network: nn.Module
    resized_px: int
    input_size_px: int


def build_backbone(config: BackboneConfig) -> Backbone:
    """The network up to the last of its layers, with its weights; within `architecture_only`, without.

    Raises:
        DetectorError: no such network or layer, layers not from shallow to deep, a layer without a map, weights that cannot be had, that
            have another digest or that belong to another network. What is wrong with the layers is said before any weights are looked for.
    """
    if config.name == BUNDLED:
        return _build_bundled(config)
    published = _find(config.name)
    if wants_weights():
        _check_cut(config.name, config.layers)
    network = _with_weights(published, config)
    trunk = _cut(network, _resolve(network, config.name, config.layers), config.name)
    channels, strides_px = _measure(trunk, config)
    network = nn.Sequential(_Normalisation(published.mean, published.std), trunk)
    return Backbone(network, channels=channels, strides_px=strides_px, one_by_one=not _is_plain_arithmetic(trunk))


def check_backbones(config: BaseModel) -> None:
    """Refuse a configuration that names layers which its networks do not have, or in another order; no weights are read or downloaded.

    Args:
        config: a detector's; backbones are found in it, however deep.

    Raises:
        DetectorError: names the key, and the layers that there are; also where there is no such network.
    """
    for name in type(config).model_fields:
        part = getattr(config, name)
        if isinstance(part, BackboneConfig):
            try:
                _check_cut(part.name, part.layers)
            except DetectorError as error:
                raise DetectorError(f"{name}: {error}") from None
        elif isinstance(part, BaseModel):
            check_backbones(part)


def build_classifier(name: str, *, weights: str | None = None, weights_sha256: str | None = None) -> Classifier:
    """The whole network with its weights, in evaluation mode: to see whether they are what they are called.

    Raises:
        DetectorError: as of `build_backbone`; also where the file lacks the classifier.
    """
    config = BackboneConfig(name=name, layers=("all",), weights=weights, weights_sha256=weights_sha256)
    published = _find(name)
    network = nn.Sequential(_Normalisation(published.mean, published.std), _with_weights(published, config, whole=True)).eval()
    return Classifier(network, resized_px=published.resized_px, input_size_px=published.input_size_px)


# ---- what a name stands for


@dataclass(frozen=True)
class _Pretrained:
    """A network by name.

    Attributes:
        build: the network; with random weights, or with those of a state.
        locate: the weights that belong to the name, and the beginning of their digest.
        mean, std: of each channel, that these weights expect to be taken off and divided by.
        resized_px, input_size_px: shorter side and crop of the photographs that they classify.
        heads: names of the modules that classify, which a file of features alone may lack.
    """

    build: Callable[[State | None], nn.Module]
    locate: Callable[[], tuple[Path, str]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resized_px: int
    input_size_px: int
    heads: tuple[str, ...]


def _find(name: str) -> _Pretrained:
    if name == BUNDLED:
        return _bundled()
    library, _, model = name.partition("/")
    if library == "torchvision":
        return _of_torchvision(name, model)
    if library == "timm":
        return _of_timm(name, model)
    raise DetectorError(f"expected the backbone {BUNDLED}, torchvision/NAME or timm/NAME, got {name!r}")


def _bundled() -> _Pretrained:
    return _Pretrained(
        build=efficientnet_lite.build,
        locate=efficientnet_lite.locate,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        resized_px=256,
        input_size_px=224,
        heads=("_fc",),
    )


def _of_torchvision(name: str, model: str) -> _Pretrained:
    from torchvision import models

    model, _, tag = model.partition(".")
    known = models.list_models(module=models)
    if model not in known:
        raise _unknown(name, "torchvision has", [f"torchvision/{other}" for other in known])
    tags = {weights.name: weights for weights in models.get_model_weights(model)}
    if tag and tag not in tags:
        raise _unknown(name, f"torchvision/{model} has the weights", list(tags))
    chosen = tags[tag] if tag else next(iter(tags.values()))
    transforms, file_name = chosen.transforms(), chosen.url.rsplit("/", 1)[-1]
    stated = re.search(r"-([0-9a-f]{8,})\.", file_name)  # torch hub's way to state the digest
    published = PublishedWeights(chosen.url, file_name, "torchvision", stated.group(1) if stated else "")
    # what torchvision sets only when it loads the weights itself
    options = {"googlenet": {"transform_input": True}, "inception_v3": {"transform_input": True}}.get(model, {})
    if options:
        options |= {"init_weights": False}

    def build(state: State | None) -> nn.Module:
        network = models.get_model(model, weights=None, **options)
        if state is not None:
            if model.startswith("densenet"):  # the files are older than the names of today's layers
                state = {re.sub(r"\.(norm|relu|conv)\.([12])\.", r".\1\2.", key): tensor for key, tensor in state.items()}
            network.load_state_dict(state)
        return network

    return _Pretrained(
        build=build,
        locate=lambda: (locate_published(name, published), published.sha256),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        resized_px=transforms.resize_size[0],
        input_size_px=transforms.crop_size[0],
        heads=("fc", "classifier", "head", "heads"),
    )


def _of_timm(name: str, model: str) -> _Pretrained:
    import timm

    known = {*timm.list_models(), *timm.list_pretrained()}
    if model not in known:
        raise _unknown(name, "timm has", [f"timm/{other}" for other in sorted(known)])
    cfg: Any = timm.get_pretrained_cfg(model)
    heads = (cfg.classifier,) if isinstance(cfg.classifier, str) else tuple(cfg.classifier or ())

    def build(state: State | None) -> nn.Module:
        if state is None:
            return timm.create_model(model, pretrained=False)
        return timm.create_model(model, pretrained=True, pretrained_cfg_overlay={"state_dict": state, "custom_load": False})

    def locate() -> tuple[Path, str]:
        if not cfg.hf_hub_id:
            raise DetectorError(f"timm names no weights for {name}; set weights to a local file and weights_sha256 to its digest")
        remote = cfg.hf_hub_filename or "model.safetensors"
        url = f"https://huggingface.co/{cfg.hf_hub_id}/resolve/main/{remote}"
        file_name = f"{cfg.hf_hub_id.replace('/', '--')}{Path(remote).suffix}"
        return locate_published(name, PublishedWeights(url, file_name, "timm", "")), ""

    return _Pretrained(
        build=build,
        locate=locate,
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        resized_px=round(cfg.input_size[-1] / cfg.crop_pct),
        input_size_px=cfg.input_size[-1],
        heads=heads,
    )


def _unknown(name: str, has: str, known: Sequence[str]) -> DetectorError:
    close = difflib.get_close_matches(name, known, n=_NAMES_SHOWN, cutoff=0.5) or sorted(known)[:_NAMES_SHOWN]
    more = f" and {len(known) - len(close)} more" if len(known) > len(close) else ""
    return DetectorError(f"there is no backbone {name!r}; {has} {', '.join(close)}{more}")


# ---- its weights


def _with_weights(pretrained: _Pretrained, config: BackboneConfig, *, whole: bool = False) -> nn.Module:
    """The network with the weights of the configuration; within `architecture_only` with whatever stands in memory."""
    if not wants_weights():
        with Unfilled():
            return pretrained.build(None)
    path, stated = (Path(config.weights).expanduser(), "") if config.weights is not None else pretrained.locate()
    state = read_weights(path, sha256=config.weights_sha256 or stated)
    if not whole and config.weights is not None:
        state = _with_heads(state, pretrained)
    try:
        with Unfilled():
            return pretrained.build(state)
    except RuntimeError as error:  # names that lack or are too many, shapes that differ
        reason = textwrap.shorten(str(error), 600, placeholder=" …")
        raise DetectorError(f"the weights in {path} are not those of {config.name}: {reason}") from None


def _with_heads(state: State, pretrained: _Pretrained) -> State:
    """What classifies is behind every layer: a file of features alone will do."""
    prefixes = tuple(f"{head}." for head in pretrained.heads)
    if not prefixes or any(name.startswith(prefixes) for name in state):
        return state
    return state | {name: tensor for name, tensor in pretrained.build(None).state_dict().items() if name.startswith(prefixes)}


# ---- its layers


class _Normalisation(nn.Module):
    """(x − mean) / std of each channel; kept with the state, as it belongs to the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


_BLOCKS = {f"block{number}": number for number in CHANNELS_OF_BLOCK}  # the bundled network's layers


@lru_cache(maxsize=64)
def _check_cut(name: str, layers: tuple[str, ...]) -> None:
    """Refuse layers that a network does not have, or not in this order, by its architecture alone: on no device, without any weights."""
    if name == BUNDLED:
        _number_blocks(layers)
        return
    network = _outline(name)
    _cut(network, _resolve(network, name, layers), name)


def _outline(name: str) -> nn.Module:
    """The network with shapes instead of weights: nothing is filled, and nothing drawn."""
    with torch.device("meta"):
        return _find(name).build(None)


def _list_layers(name: str) -> list[str]:
    """The layers of a network, as an error lists them."""
    return list(_BLOCKS) if name == BUNDLED else _shown_layers(_outline(name))


def _number_blocks(layers: Sequence[str]) -> tuple[int, ...]:
    if unknown := [layer for layer in layers if layer not in _BLOCKS]:
        raise DetectorError(f"{BUNDLED} has no layer {', '.join(unknown)}; it has {', '.join(_BLOCKS)}")
    numbers = tuple(_BLOCKS[layer] for layer in layers)
    _check_order(layers, [f"block{number}" for number in sorted(numbers)])
    return numbers


def _build_bundled(config: BackboneConfig) -> Backbone:
    numbers = _number_blocks(config.layers)
    return Backbone(
        EfficientNetLite0Features(numbers, _with_weights(_bundled(), config)),
        channels=[CHANNELS_OF_BLOCK[number] for number in numbers],
        strides_px=[STRIDE_PX_OF_BLOCK[number] for number in numbers],
    )


def _check_order(layers: Sequence[str], ascending: Sequence[str]) -> None:
    if list(layers) != list(ascending):
        raise DetectorError(f"expected the layers from shallow to deep: {', '.join(ascending)}; got {', '.join(layers)}")


def _resolve(network: nn.Module, name: str, layers: Sequence[str]) -> list[str]:
    """The modules that the layers are called by, or stand for by a name of the papers."""
    aliases, modules = _names_of_vgg(network), {module for module, _ in network.named_modules() if module}
    if unknown := [layer for layer in layers if layer not in aliases and layer not in modules]:
        raise DetectorError(f"{name} has no layer {', '.join(unknown)}; it has {', '.join(_shown_layers(network))}, and those within them")
    return [aliases.get(layer, layer) for layer in layers]


def _shown_layers(network: nn.Module) -> list[str]:
    """A VGG's layers by the papers' names, and all modules but those deep within others."""
    aliases = _names_of_vgg(network)
    return [*aliases, *(name for name, _ in network.named_modules() if name and name.count(".") < 2 and name not in aliases.values())]


def _names_of_vgg(network: nn.Module) -> dict[str, str]:
    """conv1_1, relu1_1, …, pool5: what papers call a VGG's layers, by the name of the module."""
    if type(network).__name__ != "VGG":
        return {}
    names: dict[str, str] = {}
    block, number = 1, 0
    for place, layer in network.features.named_children():  # type: ignore[union-attr]
        if isinstance(layer, nn.MaxPool2d):
            names[f"pool{block}"] = f"features.{place}"
            block, number = block + 1, 0
            continue
        number += isinstance(layer, nn.Conv2d)
        kind = {"Conv2d": "conv", "BatchNorm2d": "bn", "ReLU": "relu"}[type(layer).__name__]
        names[f"{kind}{block}_{number}"] = f"features.{place}"
    return names


def _cut(network: nn.Module, modules: Sequence[str], name: str) -> fx.GraphModule:
    """The network without what lies behind the last module; returns their outputs as a list."""
    from torchvision.models.feature_extraction import create_feature_extractor

    for layer in network.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = False  # type: ignore[assignment]  # or the next layer would overwrite the features
    try:
        extractor = create_feature_extractor(
            network.eval(), list(modules), tracer_kwargs=_untraceable(name), suppress_diff_warning=True
        ).eval()
    except (ValueError, TypeError, RuntimeError, fx.proxy.TraceError) as error:
        raise DetectorError(f"the layers {', '.join(modules)} of {name} cannot be cut out: {str(error)[:300]}") from None
    graph = extractor.graph
    for node in graph.nodes:
        if node.target is operator.iadd:
            node.target = operator.add
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
    output = next(reversed(graph.nodes))
    _check_order(modules, list(output.args[0]))
    output.args = (list(output.args[0].values()),)
    return fx.GraphModule(extractor, graph)


# what computes a value alike wherever in a batch it stands. On CPUs the end of an array is computed by other instructions than the rest:
# the same for sums and products, but another exp, as in SiLU and sigmoid, so that what follows depends on the place in the batch
_PLAIN_MODULES = nn.Conv2d | nn.BatchNorm2d | nn.ReLU | nn.ReLU6 | nn.LeakyReLU | nn.MaxPool2d | nn.AvgPool2d | nn.Identity | nn.Dropout
_PLAIN_FUNCTIONS = (operator.add, torch.add, torch.cat, torch.relu, nn.functional.relu)


def _is_plain_arithmetic(trunk: fx.GraphModule) -> bool:
    for node in trunk.graph.nodes:
        if node.op == "call_module" and not isinstance(trunk.get_submodule(node.target), _PLAIN_MODULES):
            return False
        if node.op == "call_method" or (node.op == "call_function" and node.target not in _PLAIN_FUNCTIONS):
            return False
    return True


def _untraceable(name: str) -> dict[str, list[Any]]:
    """What timm says must be called, not traced."""
    if not name.startswith("timm/"):
        return {}
    from timm.layers import get_notrace_functions, get_notrace_modules

    return {"leaf_modules": list(get_notrace_modules()), "autowrap_functions": list(get_notrace_functions())}


def _measure(trunk: nn.Module, config: BackboneConfig) -> tuple[list[int], list[int]]:
    """Channels and strides in px of its layers, from the shapes for images of two sizes."""
    try:
        with torch.no_grad():
            small, large = ([tuple(layer.shape) for layer in trunk(torch.zeros(1, 3, side, side))] for side in _PROBES_PX)
    except Exception as error:  # whatever a network makes of a size that it was not made for
        raise DetectorError(f"{config.name} does not take square images of any size: {str(error)[:200]}") from None
    channels, strides_px = [], []
    for layer, one, other in zip(config.layers, small, large, strict=True):
        grown = len(one) == 4 and one[1] == other[1] and one[2] == one[3] and other[2] - one[2]
        if not grown:
            raise DetectorError(f"expected layers with features (N, C, H, W); {layer} of {config.name} has {one} for {_PROBES_PX[0]} px")
        channels.append(one[1])
        strides_px.append(round((_PROBES_PX[1] - _PROBES_PX[0]) / grown))
    return channels, strides_px
