"""Model bundles: complete, unchanged, and never unpickled."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from storage.models import Bundle, BundleError, bundle_digest, bundle_is_complete, read_bundle, write_bundle

FILES = ("model.safetensors", "config.json", "card.json", "checksums.json")


@pytest.fixture
def bundle() -> Bundle:
    """Tensors of several types, one of them not contiguous."""
    tensors = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "half": np.float16([1.5]),
        "count": np.array(7),
        "none": np.empty((0, 4)),
    }
    return Bundle(tensors=tensors, config={"kind": "ae", "d": 64}, card={"seed": 3})


def _overwrite(folder: Path, name: str, content: bytes) -> None:
    """Replace a file and its checksum: what someone does who forges a bundle."""
    (folder / name).write_bytes(content)
    checksums = json.loads((folder / "checksums.json").read_bytes())
    (folder / "checksums.json").write_text(json.dumps({**checksums, name: hashlib.sha256(content).hexdigest()}))


def test_a_bundle_comes_back_as_it_was_written(bundle: Bundle, tmp_path: Path) -> None:
    digest = write_bundle(str(tmp_path), bundle)
    back = read_bundle(str(tmp_path), digest=digest)
    assert bundle_digest(str(tmp_path)) == digest
    assert (back.config, back.card) == (bundle.config, bundle.card)
    assert back.tensors.keys() == bundle.tensors.keys()
    for name, tensor in bundle.tensors.items():
        np.testing.assert_array_equal(back.tensors[name], tensor, strict=True)


def test_equal_bundles_have_equal_digests_and_other_tensors_another(bundle: Bundle, tmp_path: Path) -> None:
    reordered = Bundle(tensors=dict(reversed(bundle.tensors.items())), config=bundle.config, card=bundle.card)
    other = Bundle(tensors={**bundle.tensors, "count": np.array(8)}, config=bundle.config, card=bundle.card)
    one, two, three = (write_bundle(str(tmp_path / str(number)), each) for number, each in enumerate((bundle, reordered, other)))
    assert one == two != three


@pytest.mark.parametrize("name", FILES)
def test_a_bundle_with_one_changed_byte_is_refused_naming_the_file(bundle: Bundle, tmp_path: Path, name: str) -> None:
    write_bundle(str(tmp_path), bundle)
    content = (tmp_path / name).read_bytes()
    for position in range(0, len(content), 1 + len(content) // 50):
        changed = bytearray(content)
        changed[position] ^= 1
        (tmp_path / name).write_bytes(changed)
        # checksums that were changed are no JSON, or disagree with a file, or name one that is not there
        with pytest.raises(
            BundleError, match=r"is not a JSON object|was changed|is missing" if name == FILES[3] else f"{name} .* was changed"
        ):
            read_bundle(str(tmp_path))


@pytest.mark.parametrize("name", FILES)
def test_an_incomplete_bundle_is_refused_naming_what_is_missing(bundle: Bundle, tmp_path: Path, name: str) -> None:
    write_bundle(str(tmp_path), bundle)
    assert bundle_is_complete(str(tmp_path))
    (tmp_path / name).unlink()
    assert not bundle_is_complete(str(tmp_path))
    with pytest.raises(BundleError, match=f"{name} is missing"):
        read_bundle(str(tmp_path))


def test_a_bundle_cut_short_while_it_was_written_over_is_refused(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from storage import filesystems

    real = filesystems.write_bytes

    def write_bytes(uri: str, content: bytes) -> None:
        if uri.endswith("card.json"):
            raise OSError("No space left on device")
        real(uri, content)

    write_bundle(str(tmp_path), bundle)
    monkeypatch.setattr(filesystems, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="No space"):
        write_bundle(str(tmp_path), Bundle(tensors={"w": np.zeros(1)}, config={}, card={}))
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        read_bundle(str(tmp_path))


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_a_pickle_that_is_named_safetensors_is_refused_and_never_run(bundle: Bundle, tmp_path: Path) -> None:
    write_bundle(str(tmp_path), bundle)
    content = pickle.dumps(_Payload(tmp_path / "harmful"))
    pickle.loads(content)
    (tmp_path / "harmful").unlink()  # the payload works
    _overwrite(tmp_path, "model.safetensors", content)
    with pytest.raises(BundleError, match="not a safetensors file"):
        read_bundle(str(tmp_path))
    assert not (tmp_path / "harmful").exists()


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("content", [b"", b"{", b"3", b"[1]", b"\xff"])
def test_what_is_no_json_object_is_refused_by_name(bundle: Bundle, tmp_path: Path, name: str, content: bytes) -> None:
    write_bundle(str(tmp_path), bundle)
    _overwrite(tmp_path, name, content) if name != "checksums.json" else (tmp_path / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} of the model bundle .* is not a JSON object"):
        read_bundle(str(tmp_path))
    assert bundle_is_complete(str(tmp_path)) == (name != "checksums.json")


def test_a_safetensors_file_that_is_cut_short_or_of_types_that_numpy_lacks_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    write_bundle(str(tmp_path), bundle)
    content = (tmp_path / "model.safetensors").read_bytes()
    halves = safetensors.torch.save({"w": torch.ones(2, dtype=torch.bfloat16)})
    for other in (*(content[:length] for length in (0, 7, 100, len(content) - 1)), content + b"\0", halves):
        _overwrite(tmp_path, "model.safetensors", other)
        with pytest.raises(BundleError, match="not a safetensors file"):
            read_bundle(str(tmp_path))


def test_another_bundle_than_the_digest_names_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    write_bundle(str(tmp_path), bundle)
    with pytest.raises(BundleError, match="another model: expected digest 000000000000"):
        read_bundle(str(tmp_path), digest="0" * 64)
