import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.curation.radiograph import central_crop, equalise


def test_levels_become_the_rounded_shares_of_pixels_up_to_them() -> None:
    image = np.array([[10, 10, 20, 20], [20, 30, 30, 200]], np.uint8)  # cdf 2, 5, 7, 8; (cdf - 2) / 6
    np.testing.assert_array_equal(equalise(image), [[0, 0, 128, 128], [128, 212, 212, 255]])


def test_a_picture_that_holds_each_level_once_stays() -> None:
    image = np.random.default_rng(0).permutation(256).astype(np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(equalise(image), image)


@given(seed=st.integers(0, 1000), low=st.integers(0, 200), span=st.integers(2, 55))
def test_equalising_keeps_the_order_of_grey_levels_and_uses_the_full_range(seed: int, low: int, span: int) -> None:
    image = np.random.default_rng(seed).integers(low, low + span, (20, 30)).astype(np.uint8)
    spread = equalise(image)
    order = np.argsort(image, axis=None, kind="stable")
    assert (np.diff(spread.ravel()[order].astype(int)) >= 0).all()
    assert (spread.min(), spread.max()) == (0, 255)


def test_a_dark_and_a_bright_film_of_one_chest_become_alike() -> None:
    film = np.random.default_rng(0).normal(128, 30, (100, 100)).clip(0, 255)
    dark, bright = (film * 0.6).astype(np.uint8), (255 * (film / 255) ** 0.6).astype(np.uint8)
    assert np.abs(equalise(dark).astype(int) - equalise(bright)).mean() < 3 < np.abs(dark.astype(int) - bright).mean()


def test_a_picture_of_one_level_stays_and_is_not_shared() -> None:
    image = np.full((3, 4), 77, np.uint8)
    same = equalise(image)
    np.testing.assert_array_equal(same, image)
    assert not np.shares_memory(same, image)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint16), np.zeros((0, 4), np.uint8)])
def test_what_is_not_a_grey_picture_of_bytes_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected a grey picture"):
        equalise(image)


def test_the_central_three_quarters_of_a_radiograph() -> None:
    assert central_crop(1024, 1024) == (128, 128, 768, 768)
    assert central_crop(64, 48) == (8, 6, 48, 36)


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), share=st.floats(0.01, 1))
def test_a_central_crop_lies_inside_and_in_the_middle(width: int, height: int, share: float) -> None:
    x, y, w, h = central_crop(width, height, share=share)
    assert w >= 1
    assert h >= 1
    assert 0 <= width - w - 2 * x <= 1  # an odd pixel goes to the right and below
    assert 0 <= height - h - 2 * y <= 1


@pytest.mark.parametrize(("width", "height", "share"), [(0, 5, 0.5), (5, 0, 0.5), (5, 5, 0), (5, 5, 1.01)])
def test_an_impossible_crop_is_refused(width: int, height: int, share: float) -> None:
    with pytest.raises(ValueError, match="expected sides"):
        central_crop(width, height, share=share)
