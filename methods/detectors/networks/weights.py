"""Weight files of pretrained networks: verified before they are parsed, nothing but tensors, downloaded only for a named network."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import torch as safetensors
from torch import Tensor
from torch.overrides import TorchFunctionMode

from methods.detectors.interface import DetectorError

_architecture_only: ContextVar[bool] = ContextVar("architecture_only", default=False)


class PublishedWeights(NamedTuple):
    """Where the weights that belong to a name are published.

    Attributes:
        url: address of the file.
        file_name: what it is called in torch hub's cache.
        package: the library that names this address.
        sha256: the digest's known beginning; empty where its publisher states none.
    """

    url: str
    file_name: str
    package: str
    sha256: str


@contextmanager
def architecture_only() -> Iterator[None]:
    """Within, networks are built without weights: for a state that holds them all, as a bundle's, and is loaded next."""
    token = _architecture_only.set(True)
    try:
        yield
    finally:
        _architecture_only.reset(token)


def wants_weights() -> bool:
    """Whether a network is to be built with its weights."""
    return not _architecture_only.get()


class Unfilled(TorchFunctionMode):
    """Within, layers are built without drawing random weights, which takes seconds for large networks: a state replaces every one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Leaves a tensor as it is where it would be drawn."""
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))


def read_weights(path: Path, *, sha256: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors or a torch file, by name.

    Args:
        path: the file.
        sha256: the digest, or its beginning, that the file must have.

    Raises:
        DetectorError: no such file, another digest, or more than tensors in it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DetectorError(f"the weight file {path} cannot be read: {error.strerror}") from None
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(sha256):
        raise DetectorError(f"{path} is not the known weight file: expected SHA-256 {sha256[:12]}…, found {found[:12]}…; fetch it anew")
    try:
        if path.suffix == ".safetensors":
            return safetensors.load(content)
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # on junk the unpickler raises whatever its bytes happen to mean, as KeyError
        said = f"{type(error).__name__}: {error}"[:200]
        raise DetectorError(f"{path} is no file of weights alone (.safetensors, or .pth of tensors): {said}") from None
    state = next((loaded[key] for key in ("state_dict", "model") if key in loaded), loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise DetectorError(f"{path} holds no dictionary of tensors by name")
    return state


def locate_published(name: str, published: PublishedWeights) -> Path:
    """The file in torch hub's cache, downloaded when it is not there yet.

    Raises:
        DetectorError: cannot be had; says what to fetch and where to put it.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / published.file_name
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(published.url, str(path), published.sha256 or None, progress=False)
    except (OSError, RuntimeError) as error:  # no network or no such address; another digest
        raise DetectorError(
            f"the weights of {name} are not on this machine and could not be downloaded ({error}). On a machine with a network fetch "
            f"{published.url} (the address that the package {published.package} names) and put it at {path}, or anywhere and set "
            "weights to its path and weights_sha256 to its digest (of `normascope doctor`: --weights and --sha256)"
        ) from None
    return path
