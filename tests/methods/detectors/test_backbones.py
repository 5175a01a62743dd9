"""Backbones: features are the network's own, weights are those that were asked for, or an error says why not."""

import hashlib
import io
import pickle
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.functional import normalize

from methods.detectors.autoencoder import AutoencoderConfig
from methods.detectors.interface import DetectorError
from methods.detectors.networks import backbones, efficientnet_lite
from methods.detectors.networks.backbones import BUNDLED, Backbone, BackboneConfig, build_backbone, build_classifier, check_backbones
from methods.detectors.networks.efficientnet_lite import EfficientNetLite0Features
from methods.detectors.networks.weights import architecture_only, read_weights
from methods.detectors.padim import PaDiMConfig

RESNET = "torchvision/resnet18"
IMAGES = torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Saved(NamedTuple):
    """A network with random weights, and the file of them."""

    network: nn.Module
    name: str
    path: Path
    sha256: str

    def config(self, *layers: str) -> BackboneConfig:
        return BackboneConfig(name=self.name, layers=layers, weights=str(self.path), weights_sha256=self.sha256)


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def randomise(network: nn.Module) -> nn.Module:
    """Statistics of normalisations too: as they are built, they do nothing."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = randomise(models.resnet18())
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return Saved(network, RESNET, path, digest_of(path))


@pytest.fixture(scope="module")
def saved_timm(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = randomise(timm.create_model("mobilenetv3_small_050", pretrained=False))
    path = tmp_path_factory.mktemp("weights") / "mobilenet.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    return Saved(network, "timm/mobilenetv3_small_050", path, digest_of(path))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch hub's cache, empty, on a machine without a network."""

    def fail(*arguments: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    return tmp_path / "hub" / "checkpoints"


def outputs_within(network: nn.Module, images: Tensor, layers: tuple[str, ...]) -> list[Tensor]:
    """What the layers put out while the whole network runs, as it was before anything behind changed it in place."""
    seen: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(layer).register_forward_hook(lambda _m, _i, output, layer=layer: seen.update({layer: output.clone()}))
        for layer in layers
    ]
    with torch.inference_mode():
        network(images)
    for hook in hooks:
        hook.remove()
    return [seen[layer] for layer in layers]


# bn1 and layer1.1.bn2 are changed in place by the ReLU and the sum that follow them
@pytest.mark.parametrize("layers", [("layer2", "layer3"), ("bn1", "layer1.1.bn2", "layer4"), ("conv1",)], ids="-".join)
def test_features_are_what_torchvisions_network_computes_on_normalised_images(saved: Saved, layers: tuple[str, ...]) -> None:
    backbone = build_backbone(saved.config(*layers))
    expected = outputs_within(saved.network, normalize(IMAGES, *IMAGENET), layers)
    with torch.inference_mode():
        features = backbone(IMAGES)
    for one, other, channels, stride_px in zip(features, expected, backbone.channels, backbone.strides_px, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert one.shape == (4, channels, 96 // stride_px, 96 // stride_px)


def test_features_are_what_timms_network_computes_on_normalised_images(saved_timm: Saved) -> None:
    layers = ("blocks.1", "blocks.3.0.bn1", "blocks.4")
    backbone = build_backbone(saved_timm.config(*layers))
    assert backbone.strides_px == (8, 16, 32)
    expected = outputs_within(saved_timm.network, normalize(IMAGES, *IMAGENET), layers)
    with torch.inference_mode():
        for one, other in zip(backbone(IMAGES), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_bundled_network_is_the_one_that_was_there_before() -> None:
    backbone, features = build_backbone(BackboneConfig(layers=("block2", "block10"))), EfficientNetLite0Features((2, 10))
    assert (backbone.channels, backbone.strides_px) == ((24, 112), (4, 16))
    with torch.inference_mode():
        assert all(torch.equal(*pair) for pair in zip(backbone(IMAGES), features(IMAGES), strict=True))


def test_each_network_has_the_normalisation_that_belongs_to_its_weights() -> None:
    assert (backbones._find("torchvision/wide_resnet50_2").mean, backbones._find("timm/resnet18.a1_in1k").std) == IMAGENET
    assert backbones._find("timm/vit_tiny_patch16_224").mean == (0.5, 0.5, 0.5)
    caffe = backbones._find("torchvision/vgg16.IMAGENET1K_FEATURES")
    assert caffe.std == pytest.approx((1 / 255,) * 3)
    with architecture_only():
        classifier = build_classifier(BUNDLED).network
    torch.testing.assert_close(classifier[0](IMAGES), (IMAGES * 255 - 127) / 128)  # type: ignore[index]


def test_what_lies_behind_the_last_layer_is_left_out(saved: Saved) -> None:
    names = build_backbone(saved.config("layer1")).state_dict()
    assert not [name for name in names if any(behind in name for behind in ("layer2", "layer3", "layer4", "fc"))]


def test_a_backbone_is_frozen_and_stays_in_evaluation_mode_within_a_module_that_trains(saved: Saved) -> None:
    backbone = build_backbone(saved.config("layer2"))
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    nn.Sequential(backbone).train()
    backbone(IMAGES)
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("bundled", [True, False])
def test_gradients_flow_to_the_images(saved: Saved, bundled: bool) -> None:
    backbone = build_backbone(BackboneConfig(layers=("block2", "block4")) if bundled else saved.config("bn1", "layer2"))
    images = IMAGES.clone().requires_grad_()
    sum(feature.square().sum() for feature in backbone(images)).backward()  # type: ignore[union-attr]
    assert images.grad is not None
    assert images.grad.abs().amax((1, 2, 3)).gt(0).all()
    assert all(parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.parametrize(("name", "layers"), [(RESNET, ("layer2", "layer4")), ("timm/efficientnet_b0", ("blocks.2", "blocks.4"))])
def test_an_images_features_do_not_depend_on_its_neighbours_to_the_bit(name: str, layers: tuple[str, ...], tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = randomise(backbones._find(name).build(None))
    torch.save(network.state_dict(), tmp_path / "random.pth")
    backbone = build_backbone(Saved(network, name, tmp_path / "random.pth", digest_of(tmp_path / "random.pth")).config(*layers))
    order, others = torch.tensor([2, 0, 3, 1]), torch.cat([IMAGES[:1], IMAGES[:3].flip(0)])
    with torch.inference_mode():
        for one, permuted, among_others in zip(backbone(IMAGES), backbone(IMAGES[order]), backbone(others), strict=True):
            assert torch.equal(one[order], permuted)
            assert torch.equal(one[:1], among_others[:1])
            assert one.shape[0] == 4
            assert one.is_contiguous(memory_format=torch.channels_last)


def test_networks_of_sums_and_products_take_a_batch_at_once_and_others_an_image_at_a_time() -> None:
    with architecture_only():
        built = {
            name: build_backbone(BackboneConfig(name=name, layers=(layer,)))
            for name, layer in ((BUNDLED, "block2"), (RESNET, "layer1"), ("timm/resnet18", "layer1"), ("timm/efficientnet_b0", "blocks.1"))
        }
    taken: list[int] = []
    for backbone in built.values():
        backbone.network.register_forward_pre_hook(lambda _, inputs: taken.append(len(inputs[0])))
        backbone(IMAGES)
    assert taken == [4, 4, 4, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "layers", "said"),
    [
        (BUNDLED, ("block3",), "efficientnet-lite0 has no layer block3; it has block2, block4, block10, block14"),
        (BUNDLED, ("block4", "block2"), "from shallow to deep: block2, block4; got block4, block2"),
        (RESNET, ("layer9",), r"has no layer layer9; it has conv1, bn1, .*layer4\.1, avgpool, fc, and those within them"),
        (RESNET, ("layer2", "layer1"), "from shallow to deep: layer1, layer2; got layer2, layer1"),
        (RESNET, ("avgpool",), r"expected layers with features \(N, C, H, W\); avgpool of torchvision/resnet18 has \(1, 512, 1, 1\)"),
        ("torchvision/resnett18", ("layer1",), "there is no backbone 'torchvision/resnett18'; torchvision has torchvision/resnet18, "),
        ("torchvision/resnet18.V3", ("layer1",), "torchvision/resnet18 has the weights IMAGENET1K_V1"),
        ("timm/resnet18.a9_in1k", ("layer1",), r"timm has .*timm/resnet18\.a1_in1k"),
        ("resnet18", ("layer1",), "expected the backbone efficientnet-lite0, torchvision/NAME or timm/NAME, got 'resnet18'"),
        ("timm/vit_tiny_patch16_224", ("blocks.1",), "does not take square images of any size"),
    ],
)
def test_a_name_or_a_layer_that_does_not_exist_is_an_error_that_lists_what_does(name: str, layers: tuple[str, ...], said: str) -> None:
    with architecture_only(), pytest.raises(DetectorError, match=said):
        build_backbone(BackboneConfig(name=name, layers=layers))


def test_a_vggs_layers_have_the_papers_names() -> None:
    with torch.device("meta"):
        plain, normalised = backbones._names_of_vgg(models.vgg19()), backbones._names_of_vgg(models.vgg16_bn())
    assert [plain[name] for name in ("relu1_2", "relu2_2", "relu3_2", "conv4_2", "relu4_2", "pool5")] == [
        f"features.{place}" for place in (3, 8, 13, 21, 22, 36)
    ]
    assert [normalised[name] for name in ("conv1_1", "bn1_1", "relu3_2")] == ["features.0", "features.1", "features.19"]


def test_a_vggs_layer_is_found_by_the_papers_name() -> None:
    with architecture_only():
        backbone = build_backbone(BackboneConfig(name="timm/vgg11", layers=("relu2_1", "relu3_2")))
    assert (backbone.channels, backbone.strides_px) == ((128, 256), (2, 4))


# ---- weights


def test_a_local_file_wants_a_digest_and_layers_differ() -> None:
    with pytest.raises(ValidationError, match=r"expected weights_sha256, the digest of there\.pth"):
        BackboneConfig(layers=("layer1",), weights="there.pth")
    with pytest.raises(ValidationError, match="expected different layers"):
        BackboneConfig(layers=("block2", "block2"))
    with pytest.raises(ValidationError, match="weights_sha256"):
        BackboneConfig(layers=("block2",), weights_sha256="123")


def test_a_file_with_another_digest_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_: pytest.fail("parsed"))
    (tmp_path / "other.pth").write_bytes(b"something else")
    with pytest.raises(DetectorError, match=r"other\.pth is not the known weight file: expected SHA-256 000000000000…, found"):
        read_weights(tmp_path / "other.pth", sha256="0" * 64)
    with pytest.raises(DetectorError, match=r"none\.pth cannot be read: No such file"):
        read_weights(tmp_path / "none.pth", sha256="0" * 64)


class Trap:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_more_than_tensors_is_refused_and_runs_nothing(tmp_path: Path, suffix: str) -> None:
    buffer = io.BytesIO()
    torch.save({"layer": Trap()}, buffer)
    for content in (buffer.getvalue(), pickle.dumps(Trap(), protocol=2)):
        (tmp_path / f"trap{suffix}").write_bytes(content)
        with pytest.raises(DetectorError, match="no file of weights alone"):
            read_weights(tmp_path / f"trap{suffix}", sha256="")


@pytest.mark.parametrize(
    "content", [b"hello", b"", b"\x80\x02", b"(dp0\n.", b"Rubbish\n", b"PK\x03\x04 cut off", b"]a.", b"\x95" + b"\xff" * 8]
)
def test_junk_is_refused_naming_the_file(tmp_path: Path, content: bytes) -> None:
    for suffix in (".pth", ".pt", ".safetensors"):
        (tmp_path / f"junk{suffix}").write_bytes(content)
        with pytest.raises(DetectorError, match=rf"junk\{suffix} (is no file of weights alone|holds no dictionary of tensors)"):
            read_weights(tmp_path / f"junk{suffix}", sha256="")


def test_whatever_bytes_a_file_has_it_is_refused_and_no_other_error_comes(tmp_path: Path) -> None:
    rng, buffer, path = np.random.default_rng(0), io.BytesIO(), tmp_path / "junk.pth"
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=False)
    good = bytearray(buffer.getvalue())
    for number in range(400):
        if number % 2:
            content = bytes(rng.integers(0, 256, rng.integers(1, 60), dtype=np.uint8))
        else:
            changed = bytearray(good)
            changed[rng.integers(0, len(good))] = rng.integers(0, 256)
            content = bytes(changed[: rng.integers(1, len(good))])
        path.write_bytes(content)
        with pytest.raises(DetectorError, match=r"junk\.pth"):
            read_weights(path, sha256="")


def test_a_checkpoint_gives_its_state_and_other_things_are_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"a": torch.ones(2)}}, tmp_path / "checkpoint.pth")
    assert list(read_weights(tmp_path / "checkpoint.pth", sha256="")) == ["a"]
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(DetectorError, match="holds no dictionary of tensors by name"):
        read_weights(tmp_path / "epoch.pth", sha256="")


def test_the_weights_of_another_network_are_refused(saved: Saved) -> None:
    with pytest.raises(DetectorError, match=r"resnet18\.pth are not those of torchvision/resnet34: .*Missing key"):
        build_backbone(saved.config("layer1").model_copy(update={"name": "torchvision/resnet34"}))


def test_a_file_without_the_classifier_is_enough_for_features_and_not_for_classes(saved: Saved, tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    safetensors.torch.save_file({name: tensor for name, tensor in saved.network.state_dict().items() if "fc." not in name}, path)
    config = saved._replace(path=path, sha256=digest_of(path)).config("layer4")
    with torch.inference_mode():
        assert torch.equal(build_backbone(config)(IMAGES)[0], build_backbone(saved.config("layer4"))(IMAGES)[0])
    with pytest.raises(DetectorError, match=r"Missing key.*fc\.weight"):
        build_classifier(RESNET, weights=str(path), weights_sha256=digest_of(path))


@pytest.mark.parametrize(
    ("name", "address", "file_name"),
    [
        ("torchvision/wide_resnet50_2", "https://download.pytorch.org/models/wide_resnet50_2-95faca4d.pth", "wide_resnet50_2-95faca4d.pth"),
        (
            "torchvision/wide_resnet50_2.IMAGENET1K_V2",
            "https://download.pytorch.org/models/wide_resnet50_2-9ba9bcbe.pth",
            "wide_resnet50_2-9ba9bcbe.pth",
        ),
        (
            "timm/resnet18.a1_in1k",
            "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors",
            "timm--resnet18.a1_in1k.safetensors",
        ),
    ],
)
def test_without_a_network_the_error_says_what_to_fetch_and_where_to_put_it(name: str, address: str, file_name: str, hub: Path) -> None:
    with pytest.raises(DetectorError) as refusal:
        build_backbone(BackboneConfig(name=name, layers=("layer2",)))
    for said in (
        f"weights of {name}",
        "no network",
        address,
        str(hub / file_name),
        "weights_sha256",
        "--sha256",
        f"package {name.split('/')[0]} names",
    ):
        assert said in str(refusal.value)


def test_a_file_put_into_the_cache_is_taken_and_one_with_another_digest_is_not(hub: Path, saved: Saved, saved_timm: Saved) -> None:
    hub.mkdir(parents=True)
    (hub / "timm--mobilenetv3_small_050.lamb_in1k.safetensors").write_bytes(saved_timm.path.read_bytes())
    backbone = build_backbone(BackboneConfig(name=saved_timm.name, layers=("blocks.1",)))
    with torch.inference_mode():
        assert torch.equal(backbone(IMAGES)[0], build_backbone(saved_timm.config("blocks.1"))(IMAGES)[0])
    with pytest.raises(DetectorError, match="not the known weight file"):
        build_backbone(BackboneConfig(name=saved_timm.name, layers=("blocks.1",), weights_sha256="0" * 64))
    (hub / "resnet18-f37072fd.pth").write_bytes(saved.path.read_bytes())
    with pytest.raises(DetectorError, match="not the known weight file: expected SHA-256 f37072fd…"):
        build_backbone(BackboneConfig(name=RESNET, layers=("layer1",)))


def test_the_bundled_network_takes_a_local_file_too(tmp_path: Path) -> None:
    state = efficientnet_lite.build(None).state_dict()
    torch.save(state, tmp_path / "ours.pth")
    config = BackboneConfig(layers=("block2",), weights=str(tmp_path / "ours.pth"), weights_sha256=digest_of(tmp_path / "ours.pth"))
    with torch.inference_mode():
        ours, theirs = build_backbone(config)(IMAGES)[0], build_backbone(BackboneConfig(layers=("block2",)))(IMAGES)[0]
    assert not torch.allclose(ours, theirs)


@pytest.mark.parametrize("name", [BUNDLED, RESNET, "timm/mobilenetv3_small_050"])
def test_the_architecture_alone_needs_no_file_and_takes_the_whole_state(
    name: str, saved: Saved, saved_timm: Saved, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {BUNDLED: BackboneConfig(layers=("block2",)), RESNET: saved.config("layer2")}.get(name, saved_timm.config("blocks.1"))
    whole = build_backbone(config)
    monkeypatch.setattr(efficientnet_lite, "locate", lambda: pytest.fail("read"))
    lost = config.model_copy(update={"weights": "/lost.pth", "weights_sha256": "0" * 64})
    with architecture_only():
        empty: Backbone = build_backbone(lost if name != BUNDLED else config)
    empty.load_state_dict(whole.state_dict())
    with torch.inference_mode():
        assert torch.equal(empty(IMAGES)[0], whole(IMAGES)[0])
    assert (empty.channels, empty.strides_px) == (whole.channels, whole.strides_px)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (("layerx",), "torchvision/resnet18 has no layer layerx; it has conv1, bn1, relu, maxpool, layer1"),
        (("layer2", "layer1"), "from shallow to deep: layer1, layer2; got layer2, layer1"),
    ],
)
def test_a_wrong_layer_is_told_before_the_weights_are_looked_for(layers: tuple[str, ...], said: str, hub: Path) -> None:
    with pytest.raises(DetectorError, match=said):
        build_backbone(BackboneConfig(name=RESNET, layers=layers))
    lost = BackboneConfig(name=RESNET, layers=layers, weights="/lost.pth", weights_sha256="0" * 64)
    with pytest.raises(DetectorError, match=said):
        build_backbone(lost)
    with pytest.raises(DetectorError, match=f"backbone: .*{said}"):
        check_backbones(PaDiMConfig(backbone=lost))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "expected `layers`, from shallow to deep: efficientnet-lite0 has block2, block4, block10"),
        ({"name": "torchvision/vgg11"}, "torchvision/vgg11 has conv1_1, relu1_1, pool1, conv2_1"),
        ({"name": "torchvision/resnet19"}, "there is no backbone 'torchvision/resnet19'; torchvision has torchvision/resnet1"),
    ],
)
def test_where_layers_are_not_named_the_error_lists_them(given: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        BackboneConfig.model_validate(given)


@pytest.mark.parametrize(
    ("name", "layers"), [(BUNDLED, ("block2",)), (RESNET, ("layer1", "layer2.0")), ("timm/mobilenetv3_small_050", ("blocks.1",))]
)
def test_layers_are_checked_without_weights_and_without_a_draw(name: str, layers: tuple[str, ...], hub: Path) -> None:
    before = torch.get_rng_state()
    check_backbones(PaDiMConfig(backbone=BackboneConfig(name=name, layers=layers)))
    check_backbones(AutoencoderConfig())
    assert torch.equal(torch.get_rng_state(), before)
    assert not hub.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers", "strides_px"),
    [
        ("torchvision/wide_resnet50_2", ("layer2", "layer3"), (8, 16)),
        ("torchvision/vgg19", ("relu3_2", "relu4_2"), (4, 8)),
        ("torchvision/inception_v3", ("Mixed_5d", "Mixed_6e"), (8, 16)),
        ("torchvision/densenet121", ("features.denseblock2",), (8,)),
        ("timm/convnext_tiny", ("stages.1", "stages.2"), (8, 16)),
        ("timm/tf_efficientnet_b4", ("blocks.1", "blocks.3"), (4, 16)),
    ],
)
def test_the_networks_of_the_papers_can_be_cut(name: str, layers: tuple[str, ...], strides_px: tuple[int, ...]) -> None:
    with architecture_only():
        backbone = build_backbone(BackboneConfig(name=name, layers=layers))
    assert backbone.strides_px == strides_px
    with torch.inference_mode():
        assert [feature.shape[1] for feature in backbone(torch.rand(1, 3, 128, 128))] == list(backbone.channels)
