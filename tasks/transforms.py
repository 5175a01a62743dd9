"""What is done to a sample's pixels after reading, as its row of the manifest says it."""

import json
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image

from methods.curation.radiograph import equalise
from methods.curation.stain import StainConfig, StainError, Stains, estimate_stains, normalise
from storage import filesystems
from storage.pictures import read_picture
from tasks.curation import StainNormalisation

EQUALISE = json.dumps({"kind": "equalise"})


def apply_transform(pixels: np.ndarray, transform: str) -> np.ndarray:
    """The transformed pixels, (H, W, 3) uint8.

    Raises:
        ValueError: a transform that this version does not know.
    """
    return _parse(transform)(pixels)


def stain_target(config: StainNormalisation) -> str:
    """The target's stains and digest as JSON: what a sample's own stains are exchanged for.

    Raises:
        StainError: the target shows too little tissue.
    """
    sha256 = filesystems.sha256_of(config.target)
    pixels = read_picture(config.target, frame=None, sha256=sha256).reshape(-1, 3)
    stains = estimate_stains(pixels, _plain(config), np.random.default_rng(0))
    return json.dumps({"config": _plain(config).model_dump(), "target": stains.to_dict(), "target_sha256": sha256})


def stain_transform(target: str | None, tissue: np.ndarray | None) -> tuple[str | None, str | None]:
    """The transform that gives these pixels the target's stains, and why there is none.

    Args:
        target: of `stain_target`; None: no normalisation is wanted.
        tissue: (n, 3) uint8 pixels of the slide or picture; None like a missing target.

    Returns:
        the transform as JSON or None, and the trouble or None.
    """
    if target is None or tissue is None:
        return None, None
    wanted = json.loads(target)
    try:
        stains = estimate_stains(tissue, StainConfig(**wanted["config"]), np.random.default_rng(0))
    except StainError as error:
        return None, str(error)
    return json.dumps({"kind": "stain", **wanted, "source": stains.to_dict()}), None


@lru_cache(maxsize=256)
def _parse(transform: str) -> Callable[[np.ndarray], np.ndarray]:
    values = json.loads(transform)
    if values["kind"] == "equalise":
        return lambda pixels: np.repeat(equalise(np.asarray(Image.fromarray(pixels).convert("L")))[..., None], 3, axis=2)
    if values["kind"] == "stain":
        source, target = Stains.from_dict(values["source"]), Stains.from_dict(values["target"])
        config = StainConfig(**values["config"])
        return lambda pixels: normalise(pixels, source, target, config)
    raise ValueError(f"unknown transform {transform}")


def _plain(config: StainNormalisation) -> StainConfig:
    return StainConfig(**config.model_dump(exclude={"target"}))
