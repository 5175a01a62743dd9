"""Deep GEO: 72 transformations that differ and can be undone, and the score by hand."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import shift as scipy_shift
from torch import Tensor, nn

from methods.detectors.deep_geo import TRANSFORMS, DeepGeo, DeepGeoConfig, transform_sources
from methods.detectors.interface import DetectorError, LearnsByGradient, LearnsByMemory
from methods.detectors.networks.wide_resnet import WideResNet

TINY = DeepGeoConfig(input_size_px=16, width=1, batch_size=4)
# (flipped, down, right, turns) in the order of the transformations, of 16 × 16
ORDER = [(f, d, r, t) for f in (0, 1) for d in (0, -4, 4) for r in (0, -4, 4) for t in range(4)]


def images_of(count: int = 4, seed: int = 0, size_px: int = 16) -> Tensor:
    return torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(seed))


def build(config: DeepGeoConfig = TINY) -> DeepGeo:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DeepGeo(config).eval()


def all_views(image: Tensor) -> Tensor:
    """(72, 3, H, W) of one image (3, H, W)."""
    return build(TINY.model_copy(update={"input_size_px": image.shape[-1]})).transform(image[None], torch.arange(TRANSFORMS)[None])[0]


def test_the_72_transformations_differ_and_the_first_is_none() -> None:
    image = images_of(1)[0]
    views = all_views(image)
    assert views.shape == (72, 3, 16, 16)
    assert len({view.numpy().tobytes() for view in views}) == 72
    assert torch.equal(views[0], image)


def test_each_transformation_is_flip_then_scipys_reflecting_shift_then_quarter_turns() -> None:
    image = images_of(1)[0]
    for view, (flipped, down, right, turns) in zip(all_views(image), ORDER, strict=True):
        expected = image.numpy()[..., ::-1] if flipped else image.numpy()
        expected = scipy_shift(expected, (0, down, right), order=0, mode="reflect")
        np.testing.assert_array_equal(view.numpy(), np.rot90(expected, turns, (1, 2)))


def test_each_transformation_is_undone_by_its_inverse() -> None:
    image = images_of(1)[0]
    for view, (flipped, down, right, turns) in zip(all_views(image), ORDER, strict=True):
        back = view.rot90(-turns, (1, 2))
        rows, columns = (slice(max(0, step), 16 + min(0, step)) for step in (down, right))
        stayed = tuple(slice(max(0, -step), 16 + min(0, -step)) for step in (down, right))
        original = image.flip(2) if flipped else image
        assert torch.equal(back[:, rows, columns], original[:, stayed[0], stayed[1]])  # all of it but what was shifted out


def test_transformations_without_a_shift_only_move_pixels() -> None:
    sources = transform_sources(16)
    for source, (_, down, right, _) in zip(sources, ORDER, strict=True):
        assert (len(source.unique()) == 16 * 16) == (down == right == 0)


@pytest.mark.parametrize(("size_px", "shift"), [(32, 8), (64, 16)])
def test_shifts_are_a_quarter_of_the_image(size_px: int, shift: int) -> None:
    middle, upright = size_px // 2, [index for index, (flipped, _, _, turns) in enumerate(ORDER) if not flipped and not turns]
    sources = transform_sources(size_px).view(72, size_px, size_px)[upright, middle, middle].tolist()
    moved = {(source // size_px - middle, source % size_px - middle) for source in sources}
    assert moved == {(down, right) for down in (0, -shift, shift) for right in (0, -shift, shift)}


class _Prescribed(nn.Module):
    """Logits (n, 72) that are the same for every batch of 72, times the mean of each view's first channel."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits * ((x[:, :1].mean((2, 3)) + 1) / 2)


def logits_of(scale: float = 1.0) -> Tensor:
    return scale * torch.randn(TRANSFORMS, TRANSFORMS, generator=torch.Generator().manual_seed(5))


def test_the_score_is_minus_the_mean_log_likelihood_without_its_constant_by_hand() -> None:
    detector, logits = build(), logits_of()
    detector.network = _Prescribed(logits)
    detector.alpha.copy_(torch.rand(TRANSFORMS, TRANSFORMS, generator=torch.Generator().manual_seed(6)) * 3 + 0.1)
    images = torch.full((2, 3, 16, 16), 0.5)
    images[1] = 0.25
    with torch.inference_mode():
        scores = detector.score(images)
    assert scores.pixel is None
    for image, score in zip(images, scores.image.tolist(), strict=True):
        total = 0.0
        for i in range(TRANSFORMS):
            z = [float(value) for value in logits[i] * image[0, 0, 0]]
            log_sum = math.log(sum(math.exp(value) for value in z))
            total += sum((float(detector.alpha[i, j]) - 1) * (z[j] - log_sum) for j in range(TRANSFORMS))
        assert score == pytest.approx(-total / TRANSFORMS, rel=1e-4)


def test_what_is_improbable_beyond_the_smallest_number_still_has_a_finite_score() -> None:
    detector = build()
    detector.network = _Prescribed(logits_of(1e4))
    detector.alpha.fill_(2.0)
    with torch.inference_mode():
        assert detector.network(2 * images_of(1).expand(72, -1, -1, -1) - 1).softmax(1).min() == 0
        assert detector.score(images_of(2)).image.isfinite().all()


def test_the_distributions_fit_the_softmax_of_all_training_images_whatever_their_batches() -> None:
    images, detectors = images_of(9), []
    for sizes in ((9,), (4, 4, 1)):
        detector = build()
        with torch.inference_mode():
            for batch in images.split(list(sizes)):
                detector.observe(batch)
            detector.conclude(torch.Generator())
            log_p = detector.log_probabilities(images)
        gradient = torch.digamma(detector.alpha.sum(1, keepdim=True)) - torch.digamma(detector.alpha) + log_p.mean(0)
        assert gradient.abs().max() < 1e-8
        detectors.append(detector)
    torch.testing.assert_close(detectors[0].alpha, detectors[1].alpha, rtol=1e-4, atol=0)
    assert detectors[0]._observed == 0  # a second pass begins anew


def test_training_teaches_which_transformation_it_was_of_each_image_without_repetition() -> None:
    detector, asked = build(TINY.model_copy(update={"transforms_per_image": 72})), []
    detector.network.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0]))
    images = images_of(2)
    loss = detector.loss(images)
    (views,) = asked
    expected = torch.cat([2 * all_views(image) - 1 for image in images])
    assert {view.numpy().tobytes() for view in views} == {view.numpy().tobytes() for view in expected}
    logits = detector.network(expected)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, torch.arange(72).repeat(2)))


def test_each_image_gets_a_transformation_of_its_own() -> None:
    detector, asked = build(), []
    detector.network.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0]))
    torch.manual_seed(0)
    detector.loss(images_of(1).expand(100, -1, -1, -1))
    assert asked[0].shape == (100, 3, 16, 16)
    assert len({view.numpy().tobytes() for view in asked[0]}) > 40


def test_the_network_is_a_wide_residual_one() -> None:
    config = DeepGeoConfig()
    detector = DeepGeo(config)
    assert isinstance(detector, LearnsByGradient)
    assert isinstance(detector, LearnsByMemory)
    convolutions = [layer for layer in detector.network.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]
    assert [layer.out_channels for layer in convolutions] == [16, 64, 64, 128, 128, 256, 256]
    assert [layer.stride[0] for layer in convolutions] == [1, 1, 1, 2, 1, 2, 1]
    assert len(convolutions) + 2 + 1 == 10  # with the linear layer; the depth's 4 counts the first convolution and three shortcuts
    assert (config.epochs * config.transforms_per_image, config.training_batch_size) == (3 * 72, 128)
    deep = WideResNet(depth=16, width=8, classes=72)
    assert sum(isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) for layer in deep.modules()) == 13
    assert deep(images_of(2)).shape == (2, 72)
    assert type(detector.build_optimizer()) is torch.optim.Adam


def test_what_cannot_be_learnt_from_or_scored_is_refused() -> None:
    detector = build()
    with pytest.raises(DetectorError, match="no distributions yet"):
        detector.score(images_of())
    with pytest.raises(DetectorError, match="no training image"):
        detector.conclude(torch.Generator())
    with torch.inference_mode():
        detector.observe(images_of(1).expand(3, -1, -1, -1))
    with pytest.raises(DetectorError, match="all 3 training images look the same"):
        detector.conclude(torch.Generator())
    with pytest.raises(DetectorError, match="expected images"):
        detector.observe(images_of(size_px=32))
    with pytest.raises(ValidationError, match="6 n \\+ 4"):
        DeepGeoConfig(depth=12)
