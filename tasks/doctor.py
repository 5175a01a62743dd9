"""Look at what a run needs, change nothing."""

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from storage import filesystems
from tasks import server

if TYPE_CHECKING:
    from torch import Tensor

_PACKAGES = ("torch", "torchvision", "lightning", "prefect", "fastapi", "dask", "zarr", "openslide-bin", "tifffile")
_LEAST_FREE_GIB = 2.0
# photographs that scikit-image ships, and the classes of ImageNet that say what they show; five classes of 1,000 drawn at random hold
# one of these for all three photographs once in 180,000 times
_SHOWN = {
    "coffee": ("espresso", "cup", "coffee mug"),
    "chelsea": ("tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"),
    "rocket": ("missile", "projectile", "space shuttle"),
}
_ANSWERS = 5


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    text: str


def examine(store: str) -> list[Finding]:
    """Everything a run needs, each with what was found."""
    return [_versions(), _gpu(), _cores(), _store(store), _disk(store), _server()]


def examine_backbone(name: str, *, weights: str | None = None, weights_sha256: str | None = None) -> Finding:
    """Whether pretrained weights are what they are called: the network must know what three photographs show.

    Files that claim to be pretrained and hold random numbers are in circulation. The weights pass when one of the accepted classes is
    among the five likeliest of each photograph.
    """
    import torch
    from pydantic import ValidationError

    from methods.detectors.interface import DetectorError
    from methods.detectors.networks.backbones import build_classifier

    try:
        classifier = build_classifier(name, weights=weights, weights_sha256=weights_sha256)
        images = torch.stack([_photograph(shown, classifier.resized_px, classifier.input_size_px) for shown in _SHOWN])
        with torch.inference_mode():
            likelihood = classifier.network(images).softmax(1)
    except ValidationError as error:
        return Finding("backbone", False, "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors()))
    except DetectorError as error:
        return Finding("backbone", False, str(error))
    return _judge(name, likelihood.tolist())


def _photograph(shown: str, resized_px: int, cropped_px: int) -> "Tensor":
    """The central square (3, cropped_px, cropped_px) in [0, 1] of a photograph."""
    import torch
    from skimage import data
    from torchvision.transforms.functional import center_crop, resize

    image = torch.from_numpy(getattr(data, shown)()).permute(2, 0, 1).float() / 255
    return center_crop(resize(image, [resized_px], antialias=True), [cropped_px])


def _judge(name: str, likelihood: list[list[float]]) -> Finding:
    """What is said of each photograph, against what is accepted."""
    from torchvision.models import ResNet18_Weights

    classes = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    if len(likelihood[0]) != len(classes):
        return Finding("backbone", False, f"{name} tells {len(likelihood[0])} classes, not ImageNet's {len(classes)}: cannot be examined")
    said, missed = [], []
    for (shown, accepted), of_class in zip(_SHOWN.items(), likelihood, strict=True):
        first = sorted(zip(of_class, classes, strict=True), reverse=True)[:_ANSWERS]
        said.append(f"{shown}: {first[0][1]} ({100 * first[0][0]:.0f} %)")
        if not {answer for _, answer in first} & set(accepted):
            missed.append(f"{shown} (none of {', '.join(accepted)})")
    if missed:
        text = f"{name} does not know {', '.join(missed)}; it says {', '.join(said)}: these are not the trained weights they are called"
        return Finding("backbone", False, text)
    return Finding("backbone", True, f"{name} knows {', '.join(said)}")


def _versions() -> Finding:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            return Finding("versions", False, f"{name} is not installed; run make")
    return Finding("versions", True, f"Python {platform.python_version()}, " + ", ".join(found))


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", True, "none; training and scoring run on the CPU")
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return Finding("GPU", True, f"{names}, CUDA {torch.version.cuda}")


def _cores() -> Finding:
    return Finding("cores", True, f"{len(os.sched_getaffinity(0))}")


def _store(store: str) -> Finding:
    uri = filesystems.absolute(store)
    path = filesystems.local_path(uri)
    try:
        if path is not None:
            existing = next(folder for folder in (path, *path.parents) if folder.exists())
            with tempfile.NamedTemporaryFile(dir=existing):
                pass
        else:
            filesystems.exists(uri)
    except Exception as error:  # whatever an object store's client raises
        return Finding("store", False, f"{uri} cannot be used: {error}")
    return Finding("store", True, f"{uri} is writable" if path is not None else f"{uri} answers")


def _disk(store: str) -> Finding:
    path = filesystems.local_path(filesystems.absolute(store)) or Path.cwd()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    free_gib = shutil.disk_usage(existing).free / 2**30
    return Finding("disk", free_gib >= _LEAST_FREE_GIB, f"{free_gib:.1f} GiB free at {existing}")


def _server() -> Finding:
    given = os.environ.get("PREFECT_API_URL")
    if given:
        return Finding("server", server.is_healthy(given), f"PREFECT_API_URL = {given}")
    running = server.running_server()
    text = f"runs at {running.ui_url}" if running else "none runs; a command starts one"
    return Finding("server", True, f"{text}; history in {server.home() / 'prefect'}")
