"""Random views against torchvision's, which makes them one image at a time."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torchvision.transforms import functional as reference

from methods.detectors.networks.views import (
    ViewConfig,
    change_brightness,
    change_contrast,
    change_hue,
    change_saturation,
    draw_boxes,
    draw_views,
    place,
)

STILL = ViewConfig(crop_scale=(1, 1), crop_ratio=(1, 1), flip_probability=0, rotation_degrees=0, jitter=0)


def colours(count: int = 5, side: int = 16) -> Tensor:
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    images[0, :, 0, :4] = torch.tensor([[0.0, 1.0, 0.5, 1.0], [0.0, 1.0, 0.5, 0.0], [0.0, 1.0, 0.5, 0.0]])  # black, white, grey, red
    return images


def smooth(count: int = 3, side: int = 48) -> Tensor:
    """Images that an interpolation can hardly go wrong on."""
    x = torch.linspace(0, 1, side)
    return torch.stack([0.5 + 0.4 * torch.sin(3 * x[:, None] + torch.arange(3.0)[:, None, None] + 5 * x * i) for i in range(1, count + 1)])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("change", "expected", "factors"),
    [
        (change_brightness, reference.adjust_brightness, [0.0, 0.8, 1.0, 1.2, 1.5]),
        (change_contrast, reference.adjust_contrast, [0.0, 0.8, 1.0, 1.2, 1.5]),
        (change_saturation, reference.adjust_saturation, [0.0, 0.8, 1.0, 1.2, 1.5]),
        (change_hue, reference.adjust_hue, [-0.5, -0.2, 0.0, 0.1, 0.2]),
    ],
)
def test_each_change_of_colour_is_torchvisions_with_a_factor_for_each_image(change, expected, factors: list[float]) -> None:  # type: ignore[no-untyped-def]
    images = colours()
    found = change(images, torch.tensor(factors))
    for image, view, factor in zip(images, found, factors, strict=True):
        torch.testing.assert_close(view, expected(image, factor), atol=2e-5, rtol=1e-4)


def placed(images: Tensor, *, size=(1.0, 1.0), centre=(0.0, 0.0), signs=(1.0, 1.0), degrees: float = 0.0) -> Tensor:  # type: ignore[no-untyped-def]
    def each(values: tuple[float, float]) -> Tensor:
        return torch.tensor(values).expand(len(images), 2)

    angles = torch.full((len(images),), math.radians(degrees))
    return place(images, size=each(size), centre=each(centre), signs=each(signs), angles=angles)


def test_a_crop_is_torchvisions() -> None:
    images, side = smooth(), 48
    top, left, height, width = 4, 9, 36, 30
    centre = ((2 * left + width) / side - 1, (2 * top + height) / side - 1)
    found = placed(images, size=(width / side, height / side), centre=centre)
    expected = reference.resized_crop(images, top, left, height, width, [side, side], antialias=False)
    inside = (..., slice(2, -2), slice(2, -2))  # at its edge torchvision repeats the crop's last pixels, here the image goes on
    torch.testing.assert_close(found[inside], expected[inside], atol=1e-5, rtol=0)


def test_flips_and_rotations_are_torchvisions_and_rotation_comes_after_the_flip() -> None:
    images = smooth()
    torch.testing.assert_close(placed(images, signs=(-1, 1)), images.flip(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(placed(images, signs=(1, -1)), images.flip(2), atol=1e-5, rtol=0)
    inside = (..., slice(12, -12), slice(12, -12))  # where no corner comes in
    for signs, flipped in (((1.0, 1.0), images), ((-1.0, 1.0), images.flip(3))):
        expected = reference.rotate(flipped, 20, interpolation=reference.InterpolationMode.BILINEAR)
        torch.testing.assert_close(placed(images, signs=signs, degrees=20)[inside], expected[inside], atol=1e-4, rtol=0)


def test_boxes_lie_inside_the_image_with_the_areas_and_ratios_asked_for() -> None:
    size, centre = draw_boxes(4000, scale=(0.3, 0.8), ratio=(0.75, 1.33))
    assert (centre.abs() + size <= 1 + 1e-6).all()
    area, ratio = size.prod(1), size[:, 0] / size[:, 1]
    assert 0.3 - 1e-6 <= area.min() < 0.31
    assert 0.79 < area.max() <= 0.8 + 1e-6
    assert area.mean() == pytest.approx(0.55, abs=0.01)
    assert 0.75 - 1e-6 <= ratio.min() < 0.77
    assert 1.31 < ratio.max() <= 1.33 + 1e-6
    assert ratio.log().mean() == pytest.approx((math.log(0.75) + math.log(1.33)) / 2, abs=0.02)
    room = (1 - size) > 0.05
    assert (centre / (1 - size).clamp_min(1e-6))[room].abs().mean() == pytest.approx(0.5, abs=0.02)  # anywhere in the room there is


def test_a_box_that_never_fits_is_the_whole_image() -> None:
    size, centre = draw_boxes(10, scale=(1, 1), ratio=(1.5, 2))
    assert (size == 1).all()
    assert (centre == 0).all()


def test_a_view_that_may_not_differ_is_the_image() -> None:
    torch.testing.assert_close(draw_views(colours(), STILL), colours(), atol=1e-5, rtol=0)


def test_views_are_in_range_and_drawn_anew_for_each_image_and_each_time() -> None:
    images = colours(1, 32).expand(6, -1, -1, -1)
    one, other = draw_views(images, ViewConfig()), draw_views(images, ViewConfig())
    assert one.shape == images.shape
    assert one.min() >= 0
    assert one.max() <= 1
    assert len({tuple(view.flatten().tolist()) for view in (*one, *other)}) == 12


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_views_are_flipped_each_way_as_often_as_asked(probability: float) -> None:
    images = smooth(1).expand(400, -1, -1, -1)
    views = draw_views(images, STILL.model_copy(update={"flip_probability": probability}))
    kinds = [images[0], images[0].flip(2), images[0].flip(1), images[0].flip(1, 2)]
    found = torch.stack([(views - kind).abs().amax((1, 2, 3)) < 1e-3 for kind in kinds], 1).double()
    assert (found.sum(1) == 1).all()
    q = 1 - probability
    expected = torch.tensor([q * q, probability * q, q * probability, probability**2], dtype=torch.float64)
    torch.testing.assert_close(found.mean(0), expected, atol=5 * math.sqrt(0.25 / 400), rtol=0)


@pytest.mark.parametrize("change", [{"crop_scale": (0.9, 0.8)}, {"crop_scale": (0, 1)}, {"crop_ratio": (2, 1)}, {"crop_scale": (0.5, 1.1)}])
def test_ranges_the_wrong_way_round_are_refused(change: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ValidationError, match="least ≤ greatest"):
        ViewConfig.model_validate(change)
