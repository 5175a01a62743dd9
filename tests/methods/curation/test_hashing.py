import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from methods.curation.hashing import dihedral_hashes, hash_to_text, perceptual_hash, shrink_grey, text_to_hash, turned

PICTURES = {name: getattr(data, name)() for name in ("astronaut", "coffee", "cat", "immunohistochemistry", "rocket")}


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def hashed(image: np.ndarray) -> np.uint64:
    value = perceptual_hash(image)
    assert value is not None
    return value


def bits_apart(a: np.uint64, b: np.uint64) -> int:
    return int(np.bitwise_count(a ^ b))


@pytest.mark.parametrize("name", PICTURES)
def test_rescaling_and_recompression_change_few_bits(name: str) -> None:
    image = PICTURES[name]
    height, width = image.shape[:2]
    for scale in (0.1, 0.3, 0.5, 1.7):
        small = np.asarray(Image.fromarray(image).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC))
        assert bits_apart(hashed(small), hashed(image)) <= 4
    for quality in (10, 50, 90):
        assert bits_apart(hashed(jpeg(image, quality)), hashed(image)) <= 4


def test_brightness_and_contrast_change_few_bits() -> None:
    image = PICTURES["coffee"]
    assert bits_apart(hashed((image * 0.6 + 30).astype(np.uint8)), hashed(image)) <= 4


def test_different_pictures_are_far_apart() -> None:
    values = [hashed(image) for image in PICTURES.values()]
    assert min(bits_apart(a, b) for i, a in enumerate(values) for b in values[:i]) > 16


@pytest.mark.parametrize("name", PICTURES)
def test_the_eight_variants_are_the_hashes_of_the_turned_pictures(name: str) -> None:
    variants = dihedral_hashes(PICTURES[name])
    assert variants is not None
    assert len(set(variants.tolist())) == 8
    assert variants.tolist() == [hashed(turned(PICTURES[name], k)) for k in range(8)]


@given(seed=st.integers(0, 10_000), height=st.integers(1, 90), width=st.integers(1, 90), symmetric=st.booleans())
def test_the_variants_are_exact_also_where_symmetry_makes_coefficients_nothing(seed: int, height: int, width: int, symmetric: bool) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if symmetric:
        image = np.maximum(image, image[:, ::-1])
    variants, expected = dihedral_hashes(image), [perceptual_hash(turned(image, k)) for k in range(8)]
    assert (None if variants is None else variants.tolist()) == (None if expected[0] is None else expected)


@given(seed=st.integers(0, 10_000), height=st.integers(1, 60), width=st.integers(1, 60), side=st.integers(1, 40))
def test_shrinking_takes_the_mean_of_each_area(seed: int, height: int, width: int, side: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    luma = image @ np.array([0.299, 0.587, 0.114])
    fine = luma.repeat(side, 0).repeat(side, 1).reshape(side, height, side, width).mean((1, 3))
    np.testing.assert_allclose(shrink_grey(image, side_px=side), fine, atol=1 / 256 + 1e-4)


def test_a_near_constant_picture_has_no_hash() -> None:
    rng = np.random.default_rng(0)
    noisy = jpeg(rng.normal(250, 3, (400, 300, 3)).clip(0, 255).astype(np.uint8), 50)
    for image in (np.zeros((64, 64, 3), np.uint8), np.full((5, 7, 3), 200, np.uint8), noisy):
        assert perceptual_hash(image) is None
        assert dihedral_hashes(image) is None


def test_a_faint_structure_has_a_hash() -> None:
    image = (PICTURES["coffee"] // 16 + 120).astype(np.uint8)
    assert bits_apart(hashed(image), hashed(PICTURES["coffee"])) <= 8


def test_a_view_that_is_not_contiguous_has_the_hash_of_its_copy() -> None:
    image = PICTURES["cat"][::2, 1::3]
    assert hashed(image) == hashed(image.copy())


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_rgb_picture_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="convert it to RGB"):
        perceptual_hash(image)


@given(st.integers(0, 2**64 - 1))
def test_text_leads_back_to_the_hash(value: int) -> None:
    text = hash_to_text(np.uint64(value))
    assert len(text) == 16
    assert text_to_hash(text) == np.uint64(value)
    assert text_to_hash(text.upper()) == np.uint64(value)


@pytest.mark.parametrize("text", ["", "12", "0x00000000000000", "g" * 16, "1_00000000000000", "0" * 17])
def test_other_text_is_no_hash(text: str) -> None:
    with pytest.raises(ValueError, match="16 hexadecimal digits"):
        text_to_hash(text)
