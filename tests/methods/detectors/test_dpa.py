"""Deep perceptual autoencoder: the relative perceptual L1 against a slow twin, the fade against the pure stages, growth in order."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from methods.detectors.dpa import DeepPerceptualAutoencoder, DeepPerceptualAutoencoderConfig, reduce
from methods.detectors.interface import DetectorError, LearnsInStages, PreparesOnTraining
from methods.detectors.networks.backbones import BackboneConfig, build_backbone
from methods.detectors.networks.perceptual import PerceptualDifference, PixelDifference, relative_l1
from methods.detectors.networks.residual import PreActivationBlock, double, halve
from methods.training.fit import fit

TINY = DeepPerceptualAutoencoderConfig(input_size_px=32, latent_side_px=4, batch_size=4, training_batch_size=4, epochs=20)
GROWING: dict[str, Any] = {"layers": {8: "block2", 16: "block2"}, "transition_epochs": 2, "stabilisation_epochs": 1}
GROWN = DeepPerceptualAutoencoderConfig.model_validate(TINY.model_dump() | {"growing": GROWING})


def images_of(count: int = 4, seed: int = 0, size_px: int = 32) -> Tensor:
    return torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(seed))


def built(config: DeepPerceptualAutoencoderConfig = TINY, epoch: float = 0) -> DeepPerceptualAutoencoder:
    """A network of a fixed seed that has seen its training images and stands where it does after so many epochs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DeepPerceptualAutoencoder(config).eval()
    for step in np.arange(0, epoch + 0.5, 0.5):
        if network.advance_to(float(step)) or not step:
            network.prepare([images_of(seed=1), images_of(3, seed=2)])
    return network


class Identity(nn.Module):
    """A feature extractor that shows the pixels."""

    channels = (3,)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images]


def difference_of_pixels() -> PerceptualDifference:
    difference = PerceptualDifference(BackboneConfig(layers=("block2",)), size_px=32)
    difference.backbone = Identity()  # type: ignore[assignment]
    difference.mean, difference.std = torch.zeros(3), torch.ones(3)
    return difference


def test_identical_images_do_not_differ() -> None:
    network = built()
    difference = network.differences["32"]
    assert torch.equal(difference(images_of(), images_of()), torch.zeros(4, 4, 4))
    assert difference(images_of(), images_of(seed=5)).min() > 0


def test_the_relative_difference_is_the_same_for_both_multiplied_by_a_factor_and_not_for_both_moved() -> None:
    f, g = images_of() - 0.5, images_of(seed=1) - 0.5
    torch.testing.assert_close(relative_l1(3.7 * f, 3.7 * g), relative_l1(f, g))
    assert (relative_l1(f + 1, g + 1).mean((1, 2)) < 0.5 * relative_l1(f, g).mean((1, 2))).all()
    assert not torch.allclose(relative_l1(g, f), relative_l1(f, g))  # relative to the image, not to the reconstruction


def test_the_loss_is_that_of_a_slow_twin_with_loops() -> None:
    f, g = images_of(3, size_px=5) - 0.4, images_of(3, seed=1, size_px=5) - 0.4
    mean, std = [0.1, -0.2, 0.3], [2.0, 0.5, 1.5]
    difference = difference_of_pixels()
    difference.mean, difference.std = torch.tensor(mean), torch.tensor(std)
    found = difference(f, g)
    for n in range(3):
        above, below, places = 0.0, 0.0, torch.zeros(5, 5)
        for y in range(5):
            for x in range(5):
                here = 0.0
                for c in range(3):
                    standard_f = (float(f[n, c, y, x]) - mean[c]) / std[c]
                    standard_g = (float(g[n, c, y, x]) - mean[c]) / std[c]
                    here += abs(standard_f - standard_g)
                    below += abs(standard_f)
                above += here
                places[y, x] = here / 3
        torch.testing.assert_close(found[n], places / (below / 75))
        assert float(found[n].mean()) == pytest.approx(above / below, rel=1e-4)


def test_of_several_layers_it_is_the_mean_of_what_a_slow_twin_finds_for_each() -> None:
    layers, seen, x, x_hat = ("block2", "block4"), images_of(6, seed=2), images_of(3), images_of(3, seed=1)
    difference = PerceptualDifference(BackboneConfig(layers=layers), size_px=32)
    difference.fit_statistics([seen[:4], seen[4:]])
    with torch.inference_mode():
        found = difference(x, x_hat)
        backbones = [build_backbone(BackboneConfig(layers=(layer,))) for layer in layers]
        statistics, f, g = ([backbone(images)[0].double().numpy() for backbone in backbones] for images in (seen, x, x_hat))
    assert found.shape == (3, 8, 8)
    for n in range(3):
        twin = np.zeros((8, 8))
        for places, f_l, g_l, block in zip(statistics, f, g, (1, 2), strict=True):  # a place of block4 covers 2 × 2 of block2
            mean, std = places.mean((0, 2, 3)), places.transpose(1, 0, 2, 3).reshape(places.shape[1], -1).std(1, ddof=1)
            size = np.abs((f_l[n] - mean[:, None, None]) / std[:, None, None]).mean()
            for i in range(8):
                for j in range(8):
                    of_place = np.abs(f_l[n, :, i // block, j // block] - g_l[n, :, i // block, j // block]) / std
                    twin[i, j] += of_place.mean() / size / len(layers)
        np.testing.assert_allclose(found[n], twin, rtol=1e-4)
        own = [_of_one_layer(layer, seen, x[n : n + 1], x_hat[n : n + 1]) for layer in layers]
        assert float(found[n].mean()) == pytest.approx(sum(own) / 2, rel=1e-5)
        assert abs(own[0] - own[1]) > 0.01  # else the mean says nothing


def _of_one_layer(layer: str, seen: Tensor, x: Tensor, x_hat: Tensor) -> float:
    difference = PerceptualDifference(BackboneConfig(layers=(layer,)), size_px=32)
    difference.fit_statistics([seen])
    with torch.inference_mode():
        return float(difference(x, x_hat).mean())


def test_one_layer_is_compared_by_the_formula_to_the_bit() -> None:
    difference, x, x_hat = built().differences["32"], images_of(), images_of(seed=5)
    mean, std = difference.mean[:, None, None], difference.std[:, None, None]
    with torch.inference_mode():
        (f_x,), (f_x_hat,) = difference.backbone(x), difference.backbone(x_hat)
        assert torch.equal(difference(x, x_hat), relative_l1((f_x - mean) / std, (f_x_hat - mean) / std))


def test_the_last_stage_may_have_several_layers() -> None:
    config = DeepPerceptualAutoencoderConfig.model_validate(GROWN.model_dump() | {"backbone": {"layers": ("block2", "block4")}})
    assert config.layers == {8: ("block2",), 16: ("block2",), 32: ("block2", "block4")}
    network, images = built(config, epoch=7), images_of()
    with torch.inference_mode():
        scores = network.score(images)
        torch.testing.assert_close(network.loss(images), scores.image.mean())
    network.loss(images).backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in network.encoder.parameters())


def test_layers_whose_places_do_not_fit_into_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    uneven = SimpleNamespace(channels=(3, 3), strides_px=(4, 6))
    monkeypatch.setattr("methods.detectors.networks.perceptual.build_backbone", lambda _: uneven)
    with pytest.raises(DetectorError, match="multiples of the finest one's, got 4, 6 px"):
        PerceptualDifference(BackboneConfig(layers=("a", "b")), size_px=32)


def test_the_denominator_has_no_gradient() -> None:
    f, g = (images_of() - 0.5).requires_grad_(), images_of(seed=1) - 0.5
    (slope,) = torch.autograd.grad(relative_l1(f, g).mean(), f)
    size = f.detach().abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(slope, (f.detach() - g).sign() / size / f.numel())


def test_statistics_are_those_of_all_places_of_all_images() -> None:
    difference, images = PerceptualDifference(BackboneConfig(layers=("block2",)), size_px=32), images_of(10)
    difference.fit_statistics([images[:4], images[4:8], images[8:]])
    with torch.inference_mode():
        places = difference.features(images)[0].transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(difference.mean, places.mean(1).float())
    torch.testing.assert_close(difference.std, places.std(1).float())
    with torch.inference_mode():
        (standard,) = difference._standardise(difference.features(images))
    torch.testing.assert_close(standard.mean((0, 2, 3)), torch.zeros(24), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std((0, 2, 3)), torch.ones(24))


def test_a_channel_that_never_varies_is_not_scaled() -> None:
    difference, images = difference_of_pixels(), images_of()
    images[:, 1] = 0.3
    images[:, 2] = 0
    difference.fit_statistics([images])
    torch.testing.assert_close(difference.mean[1:], torch.tensor([0.3, 0.0]))
    assert torch.equal(difference.std[1:], torch.ones(2))
    assert difference.std[0] < 0.5


@pytest.mark.parametrize(
    ("size_px", "layer", "enlargement", "side"), [(8, "block2", 2, 4), (16, "block2", 1, 4), (16, "block4", 2, 4), (64, "block4", 1, 8)]
)
def test_images_too_small_for_a_layer_are_enlarged_to_four_places_a_side(size_px: int, layer: str, enlargement: int, side: int) -> None:
    difference = PerceptualDifference(BackboneConfig(layers=(layer,)), size_px=size_px)
    assert difference.enlargement == enlargement
    assert difference.features(images_of(1, size_px=size_px))[0].shape[-2:] == (side, side)


def test_the_score_is_the_loss_of_an_image_and_the_map_says_where() -> None:
    network, images = built(), images_of()
    with torch.inference_mode():
        network.decoder.exits["32"][1].bias -= 1  # what the features see is not clipped
        scores = network.score(images)
        x_hat = (network.decoder(network.encoder(2 * images - 1), 32) + 1) / 2
        places = network.differences["32"](images, x_hat)
        torch.testing.assert_close(network.loss(images), scores.image.mean())
        torch.testing.assert_close(network.reconstruct(images), x_hat.clamp(0, 1))
    torch.testing.assert_close(scores.image, places.mean((1, 2)))
    assert scores.pixel is not None
    assert x_hat.min() < 0
    expected = nn.functional.interpolate(places[:, None], (32, 32), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(scores.pixel, expected)


def test_the_ablation_compares_pixels() -> None:
    network, images = built(DeepPerceptualAutoencoderConfig.model_validate(TINY.model_dump() | {"loss": "l1"})), images_of()
    assert isinstance(network.differences["32"], PixelDifference)
    with torch.inference_mode():
        x_hat = (network.decoder(network.encoder(2 * images - 1), 32) + 1) / 2
        scores = network.score(images)
    torch.testing.assert_close(scores.image, (images - x_hat).abs().mean((1, 2, 3)))
    torch.testing.assert_close(scores.pixel, (images - x_hat).abs().mean(1))
    assert not any("backbone" in name for name in network.state_dict())


@pytest.mark.parametrize("size_px", [16, 32])
def test_at_0_the_fade_is_exactly_the_stage_before(size_px: int) -> None:
    network, x = built(GROWN, epoch=7), images_of(size_px=size_px)
    with torch.inference_mode():
        before = network.decoder(network.encoder(halve(x)), size_px // 2)
        assert torch.equal(network.decoder(network.encoder(x, 0.0), size_px, 0.0), double(before))


@pytest.mark.parametrize(("stage_begins", "loss_before"), [(1, 0.5), (4, 3.5)])
def test_loss_and_score_do_not_jump_where_a_fade_begins_and_ends(stage_begins: float, loss_before: float) -> None:
    network, images = built(GROWN, epoch=7), images_of()
    at = {}
    for epoch in (loss_before, stage_begins, stage_begins + 1.999999, stage_begins + 2):
        network.advance_to(epoch)
        with torch.inference_mode():
            at[epoch] = network.loss(images), network.score(images)
    before, faint, nearly, pure = at.values()
    assert torch.equal(before[0], faint[0])
    assert torch.equal(before[1].image, faint[1].image)
    torch.testing.assert_close(nearly[0], pure[0], rtol=1e-4, atol=0)
    assert not torch.allclose(faint[0], pure[0])


def test_a_fade_at_1_is_exactly_the_stage_itself() -> None:
    network, images = built(GROWN, epoch=7), images_of()
    pure = DeepPerceptualAutoencoder(TINY)
    pure.load_state_dict({name: tensor for name, tensor in network.state_dict().items() if name in pure.state_dict()})
    pure._phase, pure._alpha = 0, 1.0
    with torch.inference_mode():
        assert torch.equal(network.score(images).image, pure.score(images).image)
        network._phase, network._alpha = 3, 1.0
        assert torch.equal(network.score(images).image, pure.score(images).image)
        assert torch.equal(network.loss(images), pure.loss(images))


def test_within_a_fade_input_network_and_loss_are_mixed() -> None:
    network, images = built(GROWN, epoch=7), images_of()
    network.advance_to(4.5)  # a quarter of the way from 16 to 32 px
    assert (network._phase, network._alpha) == (3, 0.25)
    encoder, decoder = network.encoder, network.decoder
    with torch.inference_mode():
        x = 0.75 * double(halve(images)) + 0.25 * images
        high = encoder.halvings["32"](encoder.entries["32"](2 * x - 1))
        z = encoder.last(encoder.halvings["8"](encoder.halvings["16"](0.25 * high + 0.75 * encoder.entries["16"](2 * halve(x) - 1))))
        h = decoder.doublings["16"](decoder.doublings["8"](decoder.first(z)))
        y = 0.25 * decoder.exits["32"](decoder.doublings["32"](h)) + 0.75 * double(decoder.exits["16"](h))
        x_hat = (y + 1) / 2
        low, full = network.differences["16"](halve(x), halve(x_hat)), network.differences["32"](x, x_hat)
        torch.testing.assert_close(network.loss(images), 0.75 * low.mean() + 0.25 * full.mean())
        torch.testing.assert_close(network.score(images).image, 0.75 * low.mean((1, 2)) + 0.25 * full.mean((1, 2)))
        torch.testing.assert_close(network.reconstruct(images), x_hat.clamp(0, 1))


def test_the_stages_are_visited_in_order_and_each_begins_once() -> None:
    network = built(GROWN)
    assert isinstance(network, LearnsInStages)
    assert isinstance(network, PreparesOnTraining)
    seen, begun, complete = [], [], []
    for epoch in np.arange(0, 8, 0.25):
        if network.advance_to(float(epoch)):
            begun.append(float(epoch))
        seen.append((network.size_px, network._alpha))
        complete.append(network.is_complete())
    fade = [i / 8 for i in range(8)]
    expected = [*[(8, 1.0)] * 4, *((16, a) for a in fade), *[(16, 1.0)] * 4, *((32, a) for a in fade), *[(32, 1.0)] * 8]
    assert seen == expected
    assert begun == [1, 3, 4, 6]
    assert complete == [False] * 24 + [True] * 8


def test_stages_are_read_in_any_order_as_from_a_file_with_sorted_keys() -> None:
    layers = {"16": "block2", "32": "block2", "8": "block4"}
    config = GROWN.model_copy(update={"input_size_px": 64, "epochs": 60}).model_dump() | {"growing": GROWING | {"layers": layers}}
    assert list(DeepPerceptualAutoencoderConfig.model_validate(config).layers.items())[:3] == [
        (8, ("block4",)),
        (16, ("block2",)),
        (32, ("block2",)),
    ]


def test_without_growing_it_is_complete_from_the_start() -> None:
    network = built()
    assert network.is_complete()
    assert not any(network.advance_to(epoch) for epoch in (0.0, 0.5, 10.0))


def test_where_it_stands_survives_in_its_state() -> None:
    images, network = images_of(), built(GROWN)
    other = DeepPerceptualAutoencoder(GROWN)
    for epoch in (0.5, 2.5, 3.5, 4.3, 7):
        network.advance_to(epoch)
        other.load_state_dict({name: tensor.clone() for name, tensor in network.state_dict().items()})
        assert (other._phase, other._alpha) == (network._phase, network._alpha)
        assert not other.advance_to(epoch)  # a training that is taken up within a stage begins none
        with torch.inference_mode():
            assert torch.equal(other.score(images).image, network.score(images).image)


def test_statistics_are_taken_at_the_stages_own_size() -> None:
    network, images = DeepPerceptualAutoencoder(GROWN), images_of(6)
    network.advance_to(1.5)
    network.prepare([images])
    small, present, later = (network.differences[size] for size in ("8", "16", "32"))
    assert not small.mean.any()
    assert not later.mean.any()
    with torch.inference_mode():
        torch.testing.assert_close(present.mean, present.features(reduce(images, 16))[0].mean((0, 2, 3)))


def test_the_optimiser_moves_autoencoder_and_nothing_else() -> None:
    network = built(GROWN)
    optimizer = network.build_optimizer()
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["lr"] == 1e-3
    moved = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    assert moved == {id(parameter) for name, parameter in network.named_parameters() if "backbone" not in name}
    network.loss(images_of()).backward()
    assert all(parameter.grad is None for parameter in network.differences.parameters())


def test_the_defaults_are_the_public_codes_for_lymph_nodes() -> None:
    network = DeepPerceptualAutoencoder(DeepPerceptualAutoencoderConfig())
    z = network.encoder(torch.rand(2, 3, 64, 64))
    assert z.shape == (2, 4, 8, 8)
    assert network.decoder(z, 64).shape == (2, 3, 64, 64)
    blocks = [module for module in network.modules() if isinstance(module, PreActivationBlock)]
    # two at the input's size, two a halving, the last; the mirror has no entry
    assert len(blocks) == 2 + 6 + 1 + 1 + 6
    names = {type(module).__name__ for module in (*network.encoder.modules(), *network.decoder.modules())}
    assert not any("Norm" in name for name in names)
    assert (network.training_batch_size, network.config.learning_rate, network.selected_by) == (128, 1e-3, "loss")


def test_a_pre_activation_block_is_a_skip_and_two_activated_convolutions() -> None:
    block, x = PreActivationBlock(3, 5, resample="down"), images_of(size_px=8) - 0.5
    first, second = block.body[2], block.body[4]
    inner = first(halve(torch.where(x > 0, x, 0.2 * x)))
    expected = block.skip[1](halve(x)) + second(torch.where(inner > 0, inner, 0.2 * inner))
    torch.testing.assert_close(block(x), expected)
    same = PreActivationBlock(3, 3)
    torch.testing.assert_close(same(x) - same.body(x), x)


def test_a_latent_may_be_a_vector() -> None:
    config = DeepPerceptualAutoencoderConfig.model_validate(GROWN.model_dump() | {"latent_side_px": 1, "latent": 16})
    network = built(config)
    for size in (8, 16, 32):
        z = network.encoder(images_of(2, size_px=size))
        assert z.shape == (2, 16, 1, 1)
        assert network.decoder(z, size).shape == (2, 3, size, size)


def test_it_grows_in_the_training_room_and_finds_what_was_never_seen() -> None:
    changes = {"width": 8, "width_max": 32, "epochs": 40, "learning_rate": 3e-3, "growing": GROWING | {"transition_epochs": 5}}
    config = DeepPerceptualAutoencoderConfig.model_validate(GROWN.model_dump() | changes)
    network, x = built(config), torch.linspace(0, 1, 32)
    normal = (0.2 + 0.6 * x[:, None] * x + 0.05 * (images_of(16, seed=3) - 0.5)).clamp(0, 1)
    report = fit(network, normal[:12], validation=None, seed=0, threads=1)  # type: ignore[arg-type]
    assert report.best_epoch > 12
    assert network.is_complete()
    odd = normal[12:].clone()
    odd[..., 8:20, 8:20] = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    with torch.inference_mode():
        assert network.score(odd).image.min() > network.score(normal[12:]).image.max()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"input_size_px": 48}, "power of two"),
        ({"input_size_px": 8, "latent_side_px": 16}, "input of 8 px is smaller than the latent of 16 px"),
        ({"growing": GROWING | {"layers": {8: "block2", 32: "block2"}}}, "images of 32 px are too small for a growing stage of 32 px"),
        ({"growing": GROWING | {"layers": {8: "block2", 64: "block2"}}}, "images of 32 px are too small for a growing stage of 64 px"),
        ({"growing": GROWING | {"layers": {12: "block2", 16: "block2"}}}, r"double up to the input of 32 px, \[8, 16\], got \[12, 16\]"),
        ({"growing": GROWING | {"layers": {8: "block2"}}}, r"double up to the input of 32 px, \[16\], got \[8\]"),
        ({"growing": GROWING | {"layers": {}}}, "at least 1"),
        ({"growing": GROWING, "latent_side_px": 16}, "first growing stage of 8 px is smaller than the latent of 16 px"),
        ({"growing": GROWING, "epochs": 6}, "last growing stage begins after 6 epochs and needs one at least, but there are 6"),
        ({"growing": GROWING | {"transition_epochs": 0}}, "greater than 0"),
    ],
)
def test_bad_configurations_are_refused_saying_why(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DeepPerceptualAutoencoderConfig.model_validate(TINY.model_dump() | change)


def test_bad_input_is_refused() -> None:
    with pytest.raises(DetectorError, match="expected images"):
        built().score(images_of(size_px=16))
    with pytest.raises(DetectorError, match="block14"):
        DeepPerceptualAutoencoder(TINY.model_copy(update={"backbone": BackboneConfig(layers=("block3",))}))
