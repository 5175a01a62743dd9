"""The same run at miniature size: to see in a minute on two cores that every part of it works."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from flows.config import RunConfig
from methods.curation.split_config import CountConfig, SplitConfig
from methods.detectors.dpa import DeepPerceptualAutoencoderConfig, GrowingConfig
from methods.detectors.networks.backbones import BUNDLED, BackboneConfig
from methods.detectors.registry import DetectorConfig
from tasks.curation import TilingConfig

Model = TypeVar("Model", bound=BaseModel)

NOTICE = (
    "The data are GENERATED: drawn miniatures in the layout of the real data sets, with networks and training made as small. The figures "
    "say that the machine works; they mean nothing else."
)
_UNET = {"widths": (8, 16), "attention_levels": (1,), "residual_blocks": 1, "head_channels": 8, "norm_groups": 4}
_RESNET = {"width": 8, "blocks": (1, 1, 1, 1), "weights": None, "weights_sha256": None}
_TRAINING = {"epochs": 2, "training_batch_size": 8}
_VAE = {**_TRAINING, "input_size_px": 32, "width": 8, "latent": 16, "samples": 3}
# What small means for each kind of detector. A number is the most that stays; anything else takes the place of what the run has.
SMALL: Mapping[str, Mapping[str, Any]] = {
    "ae": {**_TRAINING, "input_size_px": 32},  # its width and latent are small, and a grid of them is to stay one
    "vae": _VAE,
    "cevae": {**_TRAINING, "input_size_px": 32, "latent": 16, "smoothing_sigma_px": 1.0},
    "vqvae": {**_TRAINING, "input_size_px": 32, "width": 16, "residual_width": 8, "codes": 32, "code_dims": 8},
    "anovaegan": {**_TRAINING, "input_size_px": 32, "latent": 16, "critic_steps": 1},
    "sano": {**_TRAINING, "input_size_px": 32, "unet": _UNET, "smoothing_sigma_px": 1.0},
    "anoddpm": {**_TRAINING, "input_size_px": 32, "unet": _UNET, "reverse_steps": 4, "octaves": 3, "wavelength_px": 8.0},
    "patchcore": {"input_size_px": 64, "memory_size": 64, "candidates": 1000, "projection_dims": 16, "smoothing_sigma_px": 2.0},
    "padim": {"input_size_px": 64, "dimensions": 20, "smoothing_sigma_px": 2.0},
    "deep-if": {"input_size_px": 64, "trees": 20, "samples": 32},
    "simplenet": {**_TRAINING, "input_size_px": 64, "hidden": 32, "smoothing_sigma_px": 2.0},
    "ocsvm": {"input_size_px": 64, "max_images": 100},
    "vae-ocsvm": {"vae": _VAE, "max_images": 100},
    "ganomaly": {**_TRAINING, "input_size_px": 32, "width": 8, "latent": 16},
    "dpa": {**_TRAINING, "input_size_px": 32, "width": 4, "width_max": 8, "blocks": 1},
    "piad": {
        **_TRAINING,
        "input_size_px": 32,
        "latent": 16,
        "width": 8,
        "width_max": 16,
        "latent_critic_widths": (32,),
        "balance_every": 2,
        "critic_steps": 1,
    },
    "deep-geo": {**_TRAINING, "input_size_px": 16, "width": 1, "depth": 10, "transforms_per_image": 4},
    "deep-svdd": {
        **_TRAINING,
        "input_size_px": 16,
        "widths": (8, 16),
        "latent": 16,
        "radius_warm_up_epochs": 0,
        "pretraining_epochs": 1,
        "fine_tuning_epochs": 1,
    },
    "simclr": {**_TRAINING, "input_size_px": 32, "encoder": _RESNET, "projection_dims": 16},
    "simclr-knn": {**_TRAINING, "input_size_px": 32, "encoder": _RESNET, "projection_dims": 16},
}
_STAGE_EPOCHS = 0.125  # of a growing network's transition and of its stabilisation: four stages end before the last of two epochs
_MOST_SAMPLES = 250  # of one kind in a split: as many as the smallest of the papers trains with


def shrink(config: RunConfig) -> RunConfig:
    """The run with everything in it that takes time made small; what is trained, measured and shown stays.

    Detectors get small images, small networks and two epochs (`SMALL`); backbones that would be downloaded give way to the bundled one.
    Counts of a split are divided by one factor, so that they stay in proportion, and shares stay as they are: there is enough for
    both. Tiles and patches are smaller and fewer, and there are at most 100 replicates. The notice says that the data are generated; name
    and store are the caller's to choose.

    Args:
        config: of a run over data that `storage.datasets.miniatures.papers.write_miniature` wrote.

    Raises:
        ValidationError: a detector whose own sizes do not go with the small ones.
    """
    curation = _reduce(config.curation, {"skin": {"side_px": 96}})
    evaluation = _reduce(config.evaluation, {"bootstrap": {"replicates": 100}})
    return config.model_copy(
        update={
            "tiling": _shrink_tiling(config.tiling),
            "curation": curation,
            "split": _shrink_split(config.split),
            "detectors": tuple(shrink_detector(detector) for detector in config.detectors),
            "training": config.training.model_copy(update={"threads": 1}),  # of small networks more cores only wait for each other
            "calibration": _reduce(config.calibration, {"deviation_samples": 16}),
            "evaluation": evaluation,
            "notice": " ".join(filter(None, (NOTICE, config.notice))),
        }
    )


def shrink_detector(detector: DetectorConfig) -> DetectorConfig:
    """A detector of the same kind with small images, a small network and little training; without a download."""
    small = dict(SMALL[detector.kind])
    if isinstance(detector, DeepPerceptualAutoencoderConfig):
        small["growing"] = _shrink_growing(detector, small["input_size_px"])
    return _reduce(detector, small | _bundled(detector))


def _bundled(detector: BaseModel) -> dict[str, Any]:
    """The kind's own backbone, which the package ships, in place of one that does not come with it."""
    return {
        name: type(detector).model_fields[name].default
        for name, value in detector
        if isinstance(value, BackboneConfig) and (value.name != BUNDLED or value.weights is not None)
    }


def _shrink_growing(detector: DeepPerceptualAutoencoderConfig, input_size_px: int) -> GrowingConfig | None:
    """The stages below the small input's size, passed quickly."""
    if detector.growing is None:
        return None
    backbone: BackboneConfig = _bundled(detector).get("backbone", detector.backbone)
    layers = {size: layer for size, layer in detector.growing.layers.items() if size < input_size_px}
    if backbone != detector.backbone:
        layers = dict.fromkeys(layers, backbone.layers[0])
    return GrowingConfig(layers=layers, transition_epochs=_STAGE_EPOCHS, stabilisation_epochs=_STAGE_EPOCHS) if layers else None


def _shrink_tiling(tiling: TilingConfig) -> TilingConfig:
    given = {name: most for name, most in (("stride_px", 128), ("tiles_max", 10)) if getattr(tiling, name) is not None}
    return _reduce(tiling, {"size_px": 128, **given})


def _shrink_split(split: SplitConfig) -> SplitConfig:
    if split.counts is None:
        return split
    factor = max(1, max(number for count in split.counts.values() for number in _numbers(count)) // _MOST_SAMPLES)
    return split.model_copy(update={"counts": {name: _shrink_count(count, factor) for name, count in split.counts.items()}})


def _numbers(count: CountConfig) -> list[int]:
    values = [getattr(count, name) for name in count.model_fields_set]
    return [number for value in values for number in (value.values() if isinstance(value, dict) else [value or 0])]


def _shrink_count(count: CountConfig, factor: int) -> CountConfig:
    """Each number divided and rounded; of what is asked for one stays."""

    def divide(number: int | None) -> int | None:
        return max(1, round(number / factor)) if number else number

    given = {name: getattr(count, name) for name in count.model_fields_set}
    divided = {
        name: {finding: divide(number) for finding, number in value.items()} if isinstance(value, dict) else divide(value)
        for name, value in given.items()
    }
    return CountConfig.model_validate(divided)


def _reduce(model: Model, small: Mapping[str, Any]) -> Model:
    """The model with the numbers of `small` as the most of its own, and everything else of `small` in place of its own; by parts."""
    changes: dict[str, Any] = {}
    for name, value in small.items():
        own = getattr(model, name)
        if isinstance(own, BaseModel) and isinstance(value, Mapping):
            changes[name] = _reduce(own, value)
        elif isinstance(own, int | float) and isinstance(value, int | float):
            changes[name] = min(own, value)
        else:
            changes[name] = value
    return type(model).model_validate({**dict(model), **changes})
