"""From a bundle to a detector: the one that was trained, or an error that says what is wrong with the bundle."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from methods.detectors.autoencoder import AutoencoderConfig
from methods.detectors.networks import efficientnet_lite
from methods.detectors.networks.backbones import BackboneConfig
from methods.detectors.patchcore import PatchCoreConfig
from methods.detectors.registry import DetectorConfig, build_detector
from methods.detectors.vae import VAEConfig
from storage.models import Bundle, BundleError, write_bundle
from tasks.models import detector_config, load_detector
from tasks.references import ModelReference

AE = AutoencoderConfig(C0=2, d=3, input_size_px=16)
VARIATIONAL = VAEConfig(input_size_px=16, width=2, latent=3, samples=2)
MEMORY = PatchCoreConfig(input_size_px=64, memory_size=5)
FILES = ("model.safetensors", "config.json", "card.json", "checksums.json")


def tensors_of(config: DetectorConfig) -> dict[str, np.ndarray]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = build_detector(config)
    state = {name: tensor.numpy() for name, tensor in detector.state_dict().items()}
    return state | ({"memory": np.ones((5, 64), np.float32)} if isinstance(config, PatchCoreConfig) else {})


def write(folder: Path, config: DetectorConfig, tensors: dict[str, np.ndarray]) -> ModelReference:
    digest = write_bundle(str(folder), Bundle(tensors=tensors, config=config.model_dump(mode="json"), card={"seed": 3}))
    return ModelReference(uri=str(folder), digest=digest, kind=config.kind)


@pytest.mark.parametrize("config", [AE, VARIATIONAL, MEMORY], ids=lambda config: config.kind)
def test_a_bundle_gives_the_detector_back(tmp_path: Path, config: DetectorConfig) -> None:
    tensors = tensors_of(config)
    model = write(tmp_path, config, tensors)
    detector = load_detector(model)
    assert detector_config(model) == config
    assert detector.input_size_px == config.input_size_px
    for name, tensor in detector.state_dict().items():
        np.testing.assert_array_equal(tensor, tensors[name], strict=True)
    images = torch.rand(2, 3, config.input_size_px, config.input_size_px, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert detector.score(images).image.isfinite().all()


def test_a_patchcore_from_before_it_had_a_choice_is_the_whitened_one(tmp_path: Path) -> None:
    later = {"whiten", "memory_share", "candidates_max", "image_score", "neighbours"}
    tensors, config = tensors_of(MEMORY), {name: value for name, value in MEMORY.model_dump(mode="json").items() if name not in later}
    digest = write_bundle(str(tmp_path), Bundle(tensors=tensors, config=config, card={"seed": 3}))
    model = ModelReference(uri=str(tmp_path), digest=digest, kind="patchcore")
    detector = load_detector(model)
    assert detector_config(model) == MEMORY
    assert {"mean", "whitening", "memory"} < detector.state_dict().keys()


@pytest.mark.parametrize(("config", "other"), [(AE, VARIATIONAL), (VARIATIONAL, AE), (MEMORY, AE)], ids=lambda config: config.kind)
def test_the_weights_of_another_detector_are_refused_naming_both(tmp_path: Path, config: DetectorConfig, other: DetectorConfig) -> None:
    model = write(tmp_path, config, tensors_of(other))
    with pytest.raises(BundleError, match=rf"not those of the {config.kind} in its config\.json: .*Missing key") as refusal:
        load_detector(model)
    assert str(tmp_path) in str(refusal.value)
    assert len(str(refusal.value)) < 1000


def test_tensors_that_lack_are_too_many_or_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    tensors = tensors_of(AE)
    changes = {
        r"Missing.*encoder\.0\.weight": {name: tensor for name, tensor in tensors.items() if name != "encoder.0.weight"},
        r"Unexpected.*hidden": tensors | {"hidden": np.zeros(1, np.float32)},
        r"size mismatch for decoder\.0\.bias": tensors | {"decoder.0.bias": np.zeros(7, np.float32)},
        r"size mismatch for encoder\.0\.weight": tensors_of(AE.model_copy(update={"C0": 4})),
    }
    for number, (message, changed) in enumerate(changes.items()):
        with pytest.raises(BundleError, match=message):
            load_detector(write(tmp_path / str(number), AE, changed))


@pytest.mark.parametrize("memory", [np.ones((5, 63), np.float32), np.float32(1), np.ones((5, 64, 1), np.float32)])
def test_a_memory_of_other_features_is_refused_whatever_its_length(tmp_path: Path, memory: np.ndarray) -> None:
    model = write(tmp_path, MEMORY, tensors_of(MEMORY) | {"memory": np.asarray(memory)})
    with pytest.raises(BundleError, match="size mismatch for memory"):
        load_detector(model)


@pytest.mark.parametrize("config", [{"kind": "tarot"}, {"C0": 2}, {"kind": "ae", "width": 2}, {"kind": "ae", "C0": 0}, {}])
def test_a_configuration_of_no_known_detector_is_refused(tmp_path: Path, config: dict) -> None:
    digest = write_bundle(str(tmp_path), Bundle(tensors=tensors_of(AE), config=config, card={}))
    model = ModelReference(uri=str(tmp_path), digest=digest, kind="ae")
    for read in (load_detector, detector_config):
        with pytest.raises(BundleError, match=r"config\.json of .* is not the configuration of a detector"):
            read(model)


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_in_any_file_is_refused(tmp_path: Path, name: str) -> None:
    model = write(tmp_path, AE, tensors_of(AE))
    content = (tmp_path / name).read_bytes()
    for position in np.random.default_rng(0).integers(0, len(content), 20):
        changed = bytearray(content)
        changed[position] ^= 0x20  # in text: another case, or a blank that is none
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(BundleError, match="another model" if name == "checksums.json" else f"{name} .* was changed"):
            load_detector(model)
    (tmp_path / name).write_bytes(content)
    load_detector(model)


def test_a_bundle_is_loaded_where_the_weights_of_its_backbone_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "backbone.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(efficientnet_lite.build(None).state_dict(), weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    own = BackboneConfig(layers=("block2", "block4"), weights=str(weights), weights_sha256=digest)
    for backbone in (own, BackboneConfig(layers=("block2", "block4"))):
        config = MEMORY.model_copy(update={"backbone": backbone})
        tensors = tensors_of(config)
        model = write(tmp_path / "bundle", config, tensors)
        weights.unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            patch.setattr(efficientnet_lite, "locate", lambda: pytest.fail("weights were looked for"))
            detector = load_detector(model)
        for name, tensor in detector.state_dict().items():
            np.testing.assert_array_equal(tensor, tensors[name], strict=True)
