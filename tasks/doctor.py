"""Look at what a run needs, change nothing: one small file is written to the store, read and removed."""

import os
import platform
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from storage import filesystems
from storage.housekeeping import probe
from tasks import server
from tasks.settings import hide_user

if TYPE_CHECKING:
    import httpx
    from pydantic import BaseModel
    from torch import Tensor

    from methods.detectors.networks.backbones import BackboneConfig

_PACKAGES = ("torch", "torchvision", "lightning", "prefect", "fastapi", "dask", "zarr", "openslide-bin", "tifffile")
_LEAST_FREE_GIB = 2.0
_CONNECT_TIMEOUT_S = 15
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


def examine(store: str, *, scheduler: str | None = None) -> list[Finding]:
    """Everything a run needs, each with what was found; `scheduler` is the address of a Dask cluster that is to be used."""
    findings = [_versions(), _gpu(), _cores(), _store(store), _disk(store), _server(), *_workers()]
    return [*findings, _dask(scheduler)] if scheduler is not None else findings


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
        text = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
        return Finding("backbone", False, _name_options(text))
    except DetectorError as error:
        return Finding("backbone", False, _name_options(str(error)))
    return _judge(name, likelihood.tolist())


def examine_backbones(detectors: Iterable["BaseModel"]) -> list[Finding]:
    """`examine_backbone` of every network that configurations of detectors name, each with the weights that they name; equal ones once."""
    wanted = dict.fromkeys((part.name, part.weights, part.weights_sha256) for detector in detectors for part in _list_backbones(detector))
    if not wanted:
        return [Finding("backbone", True, "no detector of the configuration has a pretrained one to examine")]
    return [examine_backbone(name, weights=weights, weights_sha256=sha256) for name, weights, sha256 in wanted]


def _list_backbones(config: "BaseModel") -> Iterator["BackboneConfig"]:
    """Those in a configuration, however deep."""
    from pydantic import BaseModel

    from methods.detectors.networks.backbones import BackboneConfig

    for name in type(config).model_fields:
        part = getattr(config, name)
        if isinstance(part, BackboneConfig):
            yield part
        elif isinstance(part, BaseModel):
            yield from _list_backbones(part)


def _name_options(text: str) -> str:
    """What errors call as a configuration does has other names on the command line."""
    return text if "weights_sha256" not in text or "--sha256" in text else f"{text} (of this command: --weights and --sha256)"


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
    # a folder that is not there yet is tried where it will be made
    tried = uri if path is None else str(next(folder for folder in (path, *path.parents) if folder.exists()))
    try:
        found = probe(tried)
    except Exception as error:  # whatever an object store's client raises
        return Finding("store", False, f"{uri} cannot be used: {error}")
    if not found.conditional:
        text = f"{uri} ignores If-None-Match: two runs at once could spoil an archive there; use another store"
        return Finding("store", False, text)
    return Finding("store", True, f"{uri}: written, read and removed in {1000 * found.seconds:.0f} ms, conditional writes are kept")


def _disk(store: str) -> Finding:
    path = filesystems.local_path(filesystems.absolute(store)) or Path.cwd()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    free_gib = shutil.disk_usage(existing).free / 2**30
    return Finding("disk", free_gib >= _LEAST_FREE_GIB, f"{free_gib:.1f} GiB free at {existing}")


def _server() -> Finding:
    given = os.environ.get("PREFECT_API_URL")
    if given:
        healthy = server.is_healthy(given)
        mend = "" if healthy else " does not answer: start it, or unset the variable to use a local one"
        return Finding("server", healthy, f"PREFECT_API_URL = {hide_user(given)}{mend}")
    running = server.running_server()
    ended = " (the last one has ended without being stopped)" if server.has_died() else ""
    text = f"runs at {running.ui_url}" if running else f"none runs{ended}; a command starts one"
    log = f", warnings and errors in {server.log_path()}" if server.log_path().exists() else ""
    return Finding("server", True, f"{text}; history in {server.home() / 'prefect'}{log}")


def _workers() -> list[Finding]:
    """Of each work pool of the server that answers, who works for it; nothing where no server runs."""
    running = server.running_server()
    api = os.environ.get("PREFECT_API_URL") or (f"{running.ui_url}/api" if running else None)
    if api is None or not server.is_healthy(api):
        return []
    import httpx

    user, colon, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    try:
        with httpx.Client(base_url=api, auth=(user, password) if colon else None, timeout=10) as client:
            pools = client.post("/work_pools/filter", json={}).raise_for_status().json()
            of_pool = {pool["name"]: _ask_workers(client, pool["name"]) for pool in pools}
    except httpx.HTTPError as error:
        mend = "set PREFECT_API_AUTH_STRING to its user:password" if "401" in str(error) else "look at the server's log"
        return [Finding("workers", False, f"the server does not say who works for it: {type(error).__name__}; {mend}")]
    return [_judge_pool(pool, of_pool[pool["name"]], now=datetime.now(UTC)) for pool in pools]


def _ask_workers(client: "httpx.Client", pool: str) -> list[dict[str, Any]]:
    return list(client.post(f"/work_pools/{quote(pool, safe='')}/workers/filter", json={}).raise_for_status().json())


def _judge_pool(pool: Mapping[str, Any], workers: Sequence[Mapping[str, Any]], *, now: datetime) -> Finding:
    """Whether runs of a pool are begun: it is not paused, and the server says that it is ready."""
    beats = [datetime.fromisoformat(worker["last_heartbeat_time"]) for worker in workers if worker.get("last_heartbeat_time")]
    online = sum(worker.get("status") == "ONLINE" for worker in workers)
    last = f", last heartbeat {(now - max(beats)).total_seconds():.0f} s ago" if beats else ""
    said = f"pool {pool['name']}: {online} of {len(workers)} workers online{last}"
    if pool.get("is_paused"):
        return Finding("workers", False, f"{said}; it is paused: `prefect work-pool resume {pool['name']}`")
    if pool.get("status") == "NOT_READY":
        return Finding(
            "workers", False, f"{said}; nobody begins its runs: `normascope serve`, or `prefect worker start --pool {pool['name']}`"
        )
    return Finding("workers", True, said)


def _dask(address: str) -> Finding:
    """Who works for a scheduler, with which versions and what to offer."""
    from distributed import Client

    try:
        with Client(address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False) as client:
            workers = client.scheduler_info(n_workers=-1)["workers"]
            if not workers:
                return Finding("Dask", False, f"{address} has no worker: start some with `dask worker {address}`")
            versions = client.run(_package_versions, on_error="return")
    except (OSError, TimeoutError, ValueError) as error:
        text = f"{address} does not answer within {_CONNECT_TIMEOUT_S} s ({type(error).__name__}): start it with `dask scheduler`"
        return Finding("Dask", False, text)
    if differing := compare_versions(_package_versions(), versions):
        return Finding("Dask", False, f"{address}: {'; '.join(differing)}: install the same on every machine (requirements.lock)")
    offered = Counter(f"{name}={amount:g}" for worker in workers.values() for name, amount in worker["resources"].items())
    cores = sum(worker["nthreads"] for worker in workers.values())
    offers = ", ".join(f"{count} offer {what}" for what, count in sorted(offered.items())) or "none offers resources"
    return Finding("Dask", True, f"{address}: {len(workers)} workers of the same versions, {cores} threads, {offers}")


def compare_versions(ours: Mapping[str, str], theirs: Mapping[str, Mapping[str, str] | BaseException]) -> list[str]:
    """What differs on each worker; an error in place of versions is of a worker that cannot import normascope."""
    lines = []
    for worker, versions in theirs.items():
        if isinstance(versions, BaseException):
            lines.append(f"{worker} cannot import normascope ({type(versions).__name__}: {versions})")
            continue
        differing = [
            f"{name} {versions.get(name, 'missing')} (here {version})" for name, version in ours.items() if versions.get(name) != version
        ]
        lines += [f"{worker} has {', '.join(differing)}"] if differing else []
    return lines


def _package_versions() -> dict[str, str]:
    """Of this process; runs on workers."""
    found = {"Python": platform.python_version()}
    for name in ("normascope", *_PACKAGES):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
