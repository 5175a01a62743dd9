import numpy as np
import pytest
from skimage import data

from methods.specimens import SpecimenError, assemble_specimen, find_cuts, grow_texture


@pytest.fixture(scope="module")
def source() -> np.ndarray:
    return data.immunohistochemistry()[:256]


@pytest.fixture(scope="module")
def specimen(source: np.ndarray) -> np.ndarray:
    return assemble_specimen(source, size_px=1024, rng=np.random.default_rng(1))


def test_two_fifths_of_a_specimen_are_tissue_and_the_rest_is_nearly_white(specimen: np.ndarray) -> None:
    glass = specimen.min(axis=2) > 225
    assert specimen.shape == (1024, 1024, 3)
    assert specimen.dtype == np.uint8
    assert 0.5 < glass.mean() < 0.65  # lumens of the source count as glass here
    assert 238 < specimen[glass].mean() < 249


def test_the_tissue_does_not_touch_the_corners_of_the_slide(specimen: np.ndarray) -> None:
    for corner in (specimen[:40, :40], specimen[:40, -40:], specimen[-40:, :40], specimen[-40:, -40:]):
        assert corner.min() > 230


def test_equal_seeds_give_equal_specimens_and_other_seeds_others(source: np.ndarray, specimen: np.ndarray) -> None:
    again = assemble_specimen(source, size_px=1024, rng=np.random.default_rng(1))
    other = assemble_specimen(source, size_px=1024, rng=np.random.default_rng(2))
    np.testing.assert_array_equal(again, specimen)
    assert (other != specimen).mean() > 0.3


def test_a_texture_holds_no_colour_that_its_source_does_not_have(source: np.ndarray) -> None:
    texture = grow_texture(source, height_px=500, width_px=700, rng=np.random.default_rng(0))
    assert texture.shape == (500, 700, 3)
    assert {tuple(c) for c in np.unique(texture.reshape(-1, 3), axis=0)} <= {tuple(c) for c in np.unique(source.reshape(-1, 3), axis=0)}


def test_a_texture_is_as_sharp_and_as_dark_as_its_source(source: np.ndarray) -> None:
    def contrast(image: np.ndarray) -> float:
        return float(np.abs(np.diff(image.astype(float), axis=1)).mean() + np.abs(np.diff(image.astype(float), axis=0)).mean())

    texture = grow_texture(source, height_px=900, width_px=900, rng=np.random.default_rng(0))
    assert contrast(texture) == pytest.approx(contrast(source), rel=0.15)
    assert texture.mean() == pytest.approx(source.mean(), rel=0.15)


@pytest.mark.parametrize(("height_px", "width_px"), [(170, 512), (512, 200), (64, 90)])
def test_a_narrow_window_is_enough(height_px: int, width_px: int) -> None:
    window = data.immunohistochemistry()[:height_px, :width_px]
    assert assemble_specimen(window, size_px=512, rng=np.random.default_rng(0)).shape == (512, 512, 3)


def test_a_cut_follows_the_valley_and_is_cheaper_than_any_straight_one() -> None:
    valley = np.array([3, 3, 4, 5, 5, 4, 3, 2, 1, 0])
    error = np.random.default_rng(0).uniform(1, 2, (10, 2, 6))
    error[np.arange(10), 1, valley] = 0.01
    cuts = find_cuts(error)
    np.testing.assert_array_equal(cuts[:, 1], valley)
    assert np.abs(np.diff(cuts, axis=0)).max() <= 1
    assert error[np.arange(10), 0, cuts[:, 0]].sum() <= error[:, 0].sum(axis=0).min()


@pytest.mark.parametrize(
    ("source", "size_px"),
    [(np.zeros((63, 300, 3), np.uint8), 512), (np.zeros((300, 300, 3)), 512), (np.zeros((300, 300, 3), np.uint8), 255)],
)
def test_an_unfit_source_or_size_is_refused(source: np.ndarray, size_px: int) -> None:
    with pytest.raises(SpecimenError, match="expected"):
        assemble_specimen(source, size_px=size_px, rng=np.random.default_rng(0))
