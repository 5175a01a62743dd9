import numpy as np
import pytest
from skimage import data
from skimage.transform import resize

from methods.curation.registration import count_inliers


def small_grey(image: np.ndarray) -> np.ndarray:
    return resize(image.mean(axis=2), (256, 256), anti_aliasing=True)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "immunohistochemistry"])
def test_a_crop_is_verified_and_strangers_are_not(name: str) -> None:
    image = getattr(data, name)()
    height, width = image.shape[:2]
    crop = image[height // 6 : height * 5 // 6, width // 6 : width * 5 // 6]
    rng = np.random.default_rng(0)
    assert count_inliers(small_grey(image), small_grey(crop), rng=rng) >= 30
    assert count_inliers(small_grey(image), np.rot90(small_grey(image)), rng=rng) >= 100
    assert count_inliers(small_grey(image), small_grey(data.rocket()), rng=rng) < 8


def test_pictures_without_keypoints_are_not_verified() -> None:
    flat = np.full((256, 256), 128.0)
    assert count_inliers(flat, flat, rng=np.random.default_rng(0)) == 0
    assert count_inliers(flat[:5, :5], flat, rng=np.random.default_rng(0)) == 0
