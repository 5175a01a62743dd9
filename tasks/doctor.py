"""Look at what a run needs, change nothing."""

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from storage import filesystems
from tasks import server

_PACKAGES = ("torch", "torchvision", "lightning", "prefect", "fastapi", "dask", "zarr", "openslide-bin", "tifffile")
_LEAST_FREE_GIB = 2.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    text: str


def examine(store: str) -> list[Finding]:
    """Everything a run needs, each with what was found."""
    return [_versions(), _gpu(), _cores(), _store(store), _disk(store), _server()]


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
