"""Model bundles: a folder of model.safetensors, config.json, card.json, pictures, and the checksums that make it complete.

Nothing pickled is read.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from storage import filesystems

_FILES = ("model.safetensors", "config.json", "card.json")
_CHECKSUMS = "checksums.json"


class BundleError(ValueError):
    """A folder that is no complete, unchanged model bundle."""


@dataclass(frozen=True)
class Bundle:
    """A trained detector on disk: its tensors by name, its configuration and its card, and pictures of its training (PNG, by name)."""

    tensors: dict[str, np.ndarray]
    config: dict[str, Any]
    card: dict[str, Any]
    pictures: dict[str, bytes] = field(default_factory=dict)


def write_bundle(uri: str, bundle: Bundle) -> str:
    """Write the bundle; the checksums come last, so that a bundle without them was cut short. Returns its digest."""
    contents = {
        "model.safetensors": save_tensors({name: np.asarray(tensor, order="C") for name, tensor in sorted(bundle.tensors.items())}),
        "config.json": _encode(bundle.config),
        "card.json": _encode(bundle.card),
        **{f"{name}.png": picture for name, picture in bundle.pictures.items()},
    }
    for name, content in contents.items():
        filesystems.write_bytes(filesystems.join(uri, name), content)
    checksums = _encode({name: hashlib.sha256(content).hexdigest() for name, content in contents.items()})
    filesystems.write_bytes(filesystems.join(uri, _CHECKSUMS), checksums)
    return hashlib.sha256(checksums).hexdigest()


def read_bundle(uri: str, *, digest: str | None = None) -> Bundle:
    """Read a bundle and verify every file against its checksum.

    Raises:
        BundleError: incomplete, changed, another one than `digest` names, or not safetensors and JSON.
    """
    for name in (_CHECKSUMS, *_FILES):
        _require(uri, name)
    checksums = filesystems.read_bytes(filesystems.join(uri, _CHECKSUMS))
    if digest is not None and (found := hashlib.sha256(checksums).hexdigest()) != digest:
        raise BundleError(f"{uri} is another model: expected digest {digest[:12]}, found {found[:12]}")
    expected = _decode(uri, _CHECKSUMS, checksums)
    contents = {}
    for name in dict.fromkeys((*_FILES, *expected)):
        _require(uri, name)
        contents[name] = filesystems.read_bytes(filesystems.join(uri, name))
        if hashlib.sha256(contents[name]).hexdigest() != expected.get(name):
            raise BundleError(f"{name} of the model bundle {uri} was changed after it was written")
    try:
        tensors = load_tensors(contents["model.safetensors"])
    except (SafetensorError, KeyError) as error:  # the latter for types that NumPy lacks, as bfloat16
        raise BundleError(f"model.safetensors of {uri} is not a safetensors file of NumPy's types: {error}") from None
    pictures = {name.removesuffix(".png"): content for name, content in contents.items() if name.endswith(".png")}
    config, card = (_decode(uri, name, contents[name]) for name in ("config.json", "card.json"))
    return Bundle(tensors=tensors, config=config, card=card, pictures=pictures)


def read_card(uri: str, *, digest: str) -> dict[str, Any]:
    """The card of a bundle, verified, without its tensors, which may be large.

    Raises:
        BundleError: another bundle than `digest` names, or a card that was changed.
        FileNotFoundError: nothing is there.
    """
    checksums, card = (filesystems.read_bytes(filesystems.join(uri, name)) for name in (_CHECKSUMS, "card.json"))
    if (found := hashlib.sha256(checksums).hexdigest()) != digest:
        raise BundleError(f"{uri} is another model: expected digest {digest[:12]}, found {found[:12]}")
    if hashlib.sha256(card).hexdigest() != _decode(uri, _CHECKSUMS, checksums).get("card.json"):
        raise BundleError(f"card.json of the model bundle {uri} was changed after it was written")
    return _decode(uri, "card.json", card)


def bundle_digest(uri: str) -> str:
    """The digest that names a bundle: SHA-256 of its checksums."""
    return filesystems.sha256_of(filesystems.join(uri, _CHECKSUMS))


def bundle_is_complete(uri: str) -> bool:
    """Whether all files of a bundle are there (contents are verified when it is read)."""
    if not filesystems.exists(filesystems.join(uri, _CHECKSUMS)):
        return False
    try:
        names = {*_FILES, *_decode(uri, _CHECKSUMS, filesystems.read_bytes(filesystems.join(uri, _CHECKSUMS)))}
    except BundleError:
        return False
    return all(filesystems.exists(filesystems.join(uri, name)) for name in names)


def _require(uri: str, name: str) -> None:
    if not filesystems.exists(filesystems.join(uri, name)):
        raise BundleError(f"no complete model bundle at {uri}: {name} is missing; train again or give another folder")


def _decode(uri: str, name: str, content: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError):
        raise BundleError(f"{name} of the model bundle {uri} is not a JSON object") from None


def _encode(value: Any) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"
