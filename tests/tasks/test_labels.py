"""Names of detectors: plain where a kind comes once, set apart where it comes several times."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from methods.detectors.dpa import DeepPerceptualAutoencoderConfig, GrowingConfig
from methods.detectors.vae import VAEConfig
from storage.models import Bundle, write_bundle
from storage.scores import create_store
from tasks.labels import label_detectors, label_stores
from tasks.references import StoreReference


def dump(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = config.model_dump(mode="json")
    return found


def test_a_kind_that_comes_once_has_its_plain_name() -> None:
    assert label_detectors([{"kind": "ae", "d": 4}, {"kind": "vae"}, {"kind": "patchcore"}]) == ["Autoencoder", "VAE", "PatchCore"]


def test_detectors_of_one_kind_are_told_apart_by_the_keys_in_which_they_differ() -> None:
    vaes = [dump(VAEConfig(score=score)) for score in ("vae", "iwae")]
    assert label_detectors([{"kind": "ae"}, *vaes]) == ["Autoencoder", "VAE (score vae)", "VAE (score iwae)"]
    sizes = [dump(VAEConfig(input_size_px=size, kl_weight=weight)) for size, weight in ((64, 0.01), (128, 0.5))]
    assert label_detectors(sizes) == ["VAE (input size 64 px, kl weight 0.01)", "VAE (input size 128 px, kl weight 0.5)"]


def test_what_is_off_is_not_named_and_what_is_on_is() -> None:
    growing = GrowingConfig(layers={16: "block2", 32: "block4"}, transition_epochs=1, stabilisation_epochs=1)
    slower = growing.model_copy(update={"transition_epochs": 2.0})
    plain, grown, slow = (dump(DeepPerceptualAutoencoderConfig(growing=one)) for one in (None, growing, slower))
    name = "Deep perceptual autoencoder"
    assert label_detectors([plain, grown]) == [name, f"{name} (growing)"]
    assert label_detectors([grown, slow]) == [f"{name} (growing transition epochs 1)", f"{name} (growing transition epochs 2)"]
    assert label_detectors([plain, grown, slow]) == [
        name, f"{name} (growing transition epochs 1)", f"{name} (growing transition epochs 2)",
    ]  # fmt: skip
    assert label_detectors([{"kind": "ae", "tied": True}, {"kind": "ae", "tied": False}]) == ["Autoencoder (tied)", "Autoencoder"]


def test_where_words_would_be_long_or_alike_the_detectors_are_numbered() -> None:
    assert label_detectors([{"kind": "ae", "d": 4}, {"kind": "vae"}, {"kind": "ae", "d": 4}]) == ["Autoencoder 1", "VAE", "Autoencoder 2"]
    assert label_detectors([{"kind": "ae", "tied": None}, {"kind": "ae", "tied": False}]) == ["Autoencoder 1", "Autoencoder 2"]
    long = [{"kind": "ae", "layers": [f"block{n}" for n in range(first, first + 9)]} for first in (0, 1)]
    assert label_detectors(long) == ["Autoencoder 1", "Autoencoder 2"]


@pytest.mark.parametrize(("scores", "names"), [(("vae", "iwae"), ["VAE (score vae)", "VAE (score iwae)"]), (("vae",), ["VAE"])])
def test_stores_are_named_by_the_configurations_of_their_bundles(tmp_path: Path, scores: tuple[Any, ...], names: list[str]) -> None:
    stores = []
    for score in scores:
        uri = str(tmp_path / score)
        digest = write_bundle(uri, Bundle(tensors={"w": np.zeros(1)}, config=dump(VAEConfig(score=score)), card={}))
        store = create_store(
            f"{uri}.zarr", rows=1, map_size_px=None, shard_rows=1, attributes={"manifest_digest": "m", "model_digest": digest},
            notes={"model_uri": uri},
        )  # fmt: skip
        stores.append(StoreReference(uri=store.uri, manifest_digest="m", model_digest=digest, kind="vae"))
    assert label_stores(stores) == names
