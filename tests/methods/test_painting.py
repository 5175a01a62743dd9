import numpy as np
import pytest
from scipy import ndimage
from skimage import data

from methods.painting import FINDINGS, Finding, Painted, paint_anomalies


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.tile(data.immunohistochemistry(), (2, 2, 1))[:900, :1000]


def paint(picture: np.ndarray, *findings: Finding, seed: int = 0, tissue: np.ndarray | None = None) -> Painted:
    tissue = np.ones(picture.shape[:2], bool) if tissue is None else tissue
    extent = min(picture.shape[:2])
    sizes = (extent // 5, extent // 3)
    return paint_anomalies(picture, tissue, findings=findings, size_px=sizes, rng=np.random.default_rng(seed), foreign=data.gravel())


@pytest.mark.parametrize("finding", FINDINGS)
@pytest.mark.parametrize("shape", [(900, 1000), (300, 500)])
def test_the_mask_is_what_was_painted(picture: np.ndarray, finding: Finding, shape: tuple[int, int]) -> None:
    original = picture[: shape[0], : shape[1]]
    painted = paint(original, finding)
    changed = (painted.image != original).any(axis=2)
    assert not changed[~painted.mask].any()
    assert changed[painted.mask].mean() > 0.99
    assert painted.image.dtype == np.uint8


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_is_one_connected_region_of_the_size_that_was_asked_for(picture: np.ndarray, finding: Finding) -> None:
    for seed in range(5):
        mask = paint(picture, finding, seed=seed).mask
        parts, count = ndimage.label(mask)
        height_px, width_px = parts.max(axis=1).sum(), parts.max(axis=0).sum()
        assert count == 1
        assert 100 < max(height_px, width_px) <= 300


@pytest.mark.parametrize("seed", range(5))
def test_no_region_is_painted_over_by_a_later_one(picture: np.ndarray, seed: int) -> None:
    findings: list[Finding] = ["fold", "stain change", "pen", "blur"]
    for count in range(1, 4):
        fewer, more = paint(picture, *findings[:count], seed=seed), paint(picture, *findings[: count + 1], seed=seed)
        np.testing.assert_array_equal(more.image[fewer.mask], fewer.image[fewer.mask])
        assert more.mask.sum() > fewer.mask.sum()


def test_regions_lie_on_tissue(picture: np.ndarray) -> None:
    tissue = np.zeros(picture.shape[:2], bool)
    tissue[:, 500:] = True
    mask = paint(picture, *FINDINGS, tissue=tissue).mask
    assert tissue[mask].mean() > 0.9


def test_the_picture_that_came_in_is_not_touched(picture: np.ndarray) -> None:
    before = picture.copy()
    paint(picture, *FINDINGS)
    np.testing.assert_array_equal(picture, before)


def test_equal_seeds_paint_the_same(picture: np.ndarray) -> None:
    first, second = paint(picture, *FINDINGS, seed=7), paint(picture, *FINDINGS, seed=7)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert first.findings == FINDINGS


@pytest.mark.parametrize("finding", ["fold", "pen"])
def test_folds_and_ink_only_darken(picture: np.ndarray, finding: Finding) -> None:
    painted = paint(picture, finding, seed=2)
    assert (painted.image <= picture).all()
    assert painted.image[painted.mask].mean() < 0.8 * picture[painted.mask].mean()


def test_blur_takes_the_detail_and_leaves_the_brightness(picture: np.ndarray) -> None:
    painted = paint(picture, "blur", seed=2)
    core = ndimage.binary_erosion(painted.mask, iterations=3)
    before, after = (np.abs(np.diff(image.mean(axis=2), axis=1, prepend=0))[core].mean() for image in (picture, painted.image))
    assert after < 0.3 * before
    assert painted.image[core].mean() == pytest.approx(picture[core].mean(), rel=0.05)


def test_a_stain_change_turns_brown_into_red(picture: np.ndarray) -> None:
    painted = paint(picture, "stain change", seed=2)
    redness = [image[painted.mask][:, 0].mean() - image[painted.mask][:, 1].mean() for image in (picture, painted.image)]
    assert redness[1] > redness[0] + 30


def test_no_room_is_an_error_that_says_what_to_do(picture: np.ndarray) -> None:
    speck = np.zeros(picture.shape[:2], bool)
    speck[400:440, 400:440] = True
    with pytest.raises(ValueError, match="smaller regions or fewer"):
        paint(picture, "blur", tissue=speck)
    with pytest.raises(ValueError, match="no tissue is left"):
        paint(picture, "blur", tissue=np.zeros_like(speck))
